"""The four strategies by which shops sent coupons before they predicted anything.

Everyone at set times, a welcome gift for new users, a reward for spend or frequency, and the coupon on a
fixed category: the textbook forms of sales promotion (Blattberg & Neslin 1990, *Sales Promotion: Concepts,
Methods, and Strategies*) and of rewarding by recency, frequency and money (Hughes 1994, *Strategic Database
Marketing*). Each sends one offer, always the same, and asks no model what it would change.

None has a natural place for a budget. So that they can be paced to the same spend as any other policy, the
dual price λ sets how many are sent the offer: a higher λ never means more of them. It does so row by row,
without ranking users against each other, so that a decision for one user does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

import torch

from agents.policy import Policy
from envs.campaign import MarketSpec
from envs.observation import CONTEXT_FEATURES, LOG_DUAL_PRICE
from envs.offers import Catalogue, Offer, OfferKind

EDGE = 0.1
"""Width, in log units, of the soft edge of a threshold. Many users look exactly alike to a rule on one
feature; behind a hard edge a small change of λ would turn all of them at once."""

NEW_WITHIN_WEEKS = 4.0
"""A user who has not visited for longer is lapsed, not new."""

SPEND_RESPONSE = 0.05
"""Share by which a coupon is taken to raise anyone's margin where users are rewarded for spend: a rule of
thumb, the same for all, that turns margin and cost into the units of λ."""


class EveryoneAtSetTimes:
    """The same offer to everyone every few weeks: the leaflet, the seasonal sale.

    Of those whom the offer can reach, λ lets 1 / (1 + λ) have it, drawn by lot.

    Args:
        offer: index in the catalogue, > 0.
        every_weeks: weeks from one sending to the next; it is sent when the weeks left are a multiple of it.
    """

    name = "everyone at set times"

    def __init__(self, offer: int, every_weeks: int = 4) -> None:
        if every_weeks < 1:
            raise ValueError(f"every_weeks must be >= 1, got {every_weeks}")
        self.offer = _sent_offer(offer)
        self.every_weeks = every_weeks

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the share sent in the weeks of sending, and no offer in all others."""
        weeks_left = _context(observation, "weeks_left").round()
        due = (weeks_left > 0) & (weeks_left % self.every_weeks == 0)
        return _sent_to(_share_at_price(observation) * due, self.offer, mask)


class WelcomeGift:
    """A gift for new users, for as long as they are new: to win the second and third visit.

    The shop's features do not tell when a user first came. New is who visited within
    :data:`NEW_WITHIN_WEEKS` but in few of the weeks before, by the slow visit rate r (half-life 16 weeks);
    who always came rarely cannot be told from him. How few visits still count as few is set by the money
    there is: users with r / (1 - r) < 1 / λ, so that the newest are first to be given something.

    Args:
        offer: index in the catalogue, > 0.
    """

    name = "welcome gift"

    def __init__(self, offer: int) -> None:
        self.offer = _sent_offer(offer)

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return 1 on the gift for new users and 0 for all others, with a soft edge between them."""
        recency = torch.exp(_context(observation, "log_visit_recency"))
        recent = recency < NEW_WITHIN_WEEKS + 0.5
        few_visits = -_context(observation, "slow_visit_logit")
        share = torch.sigmoid((few_visits - observation[:, LOG_DUAL_PRICE]) / EDGE)
        return _sent_to(share * recent, self.offer, mask)


class LoyaltyCriterion(StrEnum):
    """By what users earn a reward."""

    SPEND = "spend"
    FREQUENCY = "frequency"


class LoyaltyReward:
    """A reward for the users who spend most or come most often: the loyalty programme.

    By spend: the offer goes to users whose expected margin m of the week satisfies
    SPEND_RESPONSE · m > λ · c, c being the most that the offer can cost. By frequency: to users whose slow
    visit rate r satisfies r / (1 - r) > λ. Both start with the best customers and go down as λ falls.

    Args:
        offer: index in the catalogue, > 0.
        most_cost: c > 0, currency; only the reward by spend needs it.
        criterion: spend or frequency.
    """

    def __init__(
        self, offer: int, most_cost: float, criterion: LoyaltyCriterion = LoyaltyCriterion.SPEND
    ) -> None:
        if not most_cost > 0:
            raise ValueError(f"most_cost must be > 0, got {most_cost}")
        self.offer = _sent_offer(offer)
        self.most_cost = most_cost
        self.criterion = criterion

    @property
    def name(self) -> str:
        """Name with the criterion."""
        return f"reward for {self.criterion.value}"

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return 1 on the reward for the best customers and 0 for all others, with a soft edge."""
        if self.criterion is LoyaltyCriterion.SPEND:
            week = _context(observation, "visit_probability") * _context(
                observation, "expected_basket_margin"
            )
            worth = torch.log(SPEND_RESPONSE * week.clamp(min=1e-9) / self.most_cost)
        else:
            worth = _context(observation, "slow_visit_logit")
        share = torch.sigmoid((worth - observation[:, LOG_DUAL_PRICE]) / EDGE)
        return _sent_to(share, self.offer, mask)


