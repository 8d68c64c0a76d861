"""The market: pure functions over the state of n users who share one budget.

One week runs in this order:

1. the policy chooses an offer per user from what the predictor shows (:mod:`envs.observation`);
2. the ledger grants or refuses what the offers could cost; granted coupons are issued, messages sent;
3. each user visits or not, fills a basket, and redeems a coupon that he noticed;
4. the ledger settles redemptions and releases what expired;
5. history, fatigue, opt-in and the calendar move on.

Chance enters only through :class:`Shocks`, drawn beforehand and in a shape that does not depend on the
actions: two policies given the same shocks live through the same luck (common random numbers).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from envs.assumptions import AssumedResponse
from envs.ledger import Ledger
from envs.money import tensor_to_ticks, to_currency
from envs.offers import OfferTensors
from envs.simulator import Expectation, HeldCoupons, Simulator


@dataclass(frozen=True)
class MarketState:
    """State at the start of a week, before offers are sent.

    Attributes:
        history: what n users did so far.
        embedding: [n, d] user embeddings.
        fatigue: [n] in [0, 1]; at 1 a message has no effect left.
        believed_fatigue: [n] the same as the shop reckons it from what it sent; the true one it cannot see.
        opted_in: [n] bool, whether messages may be sent.
        coupons: held from earlier weeks.
        ledger: the shared budget.
        week: weeks of the campaign that have passed.
    """

    history: HistoryState
    embedding: torch.Tensor
    fatigue: torch.Tensor
    believed_fatigue: torch.Tensor
    opted_in: torch.Tensor
    coupons: HeldCoupons
    ledger: Ledger
    week: int

    @property
    def n_users(self) -> int:
        """Number of users n."""
        return int(self.fatigue.shape[0])


@dataclass(frozen=True)
class Shocks:
    """The chance of one week; uniforms in [0, 1) and standard normals.

    Attributes:
        visit: [n] uniform.
        trips: [n] uniform, how often the user shops in a week with a visit.
        basket: [n] normal, the per-visit random effect.
        purchase: [n, C] normal, what decides each purchase besides.
        spend: [n, C] normal.
        notice: [n] uniform.
        opt_out: [n] uniform.
        priority: [n] uniform, order in which the ledger serves requests.
    """

    visit: torch.Tensor
    trips: torch.Tensor
    basket: torch.Tensor
    purchase: torch.Tensor
    spend: torch.Tensor
    notice: torch.Tensor
    opt_out: torch.Tensor
    priority: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What happened in one week to n users.

    Attributes:
        offer: [n] int64, the offer that was sent; 0 where the ledger refused.
        refused: [n] bool, asked for and not granted.
        visited: [n] bool.
        bought: [n, C] bool.
        spend: [n] float32 currency, modelled categories plus the ratio for the others.
        margin: [n] float32 currency, before coupon cost.
        redeemed: [n] bool.
        discount: [n] int64 ticks redeemed.
        delivery: [n] int64 ticks charged for messages.
        reserved: [n] int64 ticks kept reserved during the week.
    """

    offer: torch.Tensor
    refused: torch.Tensor
    visited: torch.Tensor
    bought: torch.Tensor
    spend: torch.Tensor
    margin: torch.Tensor
    redeemed: torch.Tensor
    discount: torch.Tensor
    delivery: torch.Tensor
    reserved: torch.Tensor

    @property
    def cost(self) -> torch.Tensor:
        """[n] float64 currency charged to the budget in the week."""
        return to_currency(self.discount + self.delivery)


