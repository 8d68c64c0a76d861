"""Contextual bandits with a linear model per offer: LinUCB and linear Thompson sampling.

* LinUCB with disjoint linear models (Li, Chu, Langford & Schapire 2010, WWW, algorithm 1): the score of
  offer k is its upper confidence bound θ̂_k·x + α·σ·√(xᵀ A_k⁻¹ x).
* Linear Thompson sampling (Agrawal & Goyal 2013, ICML): the score is θ̃_k·x with θ̃_k drawn from
  N(θ̂_k, v²·σ²·A_k⁻¹), once per week of learning, so that all users of a week and all dual prices that pacing
  tries meet the same draw.

Both take λ times the predictor's budget use off the score and send the best allowed offer. A_k = ridge·I +
Σ w·x·xᵀ and θ̂_k = A_k⁻¹ Σ w·r·x over the rows that were sent offer k; x is a one, the standardised context,
embedding and predicted uplift of the offer.

The reward r is the week's margin above what the predictor expected without an offer. In the experience that
a bandit starts from, that baseline is the control arm. In use there is none, and the realised margin minus
the predictor's expectation (visit probability times expected basket margin) takes its place: a control
variate, which takes off most of what differs between users whatever is sent; what the predictor gets wrong
about them, offer 0's own model learns with the others'. The reward is before coupon cost: λ·use already
charges that, and the price of it is not the same in every campaign.

Realised baskets are far noisier than the experience. Each row counts with a weight w inverse to its noise
variance: 1 in the experience, σ² over the mean squared surprise of the week in use, σ² being the residual
variance of the first fit. That is generalised least squares; with equal weights a few weeks of baskets would
drown what was learned before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from agents.experience import Experience
from agents.price_free import LastGain, best_net_of_price, user_columns
from envs.observation import CONTEXT_FEATURES, ObservationLayout

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BanditFeatures:
    """The features of an offer for a user, F = number of columns: one, context and embedding, uplift.

    Attributes:
        layout: of the observations.
        mean: [F - 2] of the user's columns in the experience.
        deviation: [F - 2] of the same; 1 where a column never changes.
        uplift_scale: root mean square of the predicted uplift in the experience.
    """

    layout: ObservationLayout
    mean: Doubles
    deviation: Doubles
    uplift_scale: float

    @classmethod
    def of_experience(cls, experience: Experience) -> BanditFeatures:
        """Standardise by what the experience shows."""
        user = experience.observation[:, user_columns(experience.layout)].astype(np.float64)
        deviation = user.std(axis=0)
        uplift = experience.layout.offer_block(torch.from_numpy(experience.observation), "uplift")
        return cls(
            layout=experience.layout,
            mean=user.mean(axis=0),
            deviation=np.where(deviation > 1e-6, deviation, 1.0),
            uplift_scale=float(uplift.double().square().mean().sqrt()) or 1.0,
        )

    @property
    def width(self) -> int:
        """Number of features F."""
        return len(self.mean) + 2

    def __call__(self, rows: npt.NDArray[np.float32], offer: npt.NDArray[np.int64]) -> Doubles:
        """Return the features of one offer per row, [n, F], from rows [n, o] and offers [n]."""
        user = (rows[:, user_columns(self.layout)] - self.mean) / self.deviation
        column = self.layout.names().index("uplift_0") + offer
        uplift = rows[np.arange(len(rows)), column].astype(np.float64) / self.uplift_scale
        return np.concatenate([np.ones((len(rows), 1)), user, uplift[:, None]], axis=1)


class LinearBandit:
    """A ridge regression of the reward for each offer, warm-started from experience.

    Args:
        features: of an offer for a user.
        ridge: of each regression, > 0, in rows of the experience.

    Attributes:
        precision: [K, F, F], A_k.
        moment: [K, F], Σ w·r·x.
        covariance: [K, F, F], A_k⁻¹.
        theta: [K, F], θ̂_k.
        noise_variance: σ², currency squared; 1 before the warm start.
    """

    def __init__(self, features: BanditFeatures, ridge: float) -> None:
        if not ridge > 0:
            raise ValueError(f"ridge must be > 0, got {ridge}")
        self.features = features
        self.ridge = ridge
        n_offers, width = features.layout.n_offers, features.width
        self.precision = np.tile(ridge * np.eye(width), (n_offers, 1, 1))
        self.moment = np.zeros((n_offers, width))
        self.noise_variance = 1.0
        self._solve()

    def _solve(self) -> None:
        """Work out what follows from the sums, once for all dual prices of a week."""
        self.covariance: Doubles = np.asarray(np.linalg.inv(self.precision), dtype=np.float64)
        self.theta: Doubles = (self.covariance @ self.moment[:, :, None])[:, :, 0]
        self._last = LastGain(self.features.layout)

    def _copy(self) -> Self:
        """A copy with its own regressions."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.precision, copy.moment = self.precision.copy(), self.moment.copy()
        copy._solve()
        return copy

    def warm_start(self, experience: Experience) -> None:
        """Add the experience and measure the noise variance σ² by its residuals.

        Raises:
            ValueError: the experience sums over more than one week, has no rows, or is of another layout.
        """
        if experience.window_weeks != 1:
            raise ValueError(
                f"a bandit learns from one week at a time; the experience sums over {experience.window_weeks}"
            )
        if not len(experience):
            raise ValueError("the experience has no rows")
        if experience.layout != self.features.layout:
            raise ValueError("the experience has another observation layout than the bandit")
        x = self.features(experience.observation, experience.offer)
        reward = experience.margin.astype(np.float64)
        self._add(x, experience.offer, reward, 1.0)
        residual = reward - (x * self.theta[experience.offer]).sum(axis=1)
        self.noise_variance = max(float((residual**2).mean()), 1e-12)

    def learn(
        self, observation: torch.Tensor, offer: torch.Tensor, margin: torch.Tensor, cost: torch.Tensor
    ) -> None:
        """Learn from one week; see :class:`agents.adaptive.AdaptivePolicy`. The cost is λ's concern."""
        rows, sent = observation.cpu().numpy(), offer.cpu().numpy()
        if not len(rows):
            return
        reward = margin.cpu().numpy().astype(np.float64) - _expected_margin(rows)
        x = self.features(rows, sent)
        surprise = reward - (x * self.theta[sent]).sum(axis=1)
        variance = max(float((surprise**2).mean()), self.noise_variance)
        self._add(x, sent, reward, self.noise_variance / variance)

    def _add(self, x: Doubles, offer: npt.NDArray[np.int64], reward: Doubles, weight: float) -> None:
        for k in np.unique(offer):
            of_offer = x[offer == k]
            self.precision[k] += weight * of_offer.T @ of_offer
            self.moment[k] += weight * of_offer.T @ reward[offer == k]
        self._solve()

    def _greedy(
        self, observation: torch.Tensor, mask: torch.Tensor, theta: Doubles, bonus: float
    ) -> torch.Tensor:
        """Send the best of θ_k·x + bonus·√(xᵀ A_k⁻¹ x) − λ·use_k."""

        def score(asked: torch.Tensor) -> torch.Tensor:
            rows = asked.cpu().numpy()
            out = np.empty((len(rows), len(theta)))
            for k in range(len(theta)):
                x = self.features(rows, np.full(len(rows), k))
                out[:, k] = x @ theta[k]
                if bonus:
                    out[:, k] += bonus * np.sqrt((x @ self.covariance[k] * x).sum(axis=1))
            return torch.from_numpy(out).to(observation.device)

        return best_net_of_price(self._last.of(observation, score), observation, mask, self.features.layout)


