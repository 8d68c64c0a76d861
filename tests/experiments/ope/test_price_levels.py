"""A policy at other prices than the logged ones, against the market asked at those prices."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from agents.policy import MyopicUpliftPolicy
from agents.rollout import open_campaign
from envs.campaign import UNLIMITED_BUDGET
from experiments.ope.budget_study import BudgetStudy
from experiments.ope.budgeted_policies import values_under_budgets
from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset
from experiments.ope.price_levels import FixedPath, default_levels, target_at_levels

WEEKS, USERS = 4, 120


@cache
def study() -> BudgetStudy:
    return BudgetStudy.build(population=200, n_users=USERS, horizon_weeks=WEEKS)


@cache
def log() -> LoggedDataset:
    return study().log(3)


def test_at_level_one_it_is_the_policy_at_the_logged_steps() -> None:
    observation, mask = torch.from_numpy(log().observation), torch.from_numpy(log().mask)
    found = target_at_levels(study().behaviour, log())(1.0)
    logged = log().behaviour_probabilities
    assert logged is not None
    np.testing.assert_allclose(found, logged, atol=1e-6)
    greedy = MyopicUpliftPolicy(study().market.layout)
    np.testing.assert_array_equal(
        target_at_levels(greedy, log())(1.0), greedy.probabilities(observation, mask).numpy()
    )


@pytest.mark.parametrize("level", [0.3, 1.0, 4.0])
def test_at_another_level_it_is_the_policy_asked_at_those_prices(level: float) -> None:
    campaign = open_campaign(study().market, study().sampled(3), UNLIMITED_BUDGET)
    first = study().path(level)[0]
    asked = campaign.observation(torch.full((USERS,), first.spend), first.pressure)
    expected = study().policy.probabilities(asked, campaign.mask).numpy()
    found = target_at_levels(study().policy, log())(level)[log().position == 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)


def test_a_higher_price_sends_less() -> None:
    target = target_at_levels(study().policy, log())
    sent = [1 - target(level)[:, 0].mean() for level in default_levels()]
    assert (np.diff(sent) < 0).all()
    assert sent[0] > 2 * sent[-1]


def test_a_fixed_path_at_a_level_is_the_path_of_dearer_first_prices() -> None:
    dearer = FixedPath(study().path()).at_level(3.0)
    for own, expected in zip(dearer.path, study().path(3.0), strict=True):
        assert own.spend == pytest.approx(expected.spend)
        assert own.pressure == pytest.approx(expected.pressure)


def test_default_levels_surround_the_logged_prices() -> None:
    levels = default_levels(5, 4.0)
    assert levels == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0])


def test_logs_that_are_not_of_the_market_or_not_at_their_prices() -> None:
    with pytest.raises(LoggedDataError, match=r"dual_price: row 0 is 2\.0, but the policy saw 1"):
        target_at_levels(study().policy, replace(log(), dual_price=2 * log().dual_price))
    with pytest.raises(LoggedDataError, match=r"dual_price: row 0 is 0\.0"):
        target_at_levels(study().policy, replace(log(), dual_price=0 * log().dual_price))
    names = tuple(f"own {k}" for k in range(len(log().observation_names)))
    with pytest.raises(LoggedDataError, match="is not 'log_dual_price'"):
        target_at_levels(study().policy, replace(log(), observation_names=names))


def test_policies_at_several_budgets_are_the_same_whoever_else_is_asked() -> None:
    market = study().market
    policies = [MyopicUpliftPolicy(market.layout), study().policy]
    budgets = (0.1, 0.4, 1e6)

    def rows(which: slice) -> list[dict[str, object]]:
        found = values_under_budgets(
            log(), policies[which], market.offers, budgets, rng=np.random.default_rng(0), n_bootstrap=50
        )
        return [row.to_dict() for row in found]

    together = rows(slice(None))
    assert [(row["policy"], row["budget"]) for row in together] == [
        (policy.name, budget) for policy in policies for budget in budgets
    ]
    assert together[3:] == rows(slice(1, 2))
    assert together[-1]["binding"] == "never binding"
    tight, loose = together[3], together[4]
    assert tight["binding"] == loose["binding"] == "binding"
    assert float(str(tight["dual_price"])) > float(str(loose["dual_price"]))
    assert tight["use"] == pytest.approx(0.1)
    assert float(str(tight["cost"])) <= 0.1 + 1e-9
