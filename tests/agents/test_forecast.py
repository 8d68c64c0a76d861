from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import forecast
from agents.dual_prices import surcharged
from agents.forecast import (
    CORRECTION,
    Correction,
    PIDPacing,
    ReserveRule,
    ReSolvedPacing,
    SpendPlan,
    follow,
    plan_spend,
    reservable,
    twin,
    within_reserve,
)
from agents.pacing import Pacer, PriceRange, WeekPrices, choose, expected_commitment, price_range
from agents.policy import ExploringPolicy, MyopicUpliftPolicy, NoOfferPolicy, Policy, RandomPolicy
from agents.rollout import CampaignSetting, play
from agents.visit_value import VisitValue
from envs.campaign import Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.ledger import Ledger
from envs.market import MarketState
from envs.money import to_ticks
from envs.offers import Catalogue, Offer, OfferKind
from envs.simulator import Simulator

N, WEEKS = 24, 4
FAMILIES = ((0.0, ReserveRule.PRICE), (0.5, ReserveRule.PRICE), (0.5, ReserveRule.SURCHARGE))


@cache
def market(n: int = N, horizon: int = WEEKS, seed: int = 0) -> MarketSpec:
    return demo_market(n_users=n, horizon_weeks=horizon, seed=seed)


@cache
def visit_value(horizon: int = WEEKS) -> VisitValue:
    """Untrained: any value of a visit will do where only the mechanics are tested."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return VisitValue(4, horizon, 0.28).eval().requires_grad_(False)


def other_world(spec: MarketSpec) -> Simulator:
    """A world that the predictor is wrong about: coupons are used, messages tire, users differ."""
    heads = copy.deepcopy(spec.predictor.heads)
    heads.redemption_bias.fill_(1.5)
    heads.visit_week_deviation.fill_(0.1)
    assumed = replace(spec.predictor.assumed, message_spread=1.0, fatigue_gain=0.45, opt_out_fatigued=0.3)
    return replace(spec.predictor, heads=heads, assumed=assumed, name="another")


def started(
    budget: float,
    *,
    spec: MarketSpec | None = None,
    world: Simulator | None = None,
    users: torch.Tensor | None = None,
    weeks: int = 0,
    seed: int = 0,
) -> Campaign:
    """A campaign, perhaps with a few weeks of random offers behind it."""
    spec = spec or market()
    users = torch.arange(spec.population.n_users) if users is None else users
    running = Campaign(spec, world or spec.predictor, start=0, users=users, budget=budget, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(weeks):
        running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
    return running


def at(running: Campaign, week: int, budget: float, spent: float) -> Campaign:
    """The campaign put into a week with so much spent and nothing reserved."""
    ticks = [torch.tensor(to_ticks(value)) for value in (budget, spent, 0.0)]
    running.restore(replace(running.state, week=week, ledger=Ledger(*ticks)))
    return running


@pytest.fixture
def few_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans from fewer plays, which take a fifth of the time."""
    for name, value in (("LEVELS", 5), ("REFINED", 1), ("FAMILIES", FAMILIES)):
        monkeypatch.setattr(forecast, name, value)


# The twin --------------------------------------------------------------------------------------------


def same_state(one: MarketState, other: MarketState) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return torch.equal(a, b)
        if hasattr(a, "__dataclass_fields__"):
            return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))  # type: ignore[arg-type]
        return a == b

    return equal(one, other)


