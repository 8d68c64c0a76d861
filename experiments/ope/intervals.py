"""Confidence intervals that resample clusters (users or campaigns), never rows.

The episodes of one user are not independent, nor are the steps of one episode; users are, at a fixed λ
path. Numerator and denominator of an estimate are resampled together (see ``EpisodeTerms``). A value model
inside the terms is held fixed: an interval of the direct method does not know the model's own error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from experiments.ope.estimators import EpisodeTerms, ratio_of_sums
from experiments.ope.logged_dataset import FloatArray

_BLOCK_BYTES = 32_000_000
"""Memory of one block of resampling weights."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval; both ends are NaN where the estimate is undefined."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Distance of the ends."""
        return self.high - self.low


def bootstrap_estimates(
    estimators: Sequence[EpisodeTerms],
    cluster: npt.NDArray[np.integer],
    *,
    rng: np.random.Generator,
    n_bootstrap: int = 1000,
) -> FloatArray:
    """Return [n_bootstrap, len(estimators)] estimates on resampled clusters.

    Every resample draws as many clusters as there are, with replacement. All estimators see the same
    resamples, so their differences can be bootstrapped too. Source: Efron & Tibshirani (1993), ch. 6;
    clusters: Cameron, Gelbach & Miller (2008), §III. Resampling counts times cluster sums is one matrix
    product, done in blocks.

    Args:
        estimators: per-episode terms over the same E episodes.
        cluster: [E] cluster of each episode.
        rng: draws the resamples.
        n_bootstrap: number of resamples, at least 1.

    Raises:
        ValueError: there are fewer than 2 clusters, or no resamples.
    """
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap must be at least 1, not {n_bootstrap}")
    numerators = [cluster_sums(terms.numerator, cluster) for terms in estimators]
    denominators = [cluster_sums(terms.denominator, cluster) for terms in estimators]
    sums = np.hstack([*numerators, *denominators])
    n_clusters = sums.shape[0]
    resampled = np.empty((n_bootstrap, sums.shape[1]))
    block = max(1, _BLOCK_BYTES // (8 * n_clusters))
    for start in range(0, n_bootstrap, block):
        size = min(block, n_bootstrap - start)
        counts = np.empty((size, n_clusters))
        for row in counts:
            row[:] = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
        resampled[start : start + size] = counts @ sums
    top, bottom = np.hsplit(resampled, 2)
    edges = np.cumsum([terms.numerator.shape[1] for terms in estimators])[:-1]
    pairs = zip(np.split(top, edges, axis=1), np.split(bottom, edges, axis=1), strict=True)
    return np.stack([ratio_of_sums(*pair) for pair in pairs], axis=1)


def percentile_interval(estimates: FloatArray, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval of ``estimates`` [n_bootstrap].

    NaN if any resample is undefined: to drop those would condition on the resamples that look good.
    Source: Efron & Tibshirani (1993), §13.3.
    """
    tail = _tail(confidence)
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def delta_interval(
    terms: EpisodeTerms, cluster: npt.NDArray[np.integer], confidence: float = 0.95
) -> Interval:
    """Studentised normal interval θ ± z·se, with se from the delta method over clusters.

    With C clusters and cluster sums N_cj, D_cj, the influence of cluster c on θ = Σ_j N_j / D_j is
    ψ_c = C Σ_j (N_cj - θ_j D_cj) / D_j, and se² = Σ_c ψ_c² / (C (C - 1)). Source: Owen (2013), Monte Carlo
    theory, methods and examples, §9.2 (self-normalised weights). Assumes many clusters with light tails.
    """
    numerator = cluster_sums(terms.numerator, cluster)
    denominator = cluster_sums(terms.denominator, cluster)
    n_clusters = numerator.shape[0]
    theta = terms.estimate()
    if np.isnan(theta):
        return Interval(np.nan, np.nan)
    total = denominator.sum(axis=0)
    residual = numerator - denominator * (numerator.sum(axis=0) / total)
    influence = n_clusters * (residual / total).sum(axis=1)
    half = -NormalDist().inv_cdf(_tail(confidence)) * np.sqrt((influence**2).mean() / (n_clusters - 1))
    return Interval(float(theta - half), float(theta + half))


def cluster_sums(values: FloatArray, cluster: npt.NDArray[np.integer]) -> FloatArray:
    """Return the [C, J] sums of ``values`` [E, J] over the C clusters.

    Raises:
        ValueError: there are fewer than 2 clusters, so nothing can be said about uncertainty.
    """
    names, index = np.unique(cluster, return_inverse=True)
    if names.size < 2:
        raise ValueError("an interval needs at least 2 clusters")
    columns = [np.bincount(index, weights=column, minlength=names.size) for column in values.T]
    return np.stack(columns, axis=1)


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
    return (1 - confidence) / 2
