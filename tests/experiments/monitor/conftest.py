"""Decision logs whose users, costs and propensities are as they should be, or not, as a test wishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from experiments.monitor.monitor import OfferFacts
from experiments.ope.logged_dataset import LoggedDataset

OFFERS = (
    OfferFacts("no offer", 0, 0.0, 0.0),
    OfferFacts("push", 0, 0.0, 0.02),
    OfferFacts("coupon", 2, 1.0, 0.02),
    OfferFacts("rare coupon", 2, 2.0, 0.02),
)
CONTEXT = ("recency", "spend", "fatigue", "weeks_left", "log_dual_price")
NAMES = (
    *CONTEXT,
    *(f"embedding_{k}" for k in range(3)),
    *(f"cost_{k}" for k in range(len(OFFERS))),
)


@dataclass(frozen=True)
class World:
    """How users are and what they do.

    Attributes:
        n_users: users of the log.
        weeks: weeks logged.
        campaign_weeks: of the whole campaign; more than ``weeks`` where it still goes on.
        shift: added to a user's recency, in standard deviations of it.
        redeems: redemptions over what is expected.
        sharpness: power to which the propensities are raised where the offer is drawn; 1 as they say.
    """

    n_users: int = 300
    weeks: int = 4
    campaign_weeks: int = 4
    shift: float = 0.0
    redeems: float = 1.0
    sharpness: float = 1.0

    def log(self, seed: int) -> LoggedDataset:
        """Play it."""
        rng = np.random.default_rng(seed)
        n, weeks, n_offers = self.n_users, self.weeks, len(OFFERS)
        level = rng.standard_normal((n, 1))
        week = np.tile(np.arange(weeks), (n, 1))
        redemption = 1.0 / (1.0 + np.exp(1.5 - 0.7 * level)) * np.ones((1, weeks))
        expected = np.stack(
            [
                np.zeros((n, weeks)),
                np.full((n, weeks), 0.02),
                0.02 + 0.8 * redemption,
                0.02 + 1.5 * redemption,
            ],
            axis=2,
        ).astype(np.float32)
        columns = {
            "recency": level + 0.5 * rng.standard_normal((n, weeks)) + self.shift,
            "spend": np.exp(level + 0.3 * rng.standard_normal((n, weeks))),
            "fatigue": np.minimum(week, rng.integers(0, 3, (n, weeks))),
            "weeks_left": self.campaign_weeks - week,
            "log_dual_price": np.tile(rng.standard_normal(weeks), (n, 1)),
        }
        embedding = level[:, :, None] * np.array([1.0, -0.5, 0.0]) + rng.standard_normal((n, 1, 3))
        observation = np.concatenate(
            [
                np.stack([columns[name] for name in CONTEXT], axis=2),
                np.broadcast_to(embedding, (n, weeks, 3)),
                expected,
            ],
            axis=2,
        ).astype(np.float32)
        score = np.stack([0 * level, 0.8 * level, -0.5 * level, -2.5 + 0 * level], axis=2)
        weight = np.exp(np.broadcast_to(score, (n, weeks, n_offers)))
        probabilities = weight / weight.sum(axis=2, keepdims=True)
        drawn = probabilities**self.sharpness
        drawn /= drawn.sum(axis=2, keepdims=True)
        action = (rng.random((n, weeks, 1)) > drawn.cumsum(axis=2)).sum(axis=2).clip(max=n_offers - 1)
        discount = np.array([0.0, 0.0, 0.8, 1.5])[action]
        comes = rng.random((n, weeks)) < np.minimum(self.redeems * redemption, 1.0)
        cost = np.array([offer.delivery_cost for offer in OFFERS])[action]
        # Half of the redemptions come in the week after; after the campaign's end, in its last week.
        later = comes & (rng.random((n, weeks)) < 0.5)
        cost += discount * (comes & ~later)
        carried = discount * later
        cost[:, 1:] += carried[:, :-1]
        if self.weeks == self.campaign_weeks:
            cost[:, -1] += carried[:, -1]
        last = (week == weeks - 1).ravel()
        over = self.weeks == self.campaign_weeks
        rows = observation.reshape(n * weeks, -1)
        flat = probabilities.reshape(n * weeks, n_offers)
        chosen = action.ravel().astype(np.int64)
        return LoggedDataset(
            observation=rows,
            action=chosen,
            mask=np.ones((n * weeks, n_offers), dtype=np.bool_),
            propensity=flat[np.arange(n * weeks), chosen],
            reward=np.zeros(n * weeks),
            cost=cost.ravel(),
            next_observation=rows,
            terminated=last & over,
            truncated=last & (not over),
            user=np.repeat(np.arange(n, dtype=np.int64), weeks) + 100_000 * seed,
            campaign=np.zeros(n * weeks, dtype=np.int64),
            week=week.ravel().astype(np.int64) + 41,
            dual_price=np.ones(n * weeks),
            observation_names=NAMES,
            propensity_source="logged",
            behaviour_probabilities=flat,
        )


def changed_column(log: LoggedDataset, name: str, values: npt.NDArray[np.floating]) -> LoggedDataset:
    """The log with another observation column."""
    observation = log.observation.copy()
    observation[:, log.observation_names.index(name)] = values
    return replace(log, observation=observation)


@pytest.fixture(scope="session")
def world() -> Callable[..., World]:
    return World


@pytest.fixture(scope="session")
def offers() -> tuple[OfferFacts, ...]:
    return OFFERS


@pytest.fixture(scope="session")
def with_column() -> Callable[[LoggedDataset, str, npt.NDArray[np.floating]], LoggedDataset]:
    return changed_column


@pytest.fixture(scope="session")
def reference() -> LoggedDataset:
    return World().log(0)
