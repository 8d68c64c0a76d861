"""An exported policy as the service's :class:`~agents.service.policy_port.DecisionMaker`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from agents.service.policy_port import Draws, JsonObject, OfferPrice
from agents.serving import CouponPolicy, context_from_json, user_from_json
from agents.serving.context import decision_week


@dataclass(frozen=True)
class BundlePolicy:
    """Reads users and context from JSON and lets an exported policy draw.

    Attributes:
        policy: the loaded bundle.
    """

    policy: CouponPolicy

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Check and load a bundle.

        Raises:
            BundleError: it is not as it was exported.
        """
        return cls(CouponPolicy.load(folder))

    @property
    def fingerprint(self) -> str:
        """Hash of the bundle."""
        return self.policy.fingerprint

    @cached_property
    def offers(self) -> tuple[OfferPrice, ...]:
        """The K offers; the first sends nothing."""
        return tuple(
            OfferPrice(offer.name, offer.delivery_ticks, offer.liability_ticks, offer.validity_weeks)
            for offer in self.policy.catalogue
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the o observation columns."""
        return self.policy.columns

    def week_of(self, context: JsonObject) -> int:
        """Return the week that a context speaks of.

        Raises:
            DecisionInputError: the context cannot be read.
        """
        return decision_week(context_from_json(context), self.policy.settings, self.policy.tables).week

    def draw(
        self,
        users: Sequence[JsonObject],
        context: JsonObject,
        uniform: npt.NDArray[np.float64],
        available: float,
    ) -> Draws:
        """Draw an offer for each user; see :class:`~agents.service.policy_port.DecisionMaker`.

        Raises:
            DecisionInputError: a user or the context cannot be read; place and example are named.
        """
        events = [user_from_json(user, where=f"users[{place}]") for place, user in enumerate(users)]
        decided = self.policy.decide(
            events, replace(context_from_json(context), available=available), uniform=uniform
        )
        answers: list[dict[str, Any]] = [
            {
                "offer": record["offer_name"],
                "channel": record["channel"] if record["offer"] else None,
                **{name: record[name] for name in ("category", "depth", "message", "reasons")},
            }
            for record in decided.records()
        ]
        return Draws(
            offer=decided.offer,
            probabilities=decided.probabilities,
            mask=decided.mask,
            observation=decided.observation,
            weeks_left=decided.weeks_left,
            dual_price=decided.dual_price,
            answers=answers,
        )
