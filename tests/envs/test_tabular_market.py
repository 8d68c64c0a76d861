from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import lil_array

from envs.money import TICKS_PER_UNIT, to_currency
from envs.tabular_campaign import TabularCampaign
from envs.tabular_market import REFERENCE_BUDGET_PER_USER, TabularMarket
from envs.tabular_solution import (
    LagrangianBound,
    evaluate,
    lagrangian_bound,
    myopic_rule,
    no_offer_rule,
    solve,
    to_go,
)
from envs.tabular_users import DEMO_PANTRY, DEMO_USERS, UserState

SEEDS = st.integers(0, 2**32 - 1)


def random_market(
    seed: int, *, types: int = 2, actions: int = 3, states: int = 3, events: int = 2, horizon: int = 3
) -> TabularMarket:
    """A market without structure: sparse outcomes, some masked actions, some actions for free."""
    rng = np.random.default_rng(seed)
    shape = (types, actions, states, events)
    outcome = rng.dirichlet(np.full(events * states, 0.5), shape[:3])
    cost = rng.integers(0, 20_000, shape) * (rng.random(shape) < 0.8)
    cost[:, 0] = 0
    mask = rng.random(shape[:3]) < 0.8
    mask[:, 0] = True
    return TabularMarket(
        outcome=torch.from_numpy(outcome.reshape(*shape, states)),
        margin=torch.from_numpy(rng.normal(size=shape)),
        cost=torch.from_numpy(cost),
        mask=torch.from_numpy(mask),
        initial=torch.from_numpy(rng.dirichlet(np.ones(states), types)),
        share=torch.from_numpy(rng.dirichlet(np.ones(types))),
        features=torch.eye(states),
        horizon_weeks=horizon,
        offer_weeks=int(rng.integers(1, horizon + 1)),
    )


def random_rule(market: TabularMarket, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.dirichlet(np.full(market.n_actions, 0.5), market.allowed.shape[:-1]))
    weight = (weight + 1e-12) * market.allowed
    return weight / weight.sum(dim=-1, keepdim=True)


def initial_value(market: TabularMarket, price: float | torch.Tensor) -> torch.Tensor:
    """V^λ per user, for prices of any shape."""
    values = solve(market, price).values[..., 0, :, :]
    return (market.share[:, None] * market.initial * values).sum(dim=(-1, -2))


SMALL = {
    "types": st.integers(1, 2),
    "actions": st.integers(1, 3),
    "states": st.integers(1, 4),
    "events": st.integers(1, 3),
    "horizon": st.integers(1, 4),
}
markets = st.builds(random_market, SEEDS, **SMALL)


# The exact solution against independent computations.


def value_by_recursion(
    market: TabularMarket, price: float, g: int, decide: npt.NDArray[np.int64]
) -> list[float]:
    """Value of decisions [T, S] from each first state, by plain recursion over outcomes."""

    def value(week: int, s: int) -> float:
        if week == market.horizon_weeks:
            return 0.0
        k = int(decide[week, s])
        total = 0.0
        for event in range(market.outcome.shape[3]):
            priced = (
                float(market.margin[g, k, s, event]) - price * float(market.cost[g, k, s, event]) / 10_000
            )
            for after in range(market.n_states):
                p = float(market.outcome[g, k, s, event, after])
                total += p * (priced + value(week + 1, after))
        return total

    return [value(0, s) for s in range(market.n_states)]


@pytest.mark.parametrize(("seed", "price"), [(0, 0.0), (1, 0.7), (2, 2.0)])
def test_value_iteration_finds_the_best_of_all_deterministic_rules(seed: int, price: float) -> None:
    market = random_market(seed, actions=3, states=2, horizon=2)
    solution = solve(market, price)
    for g in range(market.n_types):
        choices = [
            [k for k in range(3) if market.allowed[week, g, s, k]] for week in range(2) for s in range(2)
        ]
        rules = [np.array(rule).reshape(2, 2) for rule in itertools.product(*choices)]
        by_rule = np.array([value_by_recursion(market, price, g, rule) for rule in rules])
        np.testing.assert_allclose(solution.values[0, g].numpy(), by_rule.max(axis=0), atol=1e-12)
        greedy = solution.rule[:, g].argmax(dim=-1).numpy()
        np.testing.assert_allclose(
            value_by_recursion(market, price, g, greedy), by_rule.max(axis=0), atol=1e-12
        )


