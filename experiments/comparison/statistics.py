"""Intervals over worlds and users: how far a mean over simulated campaigns may be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Resamples:
    """R two-level bootstrap resamples of W worlds and n users, as weights.

    Worlds are resampled, then users (Davison & Hinkley 1997, *Bootstrap Methods and their Application*,
    §3.8): what is assumed differs between worlds, and a policy's margin depends more on that than on who the
    users are. With few worlds the interval is rough, but not blind to them. All that is weighted by the same
    resamples is paired.

    Attributes:
        world: [R, W] rows sum to 1.
        user: [R, n] rows sum to 1.
    """

    world: DoubleArray
    user: DoubleArray

    @classmethod
    def draw(cls, n_worlds: int, n_users: int, n_resamples: int, rng: np.random.Generator) -> Resamples:
        """Draw resamples with replacement.

        Raises:
            ValueError: there is no world, user or resample.
        """
        if min(n_worlds, n_users, n_resamples) < 1:
            raise ValueError(
                f"resamples need at least one world, user and resample, got {n_worlds}, {n_users} and "
                f"{n_resamples}"
            )
        world, user = (
            rng.multinomial(size, np.full(size, 1.0 / size), size=n_resamples) / size
            for size in (n_worlds, n_users)
        )
        return cls(world, user)

    def means(self, by_world: DoubleArray) -> DoubleArray:
        """Return the mean of each resample, [R], of a value of each user in each world, [W, n]."""
        resampled: DoubleArray = np.einsum("rn,rn->r", self.world @ by_world, self.user)
        return resampled

    def interval(self, by_world: DoubleArray, confidence: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval of the mean over worlds and users.

        Args:
            by_world: [W, n].
            confidence: of the interval.
        """
        tail = 100 * (1 - confidence) / 2
        low, high = np.percentile(self.means(by_world), [tail, 100 - tail])
        return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, by_world: DoubleArray, resamples: Resamples) -> Estimate:
        """Return the mean of [W, n] values with its 95% interval."""
        return cls(float(by_world.mean()), *resamples.interval(by_world))

    def times(self, factor: float) -> Estimate:
        """Return the estimate of a multiple, factor >= 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class PairedDifference:
    """How much more a policy brings than a baseline in the same worlds and for the same users.

    Attributes:
        difference: mean per user and campaign, with its interval.
        relative: of the baseline's mean; None unless that is positive.
        spend_share: the baseline's spend divided by the policy's; None unless that is positive.
    """

    difference: Estimate
    relative: float | None
    spend_share: float | None

    @classmethod
    def of(
        cls,
        gain: DoubleArray,
        baseline_gain: DoubleArray,
        spend: float,
        baseline_spend: float,
        resamples: Resamples,
    ) -> PairedDifference:
        """Compare two policies that played the same campaigns.

        Args:
            gain: [W, n] incremental margin of the policy.
            baseline_gain: [W, n] of the baseline.
            spend: of the policy.
            baseline_spend: of the baseline.
            resamples: of worlds and users.
        """
        difference = Estimate.of(gain - baseline_gain, resamples)
        below = float(baseline_gain.mean())
        return cls(
            difference,
            relative=difference.value / below if below > 0 else None,
            spend_share=baseline_spend / spend if spend > 0 else None,
        )
