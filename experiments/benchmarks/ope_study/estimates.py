"""Estimates of every policy from every log of the study, beside the exact truth; in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch

from experiments.benchmarks.ope_study.logs import StudyLog, write_log
from experiments.benchmarks.ope_study.market import StudyMarket
from experiments.benchmarks.ope_study.policies import behaviour_policy, candidate_policies, probabilities_at
from experiments.ope.diagnostics import Verdict
from experiments.ope.evaluate import OPEResult, evaluate_policy
from experiments.ope.logged_dataset import BoolArray, FloatArray, IntArray
from experiments.threads import one_thread

P = TypeVar("P", bound="StudyPlan")
T = TypeVar("T")

ESTIMATORS = ("DM", "IPS", "SNIPS", "PDIS", "PDWIS", "DR", "WDR", "MAGIC")
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Overlap:
    """How much a log repeats itself; see :func:`policies.behaviour_policy`.

    Attributes:
        name: what a table prints.
        temperature: of the policy that writes the log, currency.
        exploration: share of its decisions drawn uniformly.
    """

    name: str
    temperature: float
    exploration: float


OVERLAPS = (Overlap("good", 0.6, 0.3), Overlap("fair", 0.3, 0.15), Overlap("poor", 0.15, 0.05))


@dataclass(frozen=True)
class StudyPlan:
    """Which logs are written, and how they are evaluated.

    Attributes:
        horizons: weeks of a campaign.
        overlaps: of the logs with the policies.
        seeds: a log for each, at each horizon and overlap.
        n_users: in a log.
        n_bootstrap: resamples of an interval.
    """

    horizons: tuple[int, ...] = (2, 4, 8)
    overlaps: tuple[Overlap, ...] = OVERLAPS
    seeds: range = range(50)
    n_users: int = 4_000
    n_bootstrap: int = 400

    def tasks(self) -> list[tuple[int, Overlap, int]]:
        """Return the horizon, overlap and seed of each of the L logs."""
        return list(product(self.horizons, self.overlaps, self.seeds))


@dataclass(frozen=True, eq=False)
class StudyEstimates:
    """Estimates from L logs of P policies by M estimators; values in currency per user and campaign.

    Attributes:
        policies: P names.
        horizon: [L] int64 weeks.
        overlap: [L] names.
        truth: [L, P] exact values.
        value: [L, P, M] estimates, in the order of ESTIMATORS.
        low: [L, P, M] lower ends of the 95% intervals.
        high: [L, P, M] upper ends.
        verdict: [L, P, M] int64, place in VERDICTS.
    """

    policies: tuple[str, ...]
    horizon: IntArray
    overlap: npt.NDArray[np.str_]
    truth: FloatArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    verdict: IntArray

    def of_logs(self, chosen: BoolArray | IntArray) -> StudyEstimates:
        """Return the estimates of some logs, by a mask [L] or by their places."""
        return StudyEstimates(
            policies=self.policies,
            horizon=self.horizon[chosen],
            overlap=self.overlap[chosen],
            truth=self.truth[chosen],
            value=self.value[chosen],
            low=self.low[chosen],
            high=self.high[chosen],
            verdict=self.verdict[chosen],
        )


def run_study(plan: StudyPlan, *, workers: int, on_log: Callable[[], None] = lambda: None) -> StudyEstimates:
    """Write the logs of a plan and evaluate every policy from each.

    Args:
        plan: what to do.
        workers: processes; with one, this process works. The estimates do not depend on it.
        on_log: called whenever a log is done.
    """
    tasks = plan.tasks()
    found: dict[int, list[list[OPEResult]]] = {}
    for index, results in in_workers(plan, workers, _one) if workers > 1 else _here(plan):
        found[index] = results
        on_log()
    values = [truth_of(horizon) for horizon, _, _ in tasks]

    def stacked(name: str) -> FloatArray:
        return np.array(
            [[[getattr(cell, name) for cell in row] for row in found[k]] for k in range(len(tasks))]
        )

    verdicts = [
        [[VERDICTS.index(cell.verdict) for cell in row] for row in found[k]] for k in range(len(tasks))
    ]
    return StudyEstimates(
        policies=tuple(values[0]),
        horizon=np.array([horizon for horizon, _, _ in tasks], dtype=np.int64),
        overlap=np.array([overlap.name for _, overlap, _ in tasks]),
        truth=np.array([list(row.values()) for row in values]),
        value=stacked("value"),
        low=stacked("ci_low"),
        high=stacked("ci_high"),
        verdict=np.array(verdicts, dtype=np.int64),
    )


def evaluate_log(plan: StudyPlan, horizon: int, overlap: Overlap, seed: int) -> list[list[OPEResult]]:
    """Write one log and return the results of each policy, in the order of ESTIMATORS.

    What counts is profit: margin less coupon cost.
    """
    log, targets = log_of(plan, horizon, overlap, seed)
    luck = log_seed(horizon, overlap, seed)
    profit = log.dataset.reward - log.dataset.cost
    results = []
    for name, target in targets.items():
        of_policy = evaluate_policy(
            log.dataset,
            target.numpy(),
            policy=name,
            rng=np.random.default_rng(luck),
            outcome=profit,
            n_bootstrap=plan.n_bootstrap,
        )
        by_name = {result.estimator: result for result in of_policy}
        results.append([by_name[estimator] for estimator in ESTIMATORS])
    return results


def log_of(
    plan: StudyPlan, horizon: int, overlap: Overlap, seed: int
) -> tuple[StudyLog, dict[str, torch.Tensor]]:
    """Write one log of a plan, and return it with each policy's probabilities at its decisions, [N, K]."""
    market, policies = _market(horizon)
    behaviour = behaviour_policy(market.believed, overlap.temperature, overlap.exploration)
    log = write_log(market, behaviour, n_users=plan.n_users, seed=log_seed(horizon, overlap, seed))
    return log, probabilities_at(policies, log.week, log.segment, log.state)


def log_seed(horizon: int, overlap: Overlap, seed: int) -> int:
    """Return the seed of a log's chance: no two logs of a study share their luck."""
    words = np.random.SeedSequence([seed, horizon, zlib.crc32(overlap.name.encode())])
    return int(words.generate_state(1)[0])


def truth_of(horizon: int) -> dict[str, float]:
    """Return the exact value of each policy by name."""
    market, policies = _market(horizon)
    return {name: market.value(rule) for name, rule in policies.items()}


@lru_cache(maxsize=8)
def _market(horizon: int) -> tuple[StudyMarket, dict[str, torch.Tensor]]:
    market = StudyMarket.demo(horizon)
    return market, candidate_policies(market.believed)


def _here(plan: StudyPlan) -> Iterator[tuple[int, list[list[OPEResult]]]]:
    with one_thread():
        for index, task in enumerate(plan.tasks()):
            yield index, evaluate_log(plan, *task)


def in_workers(plan: P, workers: int, evaluate: Callable[[P, int], tuple[int, T]]) -> Iterator[tuple[int, T]]:
    """Evaluate every log of a plan in worker processes, and yield what came of each as it is done.

    Args:
        plan: which logs.
        workers: processes.
        evaluate: a function of a module, from a plan and a log's index to that index and the result.
    """
    # Spawned, not forked: a fork copies the locks of torch's threads in whatever state they are.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        pending = [pool.submit(evaluate, plan, index) for index in range(len(plan.tasks()))]
        for done in as_completed(pending):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _one(plan: StudyPlan, index: int) -> tuple[int, list[list[OPEResult]]]:
    with one_thread():
        return index, evaluate_log(plan, *plan.tasks()[index])


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is gone, however that came about."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
