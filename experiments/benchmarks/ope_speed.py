"""Speed and memory of offline evaluation on a million logged steps, with 1,000 resamples of users.

The log is random: what it says is of no interest, only how much of it there is. Every measurement runs in a
process of its own, so that its peak memory is its own, and on one thread, as the pipeline evaluates: a second
one gains little, and waits for its turn where another process is busy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from experiments.benchmarks import Row, describe_machine
from experiments.ope.evaluate import evaluate_policy, sequential_terms
from experiments.ope.intervals import IntervalKind, cluster_bootstrap
from experiments.ope.logged_dataset import FloatArray, LoggedDataset
from experiments.threads import one_thread

N_USERS, N_WEEKS = 125_000, 8
N_OFFERS, N_FEATURES = 10, 16
N_BOOTSTRAP = 1_000

SECONDS_BAR = 60.0
GIBIBYTES_BAR = 4.0


@dataclass(frozen=True)
class Spent:
    """What a measurement took.

    Attributes:
        seconds: of wall time, without making the log.
        cpu_seconds: of all threads, which a busy machine hardly changes.
        gibibytes: peak resident memory of the process, the log included.
    """

    seconds: float
    cpu_seconds: float
    gibibytes: float


def run() -> list[Row]:
    """Time the estimators alone, by two kinds of interval, and a whole evaluation with its value model."""
    work: dict[str, Callable[[], Spent]] = {
        "estimators, percentile intervals": partial(estimators_spent, "percentile"),
        "estimators, studentised intervals": partial(estimators_spent, "studentised"),
        "evaluate_policy, value model included": evaluation_spent,
    }
    hardware = describe_machine()
    size = f"{N_USERS * N_WEEKS:,} steps, {N_USERS:,} users, {N_BOOTSTRAP:,} resamples"
    rows = []
    for name, measure in work.items():
        # A fresh interpreter: a fork would count this one's memory as its own.
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            spent = pool.submit(measure).result()
        measures = (
            (spent.seconds, "s", SECONDS_BAR),
            (spent.cpu_seconds, "CPU s", None),
            (spent.gibibytes, "GiB", GIBIBYTES_BAR),
        )
        for value, unit, bar in measures:
            rows.append(
                Row.compare(
                    f"{name}; {size}",
                    value,
                    unit,
                    bar=bar,
                    higher_is_better=False,
                    hardware=hardware,
                )
            )
    return rows


@one_thread()
def estimators_spent(kind: IntervalKind, *, n_users: int = N_USERS, n_bootstrap: int = N_BOOTSTRAP) -> Spent:
    """Estimate with every sequential estimator, given values q and v, and make their intervals."""
    log, target = random_log(n_users)
    rng = np.random.default_rng(1)
    rows = np.arange(log.n_steps)
    ratio = target[rows, log.action] / log.propensity
    q, v = rng.normal(size=(2, log.n_steps))
    cluster = log.user[log.episode_starts]
    start = time.perf_counter(), time.process_time()
    terms = list(sequential_terms(log, log.reward, ratio=ratio, q=q, v=v, cluster=cluster).values())
    bootstrap = cluster_bootstrap(
        terms, cluster, rng=rng, n_bootstrap=n_bootstrap, studentise=kind == "studentised"
    )
    for column in range(len(terms)):
        bootstrap.interval(column, kind)
    return _since(*start)


@one_thread()
def evaluation_spent(*, n_users: int = N_USERS, n_bootstrap: int = N_BOOTSTRAP) -> Spent:
    """Evaluate a policy on one outcome, from the log to the verdicts."""
    log, target = random_log(n_users)
    start = time.perf_counter(), time.process_time()
    evaluate_policy(log, target, policy="random", rng=np.random.default_rng(1), n_bootstrap=n_bootstrap)
    return _since(*start)


def _since(seconds: float, cpu_seconds: float) -> Spent:
    return Spent(time.perf_counter() - seconds, time.process_time() - cpu_seconds, peak_gibibytes())


def random_log(n_users: int) -> tuple[LoggedDataset, FloatArray]:
    """Return a log of N_WEEKS weeks of ``n_users`` users, and a target's probabilities on it [N, K]."""
    rng = np.random.default_rng(0)
    n = n_users * N_WEEKS
    score = rng.normal(size=(n, N_OFFERS))
    behaviour, target = _softmax(score), _softmax(score + 0.2 * rng.normal(size=score.shape))
    # The offer whose share of the distribution a uniform number falls in.
    action = (rng.random((n, 1)) > behaviour.cumsum(axis=1)).sum(axis=1).clip(max=N_OFFERS - 1)
    week = np.tile(np.arange(N_WEEKS, dtype=np.int64), n_users)
    observation = rng.normal(size=(n, N_FEATURES)).astype(np.float32)
    log = LoggedDataset(
        observation=observation,
        action=action.astype(np.int64),
        mask=np.ones((n, N_OFFERS), dtype=np.bool_),
        propensity=behaviour[np.arange(n), action],
        reward=observation[:, 0] + rng.normal(size=n),
        cost=rng.random(n),
        next_observation=observation,
        terminated=week == N_WEEKS - 1,
        truncated=np.zeros(n, dtype=np.bool_),
        user=np.repeat(np.arange(n_users, dtype=np.int64), N_WEEKS),
        campaign=np.zeros(n, dtype=np.int64),
        week=week,
        dual_price=np.zeros(n),
        observation_names=tuple(f"feature {k}" for k in range(N_FEATURES)),
        propensity_source="logged",
        behaviour_probabilities=behaviour,
    )
    return log, target


def _softmax(score: FloatArray) -> FloatArray:
    weight = np.exp(score)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def peak_gibibytes() -> float:
    """Return the peak resident memory of this process; NaN where /proc does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 2**20 if found else float("nan")
