"""What the service derives from its one secret: pseudonyms, decision ids, draws and places in line.

Everything is a keyed hash of (campaign, week, user), so a retry, another batch or another worker comes to the
same draw: nobody can ask again until the answer is a coupon, and the logged propensity stays what it says.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MINIMUM_SECRET_BYTES = 16
_PRECISION_BITS = 53


@dataclass(frozen=True, repr=False)
class ServiceKeys:
    """Keyed hashes under the service's secret.

    Attributes:
        secret: at least 16 bytes. With the ``pseudonym.key`` of the run that trained the policy, users have
            the same pseudonyms here as there. Another secret makes every user a new one.

    Raises:
        ValueError: the secret is too short.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) < MINIMUM_SECRET_BYTES:
            # User ids are few and guessable: with a guessable key the hash could be reversed by trying all.
            raise ValueError(
                f"the service's secret has {len(self.secret)} bytes, not {MINIMUM_SECRET_BYTES} or more"
            )

    def user_key(self, user_id: str) -> str:
        """Return a user's pseudonym: HMAC-SHA256 (RFC 2104) cut to 64 bits, as in prepared logs."""
        return hmac.new(self.secret, user_id.encode(), hashlib.sha256).hexdigest()[:16]

    def decision_id(self, campaign: str, week: int, user_key: str) -> str:
        """Return the id of the one decision for a user in a week, 32 hexadecimal digits."""
        return self._digest("decision", campaign, str(week), user_key).hex()

    def uniforms(self, campaign: str, week: int, user_keys: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return each user's number for drawing the week's offer, [n] in [0, 1)."""
        numbers = [
            int.from_bytes(self._digest("draw", campaign, str(week), key)[:8], "big")
            >> (64 - _PRECISION_BITS)
            for key in user_keys
        ]
        return np.ldexp(np.array(numbers, dtype=np.float64), -_PRECISION_BITS)

    @property
    def grant_seed(self) -> bytes:
        """Key of the order in which asks are served (:func:`agents.service.granting.grant`)."""
        return self._digest("grant")

    def _digest(self, *parts: str) -> bytes:
        # Lengths before the parts: no two lists of parts make the same message.
        message = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.new(self.secret, message, hashlib.sha256).digest()[:16]
