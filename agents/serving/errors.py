"""What goes wrong in serving; every message names the place and gives an example."""

from __future__ import annotations

from typing import Any


class BundleError(ValueError):
    """An exported policy is incomplete, altered, of another version or not signed by whom it should be."""


class DecisionInputError(ValueError):
    """Users or context are not described as the policy needs."""


def shown(value: Any) -> str:
    """Return a value as messages show it: as it would be written, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
