from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.campaign import Campaign, MarketSpec
from envs.coupons import HeldCoupons
from envs.demo_market import demo_market
from envs.luck import Stream
from envs.market import MarketState, Outcome, World, action_mask, issue, transition
from envs.money import to_ticks
from envs.offers import (
    MOST_REMEMBERED_WEEKS,
    Catalogue,
    Channel,
    FrequencyCap,
    Offer,
    OfferKind,
    OfferTensors,
)
from envs.simulator import Expectation, Simulator

N, WEEKS = 24, 6
CPU = torch.device("cpu")
Choose = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@cache
def market() -> MarketSpec:
    return demo_market(n_users=N, horizon_weeks=WEEKS)


@cache
def eventful_world() -> Simulator:
    """Coupons are nearly always noticed, messages tire users out at once, and some are put off by them."""
    predictor = market().predictor
    heads = copy.deepcopy(predictor.heads)
    heads.redemption_bias.fill_(2.0)
    heads.basket_loadings[:, 1] = 0.5
    heads.visit_week_deviation.fill_(0.1)
    heads.category_week_deviation.fill_(0.1)
    heads.other_spend_share.fill_(0.7)
    heads.other_spend_deviation.fill_(0.5)
    assumed = replace(
        predictor.assumed,
        opt_out_rested=0.0,
        opt_out_fatigued=0.5,
        fatigue_gain=0.45,
        fatigue_memory=0.85,
        opt_in_share=0.9,
        message_spread=1.0,
    )
    return replace(predictor, heads=heads, assumed=assumed, name="eventful")


def campaign(
    budget: float, seed: int, world: Simulator | None = None, catalogue: Catalogue | None = None
) -> Campaign:
    spec = market() if catalogue is None else replace(market(), catalogue=catalogue)
    return Campaign(spec, world or eventful_world(), start=0, users=torch.arange(N), budget=budget, seed=seed)


def catalogue(*offers: Offer, cap: FrequencyCap | None = None) -> Catalogue:
    return Catalogue((Offer("nothing", OfferKind.NONE), *offers), cap)


def percent(name: str = "percent", **values: object) -> Offer:
    row: dict[str, object] = {"slot": 1, "depth": 0.2, "max_discount": 0.6, "validity_weeks": 2}
    return Offer(name, OfferKind.PERCENT, **{**row, **values})  # type: ignore[arg-type]


def threshold(name: str = "threshold", **values: object) -> Offer:
    row: dict[str, object] = {"min_spend": 8.0, "max_discount": 2.3, "validity_weeks": 2}
    return Offer(name, OfferKind.THRESHOLD, **{**row, **values})  # type: ignore[arg-type]


PUSH = Offer("push", OfferKind.PUSH, delivery_cost=0.02)


