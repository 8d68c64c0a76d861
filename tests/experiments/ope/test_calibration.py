from __future__ import annotations

import numpy as np
import pytest

from experiments.ope.calibration import (
    calibration_error,
    clustered_z,
    offer_calibration,
    weight_calibration,
)


def test_z_is_clustered_by_user() -> None:
    residual = np.array([0.5, -0.25, 0.75])
    assert clustered_z(residual, np.array([0, 1, 2])) == pytest.approx(1 / np.sqrt(0.875))
    # One user's rows are summed before they are squared: sums .25 and .75.
    assert clustered_z(residual, np.array([0, 0, 1])) == pytest.approx(1 / np.sqrt(0.625))
    assert np.isnan(clustered_z(np.zeros(3), np.arange(3)))
    assert np.isnan(clustered_z(np.zeros(0), np.zeros(0, dtype=np.int64)))


def test_offers_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [1.0, 0.0, 0.0]])
    mask = np.array([[True, True, False]] * 3 + [[True, False, False]])
    found = offer_calibration(probabilities, np.array([0, 1, 1, 0]), mask, np.array([0, 1, 2, 3]))
    assert [one.offer for one in found] == [0, 1]  # nobody might have had the third
    first = found[0]
    assert (first.rows, first.sent) == (3, 1)  # the row without a choice does not count
    assert first.observed_share == pytest.approx(1 / 3)
    assert first.expected_share == pytest.approx(1.3 / 3)
    # Sent at .5, not at .2 and .6: one of two pairs in the right order.
    assert first.auc == 0.5
    residual = np.array([0.5, -0.2, -0.6])
    assert first.z == pytest.approx(residual.sum() / np.sqrt((residual**2).sum()))


def test_an_offer_sent_always_or_never_has_no_auc() -> None:
    probabilities = np.array([[0.9, 0.1]] * 3)
    found = offer_calibration(
        probabilities, np.zeros(3, dtype=np.int64), np.ones((3, 2), dtype=np.bool_), np.arange(3)
    )
    assert all(np.isnan(one.auc) for one in found)


def test_calibration_error_by_hand() -> None:
    expected = np.repeat(np.linspace(0.05, 0.95, 10), 20)
    sent = np.concatenate([np.arange(20) < 20 * share for share in np.linspace(0.05, 0.95, 10)])
    assert calibration_error(expected, sent) == pytest.approx(0, abs=1e-12)
    assert calibration_error(np.full(200, 0.25), np.ones(200, dtype=np.bool_)) == pytest.approx(0.75)


def simulate(rng: np.random.Generator, error: float) -> tuple[float, float]:
    """z of offer 1 in a log whose propensities are too high by ``error`` there: by share, and by weight."""
    true = np.repeat(rng.uniform(0.2, 0.6, size=200), 3)
    # Users differ in taste, so that their rows are correlated.
    luck = np.repeat(rng.random(200), 3)
    action = (luck < true).astype(np.int64)
    claimed = np.stack([1 - true - error, true + error], axis=1)
    mask = np.ones((600, 2), dtype=np.bool_)
    user = np.repeat(np.arange(200), 3)
    by_share = offer_calibration(claimed, action, mask, user)[1].z
    by_weight = weight_calibration(claimed[np.arange(600), action], action, mask, user)[1]
    return by_share, by_weight


def test_z_is_standard_normal_where_propensities_are_right_and_large_where_not() -> None:
    rng = np.random.default_rng(0)
    right = np.array([simulate(rng, 0.0) for _ in range(250)])
    assert np.abs(right.mean(axis=0)).max() < 0.2
    assert (right**2).mean(axis=0) == pytest.approx([1, 1], abs=0.25)
    wrong = np.array([simulate(rng, 0.2) for _ in range(20)])
    assert wrong.mean(axis=0).max() < -4
    assert (wrong < -2).all()
