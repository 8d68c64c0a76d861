from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from experiments.benchmarks import BENCHMARKS, Request, Row, ope, ope_speed
from experiments.benchmarks.ope import score
from experiments.benchmarks.ope_study.estimates import (
    ESTIMATORS,
    OVERLAPS,
    VERDICTS,
    StudyEstimates,
    StudyPlan,
)
from experiments.benchmarks.ope_study.ranking import RankingPlan
from experiments.benchmarks.ope_study.scores import (
    by_log,
    caught,
    covers,
    error_of_spread,
    flagged_in_vain,
    has_verdict,
    lost_gain,
    mean_where,
    order_of_unequal,
    overstates,
    rank_correlation,
    relative_error,
    relative_regret,
    safety,
    sharpe_ratio,
)

M = len(ESTIMATORS)
TRUTH = np.array([[10.0, 8.0, 5.0], [10.0, 8.0, 5.0]])
DR = ESTIMATORS.index("DR")


def study(value: list[list[float]], verdict: str = "trust") -> StudyEstimates:
    """Two logs, three policies, the same values from every estimator; intervals reach 1 either way."""
    values = np.repeat(np.array(value)[:, :, None], M, axis=2)
    return StudyEstimates(
        policies=("best", "in place", "worst"),
        horizon=np.array([2, 4]),
        overlap=np.array(["good", "poor"]),
        truth=TRUTH,
        value=values,
        low=values - 1,
        high=values + 1,
        verdict=np.full(values.shape, VERDICTS.index(verdict)),
    )


def twice(found: StudyEstimates) -> StudyEstimates:
    """Two logs of each kind: an interval over logs needs two."""
    return found.of_logs(np.array([0, 0, 1, 1]))


FOUND = study([[10.5, 8.0, 7.0], [8.5, 9.2, 5.0]])


def test_coverage_and_errors_by_hand() -> None:
    assert covers(FOUND)[:, :, DR].tolist() == [[True, True, False], [False, False, True]]
    assert overstates(FOUND)[:, :, DR].tolist() == [[False, False, True], [False, True, False]]
    np.testing.assert_allclose(
        relative_error(FOUND)[:, :, DR], [[0.05, 0.0, 0.4], [0.15, 0.15, 0.0]], atol=1e-12
    )
    np.testing.assert_allclose(
        error_of_spread(FOUND)[:, :, DR], [[0.1, 0.0, 0.4], [0.3, 0.24, 0.0]], atol=1e-12
    )
    everything = has_verdict(FOUND, "trust")
    assert everything.all()
    coverage = mean_where(covers(FOUND), everything)
    assert coverage.value == pytest.approx(0.5)
    assert coverage.n == 6 * M
    # The two logs cover 2 of 3 and 1 of 3: their mean's standard error is 1/6.
    assert coverage.high - coverage.value == pytest.approx(1.959964 / 6, rel=1e-6)


def test_a_missing_value_is_infinitely_wrong_and_ranks_last() -> None:
    value = FOUND.value.copy()
    value[0, 0] = np.nan
    broken = replace(FOUND, value=value, low=value - 1, high=value + 1)
    assert relative_error(broken)[0, 0, 0] == math.inf
    assert not covers(broken)[0, 0, 0]
    # Equal to the worst estimate, 7: it ranks beside the worst, behind the one in place.
    assert by_log(broken, 0, lambda value, _: float(value[0])).value == pytest.approx((7 + 8.5) / 2)


def test_flags_by_hand() -> None:
    verdict = FOUND.verdict.copy()
    verdict[0, 2, :4] = VERDICTS.index("do not use")  # off by 40%: half of them caught
    verdict[1, 2, :2] = VERDICTS.index("do not use")  # exact: flagged in vain
    flagged = replace(FOUND, verdict=verdict)
    assert caught(flagged).value == pytest.approx(4 / M)
    # Within 5% are policies 0 and 1 of the first log and 2 of the second.
    assert flagged_in_vain(flagged).value == pytest.approx(2 / (3 * M))
    assert math.isnan(caught(study([[10.0, 8.0, 5.0]] * 2)).value)


