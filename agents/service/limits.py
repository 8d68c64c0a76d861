"""Who may ask, and how often: API keys compared in constant time, and a token bucket for each."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Sequence


class ApiKeys:
    """The keys that are let in.

    Args:
        keys: in clear; only their hashes are kept.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def find(self, given: bytes) -> int | None:
        """Return the place of a key among those let in, or None.

        Hashes of equal length are compared, each in constant time, and always all of them: the duration tells
        nothing of a key.
        """
        digest = hashlib.sha256(given).digest()
        found = None
        for place, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = place
        return found

    def __len__(self) -> int:
        return len(self._digests)


class TokenBucket:
    """A rate limit: ``burst`` requests at once, ``rate`` a second in the long run.

    Args:
        rate: tokens that come in a second.
        burst: tokens that it holds at most, and at first.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._tokens, self._filled_at = float(burst), clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return 0.0
            return (1.0 - self._tokens) / self._rate
