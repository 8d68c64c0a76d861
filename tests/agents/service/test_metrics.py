from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from agents.service.ledger import Balance
from agents.service.metrics import Metrics

WORKER = """
from agents.service.metrics import Metrics
metrics = Metrics()
metrics.count_request("/decide", 200, 0.003)
metrics.count_decisions(sent=2, nothing=1, refused=0)
"""
SHOW = """
import sys
from agents.service.metrics import Metrics
sys.stdout.buffer.write(Metrics().render([]))
"""


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_budgets_are_shown_in_currency() -> None:
    found = samples(Metrics().render([Balance("a", 50_000, 12_345, 1), Balance("b", 0, 0, 0)]).decode())
    assert found["couponlab_budget", "a"] == 5.0
    assert found["couponlab_spent", "a"] == 1.2345
    assert found["couponlab_reserved", "a"] == 0.0001
    assert found["couponlab_budget", "b"] == 0.0


def test_workers_are_added_up_also_those_that_died(tmp_path: Path) -> None:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    shown = subprocess.run([sys.executable, "-c", SHOW], env=environment, check=True, capture_output=True)
    found = samples(shown.stdout.decode())
    assert found["couponlab_requests_total", "/decide", "200"] == 2
    assert found["couponlab_decisions_total", "sent"] == 4
    assert found["couponlab_request_seconds_bucket", "0.005", "/decide"] == 2
    assert found["couponlab_request_seconds_bucket", "0.002", "/decide"] == 0
