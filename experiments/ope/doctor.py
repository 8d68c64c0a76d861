"""What a log is fit for, before anything is estimated from it: a check-up of logged decisions.

It looks at who decided what with which propensities, never at which policy came out better. Natural targets
stand in for the policies that one might ask about. A log that supports none of them supports little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from experiments.ope.diagnostics import CAUTION_CLUSTERS, Verdict, diagnose, effective_sample_size, judge
from experiments.ope.log_checks import IntArray
from experiments.ope.log_summary import (
    OUTLIER_DEVIATIONS,
    OfferSummary,
    RewardSummary,
    summarise_offers,
    summarise_rewards,
)
from experiments.ope.logged_dataset import LoggedDataset, PropensitySource
from experiments.ope.natural_targets import NaturalTarget, natural_targets
from experiments.ope.sequential import cumulative_ratio

CAUTION_Z: Final = 4.0
"""Standard errors by which an offer's share may miss its propensity; of 16 offers 1 log in 1,000 has more."""
MAXIMUM_Z: Final = 6.0
MAXIMUM_MISS: Final = 0.1
"""Beyond this z, and this relative difference, propensities are not those that acted."""
RARE_SHARE: Final = 0.01
"""An offer sent to less than this share of those who might have had it."""
HEAVY_SHARE: Final = 0.2
"""Share of all reward that the 1% of users with most may hold before it is said."""


@dataclass(frozen=True)
class TargetSupport:
    """What the log can say of one natural target.

    Attributes:
        target: in words.
        ess: effective sample size in episodes of weights by decision, as doubly robust estimators use them.
        trajectory_ess: that of whole-episode weights, as IPS uses them.
        largest_weight_share: of one episode, by decision.
        not_allowed: share of rows where the target's offer was masked out, so that it sends another.
        verdict: trust, caution, or do not use, for estimators that weight outcomes.
        model_verdict: the same for estimators that weight the residuals of a value model, such as DR; whether
            the model is any good shows only once an estimate is made.
        reason: why, in words, of ``verdict``.
    """

    target: str
    ess: float
    trajectory_ess: float
    largest_weight_share: float
    not_allowed: float
    verdict: Verdict
    model_verdict: Verdict
    reason: str

    @property
    def usable(self) -> bool:
        """Whether any estimator may be used for the target."""
        return (self.verdict, self.model_verdict) != ("do not use", "do not use")


