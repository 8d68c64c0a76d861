"""Checks a raw table against the schema and gives the SQL that reads it typed.

The raw tables stand in the connection as ``raw_<table>`` views. Each check is one aggregate over the
table; only when one fails is the table read again for the example. Nothing is written outside memory.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from itertools import pairwise

import duckdb

from encoders.weeks import MINIMUM_WEEKS
from envs.log_schema import NUMBER_KINDS, PERSONAL, REFERENCES, SCHEMA, Column, Kind, LogError, Table, quoted

_INTEGERS = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}
    | {"UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
_FLOATS = frozenset({"FLOAT", "DOUBLE", "DECIMAL"})
_TIMESTAMPS = frozenset(
    {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE", "DATE"}
)
_TEXT = frozenset({"VARCHAR"})

# A float id is refused rather than cast: pandas turns an integer column with one gap into floats, and
# "12.0" would then silently match nothing.
_ACCEPTED = {
    Kind.ID: _INTEGERS | _TEXT | {"UUID"},
    Kind.TEXT: _INTEGERS | _FLOATS | _TIMESTAMPS | _TEXT | {"BOOLEAN"},
    Kind.TIMESTAMP: _TIMESTAMPS | _TEXT,
    Kind.FLAG: _INTEGERS | _FLOATS | _TEXT | {"BOOLEAN"},
    **dict.fromkeys(NUMBER_KINDS, _INTEGERS | _FLOATS | _TEXT),
}


@dataclass(frozen=True)
class _Check:
    """Rows for which ``predicate`` (SQL over the raw columns) holds are ``problem``."""

    column: str
    predicate: str
    problem: str


def raw(table: str) -> str:
    """Return the name under which the unchecked ``table`` stands in the connection."""
    return f"raw_{table}"


def columns_of(connection: duckdb.DuckDBPyConnection, view: str) -> dict[str, str]:
    """Return the columns of ``view`` and their SQL types, in order, without type parameters."""
    described = connection.execute(f"DESCRIBE {quoted(view)}").fetchall()
    return {str(row[0]): str(row[1]).split("(")[0] for row in described}


def typed_select(connection: duckdb.DuckDBPyConnection, table: Table, id_type: str) -> str:
    """Return the SELECT that reads the raw table with the schema's types; check the table first.

    Args:
        connection: holds ``raw_<table>``.
        table: the table's schema.
        id_type: SQL type of all ids, one for all tables of a log.

    Raises:
        LogError: a column is missing or of a wrong type, a value is out of range, or a key repeats.
    """
    present = columns_of(connection, raw(table.name))
    _check_columns(connection, table, present)
    _check_values(connection, table, present)
    select = select_typed(table, present, id_type)
    _check_key(connection, table, f"({select})", present)
    return select


def select_typed(table: Table, present: dict[str, str], id_type: str) -> str:
    """Return the SELECT of :func:`typed_select` without checking anything."""
    sql_types = {Kind.ID: id_type, Kind.TEXT: "VARCHAR", Kind.TIMESTAMP: "TIMESTAMP", Kind.WEEK: "INTEGER"}
    sql_types |= {Kind.FLAG: "BOOLEAN"}
    parts = []
    for column in table.columns:
        if column.name in present:
            value = _value(column, present[column.name], id_type)
        else:
            value = f"CAST(NULL AS {sql_types.get(column.kind, 'DOUBLE')})"
        parts.append(f"{value} AS {quoted(column.name)}")
    if table.keeps_extra:
        known = {column.name for column in table.columns}
        parts += [
            f"NULLIF(trim(CAST({quoted(name)} AS VARCHAR)), '') AS {quoted(name)}"
            for name in present
            if name not in known
        ]
    return f"SELECT {', '.join(parts)} FROM {raw(table.name)}"


def _value(column: Column, raw_type: str, id_type: str = "VARCHAR") -> str:
    """Return SQL for the typed value of a column, NULL where it cannot be read as its kind."""
    name = quoted(column.name)
    text = f"NULLIF(trim({name}), '')" if raw_type == "VARCHAR" else name
    if column.kind is Kind.ID:
        return text if raw_type == id_type == "BIGINT" else f"CAST({text} AS {id_type})"
    if column.kind is Kind.TEXT:
        return text if raw_type == "VARCHAR" else f"CAST({name} AS VARCHAR)"
    if column.kind is Kind.TIMESTAMP:
        # A time with a zone is read in UTC: adapters that know the shop's zone convert before this.
        return f"{name} AT TIME ZONE 'UTC'" if raw_type.endswith("ZONE") else f"TRY_CAST({text} AS TIMESTAMP)"
    if column.kind is Kind.FLAG:
        if raw_type == "BOOLEAN":
            return name
        number = f"TRY_CAST({text} AS DOUBLE)"
        word = f"TRY_CAST({text} AS BOOLEAN)" if raw_type == "VARCHAR" else "NULL"
        return f"CASE WHEN {number} = 0 THEN false WHEN {number} = 1 THEN true ELSE {word} END"
    if column.kind is Kind.WEEK:
        if raw_type in ("INTEGER", "BIGINT"):
            # As it is, so that a filter on weeks reaches the file: large promotion tables depend on it.
            return name
        number = f"TRY_CAST({text} AS DOUBLE)"
        return f"CASE WHEN {number} = floor({number}) THEN TRY_CAST({number} AS INTEGER) END"
    return f"TRY_CAST({text} AS DOUBLE)"


def _check_columns(connection: duckdb.DuckDBPyConnection, table: Table, present: dict[str, str]) -> None:
    for column in table.columns:
        if column.name not in present:
            if column.optional:
                continue
            found = ", ".join(present) or "none"
            raise LogError(table.name, f"the column is missing; the file has: {found}", column=column.name)
        if present[column.name] not in _ACCEPTED[column.kind]:
            view, name = raw(table.name), quoted(column.name)
            rows = int(connection.execute(f"SELECT count(*) FROM {view}").fetchall()[0][0])
            found_rows = connection.execute(
                f"SELECT CAST({name} AS VARCHAR) FROM {view} WHERE {name} IS NOT NULL LIMIT 1"
            ).fetchall()
            example = "a NULL" if not found_rows else _shown(column.name, str(found_rows[0][0]))
            problem = f"of type {present[column.name]} where {column.kind.value} is needed"
            raise LogError(table.name, problem, column=column.name, rows=rows, example=example)


def _checks(table: Table, present: dict[str, str]) -> list[_Check]:
    checks = []
    for column in table.columns:
        if column.name not in present:
            continue
        name, value = quoted(column.name), _value(column, present[column.name])
        given = f"NULLIF(trim({name}), '')" if present[column.name] == "VARCHAR" else name
        if column.kind not in {Kind.ID, Kind.TEXT}:
            problem = f"not {column.kind.value}"
            checks.append(_Check(column.name, f"{given} IS NOT NULL AND ({value}) IS NULL", problem))
        if not column.optional:
            checks.append(_Check(column.name, f"{given} IS NULL", "missing (NULL or empty)"))
        if column.kind in NUMBER_KINDS | {Kind.TIMESTAMP}:
            # isfinite is NULL for NULL, and so never true where the value is only missing.
            finite = value if column.kind is not Kind.WEEK else f"CAST({value} AS DOUBLE)"
            checks.append(_Check(column.name, f"NOT isfinite({finite})", "not finite (NaN or infinite)"))
        if column.kind is Kind.MONEY:
            checks.append(_Check(column.name, f"{value} < 0", "negative"))
        if column.kind is Kind.QUANTITY:
            checks.append(_Check(column.name, f"{value} < 0", "negative"))
            checks.append(_Check(column.name, f"{value} = 0", "zero, which is no purchase"))
        if column.kind is Kind.PROBABILITY:
            checks.append(_Check(column.name, f"{value} <= 0 OR {value} > 1", "not in (0, 1]"))
        if column.kind is Kind.WEEK:
            checks.append(_Check(column.name, f"{value} < 1", "before week 1"))
    if {"start", "end"} <= present.keys():
        start, end = (
            _value(column, present[column.name])
            for column in table.columns
            if column.name in ("start", "end")
        )
        checks.append(_Check("end", f"{end} < {start}", "before the campaign's start"))
    return checks


def _check_values(connection: duckdb.DuckDBPyConnection, table: Table, present: dict[str, str]) -> None:
    checks = _checks(table, present)
    counted = ", ".join(f"count(*) FILTER (WHERE {check.predicate})" for check in checks)
    rows, *failed = connection.execute(f"SELECT count(*), {counted} FROM {raw(table.name)}").fetchall()[0]
    if rows == 0 and not table.optional:
        raise LogError(table.name, "the table has no rows")
    for check, count in zip(checks, failed, strict=True):
        if count:
            found = connection.execute(
                f"SELECT row_number, CAST({quoted(check.column)} AS VARCHAR) FROM"
                f" (SELECT row_number() OVER () AS row_number, * FROM {raw(table.name)})"
                f" WHERE {check.predicate} ORDER BY row_number LIMIT 1"
            ).fetchall()[0]
            value = "NULL" if found[1] is None else str(found[1]) or "''"
            example = _shown(check.column, value, found[0])
            raise LogError(table.name, check.problem, column=check.column, rows=int(count), example=example)


def _shown(column: str, value: str, row: int | None = None) -> str:
    if column in PERSONAL:
        return f"row {row}" if row is not None else "a value not shown here because it is personal"
    return value if row is None else f"{value} (row {row})"


def _check_key(
    connection: duckdb.DuckDBPyConnection, table: Table, source: str, present: dict[str, str]
) -> None:
    key = [name for name in table.key if name in present]
    columns = ", ".join(quoted(name) for name in key)
    groups = f"SELECT count(*) AS copies FROM {source} GROUP BY {columns} HAVING copies > 1"
    surplus = connection.execute(f"SELECT coalesce(sum(copies - 1), 0) FROM ({groups})").fetchall()[0][0]
    if not surplus:
        return
    shown = [name for name in key if name not in PERSONAL]
    values = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in shown)
    found = connection.execute(
        f"SELECT row_number{', ' + values if values else ''} FROM (SELECT row_number() OVER () AS row_number,"
        f" row_number() OVER (PARTITION BY {columns}) AS copy, * FROM {source})"
        " WHERE copy > 1 ORDER BY row_number LIMIT 1"
    ).fetchall()[0]
    example = ", ".join(f"{name} {value}" for name, value in zip(shown, found[1:], strict=True))
    place = f"row {found[0]}"
    raise LogError(
        table.name,
        "repetitions of a key that must be unique",
        column=" + ".join(key),
        rows=int(surplus),
        example=f"{example} ({place})" if example else place,
    )


def check_references(connection: duckdb.DuckDBPyConnection, tables: frozenset[str]) -> None:
    """Check that ids name something: items, campaigns and offers; and that a basket has one user.

    Args:
        connection: holds one typed view per name in ``tables``.
        tables: the log's tables.

    Raises:
        LogError: an id is unknown, or a basket belongs to two users.
    """
    for reference in REFERENCES:
        if not {reference.table, reference.target} <= tables:
            continue
        unknown = (
            f"(SELECT row_number() OVER () AS row_number, {reference.column} AS id FROM {reference.table})"
        )
        known = f"(SELECT DISTINCT {reference.column} AS id FROM {reference.target})"
        rows, row, example = connection.execute(
            f"SELECT count(*), min(row_number), CAST(arg_min(id, row_number) AS VARCHAR)"
            f" FROM {unknown} ANTI JOIN {known} USING (id)"
        ).fetchall()[0]
        if rows:
            problem = f"unknown: no such {reference.column} in {reference.target}"
            where = f"{example} (row {row})"
            raise LogError(reference.table, problem, column=reference.column, rows=int(rows), example=where)
    rows, example = connection.execute(
        "SELECT coalesce(sum(n), 0), CAST(min(basket_id) AS VARCHAR) FROM (SELECT basket_id, count(*) AS n"
        " FROM transactions GROUP BY basket_id HAVING min(user_id) <> max(user_id))"
    ).fetchall()[0]
    if rows:
        problem = "in baskets of more than one user"
        raise LogError(
            "transactions", problem, column="basket_id", rows=int(rows), example=f"basket {example}"
        )


def check_weeks(connection: duckdb.DuckDBPyConnection, transactions: str) -> tuple[datetime.date, int]:
    """Return the Monday on which week 1 starts and the number of weeks, both from the transactions.

    Args:
        connection: holds the transactions.
        transactions: name of their typed view.

    Raises:
        LogError: the log is too short, or a week inside its range has no transaction.
    """
    days = f"(SELECT DISTINCT CAST(date_trunc('week', \"timestamp\") AS DATE) AS monday FROM {transactions})"
    mondays = [row[0] for row in connection.execute(f"SELECT monday FROM {days} ORDER BY 1").fetchall()]
    monday, last, covered = mondays[0], mondays[-1], len(mondays)
    n_weeks = (last - monday).days // 7 + 1
    if covered < n_weeks:
        gap = next(day for day, after in pairwise(mondays) if (after - day).days > 7)
        week = (gap - monday).days // 7 + 2
        start = gap + datetime.timedelta(days=7)
        raise LogError(
            "transactions",
            f"without any transaction, of {n_weeks} in the log",
            column="timestamp",
            rows=n_weeks - covered,
            example=f"week {week}, which starts on {start}",
            unit="week",
        )
    if n_weeks < MINIMUM_WEEKS:
        problem = f"the log is too short: {n_weeks} weeks, at least {MINIMUM_WEEKS} are needed"
        raise LogError("transactions", problem, column="timestamp", example=f"it starts on {monday}")
    return monday, n_weeks


def check_present(tables: frozenset[str]) -> None:
    """Check that every required table is there.

    Raises:
        LogError: one is missing.
    """
    for table in SCHEMA.values():
        if not table.optional and table.name not in tables:
            problem = f"the table is missing; expected {table.name}.parquet or {table.name}.csv"
            raise LogError(table.name, problem)
