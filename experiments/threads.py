"""Deliberate thread counts, memory and arithmetic for work on small arrays."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block on one CPU thread, in torch and in BLAS.

    The market with a thousand users, a policy that chooses for them and fitted Q evaluation work on arrays so
    small that handing them to a second thread costs more than it saves.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Count numbers too small for full precision as zero, on this thread and those it starts meanwhile.

    Below 1e-38 in float32 a processor needs a hundred cycles for what takes one above. A policy that has
    learnt what not to send multiplies such probabilities and gradients all the time.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def keep_freed_memory() -> None:
    """Tell the C library to keep freed memory for the next array instead of handing it back to the system.

    By default glibc returns large arrays when they are freed, and each new one is mapped and cleared page by
    page: for arrays of a megabyte that costs more than the arithmetic in them. Does nothing with other C
    libraries.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt = getattr(library, "mallopt", None)
    if mallopt is not None:
        # From malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD.
        # Larger arrays still go back: they are a market's state, not what is worked on.
        for option, size in ((-1, 1 << 28), (-2, 1 << 26), (-3, 1 << 25)):
            mallopt(option, size)
