"""Typed columns out of a table of one's own: ids, numbers, flags, weeks, lists of offers.

Nothing is guessed: what is missing, mixed or not what it should be is refused with column, row (counted
from 0) and an example. Values of columns that identify people are never shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_complex_dtype, is_integer_dtype, is_numeric_dtype

from experiments.ope.log_checks import BoolArray, FloatArray, IntArray, refuse

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")
"""How a date must begin as text: 03/04/2024 is a day of March to some and of April to others."""
_MOST_WEEKS = 2.0**53
"""Whole numbers up to here are exact as float64."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
"""Truth values by their text; True itself reads as 1."""


def read_labels(frame: pd.DataFrame, name: str, *, personal: bool = False) -> npt.NDArray[np.str_]:
    """Return [N] ids or names as text; 3 and 3.0 are "3", so that CSV and Parquet of one log agree.

    Args:
        frame: the table.
        name: of the column.
        personal: its values must not be shown.

    Raises:
        LoggedDataError: a value is missing, a number that is not whole, or of another type than the first.
    """
    column = frame[name]
    if is_integer_dtype(column.dtype) and not column.hasnans:
        return column.to_numpy(dtype=np.int64).astype(np.str_)
    values = _present(frame, name, personal=personal)
    text = _are(values, str)
    other = "is a number, the first is text" if text[0] else "is text, the first is a number"
    refuse(name, text != text[0], values, other, personal=personal)
    if text[0]:
        return values.astype(np.str_)
    refuse(name, ~_are_whole(values), values, "is no id: it is not whole", personal=personal)
    return np.array([str(int(value)) for value in values], dtype=np.str_)


def number_labels(labels: npt.NDArray[np.str_]) -> tuple[IntArray, tuple[str, ...]]:
    """Return [N] indices into the distinct labels, and these in natural order."""
    found, inverse = np.unique(labels, return_inverse=True)
    names = natural_order(found.tolist())
    place = {name: index for index, name in enumerate(names)}
    to_place = np.array([place[name] for name in found.tolist()], dtype=np.int64)
    return to_place[inverse], names


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names by number where all are whole numbers, else by letter."""
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def read_numbers(frame: pd.DataFrame, name: str) -> FloatArray:
    """Return [N] finite numbers; text of a CSV file is read as numbers, truth values as 0 and 1.

    Raises:
        LoggedDataError: a value is missing, infinite, no number, or text among numbers.
    """
    column = frame[name]
    if is_numeric_dtype(column.dtype) and not is_complex_dtype(column.dtype):
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        refuse(name, np.isnan(numbers), numbers, "is missing")
    else:
        values = _present(frame, name)
        text = _are(values, str)
        if not text.all():
            refuse(name, ~text & ~_are(values, (Real, Decimal, np.bool_)), values, "is not a number")
            refuse(name, text, values, "is text among numbers")
        numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(dtype=np.float64)
        refuse(name, np.isnan(numbers), values, "is not a number")
    refuse(name, np.isinf(numbers), numbers, "must be finite")
    return numbers


def read_flags(frame: pd.DataFrame, name: str) -> BoolArray:
    """Return [N] truth values from true/false or 1/0, as such or as text.

    Raises:
        LoggedDataError: a value is missing or something else.
    """
    values = _present(frame, name)
    found = [_FLAGS.get(_flag_text(value)) for value in values]
    wrong = np.array([value is None for value in found], dtype=np.bool_)
    refuse(name, wrong, values, "is neither true/false nor 1/0")
    return np.array(found, dtype=np.bool_)


def read_weeks(frame: pd.DataFrame, name: str) -> IntArray:
    """Return [N] whole week numbers.

    Raises:
        LoggedDataError: a value is missing or not whole.
    """
    numbers = read_numbers(frame, name)
    whole = (numbers == np.floor(numbers)) & (np.abs(numbers) <= _MOST_WEEKS)
    refuse(name, ~whole, numbers, "is not a whole week number")
    return numbers.astype(np.int64)


def weeks_of_timestamps(frame: pd.DataFrame, name: str) -> IntArray:
    """Return [N] weeks from 1; week 1 starts on the Monday on or before the earliest time. Local times.

    Raises:
        LoggedDataError: a value is missing or no date.
    """
    values = _present(frame, name)
    days = np.array([_day(value) for value in values], dtype="datetime64[D]")
    refuse(name, np.isnat(days), values, "is not a date or time such as 2024-05-31 or 2024-05-31T18:00")
    # Day 0 of NumPy's calendar, 1 January 1970, is a Thursday.
    monday = (days.astype(np.int64) + 3) // 7
    return np.asarray(monday - monday.min() + 1, dtype=np.int64)


def read_offer_lists(frame: pd.DataFrame, name: str) -> list[frozenset[str]]:
    """Return for each of N rows the offers that were allowed: from lists, or text such as ``a|b|c``.

    Raises:
        LoggedDataError: a value is missing or neither list nor text.
    """
    column = list(frame[name])
    wrong = np.array([not isinstance(v, str | list | tuple | set | np.ndarray) for v in column], np.bool_)
    values = np.empty(len(column), dtype=np.object_)
    values[:] = column
    refuse(name, wrong, values, "is neither a list of offers nor text such as 'a|b'")
    lists = [value.split("|") if isinstance(value, str) else list(value) for value in column]
    return [frozenset(_offer_text(offer) for offer in offers) for offers in lists]


def _present(frame: pd.DataFrame, name: str, *, personal: bool = False) -> npt.NDArray[np.object_]:
    """[N] values as Python sees them, none missing."""
    column = frame[name]
    values = column.to_numpy(dtype=np.object_)
    missing = column.isna().to_numpy(dtype=np.bool_)
    refuse(name, missing, values, "is missing", personal=personal)
    return values


def _are(values: npt.NDArray[np.object_], kind: type | tuple[type, ...]) -> BoolArray:
    return np.array([isinstance(value, kind) for value in values], dtype=np.bool_)


def _are_whole(values: npt.NDArray[np.object_]) -> BoolArray:
    return np.array([_is_whole(value) for value in values], dtype=np.bool_)


def _is_whole(value: Any) -> bool:
    """Whether a number, if it is one, has no fraction; whole numbers stay exact whatever their size."""
    is_float = isinstance(value, float | np.floating)
    return isinstance(value, int | np.integer) or (is_float and bool(np.floor(value) == value != np.inf))


def _flag_text(value: Any) -> str:
    return str(int(value)) if _is_whole(value) else str(value).strip().lower()


def _day(value: Any) -> np.datetime64:
    """The local calendar day of a time; a number is no time, for nobody can tell its unit."""
    nothing = np.datetime64("NaT", "D")
    if isinstance(value, int | float | np.number):
        return nothing
    if isinstance(value, str) and not _DATE.fullmatch(value.strip()):
        return nothing
    try:
        stamp = pd.Timestamp(value)
    except (TypeError, ValueError):
        return nothing
    return nothing if pd.isna(stamp) else np.datetime64(stamp.date(), "D")


def _offer_text(offer: Any) -> str:
    return str(int(offer)) if _is_whole(offer) else str(offer).strip()
