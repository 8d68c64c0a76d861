"""Gymnasium environments over the tabular market: one user at a dual price, and n users as a vector.

A shared budget separates by user once its dual price λ is fixed, so a user at λ is a whole problem, and a
policy that knows λ serves every budget. The optimal return at λ is known: the value of
:func:`envs.tabular_solution.solve`.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector.utils import batch_space

from envs.money import to_currency
from envs.tabular_campaign import TabularCampaign, TabularOutcome
from envs.tabular_market import TabularMarket

FloatRow = npt.NDArray[np.float32]


def observation_width(market: TabularMarket) -> int:
    """Return the number of columns o of :func:`observe`."""
    return market.n_types + int(market.features.shape[1]) + 2


def observe(campaign: TabularCampaign, dual_price: torch.Tensor) -> torch.Tensor:
    """Return what an agent sees of each user at the start of a week.

    Args:
        campaign: n users.
        dual_price: [n] λ > 0.

    Returns:
        [n, o] float32: one-hot type [G], the state's features [f] (in the demo one-hot fatigue, one-hot
        stock, opt-in), weeks left as a fraction of the horizon, log λ.
    """
    market = campaign.market
    types = torch.nn.functional.one_hot(campaign.user_type, market.n_types).float()
    weeks_left = torch.full_like(types[:, :1], campaign.weeks_left / market.horizon_weeks)
    log_price = dual_price.log().float()[:, None]
    return torch.cat([types, market.features[campaign.state], weeks_left, log_price], dim=1)


class TabularMarketEnv(gymnasium.Env[FloatRow, np.int64]):
    """One user of a tabular market at a fixed dual price λ.

    Action Space:
        ``Discrete(K)``: the offer to send this week; 0 sends nothing. An action outside
        ``info["action_mask"]`` is replaced by 0 and reported in ``info["masked"]``; use
        :meth:`action_masks` with maskable agents.

    Observation Space:
        ``Box(-inf, inf, (o,), float32)``: the columns of :func:`observe`.

    Starting State:
        A user type drawn by share, in a state drawn from the market's initial distribution.

    Rewards:
        Contribution margin of the week before coupon cost, minus λ times what the budget was charged;
        currency.

    Episode End:
        Terminated after ``horizon_weeks`` weeks; never truncated.

    Information:
        ``action_mask`` [K] int8 and ``masked``; after a step also ``margin`` and ``cost`` (currency) and
        ``event``.

    Arguments:
        market: the model; the demo market if None.
        dual_price: λ > 0.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, market: TabularMarket | None = None, dual_price: float = 1.0) -> None:
        self.market = TabularMarket.demo() if market is None else market
        self.dual_price = _prices(dual_price, 1)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (observation_width(self.market),), np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(self.market.n_actions)
        self._campaign: TabularCampaign | None = None

    @property
    def campaign(self) -> TabularCampaign:
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
        """Start a campaign with a random user; there are no options."""
        super().reset(seed=seed)
        self._campaign = _unlimited_campaign(self.market, 1, self.np_random)
        return self._observation(), self._info(None, False)

    def step(self, action: np.int64) -> tuple[FloatRow, float, bool, bool, dict[str, Any]]:
        """Send one offer and let the week happen."""
        masked = not bool(self.campaign.mask[0, int(action)])
        outcome = self.campaign.step(torch.tensor([0 if masked else int(action)]))
        reward = float(outcome.margin[0] - self.dual_price[0] * outcome.cost[0])
        return self._observation(), reward, self.campaign.done, False, self._info(outcome, masked)

    def _observation(self) -> FloatRow:
        return observe(self.campaign, self.dual_price)[0].numpy()

    def _info(self, outcome: TabularOutcome | None, masked: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.action_masks().astype(np.int8), "masked": masked}
        if outcome is not None:
            info |= {
                "margin": float(outcome.margin[0]),
                "cost": float(outcome.cost[0]),
                "event": int(outcome.event[0]),
            }
        return info