@pytest.mark.parametrize("weeks", [0, 1, 3])
def test_a_twin_gets_its_users_share_of_the_free_money(weeks: int) -> None:
    running = started(40.0, world=other_world(market()), weeks=weeks)
    ledger = running.state.ledger
    for places in (torch.tensor([5, 2, 17, 9]), torch.arange(N), torch.tensor([3])):
        copied = twin(running, places, seed=1)
        own = copied.state.ledger
        reserved = int(running.state.coupons.liability[places].sum())
        assert int(own.reserved) == int(copied.state.coupons.liability.sum()) == reserved
        assert int(own.spent) == 0
        assert int(own.available) == int(ledger.available) * len(places) // N
        assert int(own.budget) == int(own.available) + reserved
    # All of the users have all of what is not spent.
    everyone = twin(running, torch.arange(N), seed=1).state.ledger
    assert int(everyone.budget) == int(ledger.budget - ledger.spent)
    assert int(everyone.reserved) == int(ledger.reserved)
    # Twins of all parts together never have more than there is.
    parts = [twin(running, torch.arange(first, N, 5), seed=1).state.ledger for first in range(5)]
    assert sum(int(part.budget) for part in parts) <= int(everyone.budget)
    if weeks:
        assert int(ledger.spent) > 0
        assert int(ledger.reserved) > 0


def test_a_twin_knows_what_the_shop_knows_and_no_more() -> None:
    running = started(200.0, world=other_world(market()), weeks=2)
    state, places = running.state, torch.tensor([7, 0, 11, 20, 3])
    assert not torch.equal(state.fatigue, state.believed_fatigue)
    copied = twin(running, places, seed=5)
    assert copied.world.simulators == (market().predictor,)
    assert (copied.weeks_left, copied.n_users) == (running.weeks_left, 5)
    assert torch.equal(copied.users, running.users[places])
    assert torch.equal(copied.state.fatigue, state.believed_fatigue[places])
    for name in ("believed_fatigue", "opted_in", "messages", "embedding"):
        assert torch.equal(getattr(copied.state, name), getattr(state, name)[places]), name
    for name in ("coupons", "deals", "history"):
        whole = getattr(state, name).rows(places)
        for f in fields(whole):
            mine, other = getattr(getattr(copied.state, name), f.name), getattr(whole, f.name)
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(other)), f"{name}.{f.name}"
    # So the shop foresees for them what it foresees in the campaign; the money aside.
    for name in ("slots", "uplift", "cost", "context"):
        seen = getattr(copied.prediction, name)
        torch.testing.assert_close(seen, getattr(running.prediction, name)[places])
    # What the world knows and the shop does not leaves no trace.
    unseen = replace(state, fatigue=1.0 - state.fatigue, receptivity=-state.receptivity)
    running.restore(unseen)
    assert same_state(twin(running, places, seed=5).state, copied.state)


def test_a_twin_lives_on_by_itself() -> None:
    twinned, alone = (started(60.0, world=other_world(market()), weeks=1) for _ in range(2))
    first, second, third = (twin(twinned, torch.arange(0, N, 2), seed) for seed in (3, 3, 4))
    state = twinned.state
    ends = []
    for copied in (first, second, third):
        while not copied.done:
            copied.step(torch.where(copied.mask[:, 3], 3, 0))
        ends.append(copied.state)
    assert same_state(ends[0], ends[1])
    assert not same_state(ends[0], ends[2])
    assert twinned.state is state
    while not alone.done:
        for running in (twinned, alone):
            running.step(torch.where(running.mask[:, 5], 5, 0))
        assert same_state(twinned.state, alone.state)


# What may be reserved --------------------------------------------------------------------------------


def coupons_of(*validities: int) -> MarketSpec:
    offers = [Offer("nothing", OfferKind.NONE), Offer("push", OfferKind.PUSH, delivery_cost=0.02)]
    offers += [
        Offer(
            f"{weeks} weeks",
            OfferKind.PERCENT,
            slot=1,
            depth=0.3,
            max_discount=0.6,
            validity_weeks=weeks,
            delivery_cost=0.02,
        )
        for weeks in validities
    ]
    return replace(market(60, 6), catalogue=Catalogue(tuple(offers)))