def occupancy_programme(market: TabularMarket, budget: float) -> float:
    """The optimum over occupancy measures x[t, g, s, k], by linear programming."""
    horizon, types, states, actions = market.allowed.shape
    index = np.arange(market.allowed.numel()).reshape(market.allowed.shape)
    flow = lil_array((horizon * types * states, index.size))
    inflow = np.zeros(horizon * types * states)
    for row, (week, g, s) in enumerate(itertools.product(range(horizon), range(types), range(states))):
        flow[row, index[week, g, s]] = 1.0
        if week == 0:
            inflow[row] = float(market.share[g] * market.initial[g, s])
        else:
            for before, k in itertools.product(range(states), range(actions)):
                flow[row, index[week - 1, g, before, k]] -= float(market.transition[g, k, before, s])
    margin = market.expected_margin.transpose(1, 2).expand(horizon, -1, -1, -1).numpy().ravel()
    cost = market.expected_cost.transpose(1, 2).expand(horizon, -1, -1, -1).numpy().ravel()
    upper = np.where(market.allowed.numpy().ravel(), 1.0, 0.0)
    result = linprog(  # type: ignore[call-overload]  # the stubs do not know of sparse matrices
        -margin,
        A_ub=cost[None],
        b_ub=[budget],
        A_eq=flow.tocsr(),
        b_eq=inflow,
        bounds=[(0.0, float(bound)) for bound in upper],
        method="highs",
    )
    assert result.status == 0, result.message
    return -float(result.fun)


@settings(max_examples=25)
@given(markets, st.floats(0.0, 1.5))
def test_the_bound_is_the_optimum_of_the_occupancy_programme(market: TabularMarket, budget: float) -> None:
    assert lagrangian_bound(market, budget).value == pytest.approx(
        occupancy_programme(market, budget), abs=1e-7
    )


def test_the_bound_of_the_demo_is_the_optimum_of_the_occupancy_programme() -> None:
    market = TabularMarket.demo(horizon_weeks=12, offer_weeks=9)
    for budget in (0.1, 0.7, 5.0):
        bound = lagrangian_bound(market, budget)
        assert bound.value == pytest.approx(occupancy_programme(market, budget), abs=1e-7)


@settings(max_examples=40)
@given(markets, st.floats(0.0, 1.5))
def test_the_mixed_rule_attains_the_bound_at_a_minimum_of_the_dual(
    market: TabularMarket, budget: float
) -> None:
    bound = lagrangian_bound(market, budget)
    attained = evaluate(market, bound.rule)
    assert float(attained.margin) == pytest.approx(bound.value, abs=1e-9)
    if bound.dual_price > 0:
        assert float(attained.cost) == pytest.approx(budget, abs=1e-9)
    else:
        assert float(attained.cost) <= budget
    prices = torch.linspace(0.0, 3.0 * bound.dual_price + 1.0, 60, dtype=torch.float64)
    dual = initial_value(market, prices) + prices * budget
    assert float(dual.min()) >= bound.value - 1e-9
    at_optimum = float(initial_value(market, bound.dual_price)) + bound.dual_price * budget
    assert at_optimum == pytest.approx(bound.value, abs=1e-9)


@settings(max_examples=60)
@given(markets, SEEDS)
def test_no_feasible_rule_beats_the_bound(market: TabularMarket, seed: int) -> None:
    outcome = evaluate(market, random_rule(market, seed))
    assert lagrangian_bound(market, float(outcome.cost)).value >= float(outcome.margin) - 1e-9


@settings(max_examples=40)
@given(markets)
def test_value_is_convex_and_spend_does_not_rise_with_the_price(market: TabularMarket) -> None:
    prices = torch.linspace(0.0, 5.0, 41, dtype=torch.float64)
    value = initial_value(market, prices)
    assert bool((value.diff().diff() >= -1e-9).all())
    spend = evaluate(market, solve(market, prices).rule).cost
    assert bool((spend.diff() <= 1e-9).all())
    # The spend is the slope of the value, taken on either side.
    slope = -value.diff() / prices.diff()
    assert bool((slope <= spend[:-1] + 1e-9).all())
    assert bool((slope >= spend[1:] - 1e-9).all())


