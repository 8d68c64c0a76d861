from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from experiments.ope.influence import cluster_influence, column_influence, standard_error
from experiments.ope.intervals import cluster_bootstrap
from experiments.ope.logged_dataset import FloatArray
from experiments.ope.magic import blend_weights, magic
from experiments.ope.sequential import direct_method, weighted_doubly_robust


def random_log(rng: np.random.Generator, n: int = 300, horizon: int = 3) -> dict[str, Any]:
    lengths = rng.integers(1, horizon + 1, size=n)
    lengths[0] = horizon
    rows = int(lengths.sum())
    return {
        "outcome": rng.normal(2.0, 1.0, size=rows),
        "ratio": rng.lognormal(-0.125, 0.5, size=rows),
        "q": rng.normal(2.0, 0.2, size=rows),
        "v": rng.normal(2.0, 0.2, size=rows),
        "episode": np.repeat(np.arange(n), lengths),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        "discount_factor": 0.9,
    }


def slow_magic(log: dict[str, Any]) -> float:
    """The paper's algorithm with loops; every episode its own cluster, the quadratic programme by SLSQP."""
    n, gamma = int(log["episode"][-1]) + 1, log["discount_factor"]
    horizon = int(log["position"].max()) + 1
    ratio, reward, q, v = np.ones((n, horizon)), *np.zeros((3, n, horizon))
    for row, (e, t) in enumerate(zip(log["episode"], log["position"], strict=True)):
        ratio[e, t], reward[e, t], q[e, t], v[e, t] = (log[k][row] for k in ("ratio", "outcome", "q", "v"))
    weight = ratio.cumprod(axis=1)
    share = weight / weight.sum(axis=0)
    estimates, influence = [v[:, 0].mean()], [v[:, 0] - v[:, 0].mean()]
    for j in range(horizon):  # follow the log for the steps 0 … j
        value, changes = v[:, 0].mean(), v[:, 0] - v[:, 0].mean()
        for t in range(j + 1):
            following = v[:, t + 1] if t + 1 < horizon else 0.0
            term = gamma**t * (reward[:, t] - q[:, t] + gamma * following)
            mean = share[:, t] @ term
            value += mean
            changes = changes + n * share[:, t] * (term - mean)
        estimates.append(value)
        influence.append(changes)
    g, psi = np.array(estimates), np.array(influence)
    covariance = psi @ psi.T / (n * (n - 1))
    half = 1.6448536269514722 * np.sqrt(covariance[-1, -1])
    bias = np.sign(g - g[-1]) * np.maximum(np.abs(g - g[-1]) - half, 0)
    error = covariance + np.outer(bias, bias)
    error /= np.trace(error)

    def squared_error(x: FloatArray) -> float:
        return float(x @ error @ x)

    def gradient(x: FloatArray) -> FloatArray:
        return np.asarray(2 * error @ x)

    def excess(x: FloatArray) -> float:
        return float(x.sum() - 1)

    options: dict[str, Any] = {
        "jac": gradient,
        "bounds": [(0, 1)] * g.size,
        "constraints": {"type": "eq", "fun": excess},
        "options": {"ftol": 1e-15, "maxiter": 1000},
    }
    found: Any = minimize(squared_error, np.full(g.size, 1 / g.size), **options)
    return float(found.x @ g)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_papers_algorithm_with_loops(seed: int) -> None:
    log = random_log(np.random.default_rng(seed))
    log["v"] += 0.3 * seed  # models from right to wrong
    terms = magic(**log, cluster=np.arange(300))
    assert terms.estimate() == pytest.approx(slow_magic(log), rel=1e-4)


def test_partial_sums_run_from_the_direct_method_to_wdr() -> None:
    log = random_log(np.random.default_rng(0))
    terms = weighted_doubly_robust(**log)
    partial = np.cumsum(terms.numerator.sum(axis=0) / terms.denominator.sum(axis=0))
    place = {key: log[key] for key in ("v", "episode", "position")}
    assert partial[0] == pytest.approx(direct_method(**place).estimate())
    assert partial[-1] == pytest.approx(terms.estimate())
    assert partial.min() <= magic(**log, cluster=np.arange(300)).estimate() <= partial.max()


