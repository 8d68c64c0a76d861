"""A worked example on real logs: what can honestly be said of campaigns whose targeting was not random.

Past campaigns become a log of decisions without propensities (:mod:`experiments.ope.campaign_rows`), which
goes the way of any log of one's own: propensities are estimated, the log is checked up, and the difference in
spend between users who were sent a campaign and users who were not is estimated three ways, naive, weighted
and doubly robust. The same is done for the weeks *before* the campaign, which it cannot have changed: what is
found there is bias. The example shows a method and its limits; it claims no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from encoders.panel import Panel
from envs.targeting import TargetingRows
from experiments.ope.campaign_rows import NOT_SENT, SENT, WINDOW_WEEKS, campaign_rows
from experiments.ope.diagnostics import Verdict
from experiments.ope.doctor import examine
from experiments.ope.episode_terms import EpisodeTerms
from experiments.ope.fitted_q import fit_q
from experiments.ope.group_difference import campaign_shares, robust_difference, weighted_difference
from experiments.ope.intervals import delta_interval
from experiments.ope.log_checks import BoolArray, FloatArray
from experiments.ope.log_mapping import LogMapping
from experiments.ope.own_logs import OwnLog, from_frame

Window = Literal["campaign", "placebo"]
Estimator = Literal["naive", "weighted", "doubly robust"]

OVERLAP_LOW: Final = 0.05
OVERLAP_HIGH: Final = 0.95
"""Propensities outside this range mean users who are hardly ever sent a campaign, or nearly always."""
N_BINS: Final = 20
_SENT_INDEX: Final = 1  # the offer that sends nothing comes first


@dataclass(frozen=True)
class Difference:
    """Spend of users who were sent a campaign less that of users who were not.

    Attributes:
        window: the campaign's first weeks, or as many before it.
        estimator: how the two groups were made alike.
        value: in the log's currency, per user over the window.
        ci_low: lower end of the 95% interval, clustered by user.
        ci_high: upper end.
    """

    window: Window
    estimator: Estimator
    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class PropensityBin:
    """Estimated propensities in a range.

    Attributes:
        low: of the range.
        high: of the range.
        sent_share: of the rows that were sent the campaign, those in the range.
        not_sent_share: of the rows that were not.
    """

    low: float
    high: float
    sent_share: float
    not_sent_share: float


@dataclass(frozen=True)
class Support:
    """What the log can say of sending to all, or to none.

    Attributes:
        target: in words.
        ess: effective sample size, in pairs of user and campaign.
        largest_weight: of one pair; 1 would be its own.
        verdict: of the check-up, for weights alone.
        reason: why, in words.
    """

    target: str
    ess: float
    largest_weight: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class TypeExample:
    """Campaigns of one type.

    Attributes:
        campaign_type: of the log.
        campaigns: ids.
        n_users: users who could have been sent any of them.
        n_rows: pairs of user and campaign.
        sent_share: of the pairs, those that were sent.
        model: of the propensities.
        auc: of the estimated propensity, on users not seen by its model.
        log_loss: of it, in nats per pair.
        marginal_log_loss: without features, for comparison.
        calibration_error: mean distance of propensity and share sent, over tenths.
        outside_share: of the pairs, with a propensity outside :data:`OVERLAP_LOW` to :data:`OVERLAP_HIGH`.
        bins: the propensities of both groups.
        supports: for sending to all, and to none.
        differences: in spend, by window and estimator.
    """

    campaign_type: str
    campaigns: tuple[str, ...]
    n_users: int
    n_rows: int
    sent_share: float
    model: str
    auc: float
    log_loss: float
    marginal_log_loss: float
    calibration_error: float
    outside_share: float
    bins: tuple[PropensityBin, ...]
    supports: tuple[Support, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class CampaignExample:
    """The example over all types of campaigns.

    Attributes:
        window_weeks: over which spend is counted.
        types: by type, in text order.
    """

    window_weeks: int
    types: tuple[TypeExample, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``results.json``."""
        return asdict(self)


