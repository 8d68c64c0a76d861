"""Calibration of a peer on the tuning weeks, by the means that the response model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from encoders.calibration import category_shifts, platt_scaling

DoubleArray = npt.NDArray[np.float64]

_LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class PeerCalibration:
    """Platt scaling, and for purchases a shift of each category.

    Attributes:
        slope: of the logit.
        intercept: of the logit.
        shift: [C] added to the logit of each category; None where there are no categories.
    """

    slope: float
    intercept: float
    shift: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, probability: DoubleArray, label: npt.NDArray[np.bool_]) -> Self:
        """Fit on predictions of the tuning weeks, [W, n] or [W, n, C], and what happened."""
        u = _logit(probability).astype(np.float32)
        slope, intercept = platt_scaling(u.ravel(), label.ravel(), np.ones(u.size, dtype=np.float32))
        shift = None
        if u.ndim == 3:
            flat = (slope * u + intercept).reshape(-1, u.shape[2])
            shift = category_shifts(flat, label.reshape(-1, u.shape[2]), np.ones(len(flat), dtype=np.float32))
        return cls(slope, intercept, shift)

    def apply(self, probability: DoubleArray) -> DoubleArray:
        """Return calibrated probabilities of the same shape."""
        u = self.slope * _logit(probability) + self.intercept
        out: DoubleArray = expit(u if self.shift is None else u + self.shift)
        return out


def _logit(probability: DoubleArray) -> DoubleArray:
    out: DoubleArray = logit(np.clip(probability, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))
    return out
