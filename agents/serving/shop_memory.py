"""What a shop remembers of its own doings: fatigue, the frequency cap, coupons held and deals redeemed.

Replayed from what was sent and redeemed, as the market moves these on from week to week.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.serving.context import week_of
from agents.serving.errors import DecisionInputError
from agents.serving.events import UserEvents
from agents.serving.offer_terms import OfferTerms
from agents.serving.settings import PolicySettings


@dataclass(frozen=True, eq=False)
class ShopMemory:
    """What the shop remembers of its own doings for n users before a week.

    Attributes:
        fatigue: [n] float32 as the shop reckons it.
        messages: [n] int64, bit k - 1 is whether a message was sent k weeks ago.
        coupon_depth: [n] float32 of the coupon held, 0 without.
        coupon_weeks_left: [n] float32.
        deal_category: [n, R] int64, newest first, -1 for none.
        deal_depth: [n, R] float32.
        deal_weeks_ago: [n, R] float32.
    """

    fatigue: npt.NDArray[np.float32]
    messages: npt.NDArray[np.int64]
    coupon_depth: npt.NDArray[np.float32]
    coupon_weeks_left: npt.NDArray[np.float32]
    deal_category: npt.NDArray[np.int64]
    deal_depth: npt.NDArray[np.float32]
    deal_weeks_ago: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls, users: Sequence[UserEvents], settings: PolicySettings, week: int, weeks_left: int
    ) -> ShopMemory:
        """Replay what was sent and redeemed before ``week``.

        Args:
            users: n of them.
            settings: catalogue and assumptions.
            week: that is decided for, 1-based.
            weeks_left: of the campaign; no coupon outlives it.

        Raises:
            DecisionInputError: what was sent is not in the catalogue, was sent in the very week or twice in
                one, or a redemption has no coupon; the user is named by his place.
        """
        n, deals = len(users), settings.remembered_deals
        memory = cls(
            fatigue=np.zeros(n, dtype=np.float32),
            messages=np.zeros(n, dtype=np.int64),
            coupon_depth=np.zeros(n, dtype=np.float32),
            coupon_weeks_left=np.zeros(n, dtype=np.float32),
            deal_category=np.full((n, deals), -1, dtype=np.int64),
            deal_depth=np.zeros((n, deals), dtype=np.float32),
            deal_weeks_ago=np.ones((n, deals), dtype=np.float32),
        )
        by_name = {offer.name: offer for offer in settings.offers}
        places = {name: k for k, name in enumerate(settings.categories)}
        for row, user in enumerate(users):
            if not user.sent and not user.redeemed:
                continue
            try:
                _remember(memory, row, user, settings, by_name, places, week, week + weeks_left)
            except DecisionInputError as error:
                raise DecisionInputError(f"users[{row}]: {error}") from error
        return memory


def _remember(
    memory: ShopMemory,
    row: int,
    user: UserEvents,
    settings: PolicySettings,
    by_name: dict[str, OfferTerms],
    places: dict[str, int],
    week: int,
    campaign_end: int,
) -> None:
    sent: dict[int, tuple[OfferTerms, int]] = {}
    for one in user.sent:
        at = week_of(one.day, settings.first_day)
        if one.offer not in by_name:
            raise DecisionInputError(f"offers: the catalogue has no offer {one.offer!r}")
        offer = by_name[one.offer]
        if offer.kind == "none":
            continue
        if at < 1:
            continue
        if at >= week:
            raise DecisionInputError(
                f"offers: {one.offer!r} was sent on {one.day}, in or after the week that is decided for; "
                "there is one decision a user and week"
            )
        if at in sent:
            raise DecisionInputError(
                f"offers: two were sent in the week of {one.day}; there is one a user and week"
            )
        if offer.kind == "percent" and one.category not in places:
            raise DecisionInputError(
                f"offers: {one.offer!r} of {one.day} covers the category {one.category!r}, which the policy "
                f"does not know; for example {settings.categories[0]!r} is one"
            )
        sent[at] = (offer, places[one.category] if offer.kind == "percent" and one.category else -1)
    _fatigue(memory, row, sorted(at for at, (offer, _) in sent.items() if offer.is_message), settings, week)
    weeks = [week_of(day, settings.first_day) for day in user.redeemed]
    used = sorted(at for at in weeks if 1 <= at < week)
    held: tuple[OfferTerms, int, int] | None = None
    redeemed: list[tuple[OfferTerms, int, int]] = []
    for at in sorted({*sent, *used}):
        if at in sent and sent[at][0].is_coupon:
            offer, category = sent[at]
            held = offer, category, min(at + offer.validity_weeks, campaign_end)
        for _ in range(used.count(at)):
            if held is None or at >= held[2]:
                raise DecisionInputError(
                    f"redemptions: one in week {at} of the log, when the user held no coupon sent to him"
                )
            redeemed.append((held[0], held[1], at))
            held = None
    if held is not None and held[2] > week:
        memory.coupon_depth[row] = held[0].saving
        memory.coupon_weeks_left[row] = held[2] - week
    deals = [deal for deal in reversed(redeemed) if deal[0].kind == "percent"]
    for place, (offer, category, at) in enumerate(deals[: settings.remembered_deals]):
        memory.deal_category[row, place] = category
        memory.deal_depth[row, place] = offer.depth
        memory.deal_weeks_ago[row, place] = week - at


def _fatigue(memory: ShopMemory, row: int, messages: list[int], settings: PolicySettings, week: int) -> None:
    """Fatigue and the bits of recent messages, from the weeks in which one was sent."""
    gain, kept = np.float32(settings.fatigue_gain), np.float32(settings.fatigue_memory)
    if not messages:
        return
    fatigue, tiring = np.float32(0.0), set(messages)
    for at in range(messages[0], week):
        tired = fatigue + gain if at in tiring else fatigue
        fatigue = np.minimum(tired * kept, np.float32(1.0))
    memory.fatigue[row] = fatigue
    for at in messages:
        if week - at <= settings.remembered_weeks:
            memory.messages[row] |= 1 << (week - at - 1)