@pytest.mark.parametrize(("validities", "longest"), [((1,), 1), ((2, 1), 2), ((3,), 3), ((9,), 9)])
def test_a_week_may_reserve_its_share_of_what_is_not_spent(validities: tuple[int, ...], longest: int) -> None:
    running = started(60.0, spec=coupons_of(*validities))
    ledger = running.state.ledger
    for week, spent, reserved in ((0, 0.0, 0.0), (2, 12.0, 6.0), (4, 30.0, 25.0), (5, 0.0, 59.0)):
        ticks = [torch.tensor(to_ticks(value)) for value in (60.0, spent, reserved)]
        running.restore(replace(running.state, week=week, ledger=Ledger(*ticks)))
        share = (60.0 - spent) / min(longest, 6 - week)
        assert reservable(running) == pytest.approx(min(60.0 - spent - reserved, share))
    assert int(ledger.budget) == 600_000
    # Once the campaign is over there is no week to share with, and still a number.
    running.restore(replace(running.state, week=6))
    assert reservable(running) == pytest.approx(1.0)


@pytest.mark.parametrize("rule", ReserveRule)
@pytest.mark.parametrize("validity", [1, 2, 3])
def test_coupons_of_many_weeks_leave_money_for_every_week(validity: int, rule: ReserveRule) -> None:
    # Nothing is redeemed: all that is reserved comes back when it expires, and only delivery is spent.
    spec = coupons_of(validity)
    heads = copy.deepcopy(spec.predictor.heads)
    heads.redemption_bias.fill_(-40.0)
    running = started(12.0, spec=spec, world=replace(spec.predictor, heads=heads))
    policy = MyopicUpliftPolicy(spec.layout)
    while not running.done:
        # Each week has about its share of what is not spent, whatever the weeks before it reserved.
        left = 12.0 - float(running.state.ledger.spent) / 10_000
        assert reservable(running) > 0.8 * left / validity
        found = within_reserve(policy, running, WeekPrices(0.05, 0.5), rule)
        outcome = running.step(choose(policy, running, found).argmax(dim=1))
        assert not outcome.refused.any()
        assert bool((outcome.offer == 2).any())


@pytest.mark.parametrize("rule", ReserveRule)
@pytest.mark.parametrize("budget", [2.0, 6.0, 20.0])
@pytest.mark.parametrize("weeks", [0, 2])
def test_prices_within_the_reserve_are_the_lowest_that_fit(
    budget: float, weeks: int, rule: ReserveRule
) -> None:
    running = started(budget, spec=market(60), weeks=0)
    policy = MyopicUpliftPolicy(running.spec.layout)
    for _ in range(weeks):
        found = within_reserve(policy, running, WeekPrices(0.3), rule)
        running.step(choose(policy, running, found).argmax(dim=1))
    start, left = WeekPrices(0.1, 0.4), running.weeks_left
    longest = int(running.spec.offers.validity_weeks.max())
    found = within_reserve(policy, running, start, rule)
    free = reservable(running)

    def worst(by: float) -> float:
        prices = WeekPrices(start.spend + by, start.pressure)
        if rule is ReserveRule.SURCHARGE:
            spend, pressure = surcharged(start.spend, start.pressure, by, left, longest)
            prices = WeekPrices(float(spend), float(pressure))
        return expected_commitment(running, choose(policy, running, prices))[1]

    by = found.spend - start.spend
    assert worst(by) <= free
    if by > 0:
        assert worst(by * 0.998) > free
        assert (found.pressure == 0.4) is (rule is ReserveRule.PRICE)
    else:
        assert found == start
    # A rule without chance asks for no more than that, and is refused nothing.
    outcome = running.step(choose(policy, running, found).argmax(dim=1))
    assert not outcome.refused.any()
    # Prices that fit are left as they are.
    again = started(1e5, spec=market(60))
    assert within_reserve(policy, again, start, rule) == start


@pytest.mark.parametrize("rule", ReserveRule)
def test_the_reserve_holds_from_any_planned_price(rule: ReserveRule) -> None:
    running = started(6.0, spec=market(60))
    policy = MyopicUpliftPolicy(running.spec.layout)
    prices = price_range(running.prediction.uplift, running.prediction.budget_use(1.0))
    free = reservable(running)
    # The range has a price that fits ...
    dear = expected_commitment(running, choose(policy, running, WeekPrices(prices.high, 0.3)))
    assert dear[1] <= free
    # ... so it must be found, also from the lowest price that PID makes of the range's lower end.
    found = within_reserve(policy, running, WeekPrices(prices.low * CORRECTION.low, 0.3), rule)
    assert expected_commitment(running, choose(policy, running, found))[1] <= free


