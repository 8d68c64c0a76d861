from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from encoders.response import ResponseHeads
from encoders.response_data import ResponseData
from experiments.backtest.calibration_cells import LEAST_ROWS, calibration_cells
from experiments.backtest.predictions import EmbeddingTable, predict_weeks
from experiments.backtest.scores import expected_calibration_error, reliability_bins

WEEKS = range(6, 30)


@pytest.fixture(scope="module")
def large(make_data: Callable[..., ResponseData]) -> ResponseData:
    return make_data(n_users=2500, seed=5)


@pytest.fixture
def truth(large: ResponseData, heads: ResponseHeads) -> np.ndarray:
    table = EmbeddingTable(np.array([4]), torch.zeros(1, large.panel.n_users, 0))
    return predict_weeks(heads, large, table, WEEKS).purchase


def test_cells_divide_all_rows(large: ResponseData, truth: np.ndarray) -> None:
    cells = calibration_cells(truth, large, WEEKS)
    assert len(cells) == 24
    assert sum(cell["rows"] for cell in cells) == truth.size
    assert len({cell["cell"] for cell in cells}) == 24
    assert min(cell["rows"] for cell in cells) >= LEAST_ROWS
    rows = sum(cell["rows"] * cell["observed"] for cell in cells)
    assert rows == pytest.approx(float(large.bought[list(WEEKS)].sum()))


def test_the_truth_is_as_calibrated_as_chance_allows(large: ResponseData, truth: np.ndarray) -> None:
    cells = calibration_cells(truth, large, WEEKS)
    ratio = np.mean([cell["ece"] for cell in cells]) / np.mean([cell["ece_by_chance"] for cell in cells])
    # Purchases of a household-week share the visit, so chance is a little more than independent rows allow.
    assert 0.8 < ratio < 1.8


def test_an_error_at_deep_promotion_shows_in_its_cells(large: ResponseData, truth: np.ndarray) -> None:
    deep = large.calendar.depth[list(WEEKS)].numpy() > np.quantile(
        large.calendar.depth[list(WEEKS)].numpy(), 2 / 3
    )
    wrong = np.where(deep[:, None, :], 0.6 * truth, truth)
    cells = calibration_cells(wrong, large, WEEKS)
    worst = sorted(cells, key=lambda cell: -float(cell["ece"]))[:8]
    assert all("or more, display" in cell["cell"] for cell in worst)
    shallow = [cell for cell in cells if cell["cell"].startswith("depth below")]
    assert max(float(cell["ece"]) for cell in shallow) < min(float(cell["ece"]) for cell in worst)


def test_chance_is_what_draws_from_the_predictions_show(large: ResponseData) -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(2, 20, (len(WEEKS), large.panel.n_users, large.panel.n_categories))
    cell = max(calibration_cells(p, large, WEEKS), key=lambda cell: int(cell["rows"]))
    sample = rng.beta(2, 20, int(cell["rows"]))
    n_bins = min(15, len(sample) // LEAST_ROWS)
    errors = [
        expected_calibration_error(reliability_bins(sample, rng.random(len(sample)) < sample, n_bins))
        for _ in range(60)
    ]
    assert cell["ece_by_chance"] == pytest.approx(np.mean(errors), rel=0.1)


def test_small_logs_have_no_cells_and_flat_promotion_has_one_band(
    data: ResponseData, embeddings: EmbeddingTable, heads: ResponseHeads
) -> None:
    predicted = predict_weeks(heads, data, embeddings, [10]).purchase
    assert calibration_cells(predicted, data, [10]) == []
