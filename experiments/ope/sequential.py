"""Estimators of a target policy's value from logged episodes of many steps.

Notation: episode e has steps t = 0 … T_e - 1; ρ_t = π(a_t|x_t) / β(a_t|x_t) is the ratio of the target to
the behaviour propensity; w_t = ρ_0 ⋯ ρ_t, and w_{-1} = 1; γ is the discount factor; r_t the outcome
(margin, cost, …). Every estimator reduces to its form in ``one_step`` when all episodes have length one.

Common assumptions: propensities are right and positive wherever the target's are; users do not influence
one another. A shared budget breaks the second, so the estimates hold at a *fixed λ path*: the dual price of
each week is given, and the budget is checked afterwards against the estimated cost.

Variable length: past its last step an episode rests in an absorbing state where the outcome is 0 and both
policies agree, so w stays at its last value. That is exact for terminated episodes. A truncated episode is
treated alike: the estimand is the value *within the logged weeks*.

Common arguments: ``outcome`` [N] and ``ratio`` [N] by step; ``episode`` [N] in 0 … E-1, ascending, and
``position`` [N] = t; ``q`` [N] = q(x_t, a_t) and ``v`` [N] = Σ_k π(k|x_t) q(x_t, k) by step. Arrays of
different shapes raise ``ValueError``.
"""

from __future__ import annotations

import numpy as np

from experiments.ope.episode_terms import EpisodeTerms, plain_mean
from experiments.ope.logged_dataset import FloatArray, IntArray, LoggedDataError

LARGEST_WEIGHT = 1e100
"""Weights have mean 1 under the propensities that acted, so hardly one in 1e100 is larger (Markov)."""


def direct_method(*, v: FloatArray, episode: IntArray, position: IntArray) -> EpisodeTerms:
    """Direct method (DM): E⁻¹ Σ_e v(x_{e,0}).

    Assumes the value model is right; its error is not corrected. With fitted Q evaluation as the model:
    Le, Voloshin & Yue (2019), Algorithm 3.
    """
    return plain_mean(by_episode(v, episode, position, 0.0)[:, 0])


