"""Whether weekly counts of each category fall where the simulations say they should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiments.realism.replay import ShoppingWeeks

BAND = (0.05, 0.95)


def category_counts(weeks: ShoppingWeeks) -> npt.NDArray[np.int64]:
    """Return the users who bought each category in each week, [T, C]."""
    count: npt.NDArray[np.int64] = weeks.bought.sum(axis=0)
    return count


def prediction_band(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the ends of the 90% band, each [T, C]: that which one more draw falls into with 90%.

    Quantiles at rank q·(S + 1) of S simulations (Hyndman & Fan 1996, type 6). The usual interpolation, at
    q·(S - 1) + 1, is too narrow for few draws: of 20 it covers 81% of a twenty-first.

    Args:
        counts: [S, T, C], one for each simulation; at least 19 of them.

    Raises:
        ValueError: fewer.
    """
    if len(counts) < 19:
        raise ValueError(f"a 90% band needs at least 19 simulations, got {len(counts)}")
    low, high = np.quantile(counts, BAND, axis=0, method="weibull")
    return low, high


def coverage(real: ShoppingWeeks, simulated: Sequence[ShoppingWeeks]) -> npt.NDArray[np.float64]:
    """Return the share of categories whose real count lies in the band, for each week, [T]."""
    low, high = prediction_band(np.stack([category_counts(each) for each in simulated]))
    count = category_counts(real)
    share: npt.NDArray[np.float64] = ((count >= low) & (count <= high)).mean(axis=1)
    return share
