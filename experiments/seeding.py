"""Named seed streams: every use of chance in a run has its own, derived from one seed.

A stream depends on the run's seed and its own name only. Adding, removing or reordering other uses of
chance therefore leaves it as it was.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_stream(seed: int, name: str) -> np.random.SeedSequence:
    """The stream called ``name`` of a run, as a seed sequence.

    Args:
        seed: the run's seed, not negative.
        name: any text, by convention ``stage/purpose``.

    Returns:
        A sequence whose spawn key is the name's SHA-256, so that streams do not collide; ``hash()``
        would differ between processes.
    """
    digest = hashlib.sha256(name.encode()).digest()
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.SeedSequence(seed, spawn_key=key)


def seed_generator(seed: int, name: str) -> np.random.Generator:
    """A NumPy generator at the start of the stream called ``name``."""
    return np.random.default_rng(seed_stream(seed, name))


def seed_integer(seed: int, name: str) -> int:
    """The stream called ``name`` as one integer in [0, 2^31), for libraries that take only that."""
    return int(seed_stream(seed, name).generate_state(1, np.uint32)[0] >> 1)
