from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import envs.blocks
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.coupons import HeldCoupons
from envs.demo_market import N_WEEKS, demo_market
from envs.luck import Luck, Stream
from envs.observation import CONTEXT_FEATURES, Recommender
from envs.offers import Catalogue, Channel, OfferKind
from envs.simulator import Simulator

N, WEEKS = 300, 5


@cache
def market() -> MarketSpec:
    """The demo market with a threshold within reach."""
    spec = demo_market(n_users=N, horizon_weeks=WEEKS)
    offers = [
        replace(offer, min_spend=0.2 * offer.min_spend) if offer.kind is OfferKind.THRESHOLD else offer
        for offer in spec.catalogue.offers
    ]
    return replace(spec, catalogue=Catalogue(tuple(offers), spec.catalogue.cap))


@cache
def worlds() -> tuple[Simulator, Simulator]:
    """Two worlds in which everything that can happen does, and every product has more than one term."""
    out = []
    for k in range(2):
        predictor = market().predictor
        heads = copy.deepcopy(predictor.heads)
        chance = torch.Generator().manual_seed(k)
        for name in ("visit_user", "purchase_user", "purchase_rate_user", "spend_user", "trips_features"):
            getattr(heads, name).add_(0.02 * torch.randn(getattr(heads, name).shape, generator=chance))
        heads.redemption_bias.fill_(2.0 - k)
        heads.basket_loadings[:, 1:4] = 0.2
        heads.trips_loadings[:3] = -0.3
        heads.other_spend_loadings[:3] = 0.3
        heads.other_spend_share.fill_(0.7)
        heads.other_spend_deviation.fill_(0.5)
        heads.visit_week_deviation.fill_(0.1)
        heads.category_week_deviation.fill_(0.1)
        assumed = replace(
            predictor.assumed,
            opt_out_fatigued=0.2 + 0.5 * k,
            fatigue_gain=0.3 + 0.1 * k,
            message_lift=0.5 + 0.2 * k,
        )
        out.append(replace(predictor, heads=heads, assumed=assumed, name=f"world {k}"))
    return out[0], out[1]


def campaign(
    users: torch.Tensor,
    *,
    seed: int = 3,
    budget: float = UNLIMITED_BUDGET,
    world: Simulator | Sequence[Simulator] | None = None,
    member: torch.Tensor | None = None,
    spec: MarketSpec | None = None,
) -> Campaign:
    return Campaign(
        spec or market(),
        worlds()[0] if world is None else world,
        start=0,
        users=users,
        budget=budget,
        seed=seed,
        member=member,
    )


Seen = dict[str, torch.Tensor]


def tensors(value: object, name: str, n: int) -> Iterator[tuple[str, torch.Tensor]]:
    """All that is told of each of n users in a dataclass, or in those that it holds."""
    if is_dataclass(value):
        for f in fields(value):
            yield from tensors(getattr(value, f.name), f"{name}.{f.name}", n)
    elif isinstance(value, torch.Tensor) and value.dim() and len(value) == n:
        yield name, value


def play(running: Campaign) -> list[Seen]:
    """Play on by a rule that looks at nothing but user and week; all that can be seen, week by week."""
    weeks = []
    n, n_offers = running.n_users, len(running.spec.catalogue)
    while not running.done:
        prediction, mask = running.prediction, running.mask
        offer = (7 * running.users + 3 * running.state.week) % n_offers
        offer = torch.where(mask.gather(1, offer[:, None])[:, 0], offer, 0)
        seen: Seen = {"observation": running.observation(torch.full((n,), 0.7))}
        for name in ("slots", "uplift", "cost", "context"):
            seen[name] = getattr(prediction, name)
        outcome, expectation = running.step_with_expectation(offer)
        for what, value in (("outcome", outcome), ("expectation", expectation), ("state", running.state)):
            seen |= dict(tensors(value, what, n))
        weeks.append(seen)
    return weeks


def assert_same(weeks: list[Seen], others: list[Seen], rows: torch.Tensor | slice = slice(None)) -> None:
    """Bit for bit; of the first, only the given users."""
    for number, (one, other) in enumerate(zip(weeks, others, strict=True)):
        for name, value in other.items():
            assert torch.equal(one[name][rows], value), f"{name} in week {number + 1}"


