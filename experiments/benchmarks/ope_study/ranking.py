"""What it takes to put policies in order: fitted Q evaluation on larger logs, with a finer view of states.

Most of the study's policies are within a few per cent of each other. From 4,000 users their order is told by
chance as much as by merit; from more it is not, and then what the value model cannot express shows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from experiments.benchmarks.ope_study.estimates import (
    Overlap,
    StudyPlan,
    in_workers,
    log_of,
    log_seed,
    truth_of,
)
from experiments.benchmarks.ope_study.logs import StudyLog
from experiments.ope.fitted_q import fit_q
from experiments.ope.logged_dataset import LoggedDataset
from experiments.ope.selection import kendall_tau
from experiments.ope.sequential import direct_method
from experiments.threads import one_thread


@dataclass(frozen=True)
class RankingPlan(StudyPlan):
    """Logs from which policies are put in order.

    Attributes:
        by_state: whether the value model sees which state a user is in, a column for each, and not the
            features of the state.
    """

    by_state: bool = False


def rank_correlations(plan: RankingPlan, *, workers: int) -> list[float]:
    """Return Kendall's τ of each log's values by fitted Q evaluation with the exact ones.

    Args:
        plan: which logs.
        workers: processes; with one, this process works.
    """
    if workers > 1:
        return [found for _, found in sorted(in_workers(plan, workers, rank_one))]
    return [rank_one(plan, index)[1] for index in range(len(plan.tasks()))]


def rank_one(plan: RankingPlan, index: int) -> tuple[int, float]:
    """Return the index and τ of one log of a plan."""
    horizon, overlap, seed = plan.tasks()[index]
    with one_thread():
        return index, _tau(plan, horizon, overlap, seed)


def _tau(plan: RankingPlan, horizon: int, overlap: Overlap, seed: int) -> float:
    log, targets = log_of(plan, horizon, overlap, seed)
    dataset = by_state(log) if plan.by_state else log.dataset
    profit = dataset.reward - dataset.cost
    values = []
    for target in targets.values():
        # The folds of :func:`experiments.ope.evaluate.evaluate_policy`.
        rng = np.random.default_rng(log_seed(horizon, overlap, seed)).spawn(1)[0]
        fitted = fit_q(dataset, target.numpy(), profit, rng=rng)
        place = {"episode": dataset.episode, "position": dataset.position}
        values.append(direct_method(v=fitted.v, **place).estimate())
    return kendall_tau(np.array(values), np.array(list(truth_of(horizon).values())))


def by_state(log: StudyLog) -> LoggedDataset:
    """Return the log with a column for each segment and each state where features of the state were."""
    segment, state = (np.eye(int(part.max()) + 1)[part.numpy()] for part in (log.segment, log.state))
    seen = np.hstack([segment, state]).astype(np.float32)
    # What is seen after an episode's last decision is in no estimate; the row itself stands in for it.
    following = np.where(log.dataset.is_last, np.arange(len(seen)), np.arange(len(seen)) + 1)
    names = [
        f"{name}_{k}" for name, part in (("segment", segment), ("state", state)) for k in range(part.shape[1])
    ]
    return replace(
        log.dataset, observation=seen, next_observation=seen[following], observation_names=tuple(names)
    )
