"""Who redeems a campaign's coupons: ridge logistic regression on history features and, optionally, text."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

FloatArray = npt.NDArray[np.float64]

FEATURE_RIDGE: Final = 10.0
"""Penalty λ in λ/2·|w|² on the weights of standardised features, in log-likelihood units."""

_TOLERANCE: Final = 1e-10
_MAXIMUM_STEPS: Final = 100


@dataclass(frozen=True)
class RedemptionModel:
    """logit P(redeem) = bias + w·(x - mean) / scale + v·(e - embedding_mean) / embedding_scale.

    Features are standardised one by one; the embedding is centred and divided by one number (its root
    mean square), so that a rotation of it changes no prediction.

    Attributes:
        bias: [1].
        weight: [F] weights per standard deviation.
        mean: [F] of the rows that the model was fitted on.
        scale: [F] standard deviations; 1 where a feature did not vary.
        embedding_weight: [d]; d = 0 without embedding.
        embedding_mean: [d].
        embedding_scale: [1].
    """

    bias: FloatArray
    weight: FloatArray
    mean: FloatArray
    scale: FloatArray
    embedding_weight: FloatArray
    embedding_mean: FloatArray
    embedding_scale: FloatArray

    @classmethod
    def fit(
        cls,
        features: FloatArray,
        redeemed: npt.NDArray[np.bool_],
        *,
        ridge: float = FEATURE_RIDGE,
        embedding: npt.NDArray[np.floating] | None = None,
        embedding_ridge: float = 10 * FEATURE_RIDGE,
    ) -> RedemptionModel:
        """Maximise the penalised likelihood; it is strictly concave, and Newton's method ends at its optimum.

        The loss is plain log loss, though few redeem: class weights and focal loss (Lin et al. 2017) order
        the users of left-out campaigns no better, and their probabilities are wrong.

        Args:
            features: [N, F], finite.
            redeemed: [N].
            ridge: penalty on the features' weights, above 0.
            embedding: [N, d] user embeddings, None to do without.
            embedding_ridge: penalty on the embedding's weights, above 0.

        Raises:
            ValueError: shapes differ, a value is not finite, a penalty is not positive, or all rows have
                the same outcome, which leaves the bias without an optimum.
        """
        if redeemed.all() or not redeemed.any():
            raise ValueError("fitting needs rows that redeemed and rows that did not")
        if min(ridge, embedding_ridge) <= 0:
            raise ValueError(f"penalties must be above 0, not {ridge} and {embedding_ridge}")
        extra = np.zeros((len(features), 0)) if embedding is None else np.asarray(embedding, dtype=np.float64)
        if not len(features) == len(redeemed) == len(extra):
            counts = f"{len(features)}, {len(redeemed)}, {len(extra)}"
            raise ValueError(f"features, outcomes and embeddings differ in rows: {counts}")
        if not (np.isfinite(features).all() and np.isfinite(extra).all()):
            raise ValueError("features and embeddings must be finite")
        mean, scale = features.mean(axis=0), features.std(axis=0)
        # A constant has a standard deviation of rounding size, not always exactly 0.
        scale = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
        extra_mean = extra.mean(axis=0)
        extra_scale = float(np.sqrt(np.square(extra - extra_mean).mean())) if extra.size else 0.0
        extra_scale = extra_scale if extra_scale > 0 else 1.0
        design = np.hstack(
            [np.ones((len(features), 1)), (features - mean) / scale, (extra - extra_mean) / extra_scale]
        )
        n_features = features.shape[1]
        penalty = np.r_[0.0, np.full(n_features, ridge), np.full(extra.shape[1], embedding_ridge)]
        optimum = _newton(design, redeemed, penalty)
        return cls(
            bias=optimum[:1],
            weight=optimum[1 : n_features + 1],
            mean=mean,
            scale=scale,
            embedding_weight=optimum[n_features + 1 :],
            embedding_mean=extra_mean,
            embedding_scale=np.array([extra_scale]),
        )

    def logit(self, features: FloatArray, embedding: npt.NDArray[np.floating] | None = None) -> FloatArray:
        """Return [N] log odds of redemption.

        Raises:
            ValueError: the model was fitted with an embedding and none is given, or the reverse.
        """
        if (embedding is None) != (len(self.embedding_weight) == 0):
            expected = f"an embedding of {len(self.embedding_weight)} columns"
            raise ValueError(
                f"the model was fitted {'with ' + expected if embedding is None else 'without one'}"
            )
        logit: FloatArray = self.bias + ((features - self.mean) / self.scale) @ self.weight
        if embedding is not None:
            standard = (np.asarray(embedding, dtype=np.float64) - self.embedding_mean) / self.embedding_scale
            logit = logit + standard @ self.embedding_weight
        return logit

    def predict_proba(
        self, features: FloatArray, embedding: npt.NDArray[np.floating] | None = None
    ) -> FloatArray:
        """Return [N] probabilities of redemption; errors as in :meth:`logit`."""
        return _sigmoid(self.logit(features, embedding))

    def save(self, path: Path) -> None:
        """Write the parameters as safetensors, atomically."""
        temporary = path.with_name(path.name + ".tmp")
        save_file({f.name: np.ascontiguousarray(getattr(self, f.name)) for f in fields(self)}, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> RedemptionModel:
        """Read a model written by :meth:`save`."""
        return cls(**load_file(path))


def _sigmoid(logit: FloatArray) -> FloatArray:
    # tanh does not overflow where exp would.
    probability: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logit))
    return probability


def _newton(design: FloatArray, label: npt.NDArray[np.bool_], penalty: FloatArray) -> FloatArray:
    """Minimise Σ log(1 + exp(η)) - y·η + ½·Σ penalty·b², η = design·b, by Newton's method with halving."""

    def objective(weights: FloatArray) -> float:
        eta = design @ weights
        return float((np.logaddexp(0.0, eta) - label * eta).sum() + 0.5 * penalty @ weights**2)

    weights = np.zeros(design.shape[1])
    value = objective(weights)
    for _ in range(_MAXIMUM_STEPS):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (p - label) + penalty * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        # gradient·step is twice the decrease that the quadratic model promises (Boyd & Vandenberghe, §9.5).
        if gradient @ step <= _TOLERANCE:
            return weights
        length = 1.0
        while objective(weights - length * step) > value and length > 1e-8:
            length *= 0.5
        weights = weights - length * step
        value = objective(weights)
    raise ValueError(f"the redemption model did not converge in {_MAXIMUM_STEPS} steps")
