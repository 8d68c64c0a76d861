"""The market of the budget study: its truths, its logs with a cap, and what the benchmark makes of them."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import pytest

from agents.rollout import control_margin, play
from envs.campaign import UNLIMITED_BUDGET
from experiments.benchmarks.budget_ope import _bias, _mean, _share
from experiments.ope.budget_interference import budgeted_estimate, naive_estimates
from experiments.ope.budget_study import BudgetStudy, TrueCurves, Truth
from experiments.ope.logged_dataset import LoggedDataset
from experiments.ope.price_levels import FixedPath

WEEKS, USERS = 4, 150


@cache
def study() -> BudgetStudy:
    return BudgetStudy.build(population=200, n_users=USERS, horizon_weeks=WEEKS)


def test_a_cap_that_never_binds_leaves_the_log_as_it_is() -> None:
    log = study().log(5)
    capped, refused = study().capped_log(5, UNLIMITED_BUDGET / USERS)
    assert refused == 0
    for field in fields(LoggedDataset):
        left, right = getattr(log, field.name), getattr(capped, field.name)
        assert np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


def test_a_cap_refuses_and_is_kept_and_the_log_says_what_was_asked_for() -> None:
    uncapped = study().log(5)
    budget = 0.2
    capped, refused = study().capped_log(5, budget)
    assert refused > 20
    assert capped.cost.sum() <= budget * USERS
    assert uncapped.cost.sum() > budget * USERS
    first = capped.position == 0
    np.testing.assert_array_equal(capped.action[first], uncapped.action[first])
    # Refused: asked for, but neither delivered nor charged.
    free = study().market.offers.delivery_cost.numpy() == 0
    asked = ~free[capped.action[first]]
    assert (capped.cost[first][asked] == 0).any()


def test_idle_rewards_are_the_luck_that_log_and_control_share() -> None:
    log, idle = study().log(5), study().idle_rewards(5)
    sent = (log.action > 0).reshape(USERS, WEEKS)
    before_first = np.cumsum(sent, axis=1) == 0
    rewards, without = log.reward.reshape(USERS, WEEKS), idle.reshape(USERS, WEEKS)
    np.testing.assert_array_equal(rewards[before_first], without[before_first])
    assert before_first.sum() > 20
    assert rewards.sum() > without.sum()


def test_truth_is_what_the_market_plays() -> None:
    setting, path = study().sampled(8), FixedPath(study().path(0.3))
    truth = study().truth([setting, study().sampled(9)], 0.3, path)
    result = play(study().policy, study().market, setting, 0.3 * USERS, path)
    idle = control_margin(study().market, setting).mean()
    assert truth.margin[0] == result.margin.mean()
    assert truth.incremental[0] == pytest.approx(result.margin.mean() - idle)
    assert truth.cost[0] == result.cost.mean()
    assert truth.peak[0] == pytest.approx(result.committed.max() / USERS)
    assert truth.refused[0] == result.refused / (result.refused + result.sent[:, 1:].sum())
    assert truth.peak.max() <= 0.3 + 1e-9
    assert truth.refused.min() > 0


def test_true_curves_find_the_level_that_spends_a_budget() -> None:
    levels = np.geomspace(0.25, 4, 9)

    def truth(level: float) -> Truth:
        peak = 1 - np.log(level)  # a straight line in the logarithm, which interpolation keeps
        return Truth(*(np.array([value]) for value in (10 + peak, peak, 0.5 * peak, peak, 0.0)))

    curves = TrueCurves.of(levels, [truth(level) for level in levels.tolist()])
    assert curves.level_of(0.6, "peak") == pytest.approx(np.exp(0.4))
    assert curves.level_of(0.6, "cost") == pytest.approx(np.exp(-0.2))
    assert curves.at("margin", np.exp(0.4)) == pytest.approx(10.6)
    with pytest.raises(ValueError, match="different signs"):
        curves.level_of(5.0, "peak")


def test_the_naive_estimate_of_one_week_is_off_by_the_share_that_the_logs_ledger_refused() -> None:
    """The target alone would fit the cap; the log asked for more, and the ledger cut it at random."""
    week = BudgetStudy.build(population=1500, n_users=1500, horizon_weeks=1)
    for budget in (1e4, 0.2):
        capped, refused = week.capped_log(6, budget)
        granted = 1 - refused / (capped.action > 0).sum()
        assert (granted == 1) == (budget == 1e4)
        (found,) = naive_estimates(week, 6, budget, [1.5])
        assert found.true_cost <= 0.2
        assert found.estimated_cost == pytest.approx(granted * found.true_cost, rel=0.15)
    assert granted < 0.8


def test_an_estimate_at_the_budget_is_beside_a_market_at_the_same_prices() -> None:
    found = budgeted_estimate(study(), 3, 0.3, [0.25, 0.5, 1.0, 2.0, 4.0], true_level=1.0)
    played = study().truth([study().sampled(3)], 0.3, FixedPath(study().path(1.0)))
    assert (found.truth, found.true_cost) == (played.incremental[0], played.cost[0])
    assert 0 < found.estimated_cost <= 0.3


def test_rows_of_the_benchmark_by_hand() -> None:
    share = _share("covers", [True] * 10, bar=0.9)
    assert (share.value, share.met, share.ci_high) == (1.0, True, 1.0)
    assert share.ci_low == pytest.approx(0.025 ** (1 / 10))  # Clopper & Pearson for n of n
    mean = _mean("error", np.array([0.01, 0.03]), "of it", bar=0.05)
    assert mean.met is True
    assert mean.value == pytest.approx(0.02)
    assert mean.ci_high == pytest.approx(0.02 + 12.706204736 * 0.01)
    bias = _bias("bias", np.array([[1.2, 1.0], [2.4, 2.0], [0.6, 0.5]]), "of it")
    assert bias.value == pytest.approx(0.2)
    assert bias.ci_low == pytest.approx(bias.ci_high)  # the same share in every log
