"""What the service asks of a policy; :mod:`agents.service.bundle_policy` answers with an exported one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

JsonObject = Mapping[str, Any]


@dataclass(frozen=True)
class OfferPrice:
    """What an offer commits.

    Attributes:
        name: of the catalogue.
        charge: ticks charged when it is sent.
        liability: ticks that its coupon can cost; 0 without one.
        validity_weeks: weeks in which the coupon can be redeemed, that of issue included.
    """

    name: str
    charge: int
    liability: int
    validity_weeks: int


@dataclass(frozen=True)
class Draws:
    """Offers drawn for n users in a week, with all that a later evaluation needs; K offers, o columns.

    Attributes:
        offer: [n] int64.
        probabilities: [n, K] float64, 0 outside the mask.
        mask: [n, K] bool.
        observation: [n, o] float32.
        weeks_left: weeks of the campaign left, this one included.
        dual_price: λ of the week.
        answers: n JSON objects for the callers: the offer, its channel, text, reasons and so on.
    """

    offer: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_]
    observation: npt.NDArray[np.float32]
    weeks_left: int
    dual_price: float
    answers: Sequence[JsonObject]


class DecisionMaker(Protocol):
    """A policy that decides for users described in JSON. Safe to call from several threads."""

    @property
    def fingerprint(self) -> str:
        """Hash of the bundle, hexadecimal, at most 64 characters."""

    @property
    def offers(self) -> tuple[OfferPrice, ...]:
        """The K offers; the first sends nothing."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the o observation columns."""

    def week_of(self, context: JsonObject) -> int:
        """Return the week that a context speaks of.

        Raises:
            DecisionInputError: the context cannot be read.
        """

    def draw(
        self,
        users: Sequence[JsonObject],
        context: JsonObject,
        uniform: npt.NDArray[np.float64],
        available: float,
    ) -> Draws:
        """Draw an offer for each user by inversion of ``uniform``, [n].

        Args:
            users: n users with their events.
            context: the week, and what the policy should know of it.
            uniform: [n] in [0, 1).
            available: currency left in the budget.

        Raises:
            DecisionInputError: a user or the context cannot be read; place and example are named.
        """
