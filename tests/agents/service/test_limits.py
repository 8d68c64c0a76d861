from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.service.limits import ApiKeys, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(2.0, 3, clock)
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    clock.now = 0.5
    assert bucket.take() == 0.0
    assert bucket.take() > 0
    clock.now = 100.0  # never more than a burst, however long it rested
    assert [bucket.take() for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@given(st.lists(st.floats(0, 2), max_size=60), st.floats(0.1, 20), st.integers(1, 10))
def test_no_more_than_burst_and_rate_pass(pauses: list[float], rate: float, burst: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, burst, clock)
    passed = 0
    for pause in pauses:
        clock.now += pause
        passed += bucket.take() == 0.0
    assert passed <= burst + rate * clock.now + 1e-6


def test_waiting_as_long_as_told_is_enough() -> None:
    clock = Clock()
    bucket = TokenBucket(3.0, 1, clock)
    bucket.take()
    clock.now = bucket.take() + 1e-9
    assert bucket.take() == 0.0


def test_keys_are_found_by_place() -> None:
    keys = ApiKeys(["one", "two"])
    assert [keys.find(given) for given in (b"one", b"two", b"", b"on", b"onee", b"\xff")] == [
        0, 1, None, None, None, None
    ]  # fmt: skip
    assert len(keys) == 2
