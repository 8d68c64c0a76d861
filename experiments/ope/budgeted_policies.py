"""Policies of the market at several budgets, from one log: what a run's evaluation asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agents.policy import Policy
from envs.money import to_currency
from envs.offers import OfferTensors
from experiments.ope.commitment import commitment_change
from experiments.ope.logged_dataset import FloatArray, LoggedDataset
from experiments.ope.price_curves import estimate_curves, logging_policy_values
from experiments.ope.price_levels import default_levels, target_at_levels
from experiments.ope.shared_budget import BudgetedValue, value_under_budget


def offer_commitments(dataset: LoggedDataset, offers: OfferTensors) -> FloatArray:
    """Return what each logged step adds to its user's commitment, [N]; see :func:`commitment_change`."""
    return commitment_change(
        dataset, to_currency(offers.liability).cpu().numpy(), to_currency(offers.delivery_cost).cpu().numpy()
    )


def values_under_budgets(
    dataset: LoggedDataset,
    policies: Sequence[Policy],
    offers: OfferTensors,
    budgets: Sequence[float],
    *,
    rng: np.random.Generator,
    levels: Sequence[float] | None = None,
    n_bootstrap: int = 1000,
    device: str | torch.device = "cpu",
) -> list[BudgetedValue]:
    """Evaluate each policy at each budget that all users share.

    Args:
        dataset: N steps, logged without a cap at one price path, with the logging policy's distribution.
        policies: λ-conditioned.
        offers: the catalogue, for what it reserves.
        budgets: for all users together, divided by their number; log's currency.
        rng: assigns users to folds and draws resamples; the same ones for all policies.
        levels: price levels looked at; :func:`experiments.ope.price_levels.default_levels` if None.
        n_bootstrap: resamples of an interval.
        device: of the policies.

    Returns:
        One row for each policy and budget, policies first.

    Raises:
        LoggedDataError: the log does not hold what the market's observations hold.
        ValueError: as :func:`experiments.ope.price_curves.estimate_curves`.
    """
    fold_rng, bootstrap_rng = rng.spawn(2)
    state = bootstrap_rng.bit_generator.state
    values = logging_policy_values(dataset, rng=fold_rng)
    use = offer_commitments(dataset, offers)
    found = []
    for policy in policies:
        bootstrap_rng.bit_generator.state = state
        curves = estimate_curves(
            dataset,
            target_at_levels(policy, dataset, device),
            levels=default_levels() if levels is None else levels,
            values=values,
            rng=bootstrap_rng,
            use=use,
            n_bootstrap=n_bootstrap,
        )
        found += [value_under_budget(curves, budget, policy=policy.name) for budget in budgets]
    return found