def inverse_propensity(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Trajectory importance sampling (IPS, also TIS): E⁻¹ Σ_e w_{T_e - 1} Σ_t γ^t r_t.

    Unbiased; its variance grows exponentially with length. Precup, Sutton & Singh (2000).
    """
    weight = cumulative_ratio(ratio, episode, position)[:, -1]
    return plain_mean(weight * discounted(outcome, episode, position, discount_factor).sum(axis=1))


def self_normalised(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Self-normalised trajectory importance sampling (SNIPS, also WIS): Σ_e w_{T_e-1} G_e / Σ_e w_{T_e-1}.

    G_e = Σ_t γ^t r_t. Consistent, not unbiased; stays within the range of the observed returns, and is
    exact for a constant return. Precup, Sutton & Singh (2000), weighted form; Swaminathan & Joachims (2015).
    """
    weight = cumulative_ratio(ratio, episode, position)[:, -1:]
    total = discounted(outcome, episode, position, discount_factor).sum(axis=1, keepdims=True)
    return EpisodeTerms(numerator=weight * total, denominator=weight)


def per_decision(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Per-decision importance sampling (PDIS): E⁻¹ Σ_e Σ_t γ^t w_t r_t.

    Unbiased; an outcome is weighted by the decisions up to it only. Precup, Sutton & Singh (2000).
    """
    weight = cumulative_ratio(ratio, episode, position)
    return plain_mean((weight * discounted(outcome, episode, position, discount_factor)).sum(axis=1))


def weighted_per_decision(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Weighted per-decision importance sampling (PDWIS): Σ_t γ^t (Σ_e w_{e,t} r_{e,t} / Σ_e w_{e,t}).

    Consistent, not unbiased. An ended episode stays in the denominator with its last weight: to leave it
    out would estimate the outcome of the survivors. Thomas (2015), PhD thesis, ch. 3 (CWPDIS).
    """
    weight = cumulative_ratio(ratio, episode, position)
    gain = discounted(outcome, episode, position, discount_factor)
    return EpisodeTerms(numerator=weight * gain, denominator=weight)


def doubly_robust(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    q: FloatArray,
    v: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Sequential doubly robust (DR): E⁻¹ Σ_e Σ_t γ^t [w_{t-1} v_t + w_t (r_t - q_t)].

    Unbiased if the propensities are right, whatever the model, provided that ``q`` and ``v`` were fitted on
    other users (cross-fitting); an exact model leaves only the noise of outcomes. Jiang & Li (2016),
    §4, eq. 10, unrolled.
    """
    weight = cumulative_ratio(ratio, episode, position)
    weight_before = np.hstack([np.ones_like(weight[:, :1]), weight[:, :-1]])
    residual = discounted(outcome - q, episode, position, discount_factor)
    baseline = discounted(v, episode, position, discount_factor)
    return plain_mean((weight_before * baseline + weight * residual).sum(axis=1))


def weighted_doubly_robust(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    q: FloatArray,
    v: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Weighted doubly robust (WDR): DR with each w_t divided by its mean over episodes.

    E⁻¹ Σ_e v_{e,0} + Σ_t Σ_e w_t [γ^t (r_t - q_t) + γ^{t+1} v_{t+1}] / Σ_e w_t, with v = 0 past the end.
    Column 0 is the model's value, column t + 1 what step t corrects: their partial sums are the estimates
    that follow the log for t steps and the model from there, which ``magic`` blends. Consistent, not
    unbiased; less variable than DR where weights vary. Thomas & Brunskill (2016), section "Weighted doubly
    robust estimator".
    """
    weight = cumulative_ratio(ratio, episode, position)
    residual = discounted(outcome - q, episode, position, discount_factor)
    baseline = discounted(v, episode, position, discount_factor)
    following = np.hstack([baseline[:, 1:], np.zeros_like(baseline[:, :1])])
    numerator = np.hstack([baseline[:, :1], weight * (residual + following)])
    return EpisodeTerms(numerator=numerator, denominator=np.hstack([np.ones_like(weight[:, :1]), weight]))


def cumulative_ratio(ratio: FloatArray, episode: IntArray, position: IntArray) -> FloatArray:
    """Return the weights w_t as [E, T], carried forward past the end of shorter episodes.

    Raises:
        LoggedDataError: a weight is beyond ``LARGEST_WEIGHT``, so that the propensities cannot be right.
    """
    with np.errstate(over="ignore"):
        weight = np.cumprod(by_episode(ratio, episode, position, 1.0), axis=1, dtype=np.float64)
    if not weight.max() <= LARGEST_WEIGHT:
        place = int((~(weight <= LARGEST_WEIGHT)).any(axis=1).argmax())
        largest = int(np.where(episode == place, ratio, -np.inf).argmax())
        raise LoggedDataError(
            f"propensity: episode {place} has a weight above {LARGEST_WEIGHT:g}, by ratios of target to "
            f"propensity of up to {ratio[largest]:g} (row {largest}): what was logged cannot be the "
            "propensities with which the offers were sent"
        )
    return np.asarray(weight)


def discounted(
    values: FloatArray, episode: IntArray, position: IntArray, discount_factor: float
) -> FloatArray:
    """Return γ^t times ``values`` [N] as [E, T], zero past the end of shorter episodes."""
    return by_episode(values * discount_factor**position, episode, position, 0.0)


def by_episode(values: FloatArray, episode: IntArray, position: IntArray, fill: float) -> FloatArray:
    """Lay ``values`` [N] out as [E, T], with ``fill`` past the end of shorter episodes."""
    if not values.shape == episode.shape == position.shape:
        raise ValueError(f"shapes differ: values {values.shape}, {episode.shape}, {position.shape}")
    matrix = np.full((int(episode[-1]) + 1, int(position.max()) + 1), fill, dtype=np.float64)
    matrix[episode, position] = values
    return matrix