def test_follows_the_model_where_weights_are_wild_and_the_log_where_the_model_is_wrong() -> None:
    rng = np.random.default_rng(1)
    n = 2000
    left = np.tile([1 + 0.9 + 0.81, 1 + 0.9, 1.0], n)
    log: dict[str, Any] = {
        "outcome": rng.normal(2.0, 1.0, size=3 * n),
        "ratio": rng.lognormal(-0.125, 0.5, size=3 * n),
        "q": 2.0 * left,
        "v": 2.0 * left,
        "episode": np.repeat(np.arange(n), 3),
        "position": np.tile(np.arange(3), n),
        "discount_factor": 0.9,
    }
    truth = 2.0 * left[0]
    wild = log | {"ratio": rng.lognormal(-4.5, 3.0, size=3 * n)}
    off = abs(weighted_doubly_robust(**wild).estimate() - truth)
    assert off > 0.1
    assert abs(magic(**wild, cluster=np.arange(n)).estimate() - truth) < 0.1 * off
    wrong = log | {"q": log["q"] + 5.0, "v": log["v"] + 5.0}
    blended = magic(**wrong, cluster=np.arange(n)).estimate()
    assert blended == pytest.approx(weighted_doubly_robust(**wrong).estimate(), abs=0.05)
    assert blended == pytest.approx(truth, abs=0.3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
@settings(deadline=None, max_examples=100)
def test_the_blend_is_the_least_error_on_the_simplex(seed: int, size: int) -> None:
    """By the optimality conditions: the gradient is least, and equal, wherever weight stands."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, size + 2))
    covariance = factor @ factor.T
    partial = rng.normal(size=size) * rng.choice([0.1, 10.0])
    x = blend_weights(partial, covariance)
    half = 1.6448536269514722 * np.sqrt(covariance[-1, -1])
    bias = np.sign(partial - partial[-1]) * np.maximum(np.abs(partial - partial[-1]) - half, 0)
    gradient = (covariance + np.outer(bias, bias)) @ x
    assert x.min() >= 0
    assert x.sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(gradient[x > 1e-9], gradient.min(), rtol=1e-6)


def test_constant_return_has_no_error_and_no_width() -> None:
    log = random_log(np.random.default_rng(3))
    log |= {"outcome": np.where(log["position"] == 0, 7.0, 0.0)}
    stay = np.where(log["position"] == 0, 7.0, 0.0)
    terms = magic(**(log | {"q": stay, "v": stay}), cluster=np.arange(300))
    assert terms.estimate() == pytest.approx(7.0, rel=1e-12)
    bootstrap = cluster_bootstrap([terms], np.arange(300), rng=np.random.default_rng(0), n_bootstrap=50)
    assert bootstrap.interval(0, "percentile").width == pytest.approx(0, abs=1e-9)


def test_an_undefined_estimate_makes_the_blend_undefined() -> None:
    log = random_log(np.random.default_rng(4))
    log["ratio"][:] = 0.0
    terms = magic(**log, cluster=np.arange(300))
    assert np.isnan(terms.estimate())


def test_terms_hold_the_blend() -> None:
    log = random_log(np.random.default_rng(5))
    terms, cluster = magic(**log, cluster=np.arange(300)), np.arange(300)
    wdr = weighted_doubly_robust(**log)
    partial = np.cumsum(wdr.numerator.sum(axis=0) / wdr.denominator.sum(axis=0))
    influence = np.cumsum(column_influence(wdr, cluster), axis=1)
    covariance = influence.T @ influence / (300 * 299)
    blend = blend_weights(partial, covariance)
    assert terms.estimate() == pytest.approx(blend @ partial, rel=1e-12)
    error = standard_error(cluster_influence(terms, cluster))
    assert error == pytest.approx(np.sqrt(blend @ covariance @ blend), rel=1e-10)
