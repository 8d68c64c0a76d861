"""May this number be shown? Weight and overlap diagnostics, and a verdict in words.

Nothing here looks at the estimate itself, only at whether the log can support one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.ope.logged_dataset import FloatArray, LoggedDataset, PropensitySource

Verdict = Literal["trust", "caution", "do not use"]
_LEVELS: tuple[Verdict, ...] = ("trust", "caution", "do not use")

CAUTION_ESS, MINIMUM_ESS = 200.0, 50.0
"""Effective episodes below which normal theory is doubtful, and below which it is void."""
CAUTION_WEIGHT_SHARE, MAXIMUM_WEIGHT_SHARE = 0.05, 0.20
"""Share of the total weight that one episode may carry."""
CAUTION_UNSUPPORTED, MAXIMUM_UNSUPPORTED = 0.001, 0.05
"""Share of the target's decisions that may fall on offers which the log can say nothing about."""
CAUTION_WEIGHT_Z, MAXIMUM_WEIGHT_Z = 3.0, 6.0
"""Standard errors by which the mean weight may miss 1, its expectation if propensities are right."""
CAUTION_CLUSTERS = 30
"""Clusters below which a cluster bootstrap is too narrow (Cameron, Gelbach & Miller 2008)."""


@dataclass(frozen=True)
class Diagnostics:
    """What the log can support, for one target policy.

    Attributes:
        n_episodes: E.
        n_clusters: users or campaigns that the interval resamples.
        ess: effective sample size in episodes; over several positions, the harmonic mean (variances add).
        largest_weight_share: of one episode in the total weight, at the worst position.
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
    mean_weight: float
    mean_weight_z: float
    masked_mass: float
    unsupported_mass: float
    support_known: bool
    propensity_source: PropensitySource


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
        mean_weight=float(mean[worst]),
        mean_weight_z=float(z[worst]),
        masked_mass=masked,
        unsupported_mass=unsupported,
        support_known=behaviour is not None,
        propensity_source=dataset.propensity_source,
    )


def judge(diagnostics: Diagnostics, *, uses_weights: bool) -> Judgement:
    """Return the verdict on an estimator that uses importance weights, or on one that only uses a model.

    Each finding sets a floor under the severity; the worst one counts. Estimated propensities then lower
    the verdict by one level, since confounding cannot be excluded. A model-only estimate is never better
    than ``caution``: nothing in the log checks its bias.
    """
    d = diagnostics
    findings: list[tuple[int, str]] = [
        _above(
            d.masked_mass,
            CAUTION_UNSUPPORTED,
            MAXIMUM_UNSUPPORTED,
            "of target decisions are masked-out offers",
        ),
        _above(
            d.unsupported_mass,
            CAUTION_UNSUPPORTED,
            MAXIMUM_UNSUPPORTED,
            "of target decisions are never in the log",
        ),
        (int(d.n_clusters < CAUTION_CLUSTERS), f"only {d.n_clusters} clusters to resample"),
    ]
    if uses_weights:
        ess_level = int(d.ess < CAUTION_ESS) + int(d.ess < MINIMUM_ESS)
        z_level = int(d.mean_weight_z > CAUTION_WEIGHT_Z) + int(d.mean_weight_z > MAXIMUM_WEIGHT_Z)
        findings += [
            (ess_level, f"effective sample size is {d.ess:.1f} of {d.n_episodes} episodes"),
            _above(
                d.largest_weight_share,
                CAUTION_WEIGHT_SHARE,
                MAXIMUM_WEIGHT_SHARE,
                "of all weight is on one episode",
            ),
            (
                z_level,
                f"mean weight is {d.mean_weight:.3f}, not 1: the log hardly acts like this policy, "
                "or its propensities are wrong",
            ),
        ]
    else:
        findings.append(
            (1, "rests on the value model alone, whose error is neither checked nor in the interval")
        )
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


def _above(share: float, caution: float, maximum: float, text: str) -> tuple[int, str]:
    return int(share > caution) + int(share > maximum), f"{share:.1%} {text}"
