from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from agents.knapsack import KnapsackSolution, solve_dual
from agents.pacing import EvenPacing, price_range
from agents.policy import MyopicUpliftPolicy
from envs.campaign import Campaign
from envs.demo_market import demo_market

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def case(seed: int, *, whole: bool = False) -> tuple[Matrix, Matrix, Mask, float]:
    """A small random case; with whole numbers, so that slopes and costs tie."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    value = rng.integers(-3, 8, (n, k)).astype(float) if whole else rng.normal(0.5, 1.0, (n, k))
    cost = rng.integers(0, 5, (n, k)).astype(float) if whole else rng.exponential(1.0, (n, k))
    cost[rng.random((n, k)) < 0.1] = 0.0
    cost[:, 0] = 0.0
    mask = rng.random((n, k)) < 0.8
    mask[:, 0] = True
    budget = float(rng.choice([0.0, rng.random() * cost.sum(), cost.sum()]))
    return value, cost, mask, round(budget) if whole else budget


def constraints(cost: Matrix) -> tuple[Matrix, Matrix]:
    """Left sides of: one offer each [n, n·K], and the budget [1, n·K]."""
    n, k = cost.shape
    one_each: Matrix = np.kron(np.eye(n), np.ones((1, k))).astype(np.float64)
    return one_each, cost.reshape(1, -1)


def integer_optimum(value: Matrix, cost: Matrix, mask: Mask, budget: float) -> float:
    one_each, total = constraints(cost)
    found = milp(
        -value.ravel(),
        integrality=np.ones(value.size, dtype=np.int64),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(total, -np.inf, budget)],
        bounds=Bounds(0, mask.ravel().astype(float)),
        options={"mip_rel_gap": 0.0},
    )
    assert found.success
    return -float(found.fun)


def relaxed_optimum(value: Matrix, cost: Matrix, mask: Mask, budget: float) -> tuple[float, float]:
    """Value of the linear relaxation, and the price that the simplex method puts on the budget."""
    one_each, total = constraints(cost)
    found = linprog(
        -value.ravel(),
        A_ub=total,
        b_ub=[budget],
        A_eq=one_each,
        b_eq=np.ones(len(value)),
        bounds=[(0.0, float(allowed)) for allowed in mask.ravel()],
    )
    assert found.fun is not None
    return -float(found.fun), -float(found.ineqlin.marginals[0])


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=150)
def test_the_choice_lies_between_the_integer_optimum_and_one_offer_below_the_bound(
    seed: int, whole: bool
) -> None:
    value, cost, mask, budget = case(seed, whole=whole)
    solution = solve_dual(value, cost, mask, budget)
    every = np.arange(len(value))
    assert mask[every, solution.choice].all()
    assert cost[every, solution.choice].sum() <= budget + 1e-9
    assert solution.value == pytest.approx(value[every, solution.choice].sum(), abs=1e-9)
    best = integer_optimum(value, cost, mask, budget)
    assert solution.value <= best + 1e-6
    assert best <= solution.bound + 1e-6
    most = float(np.where(mask, value - value[:, :1], 0.0).max())
    assert solution.bound - solution.value <= most + 1e-9


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=150)
def test_bound_and_price_are_those_of_the_linear_relaxation(seed: int, whole: bool) -> None:
    value, cost, mask, budget = case(seed, whole=whole)
    solution = solve_dual(value, cost, mask, budget)
    relaxed, _ = relaxed_optimum(value, cost, mask, budget)
    assert solution.bound == pytest.approx(relaxed, abs=1e-6)
    # The Lagrangian dual at the price: equal to the bound, for the price is optimal.
    net = np.where(mask, value - solution.dual_price * cost, -np.inf).max(axis=1).sum()
    assert net + solution.dual_price * budget == pytest.approx(solution.bound, abs=1e-6)
    # Everyone but the user at whom the money ends has his best offer at that price.
    chosen = (value - solution.dual_price * cost)[np.arange(len(value)), solution.choice]
    best = np.where(mask, value - solution.dual_price * cost, -np.inf).max(axis=1)
    assert (best - chosen > 1e-9).sum() <= 1


def test_the_price_is_the_simplex_methods_where_it_is_unique() -> None:
    for seed in range(40):
        value, cost, mask, budget = case(seed)
        # At a budget that ends a step exactly there are many prices; 0 is one such case.
        if budget == 0.0:
            continue
        _, marginal = relaxed_optimum(value, cost, mask, budget)
        assert solve_dual(value, cost, mask, budget).dual_price == pytest.approx(marginal, abs=1e-6)


def assert_solution(
    solution: KnapsackSolution, choice: list[int], dual_price: float, value: float, bound: float
) -> None:
    assert solution.choice.tolist() == choice
    found = (solution.dual_price, solution.value, solution.bound)
    assert found == pytest.approx((dual_price, value, bound))


def test_a_case_by_hand() -> None:
    value = np.array([[0.0, 3.0, 4.0, 1.0], [0.0, 2.0, 2.1, 9.0]])
    cost = np.array([[0.0, 1.0, 2.0, 0.0], [0.0, 4.0, 3.0, 9.0]])
    mask = np.array([[True, True, True, True], [True, True, True, False]])
    # User 1 has a free offer worth 1. Steps: he to 3 (slope 2), to 4 (1); user 2 to 2.1 (0.7).
    assert_solution(solve_dual(value, cost, mask, 2.5), [2, 0], 0.7, 4.0, 4.0 + 0.7 * 0.5)
    assert_solution(solve_dual(value, cost, mask, 5.0), [2, 2], 0.0, 6.1, 6.1)
    # Nothing to spend still gives what is free.
    assert_solution(solve_dual(value, cost, mask, 0.0), [3, 0], 2.0, 1.0, 1.0)
    # What is left at the break goes to the best offer that it pays for, on the envelope or not.
    value, cost = np.array([[0.0, 1.0, 10.0]]), np.array([[0.0, 2.0, 4.0]])
    mask = np.ones((1, 3), dtype=bool)
    assert_solution(solve_dual(value, cost, mask, 3.0), [1], 2.5, 1.0, 7.5)


def test_a_large_case_is_within_one_offer_of_its_bound() -> None:
    rng = np.random.default_rng(0)
    value, cost = rng.gamma(1.0, 0.4, (20_000, 11)), rng.gamma(1.0, 0.3, (20_000, 11))
    value[:, 0] = cost[:, 0] = 0.0
    mask = np.ones(value.shape, dtype=bool)
    budgets = np.array([10.0, 500.0, 2_000.0])
    solutions = [solve_dual(value, cost, mask, budget) for budget in budgets]
    for budget, solution in zip(budgets, solutions, strict=True):
        spent = cost[np.arange(len(value)), solution.choice].sum()
        assert budget - cost.max() <= spent <= budget + 1e-6
        assert 0 <= solution.bound - solution.value <= value.max()
    prices = [solution.dual_price for solution in solutions]
    assert prices == sorted(prices, reverse=True)


def one_week(running: Campaign, price: float) -> tuple[torch.Tensor, Matrix, Matrix, Mask]:
    """What the shop sees at a price, with uplift and budget use of each offer."""
    observation = running.observation(torch.full((running.n_users,), price))
    block = running.spec.layout.offer_block
    value = block(observation, "uplift").double().numpy()
    use = (block(observation, "cost") + block(observation, "reserve")).double().numpy()
    return observation, value, use, running.mask.numpy()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_the_myopic_rule_at_the_price_makes_the_same_choices(share: float) -> None:
    market = demo_market(n_users=60, horizon_weeks=4, seed=3)
    running = Campaign(market, market.predictor, start=0, users=torch.arange(60), budget=1e4, seed=3)
    _, value, use, mask = one_week(running, 1.0)
    solution = solve_dual(value, use, mask, share * float(use.max(axis=1).sum()))
    observation = one_week(running, solution.dual_price * (1 + 1e-5))[0]
    policy = MyopicUpliftPolicy(market.layout)
    chosen = policy.probabilities(observation, running.mask).argmax(dim=1).numpy()
    # The user at whom the money ends is the only one whom a single price cannot serve.
    assert (chosen != solution.choice).sum() <= 1


@pytest.mark.parametrize("budget", [1.0, 4.0, 12.0])
def test_the_paced_myopic_rule_is_the_exact_allocation_of_what_it_uses(budget: float) -> None:
    market = demo_market(n_users=40, horizon_weeks=1, seed=2)
    running = Campaign(market, market.predictor, start=0, users=torch.arange(40), budget=budget, seed=2)
    _, value, use, mask = one_week(running, 1.0)
    policy = MyopicUpliftPolicy(market.layout)
    prices = price_range(torch.from_numpy(value), torch.from_numpy(use))
    price = EvenPacing(prices).prices(policy, running).spend
    observation = one_week(running, price)[0]
    chosen = policy.probabilities(observation, running.mask).argmax(dim=1).numpy()
    every = np.arange(40)
    used = float(use[every, chosen].sum())
    solution = solve_dual(value, use, mask, used + 1e-9)
    assert solution.choice.tolist() == chosen.tolist()
    assert solution.dual_price <= price * (1 + 1e-4)
    best = integer_optimum(value, use, mask, used + 1e-6)
    assert float(value[every, chosen].sum()) == pytest.approx(best, abs=1e-5)


def test_bad_input_is_refused() -> None:
    value, cost, mask = np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3), dtype=bool)
    cost[:, 0] = 0.0
    wrong: list[tuple[Matrix, Matrix, Mask, float, str]] = [
        (value[:, :2], cost, mask, 1.0, "one shape"),
        (value[0], cost[0], mask[0], 1.0, "one shape"),
        (value, cost, mask, -1.0, "budget must be >= 0"),
        (value, cost, mask, float("nan"), "budget must be >= 0"),
        (np.full((2, 3), np.nan), cost, mask, 1.0, "finite"),
        (value, -cost, mask, 1.0, "cost must be >= 0"),
        (value, np.ones((2, 3)), mask, 1.0, "allowed and free"),
        (value, cost, np.zeros((2, 3), dtype=bool), 1.0, "allowed and free"),
    ]
    for some_value, some_cost, some_mask, budget, message in wrong:
        with pytest.raises(ValueError, match=message):
            solve_dual(some_value, some_cost, some_mask, budget)


def test_nobody_to_allocate_to() -> None:
    solution = solve_dual(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3), dtype=bool), 5.0)
    assert solution.choice.shape == (0,)
    assert (solution.dual_price, solution.value, solution.bound) == (0.0, 0.0, 0.0)