def at_random(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Any allowed offer."""
    return torch.multinomial(mask.float(), 1, generator=generator)[:, 0]


def nothing(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros(len(mask), dtype=torch.int64)


@dataclass(frozen=True)
class Week:
    """One week of a campaign, seen from outside."""

    before: MarketState
    mask: torch.Tensor
    slots: torch.Tensor
    offer: torch.Tensor
    outcome: Outcome
    expectation: Expectation
    after: MarketState


def play(running: Campaign, choose: Choose, seed: int) -> list[Week]:
    generator = torch.Generator().manual_seed(seed)
    weeks = []
    while not running.done:
        before, mask, slots = running.state, running.mask, running.prediction.slots
        offer = choose(mask, generator)
        outcome, expectation = running.step_with_expectation(offer)
        weeks.append(Week(before, mask, slots, offer, outcome, expectation, running.state))
    return weeks


def check_money(week: Week, offers: OfferTensors, spent: int, budget: int) -> int:
    """Ledger against the outcome; returns what has been spent by the end of the week."""
    outcome, after = week.outcome, week.after
    paid = int(outcome.discount.sum() + outcome.delivery.sum())
    assert int(after.ledger.spent) == spent + paid
    assert int(after.ledger.reserved) == int(after.coupons.liability.sum())
    assert int(after.ledger.spent + after.ledger.reserved) <= budget
    # Within the week too: after sending, before anything is redeemed.
    assert spent + int(outcome.delivery.sum() + outcome.reserved.sum()) <= budget
    assert torch.equal(outcome.delivery, offers.delivery_cost[outcome.offer])
    assert torch.equal(outcome.cost, (outcome.discount + outcome.delivery).double() / 10_000)
    # Refusals are exactly the requests that were not sent.
    assert torch.equal(outcome.refused, week.offer != outcome.offer)
    assert (outcome.offer[outcome.refused] == 0).all()
    return spent + paid


def check_redemptions(week: Week, offers: OfferTensors) -> None:
    before, outcome = week.before, week.outcome
    had, sent = before.coupons.held, outcome.offer
    # One coupon at a time.
    assert not (offers.coupon[sent] & had).any()
    slot = offers.slot[sent]
    issued = torch.where(slot >= 0, week.slots.gather(1, slot.clamp(min=0)[:, None])[:, 0], -1)
    category = torch.where(had, before.coupons.category, issued)
    min_spend = torch.where(had, before.coupons.min_spend, offers.min_spend[sent])
    limit = torch.where(had, before.coupons.liability, offers.liability[sent])
    assert torch.equal(outcome.reserved, limit)
    redeemed = outcome.redeemed
    assert not (redeemed & ~(had | offers.coupon[sent])).any()
    assert not (redeemed & ~outcome.visited).any()
    assert not (redeemed & week.after.coupons.held).any()
    on_category, on_basket = redeemed & (min_spend == 0), redeemed & (min_spend > 0)
    assert outcome.bought.gather(1, category.clamp(min=0)[:, None])[on_category].all()
    assert (outcome.spend >= min_spend)[on_basket].all()
    # A threshold coupon pays exactly what it promises; no coupon more than was reserved for it.
    assert torch.equal(outcome.discount[on_basket], limit[on_basket])
    assert (outcome.discount <= limit).all()
    assert not (outcome.discount[~redeemed]).any()
    expected = week.expectation
    assert ((expected.visit >= 0) & (expected.visit <= 1)).all()
    assert (expected.margin > 0).all()
    assert (expected.discount >= 0).all()
    assert (expected.discount <= limit / 10_000 * (1 + 1e-5)).all()


def check_lives_of_coupons(weeks: list[Week], spec: MarketSpec) -> None:
    """Each coupon against its own diary: from its issue to its use, its last week or the campaign's end."""
    offers = spec.catalogue.offers
    for user in range(N):
        last: int | None = None
        for number, week in enumerate(weeks):
            sent = offers[int(week.outcome.offer[user])]
            if sent.is_coupon:
                assert last is None
                last = min(number + sent.validity_weeks, spec.horizon_weeks) - 1
            if week.outcome.redeemed[user] or last == number:
                last = None
            left = 0 if last is None else last - number
            assert int(week.after.coupons.weeks_left[user]) == left
            assert bool(week.after.coupons.held[user]) == (int(week.after.coupons.liability[user]) > 0)
            assert bool(week.after.coupons.held[user]) == (left > 0)


def check_messages(weeks: list[Week], spec: MarketSpec) -> None:
    offers, cap = spec.offers, spec.catalogue.cap
    sent = torch.stack([offers.message[week.outcome.offer] for week in weeks])
    opted_in = torch.stack([week.before.opted_in for week in weeks])
    assert not (sent & ~opted_in).any()
    assert not (opted_in[1:] & ~opted_in[:-1]).any()
    # Only a message makes anyone leave.
    left = torch.stack([week.before.opted_in & ~week.after.opted_in for week in weeks])
    assert not (left & ~sent).any()
    if cap is not None:
        for end in range(1, len(weeks) + 1):
            assert (sent[max(0, end - cap.weeks) : end].sum(dim=0) <= cap.messages).all()
    for k, week in enumerate(weeks):
        assert ((week.after.fatigue >= 0) & (week.after.fatigue <= 1)).all()
        bits = sum(sent[k - ago].long() << ago for ago in range(k + 1))
        assert torch.equal(week.after.messages, torch.as_tensor(bits))


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    cents = st.integers(1, 400).map(lambda value: value / 100)
    offers = []
    for k in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([OfferKind.PUSH, OfferKind.PERCENT, OfferKind.THRESHOLD]))
        cost = draw(st.sampled_from([0.0, 0.02, 0.3]))
        if kind is OfferKind.PUSH:
            offers.append(replace(PUSH, name=f"{k}", delivery_cost=cost))
            continue
        most, own = draw(cents), {}
        if kind is OfferKind.PERCENT:
            own = {"slot": draw(st.integers(1, 4)), "depth": draw(st.floats(0.01, 1.0))}
        else:
            own = {"min_spend": most + draw(st.floats(0.0, 25.0))}
        offers.append(
            Offer(
                f"{k}",
                kind,
                channel=draw(st.sampled_from(Channel)),
                max_discount=most,
                validity_weeks=draw(st.integers(1, 5)),
                delivery_cost=cost,
                **own,  # type: ignore[arg-type]
            )
        )
    cap = draw(st.none() | st.builds(FrequencyCap, st.integers(1, 3), st.integers(1, 8)))
    return catalogue(*offers, cap=cap)


