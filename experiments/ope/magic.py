"""MAGIC: a blend of the log and the model, with the weights that the data say err least.

Source: Thomas & Brunskill (2016), "Data-efficient off-policy policy evaluation for reinforcement learning",
Algorithm 1, with two changes that say the same of large samples and need no resampling: variances of ratios
are taken by the delta method over clusters (the paper holds the denominators fixed, and so finds variance in
a constant return), and the interval within which WDR may err is normal.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from experiments.ope.episode_terms import EpisodeTerms, ratios
from experiments.ope.influence import column_influence
from experiments.ope.logged_dataset import FloatArray, IntArray
from experiments.ope.sequential import weighted_doubly_robust

BIAS_CONFIDENCE = 0.9
"""Confidence of the interval around WDR outside of which an estimate counts as biased (the paper's)."""
_RIDGE = 1e-12
"""Added to the error matrix, relative to its mean diagonal, so that equal estimates share their weight."""


def magic(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    q: FloatArray,
    v: FloatArray,
    episode: IntArray,
    position: IntArray,
    cluster: npt.NDArray[np.integer],
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Model and guided importance sampling combined (MAGIC): Σ_j x_j g_j, from DM (j = 0) to WDR (j = T).

    g_j follows the log for j steps, weighted as in WDR, and the model from there on: the sum of the first
    j + 1 ratios of WDR. Consistent where WDR is; near DM where weights are wild, near WDR where the model is
    wrong. Arguments as in ``sequential``, and ``cluster`` [E], the users or campaigns over which variances
    are taken. The terms are WDR's, times the weight that the blend x gives to each ratio.

    An interval from the terms holds the blend, and where that leans on the model it knows no more of the
    model's error than one of DM: read the interval of WDR beside it.
    """
    terms = weighted_doubly_robust(
        outcome=outcome,
        ratio=ratio,
        q=q,
        v=v,
        episode=episode,
        position=position,
        discount_factor=discount_factor,
    )
    influence = np.cumsum(column_influence(terms, cluster), axis=1)
    n_clusters = influence.shape[0]
    covariance = influence.T @ influence / (n_clusters * (n_clusters - 1))
    partial = np.cumsum(ratios(terms.numerator.sum(axis=0), terms.denominator.sum(axis=0)))
    blend = blend_weights(partial, covariance)
    share = np.cumsum(blend[::-1])[::-1]  # of each ratio, in all the sums that hold it
    return EpisodeTerms(numerator=share * terms.numerator, denominator=terms.denominator)


def blend_weights(partial: FloatArray, covariance: FloatArray) -> FloatArray:
    """Return the blend x [J] of estimates g, ``partial`` [J], with covariance Ω [J, J]; NaN where one is NaN.

    x ≥ 0, Σ x = 1 minimises xᵀ(Ω + b bᵀ)x, with b_j the distance of g_j from the interval around the last,
    hardly biased g. The least xᵀAx on the simplex is y / Σy, where y ≥ 0 solves min yᵀAy - 2 Σy: both have
    the same optimality conditions. With A = LLᵀ that is non-negative least squares, min |Lᵀy - L⁻¹1|².
    """
    if np.isnan(partial).any() or np.isnan(covariance).any():
        return np.full(partial.size, np.nan)
    half = NormalDist().inv_cdf((1 + BIAS_CONFIDENCE) / 2) * np.sqrt(covariance[-1, -1])
    bias = partial - np.clip(partial, partial[-1] - half, partial[-1] + half)
    error = covariance + np.outer(bias, bias)
    scale = np.trace(error) / partial.size
    if scale == 0:  # no estimate errs
        return np.full(partial.size, 1 / partial.size)
    lower = np.linalg.cholesky(error / scale + _RIDGE * np.eye(partial.size))
    y, _ = nnls(lower.T, np.linalg.solve(lower, np.ones(partial.size)))
    return np.asarray(y / y.sum())
