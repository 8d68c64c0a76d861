"""How much each cluster moves an estimate: the delta method over users or campaigns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.logged_dataset import FloatArray


def cluster_influence(terms: EpisodeTerms, cluster: npt.NDArray[np.integer]) -> FloatArray:
    """Return the influence ψ [C] of each cluster on the estimate; their sum is 0.

    With cluster sums N_cj and D_cj, totals N_j and D_j, and θ_j = N_j / D_j,
    ψ_c = C Σ_j (N_cj - θ_j D_cj) / D_j. The squared standard error of the estimate Σ_j θ_j is
    Σ_c ψ_c² / (C (C - 1)). Source: Efron & Tibshirani (1993), ch. 21 (empirical influence); ratios:
    Owen (2013), §9.2. NaN where the estimate is.

    Args:
        terms: of the estimator, over E episodes.
        cluster: [E] cluster of each episode.

    Raises:
        ValueError: there are fewer than 2 clusters.
    """
    return np.asarray(column_influence(terms, cluster).sum(axis=1))


def column_influence(terms: EpisodeTerms, cluster: npt.NDArray[np.integer]) -> FloatArray:
    """Return the influence [C, J] of each cluster on each ratio θ_j of ``terms``."""
    numerator = cluster_sums(terms.numerator, cluster)
    denominator = cluster_sums(terms.denominator, cluster)
    total = denominator.sum(axis=0)
    theta = np.divide(numerator.sum(axis=0), total, out=np.full(total.shape, np.nan), where=total != 0)
    residual = numerator - denominator * theta
    return np.asarray(residual.shape[0] * residual / np.where(total != 0, total, np.nan))


def standard_error(influence: FloatArray) -> FloatArray:
    """Return the standard errors [...] that belong to influences [C, ...] of C clusters."""
    n_clusters = influence.shape[0]
    return np.asarray(np.sqrt((influence**2).sum(axis=0) / (n_clusters * (n_clusters - 1))))


def cluster_sums(values: FloatArray, cluster: npt.NDArray[np.integer]) -> FloatArray:
    """Return the [C, J] sums of ``values`` [E, J] over the C clusters, in ascending order of their names.

    Raises:
        ValueError: there are fewer than 2 clusters, so nothing can be said about uncertainty.
    """
    if cluster.shape != values.shape[:1]:
        raise ValueError(f"cluster has shape {cluster.shape}, expected {values.shape[:1]}")
    names, index = np.unique(cluster, return_inverse=True)
    if names.size < 2:
        raise ValueError("an interval needs at least 2 clusters")
    if names.size == cluster.size:
        summed = np.empty_like(values)
        summed[index] = values
        return summed
    columns = [np.bincount(index, weights=column, minlength=names.size) for column in values.T]
    return np.stack(columns, axis=1)
