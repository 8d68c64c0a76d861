"""Arrays that are used again.

Where a block of users is small enough for the processor's cache, an array that is fresh from the allocator
costs more than the arithmetic that fills it: its pages must be mapped, and its lines fetched. Code that runs
for every block of every week asks for its intermediate arrays here.
"""

from __future__ import annotations

from typing import Any

import torch


class Scratch:
    """Named arrays, each as large as it was ever asked for.

    What is returned holds whatever was left there, and stays valid until the same name is asked for again.
    Not for use by several threads at once; copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, torch.dtype, str], torch.Tensor] = {}

    def __call__(
        self,
        name: str,
        rows: int,
        columns: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Return an array [rows, columns], contiguous, of any content."""
        key = (name, dtype, str(device))
        size = rows * columns
        found = self._arrays.get(key)
        if found is None or found.numel() < size:
            # What is made in inference mode could not be written outside of it.
            with torch.inference_mode(False):
                found = self._arrays[key] = torch.empty(size, dtype=dtype, device=device)
        return found[:size].view(rows, columns)

    def __deepcopy__(self, memo: dict[int, Any]) -> Scratch:
        return Scratch()

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return (Scratch, ())
