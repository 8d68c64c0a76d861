from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.benchmarks.messages import effective_number, mean_auc_by_column


def test_mean_auc_is_the_mean_over_columns_that_have_both_classes() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.standard_normal((60, 4)), rng.random((60, 4)) < 0.3
    label[:, 3] = False
    expected = np.mean([roc_auc_score(label[:, k], score[:, k]) for k in range(3)])
    mean, low, high = mean_auc_by_column(score, label, 50)
    assert mean == pytest.approx(expected)
    assert low < mean < high
    assert mean_auc_by_column(score, label, 0)[0] == pytest.approx(expected)


def test_resampled_intervals_cover_chance_for_noise_and_exclude_it_for_signal() -> None:
    rng = np.random.default_rng(1)
    label = rng.random((400, 3)) < 0.4
    noise = rng.standard_normal(label.shape)
    _, low, high = mean_auc_by_column(noise, label, 100)
    assert low < 0.5 < high
    assert mean_auc_by_column(noise + label, label, 100)[1] > 0.6


def test_effective_number_counts_equally_frequent_choices() -> None:
    assert effective_number(["a", "b", "c", "d"] * 5) == pytest.approx(4)
    assert effective_number(["a"] * 9) == pytest.approx(1)
    assert effective_number(["a", "a", "a", "b"]) == pytest.approx(
        np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    )
