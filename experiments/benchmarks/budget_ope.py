"""Offline evaluation under a shared budget, against whole markets that are played under it.

The market is that of :mod:`experiments.ope.budget_study`: demo users, a softened myopic rule as the target,
the same rule with exploration as the policy that logs. A log is one campaign of 2,000 users drawn from the
population, at a fixed price path and without a cap; from it alone come the price that spends a budget, the
margin there, and their intervals. The truths are played: the population at the price that spends the budget,
and markets of 2,000 users whose ledger refuses what the budget cannot hold.

Naive means: a log of a campaign *with* a cap, and importance weights per user as if there were none. The
target would spend differently, so that offers would run out for others and at other times than in the log.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from scipy.stats import beta, t
from threadpoolctl import threadpool_limits

from agents.pacing import EvenPacing, PriceRange
from experiments.benchmarks import Row, describe_machine
from experiments.ope.budget_interference import Compared, budgeted_estimate, naive_estimates
from experiments.ope.budget_study import FIRST_PRICE, BudgetStudy, TrueCurves, Truth
from experiments.ope.logged_dataset import FloatArray
from experiments.ope.price_levels import FixedPath
from experiments.ope.shared_budget import BudgetedValue, value_under_budget

LEVELS = tuple(float(level) for level in np.geomspace(1 / 4, 4, 13))
"""Grid of the estimates."""
TRUE_LEVELS = np.geomspace(1 / 3, 3, 19)
"""Where the population is played."""
EVEN = EvenPacing(PriceRange(0.05, 20.0))
NAIVE_BUDGET, NAIVE_LEVELS = 0.43, (0.5, 1.0)
"""Half of what the policy that logs would use; targets that would use about twice and half as much."""
MOST_PROCESSES = 4

LEAST_COVERAGE = 0.90
"""95% less what 80 logs can tell."""
ERROR_BAR = 0.05

Task = TypeVar("Task")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Size:
    """How much is played.

    Attributes:
        population: users to draw from, and those of the truth at fixed prices.
        n_users: users of a log, and of a market with a cap.
        budgets: currency per user, from messages alone to coupons for many.
        logs: of the coverage.
        replicates: markets with a cap for each budget.
        bias_logs: logs of each kind beside the truth of the same market.
        bias_users: users of these.
        truth_seeds: campaigns of the population.
        n_bootstrap: resamples of an interval.
    """

    population: int = 10_000
    n_users: int = 2_000
    budgets: tuple[float, ...] = (0.1, 0.25, 0.5)
    logs: int = 80
    replicates: int = 24
    bias_logs: int = 20
    bias_users: int = 8_000
    truth_seeds: int = 4
    n_bootstrap: int = 500


@dataclass(frozen=True)
class Played:
    """Markets with a cap at one budget per user.

    Attributes:
        budget: currency per user.
        fixed: at the prices at which the population's highest commitment meets the budget.
        payments: at the prices at which what the population pays meets it.
        paced: paced evenly by what is left.
    """

    budget: float
    fixed: Truth
    payments: Truth
    paced: Truth


def run() -> list[Row]:
    """Play, estimate and compare, in up to MOST_PROCESSES processes."""
    with _processes(min(os.cpu_count() or 1, MOST_PROCESSES)) as pool:
        return measure(Size(), pool)


@contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    """A pool whose processes use one thread each."""
    # Spawned, not forked: a fork copies the locks of torch's threads in whatever state they are.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    threadpool_limits(limits=1)


@cache
def _study(size: Size) -> BudgetStudy:
    """The study, built once a process."""
    return BudgetStudy.build(population=size.population, n_users=size.n_users)


def _large_study(size: Size) -> BudgetStudy:
    """The study with the users of a bias's log."""
    return replace(_study(size), n_users=size.bias_users)


