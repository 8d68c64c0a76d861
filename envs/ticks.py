"""The tick: the smallest amount of money. Without torch, so that a service that books money needs none."""

from __future__ import annotations

TICKS_PER_UNIT = 10_000
"""Ticks in one unit of the log's currency: a hundredth of a cent."""


def to_ticks(amount: float) -> int:
    """Return an amount of currency as ticks, rounded to the nearest."""
    return round(amount * TICKS_PER_UNIT)
