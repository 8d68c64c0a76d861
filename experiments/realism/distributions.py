"""Distributions of what users do, real and simulated, compared by the Kolmogorov-Smirnov statistic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from experiments.realism.replay import ShoppingWeeks

DoubleArray = npt.NDArray[np.float64]
Samples = Callable[[ShoppingWeeks], DoubleArray]


def ks_complement(one: DoubleArray, other: DoubleArray) -> float:
    """Return 1 - the two-sample Kolmogorov-Smirnov statistic, the largest gap of the two distributions.

    1 where they are the same, 0 where they do not overlap (the KSComplement of Patki, Wedge & Veeramachaneni
    2016, "The Synthetic Data Vault").

    Raises:
        ValueError: one of them is empty.
    """
    if not len(one) or not len(other):
        raise ValueError("a distribution of nothing cannot be compared")
    values = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (one, other)]
    return 1.0 - float(np.abs(shares[0] - shares[1]).max())


def visits_per_user(weeks: ShoppingWeeks) -> DoubleArray:
    """Return the weeks with a visit of each user, [n]."""
    return np.asarray(weeks.visited.sum(axis=1), dtype=np.float64)


def categories_per_visit(weeks: ShoppingWeeks) -> DoubleArray:
    """Return the modelled categories bought at each visit, [v]."""
    return np.asarray(weeks.baskets.sum(axis=1), dtype=np.float64)


def spend_per_visit(weeks: ShoppingWeeks) -> DoubleArray:
    """Return the spend of each week with a visit, [v], currency."""
    return weeks.spend[weeks.visited]


def weeks_between_visits(weeks: ShoppingWeeks) -> DoubleArray:
    """Return the time from each visit to the one before, in weeks; the first from that before the start."""
    since, gaps = weeks.since_visit.copy(), []
    for visited in weeks.visited.T:
        gaps.append(since[visited])
        since = np.where(visited, 1.0, since + 1.0)
    return np.concatenate(gaps)


def category_shares(weeks: ShoppingWeeks) -> DoubleArray:
    """Return each category's share of all purchases, [C]."""
    count: DoubleArray = np.asarray(weeks.bought.sum(axis=(0, 1)), dtype=np.float64)
    return count / max(float(count.sum()), 1.0)


DISTRIBUTIONS: dict[str, Samples] = {
    "visits per household": visits_per_user,
    "categories per visit": categories_per_visit,
    "spend per visit": spend_per_visit,
    "weeks between visits": weeks_between_visits,
    "category shares": category_shares,
}


def mean_complement(real: ShoppingWeeks, simulated: Sequence[ShoppingWeeks], samples: Samples) -> float:
    """Return the complement of one distribution, mean over the simulations."""
    truth = samples(real)
    return float(np.mean([ks_complement(truth, samples(each)) for each in simulated]))


def total_errors(real: ShoppingWeeks, simulated: Sequence[ShoppingWeeks]) -> dict[str, float]:
    """Return the relative error of the totals, mean over the simulations: visits, purchases, spend."""

    def totals(weeks: ShoppingWeeks) -> DoubleArray:
        return np.array([weeks.visited.sum(), weeks.bought.sum(), weeks.spend.sum()], dtype=np.float64)

    mean = np.mean([totals(each) for each in simulated], axis=0)
    return dict(zip(("visits", "purchases", "spend"), (mean / totals(real) - 1.0).tolist(), strict=True))
