from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from agents.pacing import (
    EvenPacing,
    PriceRange,
    WeekPrices,
    choose,
    expected_commitment,
    lowest_price,
    price_range,
)
from agents.policy import ExploringPolicy, MyopicUpliftPolicy, Policy, RandomPolicy
from envs.campaign import Campaign
from envs.demo_market import demo_market

N = 24
Matrix = npt.NDArray[np.float64]


def campaign(budget: float, *, seed: int = 0, horizon: int = 8, n: int = N) -> Campaign:
    market = demo_market(n_users=n, horizon_weeks=horizon, seed=seed)
    return Campaign(market, market.predictor, start=0, users=torch.arange(n), budget=budget, seed=seed)


def range_of(running: Campaign) -> PriceRange:
    return price_range(running.prediction.uplift, running.prediction.budget_use(1.0))


def chosen(policy: Policy, running: Campaign, price: float) -> torch.Tensor:
    return choose(policy, running, WeekPrices(price))


def even(policy: Policy, running: Campaign, prices: PriceRange) -> float:
    """λ of even pacing, which puts all the pressure on the weeks alike."""
    found = EvenPacing(prices).prices(policy, running)
    assert found.pressure == 1.0
    return found.spend


# Against the knapsack ------------------------------------------------------------------------------


def knapsack(value: Matrix, weights: list[Matrix], capacity: float, mask: npt.NDArray[np.bool_]) -> float:
    """Best total value of one offer per user, each total weight within the capacity; branch and bound."""
    n, k = value.shape
    one_each = LinearConstraint(sparse.kron(sparse.eye(n), np.ones((1, k))), 1, 1)
    caps = [LinearConstraint(weight.reshape(1, -1), -np.inf, capacity) for weight in weights]
    bounds = Bounds(0, mask.ravel().astype(np.float64))
    found = milp(-value.ravel(), integrality=np.ones(n * k), constraints=[one_each, *caps], bounds=bounds)
    assert found.success
    return -float(found.fun)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("budget", [1.0, 4.0, 12.0])
def test_at_one_week_the_paced_myopic_rule_solves_the_knapsack(seed: int, budget: float) -> None:
    running = campaign(budget, seed=seed, horizon=1)
    policy = MyopicUpliftPolicy(running.spec.layout)
    choice = chosen(policy, running, even(policy, running, range_of(running))).double().numpy()
    seen, offers = running.prediction, running.spec.offers
    value, use, cost = (x.double().numpy() for x in (seen.uplift, seen.budget_use(1.0), seen.cost))
    committed = ((offers.delivery_cost + offers.liability).double() / 10_000).expand(N, -1).numpy()
    mask = running.mask.numpy()
    reached = float((choice * value).sum())
    # The ledger's own constraints hold, and the best possible is at most one user's offer better.
    assert (choice * committed).sum() <= budget
    best = knapsack(value, [committed, cost], budget, mask)
    assert best - float(value.max()) <= reached <= best + 1e-6
    # Everett (1963): at any price the choice is the very best for the budget that it uses itself.
    own = float((choice * use).sum())
    assert reached == pytest.approx(knapsack(value, [use], own + 1e-6, mask), abs=1e-5)


# Pacing --------------------------------------------------------------------------------------------


def policies(running: Campaign) -> list[Policy]:
    myopic = MyopicUpliftPolicy(running.spec.layout)
    return [myopic, RandomPolicy(), ExploringPolicy(myopic, 0.1)]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("week", [0, 3])
def test_more_budget_never_means_a_higher_price(which: int, week: int) -> None:
    prices = []
    for budget in (1.5, 2.0, 3.0, 5.0, 9.0, 20.0, 60.0, 500.0):
        running = campaign(budget)
        prices_of_all = range_of(running)
        for _ in range(week):
            running.step()
        policy = policies(running)[which]
        prices.append(even(policy, running, prices_of_all))
    assert all(later <= earlier for earlier, later in pairwise(prices))
    assert prices[0] > prices[-1]


@pytest.mark.parametrize("budget", [1.5, 3.0, 8.0, 30.0])
def test_the_plan_holds_in_expectation_and_only_just(budget: float) -> None:
    running = campaign(budget)
    policy, prices = RandomPolicy(), range_of(running)
    price = even(policy, running, prices)
    free, plan = budget, budget / 8
    # Coupons last two weeks: one later week's plan stays free.
    available = max(free - plan, min(plan, free))
    cost, liability = expected_commitment(running, chosen(policy, running, price))
    if price > 0.999 * prices.high:
        # Random offers at the highest price still cost too much: nothing in the range fits.
        assert budget <= 3.0
        return
    assert cost <= plan
    assert liability <= available
    if price > prices.low:
        cheaper = expected_commitment(running, chosen(policy, running, price * 0.995))
        assert cheaper[0] > plan or cheaper[1] > available


