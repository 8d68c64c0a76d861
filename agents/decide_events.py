"""Decisions for files of users with their raw events: streamed, in bounded memory, whole or not at all.

A row is a user, in the form in which the service takes one: ``user_id``, perhaps ``profile``, ``opted_in``
and ``since``, and lists of ``transactions``, ``offers`` and ``redemptions``; :mod:`agents.serving.json_input`
has the details. In Parquet the lists are columns of type ``list<struct>``, as DuckDB's ``list({...})`` and
Arrow make them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from agents.decide import DecisionWriter
from agents.serving import Context, CouponPolicy, DecisionInputError, Decisions, user_from_json
from agents.serving.json_input import USER_FIELDS

EVENTS_BATCH = 512
"""Users held in memory at a time."""

SCHEMA = pyarrow.schema(
    [
        ("user_id", pyarrow.string()),
        ("offer", pyarrow.int64()),
        ("offer_name", pyarrow.string()),
        ("category", pyarrow.string()),
        ("depth", pyarrow.float64()),
        ("channel", pyarrow.string()),
        ("message", pyarrow.string()),
        ("terms", pyarrow.string()),
        ("template", pyarrow.string()),
        ("propensity", pyarrow.float64()),
        ("reasons", pyarrow.list_(pyarrow.string())),
    ]
)


def decide_events(
    policy: Path,
    users: Path,
    out: Path,
    context: Context,
    *,
    seed: int | None = None,
    threads: int = 1,
    on_users: Callable[[int], None] = lambda _: None,
) -> int:
    """Decide for every user of a file of events.

    Args:
        policy: exported bundle.
        users: ``.parquet`` or ``.jsonl``, a row a user; see the module. Who stands in it twice is decided for
            twice, or refused where both rows are near each other.
        out: ``.parquet`` or ``.jsonl``, the columns of SCHEMA; reasons are their codes.
        context: week, price and budget.
        seed: of the draws; None draws differently each time.
        threads: CPU threads.
        on_users: called with the number of users done, after each batch.

    Returns:
        Number of users decided for.

    Raises:
        BundleError: the bundle is not as exported.
        DecisionInputError: the file cannot be read, or a row is no user; the row is named.
    """
    if out.suffix not in (".parquet", ".jsonl"):
        raise DecisionInputError(f"{out}: write to a .parquet or .jsonl file")
    loaded = CouponPolicy.load(policy, threads=threads)
    rng = np.random.default_rng(seed)
    temporary = out.with_name(out.name + ".tmp")
    done = 0
    try:
        with DecisionWriter(temporary, SCHEMA, out.suffix) as writer:
            rows = _rows(users)
            while batch := list(islice(rows, EVENTS_BATCH)):
                asked = [user_from_json(row, f"row {done + k}") for k, row in enumerate(batch)]
                writer.write(_table(loaded.decide(asked, context, rng=rng)))
                done += len(asked)
                on_users(len(asked))
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, DecisionInputError):
            raise DecisionInputError(f"{users}: {error}") from error
        raise
    os.replace(temporary, out)
    return done


def _table(decided: Decisions) -> Any:
    records = decided.records()
    for record in records:
        record["reasons"] = [reason["code"] for reason in record["reasons"]]
    return pyarrow.Table.from_pylist(records, schema=SCHEMA)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        yield from _json_rows(path)
        return
    try:
        source = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in source.schema_arrow.names if name in USER_FIELDS]
        unknown = sorted(set(source.schema_arrow.names) - set(USER_FIELDS))
        if unknown:
            raise DecisionInputError(f"unknown column {unknown[0]!r}; known are {', '.join(USER_FIELDS)}")
        for batch in source.iter_batches(batch_size=EVENTS_BATCH, columns=columns):
            for row in batch.to_pylist():
                # A column that is empty for a user says nothing of him.
                yield {name: value for name, value in row.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise DecisionInputError(f"not a readable Parquet file: {error}") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parsed(line, number)
    except (OSError, UnicodeDecodeError) as error:
        raise DecisionInputError(f"not readable as JSON lines: {error}") from error


def _parsed(line: str, number: int) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise DecisionInputError(f"line {number} is not JSON: {error}") from error
    return content
