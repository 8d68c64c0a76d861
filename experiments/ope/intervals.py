"""Confidence intervals that resample clusters (users or campaigns), never rows.

The episodes of one user are not independent, nor are the steps of one episode; users are, at a fixed λ
path. Numerator and denominator of an estimate are resampled together (see ``EpisodeTerms``). A value model
inside the terms is held fixed: an interval of the direct method does not know the model's own error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from experiments.ope.episode_terms import EpisodeTerms, ratios
from experiments.ope.influence import cluster_influence, cluster_sums, standard_error
from experiments.ope.logged_dataset import FloatArray

IntervalKind = Literal["percentile", "bca", "studentised"]

_BLOCK_BYTES = 32_000_000
"""Memory of one block of resampling weights."""
_ROUNDING = 1e-12
"""Standard errors and differences below this share of an estimate are rounding, and count as 0."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval; both ends are NaN where the estimate is undefined."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Distance of the ends."""
        return self.high - self.low


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Estimates of M estimators on the log and on B resamples of it, the same resamples for all.

    Attributes:
        estimate: [M] on the log.
        influence: [C, M] of each cluster, see ``cluster_influence``.
        estimates: [B, M] on the resamples.
        standard_errors: [B, M] on the resamples; None where no studentised interval was asked for.
    """

    estimate: FloatArray
    influence: FloatArray
    estimates: FloatArray
    standard_errors: FloatArray | None

    def interval(self, column: int, kind: IntervalKind, confidence: float = 0.95) -> Interval:
        """Return the interval of one estimator.

        - ``percentile``: quantiles of the resampled estimates. Efron & Tibshirani (1993), §13.3.
        - ``bca``: the same at levels corrected for bias and acceleration, second-order accurate. §14.3.
        - ``studentised``: quantiles of (θ* - θ) / se*, times se (bootstrap-t), second-order accurate. §12.5.

        NaN if any resample is undefined: to drop those would condition on the resamples that look good.
        """
        estimates = self.estimates[:, column]
        if kind == "percentile":
            return percentile_interval(estimates, confidence)
        if kind == "bca":
            return _bca_interval(estimates, self.estimate[column], self.influence[:, column], confidence)
        if kind == "studentised":
            if self.standard_errors is None:
                raise ValueError("the bootstrap was made without standard errors: pass studentise=True")
            return _studentised_interval(
                estimates - self.estimate[column],
                self.standard_errors[:, column],
                self.estimate[column],
                float(standard_error(self.influence[:, column])),
                confidence,
            )
        assert_never(kind)


def cluster_bootstrap(
    estimators: Sequence[EpisodeTerms],
    cluster: npt.NDArray[np.integer],
    *,
    rng: np.random.Generator,
    n_bootstrap: int = 1000,
    studentise: bool = False,
) -> Bootstrap:
    """Resample clusters, and estimate with every estimator on every resample.

    Every resample draws as many clusters as there are, with replacement. All estimators see the same
    resamples, so their differences can be bootstrapped too. Source: Efron & Tibshirani (1993), ch. 6;
    clusters: Cameron, Gelbach & Miller (2008), §III. Resampling counts times cluster sums is one matrix
    product, done in blocks, so that memory does not grow with the number of resamples.

    Args:
        estimators: per-episode terms over the same E episodes.
        cluster: [E] cluster of each episode.
        rng: draws the resamples.
        n_bootstrap: number of resamples B, at least 1.
        studentise: whether to find the standard error on each resample too; takes four times as long.

    Raises:
        ValueError: there are fewer than 2 clusters, or no resamples.
    """
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap must be at least 1, not {n_bootstrap}")
    pairs = [
        (cluster_sums(terms.numerator, cluster), cluster_sums(terms.denominator, cluster))
        for terms in estimators
    ]
    n_clusters = pairs[0][0].shape[0]
    sums = np.hstack([part for pair in pairs for part in pair])
    edges = np.cumsum([part.shape[1] for pair in pairs for part in pair])[:-1]
    estimates = np.empty((n_bootstrap, len(pairs)))
    errors = np.empty_like(estimates) if studentise else None
    done = 0
    for counts in resampling_counts(rng, n_clusters, n_bootstrap):
        rows = slice(done, done + counts.shape[0])
        totals = np.split(counts @ sums, edges, axis=1)
        for column in range(len(pairs)):
            top, bottom = totals[2 * column : 2 * column + 2]
            estimates[rows, column] = ratios(top, bottom).sum(axis=1)
            if errors is not None:
                errors[rows, column] = _resampled_errors(counts, *pairs[column], top, bottom)
        done = rows.stop
    return Bootstrap(
        estimate=np.array([terms.estimate() for terms in estimators]),
        influence=np.stack([cluster_influence(terms, cluster) for terms in estimators], axis=1),
        estimates=estimates,
        standard_errors=errors,
    )


def percentile_interval(estimates: FloatArray, confidence: float = 0.95) -> Interval:
    """Percentile bootstrap interval of ``estimates`` [n_bootstrap]; NaN if any resample is undefined.

    Source: Efron & Tibshirani (1993), §13.3.
    """
    tail = _tail(confidence)
    return _quantiles(estimates, tail, 1 - tail)


def delta_interval(
    terms: EpisodeTerms, cluster: npt.NDArray[np.integer], confidence: float = 0.95
) -> Interval:
    """Normal interval θ ± z·se, with se from the delta method over clusters (see ``cluster_influence``).

    Assumes many clusters with light tails. Source: Owen (2013), Monte Carlo theory, methods and examples,
    §9.2 (self-normalised weights).
    """
    error = float(standard_error(cluster_influence(terms, cluster)))
    half = -NormalDist().inv_cdf(_tail(confidence)) * error
    theta = terms.estimate()
    return Interval(theta - half, theta + half)


