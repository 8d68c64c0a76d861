"""Do propensities say how often each offer is sent? Observed shares beside mean propensities, by offer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from experiments.ope.log_checks import BoolArray, FloatArray, IntArray

N_BINS = 10


@dataclass(frozen=True)
class OfferCalibration:
    """How well the propensities of one offer fit, over the rows that allowed it and something else.

    Attributes:
        offer: index of the offer.
        rows: rows where the offer was allowed and not the only one.
        sent: of these, rows where it was sent.
        observed_share: ``sent / rows``.
        expected_share: mean propensity of the offer.
        z: difference of the two in standard errors, clustered by user; NaN where the error is 0.
        auc: probability that a row where it was sent has the higher propensity than one where it was not;
            NaN where it was sent always or never. Far above 0.5 means that offers went by user.
        calibration_error: mean distance of observed and expected share over tenths of the propensity.
    """

    offer: int
    rows: int
    sent: int
    observed_share: float
    expected_share: float
    z: float
    auc: float
    calibration_error: float


def offer_calibration(
    probabilities: FloatArray, action: IntArray, mask: BoolArray, user: IntArray
) -> tuple[OfferCalibration, ...]:
    """Compare the propensities of each offer with what was sent.

    The residuals 1[a = k] - p_k of a user's rows are summed: rows of one user need not be independent. If the
    propensities are right the sums have mean 0, and z is about standard normal with many users.

    Args:
        probabilities: [N, K] the whole behaviour distribution.
        action: [N] offers sent.
        mask: [N, K] bool.
        user: [N].

    Returns:
        One for each offer that any row allowed beside another.
    """
    choice = mask.sum(axis=1) > 1
    _, cluster = np.unique(user, return_inverse=True)
    found = []
    for offer in range(mask.shape[1]):
        rows = choice & mask[:, offer]
        if not rows.any():
            continue
        expected = probabilities[rows, offer]
        sent = action[rows] == offer
        found.append(
            OfferCalibration(
                offer=offer,
                rows=int(rows.sum()),
                sent=int(sent.sum()),
                observed_share=float(sent.mean()),
                expected_share=float(expected.mean()),
                z=clustered_z(sent - expected, cluster[rows]),
                auc=float(roc_auc_score(sent, expected)) if 0 < sent.sum() < sent.size else np.nan,
                calibration_error=calibration_error(expected, sent),
            )
        )
    return tuple(found)


def weight_calibration(
    propensity: FloatArray, action: IntArray, mask: BoolArray, user: IntArray
) -> tuple[float, ...]:
    """Return for each offer the z of its mean inverse propensity against 1.

    Over the rows that allow offer k, 1[a = k] / p has mean 1 if propensities are right. Without the whole
    distribution that is all that can be checked.

    Args:
        propensity: [N] of the offer that was sent.
        action: [N].
        mask: [N, K] bool.
        user: [N].

    Returns:
        K values; NaN for an offer that no row allows beside another, and for one that was never sent: its
        propensity may well have been 0, which says nothing against those of the others.
    """
    choice = mask.sum(axis=1) > 1
    _, cluster = np.unique(user, return_inverse=True)
    found = []
    for offer in range(mask.shape[1]):
        rows = choice & mask[:, offer]
        sent = action[rows] == offer
        weight = sent / propensity[rows]
        found.append(clustered_z(weight - 1.0, cluster[rows]) if sent.any() else np.nan)
    return tuple(found)


def clustered_z(residual: FloatArray, cluster: IntArray) -> float:
    """Return Σ residual over its standard error, from sums by cluster; NaN where they do not vary from 0.

    Liang & Zeger (1986): the variance of the sum is that of independent clusters, Σ_c S_c².
    """
    if residual.size == 0:
        return np.nan
    sums = np.bincount(cluster, weights=residual)
    error = float(np.sqrt((sums**2).sum()))
    # Rounding of probabilities that are right to the last bit must not look like a misfit.
    return float(sums.sum() / error) if error > 1e-9 * residual.size else np.nan


def calibration_error(expected: FloatArray, sent: BoolArray) -> float:
    """Return the mean distance of observed and expected share over bins of equal size by ``expected``.

    Expected calibration error: Naeini, Cooper & Hauskrecht (2015), with bins of equal size. Rows of equal
    propensity may fall into neighbouring bins, in the order of the log.
    """
    order = np.argsort(expected, kind="stable")
    gaps = [
        abs(float((sent[part] - expected[part]).mean())) * part.size
        for part in np.array_split(order, N_BINS)
        if part.size
    ]
    return float(sum(gaps) / expected.size)