@cache
def everyone() -> list[Seen]:
    return play(campaign(torch.arange(N)))


def test_a_lot_happens_and_all_of_it_is_compared() -> None:
    weeks = everyone()
    assert len(weeks[0]) > 45
    for name in ("outcome.visited", "outcome.redeemed", "outcome.discount", "outcome.delivery"):
        assert sum(int((week[name] > 0).sum()) for week in weeks) > 50
    last = weeks[-1]
    assert int((~last["state.opted_in"]).sum() - (~weeks[0]["state.opted_in"]).sum()) > 2
    assert int((last["state.deals.category"] >= 0).sum()) > 20
    assert len(torch.cat([week["outcome.offer"] for week in weeks]).unique()) == len(market().catalogue)
    # The shop looks again every week.
    left = CONTEXT_FEATURES.index("weeks_left")
    assert [week["context"][0, left] for week in weeks] == [WEEKS - number for number in range(WEEKS)]
    assert not any(torch.equal(a["uplift"], b["uplift"]) for a, b in pairwise(weeks))


def test_users_together_live_as_each_would_alone() -> None:
    for user in (0, 1, 7, 63, 128, 211, 299):
        assert_same(everyone(), play(campaign(torch.tensor([user]))), torch.tensor([user]))


@pytest.mark.parametrize("n", [2, 15, 16, 17, 33, 64, 127, 128, 129, 257])
def test_more_users_do_not_touch_those_who_were_there(n: int) -> None:
    assert_same(everyone(), play(campaign(torch.arange(n))), slice(0, n))


@settings(max_examples=15)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=40, unique=True))
def test_any_users_in_any_order(chosen: list[int]) -> None:
    users = torch.tensor(chosen)
    assert_same(everyone(), play(campaign(users)), users)


@pytest.mark.parametrize("size", [32, 100, 128])
def test_blocks_do_not_matter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = everyone()
    monkeypatch.setattr(envs.blocks, "BLOCK_USERS", size)
    assert_same(whole, play(campaign(torch.arange(N))))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert_same(whole, play(campaign(order)), order)


def test_several_worlds_at_once_are_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    member = (torch.arange(N) % 3 == 1).long()
    together = play(campaign(torch.arange(N), world=worlds(), member=member))
    for k, world in enumerate(worlds()):
        users = (member == k).nonzero()[:, 0]
        assert_same(together, play(campaign(users, world=world)), users)
    for user in (0, 1, 250):
        alone = campaign(torch.tensor([user]), world=worlds(), member=member[[user]])
        assert_same(together, play(alone), torch.tensor([user]))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert_same(together, play(campaign(order, world=worlds(), member=member[order])), order)
    monkeypatch.setattr(envs.blocks, "BLOCK_USERS", 64)
    assert_same(together, play(campaign(torch.arange(N), world=worlds(), member=member)))
    # The worlds are not the same, and nobody lives in the wrong one.
    assert not torch.equal(together[0]["expectation.visit"], everyone()[0]["expectation.visit"])


def test_without_being_told_worlds_take_turns() -> None:
    users = torch.arange(20)
    in_turn = play(campaign(users, world=worlds()))
    assert_same(in_turn, play(campaign(users, world=worlds(), member=users % 2)))
    one = play(campaign(users, world=worlds()[:1], member=0 * users))
    assert_same(one, play(campaign(users, world=worlds()[0])))


def test_the_same_seed_is_the_same_run() -> None:
    users, budget = torch.arange(60), 6.0
    one, two = (play(campaign(users, seed=5, budget=budget)) for _ in range(2))
    assert_same(one, two)
    other = play(campaign(users, seed=6, budget=budget))
    assert not torch.equal(one[0]["outcome.visited"], other[0]["outcome.visited"])
    assert sum(int(week["outcome.refused"].sum()) for week in one) > 10


def test_a_tight_budget_is_shared_without_regard_to_the_order_of_users() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    weeks = play(campaign(torch.arange(N), budget=40.0))
    assert sum(int(week["outcome.refused"].sum()) for week in weeks) > 50
    assert_same(weeks, play(campaign(order, budget=40.0)), order)


