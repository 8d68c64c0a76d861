"""Evaluate how a target policy's returns are distributed over users: quantiles and tails, with intervals.

A policy may earn more on average and leave a tail of users with whom it loses; the mean does not show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.ope import sequential
from experiments.ope.diagnostics import Judgement, Verdict, diagnose, judge
from experiments.ope.distribution import self_normalised
from experiments.ope.intervals import percentile_interval, resampling_counts
from experiments.ope.logged_dataset import FloatArray, LoggedDataset, require_array, require_probabilities

CAUTION_TAIL, MINIMUM_TAIL = 20.0, 5.0
"""Effective episodes in a tail below which what is said of it is doubtful, and void."""


@dataclass(frozen=True)
class ReturnResult:
    """One functional of the distribution of returns.

    Attributes:
        policy: name of the target policy.
        measure: mean, standard deviation, quantile, or CVaR (mean of the worst ``level`` of returns).
        level: of the quantile or tail, in (0, 1]; None for the others.
        value: outcome per user per campaign, in the log's currency, within the logged weeks.
        ci_low: lower end of the cluster bootstrap interval.
        ci_high: upper end.
        ess: effective sample size in episodes.
        verdict: trust, caution, or do not use, from the weights and how many of them lie in the tail.
        reason: why, in words.
    """

    policy: str
    measure: str
    level: float | None
    value: float
    ci_low: float
    ci_high: float
    ess: float
    verdict: Verdict
    reason: str


def evaluate_returns(
    dataset: LoggedDataset,
    target_probabilities: FloatArray,
    *,
    policy: str,
    rng: np.random.Generator,
    outcome: Literal["reward", "cost"] | FloatArray = "reward",
    discount_factor: float = 1.0,
    levels: Sequence[float] = (0.05, 0.25, 0.5),
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    cluster: Literal["user", "campaign"] = "user",
) -> list[ReturnResult]:
    """Estimate the mean, the spread, quantiles and tail means of the return, self-normalised.

    Arguments and caveats are those of ``evaluate_policy``; a tail of the worst 5% needs a hundred effective
    episodes to rest on five. Where no logged episode could have come from the target, values are NaN.

    Args:
        dataset: N logged steps.
        target_probabilities: [N, K] float64, the target policy at each logged step.
        policy: name of the target policy, for the results.
        rng: draws bootstrap resamples.
        outcome: which column to sum over weeks, or [N] float64 values of one's own.
        discount_factor: γ per week, in (0, 1].
        levels: of the quantiles and tails, in (0, 1].
        n_bootstrap: number of resamples.
        confidence: of the percentile intervals.
        cluster: what is resampled.

    Raises:
        LoggedDataError: ``target_probabilities`` or ``outcome`` do not fit the dataset.
        ValueError: the discount factor or a level is out of range, or there are fewer than 2 clusters.
    """
    if not 0 < discount_factor <= 1:
        raise ValueError(f"discount_factor must lie in (0, 1], not {discount_factor}")
    require_probabilities("target_probabilities", target_probabilities, dataset.mask.shape)
    values: FloatArray = getattr(dataset, outcome) if isinstance(outcome, str) else outcome
    require_array("outcome", values, np.float64, (dataset.n_steps,))
    place = (dataset.episode, dataset.position)
    ratio = target_probabilities[np.arange(dataset.n_steps), dataset.action] / dataset.propensity
    weight = sequential.cumulative_ratio(ratio, *place)[:, -1]
    returns = sequential.discounted(values, *place, discount_factor).sum(axis=1)
    names, index = np.unique(getattr(dataset, cluster)[dataset.episode_starts], return_inverse=True)
    if names.size < 2:
        raise ValueError("an interval needs at least 2 clusters")
    found = _functionals(returns, weight, levels)
    resampled = []
    for counts in resampling_counts(rng, names.size, n_bootstrap):
        resampled += [_functionals(returns, weight * drawn[index], levels) for drawn in counts]
    diagnostics = diagnose(dataset, target_probabilities, weight[:, None], names.size)
    judgement = judge(diagnostics, uses_weights=True)
    measures: list[tuple[str, float | None]] = [("mean", None), ("standard deviation", None)]
    measures += [(measure, level) for level in levels for measure in ("quantile", "CVaR")]
    results = []
    for column, (measure, level) in enumerate(measures):
        tail = 1.0 if level is None else min(level, 1 - level) if measure == "quantile" else level
        told = judge_tail(judgement, diagnostics.ess * tail)
        ends = percentile_interval(np.array([row[column] for row in resampled]), confidence)
        results.append(
            ReturnResult(
                policy=policy,
                measure=measure,
                level=level,
                value=float(found[column]),
                ci_low=ends.low,
                ci_high=ends.high,
                ess=diagnostics.ess,
                verdict=told.verdict,
                reason=told.reason,
            )
        )
    return results


def judge_tail(judgement: Judgement, ess: float) -> Judgement:
    """Lower a verdict on weights for a quantity that rests on ``ess`` effective episodes of its tail."""
    if ess >= CAUTION_TAIL:
        return judgement
    verdict: Verdict = "do not use" if ess < MINIMUM_TAIL or judgement.verdict == "do not use" else "caution"
    return Judgement(verdict, f"its tail holds {ess:.1f} effective episodes; {judgement.reason}")


def _functionals(returns: FloatArray, weight: FloatArray, levels: Sequence[float]) -> FloatArray:
    """Mean, standard deviation, and for each level the quantile and the tail mean; NaN without any weight."""
    if not weight.any():
        return np.full(2 + 2 * len(levels), np.nan)
    distribution = self_normalised(returns=returns, weight=weight)
    tails = [
        (distribution.quantile(level), distribution.conditional_value_at_risk(level)) for level in levels
    ]
    spread = np.sqrt(distribution.variance())
    return np.array([distribution.mean(), spread, *(value for pair in tails for value in pair)])
