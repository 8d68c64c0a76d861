from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.money import TICKS_PER_UNIT, tensor_to_ticks, to_currency, to_ticks


def test_known_values() -> None:
    assert [to_ticks(amount) for amount in (0.0, 0.02, 0.6, 1.2, 0.00004, 0.00006)] == [
        *(0, 200, 6000, 12000, 0, 1),
    ]
    # A discount is rounded down, but not below what a float32 cannot hold.
    assert tensor_to_ticks(torch.tensor([0.6, 0.00019, 2.99999])).tolist() == [6000, 1, 29999]


@given(st.integers(0, 10**9))  # a discount of 100,000; the ledger itself never leaves ticks
def test_ticks_survive_the_way_through_currency(ticks: int) -> None:
    assert to_ticks(ticks / TICKS_PER_UNIT) == ticks
    assert tensor_to_ticks(to_currency(torch.tensor(ticks))).item() == ticks


@given(st.floats(0, 1e6, allow_nan=False))
def test_a_discount_in_ticks_never_exceeds_its_formula(amount: float) -> None:
    ticks = int(tensor_to_ticks(torch.tensor(amount, dtype=torch.float64)))
    assert ticks <= amount * TICKS_PER_UNIT + 1e-6
    assert ticks == pytest.approx(amount * TICKS_PER_UNIT, abs=1.0)
