"""May this number be shown? Diagnostics of weights, overlap and estimate, and a verdict in words.

What can go wrong differs by estimator, and so does what is looked at. An estimate from weights alone is as
good as its weights: effective sample size, largest weight, Pareto k̂. With a value model beside them the
weights carry the model's residuals only; how many users its correction rests on is then the better question.
A model alone leaves nothing to look at but whether the weighted residuals contradict it. The truth is used
nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.ope.logged_dataset import FloatArray, LoggedDataset, PropensitySource
from experiments.ope.pareto import highest_reliable_shape, pareto_shape
from experiments.ope.weight_limits import WEIGHTED_RESIDUALS, WEIGHTS_ALONE, WeightLimits

Verdict = Literal["trust", "caution", "do not use"]
_LEVELS: tuple[Verdict, ...] = ("trust", "caution", "do not use")

CAUTION_UNSUPPORTED, MAXIMUM_UNSUPPORTED = 0.001, 0.05
"""Share of the target's decisions that may fall on offers which the log can say nothing about."""
CAUTION_CLUSTERS = 30
"""Clusters below which a cluster bootstrap is too narrow (Cameron, Gelbach & Miller 2008)."""
CAUTION_HALF_WIDTH, MAXIMUM_HALF_WIDTH = 0.15, 0.25
"""Half of the interval's width, as a share of the value, above which the number says little, and nothing."""
MODEL_GAP_Z = 3.0
"""Standard errors by which the weighted residuals may contradict a value model."""
MAXIMUM_MODEL_GAP = 0.15
"""Share of the value by which a contradicted value model may be off."""


@dataclass(frozen=True)
class Diagnostics:
    """What the log can support, for one target policy.

    Attributes:
        n_episodes: E.
        n_clusters: users or campaigns that the interval resamples.
        ess: effective sample size in episodes; over several positions, the harmonic mean (variances add).
        largest_weight_share: of one episode in the total weight, at the worst position.
        pareto_k: k̂ of the weights' upper tail at the worst position, -inf where it has none.
        mean_weight: farthest mean weight from 1 in standard errors, over positions.
        mean_weight_z: that distance.
        masked_mass: mean target probability on offers that were not allowed.
        unsupported_mass: mean target probability on offers that the behaviour policy never sends; equals
            ``masked_mass`` where the whole behaviour distribution is not known.
        support_known: whether the whole behaviour distribution is known.
        propensity_source: logged or estimated.
    """

    n_episodes: int
    n_clusters: int
    ess: float
    largest_weight_share: float
    pareto_k: float
    mean_weight: float
    mean_weight_z: float
    masked_mass: float
    unsupported_mass: float
    support_known: bool
    propensity_source: PropensitySource


@dataclass(frozen=True)
class EstimateCheck:
    """What an estimate rests on.

    Attributes:
        half_width_share: half of its interval's width over its absolute value; inf where it has none.
        effective_clusters: (Σψ²)² / Σψ⁴ of the clusters' influences ψ, at most C: an estimate whose variance
            comes from few clusters has an interval that other clusters would have drawn otherwise.
    """

    half_width_share: float
    effective_clusters: float


@dataclass(frozen=True)
class ModelCheck:
    """How the log's weighted residuals contradict a value model.

    Attributes:
        gap_share: (DR - DM) over the absolute DR.
        gap_z: the same in standard errors of the difference.
    """

    gap_share: float
    gap_z: float


@dataclass(frozen=True)
class Judgement:
    """A verdict and its reason in words."""

    verdict: Verdict
    reason: str


def effective_sample_size(weight: FloatArray) -> FloatArray:
    """Return (Σ_e w_e)² / Σ_e w_e² of each column of ``weight`` [E, J]; 0 where all weights are 0.

    Kish (1965), §11.7; for importance sampling: Owen (2013), §9.3.
    """
    square = (weight**2).sum(axis=0)
    total = weight.sum(axis=0)
    return np.asarray(np.divide(total**2, square, out=np.zeros_like(square), where=square > 0))


