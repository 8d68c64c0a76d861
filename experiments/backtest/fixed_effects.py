"""Poisson regression with two-way fixed effects: what promotion does to a category's purchases.

    E[y_ct] = exp(a_c + b_t + β·x_ct)

The Poisson pseudo-maximum likelihood (PPML; Santos Silva & Tenreyro 2006) suits rare counts where a
regression of their logarithm does not: counts of zero stay in, nothing needs smoothing, β is consistent
whatever the variance as long as the mean is right, and each cell weighs in by its expected count. The
number of visits of a week is the same for all categories, so the week's effect absorbs it: β is an effect on
purchases given a visit.

Two-way effects are partialled out exactly at each step of iteratively reweighted least squares (Correia,
Guimarães & Zylkin 2020, "Fast Poisson estimation with high-dimensional fixed effects").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

DoubleArray = npt.NDArray[np.float64]

_MAX_STEPS = 100
_TOLERANCE = 1e-10
_LEAST_VARIATION = 1e-8
"""Share of a regressor's weighted sum of squares that all else must leave for it to be identified."""


@dataclass(frozen=True)
class FixedEffectsFit:
    """Coefficients of K regressors; NaN where fixed effects and regressors before it explain one wholly.

    Attributes:
        coefficient: [K] β, log points per unit.
        standard_error: [K] clustered by category.
        expected: [C, T] fitted counts; 0 in categories without any.
        n_clusters: categories that enter.
    """

    coefficient: DoubleArray
    standard_error: DoubleArray
    expected: DoubleArray
    n_clusters: int

    def interval(self) -> tuple[DoubleArray, DoubleArray]:
        """95% intervals, [K] each: Student's t with one degree of freedom less than there are clusters."""
        half = float(student.ppf(0.975, max(1, self.n_clusters - 1))) * self.standard_error
        return self.coefficient - half, self.coefficient + half


@dataclass(frozen=True)
class OwnSlopes:
    """Slopes of categories, averaged; NaN for a regressor that varies in fewer than two of them.

    Attributes:
        mean: [K] log points per unit.
        standard_error: [K]
        weight: [C, K] of each category in the mean; columns sum to 1, 0 where the regressor hardly varies.
    """

    mean: DoubleArray
    standard_error: DoubleArray
    weight: DoubleArray

    def interval(self) -> tuple[DoubleArray, DoubleArray]:
        """95% intervals, [K] each: Student's t with one degree of freedom less than there are categories."""
        clusters = np.maximum((self.weight > 0).sum(axis=0), 2)
        half = student.ppf(0.975, clusters - 1) * self.standard_error
        return self.mean - half, self.mean + half


def fit_two_way_poisson(count: DoubleArray, regressors: DoubleArray) -> FixedEffectsFit:
    """Fit the regression of counts on promotion with category and week effects.

    Args:
        count: [C, T] purchases, non-negative; need not be whole.
        regressors: [C, T, K].

    Raises:
        ValueError: negative counts, or fewer than two categories or weeks with a purchase.
        RuntimeError: no convergence.
    """
    if (count < 0).any():
        raise ValueError("counts must not be negative")
    # An all-zero category or week is fitted perfectly by its own effect and says nothing of β.
    rows, columns = count.sum(axis=1) > 0, count.sum(axis=0) > 0
    n_clusters = int(rows.sum())
    if n_clusters < 2 or int(columns.sum()) < 2:
        raise ValueError("two-way fixed effects need purchases in at least two categories and two weeks")
    y, x = count[np.ix_(rows, columns)], regressors[np.ix_(rows, columns)]
    mean = 0.5 * (y + y.mean())
    identified = _identified(x, mean)
    x = x[:, :, identified]
    predictor, deviance = np.log(mean), np.inf
    for _ in range(_MAX_STEPS):
        working = predictor + (y - mean) / mean
        within = two_way_within(np.concatenate([working[:, :, None], x], axis=2), mean)
        response, design = within[:, :, 0], within[:, :, 1:]
        beta = _inverse_information(design, mean) @ _score(design, mean * response).sum(axis=0)
        predictor = working - (response - design @ beta)
        mean = np.exp(predictor)
        before, deviance = deviance, _deviance(y, mean)
        if abs(before - deviance) <= _TOLERANCE * (1.0 + deviance):
            break
    else:
        raise RuntimeError(f"the Poisson regression has not converged in {_MAX_STEPS} steps")
    design = two_way_within(x, mean)
    bread, score = _inverse_information(design, mean), _score(design, y - mean)
    sandwich = bread @ (score.T @ score) @ bread * n_clusters / (n_clusters - 1)
    coefficient = np.full(regressors.shape[2], np.nan)
    standard_error = np.full(regressors.shape[2], np.nan)
    coefficient[identified] = beta
    standard_error[identified] = np.sqrt(np.diag(sandwich))
    expected = np.zeros(count.shape)
    expected[np.ix_(rows, columns)] = mean
    return FixedEffectsFit(coefficient, standard_error, expected, n_clusters)


