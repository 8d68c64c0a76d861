from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import func, inspect, select, text

from agents.service import ledger
from agents.service.database import Database, DatabaseBusyError, DatabaseError, DatabaseFailedError
from agents.service.reconciliation import reconcile
from agents.service.tables import METADATA, budgets, schema_versions


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "not shared between workers"),
        ("sqlite:///:memory:", "not shared between workers"),
        ("mysql://user:secret@host/name", "'mysql' are not supported"),
        ("no url with a secret", "not of the form"),
        ("sqlite:////no/such/folder/x.db", "unable to open"),
        ("postgresql://user:secret@127.0.0.1:1/name", r"user:\*\*\*@127\.0\.0\.1"),
    ],
)
def test_what_cannot_be_opened_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        Database.open(url, timeout_seconds=1.0)
    assert "secret" not in str(caught.value)


def test_tables_of_another_version_are_refused(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.execute(schema_versions.update().values(version=99))
    with pytest.raises(DatabaseError, match="version 99"):
        Database.open(database_url)
    with database.write() as connection:
        connection.execute(schema_versions.update().values(version=1))
    Database.open(database_url).close()


def test_a_reader_sees_one_state_throughout(database: Database) -> None:
    with database.write() as connection:
        ledger.open_budget(connection, "a", 1)
    with database.read() as reading:
        assert reading.scalar(select(func.count()).select_from(budgets)) == 1
        with database.write() as connection:
            ledger.open_budget(connection, "b", 1)
        assert reading.scalar(select(func.count()).select_from(budgets)) == 1
    with database.read() as reading:
        assert reading.scalar(select(func.count()).select_from(budgets)) == 2


def test_a_lock_that_is_not_given_up_is_reported(database_url: str) -> None:
    database = Database.open(database_url, timeout_seconds=0.3)
    with database.write() as connection:
        ledger.open_budget(connection, "a", 1)
    held, finished = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write() as connection:
            ledger.read_balance(connection, "a", lock=True)
            held.set()
            finished.wait(20)

    def book() -> None:
        with database.write() as connection:
            ledger.expire(connection, "a", now=0)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    with pytest.raises(DatabaseBusyError):
        book()
    finished.set()
    thread.join()
    book()
    database.close()


def test_a_connection_that_breaks_is_reported_and_replaced(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("a file has no connection to lose")

    def lose() -> None:
        with database.write() as connection:
            ledger.open_budget(connection, "a", 1)
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(DatabaseBusyError):
        lose()
    with database.read() as connection:
        assert ledger.read_balances(connection) == []


KILLED = """
import os, signal, sys
from agents.service import ledger
from agents.service.database import Database
from agents.service.idempotency import claim
from agents.service.granting import Ask
database = Database.open(sys.argv[1])
with database.write() as connection:
    claim(connection, "r1", "reserve", "", now=1)
    ledger.reserve(connection, "a", "r1", [Ask("c1", "u", 5, 50, 100)], seed=b"", now=1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_nothing_half_done(database: Database, database_url: str) -> None:
    with database.write() as connection:
        ledger.open_budget(connection, "a", 100)
    done = subprocess.run([sys.executable, "-c", KILLED, database_url], check=False)
    assert done.returncode == -9
    with database.read() as connection:
        found = reconcile(connection, "a")
    assert found.exact
    assert (found.balance.spent, found.balance.reserved) == (0, 0)
    with database.write() as connection:
        ledger.expire(connection, "a", now=1)  # nor is anything locked


def test_sqlite_keeps_what_it_acknowledged(sqlite_database: Database, tmp_path: Path) -> None:
    with sqlite_database.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_two_who_open_a_budget_at_the_same_time_agree(database: Database) -> None:
    found: list[object] = []

    def open_too() -> None:
        try:
            with database.write() as connection:
                found.append(ledger.open_budget(connection, "a", 7))
        except Exception as error:  # shown by the assertion
            found.append(error)

    with database.write() as connection:
        ledger.open_budget(connection, "a", 7)
        thread = threading.Thread(target=open_too)
        thread.start()
        thread.join(0.3)  # it waits for this transaction
    thread.join(20)
    assert found == [ledger.Balance("a", 7, 0, 0)]


def test_a_full_disk_is_not_mistaken_for_a_lock(sqlite_database: Database) -> None:
    def fill() -> None:
        with sqlite_database.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no further page
            for k in range(1_000):
                ledger.open_budget(connection, f"{k:0100}", 1)

    with pytest.raises(DatabaseFailedError, match="SQLITE_FULL"):
        fill()


def test_missing_tables_are_not_mistaken_for_a_lock(sqlite_database: Database) -> None:
    def read() -> None:
        with sqlite_database.read() as connection:
            ledger.read_balances(connection)

    with sqlite_database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE budgets RENAME TO lost")
    with pytest.raises(DatabaseFailedError, match="SQLITE_ERROR"):
        read()


def test_a_lost_table_is_not_made_again(sqlite_database: Database) -> None:
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("DROP TABLE feedback")
    again = Database.open(str(sqlite_database.engine.url))
    with again.read() as connection:
        assert "feedback" not in inspect(connection).get_table_names()
    again.close()


def test_only_who_serves_makes_tables(database: Database, database_url: str) -> None:
    with database.write() as connection:
        METADATA.drop_all(connection)
    with pytest.raises(DatabaseError, match="no tables of this service"):
        Database.open(database_url, create=False)
    with database.read() as connection:
        assert inspect(connection).get_table_names() == []