# Plans -----------------------------------------------------------------------------------------------


def planned(
    budget: float,
    *,
    weeks: int = 0,
    policy: Policy | None = None,
    n_users: int = 600,
    seed: int = 0,
    running: Campaign | None = None,
    value: VisitValue | None = None,
) -> SpendPlan:
    running = running or started(budget, weeks=weeks)
    policy = policy or MyopicUpliftPolicy(running.spec.layout)
    prices = price_range(running.prediction.uplift, running.prediction.budget_use(1.0))
    value = value or visit_value(running.spec.horizon_weeks)
    return plan_spend(policy, running, prices, value, n_users=n_users, seed=seed)


@pytest.mark.usefixtures("few_plays")
def test_a_plan_follows_from_its_arguments_and_disturbs_nothing() -> None:
    torch.manual_seed(3)
    chance = torch.get_rng_state()
    asked, alone = (started(8.0, weeks=1, world=other_world(market())) for _ in range(2))
    state = asked.state
    one, two = planned(8.0, running=asked), planned(8.0, running=asked)
    assert one.tried == two.tried
    assert (one.prices, one.reached, one.margin) == (two.prices, two.reached, two.margin)
    assert np.array_equal(one.spend, two.spend)
    assert asked.state is state
    assert torch.equal(torch.get_rng_state(), chance)
    while not alone.done:
        for running in (asked, alone):
            running.step(torch.where(running.mask[:, 3], 3, 0))
        assert same_state(asked.state, alone.state)
    other = planned(8.0, weeks=1, seed=1)
    assert other.tried != planned(8.0, weeks=1).tried


@pytest.mark.usefixtures("few_plays")
@pytest.mark.parametrize("weeks", [0, 1, 3])
def test_a_plan_is_the_best_of_what_was_tried(weeks: int) -> None:
    running = started(8.0, weeks=weeks)
    plan = planned(8.0, running=running)
    assert len(plan.prices) == len(plan.reached) == WEEKS
    assert plan.spend.shape == (WEEKS,)
    # Weeks that have passed: the first planned week's prices, and nothing spent.
    assert (plan.spend[:weeks] == 0).all()
    assert (plan.spend[weeks:] >= 0).all()
    assert set(plan.prices[:weeks]) <= {plan.prices[weeks]}
    assert set(plan.reached[:weeks]) <= {plan.reached[weeks]}
    # λ only rises to what can be reserved, and so does the pressure where the week alone is dearer.
    for start, reached in zip(plan.prices, plan.reached, strict=True):
        assert reached.spend >= start.spend
        assert reached.pressure >= start.pressure
        assert reached.pressure == start.pressure or plan.rule is ReserveRule.SURCHARGE
    margins = [margin for *_, margin, _ in plan.tried]
    assert plan.margin == max(margins)
    best = plan.tried[margins.index(plan.margin)]
    assert best[2] is plan.rule
    assert best[4] == pytest.approx(plan.spend.sum())
    assert len(plan.tried) >= 3 * 5
    assert {(pressure, rule) for _, pressure, rule, _, _ in plan.tried} == set(FAMILIES)
    # One pair of multipliers explains all weeks: λ falls by a week's multiplier, and by the same each week.
    of_week = [price.spend * price.pressure / (WEEKS - week) for week, price in enumerate(plan.prices)]
    assert of_week[weeks:] == pytest.approx([of_week[weeks]] * (WEEKS - weeks))
    of_end = [price.spend * (1.0 - price.pressure) for price in plan.prices]
    assert of_end[weeks:] == pytest.approx([of_end[weeks]] * (WEEKS - weeks))


