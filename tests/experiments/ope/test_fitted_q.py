from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from experiments.ope.fitted_q import FittedQConfig, fit_q

EXACT = FittedQConfig(ridge=1e-7)


def test_exact_on_the_deterministic_chain(chain: Any) -> None:
    market = chain()
    log, target, state = market.log(np.random.default_rng(0), 300)
    fitted = fit_q(
        log,
        target,
        log.reward,
        rng=np.random.default_rng(1),
        discount_factor=market.discount_factor,
        config=EXACT,
    )
    q, v = market.values()
    # Early endings are many, so weeks to go must come from the campaign, not from the episode's length.
    assert (np.bincount(log.episode) < market.horizon).mean() > 0.1
    np.testing.assert_allclose(fitted.q, q[log.weeks_to_go, state], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fitted.v, v[log.weeks_to_go, state], rtol=1e-6, atol=1e-6)


def test_closed_form_of_the_three_state_chain(chain: Any) -> None:
    """Two weeks to go, written out: what the target earns in state 0 is one sum over its two decisions."""
    market = chain(horizon=2)
    log, target, state = market.log(np.random.default_rng(0), 300)
    fitted = fit_q(log, target, log.reward, rng=np.random.default_rng(1), discount_factor=0.9, config=EXACT)
    last = {0: 0.3 * 0.0 + 0.7 * -1.0, 1: 0.6 * 2.0 + 0.4 * 1.0, 2: 0.8 * 5.0 + 0.2 * 3.5}
    stays, moves = 0.0 + 0.9 * last[0], -1.0 + 0.9 * last[1]
    first = (log.week == 10) & (state == 0)
    np.testing.assert_allclose(fitted.q[first], [[stays, moves]] * first.sum(), rtol=1e-6)
    np.testing.assert_allclose(fitted.v[first], 0.3 * stays + 0.7 * moves, rtol=1e-6)
    ends = (log.week == 10) & (state == 2)  # offer 1 in the last state ends the episode
    np.testing.assert_allclose(fitted.q[ends], [[5.0 + 0.9 * last[2], 3.5]] * ends.sum(), rtol=1e-6)


def test_equals_tabular_regression_on_the_other_folds(chain: Any) -> None:
    market = chain(advance=0.6, noise=1.0, horizon=2)
    log, target, state = market.log(np.random.default_rng(3), 400)
    config = FittedQConfig(ridge=1e-7, n_folds=2)
    fitted = fit_q(log, target, log.reward, rng=np.random.default_rng(4), config=config)
    fold = np.random.default_rng(4).permutation(np.arange(400) % 2)[log.user]
    cells = (log.weeks_to_go, state, log.action)
    for held_out in (0, 1):
        q = np.zeros((2, 3, 2))
        next_value = np.zeros(log.n_steps)
        for stage in (0, 1):
            for s in range(3):
                for offer in (0, 1):
                    chosen = (fold != held_out) & (cells[0] == stage) & (cells[1] == s) & (cells[2] == offer)
                    q[stage, s, offer] = (log.reward + next_value)[chosen].mean()
            v = (market.target[state] * q[stage, state]).sum(axis=1)
            continuing = np.flatnonzero(~log.is_last)
            next_value[continuing] = v[continuing + 1]
        rows = fold == held_out
        np.testing.assert_allclose(fitted.q[rows], q[log.weeks_to_go, state][rows], rtol=1e-5, atol=1e-5)


def test_no_user_informs_its_own_values(chain: Any) -> None:
    market = chain(noise=1.0)
    log, target, _ = market.log(np.random.default_rng(5), 60)
    before = fit_q(log, target, log.reward, rng=np.random.default_rng(6))
    mine = log.user == 17
    after = fit_q(log, target, log.reward + 1000.0 * mine, rng=np.random.default_rng(6))
    np.testing.assert_array_equal(before.q[mine], after.q[mine])
    assert np.abs(before.q - after.q).max() > 1


def test_equals_penalised_least_squares_on_the_written_out_design(chain: Any) -> None:
    """One week, any features: shared block, then a block per offer, all but one intercept shrunk."""
    log, _, _ = chain(horizon=1).log(np.random.default_rng(7), 120)
    rng = np.random.default_rng(8)
    observation = rng.normal(3.0, 2.0, size=(120, 3)).astype(np.float32)
    action = rng.choice(4, p=[0.5, 0.4, 0.09, 0.01], size=120)
    log = replace(
        log,
        observation=observation,
        action=action,
        mask=np.ones((120, 4), dtype=np.bool_),
        behaviour_probabilities=None,
    )
    reward = rng.normal(size=120) + action
    config = FittedQConfig(ridge=4.0, n_folds=3)
    fitted = fit_q(log, np.full((120, 4), 0.25), reward, rng=np.random.default_rng(9), config=config)

    x = np.column_stack([np.ones(120), (observation - observation.mean(axis=0)) / observation.std(axis=0)])

    def design(offer: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.hstack([x] + [x * (offer == k)[:, None] for k in range(4)])

    fold = np.random.default_rng(9).permutation(np.arange(120) % 3)
    penalty = 2.0 * np.eye(20)
    penalty[0, 0] = 0.0
    for held_out in range(3):
        seen = fold != held_out
        rows = np.vstack([design(action)[seen], penalty])
        solution = np.linalg.lstsq(rows, np.append(reward[seen], np.zeros(20)))[0]
        q = np.stack([design(np.full(120, k)) @ solution for k in range(4)], axis=1)
        np.testing.assert_allclose(fitted.q[~seen], q[~seen], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fitted.v, fitted.q.mean(axis=1))


def test_settings_and_logs_that_cannot_be_fitted(chain: Any) -> None:
    with pytest.raises(ValueError, match="ridge"):
        FittedQConfig(ridge=-1.0)
    with pytest.raises(ValueError, match="n_folds"):
        FittedQConfig(n_folds=1)
    log, target, _ = chain().log(np.random.default_rng(0), 1)
    with pytest.raises(ValueError, match="at least 2 users"):
        fit_q(log, target, log.reward, rng=np.random.default_rng(0))


def test_fewer_users_than_folds_still_fit(chain: Any) -> None:
    log, target, _ = chain().log(np.random.default_rng(0), 3)
    fitted = fit_q(log, target, log.reward, rng=np.random.default_rng(0))
    assert np.isfinite(fitted.q).all()
