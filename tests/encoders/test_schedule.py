from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.schedule import warmup_cosine


def test_known_values() -> None:
    assert [warmup_cosine(step, 100) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert warmup_cosine(55, 100) == pytest.approx(0.5)
    assert warmup_cosine(100, 100) == pytest.approx(0.0)


@given(st.integers(1, 500), st.floats(0.0, 0.5))
def test_rises_then_falls_within_zero_and_one(total: int, share: float) -> None:
    factors = [warmup_cosine(step, total, share) for step in range(total + 1)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
