"""The exact solution of a tabular market, by dynamic programming and Lagrangian relaxation.

At a dual price λ per unit of budget the users no longer compete for money, and each type is a Markov
decision process of its own with reward margin − λ·cost. For a budget B per user,

    g(λ) = V^λ + λ·B,  λ >= 0,

bounds from above what any policy can earn per user, however many users share the budget; its minimum is the
Lagrangian bound, equal to the optimum of the occupancy-measure linear programme (Hawkins 2003, MIT, ch. 2;
Adelman & Mersereau 2008, Operations Research 56(3); Boutilier & Lu 2016, UAI). Policies on its optimal
price come within o(1) per user of it as users grow in number (Brown & Smith 2020, Operations Research).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envs.tabular_market import PROBABILITY_TOLERANCE, TabularMarket

GAP_TOLERANCE = 1e-12
"""Relative gap between the bound and its certificate from below at which the search for λ ends."""


@dataclass(frozen=True, eq=False)
class DualSolution:
    """Optimal values and decisions at dual prices of any batch shape [*].

    Attributes:
        dual_price: [*] float64.
        values: [*, T+1, G, S] optimal margin − λ·cost from week t on, currency per user; 0 at T.
        action_values: [*, T, G, S, K] the same when the week begins with an action; −inf where masked.
        rule: [*, T, G, S, K] greedy decisions as probabilities; ties go to the lowest action.
    """

    dual_price: torch.Tensor
    values: torch.Tensor
    action_values: torch.Tensor
    rule: torch.Tensor

    @property
    def advantages(self) -> torch.Tensor:
        """[*, T, G, S, K] what an action loses against the best one at λ; <= 0, −inf where masked.

        By the performance difference lemma (Kakade & Langford 2002, ICML) the expected margin of *any*
        policy is the initial value at λ, plus λ times its expected spend, plus the expected sum of the
        advantages of what it did. Averaged over simulated campaigns this is an unbiased estimate with far
        less noise than the mean of realised margins, because the luck of the draw is taken out.
        """
        return self.action_values - self.values[..., :-1, :, :, None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Exact expectations under decision rules of any batch shape [*], per user.

    Attributes:
        occupancy: [*, T, G, S, K] probability of being of a type in a state and taking an action; sums to
            one in each week.
        margin: [*] margin before coupon cost over the horizon, currency.
        cost: [*] charge to the budget over the horizon, currency.
    """

    occupancy: torch.Tensor
    margin: torch.Tensor
    cost: torch.Tensor


@dataclass(frozen=True, eq=False)
class LagrangianBound:
    """The best that any policy can earn under a budget, per user and over the horizon.

    Attributes:
        budget_per_user: B, currency.
        dual_price: optimal λ*; 0 if the budget does not bind.
        value: the bound on margin before coupon cost, currency.
        no_offer: margin when nothing is sent, currency.
        rule: [T, G, S, K] randomised rule that is optimal at λ* and spends B (less only if λ* = 0): its
            expected margin is the bound.
    """

    budget_per_user: float
    dual_price: float
    value: float
    no_offer: float
    rule: torch.Tensor

    @property
    def incremental(self) -> float:
        """The bound over sending nothing, currency per user."""
        return self.value - self.no_offer

    def share_of_bound(self, margin: float) -> float:
        """Return the share of the *incremental* bound that a margin per user, currency, attains.

        On total value the share would say nothing: sending nothing already attains most of it.

        Raises:
            ValueError: no policy earns more than sending nothing, so that there is no share of it.
        """
        if not self.incremental > 0:
            raise ValueError("the incremental bound is 0: nothing that the budget allows earns anything")
        return (margin - self.no_offer) / self.incremental