@settings(max_examples=100)
@given(catalogues(), st.floats(0, 1.5), st.integers(0, 2**31), st.integers(0, 2**31))
def test_invariants_of_a_campaign(
    offered: Catalogue, budget_per_user: float, seed: int, policy_seed: int
) -> None:
    running = campaign(budget_per_user * N, seed, catalogue=offered)
    spec, offers = running.spec, running.spec.offers
    weeks = play(running, at_random, policy_seed)
    assert len(weeks) == WEEKS
    spent = 0
    for number, week in enumerate(weeks):
        after, outcome = week.after, week.outcome
        spent = check_money(week, offers, spent, to_ticks(budget_per_user * N))
        check_redemptions(week, offers)
        assert not (outcome.bought & ~outcome.visited[:, None]).any()
        assert torch.equal(outcome.spend > 0, outcome.visited)
        torch.testing.assert_close(outcome.margin, eventful_world().margin_rate * outcome.spend)
        assert after.week == number + 1
        assert torch.equal(after.history.last_trips > 0, outcome.visited)
    check_messages(weeks, spec)
    check_lives_of_coupons(weeks, spec)
    assert int(weeks[-1].after.ledger.reserved) == 0


def test_the_invariants_were_put_to_the_test() -> None:
    weeks = [week for seed in range(5) for week in play(campaign(0.5 * N, seed), at_random, seed)]
    assert sum(int(week.outcome.redeemed.sum()) for week in weeks) > 20
    assert sum(int(week.outcome.refused.sum()) for week in weeks) > 20
    assert sum(int((week.before.opted_in & ~week.after.opted_in).sum()) for week in weeks) > 5
    assert sum(int((week.before.coupons.held & week.outcome.redeemed).sum()) for week in weeks) > 5
    assert max(float(week.after.fatigue.max()) for week in weeks) > 0.8
    low = catalogue(threshold(), PUSH, cap=FrequencyCap(1, 3))
    weeks = [week for seed in range(5) for week in play(campaign(1e6, seed, catalogue=low), at_random, seed)]
    assert sum(int(week.outcome.redeemed.sum()) for week in weeks) > 20
    capped = sum(int((week.before.opted_in & ~week.mask[:, 2]).sum()) for week in weeks)
    assert capped > 20


def with_first_week_coupons(seed: int, world: Simulator, offer: Offer) -> tuple[Outcome, Outcome]:
    """The first week of a campaign in which all get a coupon, and that of one in which nobody does."""
    treated, control = (campaign(1e6, seed, world, catalogue(offer)) for _ in range(2))
    return treated.step(torch.ones(N, dtype=torch.int64)), control.step()


@pytest.mark.parametrize(
    "offer",
    [
        percent(channel=Channel.MAIL),
        percent(channel=Channel.MAIL, depth=1.0, max_discount=9.0),
        threshold(channel=Channel.MAIL),
    ],
    ids=["percent", "deep", "threshold"],
)
def test_more_is_bought_with_coupons_than_without_draw_by_draw(offer: Offer) -> None:
    # Under the same luck, a first week with coupons differs only by additional visits and purchases.
    more = 0
    for seed in range(20):
        with_offers, without = with_first_week_coupons(seed, eventful_world(), offer)
        assert (with_offers.visited | ~without.visited).all()
        assert (with_offers.bought | ~without.bought).all()
        more += int((with_offers.bought & ~without.bought).sum())
        # Spend outside the categories may be what an empty basket was for.
        some = without.bought.any(dim=1)
        assert (with_offers.spend >= without.spend)[some].all()
    assert more > 10


