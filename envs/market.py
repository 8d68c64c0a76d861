"""The market: pure functions over the state of n users who share one budget.

One week runs in this order:

1. the policy chooses an offer per user from what the predictor shows (:mod:`envs.observation`);
2. the ledger grants or refuses what the offers could cost; granted coupons are issued, messages sent;
3. each user visits or not, fills a basket, and redeems a coupon that he noticed (:mod:`envs.week`);
4. the ledger settles redemptions and releases what expired;
5. history, fatigue, opt-in and the calendar move on.

Chance enters only through :class:`envs.luck.Luck`, a function of user and week that does not depend on the
actions: two policies given the same seed live through the same luck (common random numbers). Several
simulators may answer at once, each for its own users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from envs.assumptions import AssumedResponse
from envs.blocks import blocks, padded
from envs.coupons import DealMemory, HeldCoupons
from envs.ledger import Ledger
from envs.luck import Luck, Stream, shared_normal
from envs.money import tensor_to_ticks, to_currency
from envs.offers import MOST_REMEMBERED_WEEKS, OfferTensors
from envs.simulator import Expectation, Simulator
from envs.week import Lived, MarketShocks, Users, Week, live


@dataclass(frozen=True)
class MarketState:
    """State at the start of a week, before offers are sent.

    Attributes:
        history: what n users did so far.
        embedding: [n, d] user embeddings.
        fatigue: [n] in [0, 1]; at 1 a message has no effect left.
        believed_fatigue: [n] the same as the shop reckons it from what it sent; the true one it cannot see.
        receptivity: [n] multiple of the average message's lift; a trait that the shop cannot see.
        opted_in: [n] bool, whether messages may be sent.
        messages: [n] int64, bit k - 1 is whether a message was sent k weeks ago.
        coupons: held from earlier weeks.
        deals: remembered.
        ledger: the shared budget.
        week: weeks of the campaign that have passed.
    """

    history: HistoryState
    embedding: torch.Tensor
    fatigue: torch.Tensor
    believed_fatigue: torch.Tensor
    receptivity: torch.Tensor
    opted_in: torch.Tensor
    messages: torch.Tensor
    coupons: HeldCoupons
    deals: DealMemory
    ledger: Ledger
    week: int

    @property
    def n_users(self) -> int:
        """Number of users n."""
        return int(self.fatigue.shape[0])


@dataclass(frozen=True)
class World:
    """The simulators that answer, and for whom.

    Attributes:
        simulators: S of them.
        member: [n] int64, which answers for each user; None if the first does for all.
    """

    simulators: tuple[Simulator, ...]
    member: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.simulators:
            raise ValueError("a world needs at least one simulator")
        if self.member is None and len(self.simulators) > 1:
            raise ValueError("with several simulators each user needs one that answers for him")

    @classmethod
    def of(cls, simulators: Simulator | Sequence[Simulator], n_users: int, device: torch.device) -> World:
        """Share n users out among simulators in turn."""
        if isinstance(simulators, Simulator):
            return cls((simulators,))
        if len(simulators) == 1:
            return cls(tuple(simulators))
        return cls(tuple(simulators), torch.arange(n_users, device=device) % len(simulators))

    def per_user(self, values: Sequence[float], device: torch.device) -> torch.Tensor:
        """Return each user's simulator's value: scalar for one simulator, else [n] float32."""
        column = torch.tensor(values, dtype=torch.float32, device=device)
        return column[0] if self.member is None else column[self.member]


@dataclass(frozen=True)
class Outcome:
    """What happened in one week to n users.

    Attributes:
        offer: [n] int64, the offer that was sent; 0 where the ledger refused.
        refused: [n] bool, asked for and not granted.
        visited: [n] bool.
        bought: [n, C] bool.
        spend: [n] float32 currency, all categories.
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


def initial_state(
    history: HistoryState,
    embedding: torch.Tensor,
    opted_in: torch.Tensor,
    receptivity: torch.Tensor,
    budget: int,
) -> MarketState:
    """Return the state at the start of a campaign.

    Args:
        history: of n users.
        embedding: [n, d].
        opted_in: [n] bool.
        receptivity: [n].
        budget: ticks for all users together.
    """
    n, device = embedding.shape[0], embedding.device
    return MarketState(
        history=history,
        embedding=embedding,
        fatigue=torch.zeros(n, device=device),
        believed_fatigue=torch.zeros(n, device=device),
        receptivity=receptivity,
        opted_in=opted_in,
        messages=torch.zeros(n, dtype=torch.int64, device=device),
        coupons=HeldCoupons.none(n, device),
        deals=DealMemory.none(n, device),
        ledger=Ledger.open(budget, device),
        week=0,
    )


