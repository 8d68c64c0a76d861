"""The market as Stable-Baselines3 sees it: many users, each at his own dual price, beside a control arm.

The reward is incremental and in expectation:

    E[margin | what was sent] - E[margin | nothing ever sent] - λ·(E[cost] + reserved / weeks left)

The last term is what reserving liability costs (:class:`envs.observation.Prediction`). The second term
comes from a twin campaign that lives through the same luck and receives nothing. It does not depend on the
actions, so it changes no policy's rank; and since both arms share their visits and baskets until an offer
turns one of them, it removes nearly all of the noise of grocery baskets, which is a hundred times the
effect of an offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from agents.pacing import PriceRange
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.money import to_currency
from envs.simulator import Simulator


class TrainingMarket(VecEnv):
    """n users of a market as a Stable-Baselines3 vector environment.

    Every episode is one campaign: all users start and end together, in one of the worlds, at one of the
    start weeks, each user at a dual price drawn log-uniformly. Everything about episode k follows from
    ``seed`` and k, so that training can resume at any episode.

    Args:
        market: what all campaigns share.
        worlds: simulators that answer; one per episode, in turn.
        starts: positions of the start weeks that may be used.
        users: [m] users that episodes draw from.
        n_users: users side by side; drawn with replacement only where they are more than m.
        prices: range of the dual price.
        reward_scale: rewards are divided by it, so that the value network sees numbers near one.
        seed: of everything drawn.
    """

    def __init__(
        self,
        market: MarketSpec,
        worlds: Sequence[Simulator],
        starts: Sequence[int],
        *,
        users: torch.Tensor,
        n_users: int,
        prices: PriceRange,
        reward_scale: float,
        seed: int,
    ) -> None:
        if not worlds or not starts:
            raise ValueError("training needs at least one world and one start week")
        self.market = market
        self.worlds = tuple(worlds)
        self.starts = tuple(starts)
        self.users = users.cpu()
        self.prices = prices
        self.reward_scale = reward_scale
        self.base_seed = seed
        self.episode = 0
        self.render_mode = None
        self.totals = {"reward": 0.0, "incremental_margin": 0.0, "cost": 0.0, "user_weeks": 0.0}
        super().__init__(
            n_users,
            gymnasium.spaces.Box(-np.inf, np.inf, (market.layout.width,), np.float32),
            gymnasium.spaces.Discrete(len(market.catalogue)),
        )
        self._actions = np.zeros(n_users, dtype=np.int64)

    def _open(self) -> None:
        """Open the treated and the control campaign of the current episode."""
        rng = np.random.default_rng([self.base_seed, self.episode])
        population = self.market.population
        users = self.users[
            torch.from_numpy(
                rng.choice(len(self.users), self.num_envs, replace=self.num_envs > len(self.users))
            )
        ]
        start = int(rng.choice(self.starts))
        world = self.worlds[self.episode % len(self.worlds)]
        luck = int(rng.integers(2**62))
        self._treated, self._control = (
            Campaign(
                self.market,
                world,
                start=start,
                users=users.to(population.embeddings.device),
                budget=UNLIMITED_BUDGET,
                seed=luck,
            )
            for _ in range(2)
        )
        log_price = rng.uniform(np.log(self.prices.low), np.log(self.prices.high), self.num_envs)
        self._price = torch.from_numpy(np.exp(log_price).astype(np.float32)).to(self._treated.device)

    def reset(self) -> npt.NDArray[np.float32]:  # type: ignore[override]
        """Open the current episode and return its first observations, [n, o]."""
        self._open()
        return self._treated.observation(self._price).cpu().numpy()

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Remember the offers, [n]."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Let the week happen in both arms; at the campaign's end open the next episode."""
        offer = torch.from_numpy(np.asarray(self._actions, dtype=np.int64)).to(self._price.device)
        weeks_left = self._treated.weeks_left
        outcome, treated = self._treated.step_with_expectation(offer)
        _, control = self._control.step_with_expectation()
        cost = treated.discount + to_currency(outcome.delivery).float()
        incremental = treated.margin - control.margin
        reserved = to_currency(outcome.reserved).float()
        reward = (incremental - self._price * (cost + reserved / weeks_left)) / self.reward_scale
        self.totals["reward"] += float(reward.sum())
        self.totals["incremental_margin"] += float(incremental.sum())
        self.totals["cost"] += float(cost.sum())
        self.totals["user_weeks"] += self.num_envs
        done = self._treated.done
        observation = self._treated.observation(self._price).cpu().numpy()
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        if done:
            infos = [{"terminal_observation": row, "TimeLimit.truncated": False} for row in observation]
            self.episode += 1
            observation = self.reset()
        return observation, reward.cpu().numpy(), np.full(self.num_envs, done), infos  # type: ignore[return-value]

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return what may be sent to whom, [n, K]."""
        return self._treated.mask.cpu().numpy()

    def take_totals(self) -> dict[str, float]:
        """Return the sums since the last call, and start anew."""
        totals = dict(self.totals)
        self.totals = dict.fromkeys(totals, 0.0)
        return totals

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute for each index."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute; it is shared by all users."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method once and return its rows, one per index."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result[index] for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """No user is wrapped."""
        return [False for _ in self._get_indices(indices)]
