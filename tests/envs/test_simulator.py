from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from envs.assumptions import AssumedResponse
from envs.campaign import Campaign, MarketSpec
from envs.coupons import DealMemory
from envs.demo_market import demo_heads, demo_market
from envs.luck import Luck
from envs.market import Outcome, issue, transition
from envs.money import to_currency
from envs.offers import Catalogue, Channel, Offer, OfferKind
from envs.simulator import CouponTerms, Expectation, Outlook, Simulator, expected_discount, normal_cdf

Z = np.linspace(-9, 9, 40_001)
DENSITY = np.exp(-0.5 * Z**2) / np.sqrt(2 * np.pi)
N = 40


def column(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(st.floats(-2, 4), st.floats(0.05, 1.5), st.floats(0.01, 1), st.floats(0.01, 20))
def test_expected_discount_against_quadrature(
    mean: float, deviation: float, depth: float, cap: float
) -> None:
    exact = np.trapezoid(np.minimum(depth * np.exp(mean + deviation * Z), cap) * DENSITY, Z)
    value = expected_discount(column(mean), column(deviation), column(depth), column(cap))
    assert float(value) == pytest.approx(exact, rel=1e-4)
    single = expected_discount(*(column(v).float() for v in (mean, deviation, depth, cap)))
    assert float(single) == pytest.approx(exact, rel=2e-3)
    assert float(value) <= min(cap, depth * np.exp(mean + deviation**2 / 2)) * (1 + 1e-9)


def test_no_depth_costs_nothing() -> None:
    zero = torch.zeros(2)
    assert expected_discount(zero, zero + 0.5, zero, zero + 1).tolist() == [0.0, 0.0]
    assert expected_discount(zero, zero + 0.5, zero, zero).tolist() == [0.0, 0.0]


def test_the_normal_distribution() -> None:
    value = torch.linspace(-6, 6, 1001)
    np.testing.assert_allclose(normal_cdf(value).numpy(), norm.cdf(value.numpy()), atol=1e-7)
    assert normal_cdf(torch.tensor([-40.0, 40.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_margin_rate_is_a_fraction(rate: float) -> None:
    with pytest.raises(ValueError, match="margin_rate must be in"):
        Simulator(demo_heads(), AssumedResponse.central(), rate, "x")


@cache
def market() -> MarketSpec:
    return demo_market(n_users=N)


def outlook_of(
    simulator: Simulator, deals: DealMemory | None = None, *, pull: bool = True
) -> tuple[Outlook, torch.Tensor]:
    """The outlook of the demo market's users for its first week, and the week's shelf discounts."""
    population = market().population
    history, embedding = population.histories[0], population.embeddings[0]
    calendar = population.calendar.weeks(torch.tensor(population.start_weeks[0]))
    week = simulator.coefficients(calendar)
    people = simulator.people(history, embedding, week)
    remembered = DealMemory.none(N) if deals is None else deals
    outlook = simulator.outlook(people, history, embedding, remembered, week, pull=pull)
    kept = {f.name: getattr(outlook, f.name).clone() for f in fields(Outlook)}
    return Outlook(**kept), calendar.depth


def terms_of(
    simulator: Simulator, category: int, depth: float, min_spend: float, max_discount: float
) -> CouponTerms:
    outlook, shelf = outlook_of(simulator)
    return simulator.coupon_terms(
        outlook,
        shelf,
        torch.full((N,), category),
        torch.full((N,), depth),
        torch.full((N,), min_spend),
        torch.full((N,), max_discount),
    )


def test_message_and_coupon_lift_a_visit() -> None:
    simulator = market().predictor
    yes = torch.ones(3, dtype=torch.bool)
    fatigue = torch.tensor([0.0, 0.5, 1.0])
    push, coupon = simulator.assumed.message_lift, simulator.assumed.coupon_lift
    lift = simulator.visit_lift(yes, fatigue, ~yes)
    assert lift.tolist() == pytest.approx([push, 0.5 * push, 0.0], abs=1e-6)
    assert (simulator.visit_lift(yes, fatigue, yes) - lift).tolist() == pytest.approx([coupon] * 3, abs=1e-6)
    # Who is put off by messages has a negative receptivity.
    receptivity = torch.tensor([2.0, 1.0, -1.0])
    own = simulator.visit_lift(yes, 0.5 * yes, ~yes, receptivity)
    assert own.tolist() == pytest.approx([push, 0.5 * push, -0.5 * push], abs=1e-6)
    assert (simulator.visit_lift(~yes, fatigue, ~yes, receptivity) == 0).all()


def test_the_outlook_is_what_the_heads_predict() -> None:
    simulator, population = market().predictor, market().population
    calendar = population.calendar.weeks(torch.tensor(population.start_weeks[0]))
    exact = simulator.heads(population.histories[0], population.embeddings[0], calendar)
    outlook, shelf = outlook_of(simulator)
    torch.testing.assert_close(outlook.visit_logit, exact.visit)
    torch.testing.assert_close(outlook.purchase_logit, exact.purchase)
    torch.testing.assert_close(outlook.depth_slope, exact.depth_slope)
    log_spend = outlook.log_spend_user[:, None] + outlook.log_spend_category
    torch.testing.assert_close(log_spend, exact.log_spend)
    p = torch.sigmoid(exact.purchase)
    torch.testing.assert_close(outlook.purchase, p)
    spend = torch.exp(exact.log_spend + 0.5 * simulator.heads.spend_deviation**2)
    torch.testing.assert_close(outlook.basket, (p * spend).sum(dim=1))
    # What a discount on everything would bring at first, by a small one.
    less = torch.sigmoid(exact.purchase + exact.depth_slope * 1e-3 * (1 - shelf))
    torch.testing.assert_close(
        outlook.pull, ((less - p) * spend).sum(dim=1).double().float() / 1e-3, rtol=1e-2, atol=1e-3
    )
    assert (outlook_of(simulator, pull=False)[0].pull == 0).all()
    for f in fields(Outlook):
        if f.name != "log_spend_category":
            some = torch.tensor([7, 0])
            assert torch.equal(getattr(outlook.rows(some), f.name), getattr(outlook, f.name)[some])


def test_past_deals_weigh_on_their_categories() -> None:
    assumed = replace(
        AssumedResponse.central(),
        stock_effect=0.4,
        stock_memory=0.5,
        reference_effect=1.0,
        reference_memory=0.8,
    )
    simulator = replace(market().predictor, assumed=assumed)
    none = DealMemory.none(N)
    category, depth, weeks = none.category.clone(), none.depth.clone(), none.weeks_ago.clone()
    # User 0 twice on category 5, last week and three weeks ago; user 1 once on category 0, two weeks ago.
    category[0, :2], depth[0, :2], weeks[0, :2] = 5, torch.tensor([0.2, 0.4]), torch.tensor([1.0, 3.0])
    category[1, 0], depth[1, 0], weeks[1, 0] = 0, 0.3, 2.0
    before = outlook_of(simulator)[0].purchase_logit
    outlook = outlook_of(simulator, replace(none, category=category, depth=depth, weeks_ago=weeks))[0]
    lower = before - outlook.purchase_logit
    expected = torch.zeros_like(lower)
    expected[0, 5] = (0.4 + 0.2) + (0.4 * 0.5**2 + 0.4 * 0.8**2)
    expected[1, 0] = 0.4 * 0.5 + 0.3 * 0.8
    torch.testing.assert_close(lower, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(outlook.purchase, torch.sigmoid(outlook.purchase_logit))


def test_terms_of_a_percent_coupon_by_hand() -> None:
    simulator = market().predictor
    outlook, shelf = outlook_of(simulator)
    found = terms_of(simulator, 4, 0.3, 0.0, 0.7)
    logit, slope = (value[:, 4].double().numpy() for value in (outlook.purchase_logit, outlook.depth_slope))
    extra = slope * 0.3 * (1 - float(shelf[4]))
    p, more = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-logit - extra))
    mean = (outlook.log_spend_user + outlook.log_spend_category[4]).double().numpy()
    s = float(simulator.heads.spend_deviation[4])
    notice = outlook.notice.double().numpy()
    paid = np.trapezoid(np.minimum(0.3 * np.exp(mean[:, None] + s * Z), 0.7) * DENSITY, Z, axis=1)
    np.testing.assert_allclose(found.extra, extra, rtol=1e-5)
    np.testing.assert_allclose(found.gain, notice * (more - p) * np.exp(mean + s * s / 2), rtol=1e-4)
    np.testing.assert_allclose(found.redeem, notice * more, rtol=1e-5)
    np.testing.assert_allclose(found.discount, notice * more * paid, rtol=1e-4)


@pytest.mark.parametrize("deviation", [0.3, 0.6, 1.0])
def test_terms_of_a_threshold_coupon_by_hand(deviation: float) -> None:
    simulator = replace(market().predictor, heads=copy.deepcopy(market().predictor.heads))
    simulator.heads.basket_spend_deviation.fill_(deviation)
    outlook, _ = outlook_of(simulator)
    found = terms_of(simulator, -1, 2.0 / 12.0, 12.0, 2.0)
    total = 1.2 * outlook.basket.double().numpy()

    def reach(mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(norm.sf(np.log(12.0), loc=np.log(mean) - deviation**2 / 2, scale=deviation))

    reckoned = 2.0 / 12.0 * reach(total)
    growth = reckoned * outlook.pull.double().numpy()
    notice = outlook.notice.double().numpy()
    np.testing.assert_allclose(found.extra, reckoned, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.gain, notice * growth, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.redeem, notice * reach(total + growth), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.discount, 2.0 * found.redeem.numpy(), rtol=1e-5)


def test_no_coupon_does_nothing() -> None:
    for min_spend in (0.0, 10.0):
        terms = terms_of(market().predictor, -1, 0.0, min_spend, 0.0)
        for f in fields(CouponTerms):
            assert (getattr(terms, f.name) == 0).all()


def test_terms_of_many_coupons_at_once_are_those_of_each() -> None:
    simulator = market().predictor
    outlook, shelf = outlook_of(simulator)
    rows = [(3, 0.2, 0.0, 0.6), (-1, 0.1, 10.0, 1.0), (-1, 0.0, 0.0, 0.0), (7, 0.5, 0.0, 5.0)]
    category, depth, min_spend, most = (torch.tensor(column) for column in zip(*rows, strict=True))
    together = simulator.coupon_terms(outlook, shelf, category.expand(N, 4), depth, min_spend, most)
    for k, row in enumerate(rows):
        alone = terms_of(simulator, *row)
        for f in fields(CouponTerms):
            torch.testing.assert_close(getattr(together, f.name)[:, k], getattr(alone, f.name))


def assert_no_less(deep: CouponTerms, shallow: CouponTerms) -> None:
    for f in fields(CouponTerms):
        low, high = getattr(shallow, f.name), getattr(deep, f.name)
        assert (high >= low - 1e-6 * (1 + low.abs())).all(), f.name
    for terms in (deep, shallow):
        assert ((terms.redeem >= 0) & (terms.redeem <= 1)).all()


@given(st.integers(0, 11), st.floats(0, 1), st.floats(0, 1), st.floats(0.0001, 20), st.floats(0, 20))
def test_a_better_percent_coupon_never_does_less(
    category: int, depth: float, other: float, cap: float, more: float
) -> None:
    low, high = sorted((depth, other))
    simulator = market().predictor
    shallow, deep = (terms_of(simulator, category, value, 0.0, cap) for value in (low, high))
    assert_no_less(deep, shallow)
    assert (deep.discount <= deep.redeem * cap * (1 + 1e-5)).all()
    assert_no_less(terms_of(simulator, category, high, 0.0, cap + more), deep)


@given(st.floats(0.5, 60), st.floats(0.0001, 1), st.floats(0.0001, 1), st.floats(0.05, 1.5))
def test_a_threshold_coupon_that_saves_more_never_does_less(
    min_spend: float, share: float, other: float, deviation: float
) -> None:
    simulator = replace(market().predictor, heads=copy.deepcopy(market().predictor.heads))
    simulator.heads.basket_spend_deviation.fill_(deviation)
    little, much = (
        terms_of(simulator, -1, part, min_spend, part * min_spend) for part in sorted((share, other))
    )
    assert_no_less(much, little)
    # Nor does one that asks for less and saves as much.
    save = min(share, other) * min_spend
    assert_no_less(terms_of(simulator, -1, save / (0.8 * min_spend), 0.8 * min_spend, save), little)


# The expectation against the mean of many weeks.

PERCENT = Catalogue(
    (
        Offer("nothing", OfferKind.NONE),
        Offer("push", OfferKind.PUSH, delivery_cost=0.02),
        Offer("20%", OfferKind.PERCENT, slot=1, depth=0.2, max_discount=0.6, validity_weeks=3),
        Offer("50%", OfferKind.PERCENT, slot=2, depth=0.5, max_discount=1.2, validity_weeks=2),
        Offer(
            "30% by mail",
            OfferKind.PERCENT,
            channel=Channel.MAIL,
            slot=3,
            depth=0.3,
            max_discount=1.0,
            validity_weeks=2,
        ),
    )
)


@dataclass(frozen=True)
class Conditions:
    """What differs between worlds: probit loadings and deviations, and how a held coupon is noticed."""

    loading: float = 0.0
    week_deviation: float = 0.0
    notice_logit: float = 0.0


def moved_world(conditions: Conditions) -> Simulator:
    """Users who differ much in receptivity, tire quickly and remember deals."""
    predictor = demo_market(n_users=1).predictor
    heads = copy.deepcopy(predictor.heads)
    heads.redemption_bias.fill_(conditions.notice_logit)
    heads.basket_loadings.zero_()
    heads.basket_loadings[:, 0] = conditions.loading
    heads.basket_loadings[::2, 1] = -0.5 * conditions.loading
    heads.trips_loadings[0] = -conditions.loading
    heads.visit_week_deviation.fill_(conditions.week_deviation)
    heads.category_week_deviation.fill_(conditions.week_deviation)
    heads.basket_spend_deviation.fill_(0.8)  # about what it is in these baskets
    assumed = replace(
        predictor.assumed,
        message_lift=0.6,
        message_spread=1.0,
        coupon_lift=0.3,
        fatigue_gain=0.45,
        stock_effect=0.6,
        reference_effect=1.5,
        opt_in_share=1.0,
        opt_out_rested=0.0,
        opt_out_fatigued=0.0,
    )
    return replace(predictor, heads=heads, assumed=assumed)


def compare(
    offer: int, conditions: Conditions, repeats: int, n: int = 1500, offered: Catalogue = PERCENT
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The expectation of a week, the mean of many such weeks, and its standard error, each [groups, 3].

    The week is the fourth of a campaign, so that some users are tired, hold a coupon or remember deals;
    groups are all users, those, and the receptive. Columns are visits, margin, discount.
    """
    spec, world = replace(demo_market(n_users=n), catalogue=offered), moved_world(conditions)
    running = Campaign(spec, world, start=0, users=torch.arange(n), budget=1e6, seed=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
    wanted = torch.where(running.mask[:, offer], offer, 0)
    state, sent = issue(running.state, wanted, running.prediction.slots, spec.offers, 5, torch.arange(n))
    groups = torch.stack(
        [
            torch.ones(n, dtype=torch.bool),
            state.fatigue > 0.2,
            state.coupons.held,
            (state.deals.category >= 0).any(dim=1),
            state.receptivity > 1.5,
        ]
    ).double()
    groups = groups[groups.sum(dim=1) > n / 20]
    share = groups / groups.sum(dim=1, keepdim=True)

    def means(visit: torch.Tensor, margin: torch.Tensor, discount: torch.Tensor) -> npt.NDArray[np.float64]:
        return (share @ torch.stack([visit, margin, discount], dim=1).double()).numpy()

    observed = []
    for seed in range(repeats):
        _, outcome, expected = transition(
            state,
            sent,
            spec.offers,
            running.world,
            running.calendar,
            Luck(1000 + seed, running.luck.user),
            world.assumed,
            expect=seed == 0,
        )
        if expected is not None:
            exact = means(expected.visit, expected.margin, expected.discount)
        observed.append(means(outcome.visited, outcome.margin, to_currency(outcome.discount)))
    error = np.std(observed, axis=0, ddof=1) / math.sqrt(repeats)
    return exact, np.mean(observed, axis=0), error


PLAIN, FULL = Conditions(), Conditions(loading=0.7)
ALL_NOTICE, NONE_NOTICES = Conditions(notice_logit=30.0), Conditions(notice_logit=-30.0)


@pytest.mark.parametrize(
    ("offer", "conditions"),
    [
        *((offer, PLAIN) for offer in range(len(PERCENT))),
        *((offer, FULL) for offer in (0, 3, 4)),
        *((offer, ALL_NOTICE) for offer in (1, 2, 3)),
        (3, NONE_NOTICES),
    ],
)
def test_the_expectation_is_the_mean_of_many_weeks(offer: int, conditions: Conditions) -> None:
    expected, mean, error = compare(offer, conditions, repeats=40)
    assert (np.abs(mean - expected) <= 4.5 * error + 1e-5).all()
    # Sharp enough to tell: visits and margin to two hundredths, in every group.
    assert (error[:, :2] < 0.02 * expected[:, :2]).all()
    # All groups were there; nobody can remember a deal that nobody noticed.
    assert len(expected) == (4 if conditions == NONE_NOTICES else 5)
    assert (expected[0, 2] > 0.01) == (conditions != NONE_NOTICES)


def test_weeks_that_all_users_share_leave_the_expectation_as_it_is() -> None:
    repeats, n = 150, 400
    conditions = Conditions(loading=0.5, week_deviation=0.2)
    expected, mean, error = compare(3, conditions, repeats, n)
    assert (np.abs(mean - expected) <= 4.5 * error + 1e-5).all()
    # The weeks do move all users alike: more than the chance of so many users alone would.
    assert error[0, 0] * math.sqrt(repeats) > 2 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("conditions", [PLAIN, FULL, ALL_NOTICE, NONE_NOTICES])
def test_the_expectation_of_threshold_coupons_is_near_the_mean(conditions: Conditions) -> None:
    # Visits are exact as ever; what the basket does is foreseen to first order.
    offers = (
        *PERCENT.offers[:2],
        Offer("spend 8", OfferKind.THRESHOLD, min_spend=8.0, max_discount=1.0, validity_weeks=2),
        Offer("spend 15", OfferKind.THRESHOLD, min_spend=15.0, max_discount=2.0, validity_weeks=3),
    )
    expected, mean, error = compare(2, conditions, 30, offered=Catalogue(offers))
    tolerance = np.array([0.0, 0.02, 0.30]) * (conditions != NONE_NOTICES)
    assert (np.abs(mean - expected) <= 4.5 * error + tolerance * mean + 1e-5).all()
    assert (expected[0, 2] > 0.05) == (conditions != NONE_NOTICES)


@pytest.mark.parametrize("loading", [0.4, 0.7])
@pytest.mark.parametrize(("min_spend", "save"), [(5.0, 1.0), (10.0, 1.0), (10.0, 3.0), (20.0, 4.0)])
def test_a_threshold_coupon_is_foreseen_roughly(min_spend: float, save: float, loading: float) -> None:
    """The closed form takes the basket as lognormal and its growth as small; how wrong is it?

    Its deviation is that of the simulated baskets, as the fit would have it. Both arms have the same luck, so
    that the gain stands out. Measured here: gain -9% to +3%, discount -24% to -4%.
    """
    n, repeats = 3000, 12
    offer = Offer(
        "threshold",
        OfferKind.THRESHOLD,
        channel=Channel.MAIL,
        min_spend=min_spend,
        max_discount=save,
        validity_weeks=1,
    )
    spec = replace(demo_market(n_users=n), catalogue=Catalogue((PERCENT.offers[0], offer)))
    world = moved_world(Conditions(loading=loading, notice_logit=30.0))
    world = replace(world, assumed=replace(world.assumed, coupon_lift=0.0))
    running = Campaign(spec, world, start=0, users=torch.arange(n), budget=1e6, seed=1)
    nothing = torch.zeros(n, dtype=torch.int64)
    state, sent = issue(running.state, nothing + 1, running.prediction.slots, spec.offers, 8, torch.arange(n))

    def week(treated: bool, seed: int) -> tuple[Outcome, Expectation]:
        _, outcome, expected = transition(
            state if treated else running.state,
            sent if treated else nothing,
            spec.offers,
            running.world,
            running.calendar,
            Luck(seed, running.luck.user),
            world.assumed,
        )
        assert expected is not None
        return outcome, expected

    sizes = []
    for seed in range(4):
        control, expected = week(False, seed)
        sizes.append((control.margin / expected.margin * expected.visit)[control.visited].log())
    world.heads.basket_spend_deviation.copy_(torch.cat(sizes).std())

    gain, paid, expected_gain, expected_paid = np.zeros(4)
    for seed in range(repeats):
        (outcome, expected), (control, without) = week(True, seed), week(False, seed)
        gain += float((outcome.margin - control.margin).double().mean()) / repeats
        paid += float(to_currency(outcome.discount).mean()) / repeats
        expected_gain += float((expected.margin - without.margin).double().mean()) / repeats
        expected_paid += float(expected.discount.double().mean()) / repeats
    assert expected_gain == pytest.approx(gain, rel=0.15)
    assert expected_paid == pytest.approx(paid, rel=0.30)