def messages_left(messages: torch.Tensor, offers: OfferTensors) -> torch.Tensor:
    """Return how many messages the frequency cap leaves now.

    Args:
        messages: [n] int64, bit k - 1 is whether a message was sent k weeks ago.
        offers: the catalogue.

    Returns:
        [n] int64; MOST_REMEMBERED_WEEKS where there is no cap.
    """
    if offers.cap is None:
        return torch.full_like(messages, MOST_REMEMBERED_WEEKS)
    sent = torch.zeros_like(messages)
    for k in range(offers.cap.weeks - 1):
        sent += (messages >> k) & 1
    return offers.cap.messages - sent


def action_mask(state: MarketState, offers: OfferTensors) -> torch.Tensor:
    """Return which offers may be sent to whom, [n, K] bool; sending nothing always may.

    No message after opt-out or above the frequency cap, no second coupon while one is held, nothing dearer
    than what is left.
    """
    reachable = state.opted_in & (messages_left(state.messages, offers) > 0)
    single = ~state.coupons.held[:, None] | ~offers.coupon
    affordable = offers.delivery_cost + offers.liability <= state.ledger.available
    return (reachable[:, None] | ~offers.message) & single & affordable


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
    issued = issued_coupons(sent, slots, offers, weeks_left)
    return (
        replace(
            state,
            coupons=issued.where(offers.coupon[sent], state.coupons),
            ledger=state.ledger.commit(offers.delivery_cost[sent], offers.liability[sent]),
        ),
        sent,
    )


def issued_coupons(
    sent: torch.Tensor, slots: torch.Tensor, offers: OfferTensors, weeks_left: int
) -> HeldCoupons:
    """Return the coupons that offers [n] bring, with the categories of the users' slots [n, M] filled in.

    Args:
        sent: [n] offers; what is no coupon brings one of no weeks.
        slots: [n, M] recommended categories.
        offers: the catalogue.
        weeks_left: weeks of the campaign left, this one included; no coupon outlives the campaign.
    """
    slot = offers.slot[sent]
    return HeldCoupons(
        category=torch.where(slot >= 0, slots.gather(1, slot.clamp(min=0)[:, None])[:, 0], -1),
        depth=offers.depth[sent],
        min_spend=offers.min_spend[sent],
        max_discount=offers.max_discount[sent],
        liability=offers.liability[sent],
        weeks_left=offers.validity_weeks[sent].clamp(max=weeks_left),
    )


