from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm

from experiments.monitor.findings import Level, MonitorError
from experiments.monitor.spend import Charges, PacedBudget, SpendPlan, measure_spend
from experiments.ope.logged_dataset import LoggedDataset


def planned(log: LoggedDataset, share: float = 1.0, budget: float = 1e6) -> SpendPlan:
    """A plan of which the log spends 1 / share."""
    return SpendPlan(
        budget, {int(week): share * float(log.cost[log.week == week].sum()) for week in np.unique(log.week)}
    )


def test_totals_band_and_levels_by_hand(reference: LoggedDataset) -> None:
    report = measure_spend(Charges.of_log(reference), planned(reference))
    by_user = reference.cost.reshape(300, 4)
    last = report.weeks[-1]
    assert [row.week for row in report.weeks] == [41, 42, 43, 44]
    assert report.total == pytest.approx(by_user.sum())
    assert [row.spent for row in report.weeks] == pytest.approx(by_user.sum(axis=0).tolist())
    half = norm.ppf(0.995) * np.sqrt(300) * by_user.sum(axis=1).std(ddof=1)
    assert last.high - last.planned_total == pytest.approx(half)
    assert last.planned_total - last.low == pytest.approx(half)
    first = norm.ppf(0.995) * np.sqrt(300) * by_user[:, 0].std(ddof=1)
    assert report.weeks[0].high - report.weeks[0].planned_total == pytest.approx(first)
    assert report.level is Level.OK


@pytest.mark.parametrize(
    ("share", "level"),
    [
        (1.05, Level.OK),
        (0.95, Level.OK),
        (0.85, Level.WARNING),
        (1.2, Level.WARNING),
        (0.7, Level.ALARM),
        (1.5, Level.ALARM),
    ],
)
def test_being_off_the_plan(world: Callable[..., Any], share: float, level: Level) -> None:
    log = world(n_users=3000).log(1)
    report = measure_spend(Charges.of_log(log), planned(log, share))
    assert report.findings()[1].level is level
    assert report.findings()[0].level is Level.OK


def test_what_chance_may_do_is_no_finding(world: Callable[..., Any]) -> None:
    log = world(n_users=12).log(1)
    report = measure_spend(Charges.of_log(log), planned(log, 0.8))
    last = report.weeks[-1]
    assert last.low < last.total < last.high
    assert report.level is Level.OK


def test_more_than_the_budget_is_an_alarm_and_a_rounding_is_not(reference: LoggedDataset) -> None:
    total = float(reference.cost.sum())
    assert (
        measure_spend(Charges.of_log(reference), planned(reference, budget=0.999 * total)).level
        is Level.ALARM
    )
    assert (
        measure_spend(Charges.of_log(reference), planned(reference, budget=total * (1 - 1e-9))).level
        is Level.OK
    )


def test_a_budget_alone_is_spread_to_the_campaigns_end(world: Callable[..., Any]) -> None:
    log = world(weeks=2, campaign_weeks=5).log(0)
    plan = SpendPlan.of_budget(100.0, log)
    assert plan.by_week == {week: 20.0 for week in range(41, 46)}
    assert [row.planned_total for row in measure_spend(Charges.of_log(log), plan).weeks] == [20.0, 40.0]
    names = tuple(name.replace("weeks_left", "w") for name in log.observation_names)
    with pytest.raises(MonitorError, match="no column 'weeks_left'"):
        SpendPlan.of_budget(100.0, replace(log, observation_names=names))


def test_an_exported_plan_is_taken_in_proportion(world: Callable[..., Any]) -> None:
    paced = [PacedBudget(0.1, (0.04, 0.03, 0.02, 0.005)), PacedBudget(0.4, (0.1, 0.1, 0.1, 0.08))]
    log = world(n_users=300).log(0)
    # 0.12 a user is nearer to 0.1 than to 0.4: all of its weeks are a fifth larger.
    plan = SpendPlan.of_budget(36.0, log, paced)
    assert plan.budget == 36.0
    assert list(plan.by_week) == [41, 42, 43, 44]
    assert list(plan.by_week.values()) == pytest.approx([14.4, 10.8, 7.2, 1.8])
    begun = replace(log, week=log.week + 1)
    place = log.observation_names.index("weeks_left")
    observation = log.observation.copy()
    observation[:, place] -= 1
    late = SpendPlan.of_budget(36.0, replace(begun, observation=observation), paced)
    assert list(late.by_week.values()) == pytest.approx([10.8, 7.2, 1.8])
    with pytest.raises(MonitorError, match="has 6 weeks left, the exported plans have 4"):
        SpendPlan.of_budget(36.0, world(campaign_weeks=6).log(0), paced)
    with pytest.raises(MonitorError, match="the budget must be positive and finite, got -1"):
        SpendPlan.of_budget(-1, log, paced)


