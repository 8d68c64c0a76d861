"""Settings of the service, and its secrets, which come from the environment or from files alone.

Workers are processes of their own that read both from the environment. Secrets are never part of the
settings, of a command line or of a log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from agents.service.errors import ServiceError
from agents.service.keys import MINIMUM_SECRET_BYTES, ServiceKeys

SETTINGS_VARIABLE = "COUPONLAB_SERVICE"
API_KEYS_VARIABLE = "COUPONLAB_API_KEYS"
PSEUDONYM_KEY_VARIABLE = "COUPONLAB_PSEUDONYM_KEY"
FILE_SUFFIX = "_FILE"
"""A variable's name with this ending names a file that holds its value."""

MINIMUM_API_KEY_CHARACTERS = 16


class ServiceSettingsError(ServiceError):
    """The service cannot start as it is set up; the message says what to set."""


@dataclass(frozen=True)
class ServiceSettings:
    """What a worker must know.

    Attributes:
        policy: folder of the exported policy.
        database: URL of the ledger and decision log.
        most_bytes: size limit of a request's body.
        requests_per_second: sustained rate of one API key at one worker.
        burst: requests of one API key that a worker takes at once.
        request_seconds: longest time for a body to arrive, and then for its answer.
        database_seconds: longest wait for a lock or a statement.
        grace_hours: for how long after a coupon's last day its redemption can still be reported.
        threads: requests that a worker carries out at the same time.
    """

    policy: Path
    database: str = "sqlite:///coupons.db"
    most_bytes: int = 8 * 2**20
    requests_per_second: float = 100.0
    burst: int = 200
    request_seconds: float = 30.0
    database_seconds: float = 5.0
    grace_hours: float = 0.0
    threads: int = 4

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "grace_hours" else 1e-3
            if isinstance(value, int | float) and not least <= value < float("inf"):
                raise ServiceSettingsError(f"{field.name} must be positive and finite, got {value}")

    def to_json(self) -> str:
        """Return the settings as text for `SETTINGS_VARIABLE`."""
        return json.dumps(asdict(self) | {"policy": str(self.policy)})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ServiceSettingsError: the variable is not set.
        """
        text = environment.get(SETTINGS_VARIABLE)
        if text is None:
            raise ServiceSettingsError(
                f"{SETTINGS_VARIABLE} is not set; start workers with 'couponlab serve'"
            )
        content = json.loads(text)
        return cls(**content | {"policy": Path(content["policy"])})


@dataclass(frozen=True, repr=False)
class ServiceSecrets:
    """What must not be seen.

    Attributes:
        api_keys: whoever sends one of them may use the service.
        keys: hashes under the pseudonym key.
    """

    api_keys: tuple[str, ...]
    keys: ServiceKeys

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the secrets from variables, or from the files that variables name.

        ``COUPONLAB_API_KEYS`` holds keys separated by spaces, commas or lines, ``COUPONLAB_PSEUDONYM_KEY``
        the pseudonym key; ``…_FILE`` names a file instead.

        Raises:
            ServiceSettingsError: one is missing, unreadable or too short.
        """
        api_keys = tuple(_read(environment, API_KEYS_VARIABLE).replace(",", " ").split())
        if not api_keys:
            raise ServiceSettingsError(f"{API_KEYS_VARIABLE} holds no key")
        for place, key in enumerate(api_keys):
            if len(key) < MINIMUM_API_KEY_CHARACTERS or not key.isascii():
                raise ServiceSettingsError(
                    f"{API_KEYS_VARIABLE}: key {place + 1} must have {MINIMUM_API_KEY_CHARACTERS} ASCII "
                    f"characters or more"
                )
        pseudonym_key = _read(environment, PSEUDONYM_KEY_VARIABLE).encode()
        if len(pseudonym_key) < MINIMUM_SECRET_BYTES:
            raise ServiceSettingsError(
                f"{PSEUDONYM_KEY_VARIABLE} must have at least {MINIMUM_SECRET_BYTES} bytes"
            )
        return cls(api_keys, ServiceKeys(pseudonym_key))


def _read(environment: Mapping[str, str], name: str) -> str:
    file = environment.get(name + FILE_SUFFIX)
    if file is None:
        value = environment.get(name)
        if value is None:
            raise ServiceSettingsError(f"set {name}, or {name}{FILE_SUFFIX} to a file that holds it")
        return value
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceSettingsError(f"{name}{FILE_SUFFIX}: {error}") from error
