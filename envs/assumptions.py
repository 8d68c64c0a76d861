"""Parameters that these logs cannot identify, kept apart from the fitted ones, each with range and source.

Targeting in the logs was not random and push messages are not in them at all, so the lift of a coupon or
message on visits, fatigue and opt-out are assumed. They come as ranges: simulators draw them, and no
result is reported from one point.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch


@dataclass(frozen=True)
class AssumedRange:
    """One assumed parameter.

    Attributes:
        low: smallest value drawn.
        central: value that a planner would use.
        high: largest value drawn.
        meaning: what it is, with its unit.
        source: where the order of magnitude comes from.
    """

    low: float
    central: float
    high: float
    meaning: str
    source: str

    def __post_init__(self) -> None:
        if not self.low <= self.central <= self.high:
            raise ValueError(f"assumed range out of order: {self}")


ASSUMED_RANGES: dict[str, AssumedRange] = {
    "message_lift": AssumedRange(
        0.03,
        0.08,
        0.15,
        "added to the logit of a weekly visit by a push message to a rested user",
        "no estimate for groceries is public; ± 1-4 points on a weekly visit is the order of the retail "
        "e-mail experiments of Sahni, Wheeler & Chintagunta (2018, Marketing Science 37(2))",
    ),
    "message_spread": AssumedRange(
        0.2,
        0.5,
        1.0,
        "standard deviation among users of what a message does to them, in multiples of message_lift; "
        "where it is wide, some visit less for being messaged",
        "a planner's guess; that targeted messages put some customers off is shown by Ascarza (2018, Journal "
        "of Marketing Research 55(1))",
    ),
    "coupon_lift": AssumedRange(
        0.0,
        0.04,
        0.10,
        "added to the logit of a weekly visit while a coupon is held, redeemed or not",
        "exposure effect of Venkatesan & Farris (2012, Journal of Marketing 76(1)): trips and spend rise "
        "with targeted coupons even unredeemed",
    ),
    "fatigue_memory": AssumedRange(
        0.5,
        0.7,
        0.85,
        "share of fatigue that is left after a week",
        "recovery over one to a few weeks as in Yancey & Settles (2020, KDD, sleeping recovering bandit)",
    ),
    "fatigue_gain": AssumedRange(
        0.15,
        0.30,
        0.45,
        "fatigue added by a message, of 1 at which a message has no effect left",
        "a planner's guess; wear-out of repeated messages is established, its size varies by programme",
    ),
    "opt_out_rested": AssumedRange(
        0.0005,
        0.001,
        0.003,
        "probability that a message to a rested user makes him opt out",
        "a planner's guess of the order of published e-mail unsubscribe rates (0.1-0.3% per message)",
    ),
    "opt_out_fatigued": AssumedRange(
        0.005,
        0.01,
        0.03,
        "the same for a fully fatigued user; in between it is linear in fatigue",
        "a planner's guess; that frequency drives opt-out is established, its size varies by programme",
    ),
    "stock_effect": AssumedRange(
        0.0,
        0.15,
        0.40,
        "taken from the logit of buying a category in the week after a coupon on it was redeemed: the pantry "
        "is fuller than the purchase alone tells",
        "stockpiling of groceries on deal (Hendel & Nevo 2006, Econometrica 74(6)); no dip after mass "
        "promotion shows in these logs, so the range starts at 0",
    ),
    "stock_memory": AssumedRange(
        0.4,
        0.6,
        0.8,
        "share of that which is left after a further week",
        "a planner's guess: a pantry empties over two to four weeks",
    ),
    "reference_effect": AssumedRange(
        0.0,
        0.5,
        1.5,
        "taken from the same logit per unit of the redeemed coupon's depth: who remembers a deal finds the "
        "shelf price dear",
        "sign and order of the reference-price effects reviewed by Mazumdar, Raj & Sinha (2005, Journal of "
        "Marketing 69(4))",
    ),
    "reference_memory": AssumedRange(
        0.70,
        0.85,
        0.95,
        "share of that memory which is left after a further week",
        "smoothing of past prices by purchase occasion, .6-.9, in the models reviewed there",
    ),
    "opt_in_share": AssumedRange(
        0.6,
        0.8,
        0.95,
        "share of users that can be reached at the start",
        "a planner's guess; varies by channel",
    ),
}


@dataclass(frozen=True)
class AssumedResponse:
    """One draw of the assumed parameters; meanings in ASSUMED_RANGES."""

    message_lift: float
    message_spread: float
    coupon_lift: float
    fatigue_memory: float
    fatigue_gain: float
    opt_out_rested: float
    opt_out_fatigued: float
    stock_effect: float
    stock_memory: float
    reference_effect: float
    reference_memory: float
    opt_in_share: float

    def next_fatigue(self, fatigue: torch.Tensor, message: torch.Tensor) -> torch.Tensor:
        """Return fatigue a week later, [n] in [0, 1], where a message was sent (bool [n]) or not."""
        return ((fatigue + self.fatigue_gain * message) * self.fatigue_memory).clamp(max=1.0)

    def opt_out_probability(self, fatigue: torch.Tensor) -> torch.Tensor:
        """Return the probability that a message makes users of this fatigue, [n], opt out."""
        return self.opt_out_rested + (self.opt_out_fatigued - self.opt_out_rested) * fatigue

    def deal_penalty(self, weeks_ago: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """Return what past deals take from the logit of buying their categories again, non-negative.

        Args:
            weeks_ago: since the coupon was redeemed, at least 1; any shape.
            depth: of the coupon, same shape.
        """
        later = weeks_ago - 1.0
        stock = self.stock_effect * self.stock_memory**later
        return stock + self.reference_effect * depth * self.reference_memory**later

    @classmethod
    def central(cls) -> AssumedResponse:
        """Return the central values: what the deployed predictor believes."""
        return cls(**{f.name: ASSUMED_RANGES[f.name].central for f in fields(cls)})

    @classmethod
    def draw(cls, rng: np.random.Generator) -> AssumedResponse:
        """Draw each parameter uniformly from its range."""
        return cls(
            **{
                f.name: float(rng.uniform(ASSUMED_RANGES[f.name].low, ASSUMED_RANGES[f.name].high))
                for f in fields(cls)
            }
        )