def average_own_slopes(
    count: DoubleArray, regressors: DoubleArray, *, least_spread: float = 0.01, least_count: float = 100.0
) -> OwnSlopes:
    """Let each category have slopes of its own, and average them: the mean-group estimate of each regressor.

    A regression with common slopes averages categories by how much their promotion varies, and what it
    misses of one promotion's unequal slopes it may lay to another that goes with it. Where slopes differ, the
    mean over categories must be taken after the fit (Pesaran & Smith 1995). Categories weigh in by their
    purchases; the standard error is that of a weighted mean over categories, so it needs no model of errors.

    Args:
        count: [C, T] purchases.
        regressors: [C, T, K].
        least_spread: standard deviation over weeks below which a category's slope is left out.
        least_count: purchases below which a category is left out; a handful would fit any slope.

    Raises:
        ValueError: as :func:`fit_two_way_poisson`.
        RuntimeError: no convergence.
    """
    n_categories, n_weeks, n_regressors = regressors.shape
    centred = regressors - regressors.mean(axis=1, keepdims=True)
    varies = (centred.std(axis=1) >= least_spread) & (count.sum(axis=1) >= least_count)[:, None]
    category, regressor = np.nonzero(varies)
    columns = np.zeros((n_categories, n_weeks, len(category)))
    columns[category, :, np.arange(len(category))] = centred[category, :, regressor]
    slopes = fit_two_way_poisson(count, columns).coefficient
    weight = np.zeros((n_categories, n_regressors))
    own = np.zeros((n_categories, n_regressors))
    found = ~np.isnan(slopes)
    weight[category[found], regressor[found]] = count.sum(axis=1)[category[found]]
    own[category[found], regressor[found]] = slopes[found]
    with np.errstate(invalid="ignore", divide="ignore"):
        weight /= weight.sum(axis=0)
        size = (weight > 0).sum(axis=0)
        mean = (weight * own).sum(axis=0)
        variance = (weight**2 * (own - mean) ** 2).sum(axis=0) * size / (size - 1)
    return OwnSlopes(mean, np.sqrt(variance), weight)


def two_way_within(values: DoubleArray, weight: DoubleArray) -> DoubleArray:
    """Return the residuals of weighted regressions on category and week effects, [C, T, K].

    Exact: category effects are eliminated from the normal equations, and what is left is a system in the
    T week effects (whose one redundancy the minimum-norm solution settles).

    Args:
        values: [C, T, K].
        weight: [C, T], positive.
    """
    by_category = weight.sum(axis=1)
    share = weight / by_category[:, None]
    system = np.diag(weight.sum(axis=0)) - share.T @ weight
    weighted = weight[:, :, None] * values
    right = weighted.sum(axis=0) - share.T @ weighted.sum(axis=1)
    week = np.linalg.lstsq(system, right, rcond=None)[0]
    rest = values - week
    residual: DoubleArray = rest - (share[:, :, None] * rest).sum(axis=1, keepdims=True)
    return residual


def _inverse_information(design: DoubleArray, weight: DoubleArray) -> DoubleArray:
    """Inverse of Σ weight·x·xᵀ, [K, K]."""
    scaled = (np.sqrt(weight)[:, :, None] * design).reshape(-1, design.shape[2])
    return np.asarray(np.linalg.inv(scaled.T @ scaled), dtype=np.float64)


def _score(design: DoubleArray, residual: DoubleArray) -> DoubleArray:
    """Sum of x·residual over the weeks of each category, [C, K]."""
    out: DoubleArray = (residual[:, None, :] @ design)[:, 0]
    return out


def _identified(x: DoubleArray, weight: DoubleArray) -> npt.NDArray[np.bool_]:
    """Which regressors vary beyond the fixed effects and the regressors before them, [K]."""
    scale = np.sqrt(weight)[:, :, None]
    within = (scale * two_way_within(x, weight)).reshape(-1, x.shape[2])
    # The diagonal of R is what each column has left once those before it are projected out.
    left = np.diag(np.linalg.qr(within, mode="r")) ** 2
    total = ((scale * x) ** 2).sum(axis=(0, 1))
    out: npt.NDArray[np.bool_] = left > _LEAST_VARIATION * total
    return out


def _deviance(y: DoubleArray, mean: DoubleArray) -> float:
    ratio = np.where(y > 0, y, 1.0) / np.where(y > 0, mean, 1.0)
    return float(2.0 * (y * np.log(ratio) - (y - mean)).sum())