def solve(market: TabularMarket, dual_price: float | torch.Tensor) -> DualSolution:
    """Solve all types at dual prices by backward value iteration.

    Args:
        market: the model.
        dual_price: λ >= 0, one number or a tensor of any shape [*].

    Raises:
        ValueError: a price is negative or not finite.
    """
    price = torch.as_tensor(dual_price, dtype=torch.float64, device=market.outcome.device)
    _check_prices(price)
    priced = market.expected_margin - price[..., None, None, None] * market.expected_cost
    future = torch.zeros_like(priced[..., 0, :])
    values, action_values = [future], []
    for week in reversed(range(market.horizon_weeks)):
        following = priced + torch.einsum("gksn,...gn->...gks", market.transition, future)
        action_value = following.transpose(-1, -2).masked_fill(~market.allowed[week], -torch.inf)
        future = action_value.amax(dim=-1)
        values.append(future)
        action_values.append(action_value)
    stacked = torch.stack(action_values[::-1], dim=-4)
    return DualSolution(price, torch.stack(values[::-1], dim=-3), stacked, _greedy(stacked))


def myopic_rule(market: TabularMarket, dual_price: float | torch.Tensor) -> torch.Tensor:
    """Return the rule that looks one week ahead: greatest expected margin − λ·cost of this week alone.

    The one-week uplift ranking with a knapsack price on the budget, as practised in industry.

    Args:
        market: the model.
        dual_price: λ >= 0, one number or a tensor of any shape [*].

    Returns:
        [*, T, G, S, K] decisions as probabilities.

    Raises:
        ValueError: a price is negative or not finite.
    """
    price = torch.as_tensor(dual_price, dtype=torch.float64, device=market.outcome.device)
    _check_prices(price)
    priced = market.expected_margin - price[..., None, None, None] * market.expected_cost
    score = priced.transpose(-1, -2)[..., None, :, :, :]
    return _greedy(torch.where(market.allowed, score, -torch.inf))


def no_offer_rule(market: TabularMarket) -> torch.Tensor:
    """Return the rule that sends nothing, [T, G, S, K]."""
    rule = torch.zeros_like(market.allowed, dtype=torch.float64)
    rule[..., 0] = 1.0
    return rule


def evaluate(market: TabularMarket, rule: torch.Tensor) -> Evaluation:
    """Return the exact expectations of decision rules without a hard cap, by forward recursion.

    Args:
        market: the model.
        rule: [*, T, G, S, K] float64 probability of each action.

    Raises:
        ValueError: the shape does not fit, probabilities do not sum to one, or a masked action has some.
    """
    _check_rule(market, rule)
    state = market.share[:, None] * market.initial
    weeks = []
    for week in range(market.horizon_weeks):
        occupancy = state[..., None] * rule[..., week, :, :, :]
        weeks.append(occupancy)
        state = torch.einsum("...gsk,gksn->...gn", occupancy, market.transition)
    occupancy = torch.stack(weeks, dim=-4)
    return Evaluation(
        occupancy,
        torch.einsum("...tgsk,gks->...", occupancy, market.expected_margin),
        torch.einsum("...tgsk,gks->...", occupancy, market.expected_cost),
    )