def empirical_bernstein_interval(
    terms: EpisodeTerms,
    cluster: npt.NDArray[np.integer],
    *,
    bounds: tuple[float, float],
    confidence: float = 0.95,
) -> Interval:
    """Interval that holds for every number of clusters, if each lies within known bounds.

    For C independent values X_c in [a, b] with sample variance s² the mean lies, with the given confidence,
    within √(2 s² ln(4/δ) / C) + 7 (b - a) ln(4/δ) / (3 (C - 1)) of the sample mean, δ = 1 - confidence.
    Maurer & Pontil (2009), Theorem 4, once for each side. Here X_c = C/E Σ_{e ∈ c} numerator_e.

    The bounds must hold for what *may* come, not only for what came: for IPS the largest possible weight
    times the largest possible return. With weights that have no useful bound the interval is too wide to use,
    and that is its message; to take the bounds from the data would void the guarantee.

    Args:
        terms: of an estimator that is a plain mean over episodes (DM, IPS, PDIS, DR).
        cluster: [E] cluster of each episode.
        bounds: least and largest X_c that can be.
        confidence: of the interval.

    Raises:
        ValueError: the terms are a ratio, a value lies outside the bounds, or there are not 2 clusters.
    """
    if terms.n_columns != 1 or not (terms.denominator == 1).all():
        raise ValueError("the empirical Bernstein bound is for plain means over episodes, not for ratios")
    low, high = bounds
    values = cluster_sums(terms.numerator, cluster)[:, 0]
    n_clusters = values.size
    values = values * (n_clusters / terms.n_episodes)
    outside = np.flatnonzero(~((low <= values) & (values <= high)))
    if outside.size:
        raise ValueError(
            f"bounds: cluster {outside[0]} has {values[outside[0]]:g}, outside [{low:g}, {high:g}] "
            f"({outside.size} such)"
        )
    logarithm = np.log(2 / _tail(confidence))
    half = np.sqrt(2 * values.var(ddof=1) * logarithm / n_clusters)
    half += 7 * (high - low) * logarithm / (3 * (n_clusters - 1))
    return Interval(float(values.mean() - half), float(values.mean() + half))


def resampling_counts(rng: np.random.Generator, n_clusters: int, n_bootstrap: int) -> Iterator[FloatArray]:
    """Yield blocks [b, C] of how often each of C clusters is drawn in a resample of C; B rows in all."""
    block = max(1, _BLOCK_BYTES // (8 * n_clusters))
    for start in range(0, n_bootstrap, block):
        counts = np.empty((min(block, n_bootstrap - start), n_clusters))
        for row in counts:
            row[:] = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
        yield counts


def _resampled_errors(
    counts: FloatArray,
    numerator: FloatArray,
    denominator: FloatArray,
    top: FloatArray,
    bottom: FloatArray,
) -> FloatArray:
    """Return the delta-method standard errors [b] on resamples, without forming any of them.

    Args:
        counts: [b, C] how often each cluster is in a resample.
        numerator: [C, J] cluster sums.
        denominator: [C, J] cluster sums.
        top: [b, J] sums of the numerator over each resample.
        bottom: [b, J] sums of the denominator.
    """
    n_clusters = counts.shape[1]
    slope = ratios(np.ones_like(bottom), bottom)
    influence = slope @ numerator.T
    influence -= (slope * ratios(top, bottom)) @ denominator.T
    influence *= influence
    influence *= counts
    return np.asarray(np.sqrt(influence.sum(axis=1) * (n_clusters / (n_clusters - 1))))


def _bca_interval(
    estimates: FloatArray, estimate: float, influence: FloatArray, confidence: float
) -> Interval:
    """Bias-corrected and accelerated: Efron & Tibshirani (1993), §14.3; acceleration: Efron (1987)."""
    tail = _tail(confidence)
    spread = float((influence**2).sum()) ** 1.5
    acceleration = float((influence**3).sum()) / (6 * spread) if spread > 0 else 0.0
    if not (np.isfinite(estimates).all() and np.isfinite(estimate)):
        return Interval(np.nan, np.nan)
    # Ties count half: a resample that equals the estimate lies on neither side of it.
    below = float((estimates < estimate).mean() + 0.5 * (estimates == estimate).mean())
    edge = 0.5 / estimates.size
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, edge), 1 - edge))

    def level(z: float) -> float:
        shifted = bias + z
        return normal.cdf(bias + shifted / (1 - acceleration * shifted))

    return _quantiles(estimates, level(normal.inv_cdf(tail)), level(normal.inv_cdf(1 - tail)))


def _studentised_interval(
    differences: FloatArray, errors: FloatArray, estimate: float, error: float, confidence: float
) -> Interval:
    """Bootstrap-t interval: Efron & Tibshirani (1993), §12.5."""
    tail = _tail(confidence)
    negligible = _ROUNDING * abs(estimate)
    sure = (errors <= negligible) & (np.abs(differences) <= negligible)
    with np.errstate(divide="ignore"):
        scores = np.where(sure, 0.0, differences / np.where(sure, 1.0, errors))
    low, high = np.quantile(scores, [tail, 1 - tail])
    return Interval(float(estimate - high * error), float(estimate - low * error))


def _quantiles(estimates: FloatArray, low: float, high: float) -> Interval:
    ends = np.quantile(estimates, [low, high])
    return Interval(float(ends[0]), float(ends[1]))


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), not {confidence}")
    return (1 - confidence) / 2
