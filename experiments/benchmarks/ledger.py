"""The service's ledger under eight processes that are killed at random, on SQLite and on PostgreSQL.

The bar: never overspent, nothing lost, nothing doubled, and counters that are the sums of the rows to the
tick. Kills of processes do not test a loss of power, so the databases lie in memory (``/dev/shm``) where
there is such a folder; what a durable commit costs on this disk is measured apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.service import ledger
from agents.service.database import Database
from agents.service.granting import Ask
from agents.service.idempotency import claim, store_answer
from experiments.benchmarks import Row, describe_machine
from experiments.benchmarks.ledger_hammer import HammerFindings, HammerPlan, hammer
from experiments.benchmarks.scratch_postgres import find_postgres, scratch_postgres

WORKERS = 8
RESERVES = 10_000
KILLS = 40
BUDGET = 120_000
"""Ticks; charges and redemptions alone would come to some 200,000, so towards the end most are refused."""
DURABLE_RESERVES = 300

_MEMORY = Path("/dev/shm")


def run() -> list[Row]:
    """Hammer both databases; PostgreSQL where a server is installed."""
    plan = HammerPlan(WORKERS, RESERVES, KILLS, BUDGET)
    rows = []
    with _folder() as folder:
        rows += _rows("SQLite", hammer(f"sqlite:///{folder / 'ledger.db'}", folder, plan), plan)
    if find_postgres() is not None:
        with _folder() as folder, scratch_postgres(_MEMORY if _MEMORY.is_dir() else None) as url:
            rows += _rows("PostgreSQL", hammer(url, folder, plan), plan)
    with tempfile.TemporaryDirectory() as name:
        rows.append(_durable("SQLite", f"sqlite:///{name}/ledger.db"))
    if find_postgres() is not None:
        with scratch_postgres(durable=True) as url:
            rows.append(_durable("PostgreSQL", url))
    return rows


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        yield Path(name)


def _rows(database: str, found: HammerFindings, plan: HammerPlan) -> list[Row]:
    hardware = describe_machine()
    end, total = found.end, plan.workers * plan.reserves
    what = f"{database}, {plan.workers} processes × {plan.reserves:,} reserves"

    def none_of(measure: str, count: int, unit: str) -> Row:
        return Row.compare(
            f"{what}: {measure}", count, unit, bar=0.0, higher_is_better=False, hardware=hardware
        )

    return [
        Row.compare(
            f"{what}: answered ({end.granted:,} granted, {total - end.granted:,} refused)",
            total - end.lost,
            "reserves",
            bar=total,
            hardware=hardware,
        ),
        Row.compare(f"{what}: workers killed", found.kills, "kills", bar=plan.kills // 2, hardware=hardware),
        none_of(f"overspent or unequal, of {found.looks:,} looks", found.overspent, "looks"),
        none_of("lost", end.lost, "bookings"),
        none_of("doubled", end.doubled, "bookings"),
        none_of("answered differently when sent again", end.changed, "requests"),
        none_of("between counters and rows", end.unbalanced, "ticks"),
        Row.compare(f"{what}: rate", total / found.seconds, "reserves/s", hardware=hardware),
    ]


def _durable(database: str, url: str) -> Row:
    """Reserves one after the other, each on disk before the next."""
    opened = Database.open(url, timeout_seconds=60.0)
    with opened.write() as connection:
        ledger.open_budget(connection, "durable", 10**9)
    start = time.monotonic()
    for step in range(DURABLE_RESERVES):
        with opened.write() as connection:
            claim(connection, str(step), "reserve", "", now=step)
            asks = [Ask(str(step), "user", 1, 20, step + 10)]
            granted = ledger.reserve(connection, "durable", str(step), asks, seed=b"", now=step)
            store_answer(connection, str(step), granted)
    seconds = time.monotonic() - start
    opened.close()
    return Row.compare(
        f"{database}, one process, on this disk: mean duration of a reserve",
        1000 * seconds / DURABLE_RESERVES,
        "ms",
        hardware=describe_machine(),
    )
