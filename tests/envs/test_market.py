from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import geom

from encoders.history import MOST_TRIPS
from envs.campaign import Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.market import (
    MarketState,
    Outcome,
    Shocks,
    _geometric,
    action_mask,
    draw_shocks,
    initial_state,
    issue,
    transition,
)
from envs.money import to_ticks
from envs.simulator import HeldCoupons, Simulator

N, WEEKS = 24, 6
Choose = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@cache
def market() -> MarketSpec:
    return demo_market(n_users=N, horizon_weeks=WEEKS)


@cache
def eventful_world() -> Simulator:
    """Coupons are nearly always noticed, and messages tire users out at once."""
    predictor = market().predictor
    heads = copy.deepcopy(predictor.heads)
    heads.redemption_bias.fill_(2.0)
    assumed = replace(
        predictor.assumed,
        opt_out_rested=0.0,
        opt_out_fatigued=0.5,
        fatigue_gain=0.45,
        fatigue_memory=0.85,
        opt_in_share=0.9,
    )
    return replace(predictor, heads=heads, assumed=assumed)


def campaign(budget: float, seed: int, world: Simulator | None = None) -> Campaign:
    return Campaign(
        market(),
        world or eventful_world(),
        start=0,
        users=torch.arange(N),
        budget=budget,
        generator=torch.Generator().manual_seed(seed),
    )


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
    offer: torch.Tensor
    outcome: Outcome
    after: MarketState


def play(running: Campaign, choose: Choose, seed: int) -> list[Week]:
    generator = torch.Generator().manual_seed(seed)
    weeks = []
    while not running.done:
        before, mask = running.state, running.mask
        offer = choose(mask, generator)
        outcome, _ = running.step(offer)
        weeks.append(Week(before, mask, offer, outcome, running.state))
    return weeks


@settings(max_examples=40)
@given(st.floats(0, 1.5), st.integers(0, 2**31), st.integers(0, 2**31))
def test_invariants_of_a_campaign(budget_per_user: float, seed: int, policy_seed: int) -> None:
    offers = market().offers
    running = campaign(budget_per_user * N, seed)
    budget = to_ticks(budget_per_user * N)
    spent = torch.zeros((), dtype=torch.int64)
    gone = ~running.state.opted_in
    weeks = play(running, at_random, policy_seed)
    assert len(weeks) == WEEKS
    for number, week in enumerate(weeks):
        before, after, outcome = week.before, week.after, week.outcome
        had, sent = before.coupons.held, outcome.offer
        # Money.
        spent = spent + outcome.discount.sum() + outcome.delivery.sum()
        assert int(after.ledger.spent) == int(spent)
        assert int(after.ledger.reserved) == int(after.coupons.liability.sum())
        assert int(after.ledger.spent + after.ledger.reserved) <= budget
        assert torch.equal(outcome.delivery, offers.delivery_cost[sent])
        # Refusals are exactly the requests that were not sent.
        assert torch.equal(outcome.refused, week.offer != sent)
        assert (sent[outcome.refused] == 0).all()
        # Messages and coupons.
        assert not (offers.message[sent] & gone).any()
        gone = gone | ~after.opted_in
        assert torch.equal(after.opted_in, ~gone)
        assert not (offers.coupon[sent] & had).any()
        holds = had | offers.coupon[sent]
        assert not (outcome.redeemed & ~holds).any()
        assert not (outcome.redeemed & ~outcome.visited).any()
        assert not (outcome.redeemed & after.coupons.held).any()
        limit = torch.where(had, before.coupons.liability, offers.liability[sent])
        assert (outcome.discount <= limit).all()
        assert torch.equal(outcome.discount > 0, outcome.redeemed)
        assert torch.equal(outcome.reserved, limit)
        # Baskets.
        assert not (outcome.bought & ~outcome.visited[:, None]).any()
        assert torch.equal(outcome.spend > 0, outcome.visited)
        torch.testing.assert_close(outcome.margin, eventful_world().margin_rate * outcome.spend)
        # State.
        assert ((after.fatigue >= 0) & (after.fatigue <= 1)).all()
        assert after.week == number + 1
        assert (after.coupons.weeks_left <= WEEKS - after.week).all()
        assert torch.equal(after.coupons.held, after.coupons.weeks_left > 0)
        assert torch.equal(after.coupons.held, after.coupons.liability > 0)
    assert int(weeks[-1].after.ledger.reserved) == 0


