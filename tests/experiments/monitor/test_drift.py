from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.monitor.classifier import MOST_USERS, Separation, separate, some_users
from experiments.monitor.drift import (
    Drift,
    column_level,
    comparable_rows,
    measure_drift,
    separation_level,
)
from experiments.monitor.findings import Level, MonitorError
from experiments.monitor.stability import ColumnStability, Sample
from experiments.ope.logged_dataset import LoggedDataset


def levels(found: list[Drift]) -> dict[str, Level]:
    return {finding.check: finding.level for part in found for finding in part.findings()}


def test_no_drift_no_alarm(world: Callable[..., Any], reference: LoggedDataset) -> None:
    found = [levels(measure_drift(reference, world().log(seed), seed=seed)) for seed in range(1, 7)]
    assert set(found[0]) == {
        "feature drift",
        "feature drift, classifier",
        "embedding drift",
        "embedding drift, classifier",
    }
    assert {level for one in found for level in one.values()} == {Level.OK}


def test_a_feature_that_moved_is_an_alarm_and_the_embedding_is_not(
    world: Callable[..., Any], reference: LoggedDataset
) -> None:
    found = measure_drift(reference, world(shift=1.5).log(1), seed=0)
    assert levels(found) == {
        "feature drift": Level.ALARM,
        "feature drift, classifier": Level.ALARM,
        "embedding drift": Level.OK,
        "embedding drift, classifier": Level.OK,
    }
    assert found[0].columns[0].column == "recency"
    assert found[0].separation.most_telling[0] == "recency"
    assert "recency" in found[0].findings()[0].words


def test_what_is_the_same_for_all_users_of_a_week_is_no_feature(
    world: Callable[..., Any], reference: LoggedDataset
) -> None:
    columns = {
        one.column for part in measure_drift(reference, world().log(1), seed=0) for one in part.columns
    }
    assert columns == {"recency", "spend", "fatigue", "cost_2", "cost_3"} | {
        f"embedding_{k}" for k in range(3)
    }


def test_a_campaign_that_has_only_begun_is_compared_with_beginnings(
    world: Callable[..., Any], reference: LoggedDataset
) -> None:
    # In its first weeks nobody is tired yet: against all weeks of the reference, fatigue would have moved.
    early = world(weeks=2, n_users=600).log(1)
    old, new = comparable_rows(reference, early)
    place = reference.observation_names.index("weeks_left")
    assert set(reference.observation[old, place].tolist()) == {3.0, 4.0}
    assert len(new) == early.n_steps
    assert levels(measure_drift(reference, early, seed=0))["feature drift"] is Level.OK
    without = [
        replace(
            log, observation_names=tuple(name.replace("weeks_left", "w") for name in log.observation_names)
        )
        for log in (reference, early)
    ]
    assert levels(measure_drift(*without, seed=0))["feature drift"] is Level.ALARM


def test_campaigns_without_a_week_in_common_are_refused(
    world: Callable[..., Any], reference: LoggedDataset
) -> None:
    early = world(weeks=2, campaign_weeks=12).log(1)
    with pytest.raises(MonitorError, match="weeks_left is 11-12 here and 1-4 there"):
        measure_drift(reference, early, seed=0)


def test_a_log_of_week_wide_columns_alone_is_refused(reference: LoggedDataset) -> None:
    place = [reference.observation_names.index(name) for name in ("weeks_left", "log_dual_price")]
    small = replace(
        reference,
        observation=reference.observation[:, place],
        next_observation=reference.next_observation[:, place],
        observation_names=("weeks_left", "log_dual_price"),
    )
    with pytest.raises(MonitorError, match="nothing to drift"):
        measure_drift(small, small, seed=0)


def test_a_classifier_sees_what_columns_alone_do_not(
    reference: LoggedDataset, with_column: Callable[..., Any], world: Callable[..., Any]
) -> None:
    # The same spends, but of other users: every column is distributed as before.
    log = world().log(1)
    place = log.observation_names.index("spend")
    order = np.argsort(log.observation[:, place])
    opposite = np.empty(log.n_steps, dtype=np.float32)
    recency = log.observation[:, log.observation_names.index("recency")]
    opposite[np.argsort(-recency)] = log.observation[order, place]
    found = levels(measure_drift(reference, with_column(log, "spend", opposite), seed=0))
    assert found["feature drift"] is Level.OK
    assert found["feature drift, classifier"] is Level.ALARM


def test_users_of_both_logs_are_not_recognised() -> None:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((150, 5)).repeat(4, axis=0)
    user = np.arange(150).repeat(4)
    found = separate(("a", "b", "c", "d", "e"), Sample(own, user), Sample(own, user), seed=0)
    assert found.low <= 0.5 <= found.high
    again = separate(("a", "b", "c", "d", "e"), Sample(own, user), Sample(own, user), seed=0)
    assert found == again


def test_large_logs_are_thinned_by_user() -> None:
    rng = np.random.default_rng(0)
    user = np.arange(4 * MOST_USERS) // 2
    rows = some_users(user, MOST_USERS, rng)
    assert len(rows) == 2 * MOST_USERS
    assert len(np.unique(user[rows])) == MOST_USERS
    assert some_users(user, 2 * MOST_USERS, rng).tolist() == list(range(len(user)))


@pytest.mark.parametrize(
    ("psi", "p_value", "level"),
    [
        (0.09, 0.001, Level.OK),
        (0.10, 0.05, Level.WARNING),
        (0.10, 0.06, Level.OK),
        (0.25, 0.05, Level.ALARM),
        (0.90, 0.2, Level.OK),
    ],
)
def test_levels_of_a_column(psi: float, p_value: float, level: Level) -> None:
    assert column_level(ColumnStability("x", psi, p_value, 0.0, 0.0)) is level


@pytest.mark.parametrize(
    ("auc", "low", "level"),
    [(0.65, 0.49, Level.OK), (0.59, 0.55, Level.OK), (0.6, 0.55, Level.WARNING), (0.7, 0.6, Level.ALARM)],
)
def test_levels_of_a_classifier(auc: float, low: float, level: Level) -> None:
    assert separation_level(Separation(auc, low, 1.0, ("x",))) is level