def to_go(market: TabularMarket, rule: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what decision rules earn and spend from each week and state on, by backward recursion.

    A pacing that re-solves needs the spend still to come from the states that users are in now.

    Args:
        market: the model.
        rule: [*, T, G, S, K] float64 probability of each action.

    Returns:
        Expected margin and cost from week t to the end, [*, T+1, G, S] each, currency per user.

    Raises:
        ValueError: as in :func:`evaluate`.
    """
    _check_rule(market, rule)
    payoff = torch.stack([market.expected_margin, market.expected_cost])
    future = payoff.new_zeros(*rule.shape[:-4], 2, market.n_types, market.n_states)
    weeks = [future]
    for week in reversed(range(market.horizon_weeks)):
        following = payoff + torch.einsum("gksn,...ign->...igks", market.transition, future)
        future = torch.einsum("...gsk,...igks->...igs", rule[..., week, :, :, :], following)
        weeks.append(future)
    margin, cost = torch.stack(weeks[::-1], dim=-3).unbind(dim=-4)
    return margin, cost


@dataclass(frozen=True, eq=False)
class _Cut:
    """The line margin + λ'·(B − cost) of a rule; it lies below g everywhere and touches it at its price."""

    dual_price: float
    evaluation: Evaluation
    rule: torch.Tensor
    margin: float
    cost: float

    @classmethod
    def at(cls, market: TabularMarket, dual_price: float) -> _Cut:
        rule = solve(market, dual_price).rule
        evaluation = evaluate(market, rule)
        return cls(dual_price, evaluation, rule, float(evaluation.margin), float(evaluation.cost))

    def height(self, dual_price: float, budget: float) -> float:
        return self.margin + dual_price * (budget - self.cost)


def lagrangian_bound(market: TabularMarket, budget_per_user: float) -> LagrangianBound:
    """Minimise g(λ) = V^λ + λ·B over λ >= 0, and build the rule that attains the minimum.

    g is convex and piecewise linear with slope B − spend at λ, so its minimum lies where the spend crosses
    B. Two rules that bracket B meet in a point below the minimum; where g touches that point both rules are
    optimal, and their mixture in occupancy that spends exactly B attains the bound. Steps to that point
    end at a kink after finitely many; bisection in between bounds their number.

    Args:
        market: the model.
        budget_per_user: B >= 0, currency.

    Raises:
        ValueError: the budget is negative or not finite.
    """
    if not 0 <= budget_per_user < float("inf"):
        raise ValueError(f"budget_per_user must be >= 0 and finite, got {budget_per_user}")
    no_offer = float(evaluate(market, no_offer_rule(market)).margin)
    rich = _Cut.at(market, 0.0)
    if rich.cost <= budget_per_user:
        return LagrangianBound(budget_per_user, 0.0, rich.margin, no_offer, rich.rule)
    poor = _Cut.at(market, 1.0)
    while poor.cost > budget_per_user:
        rich, poor = poor, _Cut.at(market, 2.0 * poor.dual_price)
    while True:
        kink = (rich.margin - poor.margin) / (rich.cost - poor.cost)
        below = rich.height(kink, budget_per_user)
        touching = _Cut.at(market, kink)
        if touching.height(kink, budget_per_user) <= below + GAP_TOLERANCE * max(1.0, abs(below)):
            break
        bracket = rich, poor
        for cut in (touching, _Cut.at(market, 0.5 * (rich.dual_price + poor.dual_price))):
            if cut.cost > budget_per_user and cut.dual_price > rich.dual_price:
                rich = cut
            elif cut.cost <= budget_per_user and cut.dual_price < poor.dual_price:
                poor = cut
        if bracket == (rich, poor):  # the prices are neighbours in floating point
            break
    weight = (budget_per_user - poor.cost) / (rich.cost - poor.cost)
    mixed = weight * rich.evaluation.occupancy + (1.0 - weight) * poor.evaluation.occupancy
    reached = mixed.sum(dim=-1, keepdim=True)
    rule = torch.where(reached > 0, mixed / reached, poor.rule)
    return LagrangianBound(budget_per_user, kink, below, no_offer, rule)


def _greedy(score: torch.Tensor) -> torch.Tensor:
    """Probability one on the best action, the first of equals, along the last dimension."""
    best = score == score.amax(dim=-1, keepdim=True)
    return (best & (best.cumsum(dim=-1) == 1)).double()


def _check_prices(price: torch.Tensor) -> None:
    if not bool((torch.isfinite(price) & (price >= 0)).all()):
        raise ValueError(f"a dual price must be >= 0 and finite, got {price.tolist()}")


def _check_rule(market: TabularMarket, rule: torch.Tensor) -> None:
    shape = market.allowed.shape
    if rule.shape[-4:] != shape or rule.dtype != torch.float64:
        raise ValueError(
            f"a rule must be float64 of shape [..., T, G, S, K] = [..., {', '.join(map(str, shape))}], "
            f"got {rule.dtype} {list(rule.shape)}"
        )
    # A comparison with nan is false: "not all good" refuses it.
    if not bool((rule >= 0).all()) or not bool(
        ((rule.sum(dim=-1) - 1.0).abs() <= PROBABILITY_TOLERANCE).all()
    ):
        raise ValueError("a rule's probabilities must be >= 0 and sum to 1 over actions")
    if bool((rule * ~market.allowed > 0).any()):
        raise ValueError("a rule gives probability to a masked action")
