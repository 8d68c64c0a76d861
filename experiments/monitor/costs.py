"""Are the costs that the policy expects of its offers the costs that come?

What an offer is expected to cost when it is sent, delivery and redemptions as long as it is valid, stands in
the observation. What it does cost comes in later weeks too, so that sums over a user's campaign are compared,
not weeks. A user who may still redeem when the log ends is left out: his costs are not all in yet. Whether he
may depends on when he was sent something, not on what he did with it. An offer that the budget did not cover
was not sent: nothing is expected of it.

Few coupons are redeemed, so that the spread of a handful of costs says little of their error. What a coupon
costs lies between 0 and its largest discount m; where e is expected of it, the variance is at most e·(m - e)
(Bhatia & Davis 2000). Standard errors are taken from that bound: too large rather than too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from experiments.monitor.findings import Finding, Level, MonitorError
from experiments.ope.logged_dataset import BoolArray, FloatArray, LoggedDataset

WARNING_SHARE, ALARM_SHARE = 0.10, 0.25
"""Of the expected cost, by which the realised one may differ: a budget planned on it is off by as much."""

WARNING_Z, ALARM_Z = 1.96, 3.29
"""Standard errors that the difference must have besides: two-sided 5% and 0.1%."""

GROUP_SIGNIFICANCE = 0.001
"""Of the test over groups, where the total fits but small and large expectations do not."""

GROUPS = 10
COST = "cost_"


class Offer(Protocol):
    """What must be known of an offer."""

    @property
    def name(self) -> str:
        """Unique name."""

    @property
    def validity_weeks(self) -> int:
        """Weeks, that of issue included, in which its coupon can be redeemed; 0 without one."""

    @property
    def max_discount(self) -> float:
        """Most that its coupon can cost, log's currency; 0 without one."""

    @property
    def delivery_cost(self) -> float:
        """Charged at once when it is sent, log's currency."""


@dataclass(frozen=True)
class CostGroup:
    """Users of like expected cost.

    Attributes:
        users: how many.
        expected: mean cost a user, log's currency.
        realised: the same as it came.
        z: difference in standard errors.
    """

    users: int
    expected: float
    realised: float
    z: float


@dataclass(frozen=True)
class CostCalibration:
    """Expected beside realised cost.

    Attributes:
        users: with all costs in, and an offer sent.
        left_out: users who may still redeem.
        expected: total of ``users``, log's currency.
        realised: total that came.
        z: difference in standard errors.
        p_value: of the differences in all groups together.
        groups: users by tenths of the expected cost, smallest first.
    """

    users: int
    left_out: int
    expected: float
    realised: float
    z: float
    p_value: float
    groups: list[CostGroup]

    @property
    def ratio(self) -> float:
        """Realised over expected; NaN where nothing was expected."""
        return self.realised / self.expected if self.expected else math.nan

    @property
    def level(self) -> Level:
        """How bad it is."""
        off, z = abs(self.ratio - 1.0), abs(self.z)
        if off >= ALARM_SHARE and z >= ALARM_Z:
            return Level.ALARM
        in_groups = self.p_value <= GROUP_SIGNIFICANCE
        return Level.WARNING if (off >= WARNING_SHARE and z >= WARNING_Z) or in_groups else Level.OK

    def findings(self) -> list[Finding]:
        """Return the finding on the total and the groups."""
        return [
            Finding(
                "cost calibration",
                self.level,
                f"{self.realised:,.2f} came, {self.expected:,.2f} expected (ratio {self.ratio:.2f}, "
                f"z {self.z:+.1f}; over tenths of users p {self.p_value:.3f}; {self.users} users, "
                f"{self.left_out} may still redeem)",
            )
        ]


def measure_costs(
    log: LoggedDataset, offers: Sequence[Offer], refused: BoolArray | None = None
) -> CostCalibration | None:
    """Compare expected and realised costs; None if no user who was sent something has all costs in.

    Args:
        log: with the policy's observations: ``cost_k`` is what offer k was expected to cost.
        offers: [K] the catalogue.
        refused: [N] bool, the steps whose offer the budget did not cover; None for no step.

    Raises:
        MonitorError: the log has other offers, or its observations do not tell expected costs.
    """
    if len(offers) != log.n_offers:
        raise MonitorError(f"the log has {log.n_offers} offers, the reference {len(offers)}")
    names = log.observation_names
    missing = [k for k in range(log.n_offers) if f"{COST}{k}" not in names]
    if missing:
        raise MonitorError(
            f"the log's observations have no column '{COST}{missing[0]}' with an expected cost"
        )
    places = np.array([names.index(f"{COST}{k}") for k in range(log.n_offers)])
    expected = log.observation[np.arange(log.n_steps), places[log.action]].astype(np.float64)
    delivered = np.ones(log.n_steps, dtype=np.bool_) if refused is None else ~refused
    expected *= delivered
    validity = np.array([offer.validity_weeks for offer in offers], dtype=np.int64)
    ends = np.append(log.episode_starts[1:], log.n_steps) - 1
    weeks_after = ends[log.episode] - np.arange(log.n_steps)
    # A campaign that is over pays nothing more.
    waiting = delivered & (validity[log.action] > weeks_after + 1) & ~log.terminated[ends[log.episode]]
    open_episode = _any_by(log.episode, waiting, log.n_episodes)
    sent = _any_by(log.episode, expected > 0, log.n_episodes)
    kept = sent & ~open_episode
    if not kept.any():
        return None
    most = np.array([offer.max_discount for offer in offers])[log.action]
    redeemed = (expected - np.array([offer.delivery_cost for offer in offers])[log.action]).clip(min=0.0)

    def by_episode(amount: FloatArray) -> FloatArray:
        sums = np.bincount(log.episode, weights=amount, minlength=log.n_episodes)
        return sums.astype(np.float64)[kept]

    totals = _Totals(
        expected=by_episode(expected),
        realised=by_episode(log.cost),
        variance=by_episode(redeemed * (most - redeemed).clip(min=0.0)),
    )
    order = np.argsort(totals.expected, kind="stable")
    groups = [totals.group(part) for part in np.array_split(order, GROUPS) if len(part)]
    total = totals.group(order)
    return CostCalibration(
        users=int(kept.sum()),
        left_out=int((sent & open_episode).sum()),
        expected=float(totals.expected.sum()),
        realised=float(totals.realised.sum()),
        z=total.z,
        p_value=float(chi2.sf(sum(group.z**2 for group in groups), len(groups))),
        groups=groups,
    )


@dataclass(frozen=True)
class _Totals:
    """Of each user's campaign: expected and realised cost, and the largest variance of the realised one."""

    expected: FloatArray
    realised: FloatArray
    variance: FloatArray

    def group(self, part: npt.NDArray[np.int64]) -> CostGroup:
        difference = float((self.realised[part] - self.expected[part]).sum())
        error = math.sqrt(float(self.variance[part].sum()))
        # Without coupons costs are known to the cent; what is left is float32 rounding of the expected ones.
        if abs(difference) <= 1e-5 * float(self.expected[part].sum()):
            difference = 0.0
        return CostGroup(
            users=len(part),
            expected=float(self.expected[part].mean()),
            realised=float(self.realised[part].mean()),
            z=difference / error if error else math.copysign(math.inf, difference) if difference else 0.0,
        )


def _any_by(
    episode: npt.NDArray[np.int64], flag: npt.NDArray[np.bool_], n_episodes: int
) -> npt.NDArray[np.bool_]:
    return np.asarray(np.bincount(episode, weights=flag, minlength=n_episodes) > 0)
