"""Pacing by forecast: play the campaign through beforehand, then keep to what was seen to work.

The shop's own predictor stands in for the users. From the campaign as it stands the rest of it is played many
times at different prices, under a budget and reserves scaled to a sample of the users, and the prices that
bring the most margin are kept, together with the spend that they led to. During the campaign λ is corrected
where money goes otherwise than planned, by re-solving each week's plan or by a PID controller.

No price is right from first principles: how much reserve a coupon blocks, when a frequency cap bites and what
fatigue costs depend on the policy that is paced. A policy played through in the predictor's world meets all
of them. All policies are planned alike, so that none is ahead by its pacing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import torch

from agents.dual_prices import DualPrices, surcharged
from agents.pacing import (
    BISECTIONS,
    Pacer,
    PriceRange,
    WeekPrices,
    choose,
    expected_commitment,
    lowest_price,
)
from agents.policy import Policy, sample
from agents.visit_value import VisitValue, incremental_margin
from envs.campaign import Campaign
from envs.ledger import Ledger
from envs.money import to_currency


class ReserveRule(StrEnum):
    """What gives way in a week in which all that is asked for could not be reserved.

    PRICE raises λ, so that everything is asked for less. SURCHARGE raises the multiplier of that week alone
    (:func:`agents.dual_prices.surcharged`), which is felt by what reserves much: coupons.
    """

    PRICE = "price"
    SURCHARGE = "surcharge"


FAMILIES = ((0.3, ReserveRule.PRICE), (1.0, ReserveRule.PRICE), (0.3, ReserveRule.SURCHARGE))
"""Pressures and rules that a plan chooses among."""
LEVELS = 6
"""λ tried at first between the range's ends, evenly in the logarithm."""
REFINED = 5
"""λ tried then between the neighbours of the best."""
RAISE = 4.0
"""By what λ or the surcharge is raised at a time in search of one at which the reserve suffices."""
MOST_RAISES = 12
LEAST_SURCHARGE = 0.01
"""The surcharge that is tried first, as a share of λ."""
PLANNED_BISECTIONS = 6
"""Within a plan, λ to four percent will do; in the campaign itself it is found more closely."""
CORRECTION = PriceRange(0.2, 8.0)
"""Furthest that λ goes from the plan's, as a multiple."""


@dataclass(frozen=True)
class SpendPlan:
    """Prices for a campaign and what following them led to in the predictor's world.

    Attributes:
        prices: [T] of each week, to start from; for weeks that had passed those of the first one planned.
        rule: what gives way where all that is asked for could not be reserved.
        reached: [T] the prices with that done.
        spend: [T] currency charged in each week, for all users of the campaign; 0 for weeks that had passed.
        margin: expected over that of sending nothing, now and by way of visits later, currency.
        already: currency that had been spent when the plan was made.
        tried: for each play λ of the first week, pressure, rule, margin and spend.
    """

    prices: tuple[WeekPrices, ...]
    rule: ReserveRule
    reached: tuple[WeekPrices, ...]
    spend: npt.NDArray[np.float64]
    margin: float
    already: float
    tried: tuple[tuple[float, float, ReserveRule, float, float], ...]

    def spent_by(self, week: int) -> float:
        """Return what is spent before a week if all goes as planned, currency."""
        return self.already + float(self.spend[:week].sum())


def twin(campaign: Campaign, places: torch.Tensor, seed: int) -> Campaign:
    """Return what the shop knows of some users of a campaign, as a campaign in the predictor's own world.

    What users are like and the shop cannot see (fatigue, receptivity) is replaced by what it believes. Their
    share of the money that is neither spent nor reserved is theirs.

    Args:
        campaign: as it stands; not changed.
        places: [m] places of the users among the campaign's.
        seed: of the twin's luck.
    """
    state = campaign.state
    copy = Campaign(
        campaign.spec,
        campaign.spec.predictor,
        start=campaign.start,
        users=campaign.users[places],
        budget=0.0,
        seed=seed,
    )
    coupons = state.coupons.rows(places)
    reserved = coupons.liability.sum()
    free = (state.ledger.available.double() * (len(places) / campaign.n_users)).long()
    copy.restore(
        replace(
            copy.state,
            history=state.history.rows(places),
            embedding=state.embedding[places],
            fatigue=state.believed_fatigue[places],
            believed_fatigue=state.believed_fatigue[places],
            opted_in=state.opted_in[places],
            messages=state.messages[places],
            coupons=coupons,
            deals=state.deals.rows(places),
            ledger=Ledger(free + reserved, torch.zeros_like(reserved), reserved),
            week=state.week,
        )
    )
    return copy


