"""Evaluate a target policy on a log: every estimator, with interval, diagnostics and verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.ope import estimators
from experiments.ope.diagnostics import Verdict, diagnose, judge
from experiments.ope.fitted_q import FittedQConfig, fit_q
from experiments.ope.intervals import bootstrap_estimates, percentile_interval
from experiments.ope.logged_dataset import FloatArray, LoggedDataset, require_array, require_probabilities

FIXED_PRICE_NOTE = (
    "Values hold at the logged path of the dual price λ. A shared budget couples users; "
    "compare the estimated cost with the budget before reading the value."
)
"""Print this wherever a value is printed."""


@dataclass(frozen=True)
class OPEResult:
    """One estimate, as a row of ``results.json``.

    Attributes:
        policy: name of the target policy.
        estimator: DM, IPS, PDIS, SNIPS, WPDIS or DR.
        value: outcome per user per campaign, in the log's currency, within the logged weeks.
        ci_low: lower end of the cluster bootstrap interval.
        ci_high: upper end.
        ess: effective sample size in episodes (DM: that of the per-decision weights, for reference).
        verdict: trust, caution, or do not use.
        reason: why, in words.
    """

    policy: str
    estimator: str
    value: float
    ci_low: float
    ci_high: float
    ess: float
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
    cluster: Literal["user", "campaign"] = "user",
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
        q_model: settings of the value model used by DM and DR.
        n_bootstrap: number of resamples.
        confidence: of the intervals.
        cluster: what is resampled.

    Returns:
        One result for each of DM, IPS, PDIS, SNIPS, WPDIS and DR.

    Raises:
        LoggedDataError: ``target_probabilities`` or ``outcome`` do not fit the dataset.
        ValueError: the discount factor is out of range, or there are fewer than 2 users or clusters.
    """
    if not 0 < discount_factor <= 1:
        raise ValueError(f"discount_factor must lie in (0, 1], not {discount_factor}")
    require_probabilities("target_probabilities", target_probabilities, dataset.mask.shape)
    values: FloatArray = getattr(dataset, outcome) if isinstance(outcome, str) else outcome
    require_array("outcome", values, np.float64, (dataset.n_steps,))
    fold_rng, bootstrap_rng = rng.spawn(2)
    rows = np.arange(dataset.n_steps)
    ratio = target_probabilities[rows, dataset.action] / dataset.propensity
    model = fit_q(
        dataset,
        target_probabilities,
        values,
        rng=fold_rng,
        discount_factor=discount_factor,
        config=q_model,
    )
    terms = _all_terms(dataset, values, ratio, model.q[rows, dataset.action], model.v, discount_factor)
    clusters = getattr(dataset, cluster)[dataset.episode_starts]
    resampled = bootstrap_estimates(
        list(terms.values()), clusters, rng=bootstrap_rng, n_bootstrap=n_bootstrap
    )
    weight = estimators.cumulative_ratio(ratio, dataset.episode, dataset.position)
    n_clusters = int(np.unique(clusters).size)
    by_trajectory = diagnose(dataset, target_probabilities, weight[:, -1:], n_clusters)
    by_decision = diagnose(dataset, target_probabilities, weight, n_clusters)
    results = []
    for column, (name, term) in enumerate(terms.items()):
        interval = percentile_interval(resampled[:, column], confidence)
        diagnostics = by_trajectory if name in ("IPS", "SNIPS") else by_decision
        judgement = judge(diagnostics, uses_weights=name != "DM")
        results.append(
            OPEResult(
                policy=policy,
                estimator=name,
                value=term.estimate(),
                ci_low=interval.low,
                ci_high=interval.high,
                ess=diagnostics.ess,
                verdict=judgement.verdict,
                reason=judgement.reason,
            )
        )
    return results


def _all_terms(
    dataset: LoggedDataset,
    outcome: FloatArray,
    ratio: FloatArray,
    q: FloatArray,
    v: FloatArray,
    discount_factor: float,
) -> dict[str, estimators.EpisodeTerms]:
    """Return the terms of each estimator by name."""
    episode, position = dataset.episode, dataset.position
    weighted = {
        "IPS": estimators.inverse_propensity,
        "PDIS": estimators.per_decision,
        "SNIPS": estimators.self_normalised,
        "WPDIS": estimators.weighted_per_decision,
    }
    terms = {"DM": estimators.direct_method(v=v, episode=episode, position=position)}
    for name, estimator in weighted.items():
        terms[name] = estimator(
            outcome=outcome,
            ratio=ratio,
            episode=episode,
            position=position,
            discount_factor=discount_factor,
        )
    terms["DR"] = estimators.doubly_robust(
        outcome=outcome,
        ratio=ratio,
        q=q,
        v=v,
        episode=episode,
        position=position,
        discount_factor=discount_factor,
    )
    return terms
