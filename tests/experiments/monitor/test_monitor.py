from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments.manifest import to_json
from experiments.monitor.findings import EXIT_CODES, Level, MonitorError, graded, worst
from experiments.monitor.monitor import MonitorReport, OfferFacts, Reference, load_log, monitor_log
from experiments.monitor.spend import PacedBudget, SpendPlan
from experiments.monitor.tables import show_report
from experiments.ope.logged_dataset import LoggedDataset


@pytest.fixture(scope="module")
def base(reference: LoggedDataset, offers: tuple[OfferFacts, ...]) -> Reference:
    return Reference(reference, offers)


def printed(report: MonitorReport) -> str:
    console = Console(file=StringIO(), width=220)
    show_report(console, report)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_month_like_the_reference_is_ok(base: Reference, world: Callable[..., Any]) -> None:
    log = world(n_users=600).log(1)
    weeks = {int(week): float(log.cost[log.week == week].sum()) for week in np.unique(log.week)}
    report = monitor_log(base, log, plan=SpendPlan(1e4, weeks), seed=3)
    assert {finding.check: finding.level for finding in report.findings()} == dict.fromkeys(
        (
            "budget",
            "spend",
            "feature drift",
            "feature drift, classifier",
            "embedding drift",
            "embedding drift, classifier",
            "cost calibration",
            "propensities",
            "offer mix",
        ),
        Level.OK,
    )
    assert (report.level, report.exit_code) == (Level.OK, 0)
    assert (report.steps, report.users, report.weeks) == (2400, 600, (41, 44))
    assert report.unchecked() == []
    assert monitor_log(base, log, plan=SpendPlan(1e4, weeks), seed=3) == report


def test_everything_that_can_go_wrong_is_found(base: Reference, world: Callable[..., Any]) -> None:
    log = world(n_users=1500, shift=1.5, redeems=2.5, sharpness=3.0).log(2)
    report = monitor_log(base, log, plan=SpendPlan(50.0, dict.fromkeys(range(41, 45), 12.5)))
    alarms = {finding.check for finding in report.findings() if finding.level is Level.ALARM}
    assert alarms >= {
        "budget",
        "spend",
        "feature drift",
        "feature drift, classifier",
        "cost calibration",
        "propensities",
    }
    assert (report.level, report.exit_code) == (Level.ALARM, 4)
    text = printed(report)
    for part in ("recency", "Spend, of a budget of 50.00", "rare coupon", "alarm"):
        assert part in text


def test_what_could_not_be_checked_is_said(base: Reference, world: Callable[..., Any]) -> None:
    log = world(weeks=1).log(3)
    coupons = replace(log, action=np.full(300, 2), propensity=np.full(300, 0.5), behaviour_probabilities=None)
    report = monitor_log(base, coupons)
    assert len(report.unchecked()) == 2
    assert "Not checked: spend: no plan was given" in printed(report)


def test_json_holds_the_report(base: Reference, world: Callable[..., Any]) -> None:
    report = monitor_log(base, world().log(4))
    content = json.loads(json.dumps(to_json(report.to_dict()), allow_nan=False))
    assert content["level"] == report.level
    assert content["findings"] == [asdict(finding) for finding in report.findings()]
    assert content["drift"][0]["columns"][0]["column"] == report.drift[0].columns[0].column
    assert content["spend"] is None
    assert content["propensities"]["offers"][2]["name"] == "coupon"


def test_a_log_of_another_policy_is_refused(base: Reference, world: Callable[..., Any]) -> None:
    log = world().log(5)
    names = tuple(name.replace("spend", "money") for name in log.observation_names)
    with pytest.raises(MonitorError, match=r"not of one policy: .* only one has 'money'"):
        monitor_log(base, replace(log, observation_names=names))
    with pytest.raises(MonitorError, match="their order differs"):
        monitor_log(base, replace(log, observation_names=log.observation_names[::-1]))
    with pytest.raises(MonitorError, match="the log has 4 offers, the reference's catalogue 3"):
        monitor_log(replace(base, offers=base.offers[:3]), log)


@pytest.mark.parametrize(
    ("settings", "log"),
    [("policy.json", "reference.parquet"), ("export/policy.json", "evaluation/logged.parquet")],
)
def test_a_reference_is_an_export_or_a_run_folder(
    base: Reference, tmp_path: Path, settings: str, log: str
) -> None:
    for name in (settings, log):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    content = {
        "offers": [asdict(offer) | {"kind": "x"} for offer in base.offers],
        "pacing": [{"budget_per_user": 0.5, "weeks": [{"planned_spend": 0.2, "dual_price": 1.0}] * 2}],
    }
    (tmp_path / settings).write_text(json.dumps(content))
    base.log.save(tmp_path / log)
    found = Reference.load(tmp_path)
    assert found.offers == base.offers
    assert found.paced == (PacedBudget(0.5, (0.2, 0.2)),)
    np.testing.assert_array_equal(found.log.observation, base.log.observation)
    (tmp_path / settings).write_text(json.dumps({"offers": [{"name": "x"}]}))
    with pytest.raises(MonitorError, match=r"policy\.json: no offers can be read"):
        Reference.load(tmp_path)


def test_no_reference_and_no_log_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match="is no reference: give a run folder"):
        Reference.load(tmp_path)
    with pytest.raises(MonitorError, match=r"absent\.parquet"):
        load_log(tmp_path / "absent.parquet")
    (tmp_path / "log.parquet").write_bytes(b"no")
    with pytest.raises(MonitorError, match=r"log\.parquet.*not a readable Parquet file"):
        load_log(tmp_path / "log.parquet")


def test_levels_are_ordered_and_have_exit_codes() -> None:
    assert worst([Level.OK, Level.ALARM, Level.WARNING]) is Level.ALARM
    assert worst([]) is Level.OK
    assert [graded(value, 1.0, 2.0) for value in (0.9, 1.0, 2.0)] == list(Level)
    assert EXIT_CODES == {Level.OK: 0, Level.WARNING: 3, Level.ALARM: 4}
