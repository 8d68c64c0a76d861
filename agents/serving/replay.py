"""From events to states: weeks are replayed as the market lived through them.

History, text, fatigue, the frequency cap, coupons held and deals remembered come out as the market has them
for the same events; the tests compare the two. Only what happened before the week that is decided for counts,
and weeks are counted from the log's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from agents.serving.columns import HISTORY_COLUMNS
from agents.serving.context import week_of
from agents.serving.errors import DecisionInputError
from agents.serving.events import UserEvents
from agents.serving.offer_terms import OfferTerms
from agents.serving.settings import PolicySettings
from agents.serving.tables import Tables
from encoders.history_counts import HistoryCounts
from encoders.history_words import write_texts

_CENT_FRACTIONS = 10_000
"""Money is added up in whole hundredths of a cent, exactly, as the log's is."""

_MOST_TRIPS_STORED = 255


@dataclass(frozen=True, eq=False)
class WeeklyTotals:
    """What n users did in each of T weeks.

    Attributes:
        trips: [n, T] uint8.
        bought: [n, T, C] bool.
        spend: [n, T] float32.
        coupon_used: [n, T] bool.
        observed: [n, T] bool, whether the user was a customer.
    """

    trips: npt.NDArray[np.uint8]
    bought: npt.NDArray[np.bool_]
    spend: npt.NDArray[np.float32]
    coupon_used: npt.NDArray[np.bool_]
    observed: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls, users: Sequence[UserEvents], settings: PolicySettings, tables: Tables, n_weeks: int
    ) -> WeeklyTotals:
        """Add the purchases of weeks 1 to ``n_weeks`` up.

        Raises:
            DecisionInputError: a purchase names a category that the policy does not know.
        """
        shape = (len(users), n_weeks)
        trips, spend = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        bought = np.zeros((*shape, len(settings.categories)), dtype=np.bool_)
        coupon, observed = np.zeros(shape, dtype=np.bool_), np.ones(shape, dtype=np.bool_)
        places = {name: k for k, name in enumerate(settings.categories)}
        first = np.datetime64(settings.first_day, "D")
        for row, user in enumerate(users):
            if user.since is not None:
                observed[row, : max(week_of(user.since, settings.first_day) - 1, 0)] = False
            lines = user.purchases
            week = (lines.day - first).astype(np.int64) // 7
            seen = (week >= 0) & (week < n_weeks)
            if not seen.any():
                continue
            week = week[seen]
            np.add.at(spend[row], week, np.rint(lines.spend[seen] * _CENT_FRACTIONS).astype(np.int64))
            coupon[row, week[lines.coupon_discount[seen] > 0]] = True
            _, basket = np.unique(lines.basket_id[seen], return_inverse=True)
            trip = np.unique(week * (int(basket.max()) + 1) + basket)
            trips[row] = np.bincount(trip // (int(basket.max()) + 1), minlength=n_weeks)
            category = tables.categories_of(lines.item_id[seen])
            named = lines.category[seen]
            for place in np.flatnonzero(named != ""):
                if str(named[place]) not in places:
                    raise DecisionInputError(
                        f"transactions: the policy knows no category {str(named[place])!r}, for example "
                        f"{settings.categories[0]!r} is one; give item_id for items of other categories"
                    )
                category[place] = places[str(named[place])]
            modelled = category >= 0
            bought[row, week[modelled], category[modelled]] = True
        return cls(
            trips=np.minimum(trips, _MOST_TRIPS_STORED).astype(np.uint8),
            bought=bought,
            spend=(spend / _CENT_FRACTIONS).astype(np.float32),
            coupon_used=coupon,
            observed=observed,
        )

    def history(self) -> HistoryCounts:
        """Return the users' histories after the last week."""
        n, n_weeks, n_categories = self.bought.shape
        state = HistoryCounts.empty(n, n_categories)
        for week in range(n_weeks):
            after = state.advance(
                self.trips[:, week], self.bought[:, week], self.spend[:, week], self.coupon_used[:, week]
            )
            unseen = ~self.observed[:, week]
            if unseen.any():
                for f in fields(HistoryCounts):
                    getattr(after, f.name)[unseen] = getattr(state, f.name)[unseen]
            state = after
        return state


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
    used = sorted(at for day in user.redeemed if (at := week_of(day, settings.first_day)) < week)
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
    fatigue = np.float32(0.0)
    for at in range(messages[0], week):
        tired = fatigue + gain if at in messages else fatigue
        fatigue = np.minimum(tired * kept, np.float32(1.0))
    memory.fatigue[row] = fatigue
    for at in messages:
        if week - at <= settings.remembered_weeks:
            memory.messages[row] |= 1 << (week - at - 1)


@dataclass(frozen=True, eq=False)
class Replayed:
    """Users before a week, but for their embeddings; fields as in :class:`agents.serving.states.UserStates`.

    Attributes:
        history: [n].
        user: [n, len(USER_COLUMNS)] float32.
        memory: [n].
        texts: [n] what the encoder reads.
    """

    history: HistoryCounts
    user: npt.NDArray[np.float32]
    memory: ShopMemory
    texts: list[str]


def replay(
    users: Sequence[UserEvents], settings: PolicySettings, tables: Tables, week: int, weeks_left: int
) -> Replayed:
    """Return users as they stand before a week.

    Args:
        users: n of them.
        settings: of the policy.
        tables: of the bundle.
        week: that is decided for, 1-based.
        weeks_left: of the campaign.

    Raises:
        DecisionInputError: as of :meth:`WeeklyTotals.of` and :meth:`ShopMemory.of`.
    """
    history = WeeklyTotals.of(users, settings, tables, week - 1).history()
    memory = ShopMemory.of(users, settings, week, weeks_left)
    opted_in = np.array([user.opted_in for user in users], dtype=np.float32)
    columns = [
        *(getattr(history, name) for name in HISTORY_COLUMNS),
        *history.recent_baskets.T,
        memory.fatigue,
        opted_in,
        memory.coupon_depth,
        memory.coupon_weeks_left,
    ]
    texts = write_texts(
        history,
        [user.profile for user in users],
        settings.words,
        settings.style,
        settings.first_week_of_year + week - 1,
    )
    return Replayed(history, np.stack(columns, axis=1), memory, texts)
