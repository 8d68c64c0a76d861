"""Evaluate a target policy on a log: every estimator, with interval, diagnostics and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from experiments.ope import one_step, sequential
from experiments.ope.diagnostics import Diagnostics, Verdict, check_estimate, check_model, diagnose, judge
from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.fitted_q import FittedQConfig, fit_q
from experiments.ope.intervals import Bootstrap, Interval, IntervalKind, cluster_bootstrap
from experiments.ope.logged_dataset import FloatArray, LoggedDataset, require_array, require_probabilities
from experiments.ope.magic import magic
from experiments.ope.slope import choose_by_slope, ratio_thresholds

FIXED_PRICE_NOTE = (
    "Values hold at the logged path of the dual price λ. A shared budget couples users; "
    "compare the estimated cost with the budget before reading the value."
)
"""Print this wherever a value is printed."""

_BY_TRAJECTORY = ("IPS", "SNIPS")
"""Estimators that use the product of all ratios of an episode; the others weight by position."""
_WEIGHTS_ONLY = (*_BY_TRAJECTORY, "PDIS", "PDWIS", "MIPS")
_LEANS_ON_MODEL = ("MAGIC", "SWITCH-DR", "DRos")
"""Estimators whose weights correct the value model only in part."""


@dataclass(frozen=True)
class OPEResult:
    """One estimate, as a row of ``results.json``.

    Attributes:
        policy: name of the target policy.
        estimator: DM (by fitted Q evaluation), IPS, SNIPS, PDIS, PDWIS, DR, WDR or MAGIC; where every episode
            has one step DM, IPS, SNIPS, MIPS, DR, SNDR, SWITCH-DR or DRos.
        value: outcome per user per campaign, in the log's currency, within the logged weeks.
        ci_low: lower end of the cluster bootstrap interval.
        ci_high: upper end.
        ess: effective sample size in episodes (DM: that of the per-decision weights, for reference).
        pareto_k: shape of the upper tail of the weights; None where they have none.
        verdict: trust, caution, or do not use.
        reason: why, in words.
    """

    policy: str
    estimator: str
    value: float
    ci_low: float
    ci_high: float
    ess: float
    pareto_k: float | None
    verdict: Verdict
    reason: str


def evaluate_policy(
    dataset: LoggedDataset,
    target_probabilities: FloatArray,
    *,
    policy: str,
    rng: np.random.Generator,
    outcome: Literal["reward", "cost"] | FloatArray = "reward",
    discount_factor: float = 1.0,
    q_model: FittedQConfig | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    interval: IntervalKind = "percentile",
    cluster: Literal["user", "campaign"] = "user",
    offer_group: npt.NDArray[np.integer] | None = None,
) -> list[OPEResult]:
    """Estimate what the target policy would have brought, per user per campaign.

    The target must be conditioned on the logged λ path (``dataset.dual_price``), like the behaviour policy:
    that separates users, who otherwise compete for one budget. Call once with ``outcome="reward"`` and once
    with ``outcome="cost"`` to see what is earned and what is spent; generators of equal seed give both the
    same folds and resamples.

    Args:
        dataset: N logged steps.
        target_probabilities: [N, K] float64, the target policy at each logged step.
        policy: name of the target policy, for the results.
        rng: assigns users to folds and draws bootstrap resamples.
        outcome: which column to sum over weeks, or [N] float64 values of one's own.
        discount_factor: γ per week, in (0, 1].
        q_model: settings of the value model used by DM and the doubly robust estimators.
        n_bootstrap: number of resamples.
        confidence: of the intervals.
        interval: how they are made of the resamples, see ``Bootstrap.interval``; that of MAGIC also holds
            WDR's.
        cluster: what is resampled.
        offer_group: [K] group of each offer, for MIPS; only of use where every episode has one step.

    Returns:
        One result for each of DM, IPS, SNIPS, PDIS, PDWIS, DR, WDR and MAGIC. Where every episode has one
        step: for each of DM, IPS, SNIPS, DR, SNDR, SWITCH-DR and DRos, the last two with settings chosen by
        SLOPE, and for MIPS if there are groups.

    Raises:
        LoggedDataError: ``target_probabilities`` or ``outcome`` do not fit the dataset.
        ValueError: the discount factor is out of range, there are fewer than 2 users or clusters, or offer
            groups are given where they cannot be used.
    """
    if not 0 < discount_factor <= 1:
        raise ValueError(f"discount_factor must lie in (0, 1], not {discount_factor}")
    require_probabilities("target_probabilities", target_probabilities, dataset.mask.shape)
    values: FloatArray = getattr(dataset, outcome) if isinstance(outcome, str) else outcome
    require_array("outcome", values, np.float64, (dataset.n_steps,))
    fold_rng, bootstrap_rng = rng.spawn(2)
    rows = np.arange(dataset.n_steps)
    ratio = target_probabilities[rows, dataset.action] / dataset.propensity
    clusters = getattr(dataset, cluster)[dataset.episode_starts]
    n_clusters = int(np.unique(clusters).size)
    model = fit_q(
        dataset,
        target_probabilities,
        values,
        rng=fold_rng,
        discount_factor=discount_factor,
        config=q_model,
    )
    estimated: dict[str, FloatArray] = {"ratio": ratio, "q": model.q[rows, dataset.action], "v": model.v}
    weight = sequential.cumulative_ratio(ratio, dataset.episode, dataset.position)
    by_decision = diagnose(dataset, target_probabilities, weight, n_clusters)
    diagnostics: dict[str, Diagnostics] = {}
    if dataset.n_steps == dataset.n_episodes:
        terms = one_step_terms(values, **estimated, cluster=clusters)
        if offer_group is not None:
            marginal = _marginal_ratio(dataset, target_probabilities, offer_group)
            terms["MIPS"] = one_step.inverse_propensity(reward=values, ratio=marginal)
            diagnostics["MIPS"] = diagnose(dataset, target_probabilities, marginal[:, None], n_clusters)
    else:
        if offer_group is not None:
            raise ValueError(
                "offer_group is for logs of one step an episode: MIPS has no sequential form here"
            )
        terms = sequential_terms(
            dataset, values, **estimated, cluster=clusters, discount_factor=discount_factor
        )
        by_trajectory = diagnose(dataset, target_probabilities, weight[:, -1:], n_clusters)
        diagnostics = dict.fromkeys(_BY_TRAJECTORY, by_trajectory)
    bootstrap = cluster_bootstrap(
        list(terms.values()),
        clusters,
        rng=bootstrap_rng,
        n_bootstrap=n_bootstrap,
        studentise=interval == "studentised",
    )
    judged = {name: diagnostics.get(name, by_decision) for name in terms}
    return _results(policy, judged, bootstrap, interval, confidence)


def sequential_terms(
    dataset: LoggedDataset,
    outcome: FloatArray,
    *,
    ratio: FloatArray,
    q: FloatArray,
    v: FloatArray,
    cluster: npt.NDArray[np.integer],
    discount_factor: float = 1.0,
) -> dict[str, EpisodeTerms]:
    """Return the terms of every sequential estimator by name; arguments as in ``sequential``, ``magic``."""
    place: dict[str, Any] = {"episode": dataset.episode, "position": dataset.position}
    weighted = place | {"outcome": outcome, "ratio": ratio, "discount_factor": discount_factor}
    modelled = weighted | {"q": q, "v": v}
    return {
        "DM": sequential.direct_method(v=v, **place),
        "IPS": sequential.inverse_propensity(**weighted),
        "SNIPS": sequential.self_normalised(**weighted),
        "PDIS": sequential.per_decision(**weighted),
        "PDWIS": sequential.weighted_per_decision(**weighted),
        "DR": sequential.doubly_robust(**modelled),
        "WDR": sequential.weighted_doubly_robust(**modelled),
        "MAGIC": magic(**modelled, cluster=cluster),
    }


def one_step_terms(
    reward: FloatArray,
    *,
    ratio: FloatArray,
    q: FloatArray,
    v: FloatArray,
    cluster: npt.NDArray[np.integer],
) -> dict[str, EpisodeTerms]:
    """Return the terms of every one-step estimator by name; arguments as in ``one_step``.

    The settings of SWITCH-DR and DRos are chosen by SLOPE over ``cluster`` [N].
    """
    weighted = {"reward": reward, "ratio": ratio}
    modelled = weighted | {"q": q, "v": v}
    thresholds = ratio_thresholds(ratio)
    _, switch = choose_by_slope(
        lambda threshold: one_step.switch_doubly_robust(**modelled, threshold=threshold), thresholds, cluster
    )
    _, shrunk = choose_by_slope(
        lambda threshold: one_step.optimistic_shrinkage(**modelled, shrinkage=threshold**2),
        thresholds,
        cluster,
    )
    return {
        "DM": one_step.direct_method(v=v),
        "IPS": one_step.inverse_propensity(**weighted),
        "SNIPS": one_step.self_normalised(**weighted),
        "DR": one_step.doubly_robust(**modelled),
        "SNDR": one_step.self_normalised_doubly_robust(**modelled),
        "SWITCH-DR": switch,
        "DRos": shrunk,
    }


def _results(
    policy: str,
    diagnostics: Mapping[str, Diagnostics],
    bootstrap: Bootstrap,
    kind: IntervalKind,
    confidence: float,
) -> list[OPEResult]:
    """Judge each estimate; ``diagnostics`` of every estimator, in the order of the bootstrap's columns."""
    column = {name: j for j, name in enumerate(diagnostics)}
    intervals = {name: bootstrap.interval(j, kind, confidence) for name, j in column.items()}
    influence = {name: bootstrap.influence[:, j] for name, j in column.items()}
    if "MAGIC" in column:
        intervals["MAGIC"] = _hull(intervals["MAGIC"], intervals["WDR"])
        influence["MAGIC"] = influence["WDR"]
    model_check = check_model(
        bootstrap.estimate[column["DM"]],
        bootstrap.estimate[column["DR"]],
        influence["DM"],
        influence["DR"],
    )
    results = []
    for name, found in diagnostics.items():
        value, ends = float(bootstrap.estimate[column[name]]), intervals[name]
        judgement = judge(
            found,
            uses_weights=name != "DM",
            uses_model=name not in _WEIGHTS_ONLY,
            leans_on_model=name in _LEANS_ON_MODEL,
            check=check_estimate(value, ends.low, ends.high, influence[name]),
            model=model_check,
        )
        results.append(
            OPEResult(
                policy=policy,
                estimator=name,
                value=value,
                ci_low=ends.low,
                ci_high=ends.high,
                ess=found.ess,
                pareto_k=found.pareto_k if np.isfinite(found.pareto_k) else None,
                verdict=judgement.verdict,
                reason=judgement.reason,
            )
        )
    return results


def _hull(own: Interval, wdr: Interval) -> Interval:
    """Return the interval of MAGIC, which holds its own and that of WDR.

    Where MAGIC leans on the model it varies as little as the model does, whose own error no resample of the
    log shows: by itself its interval covers the truth as rarely as that of DM. All that the log says of that
    error is that it lies within WDR's. So MAGIC's value may be the better one; its interval is not narrower.
    """
    return Interval(float(np.minimum(own.low, wdr.low)), float(np.maximum(own.high, wdr.high)))


def _marginal_ratio(
    dataset: LoggedDataset, target_probabilities: FloatArray, offer_group: npt.NDArray[np.integer]
) -> FloatArray:
    if dataset.behaviour_probabilities is None:
        raise ValueError("offer_group needs the whole behaviour distribution, which this log does not have")
    return one_step.marginal_ratio(
        target_probabilities=target_probabilities,
        behaviour_probabilities=dataset.behaviour_probabilities,
        action=dataset.action,
        group=offer_group,
    )