def test_two_who_drew_alike_are_still_served_in_the_same_order() -> None:
    # Of so many users some share a uniform of 23 bits; a queue by it would fall back on who stands first.
    spec = demo_market(n_users=20_000, horizon_weeks=2)
    drawn = Luck(3, torch.arange(20_000)).uniform(Stream.PRIORITY, 0)
    value, count = drawn.unique(return_counts=True)
    pair = (drawn == value[count > 1][0]).nonzero()[:2, 0]
    mail = next(k for k, o in enumerate(spec.catalogue.offers) if o.channel is Channel.MAIL)
    served = []
    for users in (pair, pair.flip(0)):
        running = campaign(users, budget=0.65, spec=spec, world=spec.predictor)
        outcome = running.step(torch.full((2,), mail))
        assert int(outcome.refused.sum()) == 1
        served.append(int(users[~outcome.refused]))
    assert served[0] == served[1]


def test_sending_nothing_is_the_control_arm() -> None:
    # Whether it is asked for or not, and whether anyone asks what was to be expected.
    users = torch.arange(40)
    asked, control, watched = (campaign(users, budget=6.0) for _ in range(3))
    while not control.done:
        outcome = control.step()
        for same in (asked.step(torch.zeros(40, dtype=torch.int64)), watched.step_with_expectation()[0]):
            for f in fields(outcome):
                assert torch.equal(getattr(same, f.name), getattr(outcome, f.name))
    for other in (asked, watched):
        state = dict(tensors(other.state, "state", 40))
        assert_same([dict(tensors(control.state, "state", 40))], [state])
    with pytest.raises(ValueError, match="the campaign is over"):
        control.step()
    with pytest.raises(ValueError, match="the campaign is over"):
        asked.step(torch.zeros(40, dtype=torch.int64))
    assert (control.weeks_left, control.done) == (0, True)


def test_treating_some_does_not_touch_the_luck_of_the_others() -> None:
    users = torch.arange(60)
    odd = users % 2 == 1
    treated, control = campaign(users), campaign(users)
    differ = 0
    while not control.done:
        offer = torch.where(odd | ~treated.mask[:, 3], 0, 3)
        one, two = treated.step(offer), control.step()
        for name in ("visited", "bought", "spend", "margin"):
            assert torch.equal(getattr(one, name)[odd], getattr(two, name)[odd])
        differ += int((one.spend != two.spend)[~odd].sum())
    assert differ > 0


def half_way(users: torch.Tensor) -> Campaign:
    running = campaign(users, budget=30.0, world=copy.deepcopy(worlds()), member=users % 2)
    for _ in range(2):
        offer = torch.where(running.mask[:, 3], 3, 0)
        running.step(offer)
    return running


@pytest.mark.parametrize("looked", [False, True], ids=["unseen", "seen"])
def test_a_campaign_taken_up_again_in_the_middle_goes_on_as_it_would_have(looked: bool) -> None:
    running = half_way(torch.arange(70))
    if looked:
        running.observation(torch.ones(70))
    copies = [pickle.loads(pickle.dumps(running)), copy.deepcopy(running), copy.copy(running)]
    rest = play(running)
    assert len(rest) == WEEKS - 2
    for other in copies:
        assert_same(rest, play(other))


def test_going_back_to_an_earlier_state_replays_it() -> None:
    running = half_way(torch.arange(70))
    state, seen = running.state, running.observation(torch.ones(70))
    before = {name: value.clone() for name, value in tensors(state, "state", 70)}
    rest = play(running)
    # What was kept was not written into meanwhile.
    assert_same([before], [dict(tensors(state, "state", 70))])
    last = running.observation(torch.ones(70))
    running.restore(state)
    assert running.weeks_left == WEEKS - 2
    assert not torch.equal(running.observation(torch.ones(70)), last)
    assert torch.equal(running.observation(torch.ones(70)), seen)
    assert_same(rest, play(running))
    # And forward again, in another campaign of the same arguments.
    other = campaign(torch.arange(70), budget=30.0, world=worlds(), member=torch.arange(70) % 2)
    other.restore(state)
    assert_same(rest, play(other))


