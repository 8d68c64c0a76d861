"""Estimators of a target policy's value from logged episodes, as sums of per-episode terms.

Notation: episode e has steps t = 0 … T_e - 1; ρ_t = π(a_t|x_t) / β(a_t|x_t) is the ratio of the target to
the behaviour propensity; w_t = ρ_0 ⋯ ρ_t; γ is the discount factor; r_t the outcome (margin, cost, …).
Every estimator reduces to its bandit form when all episodes have length one.

Common assumptions: propensities are right and positive wherever the target's are; users do not influence
one another. A shared budget breaks the second, so the estimates hold at a *fixed λ path*: the dual price of
each week is given, and the budget is checked afterwards against the estimated cost.

Variable length: past its last step an episode rests in an absorbing state where the outcome is 0 and both
policies agree, so w stays at its last value. That is exact for terminated episodes. A truncated episode is
treated alike: the estimand is the value *within the logged weeks*.

Common arguments: ``outcome`` [N] and ``ratio`` [N] by step; ``episode`` [N] in 0 … E-1, ascending, and
``position`` [N] = t; ``q`` [N] = q(x_t, a_t) and ``v`` [N] = Σ_k π(k|x_t) q(x_t, k) by step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.ope.logged_dataset import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class EpisodeTerms:
    """Per-episode terms of an estimate Σ_j (Σ_e numerator[e, j] / Σ_e denominator[e, j]).

    Both sums are kept apart so that an interval can resample them together: a denominator held fixed
    makes self-normalised intervals wrong.

    Attributes:
        numerator: [E, J] float64; J is 1, or T for per-position normalisation.
        denominator: [E, J] float64; all ones where the estimator is a plain mean over episodes.
    """

    numerator: FloatArray
    denominator: FloatArray

    def __post_init__(self) -> None:
        if self.numerator.ndim != 2 or self.numerator.shape != self.denominator.shape:
            raise ValueError(
                f"terms need equal [E, J] shapes, not {self.numerator.shape} and {self.denominator.shape}"
            )

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return int(self.numerator.shape[0])

    def estimate(self) -> float:
        """Return the value per episode; NaN where every weight of a denominator is zero."""
        return float(ratio_of_sums(self.numerator.sum(axis=0), self.denominator.sum(axis=0)))


def ratio_of_sums(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return Σ_j numerator[…, j] / denominator[…, j]; NaN where a denominator is zero."""
    undefined = np.full(numerator.shape, np.nan)
    return np.asarray(np.divide(numerator, denominator, out=undefined, where=denominator != 0).sum(axis=-1))


def direct_method(*, v: FloatArray, episode: IntArray, position: IntArray) -> EpisodeTerms:
    """Direct method: E⁻¹ Σ_e v(x_{e,0}).

    Assumes the value model is right; its error is not corrected. Dudík, Langford & Li (2011), §2;
    sequential, with fitted Q evaluation: Le, Voloshin & Yue (2019), Algorithm 3.
    """
    return _plain_mean(_by_episode(v, episode, position, 0.0)[:, 0])


def inverse_propensity(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Trajectory importance sampling (IPS): E⁻¹ Σ_e w_{T_e - 1} Σ_t γ^t r_t.

    Unbiased; its variance grows exponentially with length. Precup, Sutton & Singh (2000).
    """
    weight = cumulative_ratio(ratio, episode, position)[:, -1]
    return _plain_mean(weight * _discounted(outcome, episode, position, discount_factor).sum(axis=1))


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
    return _plain_mean((weight * _discounted(outcome, episode, position, discount_factor)).sum(axis=1))


def self_normalised(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Self-normalised trajectory importance sampling (SNIPS): Σ_e w_{T_e - 1} G_e / Σ_e w_{T_e - 1}.

    G_e = Σ_t γ^t r_t. Consistent, not unbiased; stays within the range of the observed returns, and is
    exact for a constant return. Precup, Sutton & Singh (2000), weighted form; Swaminathan & Joachims (2015).
    """
    weight = cumulative_ratio(ratio, episode, position)[:, -1:]
    total = _discounted(outcome, episode, position, discount_factor).sum(axis=1, keepdims=True)
    return EpisodeTerms(numerator=weight * total, denominator=weight)


def weighted_per_decision(
    *,
    outcome: FloatArray,
    ratio: FloatArray,
    episode: IntArray,
    position: IntArray,
    discount_factor: float = 1.0,
) -> EpisodeTerms:
    """Weighted per-decision importance sampling (WPDIS): Σ_t γ^t (Σ_e w_{e,t} r_{e,t} / Σ_e w_{e,t}).

    Consistent, not unbiased. An ended episode stays in the denominator with its last weight: to leave it
    out would estimate the outcome of the survivors. Thomas (2015), PhD thesis, ch. 3 (CWPDIS).
    """
    weight = cumulative_ratio(ratio, episode, position)
    gain = _discounted(outcome, episode, position, discount_factor)
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
    """Sequential doubly robust (DR): E⁻¹ Σ_e Σ_t γ^t [w_{t-1} v_t + w_t (r_t - q_t)], with w_{-1} = 1.

    Unbiased if the propensities are right, whatever the model, provided that ``q`` and ``v`` were fitted on
    other users (cross-fitting); an exact model leaves only the noise of outcomes. Jiang & Li (2016),
    §4, eq. 10, unrolled; bandit form: Dudík, Langford & Li (2011), §2.
    """
    weight = cumulative_ratio(ratio, episode, position)
    weight_before = np.hstack([np.ones_like(weight[:, :1]), weight[:, :-1]])
    residual = _discounted(outcome - q, episode, position, discount_factor)
    baseline = _discounted(v, episode, position, discount_factor)
    return _plain_mean((weight_before * baseline + weight * residual).sum(axis=1))


def cumulative_ratio(ratio: FloatArray, episode: IntArray, position: IntArray) -> FloatArray:
    """Return the weights w_t as [E, T], carried forward past the end of shorter episodes."""
    return np.cumprod(_by_episode(ratio, episode, position, 1.0), axis=1, dtype=np.float64)


def _discounted(
    values: FloatArray, episode: IntArray, position: IntArray, discount_factor: float
) -> FloatArray:
    """[E, T] of γ^t times ``values`` [N], zero past the end of shorter episodes."""
    return _by_episode(values * discount_factor**position, episode, position, 0.0)


def _by_episode(values: FloatArray, episode: IntArray, position: IntArray, fill: float) -> FloatArray:
    """Lay ``values`` [N] out as [E, T], with ``fill`` past the end of shorter episodes."""
    if not values.shape == episode.shape == position.shape:
        raise ValueError(f"shapes differ: values {values.shape}, {episode.shape}, {position.shape}")
    matrix = np.full((int(episode[-1]) + 1, int(position.max()) + 1), fill, dtype=np.float64)
    matrix[episode, position] = values
    return matrix


def _plain_mean(numerator: FloatArray) -> EpisodeTerms:
    return EpisodeTerms(numerator=numerator[:, None], denominator=np.ones((numerator.size, 1)))
