"""Dual prices by budget and week: the plan that a policy was exported with, and how it is followed.

The table holds for each budget what a campaign was planned to spend week by week, and the prices at which it
did. Between two budgets the price is interpolated, log λ in the log of the money. A campaign that has spent
more or less than planned is one with another budget: asked with the money that is left, the table gives the
prices at which as much was planned to be left. That is all the state that pacing has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.serving.errors import DecisionInputError

LEAST_MONEY = 1e-9
"""Of a user, log's currency; stands for none, where a logarithm is taken."""


@dataclass(frozen=True)
class PlannedWeek:
    """One week of a plan.

    Attributes:
        planned_spend: a user, log's currency.
        dual_price: λ, margin that a unit of budget must bring.
        pressure: share of it that comes from all weeks alike; above 1 where reserve is short.
    """

    planned_spend: float
    dual_price: float
    pressure: float


@dataclass(frozen=True)
class BudgetPlan:
    """The plan for one budget.

    Attributes:
        budget_per_user: for the whole campaign, log's currency.
        weeks: the campaign's weeks, first one first.
    """

    budget_per_user: float
    weeks: tuple[PlannedWeek, ...]


def paced_prices(
    plans: Sequence[BudgetPlan],
    weeks_left: int,
    *,
    budget_per_user: float | None = None,
    left_per_user: float | None = None,
) -> tuple[float, float]:
    """Return λ and pressure for a week.

    Args:
        plans: at least one, all of the same number of weeks.
        weeks_left: of the campaign, this one included.
        budget_per_user: of the whole campaign.
        left_per_user: money not spent yet, instead: what is left decides, as it does for plans with as much
            left before that week.

    Raises:
        DecisionInputError: the campaign is longer than the plans, money is not above 0, or both are given.
    """
    horizon = len(plans[0].weeks)
    if not 1 <= weeks_left <= horizon:
        raise DecisionInputError(
            f"weeks_left must be in 1..{horizon}, as the policy was trained, got {weeks_left}"
        )
    if (budget_per_user is None) == (left_per_user is None):
        raise DecisionInputError("give either budget_per_user or left_per_user")
    first = horizon - weeks_left
    if left_per_user is None:
        money, name = budget_per_user, "budget_per_user"
        known = [plan.budget_per_user for plan in plans]
    else:
        money, name = left_per_user, "left_per_user"
        known = [
            plan.budget_per_user - sum(week.planned_spend for week in plan.weeks[:first]) for plan in plans
        ]
    if money is None or not 0 < money < np.inf:
        raise DecisionInputError(f"{name} must be above 0 and finite, got {money}")
    week = [plan.weeks[first] for plan in plans]
    # A plan may have nothing left for its last weeks.
    at = np.log(np.maximum(known, LEAST_MONEY))
    order = np.argsort(at, kind="stable")
    # Prices are those of campaigns that were played, not of an optimum: more money shall never be dearer.
    log_price = np.minimum.accumulate(np.log([week[k].dual_price for k in order]))
    pressure = [week[k].pressure for k in order]
    asked = np.log(money)
    return (
        float(np.exp(np.interp(asked, at[order], log_price))),
        float(np.interp(asked, at[order], pressure)),
    )