def test_a_message_brings_those_visits_that_it_should() -> None:
    world = replace(
        eventful_world(), assumed=replace(eventful_world().assumed, opt_in_share=1.0, message_lift=1.0)
    )
    gained, lost = 0, 0
    for seed in range(20):
        treated, control = (campaign(1e6, seed, world, catalogue(PUSH)) for _ in range(2))
        fond = treated.state.receptivity > 0
        with_message, without = treated.step(torch.ones(N, dtype=torch.int64)), control.step()
        assert (with_message.visited | ~without.visited)[fond].all()
        assert (~with_message.visited | without.visited)[~fond].all()
        gained += int((with_message.visited & ~without.visited).sum())
        lost += int((~with_message.visited & without.visited).sum())
    assert min(gained, lost) > 0


def test_mail_waits_until_it_is_seen() -> None:
    # It needs no consent, brings no visit by itself, tires nobody and counts towards no cap.
    assumed = replace(eventful_world().assumed, coupon_lift=0.0, opt_in_share=0.0, message_lift=9.0)
    world = replace(eventful_world(), assumed=assumed)
    offered = catalogue(percent(channel=Channel.MAIL, validity_weeks=1), PUSH, cap=FrequencyCap(1, 8))
    treated, control = (campaign(1e6, 1, world, offered) for _ in range(2))
    assert treated.mask.tolist() == [[True, True, False]] * N
    with_mail = treated.step(torch.ones(N, dtype=torch.int64))
    assert torch.equal(with_mail.visited, control.step().visited)
    assert with_mail.redeemed.any()
    for _ in range(WEEKS - 1):
        treated.step(torch.ones(N, dtype=torch.int64))
        for value in (treated.state.fatigue, treated.state.believed_fatigue, treated.state.messages):
            assert (value == 0).all()


def test_fatigue_and_opt_out_by_hand() -> None:
    assumed = replace(
        eventful_world().assumed,
        opt_in_share=1.0,
        opt_out_rested=0.0,
        opt_out_fatigued=1.0,
        fatigue_gain=0.4,
        fatigue_memory=0.5,
    )
    running = campaign(1e6, 1, replace(eventful_world(), assumed=assumed))
    push = torch.ones(N, dtype=torch.int64)
    running.step(push)  # rested users stay
    assert running.state.opted_in.all()
    torch.testing.assert_close(running.state.fatigue, torch.full((N,), 0.2))
    # At a fatigue of a fifth, those leave whose luck is below a fifth.
    unlucky = running.luck.uniform(Stream.OPT_OUT, 1) < 0.2
    running.step(push)
    assert 0 < int(unlucky.sum()) < N
    assert torch.equal(running.state.opted_in, ~unlucky)
    torch.testing.assert_close(running.state.fatigue, torch.full((N,), 0.3))
    running.step()
    torch.testing.assert_close(running.state.fatigue, torch.full((N,), 0.15))
    # The shop keeps its own account, by what it assumes of its users.
    central = market().predictor.assumed
    believed = 0.0
    for sent in (1, 1, 0):
        believed = min((believed + central.fatigue_gain * sent) * central.fatigue_memory, 1.0)
    torch.testing.assert_close(running.state.believed_fatigue, torch.full((N,), believed))
    assert not running.mask[unlucky][:, running.spec.offers.message].any()
    assert running.mask[unlucky][:, ~running.spec.offers.message].all()


def test_a_coupon_lives_for_its_weeks_and_then_releases_its_reserve() -> None:
    # Nobody notices: every coupon expires.
    world = copy.deepcopy(eventful_world())
    world.heads.redemption_bias.fill_(-50.0)
    running = campaign(1e6, 2, world, catalogue(percent(channel=Channel.MAIL, delivery_cost=0.02)))
    coupon = torch.ones(N, dtype=torch.int64)
    reserved, held = [], []
    running.step(coupon)
    for _ in range(WEEKS - 2):
        reserved.append(int(running.state.ledger.reserved))
        held.append(bool(running.state.coupons.held.all()))
        running.step()
    assert reserved == [6000 * N, 0, 0, 0]
    assert held == [True, False, False, False]
    # Issued in the last week it lives one week only.
    running.step(coupon)
    assert running.done
    assert int(running.state.ledger.reserved) == 0
    assert int(running.state.ledger.spent) == 2 * 200 * N


