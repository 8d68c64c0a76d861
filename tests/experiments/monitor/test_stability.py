from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.monitor.stability import (
    PSEUDO_COUNT,
    Sample,
    bin_edges,
    compare_columns,
    population_stability,
)


def test_psi_of_a_textbook_pair() -> None:
    # Shares .5/.5 and .25/.75: (.25 - .5) ln(.25/.5) + (.75 - .5) ln(.75/.5) = .2747.
    found = population_stability(np.array([5e8, 5e8]), np.array([2.5e8, 7.5e8]))
    assert float(found) == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5), rel=1e-6)


def test_psi_of_small_counts_by_hand() -> None:
    expected, actual = 2.5 / 6, 0.5 / 4
    by_hand = (actual - expected) * math.log(actual / expected)
    by_hand += (expected - actual) * math.log((1 - actual) / (1 - expected))
    assert PSEUDO_COUNT == 0.5
    assert float(population_stability(np.array([2.0, 3.0]), np.array([0.0, 3.0]))) == pytest.approx(by_hand)


@given(
    counts=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12),
    times=st.integers(1, 5),
)
def test_psi_is_symmetric_not_negative_and_zero_for_equal_shares(
    counts: list[tuple[int, int]], times: int
) -> None:
    one, other = (np.array(side, dtype=np.float64) for side in zip(*counts, strict=True))
    forth, back = population_stability(one, other), population_stability(other, one)
    assert float(forth) == pytest.approx(float(back), abs=1e-12)
    assert forth >= -1e-12
    assert float(population_stability(one, one)) == 0.0


def test_bins_are_values_where_they_are_few_and_quantiles_else() -> None:
    assert bin_edges(np.array([3.0, 1.0, 1.0, 2.0])).tolist() == [1.5, 2.5]
    assert bin_edges(np.full(9, 7.0)).tolist() == []
    many = np.arange(1000, dtype=np.float64)
    edges = bin_edges(many)
    assert np.bincount(np.searchsorted(edges, many, side="right")).tolist() == [100] * 10
    # Half of the rows share a value: quantiles that coincide make one bin, and none is empty.
    heaped = np.concatenate([np.zeros(500), np.arange(1, 501)])
    counts = np.bincount(np.searchsorted(bin_edges(heaped), heaped, side="right"))
    assert counts.min() > 0
    assert counts[0] == 500


def test_without_drift_psi_is_about_what_theory_says() -> None:
    rng = np.random.default_rng(0)
    n, m = 800, 500
    found = [
        compare_columns(
            ("x",),
            Sample(rng.standard_normal((n, 1)), np.arange(n)),
            Sample(rng.standard_normal((m, 1)), np.arange(m)),
            rng=rng,
            n_permutations=1,
        )[0].psi
        for _ in range(200)
    ]
    assert np.mean(found) == pytest.approx(9 * (1 / n + 1 / m), rel=0.1)


def test_no_drift_is_significant_at_the_nominal_rate_whatever_the_columns() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        # Four rows a user that hardly differ: rows are far from independent.
        users = [np.repeat(np.arange(60), 4), np.repeat(np.arange(50), 4)]
        own = [rng.standard_normal((len(np.unique(user)), 12))[user] for user in users]
        old, new = (
            Sample(values + 0.1 * rng.standard_normal(values.shape), user)
            for values, user in zip(own, users, strict=True)
        )
        names = tuple(f"c{k}" for k in range(12))
        found = compare_columns(names, old, new, rng=rng, n_permutations=99)
        alarms += min(one.p_value for one in found) <= 0.05
    assert alarms / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_the_column_that_moved_comes_first_and_is_significant() -> None:
    rng = np.random.default_rng(2)
    old, new = rng.standard_normal((400, 20)), rng.standard_normal((300, 20))
    new[:, 7] += 0.8
    names = tuple(f"c{k}" for k in range(20))
    sides = Sample(old, np.arange(400)), Sample(new, np.arange(300))
    found = compare_columns(names, *sides, rng=rng, n_permutations=199)
    assert found[0].column == "c7"
    assert found[0].psi > 0.25
    assert found[0].p_value == pytest.approx(1 / 200)
    assert found[1].p_value > 0.05
    assert found[0].mean - found[0].reference_mean == pytest.approx(0.8, abs=0.2)


def test_the_same_rows_have_no_psi_and_a_constant_column_no_bins() -> None:
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.standard_normal(50), np.ones(50)])
    found = compare_columns(("x", "one"), *[Sample(rows, np.arange(50))] * 2, rng=rng)
    assert [(one.psi, one.p_value) for one in found] == [(0.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("values", "user", "message"),
    [
        (np.zeros((0, 1)), np.arange(0), "without rows"),
        (np.zeros((3, 1)), np.arange(2), r"values \(3, 1\) and users \(2,\) do not go together"),
        (np.zeros(3), np.arange(3), "do not go together"),
    ],
)
def test_samples_that_are_none_are_refused(values: np.ndarray, user: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sample(values, user)
