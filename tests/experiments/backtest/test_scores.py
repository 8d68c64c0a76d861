from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from experiments.backtest.scores import (
    MEASURES,
    equal_mass_bins,
    expected_calibration_error,
    household_draws,
    percentile_interval,
    reliability_bins,
    score,
    score_households,
)

W, N, C = 3, 40, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    probability = rng.beta(1, 8, (W, N, C))
    return probability, rng.random(probability.shape) < probability


def test_draws_start_with_the_data_and_keep_the_number_of_households(rng: np.random.Generator) -> None:
    draws = household_draws(N, 20, rng)
    assert draws.shape == (21, N)
    assert (draws[0] == 1).all()
    assert (draws.sum(axis=1) == N).all()


def test_points_are_the_usual_measures(rng: np.random.Generator) -> None:
    p, y = drawn(rng)
    point = score_households(p, y, household_draws(N, 3, rng)).point()
    flat, label = p.ravel(), y.ravel()
    assert score(flat, label) == pytest.approx(point)
    assert set(point) == set(MEASURES)
    assert point["log_loss"] == pytest.approx(log_loss(label, flat))
    assert point["auc"] == pytest.approx(roc_auc_score(label, flat))
    assert point["average_precision"] == pytest.approx(average_precision_score(label, flat))
    assert point["ece"] == pytest.approx(expected_calibration_error(reliability_bins(flat, label)))


def test_a_resample_is_the_data_of_the_households_drawn(rng: np.random.Generator) -> None:
    p, y = drawn(rng)
    draws = household_draws(N, 4, rng)
    scores = score_households(p, y, draws)
    for k in range(1, 5):
        who = np.repeat(np.arange(N), draws[k].astype(int))
        again = score_households(p[:, who], y[:, who], np.ones((1, N)))
        for measure in ("log_loss", "auc", "average_precision"):
            assert scores.values[measure][k] == pytest.approx(again.values[measure][0])


def test_visits_have_no_categories(rng: np.random.Generator) -> None:
    p, y = drawn(rng)
    draws = household_draws(N, 5, rng)
    one = score_households(p[:, :, 0], y[:, :, 0], draws)
    same = score_households(p[:, :, :1], y[:, :, :1], draws)
    for measure in MEASURES:
        np.testing.assert_array_equal(one.values[measure], same.values[measure])


def test_interval_of_the_log_loss_has_the_width_of_the_cluster_standard_error(
    rng: np.random.Generator,
) -> None:
    n = 400
    p = np.full((W, n, C), 0.2)
    y = np.repeat(rng.random((W, n, 1)) < 0.2, C, axis=2)  # rows of a household-week are one
    scores = score_households(p, y, household_draws(n, 2000, rng))
    low, high = scores.interval("log_loss")
    per_household = -np.log(np.where(y, 0.2, 0.8)).mean(axis=(0, 2))
    width = 2 * 1.96 * per_household.std(ddof=1) / np.sqrt(n)
    assert high - low == pytest.approx(width, rel=0.08)


def test_bins_share_the_rows_evenly_and_in_order() -> None:
    p = np.array([0.4, 0.1, 0.3, 0.2])
    bins = equal_mass_bins(p, 2)
    assert [sorted(rows.tolist()) for rows in bins] == [[1, 3], [0, 2]]
    assert len(equal_mass_bins(p, 9)) == 4


def test_calibration_error_by_hand() -> None:
    p = np.array([0.1, 0.1, 0.9, 0.9])
    y = np.array([False, True, True, True])
    bins = reliability_bins(p, y, 2)
    assert [b["observed"] for b in bins] == [0.5, 1.0]
    assert expected_calibration_error(bins) == pytest.approx((0.4 + 0.1) / 2)


def test_an_undefined_resample_makes_the_interval_undefined() -> None:
    assert np.isnan(percentile_interval(np.array([0.1, np.nan, 0.2]))).all()
