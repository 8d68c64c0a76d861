"""Newton steps against independent optimisers, and the prior against the likelihood that it maximises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from sklearn.linear_model import LogisticRegression

from encoders.newton import (
    FLAT,
    FLAT_VARIANCE,
    VARIANCE_PRIOR_WEIGHT,
    Grouping,
    Posterior,
    Prior,
    halved,
    newton_step,
    update_prior,
)

Floats = npt.NDArray[np.float64]


def normal_prior(mean: Floats | float, variance: Floats | float, size: int) -> Prior:
    return Prior(
        torch.from_numpy(np.broadcast_to(mean, size).astype(np.float64)),
        torch.from_numpy(np.broadcast_to(variance, size).astype(np.float64)),
    )


def logistic_fit(
    x: Floats,
    y: Floats,
    prior: Prior,
    count: Floats | None = None,
    start: Floats | None = None,
    steps: int = 25,
) -> Posterior:
    """Newton's method from zero; x is [r, P]."""
    design, label = torch.from_numpy(x.T.copy()), torch.from_numpy(y)
    times = torch.ones(len(y)).double() if count is None else torch.from_numpy(count)
    found = Posterior(
        torch.zeros(x.shape[1]).double() if start is None else torch.from_numpy(start),
        torch.zeros(x.shape[1]).double(),
    )
    for _ in range(steps):
        p = torch.sigmoid(found.mean @ design)
        found = newton_step(design, times * (label - p), times * p * (1 - p), found.mean, prior)
    return found


def simulated(rng: np.random.Generator, rows: int, beta: Floats) -> tuple[Floats, Floats]:
    x = np.column_stack([np.ones(rows), rng.standard_normal((rows, len(beta) - 1))])
    return x, (rng.random(rows) < 1 / (1 + np.exp(-x @ beta))).astype(np.float64)


