"""The offers of a served policy, as its catalogue had them when it was exported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OfferTerms:
    """One offer; as :class:`envs.offers.Offer`, in plain values.

    Attributes:
        name: unique.
        kind: ``none``, ``push``, ``percent`` or ``threshold``.
        channel: ``push`` or ``mail``.
        slot: 1-based place among a user's recommended categories that a percent coupon covers; else 0.
        depth: discount of a percent coupon as a fraction.
        min_spend: spend from which a threshold coupon pays, log's currency.
        max_discount: most that the coupon can cost.
        validity_weeks: weeks, that of issue included, in which it can be redeemed.
        delivery_cost: charged at once when it is sent.
        delivery_ticks: the same in whole ticks.
        liability_ticks: ticks that issuing reserves.
    """

    name: str
    kind: str
    channel: str
    slot: int
    depth: float
    min_spend: float
    max_discount: float
    validity_weeks: int
    delivery_cost: float
    delivery_ticks: int
    liability_ticks: int

    @property
    def is_message(self) -> bool:
        """Whether a push message is sent."""
        return self.kind != "none" and self.channel == "push"

    @property
    def is_coupon(self) -> bool:
        """Whether a coupon is issued."""
        return self.kind in ("percent", "threshold")

    @property
    def saving(self) -> float:
        """Discount as a fraction; of a threshold coupon what it saves over what it asks for."""
        return self.max_discount / self.min_spend if self.min_spend else self.depth
