"""A small Markov decision process whose values are known exactly, and logs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from experiments.ope.logged_dataset import FloatArray, LoggedDataset, PropensitySource


@dataclass(frozen=True)
class Chain:
    """Three states, two offers, three weeks; offer 1 in the last state ends the episode early.

    Offer 1 moves a state on with probability ``advance``, offer 0 never. ``noise`` is the standard
    deviation of rewards around ``mean_reward``.
    """

    advance: float = 1.0
    noise: float = 0.0
    horizon: int = 3
    discount_factor: float = 0.9
    mean_reward: FloatArray = field(default_factory=lambda: np.array([[0.0, -1.0], [2.0, 1.0], [5.0, 3.5]]))
    target: FloatArray = field(default_factory=lambda: np.array([[0.3, 0.7], [0.6, 0.4], [0.8, 0.2]]))
    behaviour: FloatArray = field(default_factory=lambda: np.array([[0.6, 0.4], [0.5, 0.5], [0.7, 0.3]]))

    def ends(self, state: int, offer: int) -> bool:
        return state == 2 and offer == 1

    def values(self) -> tuple[FloatArray, FloatArray]:
        """q [weeks to go, state, offer] and v [weeks to go, state] of the target, by dynamic programming."""
        q = np.zeros((self.horizon, 3, 2))
        v = np.zeros((self.horizon, 3))
        for stage in range(self.horizon):
            q[stage] = self.mean_reward
            if stage:
                before = v[stage - 1]
                following = np.array(
                    [before, self.advance * before[[1, 2, 2]] + (1 - self.advance) * before]
                ).T
                following[2, 1] = 0.0
                q[stage] += self.discount_factor * following
            v[stage] = (self.target * q[stage]).sum(axis=1)
        return q, v

    def log(
        self, rng: np.random.Generator, n_users: int, propensity_source: PropensitySource = "logged"
    ) -> tuple[LoggedDataset, FloatArray, npt.NDArray[np.int64]]:
        """A log of the behaviour policy, the target's probabilities on it, and the state of each row."""
        rows: list[tuple[int, int, int, int, float, int, bool]] = []
        for user in range(n_users):
            state = int(rng.integers(3))
            for week in range(self.horizon):
                offer = int(rng.random() < self.behaviour[state, 1])
                reward = self.mean_reward[state, offer] + self.noise * rng.standard_normal()
                moves = offer == 1 and rng.random() < self.advance
                following = min(state + 1, 2) if moves else state
                done = week == self.horizon - 1 or self.ends(state, offer)
                rows.append((user, week, state, offer, reward, following, done))
                if done:
                    break
                state = following
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        user_, week_, state_, offer_, reward_, following_, done_ = columns
        n = user_.size
        one_hot = np.eye(3, dtype=np.float32)
        dataset = LoggedDataset(
            observation=one_hot[state_],
            action=offer_,
            mask=np.ones((n, 2), dtype=np.bool_),
            propensity=self.behaviour[state_, offer_],
            reward=reward_.astype(np.float64),
            cost=offer_.astype(np.float64),
            next_observation=one_hot[following_],
            terminated=done_,
            truncated=np.zeros(n, dtype=np.bool_),
            user=user_,
            campaign=np.zeros(n, dtype=np.int64),
            week=week_ + 10,
            dual_price=np.zeros(n),
            observation_names=("new", "active", "loyal"),
            propensity_source=propensity_source,
            behaviour_probabilities=self.behaviour[state_],
        )
        return dataset, self.target[state_], state_


@pytest.fixture(scope="session")
def chain() -> Callable[..., Chain]:
    return Chain
