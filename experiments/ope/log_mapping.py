"""Which column of a table of one's own is what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import pandas as pd

from experiments.ope.log_checks import LoggedDataError

STANDARD_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "user": ("user_id", "user"),
        "campaign": ("campaign_id", "campaign"),
        "week": ("week",),
        "timestamp": ("timestamp",),
        "action": ("action", "offer_name", "offer"),
        "reward": ("reward",),
        "propensity": ("propensity",),
        "cost": ("cost",),
        "dual_price": ("dual_price",),
        "terminated": ("terminated",),
        "allowed": ("allowed",),
    }
)
"""The names under which a column is found where the mapping names none; the first one present is taken."""

AFTER_DECISION: Final = frozenset({"action", "reward", "cost", "terminated"})
"""Fields that no feature may be read from: they are the decision, or follow from it."""
FEATURE_PREFIXES: Final = ("feature_", "observation_")
"""Columns so named are what was known before the decision, where the mapping lists no features."""
MASK_PREFIXES: Final = ("allowed_", "mask_")
"""``allowed_<offer>``: whether the offer was allowed."""
PROBABILITY_PREFIXES: Final = ("probability_", "behaviour_probability_")
"""``probability_<offer>``: the behaviour policy's whole distribution."""


@dataclass(frozen=True, kw_only=True)
class LogMapping:
    """Which column of a table of one's own is what; None takes the first of :data:`STANDARD_COLUMNS`.

    Attributes:
        user: id of the user, text or whole number.
        campaign: id of the campaign; without one, all rows are of one campaign.
        week: whole number of the week.
        timestamp: date or time of the decision, local; read where named here, or where there is no week.
        action: the offer sent, a name or a whole number.
        reward: contribution margin before coupon cost.
        propensity: probability with which the offer was sent.
        cost: coupon and push cost.
        dual_price: price λ of a unit of budget.
        terminated: whether the episode ended with this row.
        allowed: the offers that were allowed, as a list or as text such as ``a|b|c``.
        features: columns known before the decision, numbers or text; None takes those of
            :data:`FEATURE_PREFIXES`. Name none that the decision changed: it would hide its effect.
        offers: all offers, in the order that they shall have; None takes those that occur.
        no_offer: the offer that means that nothing was sent; None looks for a usual name.
        close_gaps: number the decisions of an episode by week after week where the log skips weeks, rather
            than refuse the log.
    """

    user: str | None = None
    campaign: str | None = None
    week: str | None = None
    timestamp: str | None = None
    action: str | None = None
    reward: str | None = None
    propensity: str | None = None
    cost: str | None = None
    dual_price: str | None = None
    terminated: str | None = None
    allowed: str | None = None
    features: tuple[str, ...] | None = None
    offers: tuple[str, ...] | None = None
    no_offer: str | None = None
    close_gaps: bool = False

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[str],
        *,
        features: Sequence[str] = (),
        no_offer: str | None = None,
        close_gaps: bool = False,
    ) -> LogMapping:
        """Read a mapping from texts such as ``user=customer_no``, as a command line gives them.

        Args:
            pairs: field and column; the fields are those of :data:`STANDARD_COLUMNS`.
            features: columns known before the decision; none takes those of :data:`FEATURE_PREFIXES`.
            no_offer: the offer that means that nothing was sent.
            close_gaps: see :class:`LogMapping`.

        Raises:
            LoggedDataError: a text is no pair, or its field is not known or given twice.
        """
        columns: dict[str, str] = {}
        for pair in pairs:
            field, separator, name = pair.partition("=")
            if not separator or not name:
                raise LoggedDataError(f"{pair!r}: a column is given as FIELD=NAME, such as user=customer_no")
            if field not in STANDARD_COLUMNS:
                raise LoggedDataError(f"{pair!r}: no field {field!r}, only {', '.join(STANDARD_COLUMNS)}")
            if field in columns:
                raise LoggedDataError(f"{pair!r}: the field {field!r} is given twice")
            columns[field] = name
        settings: dict[str, Any] = dict(columns)
        return cls(**settings, features=tuple(features) or None, no_offer=no_offer, close_gaps=close_gaps)

    def find(self, frame: pd.DataFrame) -> dict[str, str]:
        """Return the column of each field that has one in the table.

        Raises:
            LoggedDataError: a column that the mapping names is not in the table, is named for two fields, or
                is given as a feature although it was not known before the decision.
        """
        found: dict[str, str] = {}
        for field, usual in STANDARD_COLUMNS.items():
            named: str | None = getattr(self, field)
            if named is not None:
                require_column(frame, named, field)
                found[field] = named
                continue
            present = [name for name in usual if name in frame.columns]
            if present:
                found[field] = present[0]
        if self.timestamp is not None and self.week is None:
            found.pop("week", None)
        field_of: dict[str, str] = {}
        for field, name in found.items():
            if name in field_of:
                raise LoggedDataError(f"{field}: the column {name!r} is the {field_of[name]} already")
            field_of[name] = field
        for name in self.features or ():
            if field_of.get(name) in AFTER_DECISION:
                raise LoggedDataError(
                    f"features: {name!r} is the {field_of[name]}, which was not known before the decision"
                )
        return found


def require_column(frame: pd.DataFrame, name: str, purpose: str) -> None:
    """Raise :class:`LoggedDataError` unless the table has a column of this name."""
    if name not in frame.columns:
        held = ", ".join(frame.columns)
        raise LoggedDataError(f"{purpose}: the table has no column {name!r}, only {held}")


def required(columns: dict[str, str], field: str, frame: pd.DataFrame) -> str:
    """Return the column of a field without which there is no log.

    Raises:
        LoggedDataError: the table has none.
    """
    if field not in columns:
        usual = " or ".join(repr(name) for name in STANDARD_COLUMNS[field])
        held = ", ".join(frame.columns)
        raise LoggedDataError(f"{field}: the table has no column {usual}; say which it is, of {held}")
    return columns[field]


def columns_with_prefix(frame: pd.DataFrame, prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the columns of the first prefix that any column has, by what follows the prefix."""
    for prefix in prefixes:
        found = {name.removeprefix(prefix): name for name in frame.columns if name.startswith(prefix)}
        if found:
            return found
    return {}
