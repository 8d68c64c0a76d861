from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.ope.logged_dataset import FloatArray
from experiments.ope.selection import (
    SafetyErrors,
    kendall_tau,
    pair_accuracy,
    regret_at_k,
    safety_errors,
    sharpe_ratio_at_k,
    spearman_rho,
    top_k,
)

TRUTH = np.array([10.0, 8.0, 6.0, 4.0, 2.0])
ESTIMATE = np.array([5.0, 9.0, 6.0, 1.0, 2.0])
"""Best first: policies 1, 2, 0, 4, 3."""

values = st.lists(st.integers(-20, 20), min_size=2, max_size=8).map(lambda v: np.array(v, dtype=np.float64))


def tau_b_by_pairs(x: FloatArray, y: FloatArray) -> float:
    pairs = list(itertools.combinations(range(x.size), 2))
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    untied = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    return float(sum(a * b for a, b in signs)) / untied if untied else math.nan


def test_rank_correlations_by_hand() -> None:
    # Of 10 pairs the discordant ones are (0, 1), (0, 2) and (3, 4).
    assert kendall_tau(ESTIMATE, TRUTH) == pytest.approx((7 - 3) / 10)
    # Rank differences 2, -1, -1, 1, -1: 1 - 6 Σd² / (m (m² - 1)).
    assert spearman_rho(ESTIMATE, TRUTH) == pytest.approx(1 - 6 * 8 / (5 * 24))


def test_rank_correlation_of_a_constant_is_undefined() -> None:
    assert math.isnan(kendall_tau(np.ones(5), TRUTH))
    assert math.isnan(spearman_rho(np.ones(5), TRUTH))


@given(values, st.data())
def test_kendall_tau_counts_pairs(truth: FloatArray, data: st.DataObject) -> None:
    estimate = np.array(
        data.draw(st.lists(st.integers(-3, 3), min_size=truth.size, max_size=truth.size)), dtype=np.float64
    )
    expected = tau_b_by_pairs(estimate, truth)
    assert kendall_tau(estimate, truth) == pytest.approx(expected, nan_ok=True)


def test_pair_accuracy_by_hand() -> None:
    # Discordant are (0, 1) and (3, 4), both 2 apart, and (0, 2), 4 apart.
    assert pair_accuracy(ESTIMATE, TRUTH, 0.0) == pytest.approx(7 / 10)
    assert pair_accuracy(ESTIMATE, TRUTH, 2.0) == pytest.approx(5 / 6)
    assert pair_accuracy(ESTIMATE, TRUTH, 4.0) == 1.0
    assert pair_accuracy(np.ones(5), TRUTH, 0.0) == 0.5
    assert math.isnan(pair_accuracy(ESTIMATE, TRUTH, 8.0))


@given(values)
def test_pair_accuracy_is_kendall_tau_where_nothing_is_tied(truth: FloatArray) -> None:
    distinct = np.unique(truth)
    if distinct.size > 1:
        estimate = np.random.default_rng(0).permutation(distinct)
        tau = kendall_tau(estimate, distinct)
        assert 2 * pair_accuracy(estimate, distinct, 0.0) - 1 == pytest.approx(tau)


@pytest.mark.parametrize(("k", "regret"), [(1, 2.0), (2, 2.0), (3, 0.0), (5, 0.0)])
def test_regret_by_hand(k: int, regret: float) -> None:
    assert regret_at_k(ESTIMATE, TRUTH, k) == regret


@given(values, st.integers(1, 8))
def test_regret_never_rises_with_more_trials_and_is_zero_for_the_truth(truth: FloatArray, k: int) -> None:
    k = min(k, truth.size)
    assert regret_at_k(truth, truth, k) == 0
    upside_down = [regret_at_k(-truth, truth, j) for j in range(1, truth.size + 1)]
    assert upside_down == sorted(upside_down, reverse=True)
    assert upside_down[-1] == 0
    assert upside_down[0] == np.ptp(truth)


def test_sharpe_ratio_by_hand() -> None:
    # The top two are worth 8 and 6: mean 7, standard deviation 1.
    assert sharpe_ratio_at_k(ESTIMATE, TRUTH, 2, baseline=5.0) == pytest.approx(3.0)
    # The top three 8, 6, 10: mean 8, variance 8/3.
    assert sharpe_ratio_at_k(ESTIMATE, TRUTH, 3, baseline=5.0) == pytest.approx(5 / math.sqrt(8 / 3))
    assert sharpe_ratio_at_k(ESTIMATE, TRUTH, 2, baseline=9.0) == pytest.approx(-1.0)


def test_sharpe_ratio_without_risk() -> None:
    truth = np.array([3.0, 3.0])
    assert sharpe_ratio_at_k(truth, truth, 2, baseline=1.0) == math.inf
    assert sharpe_ratio_at_k(truth, truth, 2, baseline=4.0) == -math.inf
    assert math.isnan(sharpe_ratio_at_k(truth, truth, 2, baseline=3.0))


def test_safety_errors_by_hand() -> None:
    # Safe at 5: policies 0, 1, 2; claimed at 5: the same three.
    assert safety_errors(ESTIMATE, TRUTH, 5.0) == SafetyErrors(type_i=0.0, type_ii=0.0)
    # Safe at 7: 0 and 1; claimed: 1 alone.
    assert safety_errors(ESTIMATE, TRUTH, 7.0) == SafetyErrors(type_i=0.0, type_ii=0.5)
    # A lower bound lets fewer through, an estimate that flatters more.
    assert safety_errors(ESTIMATE - 5, TRUTH, 5.0) == SafetyErrors(type_i=0.0, type_ii=1.0)
    assert safety_errors(ESTIMATE + 4, TRUTH, 5.0) == SafetyErrors(type_i=1.0, type_ii=0.0)


def test_safety_errors_where_none_can_be_made() -> None:
    assert math.isnan(safety_errors(ESTIMATE, TRUTH, 1.0).type_i)
    assert math.isnan(safety_errors(ESTIMATE, TRUTH, 11.0).type_ii)


def test_equal_estimates_go_by_their_order() -> None:
    assert top_k(np.array([1.0, 2.0, 2.0, 1.0]), np.zeros(4), 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_number_of_policies(k: int) -> None:
    with pytest.raises(ValueError, match=rf"1\.\.5.*not {k}"):
        regret_at_k(ESTIMATE, TRUTH, k)


def test_a_policy_without_a_value_is_named() -> None:
    broken = ESTIMATE.copy()
    broken[3] = np.nan
    with pytest.raises(ValueError, match="estimate 3 is nan"):
        kendall_tau(broken, TRUTH)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        spearman_rho(ESTIMATE[:4], TRUTH)
    with pytest.raises(ValueError, match="k >= 2"):
        sharpe_ratio_at_k(ESTIMATE, TRUTH, 1, baseline=0.0)
