from __future__ import annotations

import numpy as np
import pytest

from experiments.ope.group_difference import campaign_shares, robust_difference, weighted_difference


def test_weighted_difference_by_hand() -> None:
    outcome = np.array([10.0, 20.0, 6.0, 2.0])
    sent = np.array([1.0, 1.0, 0.0, 0.0])
    propensity = np.array([0.5, 0.25, 0.5, 0.75])
    # (10·2 + 20·4) / 6 - (6·2 + 2·4) / 6
    assert weighted_difference(outcome, sent, propensity).estimate() == pytest.approx(100 / 6 - 20 / 6)
    shares = campaign_shares(sent, np.array([3, 3, 3, 9]))
    assert shares.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])


def test_naive_difference_of_one_campaign_is_that_of_means() -> None:
    rng = np.random.default_rng(0)
    outcome, sent = rng.random(50), (rng.random(50) < 0.3).astype(np.float64)
    share = campaign_shares(sent, np.zeros(50, dtype=np.int64))
    expected = outcome[sent == 1].mean() - outcome[sent == 0].mean()
    assert weighted_difference(outcome, sent, share).estimate() == pytest.approx(expected)


def test_robust_difference_needs_one_of_its_models_only() -> None:
    rng = np.random.default_rng(1)
    n = 200_000
    x = rng.random(n)
    propensity = 0.2 + 0.6 * x
    sent = (rng.random(n) < propensity).astype(np.float64)
    outcome = 5 * x + sent * (1 + x) + rng.normal(size=n)  # the mean effect is 1.5
    right, wrong = (5 * x + 1 + x, 5 * x), (np.full(n, 9.0), np.full(n, -9.0))
    half = np.full(n, 0.5)
    for p, model, expected in ((propensity, wrong, 1.5), (half, right, 1.5), (propensity, right, 1.5)):
        found = robust_difference(outcome, sent, p, *model).estimate()
        assert found == pytest.approx(expected, abs=0.15)
    assert abs(robust_difference(outcome, sent, half, *wrong).estimate() - 1.5) > 0.3
