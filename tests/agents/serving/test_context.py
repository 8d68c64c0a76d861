from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.serving import Context, CouponPolicy, DecisionInputError, Promotion
from agents.serving.columns import CALENDAR_ROWS
from agents.serving.context import NO_CAP, decision_week, week_of
from agents.serving.pacing import BudgetPlan, PlannedWeek, paced_prices
from encoders.calendar import PromotionCalendar, month_start
from encoders.panel import Panel
from envs.campaign import MarketSpec


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    market: MarketSpec
    panel: Panel


@pytest.fixture(scope="module")
def policy(exported: Exported) -> CouponPolicy:
    return CouponPolicy.load(exported.folder)


def test_weeks_begin_on_mondays(policy: CouponPolicy) -> None:
    first = policy.settings.first_day
    assert [week_of(first + datetime.timedelta(days=k), first) for k in (-1, 0, 6, 7)] == [0, 1, 1, 2]


def test_a_known_week_is_the_logs_own(exported: Exported, policy: CouponPolicy) -> None:
    calendar = PromotionCalendar.of_panel(exported.panel)
    for week in (1, 7, exported.panel.n_weeks):
        found = decision_week(Context(week=week), policy.settings, policy.tables)
        row = calendar.weeks(torch.tensor(week - 1))
        for place, name in enumerate(CALENDAR_ROWS):
            assert np.array_equal(found.calendar[place], getattr(row, name).numpy())
        assert found.terms.tolist() == [
            float(row.visit_trend),
            float(row.month_start),
            policy.settings.horizon_weeks,
        ]


def test_a_later_week_has_the_usual_promotion_and_its_own_days(
    exported: Exported, policy: CouponPolicy
) -> None:
    panel = exported.panel
    day = panel.first_day + datetime.timedelta(weeks=120, days=3)
    found = decision_week(Context(date=day), policy.settings, policy.tables)
    assert found.week == 121
    usual = panel.promotion_depth[: panel.split.train_end].mean(axis=0)
    np.testing.assert_allclose(found.calendar[0], usual, rtol=1e-6)
    assert (found.calendar[CALENDAR_ROWS.index("category_trend")] == 0).all()
    assert found.terms[0] == 0.0
    assert found.terms[1] == float(month_start(panel.first_day, 121)[120])


def test_what_is_known_of_a_week_is_taken_over(policy: CouponPolicy) -> None:
    name = policy.categories[2]
    plain = decision_week(Context(week=5), policy.settings, policy.tables)
    promotion = Promotion(depth={name: 0.5}, category_trend={name: -1.0}, visit_trend=0.25)
    found = decision_week(Context(week=5, promotion=promotion), policy.settings, policy.tables)
    assert found.calendar[0, 2] == 0.5
    assert found.calendar[3, 2] == -1.0
    assert found.terms[0] == 0.25
    changed = found.calendar != plain.calendar
    assert changed.sum() == 2
    # The bundle's own table is left alone.
    again = decision_week(Context(week=5), policy.settings, policy.tables)
    assert np.array_equal(again.calendar, plain.calendar)


def test_money_left_is_counted_in_whole_ticks(policy: CouponPolicy) -> None:
    def ticks(amount: float | None) -> int:
        return int(
            decision_week(Context(week=5, available=amount), policy.settings, policy.tables).available[0]
        )

    assert ticks(None) == NO_CAP
    assert ticks(0.0) == 0
    assert ticks(0.62) == 6200
    assert ticks(0.61999) == 6199


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (Context(), "needs a date or a week"),
        (Context(week=0), "week 0 is outside of the weeks"),
        (Context(week=10_000), "week 10000 is outside of the weeks"),
        (Context(date=datetime.date(2018, 1, 9), week=1), "lies in week 2, but the week given is 1"),
        (Context(week=5, weeks_left=0), "weeks_left must be in 1..5"),
        (Context(week=5, weeks_left=6), "weeks_left must be in 1..5"),
        (Context(week=5, dual_price=0.0), r"the dual price must be in \[1e-08, 1e\+08\], got 0.0"),
        (Context(week=5, dual_price=math.inf), "the dual price must be in .*, got inf"),
        (Context(week=5, pressure=-0.5), r"pressure must be in \[0, 100\], got -0.5"),
        (Context(week=5, budget_per_user=-1.0), "budget_per_user must be above 0"),
        (
            Context(week=5, budget_per_user=1.0, left_per_user=1.0),
            "give either budget_per_user or left_per_user",
        ),
        (Context(week=5, available=-0.1), "available must be a finite amount of at least 0"),
        (Context(week=5, available=math.nan), "available must be a finite amount"),
        (
            Context(week=5, promotion=Promotion(depth={"CAVIAR": 0.1})),
            r"promotion.depth\['CAVIAR'\]: no such",
        ),
        (
            Context(week=5, promotion=Promotion(mailer={"FOOD/KIND-A": 1.1})),
            r"\['FOOD/KIND-A'\] must be in \[0, 1\], got 1.1",
        ),
        (
            Context(week=5, promotion=Promotion(visit_trend=math.nan)),
            "promotion.visit_trend is too large or small, .*: nan",
        ),
    ],
)
def test_a_context_that_cannot_be_is_named(policy: CouponPolicy, context: Context, said: str) -> None:
    with pytest.raises(DecisionInputError, match=said):
        decision_week(context, policy.settings, policy.tables)