def plan_spend(
    policy: Policy,
    campaign: Campaign,
    prices: PriceRange,
    visit_value: VisitValue,
    *,
    n_users: int = 400,
    seed: int = 0,
) -> SpendPlan:
    """Return the prices that bring a policy the most margin in the predictor's world, and the spend then.

    Args:
        policy: to be paced.
        campaign: as it stands.
        prices: range of λ.
        visit_value: what visits are worth later; it spares the plan the noise of sampled ones.
        n_users: users of the twin, drawn without replacement; all if there are fewer.
        seed: of the draw and the twin's luck, the same for every play.
    """
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(campaign.n_users, generator=generator)[:n_users].to(campaign.device)
    copy = twin(campaign, places, seed)
    start = copy.state
    tried: dict[tuple[float, float, ReserveRule], _Played] = {}

    def play(level: float, pressure: float, rule: ReserveRule) -> None:
        copy.restore(start)
        prices = DualPrices.of_first_week(level, pressure, campaign.spec.horizon_weeks)
        tried[level, pressure, rule] = _play(policy, copy, prices, rule, visit_value, seed)

    coarse = np.geomspace(prices.low, prices.high, LEVELS)
    for family in FAMILIES:
        for level in coarse:
            play(float(level), *family)
    best_level, pressure, rule = max(tried, key=lambda key: tried[key].margin)
    step = float(coarse[1] / coarse[0])
    low, high = max(best_level / step, prices.low), min(best_level * step, prices.high)
    for level in np.geomspace(low, high, REFINED + 2)[1:-1]:
        play(float(level), pressure, rule)
    best = max(tried.values(), key=lambda played: played.margin)
    scale, passed = campaign.n_users / len(places), campaign.state.week
    return SpendPlan(
        prices=(*(best.prices[:1] * passed), *best.prices),
        rule=rule,
        reached=(*(best.reached[:1] * passed), *best.reached),
        spend=np.concatenate([np.zeros(passed), best.spend]) * scale,
        margin=best.margin * scale,
        already=float(to_currency(campaign.state.ledger.spent)),
        tried=tuple(
            (*key, played.margin * scale, float(played.spend.sum()) * scale) for key, played in tried.items()
        ),
    )


@dataclass(frozen=True)
class _Played:
    """The weeks of a campaign that were left, as they were played."""

    margin: float
    spend: npt.NDArray[np.float64]
    prices: tuple[WeekPrices, ...]
    reached: tuple[WeekPrices, ...]


def _play(
    policy: Policy,
    campaign: Campaign,
    prices: DualPrices,
    rule: ReserveRule,
    visit_value: VisitValue,
    seed: int,
) -> _Played:
    """Play what is left of a campaign at planned prices."""
    generator = torch.Generator(device=campaign.device).manual_seed(seed)
    margin, spend = 0.0, []
    planned: list[WeekPrices] = []
    reached: list[WeekPrices] = []
    while not campaign.done:
        left = campaign.weeks_left
        planned.append(WeekPrices(float(prices.spend(left)), float(prices.pressure(left))))
        reached.append(within_reserve(policy, campaign, planned[-1], rule, PLANNED_BISECTIONS))
        chosen = choose(policy, campaign, reached[-1])
        luck = torch.rand(campaign.n_users, generator=generator, device=campaign.device)
        after = visit_value.after(campaign)
        outcome, expected = campaign.step_with_expectation(sample(chosen, luck))
        margin += float(incremental_margin(expected, after).double().sum())
        spend.append(float((expected.discount + to_currency(outcome.delivery)).sum()))
    return _Played(margin, np.array(spend), tuple(planned), tuple(reached))


def reservable(campaign: Campaign) -> float:
    """Return how much liability the coming week may take on at most, currency.

    A coupon of w weeks that takes all that is free leaves nothing for the w - 1 weeks after it. So a week
    gets 1/w of what is not spent, with w the longest validity, and what is free in the last one.
    """
    ledger = campaign.state.ledger
    free = float(to_currency(ledger.available))
    weeks = min(int(campaign.spec.offers.validity_weeks.max()), campaign.weeks_left)
    return min(free, float(to_currency(ledger.budget - ledger.spent)) / max(weeks, 1))


