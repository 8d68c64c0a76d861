"""Distribution of the return under a target policy: what may happen to a user, not only on average.

A return is one episode's discounted sum of outcomes, G_e = Σ_t γ^t r_t; w_e is the product of its ratios and
y any amount. The estimators weight point masses, so that every functional of the distribution follows from
one weighted sample. Assumptions are those of ``sequential``; the distribution is over users and luck, at a
fixed λ path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.ope.logged_dataset import FloatArray


@dataclass(frozen=True, eq=False)
class ReturnDistribution:
    """A step function F(y) = P(G ≤ y).

    Attributes:
        support: [M] returns at which F rises, ascending and distinct.
        cdf: [M] F at them, ascending within [0, 1]. The last may lie below 1: plain importance weights need
            not add up to 1, and what is missing is not known.
    """

    support: FloatArray
    cdf: FloatArray

    @property
    def mass(self) -> FloatArray:
        """[M] probability of each point of the support."""
        return np.diff(self.cdf, prepend=0.0)

    def probability(self, y: FloatArray) -> FloatArray:
        """Return F(y) [...]."""
        index = np.searchsorted(self.support, y, side="right")
        return np.concatenate([[0.0], self.cdf])[index]

    def mean(self) -> float:
        """Return Σ_m p_m y_m; for plain importance weights that stay below 1 it is the IPS estimate."""
        return float(self.mass @ self.support)

    def variance(self) -> float:
        """Return Σ_m p_m (y_m - mean)²."""
        return float(self.mass @ (self.support - self.mean()) ** 2)

    def quantile(self, level: float) -> float:
        """Return the least y with F(y) ≥ ``level`` in (0, 1]; NaN where F does not get there."""
        _require_level(level)
        index = int(np.searchsorted(self.cdf, level * (1 - 1e-12), side="left"))
        return float(self.support[index]) if index < self.support.size else np.nan

    def conditional_value_at_risk(self, level: float) -> float:
        """Return CVaR, the mean of the worst ``level`` of returns: level⁻¹ ∫_0^level F⁻¹(p) dp.

        The lower tail, since a return is a gain; ``level`` 1 is the mean. A point mass that straddles the
        level counts in part. NaN where F does not reach the level. Rockafellar & Uryasev (2002).
        """
        if np.isnan(self.quantile(level)):
            return np.nan
        tail = np.minimum(self.cdf, level)
        return float(np.diff(tail, prepend=0.0) @ self.support / tail[-1])


def importance_sampling(*, returns: FloatArray, weight: FloatArray) -> ReturnDistribution:
    """Importance-sampled distribution (IS): F(y) = E⁻¹ Σ_e w_e 1[G_e ≤ y].

    Unbiased before it is cut at 1. Chandak et al. (2021), "Universal off-policy evaluation".

    Args:
        returns: [E] G_e.
        weight: [E] w_e.
    """
    return _of_masses(returns, weight / returns.size)


def self_normalised(*, returns: FloatArray, weight: FloatArray) -> ReturnDistribution:
    """Self-normalised distribution (SNIS): F(y) = Σ_e w_e 1[G_e ≤ y] / Σ_e w_e.

    Consistent; always a distribution. Chandak et al. (2021); Swaminathan & Joachims (2015).

    Args:
        returns: [E] G_e.
        weight: [E] w_e.

    Raises:
        ValueError: all weights are 0, so that nothing in the log looks like the target.
    """
    total = weight.sum()
    if not total > 0:
        raise ValueError(
            f"the weights of {weight.size} episodes add up to {total}: there is nothing to normalise"
        )
    return _of_masses(returns, weight / total)


def doubly_robust(
    *, returns: FloatArray, weight: FloatArray, model_returns: FloatArray
) -> ReturnDistribution:
    """Doubly robust distribution (DR): F(y) = E⁻¹ Σ_e [F̂_e(y) + w_e (1[G_e ≤ y] - F̂_e(y))].

    F̂_e is the distribution of the return that a model expects of episode e from what was seen at its start.
    Unbiased with right propensities, whatever the model; masses may be negative, so F is made to ascend and
    cut to [0, 1] afterwards. Huang, Leqi, Lipton & Azizzadenesheli (2021), "Off-policy risk assessment in
    contextual bandits".

    Args:
        returns: [E] G_e.
        weight: [E] w_e.
        model_returns: [E, M] equally likely draws from F̂_e under the target; [E, 1] of the model's values
            v_{e,0} is a model that knows no spread.
    """
    n_episodes, n_draws = model_returns.shape
    if returns.shape != (n_episodes,):
        raise ValueError(f"model_returns has shape {model_returns.shape}, expected ({returns.size}, M)")
    share = np.repeat((1 - weight) / (n_episodes * n_draws), n_draws)
    points = np.concatenate([returns, model_returns.ravel()])
    return _of_masses(points, np.concatenate([weight / n_episodes, share]))


def _of_masses(points: FloatArray, masses: FloatArray) -> ReturnDistribution:
    """Add up ``masses`` [M] at ``points`` [M], any number of them equal, into a valid step function."""
    if points.ndim != 1 or points.shape != masses.shape:
        raise ValueError(f"shapes differ, or are not [E]: returns {points.shape}, weight {masses.shape}")
    support, index = np.unique(points, return_inverse=True)
    total = np.cumsum(np.bincount(index, weights=masses, minlength=support.size))
    return ReturnDistribution(support, np.clip(np.maximum.accumulate(total), 0.0, 1.0))


def _require_level(level: float) -> None:
    if not 0 < level <= 1:
        raise ValueError(f"level must lie in (0, 1], not {level}")