def test_a_redeemed_percent_coupon_is_remembered_as_a_deal() -> None:
    offered = catalogue(percent(channel=Channel.MAIL, depth=0.5), threshold(channel=Channel.MAIL))
    running = campaign(1e6, 3, catalogue=offered)
    sent = 1 + torch.arange(N) % 2
    slots = running.prediction.slots
    outcome = running.step(sent)
    deal = outcome.redeemed & (sent == 1)
    assert 0 < int(deal.sum()) < int(outcome.redeemed.sum())
    deals = running.state.deals
    assert torch.equal(deals.category[:, 0] >= 0, deal)
    assert torch.equal(deals.category[deal, 0], slots[deal, 0])
    assert (deals.depth[deal, 0] == 0.5).all()
    # Who used a coupon, of whatever kind, is known to use them.
    assert torch.equal(running.state.history.coupons_slow > 0, outcome.redeemed)
    running.step()
    assert (running.state.deals.weeks_ago[deal, 0] == 2).all()


@pytest.mark.parametrize("amount", [0.01, 0.03, 0.6, 2.3, 4.35, 19.99])
def test_a_coupon_at_its_limit_costs_what_was_reserved_to_the_tick(amount: float) -> None:
    # 2.30 is 2.2999999 in single precision: rounding down must not keep a tick.
    always = copy.deepcopy(eventful_world())
    always.heads.redemption_bias.fill_(50.0)
    for offer in (
        threshold(channel=Channel.MAIL, min_spend=20.0, max_discount=amount),
        percent(channel=Channel.MAIL, depth=1.0, max_discount=min(amount, 2.3)),
    ):
        discounts = []
        for seed in range(4):
            outcome, _ = with_first_week_coupons(seed, always, offer)
            discounts.append(outcome.discount[outcome.redeemed])
        paid = torch.cat(discounts)
        assert int(paid.max()) == to_ticks(offer.max_discount)
        if offer.kind is OfferKind.THRESHOLD:
            assert int(paid.min()) == to_ticks(offer.max_discount)


def permuted(state: MarketState, order: torch.Tensor) -> MarketState:
    moved = {}
    for f in fields(MarketState):
        value = getattr(state, f.name)
        if f.name in ("history", "coupons", "deals"):
            value = value.rows(order)
        elif isinstance(value, torch.Tensor):
            value = value[order]
        moved[f.name] = value
    return MarketState(**moved)


@pytest.mark.parametrize("budget", [0.0, 4.0, 1000.0])
def test_permuted_users_have_permuted_outcomes(budget: float) -> None:
    spec, world = market(), eventful_world()
    generator = torch.Generator().manual_seed(11)
    order = torch.randperm(N, generator=generator)
    # Three weeks in, so that coupons are held and users are tired.
    running = campaign(budget, 8)
    for _ in range(3):
        running.step(at_random(running.mask, generator))
    state, calendar, slots = running.state, running.calendar, running.prediction.slots
    offer = at_random(running.mask, generator)
    luck = running.luck
    place = luck.order(Stream.PRIORITY, 3)

    issued, sent = issue(state, offer, slots, spec.offers, 3, place)
    issued_moved, sent_moved = issue(
        permuted(state, order), offer[order], slots[order], spec.offers, 3, place[order]
    )
    assert torch.equal(sent_moved, sent[order])
    everyone = World((world,))
    after, outcome, expected = transition(issued, sent, spec.offers, everyone, calendar, luck, world.assumed)
    after_moved, outcome_moved, expected_moved = transition(
        issued_moved, sent_moved, spec.offers, everyone, calendar, luck.rows(order), world.assumed
    )
    for f in fields(Outcome):
        assert torch.equal(getattr(outcome_moved, f.name), getattr(outcome, f.name)[order])
    for f in fields(Expectation):
        assert torch.equal(getattr(expected_moved, f.name), getattr(expected, f.name)[order])
    assert torch.equal(after_moved.fatigue, after.fatigue[order])
    assert torch.equal(after_moved.ledger.spent, after.ledger.spent)
    assert torch.equal(after_moved.ledger.reserved, after.ledger.reserved)


