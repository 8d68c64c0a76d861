"""The log schema as data: which tables and columns a retailer's log has, and what a bad one raises.

Everything that reads a log (validation, adapters, the synthetic generator, the
panel) takes names, kinds and keys from here, so the schema is written once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

UNLISTED: Final = "UNLISTED"
"""Category of an item whose category is not known: counted in baskets, never modelled or couponed."""

TYPE_A: Final = "Type A"
"""Campaign type whose logs record only the pool of offers, not which of them a user was sent."""


class LogError(ValueError):
    """A log that cannot be used, with the place and one example of what is wrong.

    User ids are personal data, so neither the message nor ``example`` ever holds one: rows are named by
    their number (1-based, without the header) or by basket.

    Attributes:
        table: table at fault, or the source where no single table is.
        column: column at fault (several joined by " + " for a key), None where the fault is not in one.
        rows: how many rows (or other units that the message names) are at fault, None where uncountable.
        example: one offending value and where it stands, None where there is none.
    """

    def __init__(
        self,
        table: str,
        problem: str,
        *,
        column: str | None = None,
        rows: int | None = None,
        example: str | None = None,
        unit: str = "row",
    ) -> None:
        where = table if column is None else f"{table}.{column}"
        count = "" if rows is None else f"{rows} {unit} is " if rows == 1 else f"{rows} {unit}s are "
        sample = "" if example is None else f", for example {example}"
        super().__init__(f"{where}: {count}{problem}{sample}")
        self.table = table
        self.column = column
        self.rows = rows
        self.example = example


class Kind(Enum):
    """What a column may hold."""

    ID = "an integer or text id"
    TEXT = "text"
    MONEY = "a finite number >= 0"
    QUANTITY = "a finite number > 0"
    PROBABILITY = "a number in (0, 1]"
    TIMESTAMP = "a local date and time"
    WEEK = "a whole week number >= 1"
    FLAG = "true/false or 1/0"


NUMBER_KINDS: Final = frozenset({Kind.MONEY, Kind.QUANTITY, Kind.PROBABILITY, Kind.WEEK})


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: name of the column, as in the file.
        kind: what it may hold.
        optional: the column may be absent, and its values may be NULL; it then reads as NULL.
    """

    name: str
    kind: Kind
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: name of the table and of its file, without suffix.
        columns: the columns that the schema knows.
        key: columns that together identify a row; an absent optional one is left out.
        optional: the table may be absent, or present without rows.
        keeps_extra: columns beyond the schema are kept as text (the users' profile) and not ignored.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    optional: bool = True
    keeps_extra: bool = False


@dataclass(frozen=True)
class Reference:
    """Every ``table.column`` must occur as ``target.column``, where both tables are present."""

    table: str
    column: str
    target: str


_TABLES = (
    Table(
        "transactions",
        (
            Column("user_id", Kind.ID),
            Column("basket_id", Kind.ID),
            Column("timestamp", Kind.TIMESTAMP),
            Column("item_id", Kind.ID),
            Column("quantity", Kind.QUANTITY),
            # What was paid for the line, after the shelf discount; where a manufacturer refunds a coupon
            # to the shop, the refunded part is inside. Shelf depth = discount / (spend + discount).
            Column("spend", Kind.MONEY),
            Column("discount", Kind.MONEY),
            Column("coupon_discount", Kind.MONEY),
            Column("store_id", Kind.ID, optional=True),
        ),
        key=("basket_id", "item_id"),
        optional=False,
    ),
    Table(
        "items",
        (
            Column("item_id", Kind.ID),
            Column("category", Kind.TEXT),
            Column("department", Kind.TEXT, optional=True),
            Column("brand", Kind.TEXT, optional=True),
            Column("description", Kind.TEXT, optional=True),
        ),
        key=("item_id",),
        optional=False,
    ),
    Table("users", (Column("user_id", Kind.ID),), key=("user_id",), keeps_extra=True),
    Table(
        # A row marks its store as covered in its week, also where display and mailer are both false.
        "promotions",
        (
            Column("item_id", Kind.ID),
            Column("week", Kind.WEEK),
            Column("store_id", Kind.ID, optional=True),
            Column("display", Kind.FLAG),
            Column("mailer", Kind.FLAG),
        ),
        key=("item_id", "week", "store_id"),
    ),
    Table(
        "campaigns",
        (
            Column("user_id", Kind.ID),
            Column("campaign_id", Kind.ID),
            Column("start", Kind.TIMESTAMP),
            Column("end", Kind.TIMESTAMP),
            Column("propensity", Kind.PROBABILITY, optional=True),
            Column("campaign_type", Kind.TEXT, optional=True),
        ),
        key=("user_id", "campaign_id"),
    ),
    Table(
        "offers",
        (Column("campaign_id", Kind.ID), Column("offer_id", Kind.ID), Column("item_id", Kind.ID)),
        key=("campaign_id", "offer_id", "item_id"),
    ),
    Table(
        "redemptions",
        (
            Column("user_id", Kind.ID),
            Column("campaign_id", Kind.ID),
            Column("offer_id", Kind.ID),
            Column("timestamp", Kind.TIMESTAMP),
        ),
        key=("user_id", "campaign_id", "offer_id", "timestamp"),
    ),
)

SCHEMA: Final[Mapping[str, Table]] = MappingProxyType({table.name: table for table in _TABLES})
"""Every table of a log by name, required ones first."""

REFERENCES: Final = (
    Reference("transactions", "item_id", "items"),
    Reference("promotions", "item_id", "items"),
    Reference("offers", "item_id", "items"),
    Reference("offers", "campaign_id", "campaigns"),
    Reference("redemptions", "campaign_id", "campaigns"),
    Reference("redemptions", "offer_id", "offers"),
)

PERSONAL: Final = frozenset({"user_id"})
"""Columns whose values must never appear in a message."""


def quoted(name: str) -> str:
    """Return ``name`` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return ``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