def test_a_batch_of_prices_is_solved_like_each_alone() -> None:
    market = random_market(3)
    prices = torch.tensor([[0.0, 0.4, 1.0], [2.0, 0.1, 9.0]], dtype=torch.float64)
    together = solve(market, prices)
    evaluated = evaluate(market, together.rule)
    myopic = myopic_rule(market, prices)
    margin_to_go, cost_to_go = to_go(market, together.rule)
    for i, j in itertools.product(range(2), range(3)):
        alone = solve(market, float(prices[i, j]))
        torch.testing.assert_close(together.values[i, j], alone.values)
        torch.testing.assert_close(together.rule[i, j], alone.rule)
        torch.testing.assert_close(myopic[i, j], myopic_rule(market, float(prices[i, j])))
        torch.testing.assert_close(evaluated.margin[i, j], evaluate(market, alone.rule).margin)
        margin, cost = to_go(market, alone.rule)
        torch.testing.assert_close(margin_to_go[i, j], margin)
        torch.testing.assert_close(cost_to_go[i, j], cost)


@settings(max_examples=40)
@given(markets, SEEDS, st.floats(0.0, 3.0))
def test_forward_and_backward_evaluation_agree_and_so_does_the_performance_difference(
    market: TabularMarket, seed: int, price: float
) -> None:
    rule = random_rule(market, seed)
    forward = evaluate(market, rule)
    week_sums = forward.occupancy.sum(dim=(-1, -2, -3))
    torch.testing.assert_close(week_sums, torch.ones_like(week_sums))
    start = market.share[:, None] * market.initial
    margin, cost = to_go(market, rule)
    assert float((start * margin[0]).sum()) == pytest.approx(float(forward.margin), abs=1e-10)
    assert float((start * cost[0]).sum()) == pytest.approx(float(forward.cost), abs=1e-10)
    # Kakade & Langford: any rule's margin from the optimum at λ and the advantages of what it does.
    advantages = solve(market, price).advantages
    assert bool((advantages <= 1e-12).all())
    lost = (forward.occupancy * torch.where(market.allowed, advantages, 0.0)).sum()
    by_difference = float(initial_value(market, price)) + price * float(forward.cost) + float(lost)
    assert by_difference == pytest.approx(float(forward.margin), abs=1e-10)


def test_the_optimum_at_a_price_has_no_regret() -> None:
    market = random_market(5)
    solution = solve(market, 0.3)
    assert float((solution.rule * torch.where(market.allowed, solution.advantages, 0.0)).abs().max()) == 0.0
    assert not bool((solution.rule * ~market.allowed).any())


def test_the_myopic_rule_is_optimal_when_a_week_is_all_there_is() -> None:
    market = random_market(6, horizon=1)
    for price in (0.0, 0.5, 2.0):
        torch.testing.assert_close(myopic_rule(market, price), solve(market, price).rule)


# The bound at its ends, and the share of it.


def test_without_money_the_bound_is_sending_nothing_and_there_is_no_share() -> None:
    market = TabularMarket.demo(horizon_weeks=8, offer_weeks=6)
    bound = lagrangian_bound(market, 0.0)
    assert bound.value == pytest.approx(bound.no_offer, abs=1e-9)
    torch.testing.assert_close(evaluate(market, bound.rule).cost, torch.zeros((), dtype=torch.float64))
    with pytest.raises(ValueError, match="the incremental bound is 0"):
        replace(bound, value=bound.no_offer).share_of_bound(bound.no_offer)


def test_with_more_money_than_is_of_use_the_price_is_zero() -> None:
    market = TabularMarket.demo(horizon_weeks=8, offer_weeks=6)
    bound = lagrangian_bound(market, 1e4)
    assert bound.dual_price == 0.0
    assert bound.value == pytest.approx(float(initial_value(market, 0.0)), abs=1e-12)


def test_the_share_is_of_what_is_incremental() -> None:
    market = random_market(7)
    bound = LagrangianBound(1.0, 0.5, value=12.0, no_offer=10.0, rule=no_offer_rule(market))
    assert bound.incremental == 2.0
    assert bound.share_of_bound(10.0) == 0.0
    assert bound.share_of_bound(11.5) == 0.75
    assert bound.share_of_bound(12.0) == 1.0


# The demo's story, in exact numbers.


def one_offer(market: TabularMarket, g: int, offer: int, state: UserState) -> tuple[float, float]:
    """Effect on margin of one offer in the first week: in that week, and up to the horizon."""
    s = DEMO_PANTRY.states.index(state)
    later, _ = to_go(market, no_offer_rule(market))
    total = market.expected_margin[g, :, s] + market.transition[g, :, s] @ later[1, g]
    now = market.expected_margin[g, :, s]
    return float(now[offer] - now[0]), float(total[offer] - total[0])


