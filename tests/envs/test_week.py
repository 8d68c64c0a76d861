"""One week of a crowd of clones, whose distribution is known in closed form."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import geom, kstest, multivariate_normal, norm

from encoders.history import MOST_TRIPS, HistoryState
from envs.campaign import MarketSpec
from envs.coupons import DealMemory, HeldCoupons
from envs.demo_market import demo_market
from envs.luck import Luck, Stream
from envs.money import to_ticks
from envs.simulator import Expectation, Outlook, Simulator
from envs.week import Lived, MarketShocks, Users, Week, _geometric, live

N = 40_000
C = 12
Floats = npt.NDArray[np.float64]


@cache
def market() -> MarketSpec:
    return demo_market(n_users=1)


def world(**buffers: float | torch.Tensor) -> Simulator:
    """The demo world with buffers of its heads set."""
    heads = copy.deepcopy(market().predictor.heads)
    heads.basket_loadings.zero_()
    for name, value in buffers.items():
        getattr(heads, name).copy_(torch.as_tensor(value))
    return replace(market().predictor, heads=heads)


def loadings(*columns: float) -> torch.Tensor:
    """[C, 16] loadings, the same for all categories."""
    out = torch.zeros(C, 16)
    out[:, : len(columns)] = torch.tensor(columns)
    return out


def along(value: float) -> torch.Tensor:
    """[16] a loading on the first factor alone."""
    out = torch.zeros(16)
    out[0] = value
    return out


def holding(
    n: int, category: int = -1, depth: float = 0.0, min_spend: float = 0.0, most: float = 0.0
) -> HeldCoupons:
    return HeldCoupons(
        category=torch.full((n,), category),
        depth=torch.full((n,), depth),
        min_spend=torch.full((n,), min_spend),
        max_discount=torch.full((n,), most),
        liability=torch.full((n,), to_ticks(most)),
        weeks_left=torch.ones(n, dtype=torch.int64),
    )


def crowd(n: int, coupons: HeldCoupons | None = None, seed: int = 0) -> Users:
    """Clones of one user, each with luck of his own."""
    population, never = market().population, torch.zeros(n, dtype=torch.bool)
    return Users(
        history=population.histories[0].rows(torch.zeros(n, dtype=torch.int64)),
        embedding=population.embeddings[0, :1].expand(n, -1).contiguous(),
        coupons=HeldCoupons.none(n) if coupons is None else coupons,
        deals=DealMemory.none(n),
        message=never,
        fatigue=never.float(),
        receptivity=never.float(),
        luck=Luck(seed, torch.arange(n)),
    )


def week(
    simulator: Simulator, number: int = 0, shocks: MarketShocks | None = None, expect: bool = False
) -> Week:
    calendar = market().population.calendar.weeks(torch.tensor(20))
    return Week(
        number=number,
        calendar=calendar,
        coefficients=simulator.coefficients(calendar),
        shocks=MarketShocks(torch.zeros(()), torch.zeros(C)) if shocks is None else shocks,
        threshold=True,
        expect=expect,
    )


def outlook_of(simulator: Simulator) -> Outlook:
    """What to expect of the user that all are clones of."""
    one, now = crowd(1), week(simulator)
    people = simulator.people(one.history, one.embedding, now.coefficients)
    outlook = simulator.outlook(people, one.history, one.embedding, one.deals, now.coefficients, pull=True)
    return Outlook(**{f.name: getattr(outlook, f.name).clone() for f in fields(Outlook)})


def error(p: Floats | float, n: float) -> Floats:
    """How far a share of n may lie from its probability."""
    return np.asarray(4.5 * np.sqrt(np.asarray(p) * (1 - np.asarray(p)) / n))


def both(p: float, q: float, correlation: float) -> float:
    """Probability that two events happen together under a Gaussian copula."""
    covariance = [[1.0, correlation], [correlation, 1.0]]
    return float(multivariate_normal([0, 0], covariance).cdf(norm.ppf([p, q])))


def test_visits_and_purchases_keep_their_probability_and_go_together_as_the_copula_says() -> None:
    first, second = torch.linspace(0.1, 0.8, C), torch.linspace(-0.5, 0.5, C)
    weights = torch.zeros(C, 16)
    weights[:, 0], weights[:, 5] = first, second
    simulator = world(basket_loadings=weights)
    lived, outlook = live(simulator, crowd(N), week(simulator)), outlook_of(simulator)
    visit = float(torch.sigmoid(outlook.visit_logit))
    came = lived.visited.double().numpy()
    assert abs(came.mean() - visit) <= error(visit, N)
    m = came.sum()
    p = outlook.purchase[0].double().numpy()
    bought = lived.bought[lived.visited].double().numpy()
    assert (np.abs(bought.mean(axis=0) - p) <= error(p, m)).all()
    for c, k in ((0, 1), (0, 11), (5, 6), (10, 11), (2, 9)):
        correlation = float(first[c] * first[k] + second[c] * second[k])
        together = both(p[c], p[k], correlation)
        assert abs((bought[:, c] * bought[:, k]).mean() - together) <= error(together, m)
    # Who stays at home does nothing.
    home = ~lived.visited
    for value in (
        lived.bought.any(dim=1),
        lived.redeemed,
        lived.spend,
        lived.discount,
        lived.history.last_trips,
    ):
        assert not value[home].any()


@pytest.mark.parametrize("deviation", [0.0, 0.6])
def test_what_a_week_does_to_all_users_alike(deviation: float) -> None:
    # Over many weeks each share varies as two users of one week go together, beyond the chance of each.
    n, weeks = 1000, 300
    simulator = world(visit_week_deviation=deviation, category_week_deviation=torch.full((C,), deviation))
    outlook, users = outlook_of(simulator), crowd(n)
    shares = []
    for number in range(weeks):
        shocks = MarketShocks(
            visit=deviation * torch.randn((), generator=torch.Generator().manual_seed(number)),
            purchase=deviation * torch.randn(C, generator=torch.Generator().manual_seed(weeks + number)),
        )
        lived = live(simulator, users, week(simulator, number, shocks))
        visited = lived.visited.double()
        # Of the visitors, so that visits do not enter: a category bought by a share of them.
        shares.append([visited.mean(), *(lived.bought.double().sum(dim=0) / visited.sum())])
    found = np.array(shares, dtype=np.float64)
    p = np.array([float(torch.sigmoid(outlook.visit_logit)), *outlook.purchase[0].tolist()])
    m = np.array([n, *[n * p[0]] * C])
    pairs = np.array([both(q, q, deviation**2) for q in p])
    variance = pairs - p**2 + (p - pairs) / m
    assert (np.abs(found.mean(axis=0) - p) <= 4.5 * np.sqrt(variance / weeks) + 1e-4).all()
    ratio = found.var(axis=0, ddof=1) / variance
    assert (np.abs(ratio - 1) <= 4.5 * np.sqrt(2 / weeks)).all()


@pytest.mark.parametrize("mean", [1e-3, 0.4, 2.0])
@pytest.mark.parametrize("loading", [0.0, -0.8])
def test_trips_are_geometric_and_go_with_full_baskets(mean: float, loading: float) -> None:
    simulator = world(basket_loadings=loadings(0.6), trips_loadings=along(loading))
    simulator.heads.trips_features.zero_()
    simulator.heads.trips_bias.fill_(float(np.log(mean)))
    lived = live(simulator, crowd(N), week(simulator))
    trips = lived.history.last_trips[lived.visited].double().numpy()
    assert (trips == np.floor(trips)).all()
    assert trips.min() >= 1
    # Trips beyond the cap count as the cap, in the history as here.
    expected = 1 - geom.cdf(np.arange(1, int(MOST_TRIPS)), 1 / (1 + mean))
    counted = np.array([(trips - 1 >= k).mean() for k in range(1, int(MOST_TRIPS))])
    assert (np.abs(counted - expected) <= error(expected, len(trips)) + 1e-9).all()
    basket = lived.bought[lived.visited].double().sum(dim=1).numpy()
    together = float(np.corrcoef(trips, basket)[0, 1]) * np.sqrt(len(trips))
    assert (together > 4.5) == (loading < 0)


def test_the_mean_of_further_trips_is_the_one_asked_for() -> None:
    uniform = (torch.arange(100_000).double() + 0.5) / 100_000
    for mean in (0.05, 0.7, 5.0):
        further = _geometric(torch.full_like(uniform, mean), uniform)
        assert float(further.mean()) == pytest.approx(mean, rel=2e-3)
    # The ends of the interval are no exception: zero at 0, finite just below 1.
    ends = _geometric(torch.tensor([0.7, 0.7]), torch.tensor([0.0, 1.0 - 2.0**-24]))
    assert float(ends[0]) == 0.0
    assert torch.isfinite(ends).all()
    assert (_geometric(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0 - 2.0**-24])) == 0).all()


def test_spend_on_one_category_is_lognormal() -> None:
    # With all but one category out of reach and nothing spent outside, the basket is that category's.
    simulator = world(other_spend_ratio=0.0)
    simulator.heads.purchase_bias.fill_(-40.0)
    simulator.heads.purchase_bias[3] = 40.0
    lived, outlook = live(simulator, crowd(N), week(simulator)), outlook_of(simulator)
    assert torch.equal(lived.bought.any(dim=1), lived.visited)
    mean = float(outlook.log_spend_user + outlook.log_spend_category[3])
    deviation = float(simulator.heads.spend_deviation[3])
    size = (lived.spend[lived.visited].double().log().numpy() - mean) / deviation
    assert kstest(size, "norm").pvalue > 1e-3


@pytest.mark.parametrize(("share", "deviation"), [(1.0, 0.0), (0.6, 0.0), (0.6, 0.8)])
def test_spend_outside_the_modelled_categories(share: float, deviation: float) -> None:
    buffers = {"other_spend_ratio": 0.3, "other_spend_share": share, "other_spend_deviation": deviation}
    with_other, without = world(**buffers), world(other_spend_ratio=0.0)
    all_spend, modelled = (live(s, crowd(N), week(s)) for s in (with_other, without))
    assert torch.equal(all_spend.bought, modelled.bought)
    came = all_spend.visited
    other = (all_spend.spend - modelled.spend)[came].double().numpy()
    mean = 0.3 * float(outlook_of(with_other).basket)
    assert abs(other.mean() - mean) <= 4.5 * max(other.std(), 1e-4 * mean) / np.sqrt(len(other)) + 1e-4
    # Who bought nothing modelled came for something else; of the others the share has some.
    empty = ~all_spend.bought[came].any(dim=1).numpy()
    some = other > 1e-3
    assert some[empty].all()
    assert abs(some[~empty].mean() - share) <= error(share, (~empty).sum())
    size = np.log(other[empty] / mean)
    if deviation:
        assert kstest((size + deviation**2 / 2) / deviation, "norm").pvalue > 1e-3
    else:
        np.testing.assert_allclose(size, 0.0, atol=1e-4)
        np.testing.assert_allclose(other[some & ~empty], mean / share, atol=1e-3)


def test_other_spend_goes_with_the_basket_as_far_as_its_loadings_say() -> None:
    shares = []
    for loading in (-0.7, 0.0, 0.7):
        simulator = world(
            basket_loadings=loadings(0.7), other_spend_loadings=along(loading), other_spend_share=0.5
        )
        lived = live(simulator, crowd(N), week(simulator))
        without = live(world(basket_loadings=loadings(0.7), other_spend_ratio=0.0), crowd(N), week(simulator))
        full = lived.bought.sum(dim=1) >= 4
        shares.append(float(((lived.spend - without.spend)[full] > 1e-3).double().mean()))
    assert shares[0] < 0.4 < shares[1] < 0.6 < shares[2]
    assert shares[1] == pytest.approx(0.5, abs=0.03)


def test_what_else_decides_a_visit_is_independent() -> None:
    # Trips, whether anything else is bought, how much, and whether a coupon is noticed.
    simulator = world(other_spend_ratio=0.3, other_spend_share=0.6, other_spend_deviation=0.8, trips_bias=0.0)
    plain = world(other_spend_ratio=0.0, trips_bias=0.0)
    coupon = holding(N, min_spend=0.01, most=0.01)  # redeemed by whoever notices it
    lived = live(simulator, crowd(N, coupon), week(simulator))
    other = (lived.spend - live(plain, crowd(N, coupon), week(plain)).spend)[lived.visited]
    bought, trips = lived.bought.sum(dim=1)[lived.visited], lived.history.last_trips[lived.visited]
    some = (other > 1e-3) & (bought > 0)
    log_size = other.clamp(min=1e-6).log()
    decided = torch.stack(
        [trips, lived.redeemed[lived.visited], lived.bought[lived.visited, 0], log_size]
    ).double()
    among = torch.corrcoef(decided[:, some]) * float(some.sum()) ** 0.5
    assert float(among[~torch.eye(4, dtype=torch.bool)].abs().max()) < 4.5
    full = bought > 0
    between = torch.corrcoef(torch.stack([*decided[:3], some.double()])[:, full]) * float(full.sum()) ** 0.5
    assert float(between[3, :2].abs().max()) < 4.5


def test_a_percent_coupon_is_noticed_by_chance_and_then_deepens_its_category_alone() -> None:
    simulator = world(basket_loadings=loadings(0.5))
    coupon = holding(N, category=4, depth=0.5, most=1.0)
    outlook, now = outlook_of(simulator), week(simulator)
    with_coupon = live(simulator, crowd(N, coupon), now)
    control = live(simulator, crowd(N), now)
    came = with_coupon.visited
    notice = float(outlook.notice)
    extra = float(outlook.depth_slope[0, 4]) * 0.5 * (1 - float(now.calendar.depth[4]))
    p, deeper = float(outlook.purchase[0, 4]), float(torch.sigmoid(outlook.purchase_logit[0, 4] + extra))
    m = float(came.sum())
    assert deeper > p + 0.1
    redeemed = with_coupon.redeemed[came].double().mean()
    assert abs(float(redeemed) - notice * deeper) <= error(notice * deeper, m)
    bought = with_coupon.bought[came].double().mean(dim=0)
    mixed = notice * deeper + (1 - notice) * p
    assert abs(float(bought[4]) - mixed) <= error(mixed, m)
    other = torch.arange(C) != 4
    assert torch.equal(
        with_coupon.bought[control.visited][:, other], control.bought[control.visited][:, other]
    )
    # What is paid: half the category's spend, at most one unit.
    assert torch.equal(with_coupon.discount > 0, with_coupon.redeemed)
    terms = simulator.held_terms(outlook, now.calendar.depth, coupon.rows(slice(0, 1)))
    paid = with_coupon.discount[with_coupon.redeemed].double().numpy()
    each = float(terms.discount / terms.redeem)
    assert abs(paid.mean() - each) <= 4.5 * paid.std() / np.sqrt(len(paid))
    assert paid.max() == 1.0


def test_a_threshold_coupon_deepens_all_and_pays_where_the_basket_reaches_it() -> None:
    simulator = world(basket_loadings=loadings(0.5), redemption_bias=30.0)
    coupon = holding(N, depth=0.2, min_spend=10.0, most=2.0)
    outlook, now = outlook_of(simulator), week(simulator)
    with_coupon, control = live(simulator, crowd(N, coupon), now), live(simulator, crowd(N), now)
    came = with_coupon.visited
    assert torch.equal(with_coupon.redeemed, came & (with_coupon.spend >= 10.0))
    assert (with_coupon.discount[with_coupon.redeemed] == 2.0).all()
    # All categories deeper by what the user reckons with.
    reckoned = float(simulator.held_terms(outlook, now.calendar.depth, coupon.rows(slice(0, 1))).extra)
    assert 0.03 < reckoned < 0.2
    logit = outlook.purchase_logit[0] + outlook.depth_slope[0] * (1 - now.calendar.depth) * reckoned
    p = torch.sigmoid(logit).double().numpy()
    bought = with_coupon.bought[came].double().mean(dim=0).numpy()
    assert (np.abs(bought - p) <= error(p, float(came.sum()))).all()
    assert (with_coupon.bought | ~control.bought)[control.visited].all()


def test_unnoticed_coupons_only_bring_visits() -> None:
    simulator = world(redemption_bias=-60.0)
    control = live(simulator, crowd(2000), week(simulator))
    for coupon in (
        holding(2000, category=2, depth=0.9, most=5.0),
        holding(2000, depth=0.5, min_spend=2.0, most=1.0),
    ):
        lived = live(simulator, crowd(2000, coupon), week(simulator))
        assert (lived.visited | ~control.visited).all()
        assert lived.visited.sum() > control.visited.sum()
        assert not lived.redeemed.any()
        assert torch.equal(lived.bought[control.visited], control.bought[control.visited])
        assert torch.equal(lived.spend[control.visited], control.spend[control.visited])


def test_coupons_of_others_do_not_touch_a_user() -> None:
    # In one block with holders the purchases of all are worked out anew, to the same figures.
    simulator = world(redemption_bias=30.0, basket_loadings=loadings(0.5))
    n = 512
    mixed = holding(n, category=2, depth=0.9, most=5.0).where(
        torch.arange(n) % 3 == 0, holding(n, depth=0.5, min_spend=2.0, most=1.0)
    )
    mixed = mixed.where(torch.arange(n) % 2 == 0, HeldCoupons.none(n))
    control, lived = (live(simulator, crowd(n, coupons), week(simulator)) for coupons in (None, mixed))
    odd = torch.arange(n) % 2 == 1
    for name in ("visited", "bought", "spend", "redeemed", "discount"):
        assert torch.equal(getattr(lived, name)[odd], getattr(control, name)[odd])


def test_working_out_the_expectation_does_not_change_what_happens() -> None:
    simulator = world(basket_loadings=loadings(0.5), redemption_bias=1.0)
    n = 1024
    users = crowd(n, holding(n, depth=0.2, min_spend=8.0, most=2.0))
    users = replace(users, message=torch.arange(n) % 2 == 0, receptivity=torch.linspace(-1, 3, n))
    plain = live(simulator, users, week(simulator))
    target = users.history.blank()
    full = live(simulator, users, week(simulator, expect=True), target)
    assert plain.expectation is None
    assert isinstance(full.expectation, Expectation)
    assert full.history is target
    for f in fields(Lived):
        if f.name not in ("history", "expectation"):
            assert torch.equal(getattr(plain, f.name), getattr(full, f.name))
    for f in fields(HistoryState):
        assert torch.equal(getattr(plain.history, f.name), getattr(full.history, f.name))


def test_the_week_is_part_of_the_luck() -> None:
    simulator = world()
    one, two = (live(simulator, crowd(2000), week(simulator, number)) for number in (0, 1))
    agree = (one.visited == two.visited).double().mean()
    p = float(torch.sigmoid(outlook_of(simulator).visit_logit))
    assert abs(float(agree) - (p**2 + (1 - p) ** 2)) < 0.05
    assert float(Luck(0, torch.tensor([5])).normal(Stream.VISIT, 0)) != float(
        Luck(0, torch.tensor([5])).normal(Stream.VISIT, 1)
    )
