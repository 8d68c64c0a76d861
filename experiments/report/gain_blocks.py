"""How much of what the policy gains on industry practice is pacing, and how much is the policy."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.report.canvas import BLUE, INK, ORANGE
from experiments.report.page import Block, Column, Plot, Table
from experiments.report.plots import DotPanel, Mark, dot_panels
from experiments.report.standing import EVEN, MYOPIC, Difference, PolicyRow, Standing
from experiments.report.wording import percent

EVEN_WORDS = f"{MYOPIC} with even pacing"


@dataclass(frozen=True)
class Gain:
    """The way from industry practice to the policy at one budget, in two steps.

    Attributes:
        multiple: of the configured budget.
        even: myopic uplift, paced evenly.
        planned: the same, paced by forecast.
        policy: paced by forecast too.
        whole: policy less even.
        by_pacing: planned less even; without an interval where that pair was not measured.
        by_policy: policy less planned.
    """

    multiple: float
    even: PolicyRow
    planned: PolicyRow
    policy: PolicyRow
    whole: Difference
    by_pacing: Difference
    by_policy: Difference


def gains_of(standing: Standing) -> list[Gain]:
    """Return the gain at each budget at which all three policies were judged and compared."""
    gains = []
    for multiple in standing.multiples:
        rows = [standing.row_of(name, multiple) for name in (EVEN, MYOPIC, standing.focus.name)]
        whole, by_policy = (standing.against(name, multiple) for name in (EVEN, MYOPIC))
        if None in rows or whole is None or by_policy is None or standing.focus.name in (EVEN, MYOPIC):
            continue
        by_pacing = standing.against(EVEN, multiple, MYOPIC)
        if by_pacing is None:
            known = whole.value is not None and by_policy.value is not None
            step = (whole.value or 0) - (by_policy.value or 0) if known else None
            by_pacing = Difference(MYOPIC, EVEN, multiple, step, None, None, {})
        even, planned, policy = (row for row in rows if row is not None)
        gains.append(Gain(multiple, even, planned, policy, whole, by_pacing, by_policy))
    return gains


def gain_blocks(standing: Standing, columns: int) -> list[Block]:
    """Plot and table of the two steps; nothing where industry practice was not judged.

    Args:
        standing: who is compared with whom.
        columns: panels side by side.
    """
    gains = gains_of(standing)
    if not gains:
        return []
    money, name = standing.currency, standing.focus.name
    panels = []
    for gain in gains:
        marks = [
            Mark(
                label,
                step.value,
                step.low,
                step.high,
                words=money.amount(step.value, 3, sign=True),
                colour=colour,
                marker=shape,
                filled=step.includes_zero is False,
            )
            for label, step, colour, shape in (
                (f"whole: {name} − even", gain.whole, INK, "D"),
                ("by pacing", gain.by_pacing, ORANGE, "s"),
                ("by the policy", gain.by_policy, BLUE, "o"),
            )
        ]
        budget = gain.policy.budget
        each = "" if budget is None else f": {money.headline(budget)} per user"
        axis = f"difference per user and campaign ({money.unit})"
        title = f"Budget × {gain.multiple:g}{each}"
        panels.append(DotPanel(title, axis, marks, reference=0.0, tick=money.amount))
    main = min(gains, key=lambda gain: (abs(gain.multiple - standing.multiple), gain.multiple))
    finding = _finding(main, standing)
    note = (
        f"Pacing: {MYOPIC}, paced by forecast instead of evenly. Policy: {name} instead of {MYOPIC}, both "
        "paced by forecast. Filled: the interval excludes 0. Hollow: it includes 0, or was not computed."
    )
    plot = Plot(finding, dot_panels("gain", finding, panels, columns=columns), note)
    return [[plot], [_table(gains, standing)]]


def _finding(gain: Gain, standing: Standing) -> str:
    money, name = standing.currency, standing.focus.name
    at = f" at budget × {gain.multiple:g}" if len(standing.multiples) > 1 else ""
    whole, policy = gain.whole, gain.by_policy
    if whole.value is None or policy.value is None:
        return f"What {name} gains on {EVEN_WORDS} could not be computed"
    if whole.includes_zero:
        interval = money.interval(whole.low, whole.high, 2)
        return f"{name} and {EVEN_WORDS} cannot be told apart{at}: the interval, {interval}, includes 0"
    parts = (
        f"{money.headline(gain.by_pacing.value, sign=True)}{_doubt(gain.by_pacing)} by pacing and "
        f"{money.headline(policy.value, sign=True)}{_doubt(policy)} by the policy"
    )
    more = "more" if whole.value >= 0 else "less"
    size = f"{money.headline(abs(whole.value))} per user{_doubt(whole)}"
    return f"{name} earns {size} {more} than {EVEN_WORDS}{at}: {parts}"


def _doubt(step: Difference) -> str:
    if step.includes_zero is None:
        return " (no interval)"
    return " (interval includes 0)" if step.includes_zero else ""


def _table(gains: list[Gain], standing: Standing) -> Table:
    money = standing.currency
    rows = []
    for gain in gains:
        for row, step in ((gain.even, None), (gain.planned, gain.by_pacing), (gain.policy, gain.by_policy)):
            rows.append(
                [
                    row.name,
                    f"× {gain.multiple:g}",
                    percent(row.utilisation),
                    money.amount(row.margin, 3, sign=True),
                    money.amount(step.value if step else None, 3, sign=True),
                    money.interval(step.low if step else None, step.high if step else None),
                ]
            )
    columns = [
        Column("policy", words=True),
        *(Column(t) for t in ("budget", "of it spent", "margin", "gain on the line above", "interval")),
    ]
    caption = f"From industry practice to {standing.focus.name}, step by step; per user, {money.unit}"
    return Table("gain", caption, columns, rows, folded=len(rows) > 12)
