"""SLOPE: choose the setting of an estimator that trades bias for variance, from the data.

Source: Su, Srinath & Krishnamurthy (2020), "Adaptive estimator selection for off-policy evaluation",
Algorithm 1: with estimates ordered from the least biased to the least variable, take the last one whose
confidence interval, doubled, still meets those of all before it. Its error is within a constant factor of
the best setting's, without an estimate of any bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.influence import cluster_influence, standard_error
from experiments.ope.logged_dataset import FloatArray

_NORMAL_QUANTILE = 1.959963984540054
"""Standard errors to either side of an estimate: a 95% interval."""

SettingT = TypeVar("SettingT")


def choose_by_slope(
    estimator: Callable[[SettingT], EpisodeTerms],
    settings: Sequence[SettingT],
    cluster: npt.NDArray[np.integer],
) -> tuple[SettingT, EpisodeTerms]:
    """Return the chosen setting and its terms.

    Intervals taken later from the terms hold the setting fixed.

    Args:
        estimator: gives the terms of a setting.
        settings: from the least bias to the least variance.
        cluster: [E] users or campaigns, over which standard errors are taken.

    Raises:
        ValueError: there are no settings, or fewer than 2 clusters.
    """
    if not settings:
        raise ValueError("there are no settings to choose from")
    terms = [estimator(setting) for setting in settings]
    errors = [float(standard_error(cluster_influence(found, cluster))) for found in terms]
    chosen = slope([found.estimate() for found in terms], [_NORMAL_QUANTILE * error for error in errors])
    return settings[chosen], terms[chosen]


def slope(estimates: Sequence[float], half_widths: Sequence[float]) -> int:
    """Return the last index up to which all intervals estimate ± 2 half width have a point in common."""
    low, high = -np.inf, np.inf
    for index, (estimate, half) in enumerate(zip(estimates, half_widths, strict=True)):
        low, high = max(low, estimate - 2 * half), min(high, estimate + 2 * half)
        if low > high:
            return index - 1
    return len(estimates) - 1


def ratio_thresholds(ratio: FloatArray, n_settings: int = 10) -> list[float]:
    """Return thresholds of a ratio, from ∞ (no bias) to 0 (least variance), for `choose_by_slope`.

    Between lie quantiles of the positive ratios, in equal steps, so that each setting changes equally many
    rows. For shrinkage λ, which halves a ratio of √λ, take their squares.
    """
    positive = ratio[ratio > 0]
    inner: list[float] = []
    if positive.size:
        inner = np.quantile(positive, np.linspace(1, 0, n_settings, endpoint=False)[1:]).tolist()
    return [np.inf, *dict.fromkeys(inner), 0.0]