def transition(
    state: MarketState,
    sent: torch.Tensor,
    offers: OfferTensors,
    world: World,
    calendar: PromotionCalendar,
    luck: Luck,
    believed: AssumedResponse,
    requested: torch.Tensor | None = None,
    *,
    expect: bool = True,
) -> tuple[MarketState, Outcome, Expectation | None]:
    """Let a week happen after the offers were sent; steps 3 to 5.

    Args:
        state: after :func:`issue`.
        sent: [n] offers really sent.
        offers: the catalogue.
        world: the simulators that answer.
        calendar: the week's mass promotion, one row: depth [C] and so on.
        luck: of the n users.
        believed: what the shop assumes, by which it keeps its own account of fatigue.
        requested: [n] offers asked for, to mark refusals; ``sent`` if None.
        expect: also work out what was to be expected; without, users who stay at home cost next to nothing.

    Returns:
        The state at the start of the next week, what happened, and what was to be expected (None if not asked
        for).
    """
    message, coupons, week = offers.message[sent], state.coupons, state.week
    users = Users(
        history=state.history,
        embedding=state.embedding,
        coupons=coupons,
        deals=state.deals,
        message=message,
        fatigue=state.fatigue,
        receptivity=state.receptivity,
        luck=luck,
    )
    lived, history = _live_in_blocks(world, users, offers, calendar, week, expect=expect)

    # At its limit a coupon costs what was reserved: the limit in float32 may lie a tick below.
    at_limit = lived.discount >= coupons.max_discount
    paid = torch.where(at_limit, coupons.liability, tensor_to_ticks(lived.discount))
    discount = torch.minimum(paid, coupons.liability) * lived.redeemed
    weeks_left = coupons.weeks_left - coupons.held.long()
    ended = coupons.held & (lived.redeemed | (weeks_left <= 0))
    assumed = [simulator.assumed for simulator in world.simulators]
    opt_out = _per_user(world, assumed, "opt_out_probability", state.fatigue)
    opted_out = message & (luck.uniform(Stream.OPT_OUT, week) < opt_out)
    remembered = (1 << MOST_REMEMBERED_WEEKS) - 1
    after = replace(
        state,
        history=history,
        fatigue=_per_user(world, assumed, "next_fatigue", state.fatigue, message),
        believed_fatigue=believed.next_fatigue(state.believed_fatigue, message),
        opted_in=state.opted_in & ~opted_out,
        messages=((state.messages << 1) | message.long()) & remembered,
        coupons=HeldCoupons.none(state.n_users, message.device).where(
            ended, replace(coupons, weeks_left=weeks_left)
        ),
        deals=state.deals.after_week(lived.redeemed, coupons),
        ledger=state.ledger.settle(discount, coupons.liability * ended),
        week=week + 1,
    )
    margin_rate = world.per_user([s.margin_rate for s in world.simulators], message.device)
    outcome = Outcome(
        offer=sent,
        refused=(requested != sent) if requested is not None else torch.zeros_like(message),
        visited=lived.visited,
        bought=lived.bought,
        spend=lived.spend,
        margin=margin_rate * lived.spend,
        redeemed=lived.redeemed,
        discount=discount,
        delivery=offers.delivery_cost[sent],
        reserved=coupons.liability,
    )
    return after, outcome, lived.expectation


def _per_user(
    world: World, assumed: Sequence[AssumedResponse], method: str, *arguments: torch.Tensor
) -> torch.Tensor:
    """Each user by the assumptions of the simulator that answers for him, [n]."""
    found = [getattr(response, method)(*arguments) for response in assumed]
    if world.member is None:
        return found[0]  # type: ignore[no-any-return]
    return torch.stack(found).gather(0, world.member[None])[0]


def _live_in_blocks(
    world: World,
    users: Users,
    offers: OfferTensors,
    calendar: PromotionCalendar,
    number: int,
    *,
    expect: bool,
) -> tuple[Lived, HistoryState]:
    """Let all users live through the week, a block at a time, and put the pieces together."""
    device, n = users.message.device, len(users.message)
    weeks = [
        Week(
            number=number,
            calendar=calendar,
            coefficients=simulator.coefficients(calendar),
            shocks=_market_shocks(simulator, users.luck.seed, number, device),
            threshold=offers.has_threshold,
            expect=expect,
        )
        for simulator in world.simulators
    ]

    def column(dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(n, dtype=dtype, device=device)

    history = users.history.blank()
    whole = Lived(
        visited=column(torch.bool),
        bought=torch.empty(users.history.recent.shape, dtype=torch.bool, device=device),
        spend=column(),
        redeemed=column(torch.bool),
        discount=column(),
        history=history,
        expectation=Expectation(*(column() for _ in fields(Expectation))) if expect else None,
    )
    for k, rows in blocks(n, world.member, device):
        if isinstance(rows, slice):
            m = rows.stop - rows.start
            part = live(world.simulators[k], users.rows(rows), weeks[k], history.rows(rows))
        else:
            m = len(rows)
            part = live(world.simulators[k], users.rows(padded(rows)), weeks[k])
            history.write(rows, part.history.rows(slice(m)))
        for name in ("visited", "bought", "spend", "redeemed", "discount"):
            getattr(whole, name)[rows] = getattr(part, name)[:m]
        if whole.expectation is not None and part.expectation is not None:
            for f in fields(Expectation):
                getattr(whole.expectation, f.name)[rows] = getattr(part.expectation, f.name)[:m]
    return whole, history


def _market_shocks(simulator: Simulator, seed: int, week: int, device: torch.device) -> MarketShocks:
    """What the week does to all users of a simulator alike."""
    heads = simulator.heads
    of_visit = shared_normal(seed, Stream.WEEK_VISIT, week, 1, device)[0]
    of_category = shared_normal(seed, Stream.WEEK_CATEGORY, week, heads.n_categories, device)
    return MarketShocks(
        visit=heads.visit_week_deviation * of_visit, purchase=heads.category_week_deviation * of_category
    )