# Prices ----------------------------------------------------------------------------------------------

LOW = BudgetPlan(1.0, (PlannedWeek(0.5, 4.0, 1.0), PlannedWeek(0.5, 2.0, 0.5)))
HIGH = BudgetPlan(4.0, (PlannedWeek(1.0, 1.0, 0.0), PlannedWeek(3.0, 0.5, 0.0)))


def test_prices_of_a_budget_in_the_table_are_the_tables() -> None:
    assert paced_prices([LOW, HIGH], 2, budget_per_user=1.0) == pytest.approx((4.0, 1.0))
    assert paced_prices([HIGH, LOW], 1, budget_per_user=4.0) == pytest.approx((0.5, 0.0))


def test_between_budgets_the_price_is_between_them_in_logarithms() -> None:
    assert paced_prices([LOW, HIGH], 2, budget_per_user=2.0) == pytest.approx((2.0, 0.5))
    assert paced_prices([LOW, HIGH], 2, budget_per_user=100.0)[0] == pytest.approx(1.0)
    assert paced_prices([LOW, HIGH], 2, budget_per_user=0.01)[0] == pytest.approx(4.0)


def test_who_kept_to_the_plan_pays_its_price_and_who_overspent_more() -> None:
    assert paced_prices([LOW, HIGH], 1, left_per_user=0.5) == pytest.approx((2.0, 0.5))
    assert paced_prices([LOW, HIGH], 1, left_per_user=3.0) == pytest.approx((0.5, 0.0))
    assert paced_prices([LOW, HIGH], 1, left_per_user=0.1)[0] == pytest.approx(2.0)
    middle = paced_prices([LOW, HIGH], 1, left_per_user=math.sqrt(0.5 * 3.0))
    assert middle == pytest.approx((1.0, 0.25))


def test_a_price_that_rises_with_money_is_cut() -> None:
    odd = BudgetPlan(8.0, (PlannedWeek(1.0, 3.0, 0.0), PlannedWeek(7.0, 3.0, 0.0)))
    assert paced_prices([LOW, odd, HIGH], 2, budget_per_user=8.0)[0] == pytest.approx(1.0)
    assert paced_prices([LOW, odd, HIGH], 1, left_per_user=7.0)[0] == pytest.approx(0.5)


@given(st.floats(1e-3, 1e3), st.floats(1.0, 10.0), st.integers(1, 2))
def test_more_money_never_costs_more(money: float, more: float, weeks_left: int) -> None:
    for name in ("budget_per_user", "left_per_user"):
        asked: list[dict[str, Any]] = [{name: money}, {name: money * more}]
        less_money, more_money = (paced_prices([LOW, HIGH], weeks_left, **one)[0] for one in asked)
        assert more_money <= less_money * (1 + 1e-12)


def test_a_policys_default_is_its_default_budget(policy: CouponPolicy) -> None:
    found = decision_week(Context(week=5), policy.settings, policy.tables)
    assert (found.dual_price, found.pressure) == pytest.approx((0.2, 0.0))
    third = decision_week(Context(week=5, weeks_left=3), policy.settings, policy.tables)
    assert (third.dual_price, third.pressure) == pytest.approx((0.4, 0.2))
    assert policy.settings.default_dual_price() == pytest.approx(0.2)
    assert policy.settings.mean_prices() == pytest.approx(
        [math.exp(np.log([0.2, 0.3, 0.4, 0.5, 0.6]).mean()), 4.0]
    )
