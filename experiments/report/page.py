"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


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
