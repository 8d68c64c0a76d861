from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.monitor.costs import measure_costs
from experiments.monitor.findings import Level, MonitorError
from experiments.monitor.monitor import OfferFacts
from experiments.ope.logged_dataset import LoggedDataset

Offers = tuple[OfferFacts, ...]


def test_totals_and_errors_by_hand(
    reference: LoggedDataset, offers: Offers, with_column: Callable[..., Any]
) -> None:
    """One user a week apart from nothing: coupon expected at 0.22 (0.02 delivery) costs 1.02."""
    rows = np.flatnonzero(reference.user < 2)
    action = np.array([2, 0, 0, 0, 1, 0, 0, 0])
    cost = np.array([0.02, 1.0, 0, 0, 0.02, 0, 0, 0])
    probabilities = np.full((8, 4), 0.25)
    small = LoggedDataset(
        observation=reference.observation[rows],
        action=action,
        mask=np.ones((8, 4), dtype=np.bool_),
        propensity=np.full(8, 0.25),
        reward=np.zeros(8),
        cost=cost,
        next_observation=reference.next_observation[rows],
        terminated=reference.terminated[rows],
        truncated=reference.truncated[rows],
        user=reference.user[rows],
        campaign=reference.campaign[rows],
        week=reference.week[rows],
        dual_price=reference.dual_price[rows],
        observation_names=reference.observation_names,
        propensity_source="logged",
        behaviour_probabilities=probabilities,
    )
    small = with_column(small, "cost_2", np.full(8, 0.22))
    found = measure_costs(small, offers)
    assert found is not None
    assert (found.users, found.left_out) == (2, 0)
    assert found.expected == pytest.approx(0.24, abs=1e-6)
    assert found.realised == pytest.approx(1.04)
    # Variance at most e (m - e) with e = 0.2 of a discount of at most 1; the push is certain.
    assert found.z == pytest.approx(0.8 / math.sqrt(0.2 * 0.8), rel=1e-5)
    assert found.ratio == pytest.approx(1.04 / 0.24, rel=1e-5)
    assert [group.users for group in found.groups] == [1, 1]
    assert found.groups[0].z == 0.0


def test_calibrated_costs_are_called_so(world: Callable[..., Any], offers: Offers) -> None:
    found = [measure_costs(world(n_users=200).log(seed), offers) for seed in range(60)]
    z = np.array([one.z for one in found if one is not None])
    assert len(z) == 60
    assert abs(z.mean()) < 3 / math.sqrt(60)
    # The bound makes errors too large, but not by so much that nothing would be found.
    assert 0.6 < z.std() < 1.1
    levels = [one.level for one in found if one is not None]
    assert levels.count(Level.ALARM) == 0
    assert levels.count(Level.WARNING) <= 4


@pytest.mark.parametrize("redeems", [0.4, 1.7])
def test_redemptions_that_are_not_as_expected_are_an_alarm(
    world: Callable[..., Any], offers: Offers, redeems: float
) -> None:
    found = measure_costs(world(n_users=1500, redeems=redeems).log(3), offers)
    assert found is not None
    assert found.level is Level.ALARM
    assert (found.ratio > 1) == (redeems > 1)


def test_a_total_that_is_right_for_the_wrong_users_is_a_warning(
    world: Callable[..., Any], offers: Offers, with_column: Callable[..., Any]
) -> None:
    log = world(n_users=3000).log(4)
    names = log.observation_names
    flat = log
    for k in (2, 3):
        column = log.observation[:, names.index(f"cost_{k}")]
        sent = log.action == k
        # The same for all, with the total that came.
        came = 0.02 + (column[sent].mean() - 0.02)
        flat = with_column(flat, f"cost_{k}", np.full(log.n_steps, came))
    found = measure_costs(flat, offers)
    assert found is not None
    assert found.ratio == pytest.approx(1, abs=0.08)
    assert found.p_value < 0.001
    assert found.level is Level.WARNING


def test_users_who_may_still_redeem_are_left_out(world: Callable[..., Any], offers: Offers) -> None:
    log = world(weeks=3, campaign_weeks=6, n_users=2000).log(5)
    found = measure_costs(log, offers)
    assert found is not None
    action = log.action.reshape(-1, 3)
    still = action[:, -1] >= 2
    assert found.left_out == int(still.sum())
    assert found.users == int(((action > 0).any(axis=1) & ~still).sum())
    assert abs(found.z) < 3
    over = replace(log, terminated=log.truncated, truncated=log.terminated)
    whole = measure_costs(over, offers)
    assert whole is not None
    assert whole.left_out == 0


def test_nothing_is_expected_of_offers_that_the_budget_did_not_cover(
    world: Callable[..., Any], offers: Offers
) -> None:
    log = world(n_users=2000).log(4)
    # Every second user of those who were sent something is refused everything.
    refused = (log.user % 2 == 0) & (log.action > 0)
    kept = replace(log, cost=np.where(log.user % 2 == 0, 0.0, log.cost))
    unaware, aware = measure_costs(kept, offers), measure_costs(kept, offers, refused)
    assert unaware is not None
    assert aware is not None
    assert unaware.level is Level.ALARM
    assert unaware.ratio < 0.6
    assert aware.users == len(set(log.user[(log.action > 0) & ~refused].tolist()))
    assert aware.level is Level.OK


def test_no_user_with_all_costs_in(world: Callable[..., Any], offers: Offers) -> None:
    log = world(weeks=1, campaign_weeks=6).log(6)
    only_coupons = replace(
        log,
        action=np.full(log.n_steps, 2),
        propensity=np.full(log.n_steps, 0.5),
        behaviour_probabilities=None,
    )
    assert measure_costs(only_coupons, offers) is None


def test_pushes_cost_what_they_cost(world: Callable[..., Any], offers: Offers) -> None:
    log = world().log(7)
    pushes = replace(
        log,
        action=np.ones(log.n_steps, dtype=np.int64),
        propensity=np.full(log.n_steps, 0.5),
        behaviour_probabilities=None,
        cost=np.full(log.n_steps, 0.02),
    )
    found = measure_costs(pushes, offers)
    assert found is not None
    assert (found.z, found.p_value, found.level) == (0.0, 1.0, Level.OK)
    dearer = measure_costs(replace(pushes, cost=np.full(log.n_steps, 0.03)), offers)
    assert dearer is not None
    assert dearer.z == math.inf
    assert dearer.level is Level.ALARM


def test_other_offers_and_logs_without_expectations_are_refused(
    reference: LoggedDataset, offers: Offers
) -> None:
    with pytest.raises(MonitorError, match="the log has 4 offers, the reference 3"):
        measure_costs(reference, offers[:3])
    names = tuple(name.replace("cost_2", "price_2") for name in reference.observation_names)
    with pytest.raises(MonitorError, match="no column 'cost_2'"):
        measure_costs(replace(reference, observation_names=names), offers)
