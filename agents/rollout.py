"""Campaigns played by a policy: paced under a shared budget, or at a fixed price path for logging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agents.adaptive import AdaptivePolicy
from agents.pacing import Pacer, WeekPrices
from agents.policy import Policy, sample
from agents.visit_value import VisitValue
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
        committed: [T] spent and reserved once the week's offers were sent, the highest that it gets.
        dual_price: [T] λ per week.
        pressure: [T] of the prices per week; see :class:`agents.dual_prices.DualPrices`.
        sent: [n, K] how often each offer was sent to each user.
        refused: offers asked for that the ledger could not cover.
    """

    margin: DoubleArray
    cost: DoubleArray
    budget: float
    weekly_spend: DoubleArray
    committed: DoubleArray
    dual_price: DoubleArray
    pressure: DoubleArray
    sent: npt.NDArray[np.int64]
    refused: int

    @property
    def offers_sent(self) -> npt.NDArray[np.int64]:
        """[K] how often each offer was sent."""
        total: npt.NDArray[np.int64] = self.sent.sum(axis=0)
        return total

    @property
    def peak_commitment(self) -> float:
        """Largest spent + reserved at any time, currency."""
        return float(self.committed.max())


def play(
    policy: Policy,
    market: MarketSpec,
    setting: CampaignSetting,
    budget: float,
    pacer: Pacer,
    visit_value: VisitValue | None = None,
) -> CampaignResult:
    """Play one campaign under a shared budget.

    Args:
        policy: λ-conditioned; one that learns (:class:`agents.adaptive.AdaptivePolicy`) starts from a fresh
            copy.
        market: the market.
        setting: world, users and luck.
        budget: currency for all users.
        pacer: sets the prices of each week.
        visit_value: takes the luck of the visits out of ``margin``; see :func:`expected_margin`.
    """
    campaign = open_campaign(market, setting, budget)
    n, device = campaign.n_users, campaign.device
    learner = policy.fresh(setting.seed) if isinstance(policy, AdaptivePolicy) else None
    acting = policy if learner is None else learner
    margin = torch.zeros(n, dtype=torch.float64, device=device)
    cost = torch.zeros(n, dtype=torch.float64, device=device)
    sent = torch.zeros((n, len(market.catalogue)), dtype=torch.int64, device=device)
    weeks: dict[str, list[float]] = {name: [] for name in ("spend", "committed", "price", "pressure")}
    refused = 0
    # Its own stream: what a policy draws must not shift the market's luck.
    chooser = torch.Generator(device=device).manual_seed(setting.seed ^ 0x5EED)
    while not campaign.done:
        prices = pacer.prices(acting, campaign)
        observation = _observation(campaign, prices)
        probabilities = acting.probabilities(observation, campaign.mask)
        offer = sample(probabilities, torch.rand(n, generator=chooser, device=device))
        outcome, of_week = expected_margin(campaign, offer, visit_value)
        if learner is not None:
            learner.learn(observation, outcome.offer, outcome.margin, outcome.cost)
        margin += of_week
        cost += outcome.cost
        sent.scatter_add_(1, outcome.offer[:, None], torch.ones_like(outcome.offer)[:, None])
        refused += int(outcome.refused.sum())
        # After issuing: redemptions not yet paid, nothing yet released.
        committed = campaign.state.ledger.spent - outcome.discount.sum() + outcome.reserved.sum()
        weeks["spend"].append(float(outcome.cost.sum()))
        weeks["committed"].append(float(to_currency(committed)))
        weeks["price"].append(prices.spend)
        weeks["pressure"].append(prices.pressure)
    return CampaignResult(
        margin=margin.cpu().numpy(),
        cost=cost.cpu().numpy(),
        budget=budget,
        weekly_spend=np.array(weeks["spend"]),
        committed=np.array(weeks["committed"]),
        dual_price=np.array(weeks["price"]),
        pressure=np.array(weeks["pressure"]),
        sent=sent.cpu().numpy(),
        refused=refused,
    )


