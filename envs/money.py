"""Money as whole ticks, so that the ledger adds up exactly on any device and in any order."""

from __future__ import annotations

import torch

TICKS_PER_UNIT = 10_000
"""Ticks in one unit of the log's currency: a hundredth of a cent."""


def to_ticks(amount: float) -> int:
    """Return an amount of currency as ticks, rounded to the nearest."""
    return round(amount * TICKS_PER_UNIT)


def tensor_to_ticks(amount: torch.Tensor) -> torch.Tensor:
    """Return amounts of currency as int64 ticks, rounded down: a discount never exceeds its formula."""
    return torch.floor(amount.double() * TICKS_PER_UNIT + 1e-6).long()


def to_currency(ticks: torch.Tensor) -> torch.Tensor:
    """Return ticks as float64 currency."""
    return ticks.double() / TICKS_PER_UNIT
