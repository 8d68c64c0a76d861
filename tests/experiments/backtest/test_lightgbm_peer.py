from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from experiments.backtest.features import FeatureRows
from experiments.backtest.lightgbm_peer import (
    TUNED_PURCHASE,
    TUNED_VISIT,
    draw_parameters,
    fit_lightgbm,
    lightgbm_datasets,
    random_search,
)


def rows(n: int, seed: int) -> FeatureRows:
    """A smooth effect of one feature, and categories of their own levels."""
    rng = np.random.default_rng(seed)
    x, category = rng.normal(size=n), rng.integers(0, 8, n)
    probability = 1 / (1 + np.exp(-(x + np.sin(category))))
    features = np.stack([x, category], axis=1).astype(np.float32)
    return FeatureRows(features, rng.random(n) < probability, (1,))


def test_the_stored_parameters_are_of_the_search() -> None:
    names = set(draw_parameters(np.random.default_rng(0)))
    assert set(TUNED_PURCHASE) == set(TUNED_VISIT) == names


def test_a_fit_approaches_the_truth_and_repeats_itself() -> None:
    train, tune, test = rows(6000, 0), rows(2000, 1), rows(4000, 2)
    rounds = []
    boosters = [
        fit_lightgbm(
            *lightgbm_datasets(train, tune), TUNED_VISIT, seed=1, threads=1, on_round=lambda: rounds.append(1)
        )
        for _ in range(2)
    ]
    first, second = (np.asarray(booster.predict(test.features)) for booster in boosters)
    np.testing.assert_array_equal(first, second)
    truth = 1 / (1 + np.exp(-(test.features[:, 0] + np.sin(test.features[:, 1]))))
    best = log_loss(test.label, truth)
    assert log_loss(test.label, first) < best + 0.02
    assert len(rounds) >= 2 * boosters[0].best_iteration


def test_a_search_returns_the_best_of_its_trials() -> None:
    seen: list[tuple[dict[str, float | int], float]] = []
    chosen = random_search(
        *lightgbm_datasets(rows(3000, 0), rows(1000, 1)),
        4,
        rng=np.random.default_rng(3),
        seed=1,
        threads=1,
        on_trial=lambda parameters, loss: seen.append((parameters, loss)),
    )
    assert len(seen) == 4
    assert chosen == min(seen, key=lambda trial: trial[1])[0]
    again = np.random.default_rng(3)
    assert [parameters for parameters, _ in seen] == [draw_parameters(again) for _ in range(4)]


def test_a_search_without_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        random_search(
            *lightgbm_datasets(rows(300, 0), rows(100, 1)), 0, rng=np.random.default_rng(0), seed=0, threads=1
        )