@pytest.mark.usefixtures("few_plays")
def test_planned_spend_is_within_the_budget_and_more_money_never_brings_less(
    fitted: tuple[MarketSpec, VisitValue],
) -> None:
    spec, value = fitted
    users = torch.arange(48).repeat(3)
    plans = []
    for budget in (0.0, 2.0, 6.0, 25.0):
        running = started(budget, spec=spec, users=users)
        plans.append(planned(budget, running=running, value=value))
        # Spend is that expected of each week: it may miss the budget by chance, and hardly does.
        assert plans[-1].spend.sum() <= 1.01 * budget
        assert plans[-1].margin >= 0
    margins = [plan.margin for plan in plans]
    assert margins[0] == 0
    for less, more in pairwise(margins):
        assert more >= 0.98 * less
    assert margins[-1] > 2 * margins[1]


@pytest.mark.usefixtures("few_plays")
def test_a_sample_of_users_plans_for_all() -> None:
    # Forty of each of six users: any sample is much like the whole.
    users = torch.arange(6).repeat(40)
    whole, part = (
        planned(20.0, running=started(20.0, users=users), n_users=n_users) for n_users in (600, 120)
    )
    assert part.spend.sum() == pytest.approx(whole.spend.sum(), rel=0.15)
    assert part.margin == pytest.approx(whole.margin, rel=0.25)


def test_a_plan_keeps_to_the_price_range() -> None:
    running = started(1e4)
    prices = price_range(running.prediction.uplift, running.prediction.budget_use(1.0))
    plan = planned(1e4, running=running)
    for level, *_ in plan.tried:
        assert prices.low * (1 - 1e-9) <= level <= prices.high * (1 + 1e-9)


# Following a plan ------------------------------------------------------------------------------------


def synthetic(price: float, spend: Sequence[float], pressure: float = 0.5, already: float = 0.0) -> SpendPlan:
    prices = tuple(WeekPrices(price, pressure) for _ in spend)
    return SpendPlan(prices, ReserveRule.PRICE, prices, np.array(spend, dtype=np.float64), 1.0, already, ())


class DearestCoupon:
    """Wants the dearest coupon for everyone whatever the price: only the ledger can hold it."""

    name = "reckless"

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        last = mask.long() * torch.arange(1, mask.shape[1] + 1)
        return torch.nn.functional.one_hot(last.argmax(dim=1), mask.shape[1]).float()


def some_policies(spec: MarketSpec) -> list[Policy]:
    myopic = MyopicUpliftPolicy(spec.layout)
    return [myopic, RandomPolicy(), ExploringPolicy(myopic, 0.4), DearestCoupon(), NoOfferPolicy()]


@settings(max_examples=100)
@given(
    budget=st.floats(0, 20),
    market_seed=st.integers(0, 7),
    seed=st.integers(0, 2**40),
    which=st.integers(0, 4),
    price=st.floats(1e-3, 10),
    pressure=st.floats(0, 1),
    shares=st.lists(st.floats(0, 1.5), min_size=3, max_size=3),
    wrong=st.booleans(),
)
def test_no_plan_however_wrong_overspends(
    budget: float,
    market_seed: int,
    seed: int,
    which: int,
    price: float,
    pressure: float,
    shares: list[float],
    wrong: bool,
) -> None:
    spec = market(12, 3, market_seed)
    plan = synthetic(price, [share * budget for share in shares], pressure)
    world = other_world(spec) if wrong else spec.predictor
    setting = CampaignSetting(world, 0, torch.arange(12), seed)
    pacers: list[Pacer] = [ReSolvedPacing(plan), PIDPacing(plan)]
    for pacer in pacers:
        result = play(some_policies(spec)[which], spec, setting, budget, pacer)
        # The cap is the budget rounded to a tick.
        assert (result.committed <= budget + 0.5e-4 + 1e-9).all()
        assert result.cost.sum() <= result.peak_commitment + 1e-9
        assert np.isfinite(result.dual_price).all()
        assert (result.dual_price >= price * CORRECTION.low * (1 - 1e-9)).all()
        assert result.pressure.tolist() == [pressure] * 3