def diagnose(
    dataset: LoggedDataset, target_probabilities: FloatArray, weight: FloatArray, n_clusters: int
) -> Diagnostics:
    """Measure weights and overlap.

    Args:
        dataset: N logged steps in E episodes.
        target_probabilities: [N, K].
        weight: [E, 1] trajectory weights, or [E, T] weights by position for per-decision estimators.
        n_clusters: clusters that the interval resamples.
    """
    n_episodes = weight.shape[0]
    ess = effective_sample_size(weight)
    total = weight.sum(axis=0)
    share = np.divide(weight.max(axis=0), total, out=np.ones_like(total), where=total > 0)
    mean = total / n_episodes
    error = weight.std(axis=0) / np.sqrt(n_episodes)
    distance = np.abs(mean - 1)
    z = np.divide(distance, error, out=np.where(distance > 1e-9, np.inf, 0.0), where=error > 1e-12)
    worst = int(z.argmax())
    behaviour = dataset.behaviour_probabilities
    masked = float(np.where(dataset.mask, 0.0, target_probabilities).sum(axis=1).mean())
    unsupported = masked
    if behaviour is not None:
        unsupported = float(np.where(behaviour > 0, 0.0, target_probabilities).sum(axis=1).mean())
    return Diagnostics(
        n_episodes=n_episodes,
        n_clusters=n_clusters,
        ess=float(ess.size / (1 / ess).sum()) if (ess > 0).all() else 0.0,
        largest_weight_share=float(share.max()),
        pareto_k=max(pareto_shape(column) for column in weight.T),
        mean_weight=float(mean[worst]),
        mean_weight_z=float(z[worst]),
        masked_mass=masked,
        unsupported_mass=unsupported,
        support_known=behaviour is not None,
        propensity_source=dataset.propensity_source,
    )


def check_estimate(value: float, low: float, high: float, influence: FloatArray) -> EstimateCheck:
    """Look at an estimate, its interval and the influences [C] of its clusters; NaN values are allowed."""
    half_width = (high - low) / 2
    # An interval without width is exact, also around 0.
    share = 0.0 if half_width == 0 else half_width / abs(value) if value != 0 else np.inf
    square = influence**2
    fourth = float((square**2).sum())
    return EstimateCheck(
        half_width_share=float(share) if np.isfinite(half_width) else np.inf,
        # A constant estimate has no variance, and nothing that few clusters could dominate.
        effective_clusters=float(square.sum() ** 2 / fourth) if fourth > 0 else float(influence.size),
    )


def check_model(
    model: float, corrected: float, influence_model: FloatArray, influence_corrected: FloatArray
) -> ModelCheck:
    """Hold a value model's estimate against the doubly robust one, which adds the weighted residuals.

    The gap is an estimate of the direct method's bias, as good as the weights are.

    Args:
        model: DM.
        corrected: DR.
        influence_model: [C] influences of the clusters on DM.
        influence_corrected: [C] on DR.
    """
    difference = influence_corrected - influence_model
    n_clusters = difference.size
    error = np.sqrt((difference**2).sum() / (n_clusters * (n_clusters - 1)))
    gap = corrected - model
    return ModelCheck(
        gap_share=float(gap / abs(corrected)) if corrected != 0 else np.inf,
        gap_z=float(gap / error) if error > 0 else 0.0,
    )


