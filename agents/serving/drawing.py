"""From probabilities to draws; what is drawn comes with its propensity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agents.serving.errors import DecisionInputError

_SUM_TOLERANCE = 1e-3


def uniforms(
    n: int, rng: np.random.Generator | None, uniform: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """Return [n] numbers in [0, 1) to draw by: from a generator, or those given.

    Raises:
        DecisionInputError: neither or both are given, or not n numbers in [0, 1).
    """
    if (rng is None) == (uniform is None):
        raise DecisionInputError("give either rng or uniform to draw by")
    numbers = rng.random((n, 1))[:, 0] if rng is not None else np.asarray(uniform, dtype=np.float64)
    if numbers.shape != (n,) or not ((numbers >= 0) & (numbers < 1)).all():
        raise DecisionInputError(f"uniform must hold {n} numbers in [0, 1), it has shape {numbers.shape}")
    return numbers


def normalised(probabilities: npt.NDArray[np.float32], first_row: int) -> npt.NDArray[np.float64]:
    """Return probabilities that sum to 1 in float64.

    Raises:
        DecisionInputError: a row does not sum to about 1.
    """
    exact = probabilities.astype(np.float64)
    total = exact.sum(axis=1, keepdims=True)
    wrong = ~(np.abs(total[:, 0] - 1.0) < _SUM_TOLERANCE)
    if wrong.any():
        row = int(wrong.argmax())
        reason = (
            "no offer is allowed, not even to send nothing ('allowed_0')"
            if total[row, 0] == 0
            else "its numbers are too large to compute with"
        )
        raise DecisionInputError(f"row {first_row + row}: {reason} ({int(wrong.sum())} such rows)")
    shares: npt.NDArray[np.float64] = exact / total
    return shares


def draw(
    probabilities: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draw an offer for each row by inversion; equal numbers give equal draws.

    Args:
        probabilities: [n, K]; rows sum to 1.
        uniform: [n] in [0, 1).

    Returns:
        [n] offers, never one of probability 0, and [n] their probabilities.
    """
    cumulative = probabilities.cumsum(axis=1)
    # The total may be a rounding below 1; the last offer with any probability takes the rest.
    offer = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(axis=1).astype(np.int64)
    return offer, probabilities[np.arange(len(offer)), offer]