def test_choices_by_hand() -> None:
    # The first log keeps the order, the second one swaps the best two.
    assert rank_correlation(FOUND, DR).value == pytest.approx((1 + 1 / 3) / 2)
    # All pairs are over 2% of 10 apart; the second log has two of three right.
    assert order_of_unequal(FOUND, DR).value == pytest.approx((1 + 2 / 3) / 2)
    assert relative_regret(FOUND, DR).value == pytest.approx((0 + 0.2) / 2)
    assert lost_gain(FOUND, DR).value == pytest.approx((0 + 1.0) / 2)
    # Of the top two, 10 and 8, whichever comes first: gain 2 over risk 1.
    assert sharpe_ratio(FOUND, DR, k=2).value == pytest.approx(2.0)
    first, second = safety(FOUND, DR)
    # Lower ends 9.5 | 6.0 and 7.5 | 4.0 against 8.
    assert (first.value, second.value) == (0.0, 0.5)


def test_rows_name_their_bars() -> None:
    rows = {row.measure.rsplit(" (", 1)[0]: row for row in score(twice(FOUND), "a machine")}
    assert rows["95% intervals that cover, where trusted (at most 97%)"].met is False
    assert rows["truth below the interval, where trusted"].value == pytest.approx(1 / 3)
    assert rows["mean relative error, good overlap, where shown"].value == pytest.approx(0.15)
    assert rows["mean relative error, poor overlap, where shown"].met is True
    assert rows["flagged do not use, of those off by over 30%"].met is False
    assert rows["flagged do not use, of those within 5%"].met is True
    assert rows["Kendall τ by DM"].bar == 0.9
    assert rows["Kendall τ by DR"].bar is None
    assert rows["2 weeks, good overlap: Kendall τ by DM"].value == 1.0
    assert {row.hardware for row in rows.values()} == {"a machine"}


def test_too_high_a_coverage_is_not_met_either() -> None:
    exact = score(twice(study([[10.0, 8.0, 5.0]] * 2)), "a machine")
    assert (exact[0].value, exact[0].met) == (1.0, False)


def test_rows_without_anything_to_average_are_left_out() -> None:
    rows = score(twice(study([[10.0, 8.0, 5.0]] * 2, "caution")), "a machine")
    for row in rows:
        assert row.bar is not None or not math.isnan(row.value), row


def test_the_benchmark_runs_its_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = StudyPlan(horizons=(2,), overlaps=OVERLAPS, seeds=range(2), n_users=120, n_bootstrap=10)
    monkeypatch.setattr(ope, "StudyPlan", lambda: plan)
    small = partial(RankingPlan, horizons=(2,), overlaps=OVERLAPS[:1])
    monkeypatch.setattr(ope, "RankingPlan", small)
    monkeypatch.setattr(ope, "RANKED_USERS", 200)
    monkeypatch.setattr(ope, "RANKED_SEEDS", 2)
    monkeypatch.setattr(ope, "WORKERS", 1)
    rows = BENCHMARKS["ope"](Request())
    ranked = [row for row in rows if "from 200 users, seeing" in row.measure]
    assert [row.bar for row in ranked] == [0.9, 0.9]
    assert all(row.measure.endswith("(2)") and row.ci_low is not None for row in ranked)
    assert "6 of 6 logs evaluated" in capsys.readouterr().err
    shares = [
        row for row in rows if row.measure.startswith(("trusted, of all", "flagged do not use, of all"))
    ]
    assert len(shares) == 2
    assert sum(row.value for row in shares) <= 1
    assert all(row.measure.endswith(f"({6 * 24 * M:,})") for row in shares)


def test_a_benchmark_with_a_dash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row.compare("a measure", 1.0, "s", hardware="a machine")
    monkeypatch.setattr(ope_speed, "run", lambda: [row])
    assert BENCHMARKS["ope-speed"](Request()) == [row]
