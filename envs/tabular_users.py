"""Users of the tabular market: what a week does to one of them, as exact probabilities.

A user has a fatigue level, a stock at home and a subscription. One week runs in this order:

1. an offer is sent or not; a coupon is valid for this week only;
2. the user buys one pack or not: rather with an empty pantry, rather with an offer, less when tired of
   messages; a buyer redeems the coupon that he noticed;
3. the pack goes into the pantry and some of the pantry is eaten, so that a purchase that an offer brought
   forward is missing in the weeks that follow (pantry loading: Hendel & Nevo 2006, Econometrica 74(6));
4. a message tires, a week without one may rest, and a message may make a tired user unsubscribe for good.

All numbers are a planner's guesses, chosen so that the dynamics matter; nothing here is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch

NO_PURCHASE, PURCHASE, REDEMPTION = range(3)
"""Events of a week."""


class UserState(NamedTuple):
    """State of one user at the start of a week.

    Attributes:
        fatigue: 0 is rested; at the highest level a message has no effect left. Of no meaning, and kept at
            0, once the user has unsubscribed.
        stock: weeks of consumption in the pantry.
        opted_in: whether messages may be sent.
    """

    fatigue: int
    stock: int
    opted_in: bool


@dataclass(frozen=True)
class TabularOffer:
    """An offer; all are sent as messages.

    Attributes:
        name: what a table prints.
        discount: currency paid when a coupon is redeemed; 0 for a plain push message.
    """

    name: str
    discount: float


@dataclass(frozen=True)
class UserType:
    """How users of one type respond; logits are of the weekly purchase probability.

    Attributes:
        name: what a table prints.
        share: of all users.
        need: logit with an empty pantry, rested, nothing sent.
        satiation: taken off the logit per week of stock at home.
        annoyance: taken off the logit per level of fatigue.
        lift: added to the logit by each offer in turn when the user is rested; falls linearly to nothing at
            the highest fatigue.
        margin: contribution of a purchase before coupon cost, currency.
    """

    name: str
    share: float
    need: float
    satiation: float
    annoyance: float
    lift: tuple[float, ...]
    margin: float


@dataclass(frozen=True)
class Pantry:
    """What all user types have in common.

    Attributes:
        offers: actions 1, 2, …; action 0 sends nothing.
        delivery_fee: currency charged at once for each message.
        redemption: probability that a buyer who holds a coupon redeems it.
        fatigue_levels: a message raises fatigue by one level, up to the highest.
        recovery: probability that a week without a message lowers it by one level.
        opt_out: probability that a message makes the user unsubscribe, by fatigue level.
        opt_in_share: share of users that can be reached at the start.
        stock_levels: 0, 1, … weeks of consumption at home.
        pack_weeks: weeks of consumption in one purchase.
        consumption: probability that a week's consumption is eaten in a week.

    Raises:
        ValueError: a probability is outside [0, 1], or the levels do not fit each other.
    """

    offers: tuple[TabularOffer, ...]
    delivery_fee: float
    redemption: float
    fatigue_levels: int
    recovery: float
    opt_out: tuple[float, ...]
    opt_in_share: float
    stock_levels: int
    pack_weeks: int
    consumption: float

    def __post_init__(self) -> None:
        for name, value in (
            ("redemption", self.redemption),
            ("recovery", self.recovery),
            ("opt_in_share", self.opt_in_share),
            ("consumption", self.consumption),
            *(("opt_out", value) for value in self.opt_out),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be a probability, got {value}")
        if self.fatigue_levels < 2 or len(self.opt_out) != self.fatigue_levels:
            raise ValueError(
                f"need at least 2 fatigue levels and an opt_out for each, got {self.fatigue_levels} levels "
                f"and {len(self.opt_out)} probabilities"
            )
        if not 1 <= self.pack_weeks < self.stock_levels:
            raise ValueError(
                f"a pack of {self.pack_weeks} weeks does not go into stock levels 0..{self.stock_levels - 1}"
            )

    @property
    def states(self) -> list[UserState]:
        """All S states; first those of subscribers."""
        levels = product(range(self.fatigue_levels), range(self.stock_levels))
        subscribed = [UserState(fatigue, stock, True) for fatigue, stock in levels]
        return subscribed + [UserState(0, stock, False) for stock in range(self.stock_levels)]

    def features(self) -> torch.Tensor:
        """Return what an agent sees of each state, [S, f] float32: one-hot fatigue, one-hot stock, opt-in."""
        rows = torch.zeros(len(self.states), self.fatigue_levels + self.stock_levels + 1)
        for row, state in zip(rows, self.states, strict=True):
            row[state.fatigue] = 1.0
            row[self.fatigue_levels + state.stock] = 1.0
            row[-1] = float(state.opted_in)
        return rows

    def allows(self, action: int, state: UserState) -> bool:
        """Return whether an action may be taken: no message after opt-out, none at the highest fatigue.

        Fatigue counts recent messages, so the second is a frequency cap.
        """
        return action == 0 or (state.opted_in and state.fatigue < self.fatigue_levels - 1)

    def purchase_probability(self, user: UserType, action: int, state: UserState) -> float:
        """Return the probability that a user of a type buys in the week; 0 where the pack has no room.

        Were a pack that does not fit lost, an offer to a user with a full pantry would seem to bring
        sales that are never missed later.
        """
        if state.stock + self.pack_weeks > self.stock_levels - 1:
            return 0.0
        rested = 1.0 - state.fatigue / (self.fatigue_levels - 1)
        lift = user.lift[action - 1] * rested if action else 0.0
        logit = user.need + lift - user.satiation * state.stock - user.annoyance * state.fatigue
        return 1.0 / (1.0 + math.exp(-logit))

    def outcomes(
        self, user: UserType, action: int, state: UserState
    ) -> Iterator[tuple[float, int, UserState]]:
        """Yield what a week may bring: probability, event, next state; an outcome may come up twice."""
        buys = self.purchase_probability(user, action, state)
        redeems = self.redemption if action and self.offers[action - 1].discount > 0 else 0.0
        events = (
            (1.0 - buys, NO_PURCHASE, 0),
            (buys * (1.0 - redeems), PURCHASE, self.pack_weeks),
            (buys * redeems, REDEMPTION, self.pack_weeks),
        )
        eaten = ((self.consumption, 1), (1.0 - self.consumption, 0))
        for (p_event, event, pack), (p_eaten, meal), (p_message, fatigue, opted_in) in product(
            events, eaten, self._after_message(bool(action), state)
        ):
            if p_event > 0:
                stock = max(state.stock + pack - meal, 0)
                yield p_event * p_eaten * p_message, event, UserState(fatigue, stock, opted_in)

    def _after_message(self, message: bool, state: UserState) -> list[tuple[float, int, bool]]:
        """Probability, fatigue and subscription a week later."""
        if not state.opted_in:
            return [(1.0, 0, False)]
        if not message:
            rested = max(state.fatigue - 1, 0)
            return [(self.recovery, rested, True), (1.0 - self.recovery, state.fatigue, True)]
        leaves = self.opt_out[state.fatigue]
        tired = min(state.fatigue + 1, self.fatigue_levels - 1)
        return [(1.0 - leaves, tired, True), (leaves, 0, False)]


DEMO_PANTRY = Pantry(
    offers=(
        TabularOffer("reminder", 0.0),
        TabularOffer("small coupon", 0.7),
        TabularOffer("large coupon", 1.4),
    ),
    delivery_fee=0.25,  # by post
    redemption=0.9,
    fatigue_levels=3,
    recovery=0.8,
    opt_out=(0.002, 0.01, 0.02),
    opt_in_share=0.85,
    stock_levels=5,
    pack_weeks=2,
    consumption=0.8,
)

DEMO_USERS = (
    # Buys in time anyway: what a coupon brings forward is missing a week or two later.
    UserType("sure thing", 0.25, need=1.9, satiation=1.2, annoyance=0.1, lift=(0.3, 1.1, 1.7), margin=3.0),
    # Would go without, or elsewhere: most of what an offer brings is new.
    UserType("persuadable", 0.25, need=-1.7, satiation=0.7, annoyance=0.1, lift=(0.7, 1.1, 1.7), margin=3.0),
    # Buys large and late: an offer is worth most once the pantry has run empty.
    UserType("forgetful", 0.20, need=-0.6, satiation=1.0, annoyance=0.1, lift=(0.6, 1.2, 2.0), margin=4.0),
    # Answers each message well, and stays away for weeks afterwards.
    UserType("sleeping dog", 0.10, need=1.0, satiation=1.2, annoyance=0.8, lift=(0.4, 1.2, 1.7), margin=3.0),
    # Hardly to be won.
    UserType("lost cause", 0.20, need=-3.2, satiation=1.0, annoyance=0.1, lift=(0.1, 0.3, 0.6), margin=3.0),
)
"""Lifts are those of DEMO_PANTRY's offers, in their order."""
