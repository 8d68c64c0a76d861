"""A market in which the truth under a shared budget is known: by playing it.

The demo market with coupons that are mostly noticed, so that money is really spent. Logs are campaigns of
users drawn from a large population; the truth at a price path is the mean over that population, and the truth
under a budget that of whole markets, each with its own ledger, played again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

from agents.dual_prices import DualPrices
from agents.offer_network import LearnedPolicy, OfferNetwork, OfferNetworkShape
from agents.pacing import Pacer, WeekPrices
from agents.policy import ExploringPolicy, Policy, sample
from agents.rollout import (
    CampaignResult,
    CampaignSetting,
    LoggedWeek,
    control_margin,
    log_campaign,
    open_campaign,
    play,
)
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.simulator import Simulator
from experiments.ope.budgeted_policies import offer_commitments
from experiments.ope.logged_dataset import FloatArray, LoggedDataset
from experiments.ope.price_curves import PriceCurves, estimate_curves, logging_policy_values
from experiments.ope.price_levels import target_at_levels
from experiments.stages.evaluate import logged_dataset

NOTICED = 2.0
"""Redemption bias of the world: a coupon is noticed nine times in ten."""
EXPLORATION = 0.3
"""Share of uniformly random decisions in the log."""
FIRST_PRICE, PRESSURE = 1.0, 0.5
"""Of the logged price path; see :class:`agents.dual_prices.DualPrices`."""


@dataclass(frozen=True)
class Truth:
    """What a policy makes of whole markets; per user and campaign, each a mean over R replicates.

    Attributes:
        margin: [R] margin before coupon cost.
        incremental: [R] of it over sending nothing under the same luck.
        cost: [R] charged to the budget.
        peak: [R] highest commitment of any week.
        refused: [R] share of the requests that the ledger refused.
    """

    margin: FloatArray
    incremental: FloatArray
    cost: FloatArray
    peak: FloatArray
    refused: FloatArray


@dataclass(frozen=True, eq=False)
class TrueCurves:
    """What the target makes of the whole population at price levels, without a cap; per user and campaign.

    Attributes:
        levels: [L] ascending.
        margin: [L] margin before coupon cost.
        incremental: [L] of it over sending nothing.
        cost: [L] charged to the budget.
        peak: [L] highest commitment of any week.
    """

    levels: FloatArray
    margin: FloatArray
    incremental: FloatArray
    cost: FloatArray
    peak: FloatArray

    @classmethod
    def of(cls, levels: FloatArray, truths: Sequence[Truth]) -> Self:
        """Join the truths of the levels, [L]."""
        names = ("margin", "incremental", "cost", "peak")
        return cls(levels, *(np.array([getattr(truth, name).mean() for truth in truths]) for name in names))

    def at(self, name: Literal["margin", "incremental", "cost", "peak"], level: float) -> float:
        """Return a curve's value between its levels."""
        return float(PchipInterpolator(np.log(self.levels), getattr(self, name))(np.log(level)))

    def level_of(self, budget: float, use: Literal["cost", "peak"]) -> float:
        """Return the level at which what is paid, or the highest commitment, meets a budget per user."""
        left_over = PchipInterpolator(np.log(self.levels), budget - getattr(self, use))
        low, high = np.log(self.levels[[0, -1]]).tolist()
        return float(np.exp(brentq(lambda log_level: float(left_over(log_level)), low, high)))


