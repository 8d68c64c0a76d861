"""Estimators of a target policy's value from single logged decisions (a contextual bandit).

Notation: row i holds a reward r_i that followed an offer a_i in context x_i; w_i = π(a_i|x_i) / β(a_i|x_i) is
the ratio of the target to the behaviour propensity; q_i = q(x_i, a_i) is a value model's reward and
v_i = Σ_k π(k|x_i) q(x_i, k) its mean over the target's offers. All arrays are [N] float64.

Common assumptions: propensities are right, and positive wherever the target's are; rows of different users
are independent; ``q`` and ``v`` were fitted on other users (cross-fitting). The terms returned have one row
per decision. Arrays of different shapes raise ``ValueError``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from experiments.ope.episode_terms import EpisodeTerms, plain_mean
from experiments.ope.logged_dataset import FloatArray, IntArray


def direct_method(*, v: FloatArray) -> EpisodeTerms:
    """Direct method (DM): N⁻¹ Σ_i v_i.

    Assumes the value model is right; its error is not corrected. Dudík, Langford & Li (2011), §2.
    """
    return plain_mean(v)


def inverse_propensity(*, reward: FloatArray, ratio: FloatArray) -> EpisodeTerms:
    """Inverse propensity score (IPS): N⁻¹ Σ_i w_i r_i.

    Unbiased; large ratios make it vary. Horvitz & Thompson (1952); Dudík, Langford & Li (2011), §2. With
    the ratios of `marginal_ratio` it is MIPS.
    """
    require_equal_shapes(reward, ratio)
    return plain_mean(ratio * reward)


def self_normalised(*, reward: FloatArray, ratio: FloatArray) -> EpisodeTerms:
    """Self-normalised IPS (SNIPS): Σ_i w_i r_i / Σ_i w_i.

    Consistent, not unbiased; stays within the range of the rewards and is exact for a constant one.
    Swaminathan & Joachims (2015).
    """
    require_equal_shapes(reward, ratio)
    return EpisodeTerms(numerator=(ratio * reward)[:, None], denominator=ratio[:, None])


def doubly_robust(*, reward: FloatArray, ratio: FloatArray, q: FloatArray, v: FloatArray) -> EpisodeTerms:
    """Doubly robust (DR): N⁻¹ Σ_i [v_i + w_i (r_i - q_i)].

    Unbiased if either the propensities or the model are right. Dudík, Langford & Li (2011), §2.
    """
    require_equal_shapes(reward, ratio, q, v)
    return plain_mean(v + ratio * (reward - q))


def self_normalised_doubly_robust(
    *, reward: FloatArray, ratio: FloatArray, q: FloatArray, v: FloatArray
) -> EpisodeTerms:
    """Self-normalised doubly robust (SNDR): N⁻¹ Σ_i v_i + Σ_i w_i (r_i - q_i) / Σ_i w_i.

    Consistent, not unbiased; the correction stays within the range of the model's errors. Robins et al.
    (2007); for policies: Thomas & Brunskill (2016), WDR of one step.
    """
    require_equal_shapes(reward, ratio, q, v)
    numerator = np.stack([v, ratio * (reward - q)], axis=1)
    return EpisodeTerms(numerator, denominator=np.stack([np.ones_like(ratio), ratio], axis=1))


def switch_doubly_robust(
    *, reward: FloatArray, ratio: FloatArray, q: FloatArray, v: FloatArray, threshold: float
) -> EpisodeTerms:
    """SWITCH-DR: N⁻¹ Σ_i [v_i + 1[w_i ≤ τ] w_i (r_i - q_i)].

    Leaves the correction out where it would vary most, and trusts the model there: biased by the model's
    error on ratios above the threshold τ ≥ 0. τ = ∞ is DR, τ = 0 is DM (but for offers that the target never
    sends). Wang, Agarwal & Dudík (2017).
    """
    require_equal_shapes(reward, ratio, q, v)
    _require_at_least_zero("threshold", threshold)
    return plain_mean(v + np.where(ratio <= threshold, ratio, 0.0) * (reward - q))


def optimistic_shrinkage(
    *, reward: FloatArray, ratio: FloatArray, q: FloatArray, v: FloatArray, shrinkage: float
) -> EpisodeTerms:
    """Doubly robust with optimistic shrinkage (DRos): N⁻¹ Σ_i [v_i + ŵ_i (r_i - q_i)].

    ŵ = λ w / (w² + λ) minimises a bound of the mean squared error; ŵ = w / 2 where w = √λ. The shrinkage
    λ = ∞ is DR, λ = 0 is DM. Su, Dimakopoulou, Krishnamurthy & Dudík (2020).
    """
    require_equal_shapes(reward, ratio, q, v)
    _require_at_least_zero("shrinkage", shrinkage)
    kept = 1.0 / (1.0 + ratio**2 / shrinkage) if shrinkage > 0 else np.zeros_like(ratio)
    return plain_mean(v + kept * ratio * (reward - q))


def marginal_ratio(
    *,
    target_probabilities: FloatArray,
    behaviour_probabilities: FloatArray,
    action: IntArray,
    group: npt.NDArray[np.integer],
) -> FloatArray:
    """Return the ratios w(x, e) [N] of the probabilities that *some* offer of the sent one's group is sent.

    w_i = Σ_{k ∈ g(a_i)} π(k|x_i) / Σ_{k ∈ g(a_i)} β(k|x_i), with g the group (embedding, cluster) of an
    offer. Used in place of w by any estimator here; with IPS that is MIPS. Varies less than w, and asks only
    that β sends some offer of every group that π sends; the price is the assumption that offers of one group
    have the same effect. Saito & Joachims (2022).

    Args:
        target_probabilities: [N, K].
        behaviour_probabilities: [N, K].
        action: [N] the offers sent, in 0 … K-1.
        group: [K] group of each offer, any integers.

    Raises:
        ValueError: shapes do not fit, or the behaviour policy never sends what it sent.
    """
    n_offers = target_probabilities.shape[1]
    if behaviour_probabilities.shape != target_probabilities.shape or group.shape != (n_offers,):
        raise ValueError(
            f"shapes differ: target {target_probabilities.shape}, behaviour {behaviour_probabilities.shape}, "
            f"group {group.shape}"
        )
    names, index = np.unique(group, return_inverse=True)
    member = (index[:, None] == np.arange(names.size)).astype(np.float64)
    rows = np.arange(action.size)
    target = (target_probabilities @ member)[rows, index[action]]
    behaviour = (behaviour_probabilities @ member)[rows, index[action]]
    never = np.flatnonzero(behaviour <= 0)
    if never.size:
        raise ValueError(
            f"behaviour_probabilities: row {never[0]} gives the group of the offer sent, {action[never[0]]}, "
            "no probability"
        )
    return np.asarray(target / behaviour)


def require_equal_shapes(*arrays: FloatArray) -> None:
    """Raise ``ValueError`` unless all arrays are [N]."""
    shapes = [array.shape for array in arrays]
    if len(shapes[0]) != 1 or len(set(shapes)) > 1:
        raise ValueError(f"shapes differ, or are not [N]: {shapes}")


def _require_at_least_zero(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, not {value}")
