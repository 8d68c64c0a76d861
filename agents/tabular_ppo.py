"""PPO on the tabular market: one network, conditioned on the dual price, read out as decision rules.

Stable-Baselines3 does the learning (MaskablePPO of sb3-contrib). The states are so few that the trained
network can be asked about each of them: what it would do is a table of decision rules, which
:func:`envs.tabular_solution.evaluate` values exactly and :class:`agents.tabular.PacedRules` paces like
the rules of dynamic programming.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.shared_vec_env import SharedVecEnv
from envs.tabular_campaign import TabularCampaign
from envs.tabular_env import TabularMarketVectorEnv, observe
from envs.tabular_market import TabularMarket
from envs.tabular_solution import evaluate, no_offer_rule

FINAL_RATE = 0.02
"""Share of the peak learning rate that the last rollouts keep."""


@dataclass(frozen=True)
class TabularPPOConfig:
    """How the policy is trained; names as in Schulman et al. 2017.

    Attributes:
        n_rollouts: campaigns played; the network learns after each.
        n_users: users in a campaign.
        learning_rate: peak of Adam's, falling linearly to FINAL_RATE of it.
        n_epochs: passes over each rollout.
        batch_size: user-weeks in a gradient step.
        gae_lambda: λ of generalised advantage estimation. Rewards are expectations, so what noise there is
            comes with the next states; a short λ leaves them to the critic.
        entropy: weight of the entropy bonus, kept to the end. Offers whose ranks swap with the dual price
            differ by little, and without the bonus those in the middle are given up before they can be told
            apart; the greedy reading of the network takes out what exploration is left.
        clip_range: of the probability ratio.
        hidden: width of the two hidden layers.
        low_price: lowest dual price λ in training; a budget is served well if its own price
            (:func:`envs.tabular_solution.lagrangian_bound`) lies inside the range.
        high_price: highest.

    Raises:
        ValueError: a number is out of its range.
    """

    n_rollouts: int = 100
    n_users: int = 1024
    learning_rate: float = 3e-3
    n_epochs: int = 4
    batch_size: int = 8192
    gae_lambda: float = 0.5
    entropy: float = 0.04
    clip_range: float = 0.2
    hidden: int = 64
    low_price: float = 0.4
    high_price: float = 2.0

    def __post_init__(self) -> None:
        for name in ("n_rollouts", "n_users", "n_epochs", "batch_size", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda must be in [0, 1], got {self.gae_lambda}")
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"entropy must be >= 0 and finite, got {self.entropy}")
        if not 0 < self.low_price < self.high_price < math.inf:
            raise ValueError(
                f"dual prices must be positive, finite and increasing, got {self.low_price} to "
                f"{self.high_price}"
            )


class TabularTraining(SharedVecEnv):
    """n users of a tabular market as a Stable-Baselines3 vector environment, each at a dual price λ.

    Every episode is one campaign: all users start and end together, each at a λ drawn log-uniformly. The
    reward is in expectation over the week's event, as the model of the market is at hand in training:

        (E[margin | state, offer] − λ·E[cost | state, offer] − E[margin of the control arm]) / (1 + λ)

    The control arm is a user of the same type to whom nothing is ever sent; its margin depends on type and
    week alone. Neither it nor the scale, a number for each λ, changes which policy is best; the critic is
    left with the effect of offers, in numbers of the same size at every price.

    Args:
        market: the model.
        config: of which users and prices are used.
        seed: of users, prices and luck.
    """

    def __init__(self, market: TabularMarket, config: TabularPPOConfig, *, seed: int) -> None:
        self.market = market
        self.users = TabularMarketVectorEnv(
            config.n_users, market, price_range=(config.low_price, config.high_price)
        )
        self.control = control_margin(market)
        self.render_mode = None
        super().__init__(config.n_users, self.users.single_observation_space, self.users.single_action_space)
        self._actions = np.zeros(config.n_users, dtype=np.int64)
        self._seed: int | None = seed

    def reset(self) -> npt.NDArray[np.float32]:  # type: ignore[override]
        """Open a campaign and return its first observations, [n, o]."""
        observation, _ = self.users.reset(seed=self._seed)
        self._seed = None  # later campaigns go on with the same stream
        return observation

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Remember the offers, [n]."""
        self._actions = np.asarray(actions, dtype=np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        """Let the week happen; at the campaign's end open the next one."""
        campaign = self.users.campaign
        week, user_type, price = campaign.week, campaign.user_type, self.users.dual_price
        row = user_type, torch.from_numpy(self._actions), campaign.state
        observation, _, done, _, _ = self.users.step(self._actions)
        payoff = self.market.expected_margin[row] - price * self.market.expected_cost[row]
        reward = (payoff - self.control[week, user_type]) / (1.0 + price)
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        if campaign.done:
            infos = [{"terminal_observation": row, "TimeLimit.truncated": False} for row in observation]
            observation = self.reset()
        return observation, reward.float().numpy(), done, infos

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return what may be sent to whom, [n, K]."""
        return self.users.action_masks()


def control_margin(market: TabularMarket) -> torch.Tensor:
    """Return the expected margin of a user to whom nothing is ever sent, [T, G] currency by week and type."""
    occupancy = evaluate(market, no_offer_rule(market)).occupancy
    margin = torch.einsum("tgsk,gks->tg", occupancy, market.expected_margin)
    users = occupancy.sum(dim=(-1, -2))
    return torch.where(users > 0, margin / users, 0.0)


def train_tabular_ppo(
    market: TabularMarket, config: TabularPPOConfig, *, seed: int
) -> MaskableActorCriticPolicy:
    """Train one policy for all dual prices of the configured range.

    Equal seeds give equal weights on one machine. Stable-Baselines3 seeds the global generators.

    Args:
        market: the model.
        config: how to train.
        seed: of network, campaigns, sampling and minibatches.
    """
    model = MaskablePPO(
        "MlpPolicy",
        TabularTraining(market, config, seed=seed),
        # SB3 counts a rollout's steps before it learns from them: without the floor the last one is lost.
        learning_rate=lambda remaining: config.learning_rate * max(remaining, FINAL_RATE),
        n_steps=market.horizon_weeks,
        batch_size=min(config.batch_size, config.n_users * market.horizon_weeks),
        n_epochs=config.n_epochs,
        gamma=1.0,  # campaigns are finite, and later weeks count as much
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.entropy,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=seed,
        device="cpu",
    )
    model.learn(config.n_rollouts * config.n_users * market.horizon_weeks)
    return model.policy


@torch.no_grad()
def network_rules(
    market: TabularMarket, policy: MaskableActorCriticPolicy, prices: torch.Tensor, *, greedy: bool = True
) -> torch.Tensor:
    """Return what a network does in every week, type and state at given dual prices.

    Args:
        market: the model that it was trained on, or one of the same types, features and actions.
        policy: the network.
        prices: [L] dual prices λ > 0.
        greedy: all probability on the likeliest offer, which takes out the exploration that training left;
            else the network's own probabilities.

    Returns:
        [L, T, G, S, K] float64; 0 where masked.

    Raises:
        ValueError: a price is not positive and finite, or the network does not fit the market.
    """
    if prices.ndim != 1 or not bool((torch.isfinite(prices) & (prices > 0)).all()):
        raise ValueError(f"prices must be [L] numbers > 0 and finite, got {prices.tolist()}")
    everyone = _users_in_each_state(market, len(prices))
    price = prices.double().repeat_interleave(market.n_types * market.n_states)
    weeks = []
    for week in range(market.horizon_weeks):
        everyone.week = week
        mask = market.allowed[week, everyone.user_type, everyone.state]
        observation = observe(everyone, price)
        if observation.shape[1:] != policy.observation_space.shape:
            raise ValueError(
                f"the network reads observations of shape {policy.observation_space.shape}, the market has "
                f"{tuple(observation.shape[1:])}"
            )
        distribution: Any = policy.get_distribution(observation, mask.numpy()).distribution
        logits = distribution.logits.double().masked_fill(~mask, -torch.inf)
        likeliest = torch.nn.functional.one_hot(logits.argmax(dim=-1), market.n_actions).double()
        weeks.append(likeliest if greedy else logits.softmax(dim=-1))
    by_week = torch.stack(weeks).view(
        market.horizon_weeks, len(prices), market.n_types, market.n_states, market.n_actions
    )
    return by_week.transpose(0, 1).contiguous()


def _users_in_each_state(market: TabularMarket, n_copies: int) -> TabularCampaign:
    """A campaign of n_copies·G·S users, one of each type in each state, to be looked at and not played."""
    n_rows = market.n_types * market.n_states
    everyone = TabularCampaign(market, n_users=n_copies * n_rows, budget=0.0, generator=torch.Generator())
    everyone.user_type = torch.arange(market.n_types).repeat_interleave(market.n_states).repeat(n_copies)
    everyone.state = torch.arange(market.n_states).repeat(market.n_types * n_copies)
    return everyone