class LinUCB(LinearBandit):
    """Optimism: the offer with the highest upper confidence bound net of λ·use.

    Args:
        features: of an offer for a user.
        alpha: α ≥ 0, width of the bound in standard deviations.
        ridge: of each regression, > 0, in rows of the experience.
    """

    name = "LinUCB"

    def __init__(self, features: BanditFeatures, alpha: float = 1.0, ridge: float = 1.0) -> None:
        super().__init__(features, ridge)
        if not alpha >= 0:
            raise ValueError(f"alpha must be >= 0, got {alpha}")
        self.alpha = alpha

    @classmethod
    def fit(cls, experience: Experience, *, alpha: float = 1.0, ridge: float = 1.0) -> LinUCB:
        """Return a bandit warm-started from experience of one-week windows."""
        bandit = cls(BanditFeatures.of_experience(experience), alpha, ridge)
        bandit.warm_start(experience)
        return bandit

    def fresh(self, seed: int) -> LinUCB:
        """Return an independent copy; nothing is drawn, so that the seed does not matter."""
        return self._copy()

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return probability 1 on the offer with the highest bound, [n, K]."""
        return self._greedy(observation, mask, self.theta, self.alpha * self.noise_variance**0.5)


class LinearThompsonSampling(LinearBandit):
    """Probability matching: the best offer under parameters drawn from their posterior.

    Args:
        features: of an offer for a user.
        seed: of the draws.
        scale: v ≥ 0, by which the posterior's standard deviation is multiplied; 1 is Bayes under normal
            noise and a normal prior of variance σ² / ridge.
        ridge: of each regression, > 0, in rows of the experience.
    """

    name = "LinTS"

    def __init__(self, features: BanditFeatures, seed: int, scale: float = 1.0, ridge: float = 1.0) -> None:
        super().__init__(features, ridge)
        if not scale >= 0:
            raise ValueError(f"scale must be >= 0, got {scale}")
        self.scale = scale
        self._reseed(seed)

    @classmethod
    def fit(
        cls, experience: Experience, *, seed: int, scale: float = 1.0, ridge: float = 1.0
    ) -> LinearThompsonSampling:
        """Return a bandit warm-started from experience of one-week windows."""
        bandit = cls(BanditFeatures.of_experience(experience), seed, scale, ridge)
        bandit.warm_start(experience)
        return bandit

    def warm_start(self, experience: Experience) -> None:
        """Add the experience, measure the noise variance and draw anew."""
        super().warm_start(experience)
        self._draw()

    def fresh(self, seed: int) -> LinearThompsonSampling:
        """Return an independent copy with draws of its own."""
        copy = self._copy()
        copy._reseed(seed)
        return copy

    def learn(
        self, observation: torch.Tensor, offer: torch.Tensor, margin: torch.Tensor, cost: torch.Tensor
    ) -> None:
        """Learn from one week and draw the next week's parameters."""
        super().learn(observation, offer, margin, cost)
        self._draw()

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return probability 1 on the best offer under the parameters drawn last, [n, K]."""
        return self._greedy(observation, mask, self.drawn, 0.0)

    def _reseed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._draw()

    def _draw(self) -> None:
        """Draw θ̃_k = θ̂_k + v·σ·L⁻ᵀz for A_k = L·Lᵀ, whose covariance is v²·σ²·A_k⁻¹."""
        noise = self._rng.standard_normal(self.moment.shape)
        root = np.linalg.cholesky(self.precision)
        spread = np.linalg.solve(root.transpose(0, 2, 1), noise[:, :, None])[:, :, 0]
        self.drawn: Doubles = self.theta + self.scale * self.noise_variance**0.5 * spread
        self._last = LastGain(self.features.layout)


def _expected_margin(rows: npt.NDArray[np.float32]) -> Doubles:
    """The predictor's expectation of the week's margin without an offer, [n] currency."""
    visit, basket = (
        rows[:, CONTEXT_FEATURES.index(name)].astype(np.float64)
        for name in ("visit_probability", "expected_basket_margin")
    )
    return np.asarray(visit * basket)
