from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.backtest.ranking import HouseholdRanking


@given(
    seed=st.integers(0, 10_000),
    n_rows=st.integers(10, 200),
    n_scores=st.sampled_from([2, 5, 1000]),
    rate=st.sampled_from([0.05, 0.5, 0.9]),
)
def test_weighted_measures_are_those_of_scikit_learn(
    seed: int, n_rows: int, n_scores: int, rate: float
) -> None:
    rng = np.random.default_rng(seed)
    household = rng.integers(0, 7, n_rows)
    score = rng.integers(0, n_scores, n_rows) / n_scores
    label = rng.random(n_rows) < rate
    multiplicity = rng.integers(0, 4, (70, 7)).astype(float)  # more than one block of resamples
    multiplicity[0] = 1.0
    ranking = HouseholdRanking(score, label, household, 7)
    auc, precision = ranking.auc(multiplicity), ranking.average_precision(multiplicity)
    for k in (0, 1, 63, 64, 69):
        weight, one_auc, one_precision = multiplicity[k][household], auc[k], precision[k]
        both = weight[label].sum() > 0 and weight[~label].sum() > 0
        if not both:
            assert np.isnan(one_auc)
            continue
        kept = weight > 0
        assert one_auc == pytest.approx(
            roc_auc_score(label[kept], score[kept], sample_weight=weight[kept]), abs=1e-12
        )
        assert one_precision == pytest.approx(
            average_precision_score(label[kept], score[kept], sample_weight=weight[kept]), abs=1e-12
        )


def test_a_household_drawn_twice_counts_as_two() -> None:
    rng = np.random.default_rng(0)
    household = rng.integers(0, 5, 100)
    score, label = rng.random(100), rng.random(100) < 0.3
    twice = np.concatenate([np.arange(100), np.flatnonzero(household == 2)])
    counts = np.array([[1.0, 1, 2, 1, 1]])
    ranking = HouseholdRanking(score, label, household, 5)
    assert ranking.auc(counts)[0] == pytest.approx(roc_auc_score(label[twice], score[twice]))
    assert ranking.average_precision(counts)[0] == pytest.approx(
        average_precision_score(label[twice], score[twice])
    )


def test_one_class_alone_has_no_measure() -> None:
    ranking = HouseholdRanking(np.array([0.1, 0.2]), np.array([False, False]), np.array([0, 1]), 2)
    ones = np.ones((1, 2))
    assert np.isnan(ranking.auc(ones)[0])
    assert np.isnan(ranking.average_precision(ones)[0])