def test_the_demo_rewards_foresight_for_the_reasons_that_it_names() -> None:
    market = TabularMarket.demo()
    names = ["sure thing", "persuadable", "forgetful", "sleeping dog", "lost cause"]
    assert [user.name for user in DEMO_USERS] == names
    sure, persuadable, forgetful, dog, lost = range(5)
    reminder, small, large = 1, 2, 3
    # Pantry loading: nearly all that a coupon brings forward is missing afterwards.
    now, total = one_offer(market, sure, small, UserState(0, 1, True))
    assert now > 0.5
    assert 0.0 < total < 0.1 * now
    # A persuadable user with an empty pantry would have gone without: most of it is new.
    now, total = one_offer(market, persuadable, small, UserState(0, 0, True))
    assert total > 0.75 * now > 0.4
    # In a week the forgetful answer with much the same before and after the pantry is empty.
    early, early_total = one_offer(market, forgetful, small, UserState(0, 1, True))
    late, late_total = one_offer(market, forgetful, small, UserState(0, 0, True))
    assert early > 0.8 * late
    assert early_total < 0.6 * late_total
    # A sleeping dog answers, and then stays away for longer than that was worth.
    now, total = one_offer(market, dog, reminder, UserState(0, 1, True))
    assert now > 0.25
    assert total < -0.05
    assert max(one_offer(market, lost, large, UserState(0, 0, True))) < 0.15
    # Nobody buys what the pantry has no room for.
    full = [s for s, state in enumerate(DEMO_PANTRY.states) if state.stock > 2]
    assert float(market.expected_margin[:, :, full].max()) == 0.0


def test_the_demo_is_made_of_probabilities_and_of_what_its_parameters_say() -> None:
    market = TabularMarket.demo()
    states = DEMO_PANTRY.states
    assert market.outcome.shape == (5, 4, 20, 3, 20)
    for rows in (market.outcome.sum(dim=(-1, -2)), market.transition.sum(dim=-1), market.initial.sum(dim=-1)):
        torch.testing.assert_close(rows, torch.ones_like(rows))
    # The start is the steady state without offers, rested, with the given share of subscribers.
    torch.testing.assert_close(
        torch.einsum("gs,gsn->gn", market.initial, market.transition[:, 0]), market.initial
    )
    subscribed = torch.tensor([state.opted_in for state in states])
    rested = torch.tensor([state.fatigue == 0 for state in states])
    torch.testing.assert_close(market.initial[:, subscribed].sum(dim=1), torch.full((5,), 0.85).double())
    torch.testing.assert_close(market.initial[:, rested].sum(dim=1), torch.ones(5).double())
    # Opting out is for good; the mask spares those who left and those at the frequency cap.
    assert float(market.transition[:, :, ~subscribed][..., subscribed].max()) == 0.0
    reachable = torch.tensor([state.opted_in and state.fatigue < 2 for state in states])
    for k in (1, 2, 3):
        torch.testing.assert_close(market.mask[:, k], reachable.expand(5, -1))
    # Nothing is sent in the wash-out at the end.
    assert not bool(market.allowed[48:, :, :, 1:].any())
    # A rested persuadable user with an empty pantry and a large coupon, by hand.
    buys = 1.0 / (1.0 + np.exp(1.7 - 1.7))
    assert float(market.expected_margin[1, 3, 0]) == pytest.approx(3.0 * buys)
    assert float(market.expected_cost[1, 3, 0]) == pytest.approx(0.25 + 0.9 * buys * 1.4)
    assert int(market.worst_case_cost[1, 3, 0]) == 16_500
    # He is tired next week, unless he left; one pack of two weeks is in, and .8 of a week is eaten.
    tired = market.transition[1, 3, 0, states.index(UserState(1, 1, True))]
    assert float(tired) == pytest.approx(buys * 0.8 * 0.998)
    left = market.transition[1, 3, 0, ~subscribed].sum()
    assert float(left) == pytest.approx(0.002)


# Campaigns.