def within_reserve(
    policy: Policy,
    campaign: Campaign,
    prices: WeekPrices,
    rule: ReserveRule,
    bisections: int = BISECTIONS,
) -> WeekPrices:
    """Return the prices, raised where needed until the worst case of all requests can be reserved.

    Args:
        policy: λ-conditioned.
        campaign: before the week.
        prices: to start from.
        rule: what is raised.
        bisections: of the logarithm of what is raised.
    """
    free = reservable(campaign)
    longest = int(campaign.spec.offers.validity_weeks.max())

    def raised(by: float) -> WeekPrices:
        if rule is ReserveRule.PRICE:
            return replace(prices, spend=prices.spend + by)
        total = surcharged(prices.spend, prices.pressure, by, campaign.weeks_left, longest)
        return WeekPrices(*(float(price) for price in total))

    def holds(by: float) -> bool:
        return expected_commitment(campaign, choose(policy, campaign, raised(by)))[1] <= free

    if holds(0.0):
        return prices
    low, high = 0.0, LEAST_SURCHARGE * prices.spend
    for _ in range(MOST_RAISES):
        if holds(high):
            break
        low, high = high, RAISE * high
    for _ in range(bisections):
        middle = math.sqrt(low * high) if low else 0.5 * high
        if holds(middle):
            high = middle
        else:
            low = middle
    return raised(high)


@dataclass(frozen=True)
class ReSolvedPacing:
    """Follow a plan, each week's spend re-solved: its share of the money left is what the plan's was.

    Attributes:
        plan: to follow.
    """

    plan: SpendPlan

    def prices(self, policy: Policy, campaign: Campaign) -> WeekPrices:
        """Return the lowest λ near the plan's at which the week's predicted cost keeps to its share."""
        ledger, week = campaign.state.ledger, campaign.state.week
        planned = self.plan.reached[week]
        left = float(to_currency(ledger.budget - ledger.spent))
        free = reservable(campaign)
        planned_left = float(to_currency(ledger.budget)) - self.plan.spent_by(week)
        share = self.plan.spend[week] / planned_left if planned_left > 0 else 1.0
        target = left * min(share, 1.0)
        near = PriceRange(planned.spend * CORRECTION.low, planned.spend * CORRECTION.high)
        found = lowest_price(
            policy,
            campaign,
            near,
            lambda cost, worst: cost <= target and worst <= free,
            planned.pressure,
        )
        return replace(planned, spend=found)


@dataclass(frozen=True)
class PIDPacing:
    """Follow a plan, λ corrected by a PID controller on cumulative spend against plan.

        λ = planned λ · exp(P·e + I·Σe + D·Δe),  e = (spent - planned so far) / planned in all

    The proportional-integral-derivative rule of budget pacing in advertising (Zhang et al. 2016, WSDM); in
    the exponent, so that λ stays positive. One pacer serves one campaign: it remembers.

    Attributes:
        plan: to follow.
        proportional: P.
        integral: I.
        derivative: D.
        errors: e of each week so far.
    """

    plan: SpendPlan
    proportional: float = 4.0
    integral: float = 1.0
    derivative: float = 1.0
    errors: list[float] = field(default_factory=list)

    def prices(self, policy: Policy, campaign: Campaign) -> WeekPrices:
        """Return the corrected prices, raised where the ledger could not reserve the worst case."""
        planned = self.plan.prices[campaign.state.week]
        spent = float(to_currency(campaign.state.ledger.spent))
        total = max(float(self.plan.spend.sum()), 1e-9)
        self.errors.append((spent - self.plan.spent_by(campaign.state.week)) / total)
        change = self.errors[-1] - self.errors[-2] if len(self.errors) > 1 else 0.0
        exponent = (
            self.proportional * self.errors[-1] + self.integral * sum(self.errors) + self.derivative * change
        )
        correction = math.exp(min(max(exponent, math.log(CORRECTION.low)), math.log(CORRECTION.high)))
        corrected = replace(planned, spend=planned.spend * correction)
        return within_reserve(policy, campaign, corrected, self.plan.rule)


class Correction(StrEnum):
    """How a campaign is kept to its plan where money goes otherwise than planned."""

    PID = "pid"
    RE_SOLVE = "re-solve"


def follow(plan: SpendPlan, correction: Correction) -> Pacer:
    """Return a pacer that follows a plan through one campaign."""
    return PIDPacing(plan) if correction is Correction.PID else ReSolvedPacing(plan)
