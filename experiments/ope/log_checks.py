"""What makes a log of decisions unfit for evaluation; every refusal names column, row and an example value.

Rows are counted from 0. Shapes: N decisions, K offers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PROBABILITY_TOLERANCE = 1e-5
"""How far a probability row may sum from 1: the rounding of a float32 softmax, no more."""

_ACCEPTED: dict[str, tuple[type, ...]] = {
    "b": (bool, np.bool_),
    "i": (int, np.integer),
    "f": (int, float, np.integer, np.floating),
}
"""Python and NumPy types that an entry of an untyped array may have, by the kind of the wanted type."""


class LoggedDataError(ValueError):
    """A log that must not be evaluated; the message names the column, a row and an example value."""


def refuse(
    name: str, wrong: BoolArray, values: npt.NDArray[Any], rule: str, *, personal: bool = False
) -> None:
    """Raise for the first wrong entry: its column, row (and index within it), value and the rule.

    Args:
        name: of the column.
        wrong: [N] or [N, J], the entries that break the rule.
        values: of the shape of ``wrong``; the example is taken from here.
        rule: what the example does or must do, to follow its value.
        personal: the column identifies people, so that the message must not show its values.

    Raises:
        LoggedDataError: any entry is wrong.
    """
    if not wrong.any():
        return
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    within = f"[{place[1]}]" if len(place) > 1 else ""
    value = values[place]
    example = value.item() if isinstance(value, np.generic) else value
    shown = "" if personal else f" is {example!r}"
    raise LoggedDataError(f"{name}{within}: row {place[0]}{shown}: {rule} ({int(wrong.sum())} such)")


def require_array(
    name: str, values: npt.NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    """Raise :class:`LoggedDataError` unless ``values`` has this dtype and shape and is finite."""
    if values.shape != shape:
        raise LoggedDataError(f"{name} has shape {values.shape}, expected {shape}")
    wanted = np.dtype(dtype)
    if values.dtype == np.object_:
        odd = np.array([_is_odd(value, wanted.kind) for value in values.flat], dtype=np.bool_)
        refuse(name, odd.reshape(shape), values, f"is not of type {wanted}")
    if values.dtype != wanted:
        raise LoggedDataError(f"{name} has dtype {values.dtype}, expected {wanted}")
    refuse(name, ~np.isfinite(values), values, "must be finite")


def require_probabilities(name: str, values: FloatArray, shape: tuple[int, ...]) -> None:
    """Raise :class:`LoggedDataError` unless each row of ``values`` is a float64 distribution."""
    require_array(name, values, np.float64, shape)
    refuse(name, values < 0, values, "must not be negative")
    totals = values.sum(axis=1)
    refuse(name, np.abs(totals - 1) > PROBABILITY_TOLERANCE, totals, "is the row's sum; it must be 1")


def check_actions(action: IntArray, mask: BoolArray) -> None:
    """Raise unless every action is one of the K offers, and one that was allowed.

    Args:
        action: [N].
        mask: [N, K] bool.

    Raises:
        LoggedDataError: an action is out of range or was masked out.
    """
    n_offers = mask.shape[1]
    refuse("action", (action < 0) | (action >= n_offers), action, f"must lie in 0..{n_offers - 1}")
    refuse("action", ~mask[np.arange(len(action)), action], action, "was masked out when it was logged")


def check_propensities(
    propensity: FloatArray, action: IntArray, mask: BoolArray, probabilities: FloatArray | None
) -> None:
    """Raise unless propensities are probabilities, and agree with the whole distribution where it is known.

    Args:
        propensity: [N] finite.
        action: [N] in range and allowed, see :func:`check_actions`.
        mask: [N, K] bool.
        probabilities: [N, K] the behaviour policy's whole distribution, if known.

    Raises:
        LoggedDataError: a propensity is not in (0, 1], a row of ``probabilities`` is no distribution over
            the offers allowed, or it does not give the action the propensity that was logged.
    """
    refuse("propensity", (propensity <= 0) | (propensity > 1), propensity, "must lie in (0, 1]")
    if probabilities is None:
        return
    name = "behaviour_probabilities"
    require_probabilities(name, probabilities, mask.shape)
    forbidden = np.where(mask, 0.0, probabilities).max(axis=1)
    refuse(name, forbidden > 0, forbidden, "is on an offer that was masked out")
    taken = probabilities[np.arange(len(action)), action]
    disagrees = np.abs(taken - propensity) > PROBABILITY_TOLERANCE
    refuse("propensity", disagrees, propensity, "differs from behaviour_probabilities")


def _is_odd(value: object, kind: str) -> bool:
    """Whether a value of an untyped array is not of the wanted kind; a truth value is no number."""
    is_flag = isinstance(value, bool | np.bool_)
    return not isinstance(value, _ACCEPTED[kind]) or (is_flag and kind != "b")