@pytest.mark.usefixtures("few_plays")
@pytest.mark.parametrize("budget", [3.0, 6.0])
def test_what_the_plan_spends_is_spent_where_the_predictor_is_right(
    fitted: tuple[MarketSpec, VisitValue], budget: float
) -> None:
    spec, value = fitted
    users = torch.arange(48).repeat(4)
    policy = MyopicUpliftPolicy(spec.layout)
    plan = planned(budget, running=started(budget, spec=spec, users=users), value=value)
    # The plan itself spends nearly all, and so do those that follow it, with other luck.
    assert plan.spend.sum() >= 0.97 * budget
    for seed in (101, 102):
        setting = CampaignSetting(spec.predictor, 0, users, seed)
        pacers: list[Pacer] = [ReSolvedPacing(plan), PIDPacing(plan)]
        for pacer in pacers:
            result = play(policy, spec, setting, budget, pacer, value)
            assert 0.97 * budget <= result.cost.sum() <= budget + 0.5e-4


def test_resolving_gives_a_week_the_plans_share_of_the_money_left() -> None:
    # Random offers cost in proportion to 1 / (1 + λ): the re-solved price is known in closed form.
    running = started(1.0)
    plan = synthetic(2.0, [1.0, 2.0, 3.0, 4.0])
    for spent in (0.5, 1.0, 2.0):
        at(running, 1, 1e4, spent)
        # Reserves do not bind; the plan's week 2 is 2 of the 1e4 - 1 left then.
        full = expected_commitment(running, choose(RandomPolicy(), running, WeekPrices(1e-9, 0.5)))[0]
        target = (1e4 - spent) * 2.0 / (1e4 - 1.0)
        found = ReSolvedPacing(plan).prices(RandomPolicy(), running)
        by_hand = min(max(full / target - 1.0, 2.0 * CORRECTION.low), 2.0 * CORRECTION.high)
        assert found.spend == pytest.approx(by_hand, rel=1e-3)
        assert found.pressure == 0.5


@pytest.mark.parametrize("which", ["re-solved", "pid"])
def test_money_is_dearer_ahead_of_the_plan_and_cheaper_behind(which: str) -> None:
    running = started(1.0)
    # Messages alone: nothing is reserved, and what they cost at the plan's price is what is planned.
    cost = expected_commitment(running, choose(OnlyPush(), running, WeekPrices(2.0, 0.5)))[0]
    plan = synthetic(2.0, [cost] * 4)
    found = []
    for spent in (0.2, 0.6, 1.0, 1.4, 1.8):
        pacer: Pacer = ReSolvedPacing(plan) if which == "re-solved" else PIDPacing(plan)
        found.append(pacer.prices(OnlyPush(), at(running, 1, 4 * cost, spent * cost)).spend)
    assert all(later > earlier for earlier, later in pairwise(found))
    # On plan, the price is the plan's.
    assert found[2] == pytest.approx(2.0, rel=0.02)


class OnlyPush(RandomPolicy):
    """Random, but with messages alone: they cost as much as they can cost."""

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        only = torch.zeros_like(mask)
        only[:, :2] = mask[:, :2]
        return super().probabilities(observation, only)


def test_pid_by_hand_over_three_weeks() -> None:
    plan = SpendPlan(
        prices=tuple(WeekPrices(price, 0.3) for price in (2.0, 1.8, 1.6, 1.4)),
        rule=ReserveRule.PRICE,
        reached=tuple(WeekPrices(9.0, 0.3) for _ in range(4)),
        spend=np.array([4.0, 3.0, 2.0, 1.0]),
        margin=1.0,
        already=0.0,
        tried=(),
    )
    running = started(1.0)
    pid = PIDPacing(plan, proportional=3.0, integral=0.5, derivative=2.0)
    found = []
    for week, spent in ((0, 0.0), (1, 5.0), (2, 6.5)):
        found.append(pid.prices(NoOfferPolicy(), at(running, week, 100.0, spent)))
    # e: nothing yet; a tenth of all ahead; a twentieth behind.
    assert pid.errors == pytest.approx([0.0, 0.1, -0.05])
    exponents = [
        0.0,
        3.0 * 0.1 + 0.5 * 0.1 + 2.0 * 0.1,
        3.0 * -0.05 + 0.5 * (0.1 - 0.05) + 2.0 * (-0.05 - 0.1),
    ]
    expected = [price * math.exp(e) for price, e in zip((2.0, 1.8, 1.6), exponents, strict=True)]
    assert [prices.spend for prices in found] == pytest.approx(expected)
    assert {prices.pressure for prices in found} == {0.3}