@pytest.mark.parametrize("variance", [0.01, 1.0, 100.0])
def test_at_convergence_it_is_ridge_logistic_regression(variance: float) -> None:
    x, y = simulated(np.random.default_rng(0), 400, np.array([-1.0, 0.8, 0.0, -0.5]))
    found = logistic_fit(x, y, normal_prior(0.0, variance, 4))
    peer = LogisticRegression(C=variance, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(found.mean.numpy(), peer.coef_[0], rtol=1e-5, atol=1e-6)


def test_at_convergence_it_is_the_optimum_around_the_priors_mean() -> None:
    rng = np.random.default_rng(1)
    x, y = simulated(rng, 300, np.array([-0.5, 0.4, 1.0]))
    mean, variance, count = np.array([0.3, -1.0, 2.0]), np.array([9.0, 0.05, 0.4]), rng.uniform(0, 3, 300)

    def objective(beta: Floats) -> float:
        eta = x @ beta
        penalty = 0.5 * ((beta - mean) ** 2 / variance).sum()
        return float((count * (np.logaddexp(0, eta) - y * eta)).sum() + penalty)

    best = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-8})
    found = logistic_fit(x, y, normal_prior(mean, variance, 3), count)
    np.testing.assert_allclose(found.mean.numpy(), best.x, atol=1e-5)
    # The variance is the diagonal of the inverse Hessian, here by formula.
    p = 1 / (1 + np.exp(-x @ found.mean.numpy()))
    hessian = (x * (count * p * (1 - p))[:, None]).T @ x + np.diag(1 / variance)
    np.testing.assert_allclose(found.variance.numpy(), np.linalg.inv(hessian).diagonal(), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_a_quadratic_likelihood_takes_one_step(seed: int) -> None:
    """Linear regression with known noise: the posterior is known in closed form, wherever the step starts."""
    rng = np.random.default_rng(seed)
    x, y, mean = rng.standard_normal((40, 3)), rng.standard_normal(40), rng.standard_normal(3)
    variance, noise, start = rng.uniform(0.1, 2, 3), rng.uniform(0.5, 2, 40), rng.standard_normal(3)
    precision = x.T @ (x / noise[:, None]) + np.diag(1 / variance)
    expected = np.linalg.solve(precision, x.T @ (y / noise) + mean / variance)
    found = newton_step(
        torch.from_numpy(x.T.copy()),
        torch.from_numpy((y - x @ start) / noise),
        torch.from_numpy(1 / noise),
        torch.from_numpy(start),
        normal_prior(mean, variance, 3),
    )
    # The jitter that guards Cholesky's factor is of the order of 1e-8.
    np.testing.assert_allclose(found.mean.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.variance.numpy(), np.linalg.inv(precision).diagonal(), rtol=1e-5)


def test_without_data_the_step_ends_at_the_prior() -> None:
    prior = normal_prior(np.array([1.0, -2.0]), np.array([0.5, 3.0]), 2)
    found = newton_step(
        torch.zeros(2, 7), torch.zeros(7), torch.zeros(7), torch.tensor([9.0, 9.0]).double(), prior
    )
    torch.testing.assert_close(found.mean, prior.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance, prior.variance, rtol=1e-6, atol=1e-6)


def test_a_step_too_long_is_halved_until_the_loss_does_not_rise() -> None:
    """One failure at a logit of 3, where the curvature is small and Newton's full step too long."""
    y, start = torch.tensor([0.0]).double(), torch.tensor([3.0]).double()
    prior = normal_prior(0.0, 25.0, 1)

    def loss(at: torch.Tensor) -> float:
        return float(torch.nn.functional.softplus(at).sum() + 0.5 * (at**2 / 25).sum())

    coefficients, losses = start, [loss(start)]
    for _ in range(15):
        p = torch.sigmoid(coefficients)
        full = newton_step(torch.ones(1, 1).double(), y - p, p * (1 - p), coefficients, prior)
        short = halved(full, coefficients, loss)
        coefficients = short.mean
        losses.append(loss(coefficients))
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    best = minimize_scalar(
        lambda b: float(np.logaddexp(0, b) + b**2 / 50), bounds=(-20, 20), method="bounded"
    )
    assert float(coefficients) == pytest.approx(best.x, abs=1e-3)
    # A step that lowers the loss is left as it is.
    good = Posterior(torch.tensor([1.0]).double(), torch.tensor([2.0]).double())
    kept = halved(good, start, loss)
    assert kept.mean.tolist() == [1.0]
    assert kept.variance.tolist() == [2.0]


def test_coefficients_that_cannot_be_told_apart_share_the_effect() -> None:
    x, y = simulated(np.random.default_rng(2), 300, np.array([-0.5, 1.0]))
    twice = np.column_stack([x, x[:, 1]])
    found = logistic_fit(twice, y, normal_prior(0.0, np.array([FLAT_VARIANCE, 0.5, 0.5]), 3))
    alone = logistic_fit(x, y, normal_prior(0.0, np.array([FLAT_VARIANCE, 1.0]), 2))
    assert found.mean[1] == pytest.approx(float(found.mean[2]), abs=1e-6)
    assert float(found.mean[1:].sum()) == pytest.approx(float(alone.mean[1]), abs=1e-5)


def gaussian_posterior(y: Floats, noise: Floats, prior: Prior) -> Posterior:
    """What one noisy reading [C, P] of each coefficient leaves, in closed form."""
    precision = 1 / prior.variance.numpy() + 1 / noise
    mean = (prior.mean.numpy() / prior.variance.numpy() + y / noise) / precision
    return Posterior(torch.from_numpy(mean), torch.from_numpy(1 / precision))


def own_groups(size: int) -> Grouping:
    return Grouping(torch.arange(size), torch.zeros(size, dtype=torch.bool))


def test_the_mean_jumps_to_the_maximum_of_the_marginal_likelihood() -> None:
    rng = np.random.default_rng(3)
    y, noise = rng.standard_normal((30, 1)), rng.uniform(0.1, 4.0, (30, 1))
    prior = normal_prior(5.0, 0.8, 1)
    moved = update_prior(gaussian_posterior(y, noise, prior), prior, prior, own_groups(1))
    # y_c ~ Normal(μ, τ² + noise_c), so the mean is weighted with the inverse of that.
    assert float(moved.mean) == pytest.approx(float(np.average(y, weights=1 / (0.8 + noise))), abs=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_the_fixed_point_maximises_the_marginal_likelihood(centred: bool) -> None:
    rng = np.random.default_rng(4)
    noise = rng.uniform(0.1, 1.0, (40, 1))
    y = 0.7 + 0.9 * rng.standard_normal((40, 1)) + np.sqrt(noise) * rng.standard_normal((40, 1))
    first = normal_prior(0.0, 0.2, 1)
    prior = first
    grouping = Grouping(torch.zeros(1, dtype=torch.int64), torch.tensor([centred]))
    for _ in range(500):
        prior = update_prior(gaussian_posterior(y, noise, prior), prior, first, grouping)

    def objective(parameters: Floats) -> float:
        mean, log_variance = (0.0 if centred else parameters[0]), parameters[1]
        spread = np.exp(log_variance) + noise
        likelihood = -0.5 * (np.log(spread) + (y - mean) ** 2 / spread).sum()
        imagined = -0.5 * VARIANCE_PRIOR_WEIGHT * (log_variance + 0.2 / np.exp(log_variance))
        return float(-likelihood - imagined)

    best = minimize(objective, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    assert float(prior.mean) == pytest.approx(0.0 if centred else best.x[0], abs=1e-4)
    assert float(prior.variance) == pytest.approx(float(np.exp(best.x[1])), rel=1e-3)


def test_a_group_has_one_variance_and_its_own_means() -> None:
    rng = np.random.default_rng(5)
    noise = np.full((200, 3), 0.1)
    y = rng.normal([0.0, 4.0, -1.0], [0.5, 1.5, 3.0], (200, 3))
    first = normal_prior(0.0, 0.3, 3)
    prior = first
    grouping = Grouping(torch.tensor([7, 7, 2]), torch.zeros(3, dtype=torch.bool))
    for _ in range(200):
        prior = update_prior(gaussian_posterior(y, noise, prior), prior, first, grouping)
    np.testing.assert_allclose(prior.mean.numpy(), y.mean(axis=0), atol=1e-3)
    within = y.var(axis=0) - 0.1
    assert float(prior.variance[0]) == float(prior.variance[1])
    assert float(prior.variance[0]) == pytest.approx(within[:2].mean(), rel=0.02)
    assert float(prior.variance[2]) == pytest.approx(within[2], rel=0.02)


def test_flat_and_silent_coefficients() -> None:
    rng = np.random.default_rng(6)
    mean, variance = np.array([2.0, 3.0, -1.5]), np.array([FLAT_VARIANCE, 0.4, 0.6])
    prior = normal_prior(mean, variance, 3)
    # The first speaks loudly but is flat; the others are read with so much noise that nothing is learnt.
    y, noise = rng.standard_normal((20, 3)), np.tile([1e-3, 1e9, 1e9], (20, 1))
    grouping = Grouping(torch.tensor([FLAT, 0, 1]), torch.tensor([False, False, True]))
    moved = update_prior(gaussian_posterior(y, noise, prior), prior, prior, grouping)
    assert moved.mean[:2].tolist() == [2.0, 3.0]
    assert float(moved.mean[2]) == 0.0
    assert float(moved.variance[0]) == FLAT_VARIANCE
    # Silence is no evidence of spread or of its absence.
    assert float(moved.variance[1]) == pytest.approx(0.4, rel=1e-5)


def test_partial_pooling_recovers_a_hierarchy_better_than_none_or_all() -> None:
    rng = np.random.default_rng(7)
    n_categories, rows = 60, 120
    beta = np.array([-1.5, 0.6, -0.3]) + np.array([0.6, 0.3, 0.1]) * rng.standard_normal((n_categories, 3))
    data = [simulated(rng, rows, own) for own in beta]
    first = normal_prior(0.0, 1.0, 3)

    def fit(prior: Prior, start: Floats, steps: int) -> Posterior:
        parts = [
            logistic_fit(x, y, prior, start=own, steps=steps) for (x, y), own in zip(data, start, strict=True)
        ]
        return Posterior(torch.stack([p.mean for p in parts]), torch.stack([p.variance for p in parts]))

    found, prior = fit(first, np.zeros_like(beta), 5), first
    for _ in range(60):
        prior = update_prior(found, prior, first, own_groups(3))
        found = fit(prior, found.mean.numpy(), 1)
    # Against the draws' own mean and spread: the sampling of sixty categories is no error of the fit.
    np.testing.assert_allclose(prior.mean.numpy(), beta.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(prior.variance.sqrt().numpy()[:2], beta.std(axis=0)[:2], atol=0.1)

    def error(estimate: Floats) -> Floats:
        return np.asarray(np.square(estimate - beta).mean(axis=0))

    alone = fit(normal_prior(0.0, FLAT_VARIANCE, 3), np.zeros_like(beta), 15).mean.numpy()
    pooled = np.broadcast_to(alone.mean(axis=0), beta.shape)
    partial = error(found.mean.numpy())
    assert (partial < 0.8 * error(alone)).all()
    assert partial[0] < 0.5 * error(pooled)[0]
    assert partial.sum() < error(pooled).sum()


@pytest.mark.parametrize("rows", [1_000, 300_000])
def test_a_column_given_twice_does_not_stop_the_step(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    column = torch.randn(rows, generator=generator)
    design = torch.stack([torch.ones(rows), column, column])
    prior = Prior(torch.zeros(3).double(), torch.full((3,), 10.0).double())
    y = (torch.rand(rows, generator=generator) < torch.sigmoid(column)).float()
    at = torch.zeros(3).double()
    for _ in range(8):
        p = torch.sigmoid(at.float() @ design)
        at = newton_step(design, y - p, p * (1 - p), at, prior).mean
    # The two share what one would have had.
    assert float(at[1] + at[2]) == pytest.approx(1.0, abs=0.25)
