"""Decisions for files of users: streamed, in bounded memory, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet

from agents.serving import DecisionInputError, ObservationPolicy

DECIDE_BATCH = 16_384
PRICE_COLUMN = "log_dual_price"
NUMERIC = (
    pyarrow.types.is_floating,
    pyarrow.types.is_integer,
    pyarrow.types.is_boolean,
    pyarrow.types.is_decimal,
)


def decide_file(
    policy: Path,
    users: Path,
    out: Path,
    *,
    seed: int | None = None,
    dual_price: float | None = None,
    on_users: Callable[[int], None] = lambda _: None,
) -> int:
    """Decide for every user of a Parquet file of observation rows, in bounded memory.

    Args:
        policy: exported bundle.
        users: Parquet with ``user_id`` and the policy's observation columns. Where ``log_dual_price`` is
            absent, the bundle's own λ is used for all.
        out: ``.parquet`` or ``.jsonl``: user_id, offer, offer_name, propensity. Written whole or not at all.
        seed: of the draws; None draws differently each time.
        dual_price: λ for all users; goes before a column of the file.
        on_users: called with the number of users done, after each batch.

    Returns:
        Number of users decided for.

    Raises:
        BundleError: the bundle is not as exported.
        DecisionInputError: a column is missing or holds what is not a number.
    """
    if out.suffix not in (".parquet", ".jsonl"):
        raise DecisionInputError(f"{out}: write to a .parquet or .jsonl file")
    loaded = ObservationPolicy.load(policy)
    try:
        source = pyarrow.parquet.ParquetFile(users)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DecisionInputError(f"{users}: not a readable Parquet file: {error}") from error
    present = set(source.schema_arrow.names)
    price = _log_price(loaded, dual_price, PRICE_COLUMN in present)
    needed = [name for name in ("user_id", *loaded.columns) if name != PRICE_COLUMN or price is None]
    for name in present & set(needed) - {"user_id"}:
        kind = source.schema_arrow.field(name).type
        if not any(is_kind(kind) for is_kind in NUMERIC):
            raise DecisionInputError(f"{users}: column {name!r} does not hold numbers but {kind}")
    missing = [name for name in needed if name not in present]
    if missing:
        raise DecisionInputError(
            f"{users}: {len(missing)} columns are missing, for example {missing[0]!r}; "
            f"policy.json lists all under 'observation'"
        )
    rng = np.random.default_rng(seed)
    temporary = out.with_name(out.name + ".tmp")
    n = 0
    schema = pyarrow.schema(
        [
            ("user_id", source.schema_arrow.field("user_id").type),
            ("offer", pyarrow.int64()),
            ("offer_name", pyarrow.string()),
            ("propensity", pyarrow.float64()),
        ]
    )
    try:
        with DecisionWriter(temporary, schema, out.suffix) as writer:
            for batch in _batches(source, needed):
                observation = _observation(batch, loaded.columns, price)
                decided = loaded.decide(observation, rng=rng, first_row=n)
                writer.write(
                    pyarrow.table(
                        {
                            "user_id": batch.column("user_id"),
                            "offer": decided.offer,
                            "offer_name": [loaded.offers[k] for k in decided.offer],
                            "propensity": decided.propensity,
                        },
                        schema=schema,
                    )
                )
                n += len(observation)
                on_users(len(observation))
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, DecisionInputError):
            raise DecisionInputError(f"{users}: {error}") from error
        raise
    os.replace(temporary, out)
    return n


def _log_price(policy: ObservationPolicy, given: float | None, in_file: bool) -> float | None:
    """Return log λ for all users, or None where the file brings one for each."""
    if given is None and in_file:
        return None
    price = policy.settings.default_dual_price() if given is None else given
    if not price > 0:
        raise DecisionInputError(f"the dual price must be > 0, got {price}")
    return float(np.log(price))


def _batches(source: Any, columns: list[str]) -> Iterator[Any]:
    """Yield record batches; what cannot be read is the input's fault, not the disk's that is written to."""
    try:
        yield from source.iter_batches(batch_size=DECIDE_BATCH, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise DecisionInputError(f"not a readable Parquet file: {error}") from error


def _observation(batch: Any, columns: tuple[str, ...], log_price: float | None) -> npt.NDArray[np.float64]:
    """Lay a record batch out in the policy's column order, [n, o]."""
    rows = np.empty((batch.num_rows, len(columns)))
    for place, name in enumerate(columns):
        if name == PRICE_COLUMN and log_price is not None:
            rows[:, place] = log_price
            continue
        # A missing value becomes NaN, which the policy refuses by row and column.
        rows[:, place] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
    return rows


class DecisionWriter:
    """Parquet or JSON lines, whichever the suffix says.

    Args:
        path: where to.
        schema: of the rows.
        suffix: ``.parquet`` or ``.jsonl``.
    """

    def __init__(self, path: Path, schema: Any, suffix: str) -> None:
        self.path = path
        self.parquet = pyarrow.parquet.ParquetWriter(path, schema) if suffix == ".parquet" else None
        self.lines = None if self.parquet else path.open("w", encoding="utf-8")

    def __enter__(self) -> DecisionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.parquet:
            self.parquet.close()
        if self.lines:
            self.lines.close()

    def write(self, table: Any) -> None:
        """Write the rows of a table."""
        if self.parquet:
            self.parquet.write_table(table)
        if self.lines:
            for row in table.to_pylist():
                self.lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