def judge(
    diagnostics: Diagnostics,
    *,
    uses_weights: bool,
    uses_model: bool = False,
    leans_on_model: bool = False,
    check: EstimateCheck | None = None,
    model: ModelCheck | None = None,
) -> Judgement:
    """Return the verdict on an estimate.

    Each finding sets a floor under the severity; the worst one counts. Estimated propensities then lower
    the verdict by one level, since confounding cannot be excluded. An estimate that keeps some of a model's
    bias is never better than ``caution``: its interval knows that bias in part at most.

    Args:
        diagnostics: of the weights that the estimator uses.
        uses_weights: whether it uses importance weights at all.
        uses_model: whether it uses a value model.
        leans_on_model: whether weights correct the model only in part, as in MAGIC, SWITCH-DR and DRos.
        check: of the estimate itself, where it was made.
        model: of the value model, where it was made; counts for an estimate from the model alone.
    """
    d, limits = diagnostics, WEIGHTED_RESIDUALS if uses_model else WEIGHTS_ALONE
    findings = _support(d)
    if uses_weights:
        findings += _weights(d, limits)
        findings.append(
            (int(leans_on_model), "leans on the value model, whose error its interval knows only in part")
        )
    else:
        findings.append((1, "rests on the value model alone, whose error is not in the interval"))
        if model is not None:
            findings.append(_contradiction(model))
    if check is not None:
        findings += _estimate(check, limits)
    level = max(severity for severity, _ in findings)
    reasons = [text for severity, text in findings if severity > 0]
    if d.propensity_source == "estimated":
        level = min(level + int(uses_weights), len(_LEVELS) - 1)
        reasons.append("propensities are estimated, so confounding cannot be excluded")
    if not reasons:
        reasons = [
            f"effective sample size is {d.ess:.1f} of {d.n_episodes} episodes and the target is supported"
        ]
    if not d.support_known:
        reasons.append("support was checked against the mask only")
    return Judgement(_LEVELS[level], "; ".join(reasons))


Finding = tuple[int, str]
"""Level of severity, 0 to 2, and its reason in words."""


def _support(d: Diagnostics) -> list[Finding]:
    limits = CAUTION_UNSUPPORTED, MAXIMUM_UNSUPPORTED
    return [
        _above(d.masked_mass, *limits, "of target decisions are masked-out offers"),
        _above(d.unsupported_mass, *limits, "of target decisions are never in the log"),
        (int(d.n_clusters < CAUTION_CLUSTERS), f"only {d.n_clusters} clusters to resample"),
    ]


def _weights(d: Diagnostics, limits: WeightLimits) -> list[Finding]:
    ess = int(d.ess < limits.caution_ess) + int(d.ess < limits.minimum_ess)
    z = int(d.mean_weight_z > limits.caution_z) + int(d.mean_weight_z > limits.maximum_z)
    heavy = d.pareto_k > highest_reliable_shape(d.n_episodes) + limits.spare_k
    return [
        (ess, f"effective sample size is {d.ess:.1f} of {d.n_episodes} episodes"),
        _above(
            d.largest_weight_share,
            limits.caution_share,
            limits.maximum_share,
            "of all weight is on one episode",
        ),
        (
            int(heavy),
            f"the weights' tail is heavy (Pareto k {d.pareto_k:.2f}): larger ones than seen are to be feared",
        ),
        (
            z,
            f"mean weight is {d.mean_weight:.3f}, not 1: the log hardly acts like this policy, "
            "or its propensities are wrong",
        ),
    ]


def _contradiction(model: ModelCheck) -> Finding:
    contradicted = abs(model.gap_z) > MODEL_GAP_Z
    far = abs(model.gap_share) > MAXIMUM_MODEL_GAP
    return (
        int(contradicted) + int(contradicted and far),
        f"the log contradicts the value model by {model.gap_share:+.1%} ({abs(model.gap_z):.1f} "
        "standard errors)",
    )


def _estimate(check: EstimateCheck, limits: WeightLimits) -> list[Finding]:
    clusters = check.effective_clusters
    few = int(clusters < limits.caution_clusters) + int(clusters < limits.minimum_clusters)
    return [
        (few, f"{clusters:.0f} clusters carry its variance"),
        _above(check.half_width_share, CAUTION_HALF_WIDTH, MAXIMUM_HALF_WIDTH, "either way is its interval"),
    ]


def _above(share: float, caution: float, maximum: float, text: str) -> Finding:
    return int(share > caution) + int(share > maximum), f"{share:.1%} {text}"
