"""Money as whole ticks, so that the ledger adds up exactly on any device and in any order."""

from __future__ import annotations

import torch

from envs.ticks import TICKS_PER_UNIT as TICKS_PER_UNIT
from envs.ticks import to_ticks as to_ticks


def tensor_to_ticks(amount: torch.Tensor) -> torch.Tensor:
    """Return amounts of currency as int64 ticks, rounded down: a discount never exceeds its formula."""
    return torch.floor(amount.double() * TICKS_PER_UNIT + 1e-6).long()


def to_currency(ticks: torch.Tensor) -> torch.Tensor:
    """Return ticks as float64 currency."""
    return ticks.double() / TICKS_PER_UNIT
