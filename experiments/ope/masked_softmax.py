"""Multinomial logistic models over the offers that a row allows, fitted by maximum likelihood.

scikit-learn's multinomial regression knows no mask: a row that allows few offers would teach it that the
others are disliked. Here a row's probabilities are a softmax over its allowed offers alone, in fitting and in
use (conditional logit: McFadden 1974). Shapes: N rows, d features, K offers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.optimize import minimize

from experiments.ope.log_checks import BoolArray, FloatArray, IntArray

_MAX_STEPS = 500


@dataclass(frozen=True, eq=False)
class MaskedLogistic:
    """Scores x·W + b; a softmax over the allowed offers makes probabilities of them.

    Attributes:
        weight: [d, K].
        intercept: [K].
    """

    weight: FloatArray
    intercept: FloatArray

    def scores(self, features: FloatArray) -> FloatArray:
        """Return [N, K] scores of [N, d] features."""
        return np.asarray(features @ self.weight + self.intercept)


def masked_softmax(scores: FloatArray, mask: BoolArray) -> FloatArray:
    """Return [N, K] probabilities: a softmax of ``scores`` over the allowed offers, 0 elsewhere.

    Args:
        scores: [N, K] finite.
        mask: [N, K] bool, at least one offer allowed in each row.
    """
    # Column by column in memory: sums over a few offers are many times slower along short rows.
    allowed = np.asfortranarray(np.where(mask, scores, -np.inf))
    exponent = np.exp(allowed - allowed.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


def log_loss(probabilities: FloatArray, action: IntArray) -> float:
    """Return the mean negative log probability of the actions, in nats; inf where one had none."""
    with np.errstate(divide="ignore"):
        return float(-np.log(probabilities[np.arange(len(action)), action]).mean())


def fit_logistic(
    features: FloatArray,
    action: IntArray,
    mask: BoolArray,
    *,
    ridge: float,
    intercept_ridge: float,
) -> MaskedLogistic:
    """Fit W and b by penalised maximum likelihood.

    Minimises Σ_i -log p_i(a_i) + ½ ridge ‖W‖² + ½ intercept_ridge ‖b‖², a convex problem, with L-BFGS
    (Liu & Nocedal 1989). The small penalty on b makes the solution unique and keeps offers that these rows
    never show possible.

    Args:
        features: [N, d], standardised.
        action: [N] offers taken, each allowed.
        mask: [N, K] bool.
        ridge: penalty on the weights, in rows.
        intercept_ridge: penalty on the intercepts, in rows; above 0.
    """
    (n, d), k = features.shape, mask.shape[1]
    taken = np.zeros((n, k))
    taken[np.arange(n), action] = 1.0
    penalty = np.concatenate([np.full(d * k, ridge), np.full(k, intercept_ridge)])

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        model = _unpack(parameters, d, k)
        probabilities = masked_softmax(model.scores(features), mask)
        residual = probabilities - taken
        gradient = np.concatenate([(features.T @ residual).ravel(), residual.sum(axis=0)])
        value = n * log_loss(np.maximum(probabilities, np.finfo(np.float64).tiny), action)
        # Per row, so that the tolerances of the optimiser mean the same in small and large logs.
        return (value + 0.5 * float(penalty @ parameters**2)) / n, (gradient + penalty * parameters) / n

    return _unpack(_minimise(loss, d * k + k), d, k)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Calibration s ↦ s / temperature + bias of scores [N, K].

    Attributes:
        temperature: above 1 where the scores were too sure.
        bias: [K] added for each offer.
    """

    temperature: float
    bias: FloatArray

    def apply(self, scores: FloatArray) -> FloatArray:
        """Return [N, K] calibrated scores."""
        return np.asarray(scores / self.temperature + self.bias)


def fit_scaling(scores: FloatArray, action: IntArray, mask: BoolArray, *, intercept_ridge: float) -> Scaling:
    """Fit one temperature and a bias per offer on scores of rows that their model has not seen.

    Between temperature and vector scaling of Guo, Pleiss, Sun & Weinberger (2017), §4.2: a slope per offer
    would need many rows of each.

    Args:
        scores: [N, K].
        action: [N] offers taken.
        mask: [N, K] bool.
        intercept_ridge: penalty on the biases, in rows; above 0.
    """
    n, k = scores.shape
    rows = np.arange(n)

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        slope, bias = np.exp(parameters[0]), parameters[1:]
        probabilities = masked_softmax(scores * slope + bias, mask)
        residual = probabilities.copy()
        residual[rows, action] -= 1.0
        value = n * log_loss(np.maximum(probabilities, np.finfo(np.float64).tiny), action)
        # A softmax is blind to what is added to a whole row; masked-out scores have no residual.
        by_slope = slope * float((residual * scores).sum())
        gradient = np.concatenate([[by_slope], residual.sum(axis=0) + intercept_ridge * bias])
        return (value + 0.5 * intercept_ridge * float(bias @ bias)) / n, gradient / n

    found = _minimise(loss, 1 + k, bounds=[(-_SLOPE_RANGE, _SLOPE_RANGE), *((None, None) for _ in range(k))])
    return Scaling(temperature=float(np.exp(-found[0])), bias=found[1:])


_SLOPE_RANGE = 5.0
"""Largest log of a slope: scores that tell nothing would shrink, or separable ones grow, forever."""

_Bounds: TypeAlias = Sequence[tuple[float | None, float | None]]


def _minimise(
    loss: Callable[[FloatArray], tuple[float, FloatArray]], size: int, bounds: _Bounds | None = None
) -> FloatArray:
    """Minimise from 0 a loss that comes with its gradient."""
    found = minimize(
        loss,
        np.zeros(size),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _MAX_STEPS, "ftol": 1e-11, "gtol": 1e-8},
    )
    return np.asarray(found.x, dtype=np.float64)


def _unpack(parameters: FloatArray, d: int, k: int) -> MaskedLogistic:
    return MaskedLogistic(parameters[: d * k].reshape(d, k), parameters[d * k :])
