"""Run-time pacing: the dual price at which this week's plan is expected to be spent.

Each week the money left is divided by the weeks left, and λ is solved anew so that the predicted cost of
what the policy would send meets the plan (re-solving, as in Balseiro, Besbes & Pizarro 2023, Operations
Research). One λ-conditioned policy thus serves any budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def pace(policy: Policy, campaign: Campaign, prices: PriceRange) -> float:
    """Return the lowest dual price at which the coming week keeps within its plan.

    The plan bounds the predicted cost of the week by the money left over the weeks left, and the worst
    case of all requests by what the ledger can still reserve, so that rationing by chance stays rare.

    Args:
        policy: λ-conditioned.
        campaign: before the week.
        prices: where to search; its upper end is returned if even that spends too much.
    """
    ledger = campaign.state.ledger
    plan = float(to_currency(ledger.budget - ledger.spent)) / campaign.weeks_left
    # Coupons sent now may still be out in later weeks; keep those weeks' plan free, or reserving stops all
    # messages until the coupons end.
    longest = int(campaign.spec.offers.validity_weeks.max())
    later_weeks = max(min(longest, campaign.weeks_left) - 1, 0)
    free = float(to_currency(ledger.available))
    available = max(free - later_weeks * plan, min(plan, free))

    def fits(log_price: float) -> bool:
        price = torch.full((campaign.n_users,), math.exp(log_price), device=campaign.device)
        probabilities = policy.probabilities(campaign.observation(price), campaign.mask)
        cost, liability = expected_commitment(campaign, probabilities)
        return cost <= plan and liability <= available

    low, high = math.log(prices.low), math.log(prices.high)
    if fits(low):
        return prices.low
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        if fits(middle):
            high = middle
        else:
            low = middle
    return math.exp(high)
