"""Campaigns played by a policy: with pacing under a shared budget, or at a fixed price path for logging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agents.pacing import PriceRange, pace
from agents.policy import Policy, sample
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.market import Outcome
from envs.money import to_currency
from envs.simulator import Simulator

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CampaignSetting:
    """One campaign to be played by every policy alike.

    Attributes:
        world: the simulator that answers.
        start: position in the population's start weeks.
        users: [n] users taking part.
        seed: of all chance; the same for every policy, so that they share their luck.
    """

    world: Simulator
    start: int
    users: torch.Tensor
    seed: int


@dataclass(frozen=True)
class CampaignResult:
    """What a policy made of a campaign; money in the log's currency.

    Attributes:
        margin: [n] contribution margin before coupon cost, per user: of each week the expected one, given
            all that had happened before the week. Same mean as the realised margin, and free of the noise
            of the week's baskets.
        cost: [n] charged to the budget, per user.
        budget: for all users together.
        weekly_spend: [T] charged to the budget per week.
        dual_price: [T] λ per week.
        offers_sent: [K] how often each offer was sent.
        refused: offers asked for that the ledger could not cover.
        peak_commitment: largest spent + reserved at any time, currency; it peaks right after issuing.
    """

    margin: DoubleArray
    cost: DoubleArray
    budget: float
    weekly_spend: DoubleArray
    dual_price: DoubleArray
    offers_sent: npt.NDArray[np.int64]
    refused: int
    peak_commitment: float


def play(
    policy: Policy, market: MarketSpec, setting: CampaignSetting, budget: float, prices: PriceRange
) -> CampaignResult:
    """Play one campaign under a shared budget with weekly re-solved dual price.

    Args:
        policy: λ-conditioned.
        market: the market.
        setting: world, users and luck.
        budget: currency for all users.
        prices: range of the dual price.
    """
    campaign = open_campaign(market, setting, budget)
    n, device = campaign.n_users, campaign.device
    margin = torch.zeros(n, dtype=torch.float64, device=device)
    cost = torch.zeros(n, dtype=torch.float64, device=device)
    sent = torch.zeros(len(market.catalogue), dtype=torch.int64, device=device)
    weekly, path = [], []
    refused, peak = 0, 0.0
    # Its own stream: what a policy draws must not shift the market's luck.
    chooser = torch.Generator(device=device).manual_seed(setting.seed ^ 0x5EED)
    while not campaign.done:
        price = pace(policy, campaign, prices)
        observation = campaign.observation(torch.full((n,), price, device=device))
        probabilities = policy.probabilities(observation, campaign.mask)
        offer = sample(probabilities, torch.rand(n, generator=chooser, device=device))
        outcome, expected = campaign.step_with_expectation(offer)
        margin += expected.margin
        cost += outcome.cost
        sent += torch.bincount(outcome.offer, minlength=len(sent))
        refused += int(outcome.refused.sum())
        # After issuing: redemptions not yet paid, nothing yet released.
        committed = campaign.state.ledger.spent - outcome.discount.sum() + outcome.reserved.sum()
        peak = max(peak, float(to_currency(committed)))
        weekly.append(float(outcome.cost.sum()))
        path.append(price)
    return CampaignResult(
        margin=margin.cpu().numpy(),
        cost=cost.cpu().numpy(),
        budget=budget,
        weekly_spend=np.array(weekly),
        dual_price=np.array(path),
        offers_sent=sent.cpu().numpy(),
        refused=refused,
        peak_commitment=peak,
    )


def control_margin(market: MarketSpec, setting: CampaignSetting) -> DoubleArray:
    """Return the margin per user, [n], if nothing is sent, under the same luck; expected as in `play`."""
    campaign = open_campaign(market, setting, 0.0)
    margin = torch.zeros(campaign.n_users, dtype=torch.float64, device=campaign.device)
    while not campaign.done:
        _, expected = campaign.step_with_expectation()
        margin += expected.margin
    return margin.cpu().numpy()


@dataclass(frozen=True)
class LoggedWeek:
    """One week of logged decisions for n users, as arrays.

    Attributes:
        observation: [n, o] float32.
        mask: [n, K] bool.
        probabilities: [n, K] float64 of the behaviour policy.
        action: [n] int64.
        reward: [n] margin before coupon cost, currency.
        cost: [n] charged to the budget, currency.
        next_observation: [n, o] float32.
        dual_price: λ of the week.
    """

    observation: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    probabilities: DoubleArray
    action: npt.NDArray[np.int64]
    reward: DoubleArray
    cost: DoubleArray
    next_observation: npt.NDArray[np.float32]
    dual_price: float


def log_campaign(
    behaviour: Policy, market: MarketSpec, setting: CampaignSetting, price_path: Sequence[float]
) -> list[LoggedWeek]:
    """Play a campaign at a fixed price path, without a cap, and log every decision.

    At a fixed path users do not touch each other, which off-policy evaluation per user needs.

    Args:
        behaviour: policy with full support.
        market: the market.
        setting: world, users and luck.
        price_path: λ of each week, T of them.
    """
    campaign = open_campaign(market, setting, UNLIMITED_BUDGET)
    n = campaign.n_users
    chooser = torch.Generator(device=campaign.device).manual_seed(setting.seed ^ 0x5EED)
    weeks: list[LoggedWeek] = []
    for week, price in enumerate(price_path):
        prices = torch.full((n,), price, device=campaign.device)
        observation, mask = campaign.observation(prices), campaign.mask
        probabilities = behaviour.probabilities(observation, mask).double()
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
        offer = sample(probabilities, torch.rand(n, generator=chooser, device=campaign.device))
        outcome = campaign.step(offer)
        coming = price_path[min(week + 1, len(price_path) - 1)]
        following = campaign.observation(torch.full((n,), coming, device=campaign.device))
        weeks.append(_logged(observation, mask, probabilities, offer, outcome, following, price))
    return weeks


def value_at_prices(
    policy: Policy, market: MarketSpec, setting: CampaignSetting, price_path: Sequence[float]
) -> tuple[DoubleArray, DoubleArray]:
    """Return margin and cost per user, [n] each, at a fixed price path without a cap: the truth for OPE.

    Both are expected values given what had happened before each week, as in `play`, to keep noise low.
    """
    campaign = open_campaign(market, setting, UNLIMITED_BUDGET)
    n, device = campaign.n_users, campaign.device
    margin = torch.zeros(n, dtype=torch.float64, device=device)
    cost = torch.zeros(n, dtype=torch.float64, device=device)
    chooser = torch.Generator(device=device).manual_seed(setting.seed ^ 0x5EED)
    for price in price_path:
        observation = campaign.observation(torch.full((n,), price, device=device))
        probabilities = policy.probabilities(observation, campaign.mask)
        offer = sample(probabilities, torch.rand(n, generator=chooser, device=device))
        outcome, expected = campaign.step_with_expectation(offer)
        margin += expected.margin
        cost += expected.discount + to_currency(outcome.delivery)
    return margin.cpu().numpy(), cost.cpu().numpy()


def open_campaign(market: MarketSpec, setting: CampaignSetting, budget: float) -> Campaign:
    """Return the campaign of a setting."""
    return Campaign(
        market, setting.world, start=setting.start, users=setting.users, budget=budget, seed=setting.seed
    )


def _logged(
    observation: torch.Tensor,
    mask: torch.Tensor,
    probabilities: torch.Tensor,
    offer: torch.Tensor,
    outcome: Outcome,
    following: torch.Tensor,
    price: float,
) -> LoggedWeek:
    return LoggedWeek(
        observation=observation.cpu().numpy(),
        mask=mask.cpu().numpy(),
        probabilities=probabilities.cpu().numpy(),
        action=offer.cpu().numpy(),
        reward=outcome.margin.double().cpu().numpy(),
        cost=outcome.cost.cpu().numpy(),
        next_observation=following.cpu().numpy(),
        dual_price=price,
    )
