"""How far offline estimates can be trusted: logs of a market whose values are known exactly.

24 policies are evaluated from logs of 4,000 users each, 50 logs at each of three horizons and three degrees
of overlap with the policies; see :mod:`experiments.benchmarks.ope_study`. What is estimated is profit per
user and campaign: margin less coupon cost. The truth is an exact expectation over all trajectories.

The market is the tabular one, where users are of hidden types and an offer's effects last, and not the coupon
market of the pipeline: there an offer moves profit by one per cent and the luck of a user by seventy, so
that to rank policies takes a million users a log.

Beside it stands what it takes to put these policies in order, most of which are within a few per cent of each
other: fitted Q evaluation from logs of 16,000 users, seeing of a user's state what the other estimates see,
or a column for each state (:mod:`experiments.benchmarks.ope_study.ranking`).

The thresholds of the verdicts were set on 72 logs of other seeds (1000-1003 and 1006-1009, with 8,000 users);
the logs reported here were not looked at for it. Both are of one market; on another, verdicts may do worse.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from rich.console import Console

from experiments.benchmarks import Row, describe_machine
from experiments.benchmarks.ope_study.estimates import ESTIMATORS, StudyEstimates, StudyPlan, run_study
from experiments.benchmarks.ope_study.ranking import RankingPlan, rank_correlations
from experiments.benchmarks.ope_study.scores import (
    APART,
    CLOSE,
    OFF,
    Score,
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
from experiments.ope.logged_dataset import BoolArray

WORKERS = 2

COVERAGE_BAR = (0.93, 0.97)
ERROR_BARS = {"good": 0.05, "poor": 0.15}
OVERSTATED_BAR = 0.05
RANK_BAR = 0.9
REGRET_BAR = 0.02
CAUGHT_BAR = 0.95
VAIN_BAR = 0.10

CHOOSER = "DM"
"""Policies are chosen by fitted Q evaluation: its errors are alike for all policies (Paine et al. 2020,
arXiv:2007.09055). Its intervals, which know nothing of its bias, are never trusted."""
COMPARED = ("DM", "MAGIC", "DR", "PDWIS")
LOGS_PER_LINE = 45
RANKED_USERS = 16_000
RANKED_SEEDS = 10


def run() -> list[Row]:
    """Write and evaluate the logs of the whole study, and score the estimates."""
    plan = StudyPlan()
    console, total = Console(stderr=True), len(plan.tasks())
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % LOGS_PER_LINE == 0 or done == total:
            console.print(f"{done} of {total} logs evaluated")

    workers, hardware = min(WORKERS, os.cpu_count() or 1), describe_machine()
    found = run_study(plan, workers=workers, on_log=count)
    return [*score(found, hardware), *ranking(workers, hardware)]


def ranking(workers: int, hardware: str) -> list[Row]:
    """Return how well policies are put in order from logs of RANKED_USERS, by what the value model sees."""
    rows = []
    for sees_state, seen in ((False, "features of the state"), (True, "a column for each state")):
        plan = RankingPlan(seeds=range(RANKED_SEEDS), n_users=RANKED_USERS, by_state=sees_state)
        found = np.array(rank_correlations(plan, workers=workers))
        rows.append(
            _row(
                f"Kendall τ by {CHOOSER} from {RANKED_USERS:,} users, seeing {seen}",
                mean_where(found, np.ones(found.shape, dtype=np.bool_)),
                hardware,
                bar=RANK_BAR,
                unit="of 1",
            )
        )
    return rows


def score(found: StudyEstimates, hardware: str) -> list[Row]:
    """Return the rows of a study: those with bars first, then the same by estimator and by kind of log."""
    rows = [*_bars(found, hardware), *_choices(found, hardware)]
    rows += [*_by_estimator(found, hardware), *_by_log(found, hardware)]
    return [row for row in rows if row.bar is not None or not math.isnan(row.value)]


def _bars(found: StudyEstimates, hardware: str) -> Iterator[Row]:
    trusted, shown = has_verdict(found, "trust"), has_verdict(found, "trust", "caution")
    coverage = mean_where(covers(found), trusted)
    low, high = COVERAGE_BAR
    row = _row(f"95% intervals that cover, where trusted (at most {high:.0%})", coverage, hardware, bar=low)
    yield replace(row, met=low <= coverage.value <= high)
    yield _row(
        "truth below the interval, where trusted",
        mean_where(overstates(found), trusted),
        hardware,
        bar=OVERSTATED_BAR,
        higher_is_better=False,
    )
    error = relative_error(found)
    for overlap, bar in ERROR_BARS.items():
        of_overlap = shown & (found.overlap == overlap)[:, None, None]
        yield _row(
            f"mean relative error, {overlap} overlap, where shown",
            mean_where(error, of_overlap),
            hardware,
            bar=bar,
            higher_is_better=False,
        )
    yield _row(f"flagged do not use, of those off by over {OFF:.0%}", caught(found), hardware, bar=CAUGHT_BAR)
    yield _row(
        f"flagged do not use, of those within {CLOSE:.0%}",
        flagged_in_vain(found),
        hardware,
        bar=VAIN_BAR,
        higher_is_better=False,
    )
    yield _row(
        "mean error as a share of best less worst policy, where trusted",
        mean_where(error_of_spread(found), trusted),
        hardware,
    )
    yield _row("trusted, of all estimates", _share(found, "trust"), hardware)
    yield _row("flagged do not use, of all estimates", _share(found, "do not use"), hardware)


def _choices(found: StudyEstimates, hardware: str) -> Iterator[Row]:
    for name in COMPARED:
        place, barred = ESTIMATORS.index(name), name == CHOOSER
        yield _row(
            f"Kendall τ by {name}",
            rank_correlation(found, place),
            hardware,
            bar=RANK_BAR if barred else None,
            unit="of 1",
        )
        yield _row(
            f"pairs over {APART:.0%} apart put in order by {name}",
            order_of_unequal(found, place),
            hardware,
            unit="of pairs",
        )
        yield _row(
            f"regret@1 by {name}",
            relative_regret(found, place),
            hardware,
            bar=REGRET_BAR if barred else None,
            higher_is_better=False,
            unit="of the best value",
        )
        yield _row(
            f"regret@1 by {name}, of what there is to gain",
            lost_gain(found, place),
            hardware,
            unit="of the best gain over the policy in place",
        )
        yield _row(f"SharpeRatio@3 by {name}", sharpe_ratio(found, place), hardware, unit="gain over risk")
    first, second = safety(found, ESTIMATORS.index("DR"))
    yield _row("worse than in place, but let through by DR's lower end", first, hardware, unit="of the worse")
    yield _row("better than in place, but held back by it", second, hardware, unit="of the better")


def _by_estimator(found: StudyEstimates, hardware: str) -> Iterator[Row]:
    trusted, error = has_verdict(found, "trust"), relative_error(found)
    for place, name in enumerate(ESTIMATORS):
        own = _only(found, place)
        everything = own & (error < float("inf"))
        yield _row(f"{name}: trusted", _share(found, "trust", place), hardware)
        if trusted[:, :, place].any():
            yield _row(
                f"{name}: intervals that cover, where trusted",
                mean_where(covers(found), own & trusted),
                hardware,
            )
        for overlap in dict.fromkeys(found.overlap.tolist()):
            of_overlap = everything & (found.overlap == overlap)[:, None, None]
            yield _row(
                f"{name}: mean relative error, {overlap} overlap, all",
                mean_where(error, of_overlap),
                hardware,
            )


def _by_log(found: StudyEstimates, hardware: str) -> Iterator[Row]:
    for horizon in dict.fromkeys(found.horizon.tolist()):
        for overlap in dict.fromkeys(found.overlap.tolist()):
            part = found.of_logs((found.horizon == horizon) & (found.overlap == overlap))
            trusted, kind = has_verdict(part, "trust"), f"{horizon} weeks, {overlap} overlap"
            yield _row(f"{kind}: trusted", _share(part, "trust"), hardware)
            yield _row(
                f"{kind}: intervals that cover, where trusted", mean_where(covers(part), trusted), hardware
            )
            yield _row(
                f"{kind}: Kendall τ by {CHOOSER}",
                rank_correlation(part, ESTIMATORS.index(CHOOSER)),
                hardware,
                unit="of 1",
            )


def _share(found: StudyEstimates, verdict: str, estimator: int | None = None) -> Score:
    flags = has_verdict(found, verdict)
    everything = flags | ~flags
    return mean_where(flags, everything if estimator is None else _only(found, estimator))


def _only(found: StudyEstimates, estimator: int) -> BoolArray:
    own = np.zeros(found.value.shape, dtype=np.bool_)
    own[:, :, estimator] = True
    return own


def _row(
    measure: str,
    score: Score,
    hardware: str,
    *,
    bar: float | None = None,
    higher_is_better: bool = True,
    unit: str = "of estimates",
) -> Row:
    row = Row.compare(
        f"{measure} ({score.n:,})",
        score.value,
        unit,
        bar=bar,
        higher_is_better=higher_is_better,
        hardware=hardware,
    )
    return replace(row, ci_low=score.low, ci_high=score.high)