def test_inference_mode_comes_and_goes() -> None:
    # A policy may well run in it, and the simulator must not be spoilt for those that do not.
    expected = play(half_way(torch.arange(70)))
    with torch.inference_mode():
        running = half_way(torch.arange(70))
        running.observation(torch.ones(70))
    assert_same(expected, play(running))
    with torch.inference_mode():
        assert_same(expected, play(half_way(torch.arange(70))))


def test_who_is_drawn_twice_is_two_individuals() -> None:
    twins = play(campaign(torch.tensor([5, 9, 5, 5])))
    # The first of them is who he is alone.
    assert_same(twins, play(campaign(torch.tensor([5]))), torch.tensor([0]))
    assert_same(twins, play(campaign(torch.tensor([5, 5, 9]))), torch.tensor([0, 2, 1]))
    receptivity = twins[0]["state.receptivity"]
    assert len(receptivity.unique()) == 4
    lives = torch.stack([week["outcome.spend"] for week in twins])
    assert not any(torch.equal(lives[:, a], lives[:, b]) for a, b in ((0, 2), (0, 3), (2, 3)))
    # What is known of them at the start is the same.
    start = campaign(torch.tensor([5, 5])).state
    assert torch.equal(start.embedding[0], start.embedding[1])
    assert torch.equal(start.history.category_slow[0], start.history.category_slow[1])


def test_receptivity_is_a_trait_of_user_and_world() -> None:
    spec = demo_market(n_users=1)
    users = torch.zeros(20_000, dtype=torch.int64)

    def receptivity(name: str, seed: int, spread: float) -> torch.Tensor:
        assumed = replace(spec.predictor.assumed, message_spread=spread)
        world = replace(spec.predictor, assumed=assumed, name=name)
        return campaign(users, seed=seed, world=world, spec=spec).state.receptivity.double()

    one = receptivity("a", 1, 0.5)
    assert float(one.mean()) == pytest.approx(1.0, abs=4.5 * 0.5 / 20_000**0.5)
    assert float(one.std()) == pytest.approx(0.5, rel=4.5 / 40_000**0.5)
    assert torch.equal(receptivity("a", 2, 0.5), one)
    torch.testing.assert_close(receptivity("a", 1, 1.0), 2 * one - 1, rtol=0, atol=1e-6)
    other = receptivity("b", 1, 0.5)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 4.5 / 20_000**0.5
    assert (receptivity("a", 1, 0.0) == 1).all()


def test_consent_is_drawn_anew_in_every_campaign() -> None:
    spec = demo_market(n_users=1)
    users = torch.zeros(20_000, dtype=torch.int64)
    shares = [
        campaign(users, seed=seed, world=spec.predictor, spec=spec).state.opted_in.double() for seed in (1, 2)
    ]
    share = spec.predictor.assumed.opt_in_share
    for opted_in in shares:
        assert float(opted_in.mean()) == pytest.approx(share, abs=4.5 * (0.16 / 20_000) ** 0.5)
    assert abs(float(torch.corrcoef(torch.stack(shares))[0, 1])) < 4.5 / 20_000**0.5


def test_the_promotion_calendar_moves_with_the_weeks() -> None:
    running = campaign(torch.arange(3))
    calendar = market().population.calendar
    for week in range(WEEKS):
        assert torch.equal(running.calendar.depth, calendar.depth[N_WEEKS - WEEKS + week])
        running.step()
    # Once it is over, the last week stays, so that a last observation can be made.
    assert torch.equal(running.calendar.depth, calendar.depth[-1])
    assert torch.isfinite(running.observation(torch.ones(3))).all()


@given(st.integers(1, N_WEEKS), st.integers(1, 80), st.integers(0, 2**40))
def test_a_resampled_calendar_is_made_of_blocks_of_consecutive_weeks(
    block: int, horizon: int, seed: int
) -> None:
    spec = replace(market(), horizon_weeks=horizon, resample_weeks=block)
    weeks = campaign(torch.arange(2), seed=seed, spec=spec).weeks
    assert weeks.shape == (horizon,)
    assert ((weeks >= 0) & (weeks < N_WEEKS)).all()
    for first in range(0, horizon, block):
        part = weeks[first : first + block]
        assert torch.equal(part, part[0] + torch.arange(len(part)))
        assert int(part[0]) <= N_WEEKS - block
    assert torch.equal(campaign(torch.tensor([7]), seed=seed, spec=spec).weeks, weeks)


