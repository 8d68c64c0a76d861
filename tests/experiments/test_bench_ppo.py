"""The benchmark of PPO training: where time went, the market at no cost, and what rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import Request, ppo
from experiments.config import ConfigError, PpoConfig

SMALL = PpoConfig(n_envs=6, batch_size=16, n_epochs=1, hidden=8)


def test_seconds_are_split_by_what_was_going_on() -> None:
    """Rollouts end at 10, 20 and 26 s; the second learns for 4 s, is twice in the market, 3 s in all."""
    visits = [(8.0, 9.0), (14.0, 15.0), (16.0, 18.0), (20.5, 25.5)]
    first, second = ppo.split_seconds([10.0, 20.0, 26.0], visits)
    assert (first.total, first.update, first.market, first.acting) == (10.0, 4.0, 3.0, 3.0)
    assert (second.total, second.update, second.market, second.acting) == (6.0, 0.5, 5.0, 0.5)
    assert ppo.split_seconds([1.0], visits) == []


def test_the_empty_market_is_the_same_every_week_and_ends_with_the_campaign() -> None:
    env = ppo.EmptyMarket(n_users=3, width=5, n_offers=4, horizon_weeks=2)
    first = env.reset()
    assert first.shape == (3, 5)
    ends = []
    for _ in range(4):
        observation, reward, done, _ = env.step(np.zeros(3, dtype=np.int64))
        assert observation is first
        assert reward.shape == (3,)
        ends.append(done.tolist())
    assert ends == [[False] * 3, [True] * 3] * 2
    masks = np.stack(env.env_method("action_masks"))
    assert masks.shape == (3, 4)
    assert masks.all()
    with pytest.raises(AttributeError):
        env.env_method("render")


def test_rows_hold_both_sides_at_equal_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppo, "PpoConfig", lambda: SMALL)
    monkeypatch.setattr(ppo, "ROUNDS", 2)
    monkeypatch.setattr(ppo, "ROLLOUTS", 2)
    sizes: list[tuple[int, ...]] = []
    build = ppo.EmptyMarket

    def noted(*size: int) -> ppo.EmptyMarket:
        sizes.append(size)
        return build(*size)

    monkeypatch.setattr(ppo, "EmptyMarket", noted)
    # There is no run in this folder: the demo market stands in, and has no bar to reach.
    speed, learner, *shares = ppo.run(Request())
    market = ppo.training_setting(Request().run).market
    assert sizes == [(6, market.layout.width, len(market.catalogue), 8)]
    assert speed.measure.startswith("training steps per second; the demo market, 6 users, 8 weeks")
    assert speed.peer is not None
    assert speed.peer.startswith("sb3-contrib")
    assert speed.peer_value is not None
    assert speed.ratio == pytest.approx(speed.value / speed.peer_value)
    assert speed.bar is None
    assert learner.value > speed.value
    assert [row.unit for row in shares] == ["share"] * 3
    assert all(0.0 < row.value < 1.0 for row in shares)


def test_a_folder_that_was_named_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        ppo.training_setting(tmp_path)