def measure(size: Size, pool: Executor) -> list[Row]:
    """Return all rows."""
    console = Console(stderr=True)

    def every(what: str, work: Callable[[Task], Found], tasks: Iterable[Task]) -> list[Found]:
        found = list(pool.map(work, tasks))
        console.print(f"{what}: {len(found)} done")
        return found

    population = every("price levels in the population", partial(_population, size), TRUE_LEVELS.tolist())
    curves = TrueCurves.of(TRUE_LEVELS, population)
    capped = every("budgets in markets with a cap", partial(_markets, size, curves), size.budgets)
    by_log = every("logs without a cap", partial(_estimates, size), range(size.logs))
    middle = size.budgets[len(size.budgets) // 2]
    level = curves.level_of(middle, "peak")
    ours = every("logs beside markets", partial(_ours, size, middle, level), range(size.bias_logs))
    naive = every("logs with a cap", partial(_naive, size), range(size.bias_logs))
    rows: list[Row] = []
    for k, markets in enumerate(capped):
        rows += _rows_of_estimates(size, curves, markets, [log[k] for log in by_log])
        rows += _rows_of_markets(size, curves, markets)
    rows += _rows_of_bias(middle, ours, naive)
    hardware = describe_machine()
    return [replace(row, hardware=hardware) for row in rows]


def _population(size: Size, level: float) -> Truth:
    study = _study(size)
    settings = [study.everybody(10_000 + seed) for seed in range(size.truth_seeds)]
    return study.truth(settings, None, FixedPath(study.path(level)))


def _markets(size: Size, curves: TrueCurves, budget: float) -> Played:
    study = _study(size)
    settings = [study.sampled(20_000 + seed) for seed in range(size.replicates)]
    fixed, payments = (
        study.truth(settings, budget, FixedPath(study.path(curves.level_of(budget, use))))
        for use in ("peak", "cost")
    )
    return Played(budget, fixed, payments, study.truth(settings, budget, EVEN))


def _estimates(size: Size, seed: int) -> list[BudgetedValue]:
    study = _study(size)
    rng = np.random.default_rng([seed, 3])
    curves = study.curves(study.log(seed), LEVELS, rng=rng, n_bootstrap=size.n_bootstrap)
    return [value_under_budget(curves, budget, policy=study.policy.name) for budget in size.budgets]


def _ours(size: Size, budget: float, level: float, seed: int) -> Compared:
    return budgeted_estimate(_large_study(size), 30_000 + seed, budget, LEVELS, level)


def _naive(size: Size, seed: int) -> list[Compared]:
    return naive_estimates(_large_study(size), 40_000 + seed, NAIVE_BUDGET, NAIVE_LEVELS)


def _rows_of_estimates(
    size: Size, curves: TrueCurves, markets: Played, estimates: Sequence[BudgetedValue]
) -> list[Row]:
    words = f"budget {markets.budget:g} a user, {size.logs} logs of {size.n_users:,} users"
    level = curves.level_of(markets.budget, "peak")
    margin, capped = curves.at("margin", level), float(markets.fixed.margin.mean())
    price = level * FIRST_PRICE
    hits = {
        "margin at the price that spends the budget": [e.ci_low <= margin <= e.ci_high for e in estimates],
        "margin under the hard cap": [e.ci_low <= capped <= e.ci_high for e in estimates],
        "price that spends the budget": [e.dual_price_low <= price <= e.dual_price_high for e in estimates],
    }
    rows = [
        _share(f"95% interval covers the {name}; {words}", covered, bar=LEAST_COVERAGE)
        for name, covered in hits.items()
    ]
    error = np.array([abs(e.value - margin) / margin for e in estimates])
    rows.append(_mean(f"relative error of the margin; {words}", error, "of the margin", bar=ERROR_BAR))
    rows.append(_share(f"verdict trust; {words}", [e.verdict == "trust" for e in estimates]))
    return rows


def _rows_of_markets(size: Size, curves: TrueCurves, markets: Played) -> list[Row]:
    budget = markets.budget
    of_peak, of_payments = (
        curves.at("incremental", curves.level_of(budget, use)) for use in ("peak", "cost")
    )
    cases = (
        ("at the prices at which the highest commitment meets it", markets.fixed, of_peak),
        ("paced evenly, against the same prices", markets.paced, of_peak),
        ("at the prices at which payments alone meet it", markets.payments, of_payments),
    )
    words = f"{size.replicates} markets of {size.n_users:,} users, cap of {budget:g} a user"
    rows = []
    for name, played, promised in cases:
        gain = played.incremental / promised
        rows.append(_mean(f"gain of {words}, {name}", gain, "of the gain without a cap"))
        rows.append(_mean(f"refused in {words}, {name}", played.refused, "of the offers asked for"))
    return rows


def _rows_of_bias(budget: float, ours: Sequence[Compared], naive: Sequence[Sequence[Compared]]) -> list[Row]:
    cases = [(f"fixed prices and budget equation, budget {budget:g} a user", ours)]
    for k, level in enumerate(NAIVE_LEVELS):
        name = f"naive, log with a cap of {NAIVE_BUDGET:g} a user, target at {level:g} times its prices"
        cases.append((name, [log[k] for log in naive]))
    rows = []
    for name, found in cases:
        gain = np.array([(one.estimate, one.truth) for one in found])
        cost = np.array([(one.estimated_cost, one.true_cost) for one in found])
        rows.append(_bias(f"bias of the gain; {name}; {len(found)} logs", gain, "of the true gain"))
        rows.append(_bias(f"bias of the cost; {name}; {len(found)} logs", cost, "of the true cost"))
    return rows


def _share(measure: str, hits: Sequence[bool], bar: float | None = None) -> Row:
    """A share of logs with its Clopper–Pearson interval."""
    n, k = len(hits), sum(hits)
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    row = Row.compare(measure, k / n, "of the logs", bar=bar, hardware="")
    return replace(row, ci_low=low, ci_high=high)


def _mean(measure: str, values: FloatArray, unit: str, bar: float | None = None) -> Row:
    """A mean with Student's interval; smaller is better."""
    row = Row.compare(measure, float(values.mean()), unit, bar=bar, higher_is_better=False, hardware="")
    half = _half_width(values)
    return replace(row, ci_low=row.value - half, ci_high=row.value + half)


def _bias(measure: str, pairs: FloatArray, unit: str) -> Row:
    """Mean of estimate less truth, [n, 2], as a share of the mean truth; interval over logs."""
    truth = pairs[:, 1].mean()
    ratio = pairs[:, 0].mean() / truth
    # Linearised: the truth differs between logs, too.
    half = _half_width((pairs[:, 0] - ratio * pairs[:, 1]) / truth)
    row = Row.compare(measure, float(ratio - 1.0), unit, hardware="")
    return replace(row, ci_low=row.value - half, ci_high=row.value + half)


def _half_width(values: FloatArray) -> float:
    n = len(values)
    return float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