def draw_actions(
    probabilities: torch.Tensor, campaign: TabularCampaign, generator: torch.Generator
) -> torch.Tensor:
    """Actions drawn from [n, K]; none where what was drawn cannot be paid any more."""
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return torch.where(campaign.mask.gather(1, drawn), drawn, 0)[:, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_campaigns_agree_with_the_exact_evaluation(seed: int) -> None:
    market = TabularMarket.demo(horizon_weeks=8, offer_weeks=6)
    rule = random_rule(market, seed)
    expected = evaluate(market, rule)
    n = 40_000
    generator = torch.Generator().manual_seed(seed)
    campaign = TabularCampaign(market, n_users=n, budget=1e6, generator=generator)
    margin, cost = torch.zeros(n).double(), torch.zeros(n).double()
    while not campaign.done:
        present = expected.occupancy[campaign.week].sum(dim=-1)
        error = (campaign.counts / n - present).abs()
        assert bool((error <= 5.0 * (present * (1.0 - present) / n).sqrt() + 1e-12).all())
        probabilities = rule[campaign.week, campaign.user_type, campaign.state]
        outcome = campaign.step(draw_actions(probabilities, campaign, generator))
        assert not bool(outcome.refused.any())
        margin += outcome.margin
        cost += outcome.cost
    for realised, exact in ((margin, expected.margin), (cost, expected.cost)):
        standard_error = float(realised.std()) / n**0.5
        assert abs(float(realised.mean() - exact)) < 4.0 * standard_error
    assert float(to_currency(campaign.ledger.spent)) == pytest.approx(float(cost.sum()), abs=1e-6)


@settings(max_examples=60)
@given(markets, SEEDS, st.integers(1, 30), st.floats(0.0, 10.0))
def test_the_budget_is_never_exceeded(market: TabularMarket, seed: int, n: int, budget: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    campaign = TabularCampaign(market, n_users=n, budget=budget, generator=generator)
    spent = 0
    for week in range(market.horizon_weeks):
        assert campaign.week == week
        actions = torch.multinomial(campaign.mask.double(), 1, generator=generator)[:, 0]
        worst = market.worst_case_cost[campaign.user_type, actions, campaign.state]
        left = int(campaign.ledger.available)
        outcome = campaign.step(actions)
        # What was granted fitted even at its dearest, and nothing was refused that fitted with all others.
        granted = outcome.sent == actions
        assert int((worst * granted).sum()) <= left
        assert bool(granted.all()) or int(worst.sum()) > left
        assert bool((outcome.cost[~granted] == 0).all())
        spent += round(float(outcome.cost.sum()) * TICKS_PER_UNIT)
        assert int(campaign.ledger.spent) == spent <= int(campaign.ledger.budget)
        assert int(campaign.ledger.reserved) == 0
    assert campaign.done
    assert campaign.mask.sum(dim=1).tolist() == [1] * n


def test_equally_seeded_campaigns_share_their_luck() -> None:
    market = TabularMarket.demo(horizon_weeks=4, offer_weeks=4)

    def campaign(seed: int) -> TabularCampaign:
        return TabularCampaign(
            market, n_users=500, budget=100.0, generator=torch.Generator().manual_seed(seed)
        )

    one, two, other = campaign(1), campaign(1), campaign(2)
    nothing = torch.zeros(500, dtype=torch.int64)
    for _ in range(3):
        torch.testing.assert_close(one.step(nothing).margin, two.step(nothing).margin)
        torch.testing.assert_close(one.state, two.state)
        other.step(nothing)
    assert not torch.equal(one.state, other.state)
    # Offers to some change nothing for the others.
    some = torch.where(one.mask[:, 2], 2, 0)
    some[250:] = 0
    torch.testing.assert_close(one.step(some).margin[250:], two.step(nothing).margin[250:])


# What is refused.


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("outcome", lambda m: m.outcome * 0.999, r"outcome.* must sum to 1; a row sums to 0\.99"),
        ("outcome", lambda m: m.outcome - 2 * m.outcome[..., :1], "negative probability"),
        ("outcome", lambda m: m.outcome.float(), "outcome must be torch.float64 of shape"),
        ("outcome", lambda m: m.outcome[0], r"outcome must have shape \[G, K, S, E, S\]"),
        ("margin", lambda m: m.margin * float("nan"), "margin has values that are not finite"),
        ("margin", lambda m: m.margin[:, :1], "margin must be"),
        ("cost", lambda m: m.cost - 30_000, "a cost cannot be negative"),
        ("cost", lambda m: m.cost.double(), "cost must be torch.int64"),
        ("cost", lambda m: m.cost + 1, "action 0, sending nothing, must cost nothing"),
        ("mask", lambda m: torch.zeros_like(m.mask), "the mask must allow action 0"),
        ("initial", lambda m: m.initial + 0.1, r"initial.* must sum to 1"),
        ("share", lambda m: m.share * 2, "share must sum to 1"),
        ("features", lambda m: m.features[1:], "features must be"),
        ("features", lambda m: m.features[0], "features must be"),
        ("horizon_weeks", lambda m: 0, "need 0 <= offer_weeks <= horizon_weeks"),
        ("offer_weeks", lambda m: 9, "got 9 and 3"),
    ],
)
def test_a_market_that_makes_no_sense_is_refused(field: str, value: object, message: str) -> None:
    market = random_market(0)
    assert callable(value)
    with pytest.raises(ValueError, match=message):
        replace(market, **{field: value(market)})


