"""The database behind the service: SQLite in a file, or PostgreSQL by URL.

SQLite runs in write-ahead mode with full synchronisation: what was acknowledged survives a loss of power, and
readers never wait. A writing transaction takes the write lock when it begins (``BEGIN IMMEDIATE``), so that
what it reads is what it changes. On PostgreSQL writers lock the campaign's row of ``budgets``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from agents.service.errors import ServiceError, UnavailableError
from agents.service.tables import METADATA, SCHEMA_VERSION, schema_versions

_READ_ONLY = "couponlab_read_only"


class DatabaseError(ServiceError):
    """The database cannot be used: its URL, its tables or its server are not as needed."""


class DatabaseFailedError(UnavailableError):
    """The database cannot do its work, and will not until somebody looks: a full disk, a lost table."""


class DatabaseBusyError(UnavailableError):
    """The database did not answer in time. A request sent again under its id is still done once."""


@dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
        engine: connections that write.
    """

    engine: Engine

    @classmethod
    def open(
        cls, url: str, *, timeout_seconds: float = 5.0, connections: int = 8, create: bool = True
    ) -> Self:
        """Connect, and create the tables where they are missing.

        Args:
            url: such as ``sqlite:///coupons.db`` or ``postgresql://user@host/name``.
            timeout_seconds: longest wait for a lock, a statement or a new connection.
            connections: most connections of this process.
            create: whether tables, and an SQLite file, are made where there are none.

        Raises:
            DatabaseError: the URL is of another kind, nothing answers there, or the tables are of another
                version.
        """
        parsed = _parse(url)
        shown = parsed.render_as_string(hide_password=True)
        if not create and parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
            raise DatabaseError(f"{shown}: no such file")
        engine = create_engine(
            parsed,
            connect_args=_connect_arguments(parsed, timeout_seconds),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=timeout_seconds,
            pool_pre_ping=parsed.get_backend_name() == "postgresql",
        )
        if parsed.get_backend_name() == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        database = cls(engine)
        try:
            database._require_tables(create=create)
        except DBAPIError as error:
            engine.dispose()
            raise DatabaseError(f"{shown}: {error.orig}") from error
        except DatabaseError as error:
            engine.dispose()
            raise DatabaseError(f"{shown}: {error}") from error
        return database

    def _require_tables(self, *, create: bool) -> None:
        with self.engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two workers that start together would both try; the lock ends with the transaction.
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7067)")
            # A table that was lost is not made again: empty, it would hide what happened.
            if not inspect(connection).has_table(schema_versions.name):
                if not create:
                    raise DatabaseError("there are no tables of this service")
                METADATA.create_all(connection)
                connection.execute(schema_versions.insert().values(version=SCHEMA_VERSION))
            versions = connection.scalars(select(schema_versions.c.version)).all()
            if list(versions) != [SCHEMA_VERSION]:
                found = ", ".join(map(str, versions))
                raise DatabaseError(f"its tables are of version {found}, this service's {SCHEMA_VERSION}")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block, or rolls back if it raises.

        Raises:
            DatabaseBusyError: a lock or connection was not to be had in time.
            DatabaseFailedError: the database itself is at fault.
        """
        with _named_errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one committed state throughout and changes nothing.

        Raises:
            DatabaseBusyError: a connection was not to be had in time.
            DatabaseFailedError: the database itself is at fault.
        """
        options: dict[str, Any] = {_READ_ONLY: True}
        if self.engine.dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        with _named_errors(), self.engine.execution_options(**options).begin() as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The text may hold a password, so it is not repeated.
        raise DatabaseError("the database URL is not of the form sqlite:///FILE or postgresql://…") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise DatabaseError(f"{url}: a database in memory is not shared between workers; name a file")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise DatabaseError(f"databases of kind {backend!r} are not supported; use sqlite or postgresql")
    return parsed


def _connect_arguments(url: URL, timeout_seconds: float) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": timeout_seconds}
    milliseconds = max(1, round(timeout_seconds * 1000))
    options = f"-c lock_timeout={milliseconds} -c statement_timeout={milliseconds}"
    return {"connect_timeout": max(1, round(timeout_seconds)), "options": options}


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")


_BUSY_SQLSTATES = frozenset({"55P03", "57014", "40001", "40P01", "53300"})
"""PostgreSQL: lock not available, cancelled by time-out, serialisation, deadlock, too many connections."""
_BUSY_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED")


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if isinstance(error, DataError | IntegrityError | ProgrammingError):
            raise  # what was asked is wrong, not the database
        state = getattr(error.orig, "sqlstate", None)
        name = getattr(error.orig, "sqlite_errorname", None) or state
        lost = error.connection_invalidated or name is None
        if lost or state in _BUSY_SQLSTATES or str(name).startswith(_BUSY_SQLITE):
            raise DatabaseBusyError("the database did not answer in time") from error
        raise DatabaseFailedError(f"the database cannot do its work: {name}") from error
    except PoolTimeoutError as error:
        raise DatabaseBusyError("all connections to the database are in use") from error
