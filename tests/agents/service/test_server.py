"""The whole service: an exported policy, two workers, a database, real HTTP, and workers that are killed."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.service import ledger
from agents.service.database import Database
from agents.service.errors import LedgerError
from agents.service.granting import Ask
from agents.service.idempotency import claim
from agents.service.reconciliation import reconcile
from agents.service.server import prepare
from agents.service.settings import ServiceSettings, ServiceSettingsError
from agents.serving import BundleError
from experiments.benchmarks.http import serving
from experiments.benchmarks.http_load import CAMPAIGN
from experiments.ope.served_export import export_served

API_KEY = "a-key-of-the-tests-long-enough"
HEADERS = {"X-API-Key": API_KEY, "Content-Type": "application/json"}


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path


def ask(port: int, path: str, content: Any = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, HEADERS)
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read()
    return text.decode() if path == "/metrics" else json.loads(text)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def decide(port: int, k: int) -> dict[str, Any]:
    users = [{"user_id": f"u{k}-{place}"} for place in range(3)]
    context = {"week": 5, "weeks_left": 1, "dual_price": 0.05}
    content = {"request_id": f"r{k}", "campaign": CAMPAIGN, "context": context, "users": users}
    answer: dict[str, Any] = ask(port, "/decide", content)
    return answer


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds workers in /proc")
def test_killed_workers_are_replaced_and_nothing_is_lost(exported: Exported, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'coupons.db'}"
    settings = ServiceSettings(exported.folder, database)
    log = tmp_path / "service.log"
    with serving(settings, API_KEY, log) as port:
        answers = {k: decide(port, k) for k in range(3)}
        server = next(pid for pid in descendants(os.getpid()) if str(port) in command_of(pid))
        workers = [pid for pid in descendants(server) if "spawn_main" in command_of(pid)]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        for k in range(6):
            answers[k] = patiently(port, k)
        for k in range(3):
            assert decide(port, k) == answers[k]  # asked again, the same
        outcomes = [
            {"decision_id": decision["decision_id"], "margin": 2.0}
            for answer in answers.values()
            for decision in answer["decisions"]
        ]
        assert ask(port, "/feedback", {"request_id": "f", "outcomes": outcomes}) == {"recorded": 18}
        shown = {
            sample.labels.get("path"): sample.value
            for family in text_string_to_metric_families(ask(port, "/metrics"))
            for sample in family.samples
            if sample.name == "couponlab_requests_total" and sample.labels["status"] == "200"
        }
    # Counted by whichever worker, also the one that was killed.
    assert shown["/decide"] >= 9
    opened = Database.open(database)
    with opened.read() as connection:
        assert reconcile(connection, CAMPAIGN).exact
    with opened.write() as connection:
        ledger.expire(connection, CAMPAIGN, now=int(time.time()) + 10**8)
    opened.close()
    served = export_served(database, tmp_path / "served")
    assert served.dataset.n_steps == 18
    assert served.dataset.terminated.all()
    assert "u0-0" not in log.read_text()


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def patiently(port: int, k: int) -> dict[str, Any]:
    """Send again what a killed worker left unanswered."""
    for _ in range(50):
        try:
            return decide(port, k)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the service does not answer")


def test_what_is_wrong_is_said_before_anything_listens(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServiceSettings(exported.folder, f"sqlite:///{tmp_path / 'coupons.db'}")
    monkeypatch.delenv("COUPONLAB_API_KEYS", raising=False)
    with pytest.raises(ServiceSettingsError, match="COUPONLAB_API_KEYS"):
        prepare(settings, {"autumn": 10.0})
    monkeypatch.setenv("COUPONLAB_API_KEYS", API_KEY)
    monkeypatch.setenv("COUPONLAB_PSEUDONYM_KEY", "0123456789abcdef")
    with pytest.raises(LedgerError, match="no campaign has a budget yet"):
        prepare(settings, {})
    prepare(settings, {"autumn": 10.0})
    prepare(settings, {"autumn": 10.0})
    prepare(settings, {})
    with pytest.raises(LedgerError, match="open with a budget of 10, not 11"):
        prepare(settings, {"autumn": 11.0})
    with pytest.raises(BundleError):
        prepare(ServiceSettings(tmp_path, settings.database), {})


@pytest.mark.parametrize(
    ("campaign", "budget", "message"),
    [
        ("autumn", float("inf"), "'autumn' must be a finite amount"),
        ("autumn", float("nan"), "'autumn' must be a finite amount"),
        ("two words", 10.0, "'two words' is no name that a request can give"),
        ("x" * 129, 10.0, "is no name that a request can give"),
    ],
)
def test_budgets_that_nobody_could_use_are_refused(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    campaign: str,
    budget: float,
    message: str,
) -> None:
    monkeypatch.setenv("COUPONLAB_API_KEYS", API_KEY)
    monkeypatch.setenv("COUPONLAB_PSEUDONYM_KEY", "0123456789abcdef")
    settings = ServiceSettings(exported.folder, f"sqlite:///{tmp_path / 'coupons.db'}")
    with pytest.raises(LedgerError, match=message):
        prepare(settings, {campaign: budget})
    assert not (tmp_path / "coupons.db").exists()


def test_what_fell_due_while_nobody_served_is_released_at_the_start(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUPONLAB_API_KEYS", API_KEY)
    monkeypatch.setenv("COUPONLAB_PSEUDONYM_KEY", "0123456789abcdef")
    settings = ServiceSettings(exported.folder, f"sqlite:///{tmp_path / 'coupons.db'}")
    prepare(settings, {CAMPAIGN: 10.0})
    opened = Database.open(settings.database)
    with opened.write() as connection:
        claim(connection, "r", "reserve", "", now=50)
        due = Ask("c", "user", charge=0, liability=5, expires_at=100)
        ledger.reserve(connection, CAMPAIGN, "r", [due], seed=b"s", now=50)
    prepare(settings, {})
    with opened.read() as connection:
        balance = ledger.read_balance(connection, CAMPAIGN)
        assert (balance.spent, balance.reserved) == (0, 0)
        assert reconcile(connection, CAMPAIGN).exact
    opened.close()
