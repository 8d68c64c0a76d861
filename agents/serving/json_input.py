"""Users and contexts from plain JSON values, or from rows of a table, where dates are dates.

What is not as it should be is refused by place and example.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agents.serving.context import CONTEXT_FIELDS, PROMOTION_FIELDS, Context, Promotion
from agents.serving.errors import DecisionInputError, shown
from agents.serving.events import MOST_EVENTS, Purchases, SentOffer, UserEvents, profile_text

USER_FIELDS = ("user_id", "profile", "opted_in", "since", "transactions", "offers", "redemptions")
TRANSACTION_FIELDS = (
    "timestamp",
    "basket_id",
    "item_id",
    "category",
    "spend",
    "coupon_discount",
    "quantity",
    "discount",
    "store_id",
)
OFFER_FIELDS = ("timestamp", "offer", "category", "template")
REDEMPTION_FIELDS = ("timestamp", "offer")


def user_from_json(content: Any, where: str = "user") -> UserEvents:
    """Return a user.

    Args:
        content: an object with the keys USER_FIELDS; only ``user_id`` is required. Transactions have the
            columns of the log schema, of which quantity, discount and store are not used; a line names its
            ``item_id``, or its ``category`` instead.
        where: what the user is called in messages.

    Raises:
        DecisionInputError: naming the place and what is wrong there.
    """
    user = _object(content, USER_FIELDS, where)
    if "user_id" not in user:
        raise DecisionInputError(f"{where} lacks user_id")
    lines = _rows(user, "transactions", TRANSACTION_FIELDS, where)
    sent = _rows(user, "offers", OFFER_FIELDS, where)
    redeemed = _rows(user, "redemptions", REDEMPTION_FIELDS, where)
    opted_in = user.get("opted_in", True)
    if not isinstance(opted_in, bool):
        raise DecisionInputError(f"{where}.opted_in must be true or false, not {shown(opted_in)}")
    try:
        return UserEvents(
            user_id=_id(user["user_id"], f"{where}.user_id"),
            profile=_profile(user.get("profile"), f"{where}.profile"),
            opted_in=opted_in,
            since=None if user.get("since") is None else _day(user["since"], f"{where}.since"),
            purchases=_purchases(lines, f"{where}.transactions"),
            sent=tuple(_sent(row, f"{where}.offers[{k}]") for k, row in enumerate(sent)),
            redeemed=tuple(
                _day(_needed(row, "timestamp", place), f"{place}.timestamp")
                for k, row in enumerate(redeemed)
                for place in [f"{where}.redemptions[{k}]"]
            ),
        )
    except DecisionInputError as error:
        text = str(error)
        raise DecisionInputError(text if text.startswith(where) else f"{where}: {text}") from error


def context_from_json(content: Any, where: str = "context") -> Context:
    """Return a context from an object with the fields of :class:`Context`; dates are ISO dates.

    Raises:
        DecisionInputError: naming the place and what is wrong there.
    """
    given = _object(content, CONTEXT_FIELDS, where)
    values: dict[str, Any] = {}
    for name, value in given.items():
        place = f"{where}.{name}"
        if value is None:
            continue
        if name == "date":
            values[name] = _day(value, place)
        elif name in ("week", "weeks_left"):
            values[name] = _whole(value, place)
        elif name == "query":
            values[name] = _text(value, place)
        elif name == "promotion":
            values[name] = _promotion(value, place)
        else:
            values[name] = _number(value, place)
    return Context(**values)


def _promotion(content: Any, where: str) -> Promotion:
    given = _object(content, PROMOTION_FIELDS, where)
    values: dict[str, Any] = {}
    for name, value in given.items():
        place = f"{where}.{name}"
        if value is None:
            continue
        if name == "visit_trend":
            values[name] = _number(value, place)
            continue
        if not isinstance(value, Mapping):
            raise DecisionInputError(
                f"{place} must be an object of category names and numbers, not {shown(value)}"
            )
        values[name] = {
            str(category): _number(one, f"{place}[{category!r}]") for category, one in value.items()
        }
    return Promotion(**values)


def _purchases(lines: Sequence[Mapping[str, Any]], where: str) -> Purchases:
    def column(name: str, read: Callable[[Any, str], Any], otherwise: Any = None) -> list[Any]:
        out = []
        for k, line in enumerate(lines):
            place = f"{where}[{k}]"
            value = _needed(line, name, place) if otherwise is None else line.get(name)
            out.append(otherwise if value is None else read(value, f"{place}.{name}"))
        return out

    if not lines:
        return Purchases()
    items, categories = column("item_id", _id, ""), column("category", _text, "")
    for k, (item, category) in enumerate(zip(items, categories, strict=True)):
        if not item and not category:
            raise DecisionInputError(f"{where}[{k}] needs an item_id, or a category")
    return Purchases(
        day=np.array(column("timestamp", _day), dtype="datetime64[D]"),
        basket_id=np.array(column("basket_id", _id)),
        item_id=np.array(items),
        category=np.array(categories),
        spend=np.array(column("spend", _amount), dtype=np.float64),
        coupon_discount=np.array(column("coupon_discount", _amount, 0.0), dtype=np.float64),
    )


def _sent(row: Mapping[str, Any], where: str) -> SentOffer:
    category, template = row.get("category"), row.get("template")
    return SentOffer(
        day=_day(_needed(row, "timestamp", where), f"{where}.timestamp"),
        offer=_text(_needed(row, "offer", where), f"{where}.offer"),
        category=None if category is None else _text(category, f"{where}.category"),
        template=None if template is None else _text(template, f"{where}.template"),
    )


def _profile(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        for name, one in value.items():
            if one is not None and not isinstance(one, str | int | float):
                raise DecisionInputError(f"{where}.{name} must be a text or a number, not {shown(one)}")
        return profile_text(dict(value))
    return _text(value, where)


def _object(content: Any, known: Sequence[str], where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise DecisionInputError(f"{where} must be an object, not {shown(content)}")
    unknown = sorted(str(name) for name in set(content) - set(known))
    if unknown:
        raise DecisionInputError(f"{where} has an unknown key {unknown[0]!r}; known are {', '.join(known)}")
    return content


def _rows(user: Mapping[str, Any], name: str, known: Sequence[str], where: str) -> list[Mapping[str, Any]]:
    rows = user.get(name)
    if rows is None:
        return []
    if not isinstance(rows, list | tuple):
        raise DecisionInputError(f"{where}.{name} must be a list, not {shown(rows)}")
    if len(rows) > MOST_EVENTS:
        raise DecisionInputError(f"{where}.{name} has {len(rows)} rows; at most {MOST_EVENTS} are read")
    return [_object(row, known, f"{where}.{name}[{k}]") for k, row in enumerate(rows)]


def _needed(row: Mapping[str, Any], name: str, where: str) -> Any:
    if row.get(name) is None:
        raise DecisionInputError(f"{where} lacks {name}")
    return row[name]


def _id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DecisionInputError(f"{where} must be a text or a whole number, not {shown(value)}")
    return str(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DecisionInputError(f"{where} must be a text, not {shown(value)}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DecisionInputError(f"{where} must be a number, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DecisionInputError(f"{where} must be a finite number, not {shown(value)}")
    return number


def _amount(value: Any, where: str) -> float:
    number = _number(value, where)
    if number < 0:
        raise DecisionInputError(f"{where} must be at least 0, not {shown(value)}")
    return number


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DecisionInputError(f"{where} must be a whole number, not {shown(value)}")
    return value


def _day(value: Any, where: str) -> datetime.date:
    """A day from an ISO date or timestamp; times are local, as the log's are."""
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.datetime.fromisoformat(_text(value, where)).date()
    except ValueError as error:
        if isinstance(error, DecisionInputError):
            raise
        raise DecisionInputError(f"{where} must be an ISO date or timestamp, not {shown(value)}") from error
