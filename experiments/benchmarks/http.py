"""The service over HTTP: two workers under a sustained load, from raw events to a booked decision.

Each request brings a user with 150 receipt lines, whom the policy has never seen: the text encoder runs each
time, and each decision is committed to the ledger on disk. The load generator shares the machine.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from agents.service.database import Database
from agents.service.reconciliation import Reconciliation, reconcile
from agents.service.settings import (
    API_KEYS_VARIABLE,
    PSEUDONYM_KEY_VARIABLE,
    SETTINGS_VARIABLE,
    ServiceSettings,
)
from agents.serving import CouponPolicy
from experiments.benchmarks import Request, Row, describe_machine
from experiments.benchmarks.http_load import CAMPAIGN, LoadPlan, send_load
from experiments.stage import StageError

WORKERS = 2
CONNECTIONS = 4
SECONDS = 60.0
WARM_UP_SECONDS = 5.0
WEEK = 47
"""Of the log, for which is decided."""
BUDGET = 10_000.0
START_SECONDS = 60.0

_SERVE = """
import sys
from agents.service.server import Address, serve
from agents.service.settings import ServiceSettings
port, workers, campaign, budget = sys.argv[1:]
address = Address("127.0.0.1", int(port), int(workers))
serve(ServiceSettings.from_environment(), address, {campaign: float(budget)})
"""


def run(request: Request) -> list[Row]:
    """Serve a run's exported policy and load it for a minute.

    Raises:
        StageError: the run has no exported policy, or the service does not start.
    """
    folder = request.run / "export"
    if not folder.is_dir():
        raise StageError(f"{folder}: no exported policy; run 'couponlab export' first")
    with tempfile.TemporaryDirectory() as name:
        database = f"sqlite:///{name}/coupons.db"
        return _measure(folder, database, Path(name))


def _measure(policy: Path, database: str, folder: Path, seconds: float = SECONDS) -> list[Row]:
    api_key = secrets.token_hex(16)
    settings = ServiceSettings(policy, database, requests_per_second=1e5, burst=100_000)
    with serving(settings, api_key, folder / "service.log") as port:
        plan = _plan(policy, port, api_key)
        _load(replace(plan, seconds=WARM_UP_SECONDS, users="warm-up"), folder / "warm-up.json")
        found = _load(replace(plan, seconds=seconds), folder / "load.json")
    opened = Database.open(database)
    with opened.read() as connection:
        books = reconcile(connection, CAMPAIGN)
    opened.close()
    return _rows(found, books)


def _plan(policy: Path, port: int, api_key: str) -> LoadPlan:
    loaded = CouponPolicy.load(policy)
    return LoadPlan(
        port=port,
        api_key=api_key,
        connections=CONNECTIONS,
        seconds=SECONDS,
        first_day=loaded.settings.first_day + timedelta(weeks=WEEK - 1),
        weeks_left=loaded.settings.horizon_weeks,
        categories=loaded.categories,
    )


@contextmanager
def serving(settings: ServiceSettings, api_key: str, log: Path) -> Iterator[int]:
    """Run the service with its workers in processes of their own, and yield its port.

    Raises:
        StageError: it does not start; the message ends with what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = os.environ | {
        SETTINGS_VARIABLE: settings.to_json(),
        API_KEYS_VARIABLE: api_key,
        PSEUDONYM_KEY_VARIABLE: secrets.token_hex(16),
    }
    command = [sys.executable, "-c", _SERVE, str(port), str(WORKERS), CAMPAIGN, str(BUDGET)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        if not _answers(process, port):
            raise StageError(f"the service did not start: {log.read_text(errors='replace')[-2000:].strip()}")
        yield port
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait for the first answer; False if there will be none."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def _load(plan: LoadPlan, results: Path) -> dict[str, Any]:
    process = get_context("spawn").Process(target=send_load, args=(plan, results))
    process.start()
    process.join()
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


def _rows(found: dict[str, Any], books: Reconciliation) -> list[Row]:
    hardware = describe_machine()
    what = f"HTTP, {WORKERS} workers, {CONNECTIONS} connections, {found['seconds']:.0f} s"
    durations = {path: np.array(values) for path, values in found["durations"].items() if values}
    answered = sum(len(values) for values in durations.values())

    def row(measure: str, value: float, unit: str, bar: float | None = None) -> Row:
        return Row.compare(
            f"{what}: {measure}", value, unit, bar=bar, higher_is_better=False, hardware=hardware
        )

    first = found["errors"][:1]
    rows = [
        row(
            f"errors of {answered:,} requests{f', such as {first[0]}' if first else ''}",
            len(found["errors"]),
            "errors",
            0.0,
        ),
        row("ledger differs from its rows", float(not books.exact), "0 or 1", 0.0),
        row("decided from raw events", found["decisions"] / found["seconds"], "decisions/s"),
        row("all requests", answered / found["seconds"], "requests/s"),
    ]
    for path, values in durations.items():
        rows += [
            row(
                f"{path}, {'median' if rank == 50 else f'{rank}th percentile'}",
                1000 * np.percentile(values, rank),
                "ms",
            )
            for rank in (50, 99)
        ]
    return rows
