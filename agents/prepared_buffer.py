"""A rollout buffer whose observations are worked through once, before any pass over them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer

ROWS = 4096
"""Rows that are worked through at a time."""


class PreparedRolloutBuffer(MaskableRolloutBuffer):
    """Samples hold ``prepare(observations)`` in place of observations.

    What a network does to its input before the first weight is the same in every pass over a rollout, and
    takes as long as a layer.

    Args:
        prepare: from observations [n, o] to rows [n, p] on the same device.
        arguments: of the library's buffer, by name.
    """

    def __init__(self, prepare: Callable[[torch.Tensor], torch.Tensor], **arguments: Any) -> None:
        self.prepare = prepare
        super().__init__(**arguments)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield the rollout's steps in batches, shuffled."""
        if not self.generator_ready:
            # ``reset`` allocates the observations of the next rollout anew.
            self.observations = self._prepared()
        yield from super().get(batch_size)

    @torch.no_grad()
    def _prepared(self) -> np.ndarray:
        """[T, n, p] prepared rows of the rollout."""
        flat = self.observations.reshape(-1, self.observations.shape[-1])
        parts = [self.prepare(self.to_torch(flat[k : k + ROWS])) for k in range(0, len(flat), ROWS)]
        return torch.cat(parts).cpu().numpy().reshape(self.buffer_size, self.n_envs, -1)