def campaign_example(
    panel: Panel, targeting: TargetingRows, types: Mapping[str, str], *, rng: np.random.Generator
) -> CampaignExample | None:
    """Work the example on the campaigns of a log; None where too few of them can be looked at.

    Args:
        panel: weekly spend, visits and coupon use of the unlocked weeks.
        targeting: who was sent which campaign, from the same logs.
        types: type of each campaign, see :func:`experiments.ope.campaign_rows.campaign_types`.
        rng: divides users into folds and seeds the propensity models.
    """
    during = campaign_rows(panel, targeting, types)
    before = campaign_rows(panel, targeting, types, lead_weeks=WINDOW_WEEKS)
    if during.empty:
        return None
    examples = []
    for campaign_type in sorted(set(during["campaign_type"])):
        parts: dict[Window, pd.DataFrame] = {
            "campaign": during[during["campaign_type"] == campaign_type],
            "placebo": before[before["campaign_type"] == campaign_type],
        }
        examples.append(_example_of_type(campaign_type, parts, rng))
    return CampaignExample(window_weeks=WINDOW_WEEKS, types=tuple(examples))


def _example_of_type(
    campaign_type: str, parts: Mapping[Window, pd.DataFrame], rng: np.random.Generator
) -> TypeExample:
    mapping = LogMapping(offers=(NOT_SENT, SENT), no_offer=NOT_SENT)
    logs: dict[Window, OwnLog] = {
        window: from_frame(part.drop(columns="campaign_type"), mapping, rng=rng)
        for window, part in parts.items()
    }
    log = logs["campaign"]
    dataset, report, probabilities = log.dataset, log.propensity_report, log.dataset.behaviour_probabilities
    assert report is not None
    assert probabilities is not None
    sent = dataset.action == _SENT_INDEX
    propensity = probabilities[:, _SENT_INDEX]
    fit = report.offers[_SENT_INDEX]
    outside = (propensity < OVERLAP_LOW) | (propensity > OVERLAP_HIGH)
    return TypeExample(
        campaign_type=campaign_type,
        campaigns=log.campaigns,
        n_users=len(log.users),
        n_rows=dataset.n_steps,
        sent_share=float(sent.mean()),
        model=report.model,
        auc=fit.auc,
        log_loss=report.log_loss[report.model],
        marginal_log_loss=report.log_loss["marginal"],
        calibration_error=fit.calibration_error,
        outside_share=float(outside.mean()),
        bins=propensity_bins(propensity, sent),
        supports=_supports(log),
        differences=tuple(
            difference for window, part in logs.items() for difference in _differences(window, part, rng)
        ),
    )


def propensity_bins(propensity: FloatArray, sent: BoolArray) -> tuple[PropensityBin, ...]:
    """Return how the propensities [N] of both groups spread over :data:`N_BINS` equal ranges of [0, 1]."""
    edges = np.linspace(0.0, 1.0, N_BINS + 1)
    counts = [np.histogram(propensity[group], bins=edges)[0] for group in (sent, ~sent)]
    shares = [count / max(1, count.sum()) for count in counts]
    columns = zip(edges[:-1].tolist(), edges[1:].tolist(), *(share.tolist() for share in shares), strict=True)
    return tuple(PropensityBin(*column) for column in columns)


def _supports(log: OwnLog) -> tuple[Support, ...]:
    """What the check-up says of sending to all and to none; other targets are not asked about here."""
    dataset = log.dataset
    found = {target.target: target for target in examine(dataset, offers=log.offers, no_offer=0).targets}
    supports = []
    for words, name, offer in (
        ("send to all", f"always {SENT}", _SENT_INDEX),
        ("send to none", "no offer", 0),
    ):
        target = found[name]
        largest = 1.0 / dataset.propensity[dataset.action == offer].min()
        supports.append(Support(words, target.ess, float(largest), target.verdict, target.reason))
    return tuple(supports)


def _differences(window: Window, log: OwnLog, rng: np.random.Generator) -> list[Difference]:
    dataset = log.dataset
    assert dataset.behaviour_probabilities is not None
    sent = (dataset.action == _SENT_INDEX).astype(np.float64)
    share = campaign_shares(sent, dataset.campaign)
    uniform = np.full(dataset.mask.shape, 1.0 / dataset.n_offers)
    q = fit_q(dataset, uniform, dataset.reward, rng=rng).q
    propensity = dataset.behaviour_probabilities[:, _SENT_INDEX]
    terms: dict[Estimator, EpisodeTerms] = {
        "naive": weighted_difference(dataset.reward, sent, share),
        "weighted": weighted_difference(dataset.reward, sent, propensity),
        "doubly robust": robust_difference(dataset.reward, sent, propensity, q[:, _SENT_INDEX], q[:, 0]),
    }
    found = []
    for estimator, term in terms.items():
        interval = delta_interval(term, dataset.user)
        found.append(Difference(window, estimator, term.estimate(), interval.low, interval.high))
    return found
