"""Are offers sent as often as the propensities say, and as often as when the policy was evaluated?

Wrong propensities make every later offline estimate wrong, whatever the policy earns. Shares of offers are
something else: they follow the dual price, and a change of mix is worth a look but no alarm.

If the whole distribution of each decision is known, the number of times that an offer is sent is a sum of
independent indicators with known mean and variance, given the distributions. So is Σ ln p of what was sent,
which tells a policy that sends its favourites more often than it says from one that does as it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from experiments.monitor.findings import Finding, Level
from experiments.monitor.stability import ColumnStability, Sample, compare_columns, population_stability
from experiments.ope.calibration import weight_calibration
from experiments.ope.logged_dataset import FloatArray, IntArray, LoggedDataset

WARNING_P, ALARM_P = 0.05, 0.001
"""Of the most deviating offer, times the number of offers (Bonferroni)."""

LEAST_VARIANCE = 10.0
"""Of a number of times, from which it counts as normal. Below, the binomial distribution of the same mean is
taken, which is more spread out (Hoeffding 1956): its p-values are too large rather than too small."""

LEAST_SENT = 30
"""Times that an offer must have been sent for its mean weight to be judged, where no more is known."""

MIX_WARNING = 0.10
"""PSI of the offers sent; see `experiments.monitor.drift`."""


@dataclass(frozen=True)
class OfferPropensity:
    """One offer.

    Attributes:
        offer: index.
        name: of the catalogue.
        sent: share of all rows of the log.
        reference_sent: share of all rows of the reference.
        expected: share of all rows that the propensities expect; NaN where only the sent offer's is known.
        z: how far what was sent is from the propensities, in standard errors; NaN where that cannot be told.
        p_value: chance of being as far off, two-sided; NaN with ``z``.
    """

    offer: int
    name: str
    sent: float
    reference_sent: float
    expected: float
    z: float
    p_value: float


@dataclass(frozen=True)
class PropensityReport:
    """All offers.

    Attributes:
        offers: in the catalogue's order.
        sharpness_z: mean log propensity of what was sent against its expectation, in standard errors; above 0
            where favourites are sent more often than they should; NaN where that cannot be told.
        p_value: smallest of all offers and of the sharpness, times their number.
        mix: PSI of the offers sent; its p-value is of the offer whose share changed most.
    """

    offers: list[OfferPropensity]
    sharpness_z: float
    p_value: float
    mix: ColumnStability

    @property
    def level(self) -> Level:
        """How bad it is that propensities and what was sent differ."""
        if self.p_value <= ALARM_P:
            return Level.ALARM
        return Level.WARNING if self.p_value <= WARNING_P else Level.OK

    @property
    def mix_level(self) -> Level:
        """Whether the mix of offers has changed; never worse than a warning."""
        changed = self.mix.psi >= MIX_WARNING and self.mix.p_value <= WARNING_P
        return Level.WARNING if changed else Level.OK

    def findings(self) -> list[Finding]:
        """Return one finding on propensities and one on the mix."""
        known = [offer for offer in self.offers if math.isfinite(offer.z)]
        farthest = min(known, key=lambda offer: offer.p_value, default=None)
        words = "too little was sent to tell"
        if farthest is not None:
            sharpness = "" if math.isnan(self.sharpness_z) else f", sharpness z {self.sharpness_z:+.1f}"
            words = (
                f"most off: {farthest.name}, z {farthest.z:+.1f}{sharpness} (p {self.p_value:.3f} for all "
                f"{len(known)} offers)"
            )
        changed = max(self.offers, key=lambda offer: abs(offer.sent - offer.reference_sent))
        return [
            Finding("propensities", self.level, words),
            Finding(
                "offer mix",
                self.mix_level,
                f"PSI {self.mix.psi:.3f} (p {self.mix.p_value:.3f}); most changed: {changed.name}, "
                f"{changed.reference_sent:.1%} to {changed.sent:.1%}",
            ),
        ]


def measure_propensities(
    reference: LoggedDataset, log: LoggedDataset, names: tuple[str, ...], *, seed: int
) -> PropensityReport:
    """Compare the offers sent with their propensities and with the reference's offers.

    Args:
        reference: what the policy was evaluated on.
        log: what it does now.
        names: [K] of the offers.
        seed: of the permutations.
    """
    n_offers = log.n_offers
    shares, reference_shares = (
        np.bincount(side.action, minlength=n_offers) / side.n_steps for side in (log, reference)
    )
    probabilities = log.behaviour_probabilities
    expected, sharpness = np.full(n_offers, np.nan), math.nan
    if probabilities is not None:
        expected = probabilities.mean(axis=0)
        z, p_values = _count_tests(probabilities, log.action)
        sharpness = _sharpness_z(probabilities, log.action)
    else:
        z = np.array(weight_calibration(log.propensity, log.action, log.mask, log.user))
        z[np.bincount(log.action, minlength=n_offers) < LEAST_SENT] = np.nan
        p_values = np.array([_two_sided(one) for one in z])
    tested = np.append(p_values, _two_sided(sharpness))
    tested = tested[np.isfinite(tested)]
    offers = [
        OfferPropensity(
            k,
            names[k],
            float(shares[k]),
            float(reference_shares[k]),
            float(expected[k]),
            float(z[k]),
            float(p_values[k]),
        )
        for k in range(n_offers)
    ]
    p_value = min(1.0, tested.size * float(tested.min())) if tested.size else 1.0
    return PropensityReport(offers, sharpness, p_value, _mix(reference, log, seed))


def _count_tests(probabilities: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return z and two-sided p-value of how often each offer was sent, [K]; NaN where not in doubt."""
    n_steps, n_offers = probabilities.shape
    sent = np.bincount(action, minlength=n_offers)
    mean, variance = probabilities.sum(axis=0), (probabilities * (1.0 - probabilities)).sum(axis=0)
    z, p_values = np.full(n_offers, np.nan), np.full(n_offers, np.nan)
    # Rounding of distributions that leave no choice is no doubt.
    for k in np.flatnonzero(variance > 1e-4):
        z[k] = (sent[k] - mean[k]) / math.sqrt(variance[k])
        if variance[k] >= LEAST_VARIANCE:
            p_values[k] = _two_sided(float(z[k]))
            continue
        as_binomial = binom(n_steps, mean[k] / n_steps)
        p_values[k] = min(1.0, 2.0 * min(as_binomial.cdf(sent[k]), as_binomial.sf(sent[k] - 1)))
    return z, p_values


def _sharpness_z(probabilities: FloatArray, action: IntArray) -> float:
    """Σ ln p of what was sent less its expectation, over its standard deviation."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    mean = (probabilities * logs).sum(axis=1)
    variance = float((probabilities * logs**2).sum() - (mean**2).sum())
    taken = logs[np.arange(len(action)), action]
    return float((taken - mean).sum() / math.sqrt(variance)) if variance >= LEAST_VARIANCE else math.nan


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2.0))


def _mix(reference: LoggedDataset, log: LoggedDataset, seed: int) -> ColumnStability:
    """PSI of the offers sent, one bin an offer; its p-value from users permuted."""
    counts = [
        np.bincount(side.action, minlength=log.n_offers).astype(np.float64) for side in (reference, log)
    ]
    one_hot = np.eye(log.n_offers, dtype=np.float32)
    old, new = (Sample(one_hot[side.action], side.user) for side in (reference, log))
    names = tuple(f"offer {k}" for k in range(log.n_offers))
    by_offer = compare_columns(names, old, new, rng=np.random.default_rng([seed, 2]))
    return ColumnStability(
        "offer", float(population_stability(*counts)), min(one.p_value for one in by_offer), 0.0, 0.0
    )
