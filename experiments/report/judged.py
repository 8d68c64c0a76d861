"""Which judgement of the policies a reader is shown: the full comparison where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.wording import Row, number_in, part_of, rows_in, text_in

_TOGETHER = (
    ("policies", "comparison"),
    ("exposure", "parity"),
    *((key,) for key in ("pacing", "offers", "frontier", "who")),
)
"""Keys that describe the same campaigns, so that they come from the same place; the first one decides."""
_TOTALS = ("pacing", "frontier")
"""Keys whose money is for all users, and whose rows need not say how many there are."""


def judged(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results with the policies as ``compare`` judged them, where it holds them.

    The full comparison has more baselines and campaigns than the evaluation of a run. What it lacks is
    taken from the run. Rows whose money is for all users are given the number of users of their policy.

    Args:
        results: the content of ``results.json``; not changed.
    """
    compared = part_of(results, "compare")
    chosen: dict[str, Any] = {}
    for keys in _TOGETHER:
        fuller = bool(rows_in(compared, keys[0]))
        source = compared if fuller else results
        for key in keys:
            if fuller or key in source:
                rows = rows_in(source, key)
                chosen[key] = _with_users(rows, rows_in(source, "policies")) if key in _TOTALS else rows
    return {**results, **chosen}


def _with_users(rows: Sequence[Row], policies: Sequence[Row]) -> list[Row]:
    """Add the number of users to rows without one; a policy is judged on the same users at each budget."""
    users = {text_in(row, "name"): n for row in policies if (n := number_in(row, "n_users"))}
    alike = set(users.values())
    common = alike.pop() if len(alike) == 1 else None
    return [{"n_users": users.get(text_in(row, "policy"), common), **row} for row in rows]
