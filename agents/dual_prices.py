"""The two prices of a shared budget, and what follows from them for each week of a campaign.

The cap must hold in every week t of T: what was spent so far plus what is reserved, S_t + R_t <= B. With a
multiplier μ_t for each week, a unit spent in week s is missing in that week and all later ones and costs
λ_s = Σ_{t >= s} μ_t, while a unit reserved in week t costs μ_t only. Here μ_t is one price a for every week
and a further price b for the last: a > 0 where reserved liability fills the cap all along, b > 0 where all
the money ends up being spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Price = torch.Tensor | float


@dataclass(frozen=True)
class DualPrices:
    """Margin that a unit of budget must bring; floats, or [n] tensors for a price per user.

    Attributes:
        at_end: b, of a unit that is left when the campaign ends.
        weekly: a, of a unit that is neither spent nor reserved, per week.
    """

    at_end: Price
    weekly: Price

    @classmethod
    def of_first_week(cls, spend: Price, pressure: Price, horizon_weeks: int) -> DualPrices:
        """Return the prices at which a campaign's first week has the given λ and pressure.

        Args:
            spend: λ of the first week, > 0.
            pressure: share of it that is due to ``weekly``, in [0, 1].
            horizon_weeks: T.
        """
        return cls(at_end=(1.0 - pressure) * spend, weekly=pressure * spend / horizon_weeks)

    def spend(self, weeks_left: int) -> Price:
        """Return λ, the price of a unit spent with so many weeks left, the coming one included."""
        return self.at_end + self.weekly * weeks_left

    def pressure(self, weeks_left: int) -> Price:
        """Return the share of λ that is due to ``weekly``, in [0, 1]."""
        return self.weekly * weeks_left / self.spend(weeks_left)

    def reserve(self, weeks_left: int) -> Price:
        """Return μ, the price of a unit reserved during the coming week alone."""
        return self.weekly + self.at_end if weeks_left == 1 else self.weekly


def surcharged(
    spend: Price, pressure: Price, surcharge: Price, weeks_left: int, longest: int
) -> tuple[Price, Price]:
    """Return λ and pressure of a week in which every unit, spent or reserved, costs so much more.

    The multiplier μ_t of one week is raised where all that is asked for in it cannot be reserved. A unit
    spent is missing in it, so λ grows by as much; so does what a unit reserved costs, which with a coupon of
    the longest validity comes to a pressure that may exceed 1.

    Args:
        spend: λ.
        pressure: of the prices.
        surcharge: >= 0, on the week's multiplier.
        weeks_left: of the campaign, the coming one included.
        longest: weeks that a coupon may be valid; at most ``weeks_left`` count.
    """
    total = spend + surcharge
    return total, (pressure * spend + surcharge * (weeks_left / max(min(longest, weeks_left), 1))) / total
