"""How the outcomes of those who were sent something differ from those who were not: two groups made alike.

Each estimate is a sum of per-row terms, so that intervals can resample users. All are right about the effect
of sending only if nothing unknown decided both who was sent it and the outcome.
"""

from __future__ import annotations

import numpy as np

from experiments.ope.episode_terms import EpisodeTerms, plain_mean
from experiments.ope.log_checks import FloatArray, IntArray


def campaign_shares(sent: FloatArray, campaign: IntArray) -> FloatArray:
    """Return [N] the share of each row's campaign that was sent: the propensity of a lottery."""
    _, index = np.unique(campaign, return_inverse=True)
    return np.asarray((np.bincount(index, weights=sent) / np.bincount(index))[index])


def weighted_difference(outcome: FloatArray, sent: FloatArray, propensity: FloatArray) -> EpisodeTerms:
    """Difference of two weighted means: Σ w₁y / Σ w₁ - Σ w₀y / Σ w₀ with w₁ = a/p and w₀ = (1 - a)/(1 - p).

    Hájek's estimator of the effect of sending to all against none (Lunceford & Davidian 2004, eq. 7). It is
    that only if ``propensity`` is right and no unknown reason for sending moves the outcome. With each
    campaign's own share for p it is the naive difference, campaigns weighing alike in both groups.

    Args:
        outcome: [N].
        sent: [N] 1 or 0.
        propensity: [N] of having been sent, in (0, 1).
    """
    weight = np.stack([sent / propensity, (1 - sent) / (1 - propensity)], axis=1)
    return EpisodeTerms(numerator=weight * outcome[:, None] * np.array([1.0, -1.0]), denominator=weight)


def robust_difference(
    outcome: FloatArray,
    sent: FloatArray,
    propensity: FloatArray,
    model_sent: FloatArray,
    model_not: FloatArray,
) -> EpisodeTerms:
    """Doubly robust difference: mean of m₁ - m₀ + a(y - m₁)/p - (1 - a)(y - m₀)/(1 - p).

    Right if the propensities or the outcome model are, and no unknown reason for sending moves the outcome
    (Robins, Rotnitzky & Zhao 1994; cross-fitted: Chernozhukov et al. 2018, §5).

    Args:
        outcome: [N].
        sent: [N] 1 or 0.
        propensity: [N] of having been sent, in (0, 1).
        model_sent: [N] outcome expected if sent, m₁.
        model_not: [N] outcome expected if not, m₀.
    """
    correction_sent = sent * (outcome - model_sent) / propensity
    correction_not = (1 - sent) * (outcome - model_not) / (1 - propensity)
    values = model_sent - model_not + correction_sent - correction_not
    return plain_mean(values)
