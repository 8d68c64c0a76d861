from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from experiments.backtest.fixed_effects import average_own_slopes, fit_two_way_poisson, two_way_within


def dummies(n_categories: int, n_weeks: int) -> np.ndarray:
    """[C·T, C + T - 1] indicator of each category, and of each week but the first."""
    category = np.kron(np.eye(n_categories), np.ones((n_weeks, 1)))
    week = np.kron(np.ones((n_categories, 1)), np.eye(n_weeks))[:, 1:]
    return np.hstack([category, week])


def panel(
    seed: int, n_categories: int = 12, n_weeks: int = 15, scale: float = 20.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    category, week = rng.normal(0, 0.7, n_categories), rng.normal(0, 0.3, n_weeks)
    x = rng.uniform(0, 0.4, (n_categories, n_weeks, 2)) + 0.2 * category[:, None, None]
    beta = np.array([2.0, -0.5])
    mean = scale * np.exp(category[:, None] + week + x @ beta)
    return rng.poisson(mean).astype(float), x, beta


@given(seed=st.integers(0, 1000))
def test_residuals_are_those_of_a_regression_on_dummies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weight = rng.normal(size=(5, 7, 2)), rng.uniform(0.01, 3.0, (5, 7))
    within = two_way_within(values, weight)
    root = np.sqrt(weight).reshape(-1, 1)
    columns = dummies(5, 7)
    flat = values.reshape(35, 2)
    fitted = columns @ np.linalg.lstsq(root * columns, root * flat, rcond=None)[0]
    np.testing.assert_allclose(within.reshape(35, 2), flat - fitted, atol=1e-9)


def test_coefficients_maximise_the_likelihood_with_explicit_dummies() -> None:
    count, x, _ = panel(0)
    fit = fit_two_way_poisson(count, x)
    columns = np.hstack([x.reshape(-1, 2), dummies(12, 15)])
    y = count.ravel()

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        mean = np.exp(columns @ b)
        return float((mean - y * (columns @ b)).sum()), columns.T @ (mean - y)

    start = np.r_[0.0, 0.0, np.full(12, np.log(y.mean())), np.zeros(14)]
    best = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000})
    np.testing.assert_allclose(fit.coefficient, best.x[:2], atol=1e-5)
    np.testing.assert_allclose(fit.expected.ravel(), np.exp(columns @ best.x), rtol=1e-4)
    # The sandwich of the whole regression, clustered by category.
    mean = np.exp(columns @ best.x)
    bread = np.linalg.inv(columns.T @ (mean[:, None] * columns))
    score = ((y - mean)[:, None] * columns).reshape(12, 15, -1).sum(axis=1)
    sandwich = bread @ score.T @ score @ bread * 12 / 11
    np.testing.assert_allclose(fit.standard_error, np.sqrt(np.diag(sandwich))[:2], rtol=1e-4)


