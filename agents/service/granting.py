"""Who is served when more is asked for than the budget covers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from agents.service.errors import LedgerError

MOST_TICKS = 2**62
"""Most that a budget or an ask may be, so that no sum of two leaves 64 bits."""


@dataclass(frozen=True)
class Ask:
    """What is to be committed for one user.

    Attributes:
        commitment_id: unique over all campaigns, chosen by the caller.
        user_key: pseudonym of the user.
        charge: ticks charged at once.
        liability: ticks reserved.
        expires_at: from when the liability is released by itself.
    """

    commitment_id: str
    user_key: str
    charge: int
    liability: int
    expires_at: int

    def __post_init__(self) -> None:
        if not (0 <= self.charge <= MOST_TICKS and 0 <= self.liability <= MOST_TICKS):
            raise LedgerError(
                f"{self.commitment_id}: charge and liability must be in 0..{MOST_TICKS} ticks, got "
                f"{self.charge} and {self.liability}"
            )


def grant(asks: Sequence[Ask], available: int, seed: bytes) -> list[bool]:
    """Decide which asks are granted.

    Asks are served in the order of a keyed hash of their ids, until the first that does not fit; it and all
    after it are refused (:meth:`envs.ledger.Ledger.grant`). So neither the place in the batch nor a second
    try changes who is served, and nobody without the seed can choose an id that is served first. An ask for
    nothing is always granted.

    Args:
        asks: one per user.
        available: ticks left.
        seed: key of the hash, at most 64 bytes.

    Returns:
        Whether each ask was granted.
    """
    granted = [ask.charge + ask.liability == 0 for ask in asks]
    for place in sorted(range(len(asks)), key=lambda place: grant_priority(asks[place].commitment_id, seed)):
        wanted = asks[place].charge + asks[place].liability
        if wanted > available:
            break
        granted[place] = True
        available -= wanted
    return granted


def grant_priority(commitment_id: str, seed: bytes) -> bytes:
    """Return an ask's place in line, lowest first: a keyed BLAKE2b hash of its id."""
    return hashlib.blake2b(commitment_id.encode(), key=seed, digest_size=16).digest()
