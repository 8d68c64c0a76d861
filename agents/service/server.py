"""The service's processes: checks before the start, then one or more uvicorn workers.

Workers are started anew, so each reads settings and secrets from its environment. The parent opens the
database and the budgets first: what is wrong is said once, before anything listens.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from agents.service import ledger
from agents.service.app import create_app
from agents.service.bodies import ID_FORM
from agents.service.bundle_policy import BundlePolicy
from agents.service.database import Database
from agents.service.desk import CouponDesk
from agents.service.errors import LedgerError
from agents.service.gate import GateRules
from agents.service.json_log import log, write_to_stderr
from agents.service.limits import ApiKeys
from agents.service.metrics import FOLDER_VARIABLE, Metrics
from agents.service.settings import SETTINGS_VARIABLE, ServiceSecrets, ServiceSettings
from agents.service.tables import ID_LENGTH
from envs.ticks import to_ticks

KEEP_ALIVE_SECONDS = 30
BACKLOG = 512
MOST_CONNECTIONS = 512
"""Open connections of a worker; more are answered 503."""
MOST_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True)
class Address:
    """Where to listen.

    Attributes:
        host: name or address.
        port: TCP port.
        workers: processes.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1


def serve(settings: ServiceSettings, address: Address, budgets: Mapping[str, float]) -> None:
    """Run the service until it is told to stop (SIGINT or SIGTERM).

    Args:
        settings: what a worker must know.
        address: where to listen, and with how many processes.
        budgets: currency by campaign, opened where they are not open yet.

    Raises:
        BundleError: the policy is not as exported.
        DatabaseError: the database cannot be used.
        LedgerError: a campaign is open with another budget.
        ServiceSettingsError: a secret is missing or too short.
    """
    write_to_stderr()
    prepare(settings, budgets)
    os.environ[SETTINGS_VARIABLE] = settings.to_json()
    with _shared_metrics(address.workers):
        log("starting", host=address.host, port=address.port, workers=address.workers)
        uvicorn.run(
            "agents.service.server:create_worker",
            factory=True,
            host=address.host,
            port=address.port,
            workers=address.workers,
            access_log=False,  # it would name the callers' addresses; the door logs requests itself
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=round(settings.request_seconds) + 1,
            limit_concurrency=MOST_CONNECTIONS,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Give several workers a folder to count in; a single one, which is this process, counts in memory."""
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="couponlab-metrics-") as folder:
        os.environ[FOLDER_VARIABLE] = folder
        yield


def prepare(settings: ServiceSettings, budgets: Mapping[str, float]) -> None:
    """Check everything that the workers will need, open the budgets, and release what is due.

    Coupons that fell due while nobody served would count as reserved in the metrics until the next decision.
    """
    ServiceSecrets.from_environment()
    for campaign, budget in budgets.items():
        _check_budget(campaign, budget)
    policy = BundlePolicy.load(settings.policy)
    database = Database.open(settings.database, timeout_seconds=settings.database_seconds)
    try:
        with database.write() as connection:
            for campaign, budget in budgets.items():
                ledger.open_budget(connection, campaign, to_ticks(budget))
            open_campaigns = [balance.campaign for balance in ledger.read_balances(connection)]
        released = 0
        for campaign in open_campaigns:
            # One at a time: a worker of another service may hold several, in an order of its own.
            with database.write() as connection:
                released += ledger.expire(connection, campaign, now=int(time.time()))
    finally:
        database.close()
    if not open_campaigns:
        raise LedgerError("no campaign has a budget yet; open one with --campaign NAME --budget AMOUNT")
    log("checked", policy=policy.fingerprint, campaigns=len(open_campaigns), released=released)


def _check_budget(campaign: str, budget: float) -> None:
    if len(campaign) > ID_LENGTH or not re.fullmatch(ID_FORM, campaign):
        raise LedgerError(
            f"campaign {campaign!r} is no name that a request can give: up to {ID_LENGTH} letters, digits "
            "and any of ._:/@+-, a letter or digit first"
        )
    if not math.isfinite(budget):
        raise LedgerError(f"the budget of campaign {campaign!r} must be a finite amount, got {budget}")


def create_worker() -> FastAPI:
    """Build a worker's application from its environment; uvicorn calls this in each process."""
    write_to_stderr()
    settings, secrets = ServiceSettings.from_environment(), ServiceSecrets.from_environment()
    desk = CouponDesk(
        database=Database.open(
            settings.database, timeout_seconds=settings.database_seconds, connections=settings.threads + 2
        ),
        policy=BundlePolicy.load(settings.policy),
        keys=secrets.keys,
        grace_seconds=round(settings.grace_hours * 3600),
    )
    desk.register_policy()
    rules = GateRules(
        api_keys=ApiKeys(secrets.api_keys),
        most_bytes=settings.most_bytes,
        requests_per_second=settings.requests_per_second,
        burst=settings.burst,
        request_seconds=settings.request_seconds,
    )
    return create_app(desk, rules, metrics=Metrics(), threads=settings.threads)