@dataclass(frozen=True, eq=False)
class BudgetStudy:
    """The market of the study and the policy that is judged in it.

    Attributes:
        market: with its whole population.
        world: the simulator that answers.
        policy: λ-conditioned and stochastic: the target.
        n_users: users of a log, and of a market with a budget of its own.
    """

    market: MarketSpec
    world: Simulator
    policy: Policy
    n_users: int

    @classmethod
    def build(cls, *, population: int = 20_000, n_users: int = 2_000, horizon_weeks: int = 8) -> Self:
        """Build the market and an offer network as it is before training: a softened myopic rule."""
        market = demo_market(population, horizon_weeks)
        heads = type(market.predictor.heads)(market.predictor.heads.base_rate, market.population.embedding)
        heads.load_state_dict(market.predictor.heads.state_dict())
        heads.requires_grad_(False).redemption_bias.fill_(NOTICED)
        world = replace(market.predictor, heads=heads, name="study")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = OfferNetwork(OfferNetworkShape(market.population.embedding, len(market.catalogue), 16))
        setting = CampaignSetting(world, 0, torch.arange(population), 0)
        opened = open_campaign(market, setting, UNLIMITED_BUDGET)
        network.set_scale(opened.observation(torch.full((population,), FIRST_PRICE)), market.offers)
        return cls(market, world, LearnedPolicy(network), n_users)

    @cached_property
    def behaviour(self) -> Policy:
        """The policy that logs."""
        return ExploringPolicy(self.policy, EXPLORATION)

    def path(self, level: float = 1.0) -> list[WeekPrices]:
        """Return the prices of each week at a multiple of the logged path."""
        weeks = self.market.horizon_weeks
        price = DualPrices.of_first_week(level * FIRST_PRICE, PRESSURE, weeks)
        return [
            WeekPrices(float(price.spend(left)), float(price.pressure(left))) for left in range(weeks, 0, -1)
        ]

    def everybody(self, seed: int) -> CampaignSetting:
        """Return a campaign of the whole population."""
        return CampaignSetting(self.world, 0, torch.arange(self.market.population.n_users), seed)

    def sampled(self, seed: int) -> CampaignSetting:
        """Return a campaign of ``n_users`` drawn from the population, with replacement."""
        drawn = np.random.default_rng([seed, 1]).integers(self.market.population.n_users, size=self.n_users)
        return CampaignSetting(self.world, 0, torch.from_numpy(drawn), seed)

    def truth(self, settings: Sequence[CampaignSetting], budget: float | None, pacer: Pacer) -> Truth:
        """Play the target in whole markets.

        Args:
            settings: one a replicate.
            budget: for all users together, divided by their number; None for no cap.
            pacer: sets the prices.
        """
        found = []
        for setting in settings:
            n = len(setting.users)
            cap = UNLIMITED_BUDGET if budget is None else budget * n
            found.append((n, play(self.policy, self.market, setting, cap, pacer), self._idle(setting)))
        return Truth(
            margin=np.array([result.margin.mean() for _, result, _ in found]),
            incremental=np.array([result.margin.mean() - idle for _, result, idle in found]),
            cost=np.array([result.cost.mean() for _, result, _ in found]),
            peak=np.array([result.peak_commitment / n for n, result, _ in found]),
            refused=np.array([_refused_share(result) for _, result, _ in found]),
        )

    def _idle(self, setting: CampaignSetting) -> float:
        return float(control_margin(self.market, setting).mean())

    def log(self, seed: int) -> LoggedDataset:
        """Log a campaign at the fixed path, without a cap."""
        setting = self.sampled(seed)
        weeks = log_campaign(self.behaviour, self.market, setting, self.path())
        return logged_dataset(weeks, setting, self.market)

    def capped_log(self, seed: int, budget: float) -> tuple[LoggedDataset, int]:
        """Log a campaign whose users share a budget, and return how many requests were refused, too.

        What is logged is what a shop's log would hold: the offer chosen, with its probability, and what came
        of it, whether the ledger could pay for it or not.

        Args:
            seed: of the campaign.
            budget: for all users together, divided by their number.
        """
        setting = self.sampled(seed)
        campaign = open_campaign(self.market, setting, budget * self.n_users)
        chooser = torch.Generator().manual_seed(seed ^ 0x5EED)
        weeks: list[LoggedWeek] = []
        refused = 0
        path = self.path()
        for week, prices in enumerate(path):
            observation, mask = _observed(campaign, prices), campaign.mask
            probabilities = self.behaviour.probabilities(observation, mask).double()
            probabilities /= probabilities.sum(dim=1, keepdim=True)
            offer = sample(probabilities, torch.rand(campaign.n_users, generator=chooser))
            outcome = campaign.step(offer)
            refused += int(outcome.refused.sum())
            following = _observed(campaign, path[min(week + 1, len(path) - 1)])
            weeks.append(
                LoggedWeek(
                    observation=observation.numpy(),
                    mask=mask.numpy(),
                    probabilities=probabilities.numpy(),
                    action=offer.numpy(),
                    reward=outcome.margin.double().numpy(),
                    cost=outcome.cost.numpy(),
                    next_observation=following.numpy(),
                    prices=prices,
                )
            )
        return logged_dataset(weeks, setting, self.market), refused

    def idle_rewards(self, seed: int) -> FloatArray:
        """Return the margin of each user-week of a log, had nobody been sent anything: the same luck, [N]."""
        campaign = open_campaign(self.market, self.sampled(seed), 0.0)
        weeks = []
        while not campaign.done:
            weeks.append(campaign.step().margin.double().numpy())
        return np.stack(weeks, axis=1).ravel()

    def use(self, dataset: LoggedDataset) -> FloatArray:
        """Return what each logged step adds to its user's commitment, [N]."""
        return offer_commitments(dataset, self.market.offers)

    def curves(
        self,
        dataset: LoggedDataset,
        levels: Sequence[float],
        *,
        rng: np.random.Generator,
        n_bootstrap: int = 500,
    ) -> PriceCurves:
        """Estimate the target's curves from a log."""
        return estimate_curves(
            dataset,
            target_at_levels(self.policy, dataset),
            levels=levels,
            values=logging_policy_values(dataset, rng=rng),
            rng=rng,
            use=self.use(dataset),
            n_bootstrap=n_bootstrap,
        )


def _observed(campaign: Campaign, prices: WeekPrices) -> torch.Tensor:
    return campaign.observation(torch.full((campaign.n_users,), prices.spend), prices.pressure)


def _refused_share(result: CampaignResult) -> float:
    asked = result.refused + int(result.sent[:, 1:].sum())
    return result.refused / asked if asked else 0.0