def test_ample_money_gives_the_lowest_price_and_none_the_highest() -> None:
    rich = campaign(1e5)
    policy, prices = MyopicUpliftPolicy(rich.spec.layout), range_of(rich)
    assert even(policy, rich, prices) == prices.low
    # A policy that ignores the price and explores: nothing fits, and the upper end is returned.
    poor = campaign(1.25)
    spender = ExploringPolicy(policy, 1.0)
    assert even(spender, poor, prices) == pytest.approx(prices.high)


def test_expected_commitment_by_hand() -> None:
    running = campaign(100.0)
    probabilities = torch.zeros(N, len(running.spec.catalogue))
    probabilities[:, 0] = 1.0
    assert expected_commitment(running, probabilities) == (0.0, 0.0)
    probabilities[0, [0, 3]] = 0.5
    probabilities[1, :2] = torch.tensor([0.0, 1.0])
    cost, liability = expected_commitment(running, probabilities)
    assert cost == pytest.approx(0.5 * float(running.prediction.cost[0, 3]) + 0.02, rel=1e-6)
    assert liability == pytest.approx(0.5 * (1.20 + 0.02) + 0.02, rel=1e-6)


@pytest.mark.parametrize("pressure", [0.0, 0.4, 1.0])
def test_choosing_shows_the_policy_the_prices(pressure: float) -> None:
    running = campaign(50.0)
    seen = []

    class Watching(RandomPolicy):
        def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            seen.append(observation)
            assert mask is running.mask
            return super().probabilities(observation, mask)

    found = choose(Watching(), running, WeekPrices(0.7, pressure))
    names = running.spec.layout.names()
    torch.testing.assert_close(seen[0][:, names.index("log_dual_price")], torch.full((N,), 0.7).log())
    torch.testing.assert_close(seen[0][:, names.index("pressure")], torch.full((N,), pressure))
    reserve = running.prediction.reserve(pressure).expand(N, -1)
    torch.testing.assert_close(running.spec.layout.offer_block(seen[0], "reserve"), reserve)
    # Random offers heed λ alone: one over one plus λ of the users are sent something.
    torch.testing.assert_close(found[:, 1:].sum(dim=1)[running.state.opted_in].max(), torch.tensor(1 / 1.7))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("pressure", [0.0, 1.0])
def test_the_lowest_price_that_fits_is_found_to_the_last_bisection(share: float, pressure: float) -> None:
    # What random offers cost goes with 1 / (1 + λ), so the price is known in closed form.
    running, prices = campaign(1e4), PriceRange(0.01, 100.0)
    full = expected_commitment(running, choose(RandomPolicy(), running, WeekPrices(1e-9)))[0]
    found = lowest_price(RandomPolicy(), running, prices, lambda cost, _: cost <= share * full, pressure)
    # Fourteen halvings of a range of four orders of magnitude.
    step = math.log(1e4) / 2**14
    exact = math.log(1.0 / share - 1.0)
    assert exact - 1e-5 <= math.log(found) <= exact + step + 1e-5


# Ranges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)]
)
def test_a_range_is_positive_and_increasing(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="positive and increasing"):
        PriceRange(low, high)


def test_a_range_covers_nearly_all_ratios() -> None:
    running = campaign(100.0)
    uplift, use = running.prediction.uplift, running.prediction.budget_use(1.0)
    prices = price_range(uplift, use)
    ratio = uplift[:, 1:] / use[:, 1:]
    inside = (ratio > prices.low) & (ratio < prices.high)
    assert float(inside.double().mean()) > 0.97
    # Room on both sides, and a single ratio is a range too.
    assert prices.low < 0.3 * float(ratio.quantile(0.02))
    assert prices.high > 1.9 * float(ratio.quantile(0.99))
    single = price_range(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 2.0]]))
    assert (single.low, single.high) == pytest.approx((1.5 / 4, 3.0))


def test_nothing_worth_pacing_is_said() -> None:
    for uplift, use in (([0.0, 0.0], [0.0, 1.0]), ([0.0, 1.0], [0.0, 0.0]), ([0.0, -1.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="there is nothing to pace"):
            price_range(torch.tensor([uplift]), torch.tensor([use]))