def test_the_invariants_were_put_to_the_test() -> None:
    weeks = [week for seed in range(5) for week in play(campaign(0.5 * N, seed), at_random, seed)]
    assert sum(int(week.outcome.redeemed.sum()) for week in weeks) > 20
    assert sum(int(week.outcome.refused.sum()) for week in weeks) > 20
    assert sum(int((week.before.opted_in & ~week.after.opted_in).sum()) for week in weeks) > 5
    assert sum(int((week.before.coupons.held & week.outcome.redeemed).sum()) for week in weeks) > 5
    assert max(float(week.after.fatigue.max()) for week in weeks) > 0.8


def test_the_same_seed_is_the_same_run() -> None:
    one, two = (play(campaign(6.0, 5), at_random, 7) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        for f in fields(Outcome):
            assert torch.equal(getattr(a.outcome, f.name), getattr(b.outcome, f.name))
    other = play(campaign(6.0, 6), at_random, 7)
    assert any(not torch.equal(a.outcome.spend, b.outcome.spend) for a, b in zip(one, other, strict=True))


def test_sending_nothing_is_the_control_arm() -> None:
    treated, control = campaign(6.0, 3), campaign(6.0, 3)
    for week in play(treated, nothing, 0):
        outcome, _ = control.step_without_offers()
        for f in fields(Outcome):
            assert torch.equal(getattr(week.outcome, f.name), getattr(outcome, f.name))
    assert control.done
    with pytest.raises(ValueError, match="the campaign is over"):
        control.step_without_offers()


def test_treating_some_does_not_touch_the_luck_of_the_others() -> None:
    def half(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.where(torch.arange(len(mask)) % 2 == 0, at_random(mask, generator), 0)

    treated, control = play(campaign(1e6, 4), half, 1), play(campaign(1e6, 4), nothing, 1)
    odd = torch.arange(N) % 2 == 1
    for a, b in zip(treated, control, strict=True):
        for name in ("visited", "bought", "spend", "margin"):
            assert torch.equal(getattr(a.outcome, name)[odd], getattr(b.outcome, name)[odd])
    assert any(
        not torch.equal(a.outcome.spend[~odd], b.outcome.spend[~odd])
        for a, b in zip(treated, control, strict=True)
    )


def test_more_is_bought_with_coupons_than_without_draw_by_draw() -> None:
    # Under the same luck, a first week with coupons differs only by additional visits and purchases.
    for seed in range(10):
        with_offers = play(campaign(1e6, seed), at_random, seed)[0].outcome
        without = play(campaign(1e6, seed), nothing, seed)[0].outcome
        assert (with_offers.visited | ~without.visited).all()
        assert (with_offers.bought | ~without.bought).all()
        assert (with_offers.spend >= without.spend).all()


def test_a_user_shops_at_least_once_in_a_week_with_a_visit_and_never_in_another() -> None:
    for week in play(campaign(1e6, 5), at_random, 6):
        trips = week.after.history.last_trips
        assert torch.equal(trips > 0, week.outcome.visited)
        assert torch.equal(trips, trips.floor())


@pytest.mark.parametrize("mean", [0.0, 1e-3, 0.4, 2.0])
def test_further_trips_are_geometric(mean: float) -> None:
    """Trips of a week over a grid of uniforms that stands for the whole distribution."""
    n = 2048
    heads = copy.deepcopy(market().predictor.heads)
    heads.visit_bias.fill_(50.0)
    heads.trips_features.zero_()
    heads.trips_bias.fill_(math.log(mean) if mean else -500.0)
    world = replace(market().predictor, heads=heads)
    spec = market()
    states = spec.population.histories[0].rows(torch.zeros(n, dtype=torch.int64))
    embedding = spec.population.embeddings[0, :1].expand(n, -1)
    state = initial_state(states, embedding, torch.ones(n, dtype=torch.bool), 0)
    shocks = draw_shocks(n, spec.population.n_categories, torch.Generator().manual_seed(0))
    shocks = replace(shocks, trips=(torch.arange(n) + 0.5) / n)
    calendar = spec.population.calendar.weeks(torch.tensor(0))
    nobody = torch.zeros(n, dtype=torch.int64)
    after, outcome, _ = transition(state, nobody, spec.offers, world, calendar, shocks, world.assumed)
    assert outcome.visited.all()
    further = after.history.last_trips.double().numpy() - 1
    # Trips beyond the cap count as the cap, in the history as here.
    expected = 1 - geom.cdf(np.arange(1, int(MOST_TRIPS)), 1 / (1 + mean))
    counted = [(further >= k).mean() for k in range(1, int(MOST_TRIPS))]
    np.testing.assert_allclose(counted, expected, atol=1 / n + 1e-9)


def test_the_mean_of_further_trips_is_the_one_asked_for() -> None:
    uniform = (torch.arange(100_000).double() + 0.5) / 100_000
    for mean in (0.05, 0.7, 5.0):
        further = _geometric(torch.full_like(uniform, mean), uniform)
        assert float(further.mean()) == pytest.approx(mean, rel=2e-3)
    # The ends of the interval are no exception: zero at 0, finite just below 1.
    ends = _geometric(torch.tensor([0.7, 0.7]), torch.tensor([0.0, 1.0 - 2.0**-24]))
    assert float(ends[0]) == 0.0
    assert torch.isfinite(ends).all()


def permuted(state: MarketState, order: torch.Tensor) -> MarketState:
    coupons = HeldCoupons(**{f.name: getattr(state.coupons, f.name)[order] for f in fields(HeldCoupons)})
    return replace(
        state,
        history=state.history.rows(order),
        embedding=state.embedding[order],
        fatigue=state.fatigue[order],
        opted_in=state.opted_in[order],
        coupons=coupons,
    )


@pytest.mark.parametrize("budget", [0.0, 4.0, 1000.0])
def test_permuted_users_with_permuted_luck_have_permuted_outcomes(budget: float) -> None:
    spec, world = market(), eventful_world()
    generator = torch.Generator().manual_seed(11)
    order = torch.randperm(N, generator=generator)
    # Three weeks in, so that coupons are held and users are tired.
    running = campaign(budget, 8)
    for _ in range(3):
        running.step(at_random(running.mask, generator))
    state, calendar, slots = running.state, running.calendar, running.prediction.slots
    offer = at_random(running.mask, generator)
    shocks = draw_shocks(N, spec.population.n_categories, generator)
    moved = Shocks(**{f.name: getattr(shocks, f.name)[order] for f in fields(Shocks)})

    issued, sent = issue(state, offer, slots, spec.offers, 3, shocks.priority)
    issued_moved, sent_moved = issue(
        permuted(state, order), offer[order], slots[order], spec.offers, 3, moved.priority
    )
    assert torch.equal(sent_moved, sent[order])
    after, outcome, expected = transition(issued, sent, spec.offers, world, calendar, shocks, world.assumed)
    after_moved, outcome_moved, expected_moved = transition(
        issued_moved, sent_moved, spec.offers, world, calendar, moved, world.assumed
    )
    for name in ("visited", "bought", "redeemed", "discount", "delivery"):
        assert torch.equal(getattr(outcome_moved, name), getattr(outcome, name)[order])
    torch.testing.assert_close(outcome_moved.spend, outcome.spend[order])
    torch.testing.assert_close(expected_moved.margin, expected.margin[order])
    torch.testing.assert_close(after_moved.fatigue, after.fatigue[order])
    assert torch.equal(after_moved.ledger.spent, after.ledger.spent)
    assert torch.equal(after_moved.ledger.reserved, after.ledger.reserved)


def test_fatigue_and_opt_out_by_hand() -> None:
    assumed = replace(eventful_world().assumed, opt_in_share=1.0, opt_out_rested=0.01, opt_out_fatigued=0.46)
    world = replace(eventful_world(), assumed=replace(assumed, fatigue_gain=0.4, fatigue_memory=0.5))
    running = campaign(1e6, 1, world)
    push = torch.ones(N, dtype=torch.int64)
    quiet = draw_shocks(N, market().population.n_categories, torch.Generator().manual_seed(0))
    quiet = replace(quiet, opt_out=torch.full((N,), 0.01))
    running.step(push, quiet)  # rested users opt out below 0.01 only
    assert running.state.opted_in.all()
    torch.testing.assert_close(running.state.fatigue, torch.full((N,), 0.2))
    # At fatigue 0.2 a fifth of the way from 0.01 to 0.46: those below 0.1 leave.
    uniform = torch.linspace(0, 0.99, N)
    running.step(push, replace(quiet, opt_out=uniform))
    assert torch.equal(running.state.opted_in, uniform >= 0.1)
    torch.testing.assert_close(running.state.fatigue, torch.full((N,), 0.3))
    running.step_without_offers()
    torch.testing.assert_close(running.state.fatigue, torch.full((N,), 0.15))
    assert not running.mask[uniform < 0.1, 1:].any()


def test_a_coupon_lives_for_its_weeks_and_then_releases_its_reserve() -> None:
    # Nobody notices: every coupon expires.
    world = copy.deepcopy(eventful_world())
    world.heads.redemption_bias.fill_(-50.0)
    world = replace(world, assumed=replace(world.assumed, opt_in_share=1.0, opt_out_fatigued=0.0))
    running = campaign(1e6, 2, world)
    coupon = torch.full((N,), 2)  # 20%, at most 0.60, two weeks
    reserved, held = [], []
    running.step(coupon)
    for _ in range(WEEKS - 2):
        reserved.append(int(running.state.ledger.reserved))
        held.append(bool(running.state.coupons.held.all()))
        running.step_without_offers()
    assert reserved == [6000 * N, 0, 0, 0]
    assert held == [True, False, False, False]
    # Issued in the last week it lives one week only.
    running.step(coupon)
    assert running.done
    assert int(running.state.ledger.reserved) == 0
    assert int(running.state.ledger.spent) == 2 * 200 * N


def test_the_mask() -> None:
    running = campaign(1e6, 0, replace(eventful_world()))
    offers, state = market().offers, running.state
    state = replace(state, opted_in=torch.arange(N) != 0)
    held = HeldCoupons.none(N)
    coupons = replace(held, category=torch.where(torch.arange(N) == 1, 5, -1))
    mask = action_mask(replace(state, coupons=coupons), offers)
    assert mask[0].tolist() == [True] + [False] * 7
    assert mask[1].tolist() == [True, True] + [False] * 6
    assert mask[2:].all()
    poor = campaign(0.03, 0)
    allowed = action_mask(replace(poor.state, opted_in=torch.ones(N, dtype=torch.bool)), offers)
    assert allowed.tolist() == [[True, True] + [False] * 6] * N
    exact = campaign(0.62, 0)
    allowed = action_mask(replace(exact.state, opted_in=torch.ones(N, dtype=torch.bool)), offers)
    assert allowed[0].tolist() == [True, True, True, False, True, False, True, False]


def test_a_masked_offer_is_refused_and_nothing_happens() -> None:
    running = campaign(0.0, 0)
    before = running.state
    with pytest.raises(ValueError, match="offer 1 is masked for user 4 in week 1"):
        running.step(torch.tensor([0, 0, 0, 0, 1] + [0] * (N - 5)))
    assert running.state is before


def test_a_campaign_ends_with_its_horizon() -> None:
    running = campaign(5.0, 0)
    play(running, nothing, 0)
    assert (running.weeks_left, running.done) == (0, True)
    with pytest.raises(ValueError, match="the campaign is over"):
        running.step(torch.zeros(N, dtype=torch.int64))


def test_the_promotion_calendar_moves_with_the_weeks() -> None:
    running = campaign(5.0, 0)
    calendar = market().population.calendar
    for week in range(WEEKS):
        assert torch.equal(running.calendar.depth, calendar.depth[24 - WEEKS + week])
        running.step_without_offers()


def test_a_market_that_cannot_be_is_refused() -> None:
    spec = market()
    with pytest.raises(ValueError, match="horizon_weeks must be >= 1, got 0"):
        replace(spec, horizon_weeks=0)
    with pytest.raises(ValueError, match=r"a campaign of 7 weeks from week 19 runs past the calendar's 24"):
        replace(spec, horizon_weeks=7)
    with pytest.raises(ValueError, match="cannot start at week index -1"):
        replace(spec, population=replace(spec.population, start_weeks=(-1,)))
    offer = replace(spec.catalogue.offers[2], slot=13)
    catalogue = replace(spec.catalogue, offers=(spec.catalogue.offers[0], offer))
    with pytest.raises(ValueError, match="13 slots but there are only 12 categories"):
        replace(spec, catalogue=catalogue)
    population = spec.population
    with pytest.raises(ValueError, match="at least one start week"):
        replace(population, start_weeks=())
    with pytest.raises(ValueError, match="differ in number"):
        replace(population, start_weeks=(1, 2))
    assert population.starts_before(24, WEEKS) == [0]
    assert population.starts_before(23, WEEKS) == []
