"""Run-time pacing by the week: the dual prices at which a policy keeps to a shared budget.

One λ-conditioned policy serves any budget; a pacer says at which prices. :class:`EvenPacing` divides the
money left by the weeks left and re-solves λ each week (Balseiro, Besbes & Pizarro 2023, Operations Research).
The pacers of :mod:`agents.forecast` follow a plan that was played through beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from agents.policy import Policy
from envs.campaign import Campaign
from envs.money import to_currency

BISECTIONS = 14


@dataclass(frozen=True)
class PriceRange:
    """Dual prices that pacing may choose from; margin per unit of budget.

    Attributes:
        low: below it money is spent on anything that helps at all.
        high: above it nothing is worth sending.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"a price range must be positive and increasing: {self}")


def price_range(uplift: torch.Tensor, use: torch.Tensor) -> PriceRange:
    """Return a range that covers the ratio of uplift to budget use of nearly all offers.

    Args:
        uplift: [n, K] predicted uplift.
        use: [n, K] predicted budget use; columns that use nothing are left out.

    Raises:
        ValueError: no offer has both a cost and a positive uplift.
    """
    useful = (use > 0) & (uplift > 0)
    if not bool(useful.any()):
        raise ValueError("no offer has a positive predicted uplift and a cost: there is nothing to pace")
    ratio = (uplift[useful] / use[useful]).double().sort().values
    low = float(ratio[int(0.02 * (len(ratio) - 1))])
    high = float(ratio[int(0.995 * (len(ratio) - 1))])
    # Dynamics can make money worth more or less than this week's ratio; leave room on both sides.
    return PriceRange(low / 4.0, max(high * 2.0, low))


def expected_commitment(campaign: Campaign, probabilities: torch.Tensor) -> tuple[float, float]:
    """Return this week's predicted cost and worst-case commitment of a policy, both in currency.

    Args:
        campaign: before the week.
        probabilities: [n, K].
    """
    offers = campaign.spec.offers
    weights = probabilities.double()
    cost = (weights * campaign.prediction.cost).sum()
    liability = (weights * to_currency(offers.delivery_cost + offers.liability)).sum()
    return float(cost), float(liability)


@dataclass(frozen=True)
class WeekPrices:
    """At what prices a week's offers are chosen.

    Attributes:
        spend: λ, margin that a unit spent must bring.
        pressure: >= 0, above 1 in weeks short of reserve; as in :meth:`envs.observation.Prediction.reserve`.
    """

    spend: float
    pressure: float = 1.0


class Pacer(Protocol):
    """Paces one policy through one campaign."""

    def prices(self, policy: Policy, campaign: Campaign) -> WeekPrices:
        """Return the prices of the coming week.

        Args:
            policy: λ-conditioned: sends no more at a higher λ.
            campaign: before the week.
        """


def choose(policy: Policy, campaign: Campaign, prices: WeekPrices) -> torch.Tensor:
    """Return the policy's probabilities [n, K] for the coming week at the given prices."""
    price = torch.full((campaign.n_users,), prices.spend, device=campaign.device)
    return policy.probabilities(campaign.observation(price, prices.pressure), campaign.mask)


def lowest_price(
    policy: Policy,
    campaign: Campaign,
    prices: PriceRange,
    fits: Callable[[float, float], bool],
    pressure: float = 1.0,
    bisections: int = BISECTIONS,
) -> float:
    """Return the lowest λ at which what a policy would send fits; the range's upper end if none does.

    Args:
        policy: λ-conditioned.
        campaign: before the week.
        prices: where to search.
        fits: says so from the week's predicted cost and worst case, both in currency.
        pressure: of the prices.
        bisections: of the range's logarithm.
    """

    def at(log_price: float) -> bool:
        probabilities = choose(policy, campaign, WeekPrices(math.exp(log_price), pressure))
        return fits(*expected_commitment(campaign, probabilities))

    low, high = math.log(prices.low), math.log(prices.high)
    if at(low):
        return prices.low
    for _ in range(bisections):
        middle = 0.5 * (low + high)
        if at(middle):
            high = middle
        else:
            low = middle
    return math.exp(high)


@dataclass(frozen=True)
class EvenPacing:
    """The money left over the weeks left, week by week.

    The plan bounds the predicted cost of the week by that, and the worst case of all requests by what the
    ledger can still reserve, so that rationing by chance stays rare.

    Attributes:
        range: of λ.
    """

    range: PriceRange

    def prices(self, policy: Policy, campaign: Campaign) -> WeekPrices:
        """Return the lowest λ at which the coming week keeps within its plan."""
        ledger = campaign.state.ledger
        plan = float(to_currency(ledger.budget - ledger.spent)) / campaign.weeks_left
        # Coupons sent now may still be out in later weeks; keep those weeks' plan free, or reserving stops
        # all messages until the coupons end.
        longest = int(campaign.spec.offers.validity_weeks.max())
        later_weeks = max(min(longest, campaign.weeks_left) - 1, 0)
        free = float(to_currency(ledger.available))
        available = max(free - later_weeks * plan, min(plan, free))
        return WeekPrices(
            lowest_price(
                policy, campaign, self.range, lambda cost, worst: cost <= plan and worst <= available
            )
        )
