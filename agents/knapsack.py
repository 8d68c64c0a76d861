"""One week's allocation as a multiple-choice knapsack: one offer for each user, all within one budget.

The linear relaxation is solved exactly by its dual: of each user's offers only the upper concave envelope
of value over cost can be optimal at some price; the steps of all envelopes, sorted by what they bring per
unit of budget, are taken in turn until the money ends (Sinha & Zoltners 1979, *Operations Research* 27(3)).
At most one user is left between two offers; so the integer solution is at most one step below the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KnapsackSolution:
    """An allocation and how good it can be at most.

    Attributes:
        choice: [n] int64, the offer of each user.
        dual_price: λ ≥ 0, value of one more unit of budget in the linear relaxation; 0 if money is left over.
        value: total value of the choice.
        bound: value of the linear relaxation, which no allocation within the budget exceeds.
    """

    choice: Ints
    dual_price: float
    value: float
    bound: float


def solve_dual(value: Doubles, cost: Doubles, mask: npt.NDArray[np.bool_], budget: float) -> KnapsackSolution:
    """Choose one offer per user so that the total value is nearly the highest that the budget allows.

    Every choice but at most one user's is the best of value − λ·cost at the dual price λ. The user at whom
    the money ends gets the most valuable offer that what is left pays for. The value is below the bound by
    less than the most that a single user's offer adds, and so is the distance to the integer optimum.

    Args:
        value: [n, K] of each offer to each user; any sign.
        cost: [n, K] ≥ 0; the first offer costs nothing.
        mask: [n, K] bool, offers that may be chosen; the first always may.
        budget: ≥ 0, for all users together.

    Raises:
        ValueError: shapes differ, or a number is outside its range or not finite.
    """
    _check(value, cost, mask, budget)
    choice, steps = _envelope_steps(value, cost, mask)
    spent = np.cumsum(steps.cost)
    # Rounding of the sum must not refuse a step that just fits.
    n_taken = int(np.searchsorted(spent, budget * (1.0 + 1e-12), side="right"))
    every = np.arange(len(value))
    start = float(value[every, choice].sum())
    # Steps of a user stand in the order of his envelope: the last one taken says what he gets.
    choice[steps.user[:n_taken]] = steps.offer[:n_taken]
    bound = start + float(steps.value[:n_taken].sum())
    dual_price = 0.0
    if n_taken < len(steps.user):
        left = max(budget - float(spent[n_taken - 1]) if n_taken else budget, 0.0)
        dual_price = float(steps.value[n_taken] / steps.cost[n_taken])
        bound += dual_price * left
        user = steps.user[n_taken]
        affordable = mask[user] & (cost[user] - cost[user, choice[user]] <= left)
        choice[user] = np.where(affordable, value[user], -np.inf).argmax()
    return KnapsackSolution(choice, dual_price, float(value[every, choice].sum()), bound)


@dataclass(frozen=True)
class _Steps:
    """Steps up the users' envelopes, best value per cost first; S of them.

    Attributes:
        user: [S] whose.
        offer: [S] to which offer it leads.
        cost: [S] further cost, > 0.
        value: [S] further value, > 0.
    """

    user: Ints
    offer: Ints
    cost: Doubles
    value: Doubles


def _envelope_steps(value: Doubles, cost: Doubles, mask: npt.NDArray[np.bool_]) -> tuple[Ints, _Steps]:
    """Each user's best offer that is free, [n], and the steps up from it."""
    n = len(value)
    every = np.arange(n)
    start: Ints = np.where(mask & (cost == 0), value, -np.inf).argmax(axis=1)
    current = start.copy()
    last_slope = np.full(n, np.inf)
    found: list[tuple[Ints, Ints, Doubles, Doubles, Doubles]] = []
    while True:
        more_cost = cost - cost[every, current][:, None]
        more_value = value - value[every, current][:, None]
        up = mask & (more_cost > 0) & (more_value > 0)
        slope = np.divide(more_value, more_cost, out=np.full_like(value, -np.inf), where=up)
        following = slope.argmax(axis=1)
        user = np.flatnonzero(up.any(axis=1))
        if not len(user):
            break
        offer = following[user]
        # Concave but for rounding; the order of a user's own steps must not depend on that.
        last_slope[user] = np.minimum(last_slope[user], slope[user, offer])
        found.append((user, offer, more_cost[user, offer], more_value[user, offer], last_slope[user]))
        current[user] = offer
    if not found:
        none = np.zeros(0)
        return start, _Steps(none.astype(np.int64), none.astype(np.int64), none, none)
    user, offer, step_cost, step_value, slopes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # Stable: of equal slopes of one user the lower step comes first.
    order = np.argsort(-slopes, kind="stable")
    return start, _Steps(user[order], offer[order], step_cost[order], step_value[order])


def _check(value: Doubles, cost: Doubles, mask: npt.NDArray[np.bool_], budget: float) -> None:
    if value.ndim != 2 or value.shape[1] < 1 or not value.shape == cost.shape == mask.shape:
        raise ValueError(
            f"value, cost and mask must have one shape [n, K], got {value.shape}, {cost.shape}, {mask.shape}"
        )
    if not budget >= 0:
        raise ValueError(f"budget must be >= 0, got {budget}")
    if not (np.isfinite(value).all() and np.isfinite(cost).all()):
        raise ValueError("value and cost must be finite")
    if (cost < 0).any():
        raise ValueError("cost must be >= 0")
    if not mask[:, 0].all() or cost[:, 0].any():
        raise ValueError("the first offer must be allowed and free for every user")
