"""The purchase history as plain NumPy arrays: what is kept of it, and how it moves on by a week.

:class:`encoders.history.HistoryState` is the same in torch, for training and the market; where torch is not
installed, a served policy keeps its users' histories with this. Both take every constant from here, and the
tests hold one to the other, to the last bit of what is stored in half precision or as whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NEVER_WEEKS = 60.0
"""Recency of something that has not happened; also its cap."""

SLOW_HALF_LIFE_WEEKS = 16.0
FAST_HALF_LIFE_WEEKS = 4.0
SLOW_DECAY = 0.5 ** (1.0 / SLOW_HALF_LIFE_WEEKS)
FAST_DECAY = 0.5 ** (1.0 / FAST_HALF_LIFE_WEEKS)
"""What is left of a count after a week."""

RECENT_WEEKS = 4
"""Weeks of which it is remembered exactly whether a category was bought."""

RECENT_BASKETS = 4
"""Weeks of which the size of the basket is remembered."""

MOST_TRIPS = 7.0
"""Trips in a week that count; more of them say no more."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class HistoryCounts:
    """What users did so far; fields, shapes and types are those of :class:`encoders.history.HistoryState`.

    Attributes:
        category_recency: [n, C] uint8.
        category_slow: [n, C] float16.
        category_fast: [n, C] float16.
        recent: [n, C] uint8.
        visit_recency: [n] float32, as all that follow.
        visits_slow: [n]
        visits_fast: [n]
        weeks_slow: [n]
        weeks_fast: [n]
        basket_size: [n]
        basket_spend: [n]
        trips_slow: [n]
        trips_fast: [n]
        last_trips: [n]
        coupons_slow: [n]
        recent_baskets: [n, RECENT_BASKETS]
    """

    category_recency: npt.NDArray[np.uint8]
    category_slow: npt.NDArray[np.float16]
    category_fast: npt.NDArray[np.float16]
    recent: npt.NDArray[np.uint8]
    visit_recency: FloatArray
    visits_slow: FloatArray
    visits_fast: FloatArray
    weeks_slow: FloatArray
    weeks_fast: FloatArray
    basket_size: FloatArray
    basket_spend: FloatArray
    trips_slow: FloatArray
    trips_fast: FloatArray
    last_trips: FloatArray
    coupons_slow: FloatArray
    recent_baskets: FloatArray

    @classmethod
    def empty(cls, n_users: int, n_categories: int) -> HistoryCounts:
        """Return the state of users about whom nothing is known."""
        shape = (n_users, n_categories)

        def per_user() -> FloatArray:
            return np.zeros(n_users, dtype=np.float32)

        return cls(
            category_recency=np.full(shape, int(NEVER_WEEKS), dtype=np.uint8),
            category_slow=np.zeros(shape, dtype=np.float16),
            category_fast=np.zeros(shape, dtype=np.float16),
            recent=np.zeros(shape, dtype=np.uint8),
            visit_recency=np.full(n_users, NEVER_WEEKS, dtype=np.float32),
            visits_slow=per_user(),
            visits_fast=per_user(),
            weeks_slow=per_user(),
            weeks_fast=per_user(),
            basket_size=per_user(),
            basket_spend=per_user(),
            trips_slow=per_user(),
            trips_fast=per_user(),
            last_trips=per_user(),
            coupons_slow=per_user(),
            recent_baskets=np.zeros((n_users, RECENT_BASKETS), dtype=np.float32),
        )

    def advance(
        self,
        trips: npt.NDArray[Any],
        bought: npt.NDArray[np.bool_],
        spend: FloatArray,
        coupon_used: npt.NDArray[np.bool_],
    ) -> HistoryCounts:
        """Return the state after one more week.

        Args:
            trips: [n] shopping trips of the week; none is no visit.
            bought: [n, C]; False wherever the user did not visit.
            spend: [n] spend of the week in all categories.
            coupon_used: [n], whether a coupon lowered the week's bill.
        """
        visited = trips > 0
        counted = np.minimum(trips.astype(np.float32), np.float32(MOST_TRIPS))
        visit = visited.astype(np.float32)
        size = bought.sum(axis=1, dtype=np.float32)
        now = bought.astype(np.float16)
        later = np.minimum(self.visit_recency + np.float32(1.0), np.float32(NEVER_WEEKS))
        one_more = np.minimum(self.category_recency + np.uint8(1), np.uint8(NEVER_WEEKS))
        return HistoryCounts(
            category_recency=np.where(bought, np.uint8(1), one_more),
            category_slow=_faded_half(self.category_slow, SLOW_DECAY) + now,
            category_fast=_faded_half(self.category_fast, FAST_DECAY) + now,
            recent=(((self.recent << 1) | bought) & (2**RECENT_WEEKS - 1)).astype(np.uint8),
            visit_recency=np.where(visited, np.float32(1.0), later),
            visits_slow=_grown(visit, self.visits_slow, SLOW_DECAY),
            visits_fast=_grown(visit, self.visits_fast, FAST_DECAY),
            weeks_slow=_grown(np.ones_like(visit), self.weeks_slow, SLOW_DECAY),
            weeks_fast=_grown(np.ones_like(visit), self.weeks_fast, FAST_DECAY),
            basket_size=_grown(size, self.basket_size, SLOW_DECAY),
            basket_spend=_grown(spend.astype(np.float32), self.basket_spend, SLOW_DECAY),
            trips_slow=_grown(counted, self.trips_slow, SLOW_DECAY),
            trips_fast=_grown(counted, self.trips_fast, FAST_DECAY),
            last_trips=counted,
            coupons_slow=_grown(coupon_used.astype(np.float32), self.coupons_slow, SLOW_DECAY),
            recent_baskets=np.concatenate([size[:, None], self.recent_baskets[:, :-1]], axis=1),
        )


def _faded_half(counts: npt.NDArray[np.float16], decay: float) -> npt.NDArray[np.float16]:
    """Multiply as torch does: in single precision, rounded to half."""
    faded: npt.NDArray[np.float16] = (counts.astype(np.float32) * np.float32(decay)).astype(np.float16)
    return faded


def _grown(value: FloatArray, before: FloatArray, decay: float) -> FloatArray:
    """Return value + decay·before with one rounding, as the fused instruction does that torch uses."""
    exact = value.astype(np.float64) + before.astype(np.float64) * np.float64(np.float32(decay))
    grown: FloatArray = exact.astype(np.float32)
    return grown