class FixedCategory:
    """Always the same coupon for the category that comes first with the user, whoever he is.

    Of those whom the offer can reach, λ lets 1 / (1 + λ) have it each week, drawn by lot.

    Args:
        offer: index in the catalogue, > 0.
    """

    name = "fixed category"

    def __init__(self, offer: int) -> None:
        self.offer = _sent_offer(offer)

    def probabilities(self, observation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the same share sent to every user and week."""
        return _sent_to(_share_at_price(observation), self.offer, mask)


def traditional_strategies(market: MarketSpec) -> list[Policy]:
    """Return the four strategies with the offers of a market's catalogue that suit them best.

    Everyone and the fixed category get the shallowest percent coupon on the first slot, new users the
    deepest, loyal users the threshold coupon that asks for the least. Where a catalogue has no such coupon,
    another kind stands in for it: it is the strategies that are compared, not the catalogue.

    Args:
        market: whose catalogue is sent from.

    Raises:
        ValueError: the catalogue has nothing but "no offer".
    """
    catalogue = market.catalogue
    percent_first = (OfferKind.PERCENT, OfferKind.THRESHOLD, OfferKind.PUSH)
    threshold_first = (OfferKind.THRESHOLD, OfferKind.PERCENT, OfferKind.PUSH)
    shallow = _best(catalogue, percent_first, lambda offer: (offer.slot, offer.depth, offer.max_discount))
    deep = _best(catalogue, percent_first, lambda offer: (-offer.depth, offer.slot, -offer.max_discount))
    threshold = _best(catalogue, threshold_first, lambda offer: (offer.min_spend, offer.slot, offer.depth))
    reward = catalogue.offers[threshold]
    # A message of a catalogue without coupons may be free; any positive scale will do then.
    most_cost = (reward.max_discount + reward.delivery_cost) or 1.0
    return [
        EveryoneAtSetTimes(shallow, every_weeks=min(4, market.horizon_weeks)),
        WelcomeGift(deep),
        LoyaltyReward(threshold, most_cost),
        FixedCategory(shallow),
    ]


def _best(
    catalogue: Catalogue, kinds: Sequence[OfferKind], order: Callable[[Offer], tuple[float, ...]]
) -> int:
    """Index of the lowest offer by ``order`` among those of the first kind that the catalogue has."""
    for kind in kinds:
        rows = [k for k, offer in enumerate(catalogue.offers) if offer.kind is kind]
        if rows:
            return min(rows, key=lambda k: order(catalogue.offers[k]))
    raise ValueError("the catalogue has no offer that can be sent: traditional strategies need at least one")


def _sent_offer(offer: int) -> int:
    if offer < 1:
        raise ValueError(f"offer must be the index of an offer that is sent, > 0, got {offer}")
    return offer


def _context(observation: torch.Tensor, feature: str) -> torch.Tensor:
    return observation[:, CONTEXT_FEATURES.index(feature)]


def _share_at_price(observation: torch.Tensor) -> torch.Tensor:
    """1 / (1 + λ), [n]."""
    return torch.sigmoid(-observation[:, LOG_DUAL_PRICE])


def _sent_to(share: torch.Tensor, offer: int, mask: torch.Tensor) -> torch.Tensor:
    """Probabilities [n, K] that send an offer with probability ``share`` [n] where it is allowed."""
    if offer >= mask.shape[1]:
        raise ValueError(f"offer {offer} is not in a catalogue of {mask.shape[1]} offers")
    out = torch.zeros(mask.shape, dtype=share.dtype, device=share.device)
    out[:, offer] = share * mask[:, offer]
    out[:, 0] = 1.0 - out[:, offer]
    return out
