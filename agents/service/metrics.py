"""Prometheus metrics, added up over all workers.

Where ``PROMETHEUS_MULTIPROC_DIR`` names a folder, every worker writes its counts there and any of them shows
the sum. The budgets are read from the ledger whenever they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from agents.service.ledger import Balance
from envs.ticks import TICKS_PER_UNIT

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """What is counted."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "couponlab_requests",
            "Requests answered.",
            ("path", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "couponlab_request_seconds",
            "Time from a request's first byte to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._decisions = Counter(
            "couponlab_decisions",
            "Decisions made: an offer sent, nothing sent, or an offer that the budget did not cover.",
            ("result",),
            registry=self._registry,
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_decisions(self, *, sent: int, nothing: int, refused: int) -> None:
        """Count new decisions."""
        for result, count in (("sent", sent), ("nothing", nothing), ("refused", refused)):
            self._decisions.labels(result).inc(count)

    def render(self, balances: Sequence[Balance]) -> bytes:
        """Return everything in Prometheus' text format."""
        registry = self._registry
        if FOLDER_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        budgets = CollectorRegistry()
        budgets.register(_Budgets(balances))
        return generate_latest(registry) + generate_latest(budgets)


class _Budgets:
    """The ledger's balances as gauges, in currency."""

    def __init__(self, balances: Sequence[Balance]) -> None:
        self._balances = balances

    def collect(self) -> Iterable[Metric]:
        help_texts = {
            "budget": "Cap of the campaign.",
            "spent": "Settled discounts and delivery costs.",
            "reserved": "Worst-case cost of the coupons outstanding.",
        }
        for name, text in help_texts.items():
            gauge = GaugeMetricFamily(f"couponlab_{name}", text, labels=("campaign",))
            for balance in self._balances:
                gauge.add_metric([balance.campaign], getattr(balance, name) / TICKS_PER_UNIT)
            yield gauge
