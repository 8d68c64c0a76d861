from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.ope.distribution import (
    ReturnDistribution,
    doubly_robust,
    importance_sampling,
    self_normalised,
)

RETURNS = np.array([5.0, 1.0, 3.0, 1.0])
WEIGHT = np.array([0.4, 0.8, 1.2, 0.0])


def test_distributions_by_hand() -> None:
    plain = importance_sampling(returns=RETURNS, weight=WEIGHT)
    np.testing.assert_allclose(plain.support, [1, 3, 5])
    np.testing.assert_allclose(plain.cdf, [0.2, 0.5, 0.6])
    assert plain.mean() == pytest.approx((0.8 * 1 + 1.2 * 3 + 0.4 * 5) / 4)  # the IPS estimate
    normalised = self_normalised(returns=RETURNS, weight=WEIGHT)
    np.testing.assert_allclose(normalised.cdf, [1 / 3, 5 / 6, 1])
    np.testing.assert_allclose(normalised.mass, [1 / 3, 1 / 2, 1 / 6])
    assert normalised.mean() == pytest.approx(6.4 / 2.4)
    variance = (1 * 0.8 + 9 * 1.2 + 25 * 0.4) / 2.4 - (6.4 / 2.4) ** 2
    assert normalised.variance() == pytest.approx(variance)
    np.testing.assert_allclose(normalised.probability(np.array([0.9, 1.0, 4.0, 9.0])), [0, 1 / 3, 5 / 6, 1])


def test_doubly_robust_by_hand() -> None:
    """Masses w/E at the returns, and (1 - w)/(E M) at each of the model's M draws."""
    draws = np.array([[2.0, 4.0]] * 4)
    found = doubly_robust(returns=RETURNS, weight=WEIGHT, model_returns=draws)
    np.testing.assert_allclose(found.support, [1, 2, 3, 4, 5])
    np.testing.assert_allclose(found.mass, [0.2, 0.2, 0.3, 0.2, 0.1], atol=1e-15)
    # Weights above 1 take from the model more than it has; F is made to ascend.
    heavy = doubly_robust(returns=np.array([3.0]), weight=np.array([1.5]), model_returns=np.array([[1.0]]))
    np.testing.assert_allclose(heavy.cdf, [0.0, 1.0])


def test_quantiles_and_tail_means_by_hand() -> None:
    found = ReturnDistribution(np.array([1.0, 3.0, 5.0]), np.array([0.25, 0.75, 1.0]))
    assert [found.quantile(level) for level in (0.1, 0.25, 0.26, 0.75, 1.0)] == [1, 1, 3, 3, 5]
    assert found.conditional_value_at_risk(0.1) == pytest.approx(1.0)
    assert found.conditional_value_at_risk(0.5) == pytest.approx((0.25 * 1 + 0.25 * 3) / 0.5)
    assert found.conditional_value_at_risk(1.0) == pytest.approx(found.mean())


def test_what_the_weights_leave_out_is_unknown_not_zero() -> None:
    plain = importance_sampling(returns=RETURNS, weight=WEIGHT)  # adds up to 0.6
    assert plain.quantile(0.6) == 5.0
    assert np.isnan(plain.quantile(0.7))
    assert np.isnan(plain.conditional_value_at_risk(0.7))
    assert plain.conditional_value_at_risk(0.2) == 1.0
    with pytest.raises(ValueError, match="4 episodes add up to 0"):
        self_normalised(returns=RETURNS, weight=np.zeros(4))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_target_equal_to_behaviour_gives_the_empirical_distribution(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    returns = rng.integers(0, 12, size=n).astype(np.float64)
    builders: list[Callable[[], ReturnDistribution]] = [
        lambda: importance_sampling(returns=returns, weight=np.ones(n)),
        lambda: self_normalised(returns=returns, weight=np.ones(n)),
        lambda: doubly_robust(returns=returns, weight=np.ones(n), model_returns=rng.normal(size=(n, 3))),
    ]
    level = float(rng.uniform(0.01, 1.0))
    ordered = np.sort(returns)
    # The tail mean of n equal masses, the last of them in part.
    masses = np.clip(level * n - np.arange(n), 0, 1)
    for build in builders:
        found = build()
        assert found.mean() == pytest.approx(returns.mean(), abs=1e-12)
        assert found.variance() == pytest.approx(returns.var(), abs=1e-12)
        assert found.quantile(level) == ordered[int(np.ceil(level * n - 1e-9)) - 1]
        assert found.conditional_value_at_risk(level) == pytest.approx(masses @ ordered / masses.sum())


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_any_weights_give_an_ascending_step_function_within_0_and_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    returns, weight = rng.normal(size=20), rng.lognormal(sigma=2.0, size=20)
    for found in (
        importance_sampling(returns=returns, weight=weight),
        self_normalised(returns=returns, weight=weight),
        doubly_robust(returns=returns, weight=weight, model_returns=rng.normal(size=(20, 2))),
    ):
        assert (np.diff(found.support) > 0).all()
        assert (np.diff(found.cdf) >= 0).all()
        assert 0 <= found.cdf[0] <= found.cdf[-1] <= 1
        levels = np.linspace(0.05, found.cdf[-1], 10)
        tails = [found.conditional_value_at_risk(level) for level in levels if level <= found.cdf[-1]]
        assert (np.diff(tails) >= -1e-12).all()
        for level, tail in zip(levels, tails, strict=True):
            assert tail <= found.quantile(level) + 1e-12


def test_doubly_robust_is_unbiased_with_any_model() -> None:
    """Two offers, enumerated: F averaged over what the behaviour policy may do is the target's F."""
    behaviour, target, outcome = np.array([0.8, 0.2]), np.array([0.3, 0.7]), np.array([1.0, 2.0])
    model, total = np.array([[1.5, 1.8, 2.5]]), np.zeros(3)
    points = np.array([1.0, 1.7, 2.2])
    for offer in (0, 1):
        weight = target[offer] / behaviour[offer]
        share = behaviour[offer]
        # Before it is cut and made to ascend, the estimate is linear in the masses.
        masses = np.concatenate([[weight], np.full(3, (1 - weight) / 3)])
        where = np.concatenate([[outcome[offer]], model[0]])
        total += share * np.array([masses[where <= point].sum() for point in points])
        raw = np.maximum.accumulate(np.array([masses[where <= p].sum() for p in np.sort(where)]))
        found = doubly_robust(returns=outcome[[offer]], weight=np.array([weight]), model_returns=model)
        np.testing.assert_allclose(found.cdf, np.clip(raw, 0, 1), atol=1e-12)
    np.testing.assert_allclose(total, [target[outcome <= point].sum() for point in points], atol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        importance_sampling(returns=RETURNS, weight=np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"model_returns has shape \(3, 1\), expected \(4, M\)"):
        doubly_robust(returns=RETURNS, weight=WEIGHT, model_returns=np.ones((3, 1)))
    found = self_normalised(returns=RETURNS, weight=WEIGHT)
    for level in (0.0, 1.1):
        with pytest.raises(ValueError, match="level must lie in"):
            found.quantile(level)
