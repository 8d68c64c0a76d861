"""Estimates under a shared budget beside the truth of the same market: the right way and the naive one.

The naive way takes a log of a campaign whose users shared a cap, and weighs each user's outcomes by what the
target would have done with him alone. What the target would have spent on the others, so that money had run
out earlier or later than in the log, is in no user's weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.ope.budget_study import BudgetStudy
from experiments.ope.price_curves import logging_policy_values
from experiments.ope.price_levels import FixedPath, target_at_levels
from experiments.ope.sequential import doubly_robust
from experiments.ope.shared_budget import value_under_budget


@dataclass(frozen=True)
class Compared:
    """An offline estimate, and the truth of the same market under the cap; per user, log's currency.

    The margin's noise, many times the difference looked for, is taken off by the luck that the log shares
    with a market left alone: the outcome is the margin above that of the same user sent nothing. What nobody
    is sent does not depend on the offers, so no estimator's expectation moves by it.

    Attributes:
        estimate: incremental margin, estimated.
        truth: incremental margin when the target is played under the budget.
        estimated_cost: charged to the budget, estimated.
        true_cost: charged when the target is played.
    """

    estimate: float
    truth: float
    estimated_cost: float
    true_cost: float


def naive_estimates(study: BudgetStudy, seed: int, budget: float, levels: Sequence[float]) -> list[Compared]:
    """Estimate the target from a log with a cap as if users did not touch one another, and play it.

    Sequential doubly robust, for the margin and for the cost.

    Args:
        study: the market.
        seed: of the logged campaign.
        budget: for all users together, divided by their number.
        levels: price levels at which the target is to be run.
    """
    capped, _ = study.capped_log(seed, budget)
    dataset = replace(capped, reward=capped.reward - study.idle_rewards(seed))
    target, rows = target_at_levels(study.policy, dataset), np.arange(dataset.n_steps)
    outcomes = (dataset.reward, dataset.cost)
    values = [
        logging_policy_values(replace(dataset, reward=outcome), rng=np.random.default_rng([seed, 2]))
        for outcome in outcomes
    ]
    found = []
    for level in levels:
        probabilities = target(level)
        margin, cost = (
            doubly_robust(
                outcome=outcome,
                ratio=probabilities[rows, dataset.action] / dataset.propensity,
                q=q[rows, dataset.action],
                v=(probabilities * q).sum(axis=1),
                episode=dataset.episode,
                position=dataset.position,
            ).estimate()
            for outcome, q in zip(outcomes, values, strict=True)
        )
        played = study.truth([study.sampled(seed)], budget, FixedPath(study.path(level)))
        found.append(Compared(margin, float(played.incremental[0]), cost, float(played.cost[0])))
    return found


def budgeted_estimate(
    study: BudgetStudy, seed: int, budget: float, levels: Sequence[float], true_level: float
) -> Compared:
    """Estimate the target's value under a budget from a log without a cap, and play it under the cap.

    Args:
        study: the market.
        seed: of the logged campaign.
        budget: for all users together, divided by their number.
        levels: grid of the estimate.
        true_level: price level that spends the budget, at which the target is played.
    """
    log = study.log(seed)
    dataset = replace(log, reward=log.reward - study.idle_rewards(seed))
    curves = study.curves(dataset, levels, rng=np.random.default_rng([seed, 2]), n_bootstrap=20)
    found = value_under_budget(curves, budget, policy=study.policy.name)
    played = study.truth([study.sampled(seed)], budget, FixedPath(study.path(true_level)))
    return Compared(found.value, float(played.incremental[0]), found.cost, float(played.cost[0]))
