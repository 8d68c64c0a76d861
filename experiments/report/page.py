"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from experiments.report.wording import Currency, Row


@dataclass(frozen=True)
class Column:
    """A table's column: numbers are set to the right, words to the left."""

    title: str
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers to look up.

    Attributes:
        key: of the part of ``results.json`` shown.
        caption: what the rows are, with units.
        columns: head.
        rows: cells as they are printed.
        folded: shown only when opened.
        strong: the rows to mark, by position.
    """

    key: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    strong: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.key!r}: a row does not have {len(self.columns)} cells")


@dataclass(frozen=True)
class Plot:
    """A drawing under the finding that it shows, and a note on how to read it."""

    finding: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


Block = Sequence[Table | Plot | Words]
"""What stands side by side where the window is wide enough."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: anchor.
        heading: what it is about.
        lead: what the reader should know before looking.
        blocks: from top to bottom.
    """

    key: str
    heading: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """One number of the summary."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class PolicyRow:
    """A policy at a budget; money per user and campaign.

    Attributes:
        name: as readers know it.
        multiple: of the configured budget.
        margin: incremental margin, with its interval ``low`` to ``high``.
        spend: charged to the budget.
        budget: cap.
        row: as in the results.
    """

    name: str
    multiple: float
    margin: float | None
    low: float | None
    high: float | None
    spend: float | None
    budget: float | None
    row: Row


@dataclass(frozen=True)
class Difference:
    """A paired difference in incremental margin, per user and campaign."""

    name: str
    baseline: str
    multiple: float
    value: float | None
    low: float | None
    high: float | None
    row: Row

    @property
    def includes_zero(self) -> bool | None:
        """Whether no difference at all is compatible with the interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Standing:
    """Who is compared with whom.

    Attributes:
        rows: policies at all budgets.
        differences: paired differences.
        multiple: the budget that titles speak of: the one nearest to the configured one.
        focus: the trained policy, or the best one where none is called PPO.
        rival: the best of the others at that budget, if any.
        currency: of all amounts.
    """

    rows: Sequence[PolicyRow]
    differences: Sequence[Difference]
    multiple: float
    focus: PolicyRow
    rival: PolicyRow | None
    currency: Currency

    @property
    def multiples(self) -> list[float]:
        """Budgets compared at, as multiples, ascending."""
        return sorted({row.multiple for row in self.rows})

    @property
    def order(self) -> list[str]:
        """Policies from best to worst at the budget that titles speak of, others after."""
        names = [row.name for row in sorted(self.at(self.multiple), key=_worst_last)]
        return list(dict.fromkeys([*names, *(row.name for row in self.rows)]))

    def at(self, multiple: float) -> list[PolicyRow]:
        """Policies at one budget."""
        return [row for row in self.rows if row.multiple == multiple]

    @property
    def against_rival(self) -> Difference | None:
        """The paired difference between focus and rival."""
        for difference in self.differences:
            pair = (difference.name, difference.baseline, difference.multiple)
            if self.rival and pair == (self.focus.name, self.rival.name, self.multiple):
                return difference
        return None


def _worst_last(row: PolicyRow) -> float:
    return float("inf") if row.margin is None else -row.margin


def choose_standing(
    rows: Sequence[PolicyRow], differences: Sequence[Difference], currency: Currency
) -> Standing | None:
    """Choose what titles speak of; None where there are no policies."""
    if not rows:
        return None
    multiple = min({row.multiple for row in rows}, key=lambda m: (abs(m - 1), m))
    best_first = sorted((row for row in rows if row.multiple == multiple), key=_worst_last)
    trained = [row for row in best_first if "ppo" in row.name.lower()]
    focus = (trained or best_first)[0]
    others = [row for row in best_first if row not in trained and row is not focus]
    return Standing(rows, differences, multiple, focus, others[0] if others else None, currency)