class TabularMarketVectorEnv(gymnasium.vector.VectorEnv[FloatRow, npt.NDArray[np.int64], Any]):
    """n users of a tabular market, each at a dual price of its own, stepped together.

    No money is shared here: the prices stand for the budget. All users' campaigns end in the same week; the
    next step starts a new campaign with new users (next-step autoreset).

    Arguments:
        num_envs: users n.
        market: the model; the demo market if None.
        dual_price: λ > 0 of all users, or [n] of each; None draws them log-uniformly for each campaign.
        price_range: lowest and highest λ drawn.

    Attributes:
        dual_price: [n] float64, λ of the campaign under way.
    """

    metadata: dict[str, Any] = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 16,
        market: TabularMarket | None = None,
        dual_price: float | npt.ArrayLike | None = None,
        price_range: tuple[float, float] = (0.3, 3.0),
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be >= 1, got {num_envs}")
        if not 0 < price_range[0] <= price_range[1] < math.inf:
            raise ValueError(f"price_range must be positive, finite and increasing, got {price_range}")
        self.market = TabularMarket.demo() if market is None else market
        self.num_envs = num_envs
        self.price_range = price_range
        self.given_price = None if dual_price is None else _prices(dual_price, num_envs)
        self.dual_price = torch.full((num_envs,), math.nan, dtype=torch.float64)
        self.single_observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, (observation_width(self.market),), np.float32
        )
        self.single_action_space = gymnasium.spaces.Discrete(self.market.n_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._campaign: TabularCampaign | None = None

    @property
    def campaign(self) -> TabularCampaign:
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
        """Start a campaign with n random users; there are no options."""
        if seed is not None:
            self._np_random, self._np_random_seed = gymnasium.utils.seeding.np_random(seed)
        self._campaign = _unlimited_campaign(self.market, self.num_envs, self.np_random)
        if self.given_price is None:
            low, high = np.log(self.price_range)
            self.dual_price = torch.from_numpy(np.exp(self.np_random.uniform(low, high, self.num_envs)))
        else:
            self.dual_price = self.given_price
        return self._observation(), {"action_mask": self.action_masks()}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[
        FloatRow, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
    ]:
        """Send offers and let the week happen; masked offers are replaced by 0, sending nothing."""
        never = np.zeros(self.num_envs, dtype=np.bool_)
        if self.campaign.done:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), info
        requested = torch.from_numpy(np.asarray(actions, dtype=np.int64))
        allowed = self.campaign.mask.gather(1, requested[:, None])[:, 0]
        outcome = self.campaign.step(torch.where(allowed, requested, 0))
        reward = (outcome.margin - self.dual_price * outcome.cost).numpy()
        info = {
            "action_mask": self.action_masks(),
            "masked": (~allowed).numpy(),
            "margin": outcome.margin.numpy(),
            "cost": outcome.cost.numpy(),
        }
        return self._observation(), reward, np.full_like(never, self.campaign.done), never, info

    def _observation(self) -> FloatRow:
        return observe(self.campaign, self.dual_price).numpy()


def _prices(dual_price: float | npt.ArrayLike, n: int) -> torch.Tensor:
    """[n] float64 prices from one number or one per user."""
    values = np.asarray(dual_price, dtype=np.float64)
    if values.shape not in {(), (n,)}:
        raise ValueError(f"dual_price must be one number or one for each of {n} users, got {values.shape}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"dual_price must be > 0 and finite, got {values.tolist()}")
    return torch.from_numpy(np.broadcast_to(values, (n,)).copy())


def _unlimited_campaign(market: TabularMarket, n_users: int, rng: np.random.Generator) -> TabularCampaign:
    """A campaign with money for the dearest event of every user in every week."""
    most = float(to_currency(market.worst_case_cost.max())) * market.horizon_weeks * n_users
    return TabularCampaign(
        market,
        n_users=n_users,
        budget=most,
        generator=torch.Generator().manual_seed(int(rng.integers(2**62))),
    )
