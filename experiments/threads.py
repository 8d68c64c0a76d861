"""Deliberate thread counts for work on small arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block on one CPU thread, in torch and in BLAS.

    The market with a thousand users, the policy network and fitted Q evaluation work on arrays so small that
    handing them to a second thread costs more than it saves.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)
