"""What a service decided, out of its database into a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from agents.service.database import Database
from agents.service.decision_file import DecisionLog
from agents.service.decision_log import export_decisions
from experiments.ope.served_log import ServedDataset, served_dataset

DECISIONS_FILE = "decisions.parquet"
LOGGED_FILE = "logged.parquet"


def export_served(url: str, folder: Path, campaigns: Sequence[str] | None = None) -> ServedDataset:
    """Bring what a service decided into a folder: ``decisions.parquet`` and ``logged.parquet``.

    Args:
        url: of the service's database.
        folder: where to; made if it does not exist.
        campaigns: which; None for all.

    Raises:
        DatabaseError: the database cannot be used.
        DecisionLogError: there are no decisions, or they cannot share a log.
        LoggedDataError: no decision has a known outcome.
    """
    database = Database.open(url, create=False)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with database.read() as connection:
            export_decisions(connection, folder / DECISIONS_FILE, campaigns, now=int(time.time()))
    finally:
        database.close()
    served = served_dataset(DecisionLog.load(folder / DECISIONS_FILE))
    served.dataset.save(folder / LOGGED_FILE)
    return served
