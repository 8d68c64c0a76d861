"""The market as Stable-Baselines3 sees it: many users, each at his own dual prices.

The reward is incremental and in expectation:

    r - λ·E[cost] - μ·reserved

with r the expected margin over that of sending nothing, now and by way of the visit later
(:mod:`agents.visit_value`), and the prices λ and μ of the week from those that each user keeps
(:mod:`agents.dual_prices`). It is a function of state and offer: the noise of grocery baskets, a hundred
times the effect of an offer, is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.dual_prices import DualPrices, surcharged
from agents.pacing import PriceRange
from agents.shared_vec_env import SharedVecEnv
from agents.visit_value import VisitValue, incremental_margin
from envs.assumptions import AssumedResponse
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.money import to_currency
from envs.simulator import Simulator

SURCHARGED_SHARE = 0.5
"""Share of the users who meet weeks short of reserve."""
MOST_SURCHARGE = 0.8
"""Highest price that is added in weeks short of reserve, as a share of λ in the first week; plans need up to
two thirds."""


class TrainingMarket(SharedVecEnv):
    """n users of a market as a Stable-Baselines3 vector environment.

    Every episode is one campaign: all users start and end together at one of the start weeks, each in one of
    the worlds with assumptions drawn anew, at dual prices of his own: λ of the first week log-uniform, its
    pressure uniform in [0, 1], and for some in the first few weeks a surcharge as if the reserve were short
    (:func:`agents.dual_prices.surcharged`). Everything about episode k follows from ``seed`` and k, so that
    training can resume at any episode.

    Args:
        market: what all campaigns share.
        worlds: simulators that answer, each for its share of the users.
        starts: positions of the start weeks that may be used.
        users: [m] users that episodes draw from.
        n_users: users side by side; drawn with replacement only where they are more than m.
        prices: range of λ in a campaign's first week.
        visit_value: what a visit is worth later.
        reward_scale: rewards are divided by it, so that the value network sees numbers near one.
        seed: of everything drawn.
        redraw_assumptions: False keeps each world's own, for a policy that knows one simulator only.
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
        visit_value: VisitValue,
        reward_scale: float,
        seed: int,
        redraw_assumptions: bool = True,
    ) -> None:
        if not worlds or not starts:
            raise ValueError("training needs at least one world and one start week")
        self.market = market
        self.worlds = tuple(worlds)
        self.starts = tuple(starts)
        self.users = users.cpu()
        self.prices = prices
        self.visit_value = visit_value
        self.reward_scale = reward_scale
        self.base_seed = seed
        self.redraw_assumptions = redraw_assumptions
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
        """Open the campaign of the current episode."""
        rng = np.random.default_rng([self.base_seed, self.episode])
        population = self.market.population
        users = self.users[
            torch.from_numpy(
                rng.choice(len(self.users), self.num_envs, replace=self.num_envs > len(self.users))
            )
        ]
        start = int(rng.choice(self.starts))
        # What the logs do not tell is drawn anew each time: a policy must not learn one guess by heart.
        worlds = self.worlds
        if self.redraw_assumptions:
            worlds = tuple(replace(world, assumed=AssumedResponse.draw(rng)) for world in worlds)
        users = users.to(population.embeddings.device)
        self._campaign = Campaign(
            self.market,
            worlds,
            start=start,
            users=users,
            budget=UNLIMITED_BUDGET,
            seed=int(rng.integers(2**62)),
        )
        low, high = np.log(self.prices.low), np.log(self.prices.high)
        spend, pressure = (
            torch.from_numpy(drawn.astype(np.float32)).to(users.device)
            for drawn in (np.exp(rng.uniform(low, high, self.num_envs)), rng.uniform(size=self.num_envs))
        )
        self._prices = DualPrices.of_first_week(spend, pressure, self.market.horizon_weeks)
        share = rng.uniform(0.0, MOST_SURCHARGE, self.num_envs).astype(np.float32)
        weeks = rng.integers(0, self.market.horizon_weeks + 1, self.num_envs)
        weeks *= rng.random(self.num_envs) < SURCHARGED_SHARE
        self._surcharge = torch.from_numpy(share).to(users.device) * spend
        self._surcharged_weeks = torch.from_numpy(weeks).to(users.device)

    def _observation(self) -> npt.NDArray[np.float32]:
        # After the last week the prices are those of a week more, which nobody acts on.
        left = max(self._campaign.weeks_left, 1)
        longest = int(self.market.offers.validity_weeks.max())
        spend, pressure = surcharged(
            self._prices.spend(left), self._prices.pressure(left), self._surcharge_now(), left, longest
        )
        return self._campaign.observation(torch.as_tensor(spend), pressure).cpu().numpy()

    def _surcharge_now(self) -> torch.Tensor:
        """Return what the coming week's multiplier is raised by for each user, [n]."""
        return self._surcharge * (self._campaign.state.week < self._surcharged_weeks)

    def reset(self) -> npt.NDArray[np.float32]:  # type: ignore[override]
        """Open the current episode and return its first observations, [n, o]."""
        self._open()
        return self._observation()

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Remember the offers, [n]."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Let the week happen; at the campaign's end open the next episode."""
        offer = torch.from_numpy(np.asarray(self._actions, dtype=np.int64)).to(self._campaign.device)
        weeks_left, more = self._campaign.weeks_left, self._surcharge_now()
        after = self.visit_value.after(self._campaign)
        outcome, expected = self._campaign.step_with_expectation(offer)
        cost = expected.discount + to_currency(outcome.delivery).float()
        incremental = incremental_margin(expected, after)
        reserved = to_currency(outcome.reserved).float()
        spend, reserve = self._prices.spend(weeks_left), self._prices.reserve(weeks_left)
        charge = (spend + more) * cost + (reserve + more) * reserved
        reward = (incremental - charge) / self.reward_scale
        self.totals["reward"] += float(reward.sum())
        self.totals["incremental_margin"] += float(incremental.sum())
        self.totals["cost"] += float(cost.sum())
        self.totals["user_weeks"] += self.num_envs
        done = self._campaign.done
        observation = self._observation()
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        if done:
            infos = [{"terminal_observation": row, "TimeLimit.truncated": False} for row in observation]
            self.episode += 1
            observation = self.reset()
        return observation, reward.cpu().numpy(), np.full(self.num_envs, done), infos  # type: ignore[return-value]

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return what may be sent to whom, [n, K]."""
        return self._campaign.mask.cpu().numpy()

    def take_totals(self) -> dict[str, float]:
        """Return the sums since the last call, and start anew."""
        totals = dict(self.totals)
        self.totals = dict.fromkeys(totals, 0.0)
        return totals
