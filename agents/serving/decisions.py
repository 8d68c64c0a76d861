"""What was decided for whom, with all that a later evaluation and the user's message need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.message_book import Message
from agents.serving.offer_terms import OfferTerms
from agents.serving.reasons import Reason, Seen, reasons


@dataclass(frozen=True, eq=False)
class Decisions:
    """Offers for n users; texts and reasons are worked out when they are asked for.

    Attributes:
        user_id: [n]
        offer: [n] int64 index into the policy's offers.
        propensity: [n] float64 probability with which that offer was drawn; log it, so that what is served
            can be evaluated later. Equal to ``probabilities`` at the offer.
        probabilities: [n, K] float64; rows sum to 1 and are exactly 0 outside the mask.
        mask: [n, K] bool, offers that might have been sent.
        observation: [n, o] float32, columns as the policy names them.
        slots: [n, M] int64 recommended categories, best first.
        embedding: [n, d] float32 of the users.
        week: 1-based week of the log.
        weeks_left: of the campaign.
        dual_price: λ.
        pressure: its pressure.
        catalogue: [K] the offers.
        categories: [C] names.
        columns: [o] names.
        write_messages: chooses the message texts, [n].
    """

    user_id: tuple[str, ...]
    offer: npt.NDArray[np.int64]
    propensity: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    mask: npt.NDArray[np.bool_]
    observation: npt.NDArray[np.float32]
    slots: npt.NDArray[np.int64]
    embedding: npt.NDArray[np.float32]
    week: int
    weeks_left: int
    dual_price: float
    pressure: float
    catalogue: tuple[OfferTerms, ...] = field(repr=False)
    categories: tuple[str, ...] = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    write_messages: Callable[[Decisions], Sequence[Message | None]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.user_id)

    @cached_property
    def offer_name(self) -> tuple[str, ...]:
        """[n] names of the offers."""
        return tuple(self.catalogue[k].name for k in self.offer)

    @cached_property
    def channel(self) -> tuple[str, ...]:
        """[n] channels; of no offer too, though nothing is sent."""
        return tuple(self.catalogue[k].channel for k in self.offer)

    @cached_property
    def depth(self) -> npt.NDArray[np.float64]:
        """[n] fraction that the coupon saves; of a threshold coupon what it saves over what it asks for."""
        return np.array([one.saving for one in self.catalogue])[self.offer]

    @cached_property
    def category_index(self) -> npt.NDArray[np.int64]:
        """[n] category that a percent coupon covers, -1 for other offers."""
        slot = np.array([one.slot for one in self.catalogue])[self.offer] - 1
        chosen = self.slots[np.arange(len(self)), np.maximum(slot, 0)]
        index: npt.NDArray[np.int64] = np.where(slot >= 0, chosen, -1)
        return index

    @cached_property
    def category(self) -> tuple[str | None, ...]:
        """[n] its name; None for other offers."""
        return tuple(self.categories[k] if k >= 0 else None for k in self.category_index)

    @cached_property
    def messages(self) -> tuple[Message | None, ...]:
        """[n] message texts; None where nothing is sent, or the bundle has no texts."""
        return tuple(self.write_messages(self))

    @property
    def message(self) -> tuple[str | None, ...]:
        """[n] the texts alone."""
        return tuple(None if one is None else one.text for one in self.messages)

    @cached_property
    def reasons(self) -> tuple[tuple[Reason, ...], ...]:
        """[n] reasons of each decision, what weighs most first."""
        n_offers = len(self.catalogue)
        context = self.columns[: self._block("uplift").start]
        blocks = {name: self.observation[:, self._block(name)] for name in ("uplift", "cost", "reserve")}
        return tuple(
            reasons(
                int(self.offer[k]),
                self.catalogue,
                Seen(
                    context=dict(zip(context, self.observation[k].tolist(), strict=False)),
                    uplift=blocks["uplift"][k],
                    use=blocks["cost"][k] + blocks["reserve"][k],
                    allowed=self.mask[k, :n_offers],
                    probabilities=self.probabilities[k],
                    dual_price=self.dual_price,
                ),
                self.category[k],
            )
            for k in range(len(self))
        )

    def records(self) -> list[dict[str, Any]]:
        """Return a plain, JSON-ready row a user: what was decided, how probably, and why."""
        return [
            {
                "user_id": self.user_id[k],
                "offer": int(self.offer[k]),
                "offer_name": self.offer_name[k],
                "category": self.category[k],
                "depth": float(self.depth[k]),
                "channel": self.channel[k],
                "message": self._said(k, "text"),
                "terms": self._said(k, "terms"),
                "template": self._said(k, "template"),
                "propensity": float(self.propensity[k]),
                "reasons": [{"code": one.code, "words": one.words} for one in self.reasons[k]],
            }
            for k in range(len(self))
        ]

    def _said(self, place: int, name: str) -> str | None:
        message = self.messages[place]
        return None if message is None else str(getattr(message, name))

    def _block(self, feature: str) -> slice:
        start = self.columns.index(f"{feature}_0")
        return slice(start, start + len(self.catalogue))