def test_fitted_counts_keep_the_totals_of_categories_and_weeks() -> None:
    count, x, _ = panel(1)
    expected = fit_two_way_poisson(count, x).expected
    np.testing.assert_allclose(expected.sum(axis=0), count.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(expected.sum(axis=1), count.sum(axis=1), rtol=1e-6)


def test_an_exact_mean_is_recovered_exactly() -> None:
    _, x, beta = panel(2)
    mean = np.exp(np.linspace(-1, 1, 12)[:, None] + np.linspace(0, 1, 15) + x @ beta)
    fit = fit_two_way_poisson(mean, x)
    np.testing.assert_allclose(fit.coefficient, beta, atol=1e-8)
    np.testing.assert_allclose(fit.standard_error, 0.0, atol=1e-6)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = []
    for seed in range(150):
        count, x, beta = panel(seed, n_categories=30, n_weeks=10, scale=3.0)
        low, high = fit_two_way_poisson(count, x).interval()
        covered.append((low <= beta) & (beta <= high))
    assert 0.88 <= np.mean(covered) <= 0.99


def test_more_visits_in_a_week_change_nothing_and_empty_categories_drop_out() -> None:
    count, x, _ = panel(3)
    fit = fit_two_way_poisson(count, x)
    visits = np.linspace(1, 5, 15)
    more = fit_two_way_poisson(count * visits / visits.mean(), x)
    exact = fit_two_way_poisson(fit.expected * visits, x)
    np.testing.assert_allclose(exact.coefficient, fit.coefficient, atol=1e-7)
    assert more.coefficient == pytest.approx(fit.coefficient, abs=0.2)
    padded = fit_two_way_poisson(
        np.vstack([count, np.zeros((1, 15))]), np.concatenate([x, np.ones((1, 15, 2))])
    )
    np.testing.assert_allclose(padded.coefficient, fit.coefficient)
    np.testing.assert_allclose(padded.standard_error, fit.standard_error)
    assert padded.n_clusters == 12
    assert (padded.expected[-1] == 0).all()


def test_what_fixed_effects_explain_is_not_identified() -> None:
    count, x, _ = panel(4)
    by_week = np.broadcast_to(np.linspace(0, 1, 15), (12, 15))
    constant = np.full((12, 15), 0.3)
    columns = [x[:, :, 0], constant, by_week, x[:, :, 1], 2 * x[:, :, 0] - x[:, :, 1] + by_week]
    more = np.stack(columns, axis=2)
    fit = fit_two_way_poisson(count, more)
    assert np.isnan(fit.coefficient).tolist() == [False, True, True, False, True]
    plain = fit_two_way_poisson(count, x)
    np.testing.assert_allclose(fit.coefficient[[0, 3]], plain.coefficient)


def test_bad_counts_are_refused() -> None:
    _, x, _ = panel(5)
    with pytest.raises(ValueError, match="negative"):
        fit_two_way_poisson(np.full((12, 15), -1.0), x)
    with pytest.raises(ValueError, match="at least two categories"):
        fit_two_way_poisson(np.zeros((12, 15)), x)


def test_equal_slopes_average_to_themselves() -> None:
    _, x, beta = panel(6)
    mean = 100 * np.exp(np.linspace(-1, 1, 12)[:, None] + np.linspace(0, 1, 15) + x @ beta)
    own = average_own_slopes(mean, x)
    np.testing.assert_allclose(own.mean, beta, atol=1e-7)
    np.testing.assert_allclose(own.standard_error, 0.0, atol=1e-6)
    np.testing.assert_allclose(own.weight.sum(axis=0), 1.0)
    np.testing.assert_allclose(own.weight[:, 0], mean.sum(axis=1) / mean.sum())


def test_unequal_slopes_are_averaged_by_purchases_not_by_variation() -> None:
    rng = np.random.default_rng(7)
    slope = np.where(np.arange(20) % 2, 3.0, 1.0)
    spread = np.where(np.arange(20) % 2, 0.3, 0.05)  # steep where promotion varies much
    x = (0.2 + spread[:, None] * rng.uniform(-0.5, 0.5, (20, 30)))[:, :, None]
    mean = np.exp(3.0 + slope[:, None] * (x[:, :, 0] - 0.2) + np.linspace(0, 0.5, 30))
    own = average_own_slopes(mean, x)
    truth = np.average(slope, weights=mean.sum(axis=1))
    assert own.mean[0] == pytest.approx(truth, abs=1e-6)
    # One slope in twenty categories of 1 or 3: the standard error of their mean is 1 / √19.
    assert own.standard_error[0] == pytest.approx(1 / np.sqrt(19), rel=0.01)
    low, high = own.interval()
    assert low[0] < truth < high[0]
    assert fit_two_way_poisson(mean, x).coefficient[0] > 2.7


def test_slopes_of_promotion_that_hardly_varies_are_left_out() -> None:
    count, x, _ = panel(8, scale=200.0)
    count[-1] *= 99 / count[-1].sum()  # too few purchases for a slope
    x[:4, :, 0] = 0.25
    x[:, :, 1] = 0.1
    own = average_own_slopes(count, x)
    assert (own.weight[:4, 0] == 0).all()
    assert (own.weight[4:-1, 0] > 0).all()
    assert own.weight[-1, 0] == 0
    assert np.isnan(own.mean[1])
    assert np.isnan(own.interval()[0][1])
    assert own.mean[0] == pytest.approx(2.0, abs=4 * own.standard_error[0])
