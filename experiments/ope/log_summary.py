"""Offers and rewards of a log in a few numbers each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.ope.calibration import OfferCalibration, offer_calibration, weight_calibration
from experiments.ope.logged_dataset import LoggedDataset

OUTLIER_DEVIATIONS: Final = 10.0
"""A reward further from the mean, in standard deviations, may decide an estimate alone."""


@dataclass(frozen=True)
class OfferSummary:
    """One offer in the log.

    Attributes:
        name: of the offer.
        allowed_share: of all rows, where it was allowed.
        sent_share: of all rows, where it was sent.
        smallest_propensity: at which it was sent; NaN where it never was.
        calibration: observed beside expected share; None without the whole distribution, or where no row had
            a choice.
        mean_weight: mean inverse propensity over rows that allowed it beside another, 0 where another was
            sent; 1 on average where propensities are right. NaN without such rows.
        weight_z: standard errors by which that misses 1; NaN where it cannot be told.
    """

    name: str
    allowed_share: float
    sent_share: float
    smallest_propensity: float
    calibration: OfferCalibration | None
    mean_weight: float
    weight_z: float


@dataclass(frozen=True)
class RewardSummary:
    """The rewards of all rows, in the log's currency.

    Attributes:
        mean: over rows.
        standard_deviation: over rows.
        smallest: of all.
        largest: of all.
        zero_share: of rows.
        outliers: rows further than :data:`OUTLIER_DEVIATIONS` from the mean.
        outlier_row: the one furthest away, None without any.
        top_user_share: of all reward in absolute value, held by the 1% of users (at least one) with most.
    """

    mean: float
    standard_deviation: float
    smallest: float
    largest: float
    zero_share: float
    outliers: int
    outlier_row: int | None
    top_user_share: float


def summarise_offers(dataset: LoggedDataset, names: Sequence[str]) -> tuple[OfferSummary, ...]:
    """Return the summary of each offer.

    Args:
        dataset: N logged steps over K offers.
        names: [K] of the offers.
    """
    probabilities = dataset.behaviour_probabilities
    calibrations: dict[int, OfferCalibration] = {}
    if probabilities is not None:
        found = offer_calibration(probabilities, dataset.action, dataset.mask, dataset.user)
        calibrations = {one.offer: one for one in found}
    weight_z = weight_calibration(dataset.propensity, dataset.action, dataset.mask, dataset.user)
    choice = dataset.mask.sum(axis=1) > 1
    summaries = []
    for offer, name in enumerate(names):
        sent = dataset.action == offer
        rows = choice & dataset.mask[:, offer]
        summaries.append(
            OfferSummary(
                name=name,
                allowed_share=float(dataset.mask[:, offer].mean()),
                sent_share=float(sent.mean()),
                smallest_propensity=float(dataset.propensity[sent].min()) if sent.any() else np.nan,
                calibration=calibrations.get(offer),
                mean_weight=float((sent / dataset.propensity)[rows].mean()) if rows.any() else np.nan,
                weight_z=weight_z[offer],
            )
        )
    return tuple(summaries)


def summarise_rewards(dataset: LoggedDataset) -> RewardSummary:
    """Return the summary of the rewards of all rows."""
    reward = dataset.reward
    deviation = float(reward.std())
    distance = np.abs(reward - reward.mean())
    outliers = int((distance > OUTLIER_DEVIATIONS * deviation).sum())
    _, user = np.unique(dataset.user, return_inverse=True)
    by_user = np.sort(np.bincount(user, weights=np.abs(reward)))[::-1]
    top = max(1, by_user.size // 100)
    total = float(by_user.sum())
    return RewardSummary(
        mean=float(reward.mean()),
        standard_deviation=deviation,
        smallest=float(reward.min()),
        largest=float(reward.max()),
        zero_share=float((reward == 0).mean()),
        outliers=outliers,
        outlier_row=int(distance.argmax()) if outliers else None,
        top_user_share=float(by_user[:top].sum() / total) if total else 0.0,
    )
