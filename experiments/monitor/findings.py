"""What a check found: a level, a number and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

EXIT_CODES: Final = {"ok": 0, "warning": 3, "alarm": 4}
"""Of ``couponlab monitor``. 1 and 2 are taken: work that cannot be done, and bad input."""


class MonitorError(ValueError):
    """A log cannot be monitored: it, the reference or the plan do not go together."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ALARM = "alarm"

    @property
    def severity(self) -> int:
        """0, 1 or 2."""
        return tuple(Level).index(self)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: which check, such as ``spend``.
        level: how bad it is.
        words: one sentence with the numbers.
    """

    check: str
    level: Level
    words: str


def worst(levels: Sequence[Level]) -> Level:
    """Return the most severe level; ok of none."""
    return max(levels, key=lambda level: level.severity, default=Level.OK)


def graded(value: float, warning: float, alarm: float) -> Level:
    """Return the level of a value that should be small: a warning, then an alarm, from the bounds on."""
    if value >= alarm:
        return Level.ALARM
    return Level.WARNING if value >= warning else Level.OK