def test_users_who_make_no_sense_are_refused() -> None:
    for change, message in (
        ({"redemption": 1.1}, "redemption must be a probability"),
        ({"opt_out": (0.1, -0.1, 0.1)}, "opt_out must be a probability"),
        ({"opt_out": (0.1,)}, "3 levels and 1 probabilities"),
        ({"pack_weeks": 5}, "a pack of 5 weeks"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(DEMO_PANTRY, **change)  # type: ignore[arg-type]
    odd = replace(DEMO_USERS[0], lift=(1.0,))
    with pytest.raises(ValueError, match="'sure thing' has 1 lifts for 3 offers"):
        TabularMarket.of_users(DEMO_PANTRY, [odd], horizon_weeks=2, offer_weeks=1)
    with pytest.raises(ValueError, match="share must sum to 1"):
        TabularMarket.of_users(DEMO_PANTRY, DEMO_USERS[1:], horizon_weeks=2, offer_weeks=1)


def test_prices_budgets_rules_and_actions_that_make_no_sense_are_refused() -> None:
    market = random_market(0)
    for price in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a dual price must be >= 0 and finite"):
            solve(market, price)
        with pytest.raises(ValueError, match="a dual price must be >= 0 and finite"):
            myopic_rule(market, price)
        with pytest.raises(ValueError, match="budget_per_user must be >= 0 and finite"):
            lagrangian_bound(market, price)
        with pytest.raises(ValueError, match="budget must be >= 0 and finite"):
            TabularCampaign(market, n_users=3, budget=price, generator=torch.Generator())
    rule = no_offer_rule(market)
    for bad, message in (
        (rule[1:], "a rule must be float64 of shape"),
        (rule.float(), "a rule must be float64 of shape"),
        (rule * 0.9, "sum to 1"),
        (rule * float("nan"), "sum to 1"),
        (torch.full_like(rule, 1.0 / 3.0), "masked action"),
    ):
        for judge in (evaluate, to_go):
            with pytest.raises(ValueError, match=message):
                judge(market, bad)
    with pytest.raises(ValueError, match="n_users must be >= 1"):
        TabularCampaign(market, n_users=0, budget=1.0, generator=torch.Generator())
    campaign = TabularCampaign(
        TabularMarket.demo(horizon_weeks=1, offer_weeks=0), n_users=3, budget=1.0, generator=torch.Generator()
    )
    for actions, message in (
        (torch.tensor([0, 0]), r"int64 of shape \[3\]"),
        (torch.tensor([0.0, 0.0, 0.0]), r"int64 of shape \[3\]"),
        (torch.tensor([0, 4, 0]), r"actions must be in 0\.\.3"),
        (torch.tensor([0, 0, 1]), "action 1 is masked for user 2 in week 1"),
    ):
        with pytest.raises(ValueError, match=message):
            campaign.step(actions)
    campaign.step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="the campaign is over"):
        campaign.step(torch.zeros(3, dtype=torch.int64))


# Myopia without a hard cap; campaigns under one are in tests/agents/test_tabular.py.


# Fine enough that hardly two changes of the myopic rule fall between neighbours.
PRICES = torch.cat([torch.zeros(1), torch.logspace(-0.6, 0.6, 400)]).double()


def test_myopia_loses_a_quarter_and_more_in_expectation() -> None:
    market = TabularMarket.demo()
    bound = lagrangian_bound(market, REFERENCE_BUDGET_PER_USER)
    assert bound.dual_price == pytest.approx(1.0189, abs=5e-5)
    assert bound.incremental == pytest.approx(3.4110, abs=5e-5)
    outcome = evaluate(market, myopic_rule(market, PRICES))
    poor = int((outcome.cost <= bound.budget_per_user).int().argmax())
    rich = poor - 1
    weight = (bound.budget_per_user - outcome.cost[poor]) / (outcome.cost[rich] - outcome.cost[poor])
    margin = weight * outcome.margin[rich] + (1.0 - weight) * outcome.margin[poor]
    assert bound.share_of_bound(float(margin)) == pytest.approx(0.716, abs=0.002)
    # Of total value the same myopia would look harmless.
    assert float(margin) / bound.value > 0.97