def test_pid_keeps_to_its_limits_and_remembers_one_campaign_only() -> None:
    plan = synthetic(2.0, [1.0, 1.0, 1.0, 1.0])
    running = started(1.0)
    ahead, behind = PIDPacing(plan), PIDPacing(plan)
    assert ahead.prices(NoOfferPolicy(), at(running, 1, 100.0, 30.0)).spend == pytest.approx(16.0)
    assert behind.prices(NoOfferPolicy(), at(running, 3, 100.0, 0.0)).spend == pytest.approx(0.4)
    assert (len(ahead.errors), len(behind.errors)) == (1, 1)
    # A plan that spends nothing divides by nothing.
    nothing = PIDPacing(synthetic(2.0, [0.0] * 4))
    assert nothing.prices(NoOfferPolicy(), at(running, 1, 100.0, 0.0)).spend == pytest.approx(2.0)


def test_resolving_a_plan_that_has_spent_all_gives_the_week_what_is_left() -> None:
    running = at(started(1.0), 2, 50.0, 0.0)
    plan = synthetic(1.0, [25.0, 25.0, 0.5, 0.5])
    # The plan had spent its money by now: all that is left may go.
    assert ReSolvedPacing(plan).prices(RandomPolicy(), running).spend == pytest.approx(0.2)
    # And a plan that sends nothing this week sends nothing: the price is as high as it may be.
    idle = synthetic(1.0, [1.0, 1.0, 0.0, 0.0])
    assert ReSolvedPacing(idle).prices(RandomPolicy(), running).spend == pytest.approx(8.0)


def test_prices_never_leave_their_range_around_the_plan() -> None:
    running = started(1.0)
    wide = PriceRange(2.0 * CORRECTION.low, 2.0 * CORRECTION.high)
    for spent in (0.0, 5.0, 9.9):
        for spend in ([1.0] * 4, [0.0] * 4, [9.0, 0.1, 0.1, 0.1]):
            found = ReSolvedPacing(synthetic(2.0, spend)).prices(RandomPolicy(), at(running, 1, 10.0, spent))
            assert wide.low * (1 - 1e-9) <= found.spend <= wide.high * (1 + 1e-9)


@pytest.mark.parametrize("which", ["re-solved", "pid"])
def test_a_plan_made_in_the_middle_is_followed_from_there(which: str) -> None:
    running = started(1.0)
    cost = expected_commitment(running, choose(OnlyPush(), running, WeekPrices(2.0, 0.5)))[0]
    # Half of the money is gone when the plan is made, which shares the rest out between the last two weeks.
    plan = synthetic(2.0, [0.0, 0.0, cost, cost], already=2 * cost)
    at(running, 2, 4 * cost, 2 * cost)
    pacer: Pacer = ReSolvedPacing(plan) if which == "re-solved" else PIDPacing(plan)
    assert pacer.prices(OnlyPush(), running).spend == pytest.approx(2.0, rel=0.02)


def test_a_campaign_follows_its_plan_by_the_correction_asked_for() -> None:
    plan = synthetic(2.0, [1.0, 1.0, 1.0, 1.0])
    assert follow(plan, Correction("pid")) == PIDPacing(plan)
    assert follow(plan, Correction("re-solve")) == ReSolvedPacing(plan)