def expected_margin(
    campaign: Campaign, offer: torch.Tensor | None, visit_value: VisitValue | None
) -> tuple[Outcome, torch.Tensor]:
    """Let a week happen, and return its expected margin per user, [n], without the luck of the visit.

    Who came by chance comes more often in the weeks after, and buys there; that is worth many times what an
    offer does. The week's visit has a known probability p, so A_v - (p·A_1 + (1 - p)·A_0), what the visit's
    luck v adds later, has mean zero whatever A is, and is taken off: a martingale control variate (Burch et
    al. 2018, AAAI, call it AIVAT). It shifts no mean.

    Args:
        campaign: before the week.
        offer: [n] to send; None for nothing.
        visit_value: A; None takes nothing off.
    """
    after = None if visit_value is None else visit_value.after(campaign)
    outcome, expected = campaign.step_with_expectation(offer)
    margin = expected.margin.double()
    if after is not None:
        realised = torch.where(outcome.visited, after[:, 1], after[:, 0])
        margin = margin - (realised - torch.lerp(after[:, 0], after[:, 1], expected.visit))
    return outcome, margin


def control_margin(
    market: MarketSpec, setting: CampaignSetting, visit_value: VisitValue | None = None
) -> DoubleArray:
    """Return the margin per user, [n], if nothing is sent, under the same luck; expected as in `play`."""
    campaign = open_campaign(market, setting, 0.0)
    margin = torch.zeros(campaign.n_users, dtype=torch.float64, device=campaign.device)
    while not campaign.done:
        margin += expected_margin(campaign, None, visit_value)[1]
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
        prices: of the week.
    """

    observation: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    probabilities: DoubleArray
    action: npt.NDArray[np.int64]
    reward: DoubleArray
    cost: DoubleArray
    next_observation: npt.NDArray[np.float32]
    prices: WeekPrices


def log_campaign(
    behaviour: Policy, market: MarketSpec, setting: CampaignSetting, price_path: Sequence[WeekPrices]
) -> list[LoggedWeek]:
    """Play a campaign at a fixed price path, without a cap, and log every decision.

    At a fixed path users do not touch each other, which off-policy evaluation per user needs.

    Args:
        behaviour: policy with full support.
        market: the market.
        setting: world, users and luck.
        price_path: prices of each week, T of them.
    """
    campaign = open_campaign(market, setting, UNLIMITED_BUDGET)
    n = campaign.n_users
    chooser = torch.Generator(device=campaign.device).manual_seed(setting.seed ^ 0x5EED)
    weeks: list[LoggedWeek] = []
    for week, prices in enumerate(price_path):
        observation, mask = _observation(campaign, prices), campaign.mask
        probabilities = behaviour.probabilities(observation, mask).double()
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
        offer = sample(probabilities, torch.rand(n, generator=chooser, device=campaign.device))
        outcome = campaign.step(offer)
        coming = price_path[min(week + 1, len(price_path) - 1)]
        following = _observation(campaign, coming)
        weeks.append(_logged(observation, mask, probabilities, offer, outcome, following, prices))
    return weeks


def _observation(campaign: Campaign, prices: WeekPrices) -> torch.Tensor:
    price = torch.full((campaign.n_users,), prices.spend, device=campaign.device)
    return campaign.observation(price, prices.pressure)


def value_at_prices(
    policy: Policy, market: MarketSpec, setting: CampaignSetting, price_path: Sequence[WeekPrices]
) -> tuple[DoubleArray, DoubleArray]:
    """Return margin and cost per user, [n] each, at a fixed price path without a cap: the truth for OPE.

    Both are expected values given what had happened before each week, as in `play`, to keep noise low.
    """
    campaign = open_campaign(market, setting, UNLIMITED_BUDGET)
    n, device = campaign.n_users, campaign.device
    margin = torch.zeros(n, dtype=torch.float64, device=device)
    cost = torch.zeros(n, dtype=torch.float64, device=device)
    chooser = torch.Generator(device=device).manual_seed(setting.seed ^ 0x5EED)
    for prices in price_path:
        observation = _observation(campaign, prices)
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
    prices: WeekPrices,
) -> LoggedWeek:
    return LoggedWeek(
        observation=observation.cpu().numpy(),
        mask=mask.cpu().numpy(),
        probabilities=probabilities.cpu().numpy(),
        action=offer.cpu().numpy(),
        reward=outcome.margin.double().cpu().numpy(),
        cost=outcome.cost.cpu().numpy(),
        next_observation=following.cpu().numpy(),
        prices=prices,
    )
