"""Users in blocks that fit the processor's cache, so that many array passes cost little memory traffic."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_USERS = 16384
"""Users of a block on a CPU: enough to hide the cost of a call, few enough for arrays that stay small."""

ALIGNMENT = 128
"""Blocks are filled up to a multiple of it. Vectorised kernels treat the remainder of a vector (up to 32
numbers with AVX-512), and matrix products few rows (up to 64 with AVX2), by other instructions than the rest;
filled up, a user's figures are the same to the last bit, whoever stands beside him."""


def padded(rows: torch.Tensor) -> torch.Tensor:
    """Return row numbers [m], at least one, followed by repeats of the last up to a multiple of ALIGNMENT."""
    short = -len(rows) % ALIGNMENT
    return torch.cat([rows, rows[-1:].expand(short)]) if short else rows


def taken(values: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """Return the given rows: a view of a slice, a copy of numbered ones, faster than brackets make it."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def blocks(
    n_users: int, member: torch.Tensor | None, device: torch.device
) -> Iterator[tuple[int, torch.Tensor | slice]]:
    """Yield the members of an ensemble with rows of users that they answer for, each user once.

    Rows are a slice where they are consecutive and a multiple of ALIGNMENT; otherwise numbers, to be
    :func:`padded`.

    Args:
        n_users: n.
        member: [n] int64, which member answers for whom; None if the first does for all.
        device: of the rows; a GPU takes each member's users at once.
    """
    size = BLOCK_USERS if device.type == "cpu" else max(n_users, 1)
    everyone = torch.arange(n_users, device=device)
    if member is not None:
        for k in range(int(member.max()) + 1):
            for rows in torch.split(everyone[member == k], size):
                if len(rows):
                    yield k, rows
        return
    for first in range(0, n_users, size):
        last = min(first + size, n_users)
        whole = last - (last - first) % ALIGNMENT
        if whole > first:
            yield 0, slice(first, whole)
        if whole < last:
            yield 0, everyone[whole:last]