def test_all_blocks_of_the_calendar_are_as_likely() -> None:
    spec = replace(market(), horizon_weeks=4000, resample_weeks=4)
    weeks = campaign(torch.arange(1), spec=spec).weeks
    first = weeks[::4]
    counts = torch.bincount(first, minlength=N_WEEKS - 3).double()
    assert len(counts) == N_WEEKS - 3
    expected = len(first) / len(counts)
    assert float(((counts - expected) ** 2 / expected).sum()) < 50  # chi-square of 20 degrees: p = 2e-4
    assert not torch.equal(weeks, campaign(torch.arange(1), spec=spec, seed=4).weeks)


def test_a_campaign_may_be_longer_than_the_log() -> None:
    spec = replace(market(), horizon_weeks=N_WEEKS + 6, resample_weeks=4)
    running = campaign(torch.arange(10), spec=spec)
    weeks = running.weeks.tolist()
    for week in weeks:
        assert torch.equal(running.calendar.depth, spec.population.calendar.depth[week])
        running.step(torch.where(running.mask[:, 2], 2, 0))
    assert running.done
    assert int(running.state.ledger.reserved) == 0


def test_a_market_that_cannot_be_is_refused() -> None:
    spec = demo_market(n_users=4, horizon_weeks=6)
    with pytest.raises(ValueError, match="horizon_weeks must be >= 1, got 0"):
        replace(spec, horizon_weeks=0)
    with pytest.raises(ValueError, match=r"a campaign of 7 weeks from week 19 runs past the calendar's 24"):
        replace(spec, horizon_weeks=7)
    for block in (0, 25):
        with pytest.raises(ValueError, match=rf"resample_weeks must be in 1\.\.24, got {block}"):
            replace(spec, resample_weeks=block)
    with pytest.raises(ValueError, match="cannot start at week index -1"):
        replace(spec, population=replace(spec.population, start_weeks=(-1,)))
    slot = next(offer for offer in spec.catalogue.offers if offer.kind is OfferKind.PERCENT)
    catalogue = Catalogue((spec.catalogue.offers[0], replace(slot, slot=13)))
    with pytest.raises(ValueError, match="13 slots but there are only 12 categories"):
        replace(spec, catalogue=catalogue)
    with pytest.raises(ValueError, match="needs a percent coupon in the catalogue"):
        replace(
            spec,
            catalogue=Catalogue(spec.catalogue.offers[:2]),
            recommender=Recommender.UPLIFT_PER_COST,
        )
    population = spec.population
    with pytest.raises(ValueError, match="at least one start week"):
        replace(population, start_weeks=())
    with pytest.raises(ValueError, match="differ in number"):
        replace(population, start_weeks=(1, 2))
    assert population.starts_before(24, 6) == [0]
    assert population.starts_before(23, 6) == []


# Idle weeks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_the_idle_expectation_is_that_of_the_same_week_with_nothing_held_or_sent(several: bool) -> None:
    world = list(worlds()) if several else worlds()[0]
    running = campaign(torch.arange(N), world=world)
    some_held = 0
    while not running.done:
        before = running.state
        running.restore(replace(before, coupons=HeldCoupons.none(N)))
        _, idle = running.step_with_expectation()
        assert torch.equal(idle.visit, idle.idle_visit)
        assert torch.equal(idle.margin, idle.idle_margin)
        assert float(idle.discount.abs().max()) == 0.0
        running.restore(before)
        offer = (5 * running.users + running.state.week) % len(market().catalogue)
        offer = torch.where(running.mask.gather(1, offer[:, None])[:, 0], offer, 0)
        _, expected = running.step_with_expectation(offer)
        assert torch.equal(expected.idle_visit, idle.visit)
        assert torch.equal(expected.idle_margin, idle.margin)
        alone = (offer == 0) & ~before.coupons.held
        assert torch.equal(expected.margin[alone], idle.margin[alone])
        assert not torch.equal(expected.margin, idle.margin)
        # A coupon or a message that is welcome never brings less than nothing.
        welcome = before.receptivity > 0
        assert (expected.margin >= idle.margin - 1e-5)[welcome].all()
        some_held += int(before.coupons.held.sum())
    assert some_held > 20
