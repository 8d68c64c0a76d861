"""One week in the life of a block of users: visits, baskets, redemptions, and what was to be expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import ResponseHeads
from encoders.response_kernel import People, WeekCoefficients
from envs.blocks import padded, taken
from envs.coupons import DealMemory, HeldCoupons
from envs.luck import Luck, Stream
from envs.simulator import Expectation, Outlook, Simulator, normal_cdf


@dataclass(frozen=True)
class Users:
    """What a block of n users brings into a week; coupons and messages of the week included.

    Attributes:
        history: what they did so far.
        embedding: [n, d].
        coupons: held during the week.
        deals: remembered.
        message: [n] bool, a push message arrives.
        fatigue: [n] before it.
        receptivity: [n] multiple of the average message's lift.
        luck: theirs.
    """

    history: HistoryState
    embedding: torch.Tensor
    coupons: HeldCoupons
    deals: DealMemory
    message: torch.Tensor
    fatigue: torch.Tensor
    receptivity: torch.Tensor
    luck: Luck

    def rows(self, index: torch.Tensor | slice) -> Users:
        """Return the given users; of a slice without copying."""
        return Users(
            self.history.rows(index),
            taken(self.embedding, index),
            self.coupons.rows(index),
            self.deals.rows(index),
            taken(self.message, index),
            taken(self.fatigue, index),
            taken(self.receptivity, index),
            self.luck.rows(index),
        )


@dataclass(frozen=True)
class MarketShocks:
    """What a week does to all users alike, on the probit scale; negative brings visits and purchases.

    Attributes:
        visit: scalar.
        purchase: [C]
    """

    visit: torch.Tensor
    purchase: torch.Tensor


@dataclass(frozen=True)
class Week:
    """What is the same for all users of a simulator in a week.

    Attributes:
        number: weeks of the campaign that have passed, for the luck.
        calendar: the week's row.
        coefficients: the simulator's, for the week.
        shocks: to all users.
        threshold: whether the catalogue has threshold coupons.
        expect: whether to work out what was to be expected; it needs the baskets of those at home too.
    """

    number: int
    calendar: PromotionCalendar
    coefficients: WeekCoefficients
    shocks: MarketShocks
    threshold: bool
    expect: bool


@dataclass(frozen=True)
class Lived:
    """What a block of n users did in a week.

    Attributes:
        visited: [n] bool.
        bought: [n, C] bool.
        spend: [n] float32 currency, all categories.
        redeemed: [n] bool.
        discount: [n] float32 currency, before rounding to ticks.
        history: after the week.
        expectation: given all before the week; None if it was not asked for.
    """

    visited: torch.Tensor
    bought: torch.Tensor
    spend: torch.Tensor
    redeemed: torch.Tensor
    discount: torch.Tensor
    history: HistoryState
    expectation: Expectation | None


def live(simulator: Simulator, users: Users, week: Week, out: HistoryState | None = None) -> Lived:
    """Let a block of users live through a week.

    Chance enters through Gaussian copulas (:mod:`encoders.response`): each visit and purchase keeps exactly
    its fitted probability, whatever it shares with others of the same basket or week.

    Args:
        simulator: the world that answers.
        users: n of them.
        week: what is the same for all.
        out: where to write the history after the week; a new state if None.
    """
    heads, luck, coupons = simulator.heads, users.luck, users.coupons
    people = simulator.people(users.history, users.embedding, week.coefficients)
    outlook, expectation = None, None
    if week.expect:
        outlook = _outlook(simulator, users, people, week)
        terms = simulator.held_terms(outlook, week.calendar.depth, coupons)
        expectation = simulator.expectation(
            outlook, terms, users.message, users.fatigue, coupons.held, users.receptivity
        )
    lift = simulator.visit_lift(users.message, users.fatigue, coupons.held, users.receptivity)
    own = luck.normal(Stream.VISIT, week.number)
    decisive = week.shocks.visit + (1.0 - heads.visit_week_deviation**2).sqrt() * own
    visited = normal_cdf(decisive) < torch.sigmoid(people.visit + lift)

    n, n_categories = len(visited), heads.n_categories
    device = visited.device
    bought = torch.zeros((n, n_categories), dtype=torch.bool, device=device)
    trips, spend, discount = torch.zeros(3, n, device=device)
    redeemed = torch.zeros_like(visited)
    if device.type == "cpu":
        shoppers = visited.nonzero()[:, 0]
        if len(shoppers):
            chosen, m = padded(shoppers), len(shoppers)
            seen = users.rows(chosen)
            if outlook is None:
                found = _outlook(simulator, seen, people.rows(chosen), week)
                basket = _shop(simulator, seen, found, week)
            else:
                basket = _shop(simulator, seen, outlook.rows(chosen), week)
            bought[shoppers] = basket.bought[:m]
            trips[shoppers] = basket.trips[:m]
            spend[shoppers] = basket.spend[:m]
            redeemed[shoppers] = basket.redeemed[:m]
            discount[shoppers] = basket.discount[:m]
    else:
        # Counting the visitors would make the GPU wait; everyone fills a basket, and some leave it.
        if outlook is None:
            outlook = _outlook(simulator, users, people, week)
        basket = _shop(simulator, users, outlook, week)
        bought = basket.bought & visited[:, None]
        trips, spend = basket.trips * visited, basket.spend * visited
        redeemed = basket.redeemed & visited
        discount = basket.discount * visited
    return Lived(
        visited=visited,
        bought=bought,
        spend=spend,
        redeemed=redeemed,
        discount=discount,
        history=users.history.advance(
            trips, bought, spend, coupon_used=redeemed, out=out, scratch=simulator.scratch
        ),
        expectation=expectation,
    )


def _outlook(simulator: Simulator, users: Users, people: People, week: Week) -> Outlook:
    return simulator.outlook(
        people, users.history, users.embedding, users.deals, week.coefficients, pull=week.threshold
    )


@dataclass(frozen=True)
class _Shopping:
    """Baskets of n users who visit."""

    bought: torch.Tensor
    trips: torch.Tensor
    spend: torch.Tensor
    redeemed: torch.Tensor
    discount: torch.Tensor


def _shop(simulator: Simulator, users: Users, outlook: Outlook, week: Week) -> _Shopping:
    """Fill the baskets of users who visit, and let them redeem what they notice; uses the outlook up."""
    heads, luck, coupons = simulator.heads, users.luck, users.coupons
    scratch, depth = simulator.scratch, week.calendar.depth
    rank, chance = heads.basket_loadings.shape[1], outlook.purchase
    # The factors of the basket, and what else decides a visit as a whole.
    factors = luck.normals(Stream.BASKET, week.number, rank + 4, scratch)
    shared = factors[:, :rank].contiguous()
    place = coupons.category.clamp(min=0)[:, None]
    on_basket = coupons.on_basket & coupons.held
    noticed = coupons.held & (normal_cdf(factors[:, rank + 3]) < outlook.notice)
    # Reading whether anyone holds a coupon would make a GPU wait.
    if chance.device.type != "cpu" or bool(noticed.any()):
        extra = simulator.held_terms(outlook, depth, coupons).extra * noticed
        logit = outlook.purchase_logit
        if week.threshold:
            everything = (extra * on_basket)[:, None]
            logit.addcmul_(outlook.depth_slope.mul_(1.0 - depth), everything)
            torch.sigmoid(logit, out=chance)
        with_coupon = torch.sigmoid(logit.gather(1, place) + (extra * ~on_basket)[:, None])
        chance.scatter_(1, place, with_coupon)

    decisive = luck.normals(Stream.PURCHASE, week.number, heads.n_categories, scratch)
    # Contiguous: with a transposed factor, a row of the product would depend on the number of rows.
    loadings = heads.basket_loadings.T.contiguous()
    decisive.mul_(heads.basket_residual).add_(week.shocks.purchase).addmm_(shared, loadings)
    # Φ(x) < p, as erf(x / √2) < 2p - 1; as numbers 0 and 1, which multiply faster than truth values.
    flag = decisive.mul_(math.sqrt(0.5)).erf_().lt_(chance.mul_(2.0).sub_(1.0))
    bought = flag.to(torch.uint8).view(torch.bool)

    spend = luck.normals(Stream.SPEND, week.number, heads.n_categories, scratch)
    spend.mul_(heads.spend_deviation).add_(outlook.log_spend_category).exp_().mul_(flag)
    of_user = torch.exp(outlook.log_spend_user)
    inside = of_user * spend.sum(dim=1)
    total = inside + _other_spend(heads, outlook, shared, factors, ~(inside > 0))

    covered = torch.where(on_basket, total, of_user * spend.gather(1, place)[:, 0])
    redeemed = noticed & torch.where(on_basket, total >= coupons.min_spend, bought.gather(1, place)[:, 0])
    saved = torch.where(on_basket, coupons.max_discount, coupons.depth * covered)
    rhythm = (shared * heads.trips_loadings).sum(dim=1) + heads.trips_residual * factors[:, rank]
    return _Shopping(
        bought=bought,
        trips=1.0 + _geometric(outlook.further_trips, normal_cdf(rhythm).clamp(max=1.0 - 2.0**-24)),
        spend=total,
        redeemed=redeemed,
        discount=torch.minimum(saved, coupons.max_discount) * redeemed,
    )


def _other_spend(
    heads: ResponseHeads,
    outlook: Outlook,
    shared: torch.Tensor,
    factors: torch.Tensor,
    empty: torch.Tensor,
) -> torch.Tensor:
    """[n] spend outside the modelled categories; its mean is ``other_spend_ratio`` times the expected basket.

    It goes with the visit, not with what a coupon adds to one category. Who came and bought nothing modelled
    came for something else.
    """
    rank, share, deviation = shared.shape[1], heads.other_spend_share, heads.other_spend_deviation
    inclined = (shared * heads.other_spend_loadings).sum(dim=1)
    inclined = inclined + heads.other_spend_residual * factors[:, rank + 1]
    some = torch.where(empty, 1.0, (normal_cdf(inclined) < share) / share)
    size = torch.exp(deviation * factors[:, rank + 2] - 0.5 * deviation**2)
    return heads.other_spend_ratio * outlook.basket * some * size


def _geometric(mean: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Number of failures before a success, with the given mean, by inversion of its distribution."""
    share = mean / (1.0 + mean)
    # 1 - u lies in (0, 1]: its logarithm is finite.
    return torch.floor(torch.log1p(-uniform) / torch.log(share))
