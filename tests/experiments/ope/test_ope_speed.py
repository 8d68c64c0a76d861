"""The benchmark at a thousandth of its size: what it times is right, and what it reports is what it timed."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.benchmarks import ope_speed


def test_the_log_is_one_of_the_behaviour_policy() -> None:
    log, target = ope_speed.random_log(500)
    assert (log.n_steps, log.n_episodes) == (4000, 500)
    ratio = target[np.arange(4000), log.action] / log.propensity
    assert ratio.mean() == pytest.approx(1, abs=4 * ratio.std() / np.sqrt(4000))
    assert 0.1 < ratio.std() < 1
    assert log.behaviour_probabilities is not None
    expected = log.behaviour_probabilities.sum(axis=0)
    np.testing.assert_allclose(np.bincount(log.action, minlength=10), expected, atol=5 * np.sqrt(400))


def test_rows_hold_time_and_memory_with_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        """Runs in this process: a fresh interpreter would not know of the smaller size."""

        def __init__(self, **_: object) -> None:
            pass

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, measure: object) -> Here:
            self.measure = measure
            return self

        def result(self) -> ope_speed.Spent:
            found: ope_speed.Spent = self.measure(n_users=100, n_bootstrap=10)  # type: ignore[operator]
            return found

    monkeypatch.setattr(ope_speed, "ProcessPoolExecutor", Here)
    rows = ope_speed.run()
    assert [row.unit for row in rows] == ["s", "CPU s", "GiB"] * 3
    assert [row.bar for row in rows] == [60.0, None, 4.0] * 3
    assert all(row.value > 0 for row in rows)
    assert [row.met for row in rows] == [row.bar and row.value <= row.bar for row in rows]
