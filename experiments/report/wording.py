"""Numbers and names in plain words. An absent value is a dash, never a zero."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
ABSENT = "–"


def number_in(row: Row, key: str) -> float | None:
    """Return a finite number of a row, or None if it is absent, null or not a number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def text_in(row: Row, key: str) -> str:
    """Return a text of a row, or a dash."""
    value = row.get(key)
    return ABSENT if value in (None, "") else str(value)


def part_of(results: Row, key: str) -> Row:
    """Return a table of the results; empty where it is absent."""
    part = results.get(key)
    return part if isinstance(part, Mapping) else {}


def rows_in(part: Any, key: str | None = None) -> list[Row]:
    """Return the rows of a list, or of the list that a table holds under a key; empty where there is none."""
    value = part.get(key) if key is not None and isinstance(part, Mapping) else part
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [row for row in value if isinstance(row, Mapping)]


def readable(name: str) -> str:
    """Return a name of the code as a reader would write it: ``ppo_greedy`` as ``PPO greedy``."""
    return re.sub(r"\bppo\b", "PPO", name.replace("_", " "), flags=re.IGNORECASE)


def plain(value: float | None, digits: int = 0, *, sign: bool = False) -> str:
    """Return a number with thousands separators, and with its sign also where positive if asked."""
    if value is None:
        return ABSENT
    text = f"{abs(value):,.{digits}f}"
    shown = any(c in "123456789" for c in text)
    return f"{'−' if shown and value < 0 else '+' if shown and sign else ''}{text}"


def percent(value: float | None, digits: int = 1, *, sign: bool = False) -> str:
    """Return a fraction as a percentage."""
    return ABSENT if value is None else f"{plain(100 * value, digits, sign=sign)}%"


def short(value: float | None) -> str:
    """Return a number with four significant digits at most, whatever its size; whole numbers in full."""
    if value is None:
        return ABSENT
    if value == round(value) and abs(value) < 1e15:
        return plain(value)
    if abs(value) < 1e-5 or abs(value) >= 1e15:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    text = plain(value, digits)
    return text.rstrip("0").rstrip(".") if digits else text


def duration(seconds: float | None) -> str:
    """Return seconds as a person would say them."""
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def several(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural where it is due."""
    return f"{plain(count)} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True)
class Currency:
    """The log's currency.

    Attributes:
        symbol: put before an amount; empty where it is not known.
    """

    symbol: str

    @classmethod
    def of_results(cls, results: Mapping[str, Any]) -> Currency:
        """Take ``data.currency`` if given; Complete Journey is in US dollars; others are left unnamed."""
        data = results.get("data") or {}
        if data.get("currency"):
            return cls(str(data["currency"]))
        origin = re.sub("[^a-z]", "", str(data.get("origin", "")).lower())
        return cls("$" if "completejourney" in origin else "")

    @property
    def unit(self) -> str:
        """The unit, for an axis."""
        return self.symbol or "log's currency"

    def amount(self, value: float | None, digits: int = 2, *, sign: bool = False) -> str:
        """Return an amount; the sign goes before the symbol."""
        text = plain(value, digits, sign=sign)
        if value is None:
            return text
        return f"{text[0]}{self.symbol}{text[1:]}" if text[0] in "+−" else f"{self.symbol}{text}"

    def headline(self, value: float | None, *, sign: bool = False) -> str:
        """Return an amount with as many digits as a title needs."""
        digits = 2 if value is None or abs(value) >= 0.1 or value == 0 else 3
        return self.amount(value, digits, sign=sign)

    def interval(self, low: float | None, high: float | None, digits: int = 3) -> str:
        """Return an interval in words."""
        if low is None or high is None:
            return ABSENT
        return f"{self.amount(low, digits)} to {self.amount(high, digits)}"