def test_a_week_that_nobody_planned_is_refused(reference: LoggedDataset) -> None:
    with pytest.raises(MonitorError, match="no spend for week 43 of the log; it has weeks 41-42"):
        measure_spend(Charges.of_log(reference), SpendPlan(9.0, {41: 1.0, 42: 1.0}))


def test_a_week_with_nothing_planned_alarms_on_any_real_spend(reference: LoggedDataset) -> None:
    plan = SpendPlan(1e6, dict.fromkeys(range(41, 45), 0.0))
    assert measure_spend(Charges.of_log(reference), plan).findings()[1].level is Level.ALARM


def test_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"budget": 50, "spend": {"41": 20.5, "42": 0}}))
    assert SpendPlan.load(path) == SpendPlan(50.0, {41: 20.5, 42: 0.0})


BAD_PLANS: dict[str, tuple[Any, str]] = {
    "not an object": ([1], "expected an object with 'budget' and 'spend'"),
    "a key too many": ({"budget": 1, "spend": {"1": 1}, "x": 1}, "and nothing else"),
    "spend is a list": ({"budget": 1, "spend": [1]}, "'spend' must map weeks to amounts"),
    "no weeks": ({"budget": 1, "spend": {}}, "no week has a planned spend"),
    "week in words": ({"budget": 1, "spend": {"first": 1}}, "'first' is not a week"),
    "amount in words": ({"budget": 1, "spend": {"1": "2"}}, "spend of week 1 must be a number, got '2'"),
    "amount true": ({"budget": True, "spend": {"1": 2}}, "budget must be a number, got True"),
    "negative": ({"budget": 1, "spend": {"1": -2}}, "spend of week 1 must be finite and not negative"),
    "no budget": ({"budget": 0, "spend": {"1": 2}}, "the budget must be positive"),
    "not finite": ({"budget": 1, "spend": {"1": float("nan")}}, "spend of week 1 must be finite"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_bad_plans_are_refused_by_place(case: str, tmp_path: Path) -> None:
    content, message = BAD_PLANS[case]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(MonitorError, match=message) as error:
        SpendPlan.load(path)
    assert "plan.json" in str(error.value)


def test_no_plan_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match=r"absent\.json"):
        SpendPlan.load(tmp_path / "absent.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(MonitorError, match=r"plan\.json: "):
        SpendPlan.load(tmp_path / "plan.json")


def test_a_planned_week_that_the_log_misses_counts_as_not_spent(reference: LoggedDataset) -> None:
    # Such as a service that was down for a week.
    kept = reference.week != 43
    values = {field.name: getattr(reference, field.name) for field in fields(reference)}
    columns = {name: value[kept] for name, value in values.items() if isinstance(value, np.ndarray)}
    log = replace(
        reference,
        **columns
        | {
            "campaign": (columns["week"] == 44).astype(np.int64),  # a gap begins another episode
            "truncated": columns["week"] == 42,
            "terminated": columns["week"] == 44,
        },
    )
    last = measure_spend(
        Charges.of_log(log), SpendPlan(1e6, {40: 9.0, 41: 1.0, 42: 2.0, 43: 30.0, 44: 4.0})
    ).weeks[-1]
    assert (last.week, last.planned, last.planned_total) == (44, 4.0, 37.0)


def test_charges_of_decisions_whose_outcome_is_open_count(reference: LoggedDataset, tmp_path: Path) -> None:
    plan = planned(reference)
    known = Charges(reference.user[::2], reference.week[::2], reference.cost[::2])
    assert measure_spend(known, plan).level is Level.ALARM
    table = pa.table(
        {
            "user": [f"u{user}" for user in reference.user],
            "week": reference.week,
            "cost": reference.cost,
            "offer": reference.action,
        }
    )
    pq.write_table(table, tmp_path / "decisions.parquet")
    every = measure_spend(Charges.load(tmp_path / "decisions.parquet"), plan)
    assert every.level is Level.OK
    assert every.total == pytest.approx(float(reference.cost.sum()))


def test_a_file_that_holds_no_charges_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "decisions.parquet"
    with pytest.raises(MonitorError, match=r"decisions .*decisions\.parquet"):
        Charges.load(path)
    pq.write_table(pa.table({"user": ["a"], "week": [3], "cost": [float("nan")]}), path)
    with pytest.raises(MonitorError, match=r"cost in row 0 is nan"):
        Charges.load(path)
    pq.write_table(pa.table({"user": ["a"], "week": [3]}), path)
    with pytest.raises(MonitorError, match="cost"):
        Charges.load(path)
