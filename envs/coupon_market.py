"""Gymnasium environments over the market: one user at a dual price, and the whole market as a vector."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector.utils import batch_space

from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.market import Outcome
from envs.simulator import Simulator

FloatRow = npt.NDArray[np.float32]


class CouponMarketEnv(gymnasium.Env[FloatRow, np.int64]):
    """One user of a market at a fixed dual price λ.

    A shared budget separates by user once its dual price is fixed, so one user at λ is a whole problem.

    Action Space:
        ``Discrete(K)``: the offer to send this week. Offers outside ``info["action_mask"]`` are replaced
        by "no offer" and reported in ``info["masked"]``; use :meth:`action_masks` with maskable agents.

    Observation Space:
        ``Box(-inf, inf, (o,), float32)``: :class:`envs.observation.ObservationLayout` names the columns.

    Starting State:
        A user drawn from the population at a start week drawn from those available.

    Rewards:
        Contribution margin of the week before coupon cost, minus λ times what the budget was charged;
        log's currency.

    Episode End:
        Terminated after ``horizon_weeks`` weeks; never truncated.

    Information:
        ``action_mask`` [K] int8, ``margin``, ``cost`` (currency), ``visited``, ``redeemed``, ``masked``.

    Arguments:
        market: what all campaigns share; the demo market if None.
        world: the simulator that answers; the market's own predictor if None.
        dual_price: λ > 0.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        market: MarketSpec | None = None,
        world: Simulator | None = None,
        dual_price: float = 1.0,
    ) -> None:
        if not dual_price > 0:
            raise ValueError(f"dual_price must be > 0, got {dual_price}")
        self.market = demo_market() if market is None else market
        self.world = self.market.predictor if world is None else world
        self.dual_price = torch.tensor([dual_price])
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (self.market.layout.width,), np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(len(self.market.catalogue))
        self._campaign: Campaign | None = None

    @property
    def campaign(self) -> Campaign:
        """The episode under way.

        Raises:
            RuntimeError: before the first reset.
        """
        if self._campaign is None:
            raise RuntimeError("call reset() before using the environment")
        return self._campaign

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which offers may be sent, [K] bool."""
        return self.campaign.mask[0].numpy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatRow, dict[str, Any]]:
        """Start a campaign with a random user; ``options={"user": i, "start": k}`` fixes either."""
        super().reset(seed=seed)
        chosen = options or {}
        population = self.market.population
        user = int(chosen.get("user", self.np_random.integers(population.n_users)))
        start = int(chosen.get("start", self.np_random.integers(len(population.start_weeks))))
        self._campaign = Campaign(
            self.market,
            self.world,
            start=start,
            users=torch.tensor([user]),
            budget=UNLIMITED_BUDGET,
            seed=int(self.np_random.integers(2**62)),
        )
        return self._observation(), self._info(None, False)

    def step(self, action: np.int64) -> tuple[FloatRow, float, bool, bool, dict[str, Any]]:
        """Send one offer and let the week happen."""
        masked = not bool(self.campaign.mask[0, int(action)])
        offer = torch.tensor([0 if masked else int(action)])
        outcome = self.campaign.step(offer)
        reward = float(outcome.margin[0] - self.dual_price[0] * outcome.cost[0])
        return self._observation(), reward, self.campaign.done, False, self._info(outcome, masked)

    def _observation(self) -> FloatRow:
        return self.campaign.observation(self.dual_price)[0].numpy()

    def _info(self, outcome: Outcome | None, masked: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.action_masks().astype(np.int8), "masked": masked}
        if outcome is not None:
            info |= {
                "margin": float(outcome.margin[0]),
                "cost": float(outcome.cost[0]),
                "visited": bool(outcome.visited[0]),
                "redeemed": bool(outcome.redeemed[0]),
            }
        return info


class CouponMarketVectorEnv(gymnasium.vector.VectorEnv[FloatRow, npt.NDArray[np.int64], Any]):
    """A whole market: n users under one shared budget, stepped together.

    All users' campaigns end in the same week; the next step starts a new campaign (next-step autoreset).

    Arguments:
        market: what all campaigns share; the demo market if None.
        world: the simulator that answers; the market's own predictor if None.
        num_envs: users n taking part, drawn anew for each campaign.
        budget_per_user: shared budget divided by n, currency.
        dual_price: λ in observations and rewards.
    """

    metadata: dict[str, Any] = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 16,
        market: MarketSpec | None = None,
        world: Simulator | None = None,
        budget_per_user: float = 0.1,
        dual_price: float = 1.0,
    ) -> None:
        self.market = demo_market() if market is None else market
        self.world = self.market.predictor if world is None else world
        if not 1 <= num_envs <= self.market.population.n_users:
            raise ValueError(
                f"num_envs must be in 1..{self.market.population.n_users}, the population; got {num_envs}"
            )
        if not dual_price > 0:
            raise ValueError(f"dual_price must be > 0, got {dual_price}")
        self.num_envs = num_envs
        self.budget_per_user = budget_per_user
        self.dual_price = torch.full((num_envs,), dual_price)
        self.single_observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (self.market.layout.width,), np.float32
        )
        self.single_action_space = gymnasium.spaces.Discrete(len(self.market.catalogue))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._campaign: Campaign | None = None

    @property
    def campaign(self) -> Campaign:
        """The campaign under way.

        Raises:
            RuntimeError: before the first reset.
        """
        if self._campaign is None:
            raise RuntimeError("call reset() before using the environment")
        return self._campaign

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which offers may be sent to whom, [n, K] bool."""
        return self.campaign.mask.numpy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatRow, dict[str, Any]]:
        """Start a campaign with n users drawn without replacement."""
        if seed is not None:
            self._np_random, self._np_random_seed = gymnasium.utils.seeding.np_random(seed)
        population = self.market.population
        users = self.np_random.choice(population.n_users, self.num_envs, replace=False)
        start = int(self.np_random.integers(len(population.start_weeks)))
        self._campaign = Campaign(
            self.market,
            self.world,
            start=start,
            users=torch.from_numpy(users),
            budget=self.budget_per_user * self.num_envs,
            seed=int(self.np_random.integers(2**62)),
        )
        return self._observation(), {"action_mask": self.action_masks()}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[
        FloatRow, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
    ]:
        """Send offers and let the week happen; masked offers are replaced by "no offer"."""
        never = np.zeros(self.num_envs, dtype=np.bool_)
        if self.campaign.done:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), info
        requested = torch.from_numpy(np.asarray(actions, dtype=np.int64))
        allowed = self.campaign.mask.gather(1, requested[:, None])[:, 0]
        outcome = self.campaign.step(torch.where(allowed, requested, 0))
        reward = (outcome.margin - self.dual_price * outcome.cost).double().numpy()
        info = {
            "action_mask": self.action_masks(),
            "masked": (~allowed).numpy(),
            "refused": outcome.refused.numpy(),
            "margin": outcome.margin.numpy(),
            "cost": outcome.cost.numpy(),
        }
        return self._observation(), reward, np.full_like(never, self.campaign.done), never, info

    def _observation(self) -> FloatRow:
        return self.campaign.observation(self.dual_price).numpy()
