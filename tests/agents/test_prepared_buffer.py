"""The rollout buffer that prepares observations once, beside the library's own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer

from agents import prepared_buffer
from agents.prepared_buffer import PreparedRolloutBuffer

SAME = ("actions", "old_values", "old_log_prob", "advantages", "returns", "action_masks")
WEEKS, USERS, WIDTH, OFFERS = 3, 5, 4, 2


def filled(buffer: MaskableRolloutBuffer, seed: int) -> MaskableRolloutBuffer:
    rng = np.random.default_rng(seed)
    buffer.reset()
    for _ in range(WEEKS):
        buffer.add(
            rng.standard_normal((USERS, WIDTH)).astype(np.float32),
            rng.integers(0, OFFERS, (USERS, 1)),
            rng.standard_normal(USERS),
            np.zeros(USERS),
            torch.from_numpy(rng.standard_normal(USERS)),
            torch.from_numpy(rng.standard_normal(USERS)),
            action_masks=np.ones((USERS, OFFERS), dtype=np.bool_),
        )
    buffer.compute_returns_and_advantage(torch.zeros(USERS), np.ones(USERS, dtype=np.bool_))
    return buffer


def prepared(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, rows.sum(dim=1, keepdim=True)], dim=1)


def test_samples_are_the_librarys_with_observations_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_buffer, "ROWS", 4)  # fifteen rows in parts, the last one short
    calls: list[int] = []

    def counted(rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return prepared(rows)

    shared: dict[str, Any] = {
        "buffer_size": WEEKS,
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32),
        "action_space": gymnasium.spaces.Discrete(OFFERS),
        "n_envs": USERS,
    }
    ours, theirs = PreparedRolloutBuffer(counted, **shared), MaskableRolloutBuffer(**shared)
    for rollout in range(2):  # the second fills the buffer anew
        calls.clear()
        for buffer in (ours, theirs):
            filled(buffer, rollout)
        for _ in range(3):
            batches = []
            for buffer in (ours, theirs):
                np.random.seed(rollout)  # noqa: NPY002 - the stream that the library shuffles by
                batches.append(list(buffer.get(4)))
            for one, other in zip(*batches, strict=True):
                assert torch.equal(one.observations, prepared(other.observations))
                for name in SAME:
                    assert torch.equal(getattr(one, name), getattr(other, name))
        assert calls == [4, 4, 4, 3]
