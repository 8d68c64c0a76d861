"""From events to states: weeks are replayed as the market lived through them.

History, text, fatigue, the frequency cap, coupons held and deals remembered come out as the market has them
for the same events; the tests compare the two. Only what happened before the week that is decided for counts,
and what happened before the log's first week does not.
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
from agents.serving.settings import PolicySettings
from agents.serving.shop_memory import ShopMemory
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
