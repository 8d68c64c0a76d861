from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from experiments.backtest.peer_calibration import PeerCalibration


def test_purchases_are_set_right_as_a_whole_and_by_category() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(-1.0, 1.0, (4, 2000, 5))
    shift = np.array([0.4, -0.4, 0.2, -0.2, 0.0])
    label = rng.random(truth.shape) < expit(truth + shift)
    distorted = expit(0.5 * truth + 0.3)
    found = PeerCalibration.of(distorted, label).apply(distorted)
    assert found.shape == distorted.shape
    np.testing.assert_allclose(logit(found).mean(axis=(0, 1)), (truth + shift).mean(axis=(0, 1)), atol=0.1)
    np.testing.assert_allclose(np.abs(logit(found) - (truth + shift)).mean(), 0.0, atol=0.12)


def test_visits_have_no_categories() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0.5, 1.0, (4, 3000))
    label = rng.random(truth.shape) < expit(truth)
    calibration = PeerCalibration.of(expit(2.0 * truth), label)
    assert calibration.shift is None
    assert calibration.slope == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(logit(calibration.apply(expit(2.0 * truth))), truth, atol=0.15)


def test_certainty_stays_finite() -> None:
    probability = np.array([[0.0, 1.0, 0.5, 0.2]])
    calibration = PeerCalibration.of(probability, np.array([[False, True, True, False]]))
    assert np.isfinite(calibration.apply(probability)).all()