def test_the_mask() -> None:
    offered = catalogue(
        PUSH,
        percent("20%", delivery_cost=0.02),
        percent("40%", depth=0.4, max_discount=1.2, delivery_cost=0.02),
        percent("mail", channel=Channel.MAIL, delivery_cost=0.05),
        threshold("spend 8", max_discount=2.0, delivery_cost=0.02),
    )
    running = campaign(1e6, 0, catalogue=offered)
    offers = running.spec.offers
    state = replace(running.state, opted_in=torch.arange(N) != 0)
    held = HeldCoupons.none(N)
    coupons = replace(held, weeks_left=torch.where(torch.arange(N) == 1, 1, 0))
    mask = action_mask(replace(state, coupons=coupons), offers)
    assert mask[0].tolist() == [True, False, False, False, True, False]
    assert mask[1].tolist() == [True, True, False, False, False, False]
    assert mask[2:].all()
    willing = replace(state, opted_in=torch.ones(N, dtype=torch.bool))
    for budget, allowed in (
        (0.0199, [True, False, False, False, False, False]),
        (0.03, [True, True, False, False, False, False]),
        (0.62, [True, True, True, False, False, False]),
        (0.65, [True, True, True, False, True, False]),
        (2.02, [True] * 6),
    ):
        poor = replace(willing, ledger=campaign(budget, 0).state.ledger)
        assert action_mask(poor, offers).tolist() == [allowed] * N


@pytest.mark.parametrize(
    ("messages", "weeks", "story", "allowed"),
    [
        # The story is told from the latest week to the earliest.
        (1, 1, "111111", True),
        (1, 2, "01", True),
        (1, 2, "10", False),
        (2, 3, "110", False),
        (2, 3, "101", True),
        (2, 3, "011", True),
        (2, 4, "101", False),
        (6, 8, "1111110", False),
        (6, 8, "1111101", False),
        (6, 8, "11111001", True),
        (1, 30, "0" * 28 + "1", False),
        (1, 30, "0" * 29 + "1", True),
    ],
)
def test_the_frequency_cap_looks_back_over_its_window(
    messages: int, weeks: int, story: str, allowed: bool
) -> None:
    running = campaign(
        1e6, 0, catalogue=catalogue(PUSH, percent(channel=Channel.MAIL), cap=FrequencyCap(messages, weeks))
    )
    told = sum(1 << k for k, week in enumerate(story) if week == "1")
    state = replace(
        running.state,
        opted_in=torch.ones(N, dtype=torch.bool),
        messages=torch.full((N,), told),
    )
    assert action_mask(state, running.spec.offers).tolist() == [[True, allowed, True]] * N


def test_messages_are_remembered_for_as_long_as_a_cap_may_ask() -> None:
    running = campaign(1e6, 0, catalogue=catalogue(PUSH))
    state = replace(running.state, messages=torch.full((N,), 1 << MOST_REMEMBERED_WEEKS - 1))
    push = torch.ones(N, dtype=torch.int64)
    after, _, _ = transition(
        state,
        push,
        running.spec.offers,
        running.world,
        running.calendar,
        running.luck,
        eventful_world().assumed,
    )
    assert (after.messages == 1).all()


def test_a_masked_offer_is_refused_and_nothing_happens() -> None:
    running = campaign(0.0, 0)
    before = running.state
    with pytest.raises(ValueError, match="offer 1 is masked for user 4 in week 1"):
        running.step(torch.tensor([0, 0, 0, 0, 1] + [0] * (N - 5)))
    assert running.state is before


def test_a_world_answers_for_every_user() -> None:
    one, two = eventful_world(), market().predictor
    with pytest.raises(ValueError, match="at least one simulator"):
        World(())
    with pytest.raises(ValueError, match="each user needs one"):
        World((one, two))
    assert World.of(one, 5, CPU).member is None
    assert World.of([one], 5, CPU).member is None
    shared = World.of([one, two], 5, CPU)
    assert shared.member is not None
    assert shared.member.tolist() == [0, 1, 0, 1, 0]
    assert shared.per_user([3.0, 4.0], CPU).tolist() == [3.0, 4.0, 3.0, 4.0, 3.0]
    assert float(World.of(one, 5, CPU).per_user([3.0], CPU)) == 3.0
