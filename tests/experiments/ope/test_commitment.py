"""What logged users take from the budget, against the ledger of the market itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.rollout import play
from envs.campaign import UNLIMITED_BUDGET
from experiments.ope.budget_study import BudgetStudy
from experiments.ope.commitment import commitment_change
from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset
from experiments.ope.price_levels import FixedPath

LIABILITY, DELIVERY = np.array([0.0, 0.0, 5.0]), np.array([0.0, 0.1, 0.2])


def small_log() -> LoggedDataset:
    """Two users, four weeks: a coupon that pays 3 in its second week; a message, then one that expires."""
    action = np.array([2, 0, 0, 2, 1, 2, 0, 0])
    held = np.array([0, 1, 0, 0, 0, 0, 1, 0], dtype=np.float32)
    return LoggedDataset(
        observation=held[:, None],
        action=action,
        mask=np.ones((8, 3), dtype=np.bool_),
        propensity=np.full(8, 0.5),
        reward=np.zeros(8),
        cost=np.array([0.2, 3.0, 0.0, 4.2, 0.1, 0.2, 0.0, 0.0]),
        next_observation=held[:, None],
        terminated=np.tile([False, False, False, True], 2),
        truncated=np.zeros(8, dtype=np.bool_),
        user=np.repeat([0, 1], 4),
        campaign=np.zeros(8, dtype=np.int64),
        week=np.tile(np.arange(4), 2),
        dual_price=np.ones(8),
        observation_names=("coupon_held",),
        propensity_source="logged",
    )


def test_commitments_by_hand() -> None:
    change = commitment_change(small_log(), LIABILITY, DELIVERY)
    committed = np.cumsum(change.reshape(2, 4), axis=1)
    # User 0: 5.2 reserved; 0.2 paid + 5 out; 3.2 paid; 3.2 + 5.2. User 1: 0.1; 0.1 + 5.2; 0.3 + 5; 0.3.
    np.testing.assert_allclose(committed, [[5.2, 5.2, 3.2, 8.4], [0.1, 5.3, 5.3, 0.3]])


def test_commitments_of_a_log_are_those_of_the_ledger() -> None:
    study = BudgetStudy.build(population=300, n_users=200, horizon_weeks=6)
    log = study.log(7)
    change = study.use(log).reshape(200, 6)
    played = play(study.behaviour, study.market, study.sampled(7), UNLIMITED_BUDGET, FixedPath(study.path()))
    np.testing.assert_allclose(np.cumsum(change.sum(axis=0)), played.committed, rtol=1e-12)
    assert change.min() < -0.5  # liability of coupons that ended came back
    assert played.committed.max() > 1.3 * played.cost.sum()


def test_logs_in_which_liability_cannot_be_followed() -> None:
    log = small_log()
    with pytest.raises(LoggedDataError, match="lack 'coupon_held'"):
        commitment_change(replace(log, observation_names=("held",)), LIABILITY, DELIVERY)
    held = log.observation.copy()
    held[4] = 1
    with pytest.raises(LoggedDataError, match=r"row 4 \(user 1, week 0\).*issued before the log starts"):
        commitment_change(replace(log, observation=held), LIABILITY, DELIVERY)
    held = log.observation.copy()
    held[3] = 1
    with pytest.raises(LoggedDataError, match=r"row 3 \(user 0, week 3\).*second coupon"):
        commitment_change(replace(log, observation=held), LIABILITY, DELIVERY)
    with pytest.raises(ValueError, match=r"liability has shape \(2,\), expected \(3,\)"):
        commitment_change(log, LIABILITY[:2], DELIVERY)