def draw_shocks(
    n_users: int, n_categories: int, generator: torch.Generator, device: str | torch.device = "cpu"
) -> Shocks:
    """Draw the chance of one week from an explicit generator."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    return Shocks(
        visit=uniform(n_users),
        trips=uniform(n_users),
        basket=normal(n_users),
        purchase=normal(n_users, n_categories),
        spend=normal(n_users, n_categories),
        notice=uniform(n_users),
        opt_out=uniform(n_users),
        priority=uniform(n_users),
    )


def initial_state(
    history: HistoryState, embedding: torch.Tensor, opted_in: torch.Tensor, budget: int
) -> MarketState:
    """Return the state at the start of a campaign.

    Args:
        history: of n users.
        embedding: [n, d].
        opted_in: [n] bool.
        budget: ticks for all users together.
    """
    n, device = embedding.shape[0], embedding.device
    return MarketState(
        history=history,
        embedding=embedding,
        fatigue=torch.zeros(n, device=device),
        believed_fatigue=torch.zeros(n, device=device),
        opted_in=opted_in,
        coupons=HeldCoupons.none(n, device),
        ledger=Ledger.open(budget, device),
        week=0,
    )


def action_mask(state: MarketState, offers: OfferTensors) -> torch.Tensor:
    """Return which offers may be sent to whom, [n, K] bool; sending nothing always may.

    No message after opt-out, no second coupon while one is held, nothing dearer than what is left.
    """
    reachable = state.opted_in[:, None] | ~offers.message
    single = ~state.coupons.held[:, None] | ~offers.coupon
    affordable = offers.delivery_cost + offers.liability <= state.ledger.available
    return reachable & single & affordable


def issue(
    state: MarketState,
    offer: torch.Tensor,
    slots: torch.Tensor,
    offers: OfferTensors,
    weeks_left: int,
    priority: torch.Tensor,
) -> tuple[MarketState, torch.Tensor]:
    """Send offers as far as the ledger grants them; step 2 of the week.

    Args:
        state: before sending.
        offer: [n] int64, chosen within the mask.
        slots: [n, M] recommended categories.
        offers: the catalogue.
        weeks_left: weeks of the campaign left, this one included; no coupon outlives the campaign.
        priority: [n] order of service.

    Returns:
        The state with coupons issued and money committed, and the offers really sent, [n].
    """
    granted = state.ledger.grant(offers.delivery_cost[offer], offers.liability[offer], priority)
    sent = torch.where(granted, offer, 0)
    coupon = offers.coupon[sent]
    issued = HeldCoupons(
        category=slots.gather(1, offers.slot[sent][:, None])[:, 0],
        depth=offers.depth[sent],
        max_discount=offers.max_discount[sent],
        liability=offers.liability[sent],
        weeks_left=offers.validity_weeks[sent].clamp(max=weeks_left),
    )
    return (
        replace(
            state,
            coupons=issued.where(coupon, state.coupons),
            ledger=state.ledger.commit(offers.delivery_cost[sent], offers.liability[sent]),
        ),
        sent,
    )


def transition(
    state: MarketState,
    sent: torch.Tensor,
    offers: OfferTensors,
    simulator: Simulator,
    calendar: PromotionCalendar,
    shocks: Shocks,
    believed: AssumedResponse,
    requested: torch.Tensor | None = None,
) -> tuple[MarketState, Outcome, Expectation]:
    """Let a week happen after the offers were sent; steps 3 to 5.

    Args:
        state: after :func:`issue`.
        sent: [n] offers really sent.
        offers: the catalogue.
        simulator: the world that answers.
        calendar: the week's mass promotion, one row: depth [C] and so on.
        shocks: the week's chance.
        believed: what the shop assumes, by which it keeps its own account of fatigue.
        requested: [n] offers asked for, to mark refusals; ``sent`` if None.

    Returns:
        The state at the start of the next week, what happened, and what was to be expected.
    """
    message = offers.message[sent]
    coupons = state.coupons
    held = coupons.held
    utilities = simulator.utilities(state.history, state.embedding, calendar)
    notice = simulator.notice_probability(state.history, state.embedding)
    expectation = simulator.expectation(utilities, calendar.depth, notice, message, state.fatigue, coupons)

    visited = shocks.visit < expectation.visit
    trips = visited * (1.0 + _geometric(simulator.heads.mean_further_trips(state.history), shocks.trips))
    noticed = held & (shocks.notice < notice)
    category = coupons.category.clamp(min=0)[:, None]
    extra = utilities.depth_slope.gather(1, category)[:, 0] * coupons.depth
    extra = extra * (1.0 - calendar.depth[category[:, 0]]) * noticed
    probability = torch.sigmoid(utilities.purchase.scatter_add(1, category, extra[:, None]))
    correlation = simulator.heads.basket_correlation
    decisive = correlation.sqrt() * shocks.basket[:, None] + (1.0 - correlation).sqrt() * shocks.purchase
    bought = (torch.special.ndtr(decisive) < probability) & visited[:, None]
    spend = torch.exp(utilities.log_spend + simulator.heads.spend_deviation * shocks.spend) * bought

    redeemed = noticed & bought.gather(1, category)[:, 0]
    discount = torch.minimum(coupons.depth * spend.gather(1, category)[:, 0], coupons.max_discount)
    discount_ticks = torch.minimum(tensor_to_ticks(discount), coupons.liability) * redeemed
    weeks_left = coupons.weeks_left - held.long()
    ended = held & (redeemed | (weeks_left <= 0))
    ledger = state.ledger.settle(discount_ticks, coupons.liability * ended)

    assumed = simulator.assumed
    opted_out = message & (shocks.opt_out < assumed.opt_out_probability(state.fatigue))
    # The other categories go with the visit, not with what a coupon adds to one category.
    other = simulator.heads.other_spend_ratio * expectation.basket * visited
    total = spend.sum(dim=1) + other
    after = MarketState(
        history=state.history.advance(trips, bought, total),
        embedding=state.embedding,
        fatigue=assumed.next_fatigue(state.fatigue, message),
        believed_fatigue=believed.next_fatigue(state.believed_fatigue, message),
        opted_in=state.opted_in & ~opted_out,
        coupons=HeldCoupons.none(state.n_users, visited.device).where(
            ended, replace(coupons, weeks_left=weeks_left)
        ),
        ledger=ledger,
        week=state.week + 1,
    )
    outcome = Outcome(
        offer=sent,
        refused=(requested != sent) if requested is not None else torch.zeros_like(visited),
        visited=visited,
        bought=bought,
        spend=total,
        margin=simulator.margin_rate * total,
        redeemed=redeemed,
        discount=discount_ticks,
        delivery=offers.delivery_cost[sent],
        reserved=coupons.liability,
    )
    return after, outcome, expectation


def _geometric(mean: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Number of failures before a success, with the given mean, by inversion of its distribution."""
    share = mean / (1.0 + mean)
    # 1 - u lies in (0, 1]: its logarithm is finite.
    return torch.floor(torch.log1p(-uniform) / torch.log(share))
