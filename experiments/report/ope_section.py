"""What a log alone says about the policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.ope.evaluate import FIXED_PRICE_NOTE
from experiments.report.canvas import GREEN, GREY, INK, VERMILION
from experiments.report.ope_blocks import budget_blocks, returns_blocks
from experiments.report.page import Column, Plot, Section, Table
from experiments.report.plots import (
    DotPanel,
    Mark,
    dot_panels,
)
from experiments.report.standing import Results
from experiments.report.wording import (
    Currency,
    Row,
    listed,
    number_in,
    plain,
    readable,
    rows_in,
    several,
    text_in,
)

VERDICT_LOOK = {
    "trust": ("o", True, GREEN),
    "caution": ("^", False, INK),
    "do not use": ("X", True, VERMILION),
}
OUTCOMES = {"reward": "margin", "cost": "cost"}


def ope_section(results: Results) -> Section | None:
    """Values estimated from a log, beside the simulated truth where it is known."""
    found = rows_in(results, "ope")
    if not found:
        return None
    money = Currency.of_results(results)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((readable(text_in(row, "policy")), text_in(row, "outcome")), []).append(row)
    groups = dict(
        sorted(groups.items(), key=lambda item: list(dict.fromkeys(p for p, _ in groups)).index(item[0][0]))
    )
    panels = []
    for (policy, outcome), rows in groups.items():
        truth = next((t for t in (number_in(row, "truth") for row in rows) if t is not None), None)
        marks = [_ope_mark(row, money) for row in rows]
        panels.append(
            DotPanel(
                f"{policy}: {OUTCOMES.get(outcome, outcome)}",
                f"per user and campaign ({money.unit})",
                marks,
                reference=truth,
                reference_label="" if truth is None else f"truth {money.amount(truth, 3)}",
                limits=_limits(rows, truth),
                tick=money.amount,
            )
        )
    finding = ope_finding(found)
    note = (
        "Dot: trust. Hollow triangle: caution. Cross: do not use. Dashed: the simulated truth, which "
        "a real log does not have. Arrows: the interval goes on."
    )
    columns = 2 if len(panels) > 1 else 1
    plot = Plot(finding, dot_panels("ope", finding, panels, columns=columns), note)
    warnings = [FIXED_PRICE_NOTE]
    if any(text_in(row, "estimator") == "DM" for row in found):
        warnings.append(
            "DM rests on a fitted value model alone. Its interval leaves out the model's error, so it is too "
            "narrow; a short bar is not a good one."
        )
    logged = results.get("logged") or {}
    if isinstance(logged, Mapping) and logged:
        warnings.append(
            f"The log: {plain(number_in(logged, 'steps'))} decisions for {plain(number_in(logged, 'users'))} "
            f"users, taken by {readable(text_in(logged, 'behaviour'))}."
        )
    lead = "What could be said about each policy from logged decisions alone, before any test. " + " ".join(
        warnings
    )
    further = [*budget_blocks(results, money), *returns_blocks(results, money)]
    return Section("ope", "Offline evaluation", lead, [[plot], [_ope_table(found, money)], *further])


def _ope_mark(row: Row, money: Currency) -> Mark:
    verdict = text_in(row, "verdict")
    shape, filled, colour = VERDICT_LOOK.get(verdict, ("D", False, GREY))
    value, low, high = (number_in(row, key) for key in ("value", "ci_low", "ci_high"))
    words = f"{money.amount(value, 3)}  {verdict}"
    return Mark(text_in(row, "estimator"), value, low, high, words, colour, shape, filled)


def _limits(rows: Sequence[Row], truth: float | None) -> tuple[float, float] | None:
    """Room for what may be used; what may not is often many times wider, and would flatten the rest."""
    usable = [row for row in rows if row.get("verdict") != "do not use"] or list(rows)
    ends = [number_in(row, key) for row in usable for key in ("value", "ci_low", "ci_high")]
    known = [v for v in (*ends, truth) if v is not None]
    if not known:
        return None
    room = 0.12 * (max(known) - min(known)) or 0.1 * abs(known[0]) or 1.0
    return min(known) - room, max(known) + room


def ope_finding(found: Sequence[Row]) -> str:
    """Say how often the diagnostics allow a number, and whether those allowed were right."""
    counts = {verdict: [r for r in found if text_in(r, "verdict") == verdict] for verdict in VERDICT_LOOK}
    trusted = counts["trust"]
    checked = [
        row for row in trusted if all(number_in(row, k) is not None for k in ("truth", "ci_low", "ci_high"))
    ]
    inside = sum(
        (number_in(r, "ci_low") or 0) <= (number_in(r, "truth") or 0) <= (number_in(r, "ci_high") or 0)
        for r in checked
    )
    if not trusted:
        first = f"None of {several(len(found), 'estimate')} is marked trust"
    elif checked:
        first = f"{inside} of {several(len(checked), 'trusted interval')} contain the truth"
    else:
        first = (
            f"{len(trusted)} of {several(len(found), 'estimate')} are marked trust; the truth is not known"
        )
    rest = [
        f"{len(counts[verdict])} of {len(found)} {words}"
        for verdict, words in (("caution", "call for caution"), ("do not use", "must not be used"))
        if counts[verdict]
    ]
    return f"{first}; {listed(rest)}" if rest else first


def _ope_table(found: Sequence[Row], money: Currency) -> Table:
    rows = [
        [
            readable(text_in(row, "policy")),
            OUTCOMES.get(text_in(row, "outcome"), text_in(row, "outcome")),
            text_in(row, "estimator"),
            money.amount(number_in(row, "value"), 3),
            money.interval(number_in(row, "ci_low"), number_in(row, "ci_high")),
            money.amount(number_in(row, "truth"), 3),
            plain(number_in(row, "ess"), 1),
            text_in(row, "verdict"),
            text_in(row, "reason"),
        ]
        for row in found
    ]
    columns = [
        *(Column(title, words=True) for title in ("policy", "outcome", "estimator")),
        *(Column(title) for title in ("value", "interval", "truth", "ESS")),
        *(Column(title, words=True) for title in ("verdict", "why")),
    ]
    caption = f"Estimates per user and campaign, in {money.unit}. ESS: effective sample size, in episodes."
    return Table("ope", caption, columns, rows, folded=len(rows) > 24)
