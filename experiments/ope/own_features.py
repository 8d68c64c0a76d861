"""What was known before each decision, from columns of a table of one's own."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from pandas.api.types import is_datetime64_any_dtype, is_numeric_dtype

from experiments.ope.log_checks import FloatArray, LoggedDataError
from experiments.ope.log_mapping import (
    FEATURE_PREFIXES,
    MASK_PREFIXES,
    PROBABILITY_PREFIXES,
    LogMapping,
    columns_with_prefix,
    require_column,
)
from experiments.ope.own_columns import natural_order, read_labels, read_numbers

MOST_VALUES: Final = 50
"""Distinct texts that a feature may have; one with more is an id or free text, which no model can use."""


def read_features(
    frame: pd.DataFrame, columns: dict[str, str], mapping: LogMapping
) -> tuple[FloatArray, tuple[str, ...], tuple[str, ...]]:
    """Read the features of each row.

    A numeric column is one feature. A column of text is one feature ``name=value`` for each of its values
    but the first: 1 where the row has the value, else 0.

    Args:
        frame: one row per decision.
        columns: of each field, see :meth:`LogMapping.find`.
        mapping: may list the features.

    Returns:
        [N, o] values, the o names, and notes on what was left out.

    Raises:
        LoggedDataError: a feature is not in the table, or a value is missing or not usable.
    """
    if mapping.features is None:
        chosen = list(columns_with_prefix(frame, FEATURE_PREFIXES).values())
    else:
        chosen = list(mapping.features)
        for name in chosen:
            require_column(frame, name, "features")
    values: list[FloatArray] = []
    names: list[str] = []
    for name in chosen:
        for label, column in _read_feature(frame, name).items():
            names.append(label)
            values.append(column)
    known = {*columns.values(), *chosen}
    prefixes = (*FEATURE_PREFIXES, *MASK_PREFIXES, *PROBABILITY_PREFIXES)
    unused = [name for name in frame.columns if name not in known and not name.startswith(prefixes)]
    notes = []
    if not chosen:
        notes.append(
            "no features: nothing is known of the users before a decision; name columns as feature_… or list "
            "them"
        )
    if unused:
        notes.append(f"columns not used: {', '.join(unused)}; list those known before the decision")
    matrix = np.stack(values, axis=1) if values else np.zeros((len(frame), 0))
    return matrix, tuple(names), tuple(notes)


def _read_feature(frame: pd.DataFrame, name: str) -> dict[str, FloatArray]:
    column = frame[name]
    if is_datetime64_any_dtype(column.dtype):
        raise LoggedDataError(f"{name}: a date is no feature; give the days or weeks since it")
    # Cells of a CSV file are all text; those of a number are read as one.
    if is_numeric_dtype(column.dtype) or pd.to_numeric(column, errors="coerce").notna().any():
        return {name: read_numbers(frame, name)}
    labels = read_labels(frame, name)
    found = natural_order(np.unique(labels).tolist())
    if len(found) > MOST_VALUES:
        raise LoggedDataError(
            f"{name}: {len(found)} different texts, for example {found[0]!r}; a feature may have "
            f"{MOST_VALUES}: it is an id or free text"
        )
    return {f"{name}={value}": (labels == value).astype(np.float64) for value in found[1:]}
