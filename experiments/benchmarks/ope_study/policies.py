"""The policies that are evaluated, and the one that writes the logs; all are rules [T, Z, S, K]."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from envs.tabular_market import TabularMarket
from envs.tabular_solution import myopic_rule, no_offer_rule, solve

PRODUCTION_TEMPERATURE = 0.3
"""Currency; the policy in place draws by lot, as a trained network does."""
ROLLOUT_SHARES = (0.5, 1.0)
"""Share of decisions that a new policy takes over from the one in place."""
TEMPERATURES = (0.1, 1.0)
"""Currency; of planning policies that draw by lot."""
PERTURBATIONS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Standard deviations of the errors in the scores of perturbed policies, currency."""
PERTURBATION_SEED = 7


def production_policy(believed: TabularMarket) -> torch.Tensor:
    """Return the policy in place: it plans for profit on what the shop believes, and draws by lot."""
    return torch.softmax(solve(believed, 1.0).action_values / PRODUCTION_TEMPERATURE, dim=-1)


def candidate_policies(believed: TabularMarket) -> dict[str, torch.Tensor]:
    """Return 24 policies of different kinds by name, from what the shop believes.

    Fixed offers, sending at random, greedy rules that look one week ahead or to the end, each with half
    of the decisions, as in a staged roll-out, and with all of them; the policy in place without exploration,
    and sharper and softer; planners with small to large errors in their scores, as networks that were trained
    more or less well.
    """
    production = production_policy(believed)
    new = {
        "no offer": no_offer_rule(believed),
        "random": _uniform(believed),
        "reminder": _whenever_allowed(believed, 1),
        "small coupon": _whenever_allowed(believed, 2),
        "large coupon": _whenever_allowed(believed, 3),
        "myopic at 0.5": myopic_rule(believed, 0.5),
        "myopic at 1": myopic_rule(believed, 1.0),
        "planned at 1": solve(believed, 1.0).rule,
    }
    policies = {
        f"{name}, {share:.0%}": share * rule + (1.0 - share) * production
        for share in ROLLOUT_SHARES
        for name, rule in new.items()
    }
    policies["in place"] = production
    scores = solve(believed, 1.0).action_values
    for temperature in TEMPERATURES:
        policies[f"in place, drawn at {temperature:g}"] = torch.softmax(scores / temperature, dim=-1)
    generator = torch.Generator().manual_seed(PERTURBATION_SEED)
    for size in PERTURBATIONS:
        errors = torch.randn(scores.shape[1:], generator=generator, dtype=torch.float64)
        policies[f"perturbed by {size:g}"] = torch.softmax(
            (scores + size * errors) / PRODUCTION_TEMPERATURE, -1
        )
    return policies


def behaviour_policy(believed: TabularMarket, temperature: float, exploration: float) -> torch.Tensor:
    """Return a policy that writes logs: it plans like the one in place, more or less sharply, and explores.

    Args:
        believed: the shop's model.
        temperature: currency; the lower, the more it repeats itself.
        exploration: share of decisions drawn uniformly from the allowed offers, in (0, 1].
    """
    planned = torch.softmax(solve(believed, 1.0).action_values / temperature, dim=-1)
    return (1.0 - exploration) * planned + exploration * _uniform(believed)


def probabilities_at(
    policies: Mapping[str, torch.Tensor], week: torch.Tensor, segment: torch.Tensor, state: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return each policy's probabilities [N, K] at N decisions given by week, segment and state [N]."""
    return {name: rule[week, segment, state] for name, rule in policies.items()}


def _uniform(market: TabularMarket) -> torch.Tensor:
    allowed = market.allowed.double()
    return allowed / allowed.sum(dim=-1, keepdim=True)


def _whenever_allowed(market: TabularMarket, offer: int) -> torch.Tensor:
    rule = no_offer_rule(market)
    may = market.allowed[..., offer]
    rule[..., 0] = (~may).double()
    rule[..., offer] = may.double()
    return rule
