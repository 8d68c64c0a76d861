"""When and at what price is decided: a week of a campaign, its promotions, and what budget is worth."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from agents.serving.columns import CALENDAR_ROWS
from agents.serving.errors import DecisionInputError
from agents.serving.pacing import paced_prices
from agents.serving.settings import PolicySettings
from agents.serving.tables import Tables

NO_CAP = 2**62
"""Ticks that stand for a budget without end."""

DUAL_PRICES = (1e-8, 1e8)
"""Prices of any sense, and some more; up to these the exported graph is compared with the trained policy."""

TRENDS = (-10.0, 10.0)
"""Logarithms of ratios of rates; those of logs are cut far within."""


MOST_PRESSURE = 100.0
"""Far above any plan's: with a campaign of W weeks and coupons of w, pressure stays below W / w."""


@dataclass(frozen=True)
class Promotion:
    """What is known of a week's mass promotion, by category; what is not given stays as the bundle has it.

    Attributes:
        depth: shelf discount, fraction of the regular price.
        display: share of the category's sales weight on display.
        mailer: share of it in the mailer.
        category_trend: log ratio of the category's recent purchase rate to that of a quarter.
        visit_trend: the same of visits; None for the bundle's.
    """

    depth: Mapping[str, float] = field(default_factory=dict)
    display: Mapping[str, float] = field(default_factory=dict)
    mailer: Mapping[str, float] = field(default_factory=dict)
    category_trend: Mapping[str, float] = field(default_factory=dict)
    visit_trend: float | None = None


@dataclass(frozen=True)
class Context:
    """The circumstances of a decision; either ``date`` or ``week`` must be given.

    Attributes:
        date: any day of the week that is decided for.
        week: 1-based week of the log, or after its end.
        weeks_left: of the campaign, this one included; None for a campaign's first week.
        budget_per_user: of the whole campaign, log's currency: sets the price by the plan.
        left_per_user: money not spent yet, instead: sets it by what is left.
        dual_price: λ > 0, margin that a unit of budget must bring; goes before both.
        pressure: share of λ that comes from all weeks alike, above 1 where reserve is short;
            None for the plan's.
        available: money of the whole budget that can still be committed; None for no cap.
        promotion: of the week.
        query: what the user is looking for, or a message's theme, in words; message texts look at it.
    """

    date: datetime.date | None = None
    week: int | None = None
    weeks_left: int | None = None
    budget_per_user: float | None = None
    left_per_user: float | None = None
    dual_price: float | None = None
    pressure: float | None = None
    available: float | None = None
    promotion: Promotion | None = None
    query: str | None = None


@dataclass(frozen=True, eq=False)
class DecisionWeek:
    """A context worked out.

    Attributes:
        week: 1-based week of the log.
        weeks_left: this one included.
        dual_price: λ.
        pressure: its pressure.
        calendar: [len(CALENDAR_ROWS), C] float32, as the graph takes it, like the next two.
        terms: [len(WEEK_COLUMNS)] float32.
        available: [1] int64 ticks.
        query: in words.
    """

    week: int
    weeks_left: int
    dual_price: float
    pressure: float
    calendar: npt.NDArray[np.float32]
    terms: npt.NDArray[np.float32]
    available: npt.NDArray[np.int64]
    query: str | None


def week_of(day: datetime.date, first_day: datetime.date) -> int:
    """Return the 1-based week of the log in which a day lies; weeks begin on Mondays."""
    return (day - first_day).days // 7 + 1


def decision_week(context: Context, settings: PolicySettings, tables: Tables) -> DecisionWeek:
    """Work a context out.

    Raises:
        DecisionInputError: it contradicts itself or the policy; with place and value.
    """
    if context.date is None and context.week is None:
        raise DecisionInputError("the context needs a date or a week")
    week = context.week if context.date is None else week_of(context.date, settings.first_day)
    if context.week is not None and context.week != week:
        raise DecisionInputError(
            f"the date {context.date} lies in week {week}, but the week given is {context.week}"
        )
    assert week is not None
    calendar, visit_trend, month_start = tables.week(week)
    if context.promotion is not None:
        visit_trend = _promoted(calendar, visit_trend, context.promotion, settings)
    weeks_left = settings.horizon_weeks if context.weeks_left is None else context.weeks_left
    dual_price, pressure = _prices(context, settings, weeks_left)
    return DecisionWeek(
        week=week,
        weeks_left=weeks_left,
        dual_price=dual_price,
        pressure=pressure,
        calendar=calendar,
        terms=np.array([visit_trend, month_start, weeks_left], dtype=np.float32),
        available=_available(context.available, settings.ticks_per_unit),
        query=context.query,
    )


def _prices(context: Context, settings: PolicySettings, weeks_left: int) -> tuple[float, float]:
    budget = context.budget_per_user
    if budget is None and context.left_per_user is None:
        budget = settings.default_budget_per_user
    planned, pressure = paced_prices(
        settings.plans, weeks_left, budget_per_user=budget, left_per_user=context.left_per_user
    )
    price = planned if context.dual_price is None else context.dual_price
    low, high = DUAL_PRICES
    if not low <= price <= high:
        raise DecisionInputError(f"the dual price must be in [{low:g}, {high:g}], got {price}")
    if context.pressure is not None:
        pressure = context.pressure
    # Above 1 in weeks short of reserve: agents.dual_prices.surcharged.
    if not 0 <= pressure <= MOST_PRESSURE:
        raise DecisionInputError(f"pressure must be in [0, {MOST_PRESSURE:g}], got {pressure}")
    return price, pressure


def _available(amount: float | None, ticks_per_unit: int) -> npt.NDArray[np.int64]:
    if amount is None:
        return np.array([NO_CAP], dtype=np.int64)
    if not 0 <= amount < NO_CAP / ticks_per_unit:
        raise DecisionInputError(f"available must be a finite amount of at least 0, got {amount}")
    return np.array([np.floor(amount * ticks_per_unit + 1e-6)], dtype=np.int64)


def _promoted(
    calendar: npt.NDArray[np.float32], visit_trend: float, promotion: Promotion, settings: PolicySettings
) -> float:
    """Write what is given into the calendar's rows; return the visit trend."""
    places = {name: k for k, name in enumerate(settings.categories)}
    for row, name in enumerate(CALENDAR_ROWS):
        for category, value in getattr(promotion, name).items():
            where = f"promotion.{name}[{category!r}]"
            if category not in places:
                raise DecisionInputError(
                    f"{where}: no such category, for example {settings.categories[0]!r} is one"
                )
            low, high = TRENDS if name == "category_trend" else (0.0, 1.0)
            if not low <= value <= high:
                raise DecisionInputError(f"{where} must be in [{low:g}, {high:g}], got {value}")
            calendar[row, places[category]] = value
    given = promotion.visit_trend
    low, high = TRENDS
    if given is not None and not low <= given <= high:
        raise DecisionInputError(
            f"promotion.visit_trend is too large or small, it must be in [{low:g}, {high:g}]: {given}"
        )
    return visit_trend if given is None else given


CONTEXT_FIELDS = tuple(f.name for f in fields(Context))
PROMOTION_FIELDS = tuple(f.name for f in fields(Promotion))