@dataclass(frozen=True)
class Examination:
    """The check-up of a log.

    Attributes:
        n_steps: rows.
        n_episodes: pairs of user and campaign.
        n_users: users.
        n_campaigns: campaigns.
        first_week: of the log.
        last_week: of the log.
        episode_length: shortest, median and longest, in weeks.
        truncated_share: of episodes, cut off while they went on.
        no_choice_share: of rows, where a single offer was allowed.
        propensity_source: logged or estimated.
        propensity_range: smallest, median and largest propensity of what was sent.
        offers: one summary each.
        rewards: their summary.
        targets: one for each natural target.
        findings: what one should know, in words, gravest first.
        notes: what the log did not say and what was taken instead.
    """

    n_steps: int
    n_episodes: int
    n_users: int
    n_campaigns: int
    first_week: int
    last_week: int
    episode_length: tuple[int, float, int]
    truncated_share: float
    no_choice_share: float
    propensity_source: PropensitySource
    propensity_range: tuple[float, float, float]
    offers: tuple[OfferSummary, ...]
    rewards: RewardSummary
    targets: tuple[TargetSupport, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether the log supports any natural target at all."""
        return any(target.usable for target in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self) | {"usable": self.usable}


def examine(
    dataset: LoggedDataset,
    *,
    offers: Sequence[str] | None = None,
    no_offer: int | None = 0,
    notes: Sequence[str] = (),
    row: IntArray | None = None,
) -> Examination:
    """Check a log up.

    Args:
        dataset: N logged steps over K offers.
        offers: [K] names; ``offer k`` if not given.
        no_offer: the offer that means that nothing was sent, None if there is none.
        notes: what the log did not say, to be shown with the findings.
        row: [N] row of the user's own table that each step was read from, to name rows by; the step itself
            if not given.

    Raises:
        ValueError: there are not K names, or ``no_offer`` is none of the offers.
    """
    names = tuple(offers) if offers is not None else tuple(f"offer {k}" for k in range(dataset.n_offers))
    if len(names) != dataset.n_offers:
        raise ValueError(f"{len(names)} names for {dataset.n_offers} offers")
    if no_offer is not None and not 0 <= no_offer < dataset.n_offers:
        raise ValueError(f"no_offer is {no_offer}, but offers are 0..{dataset.n_offers - 1}")
    summaries = summarise_offers(dataset, names)
    misfit = _misfit(summaries)
    targets = tuple(_support(dataset, target, misfit) for target in natural_targets(dataset, names, no_offer))
    rewards = summarise_rewards(dataset)
    if row is not None and rewards.outlier_row is not None:
        rewards = replace(rewards, outlier_row=int(row[rewards.outlier_row]))
    lengths = np.bincount(dataset.episode)
    smallest, median, largest = np.quantile(dataset.propensity, [0.0, 0.5, 1.0]).tolist()
    found = Examination(
        n_steps=dataset.n_steps,
        n_episodes=dataset.n_episodes,
        n_users=int(np.unique(dataset.user).size),
        n_campaigns=int(np.unique(dataset.campaign).size),
        first_week=int(dataset.week.min()),
        last_week=int(dataset.week.max()),
        episode_length=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())),
        truncated_share=float(dataset.truncated.sum() / dataset.n_episodes),
        no_choice_share=float((dataset.mask.sum(axis=1) == 1).mean()),
        propensity_source=dataset.propensity_source,
        propensity_range=(smallest, median, largest),
        offers=summaries,
        rewards=rewards,
        targets=targets,
        findings=(),
        notes=tuple(notes),
    )
    return replace(found, findings=tuple(_findings(found, misfit)))


@dataclass(frozen=True)
class _Misfit:
    """Offers whose propensities do not fit what was sent, and what that leaves of any verdict."""

    offers: tuple[str, ...]
    floor: Verdict


def _misfit(offers: Sequence[OfferSummary]) -> _Misfit:
    named, floor = [], 0
    for offer in offers:
        z, miss = offer.weight_z, abs(offer.mean_weight - 1)
        if offer.calibration is not None:
            fit = offer.calibration
            z = fit.z
            miss = abs(fit.observed_share - fit.expected_share) / max(fit.expected_share, 1e-12)
        if abs(z) > CAUTION_Z:
            named.append(f"{offer.name}, {z:+.1f} standard errors")
            floor = max(floor, 1 + int(abs(z) > MAXIMUM_Z and miss > MAXIMUM_MISS))
    return _Misfit(tuple(named), _LEVELS[floor])


def _support(dataset: LoggedDataset, target: NaturalTarget, misfit: _Misfit) -> TargetSupport:
    ratio = target.probabilities[np.arange(dataset.n_steps), dataset.action] / dataset.propensity
    weight = cumulative_ratio(ratio, dataset.episode, dataset.position)
    found = diagnose(dataset, target.probabilities, weight, int(np.unique(dataset.user).size))
    alone, with_model = (judge(found, uses_weights=True, uses_model=model) for model in (False, True))
    reason = alone.reason
    if misfit.offers:
        reason = f"propensities do not fit what was sent ({'; '.join(misfit.offers)}); {reason}"
    return TargetSupport(
        target=target.name,
        ess=found.ess,
        trajectory_ess=float(effective_sample_size(weight[:, -1:])[0]),
        largest_weight_share=found.largest_weight_share,
        not_allowed=target.not_allowed,
        verdict=max(alone.verdict, misfit.floor, key=_LEVELS.index),
        model_verdict=max(with_model.verdict, misfit.floor, key=_LEVELS.index),
        reason=reason,
    )


def _findings(found: Examination, misfit: _Misfit) -> list[str]:
    """Say what one should know, gravest first."""
    said = []
    if not found.usable:
        said.append("This log supports none of the natural targets: estimate nothing from it.")
    if misfit.offers:
        said.append(f"Propensities do not fit what was sent: {'; '.join(misfit.offers)}.")
    if found.propensity_source == "estimated":
        said.append(
            "Propensities are estimated: what decided who was sent what, beyond the features, biases every "
            "estimate, and no diagnostic shows it."
        )
    never = [offer.name for offer in found.offers if offer.sent_share == 0]
    if never:
        said.append(f"Never sent, so nothing can be said of: {', '.join(never)}.")
    rare = [o.name for o in found.offers if 0 < o.sent_share < RARE_SHARE * o.allowed_share]
    if rare:
        said.append(f"Sent to fewer than {RARE_SHARE:.0%} of those allowed: {', '.join(rare)}.")
    if found.n_users < CAUTION_CLUSTERS:
        said.append(f"Only {found.n_users} users: intervals that resample them are too narrow.")
    if found.no_choice_share > 0:
        said.append(f"{found.no_choice_share:.1%} of rows allowed a single offer: they decide nothing.")
    if found.truncated_share > 0:
        said.append(
            f"{found.truncated_share:.1%} of episodes were cut off: values count the logged weeks alone."
        )
    rewards = found.rewards
    if rewards.outliers:
        said.append(
            f"Rewards more than {OUTLIER_DEVIATIONS:.0f} standard deviations from the mean: "
            f"{rewards.outliers}, the furthest in row {rewards.outlier_row}; see that they are real."
        )
    if rewards.top_user_share > HEAVY_SHARE:
        said.append(f"1% of users hold {rewards.top_user_share:.0%} of all reward: intervals will be wide.")
    return said


_LEVELS: Final[tuple[Verdict, ...]] = ("trust", "caution", "do not use")
