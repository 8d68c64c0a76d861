"""Purchase history as a state that is advanced week by week, and the features read from it.

Training and the market share this code: the features that a response head was fitted on are by
construction those that the simulator and the served policy compute.

What is kept per category is stored compactly, 6 bytes a user and category: a million users of 120 categories
take less than a gigabyte. Half precision keeps decayed counts to about a thousandth of their value.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from encoders.history_counts import FAST_DECAY as _FAST
from encoders.history_counts import MOST_TRIPS as MOST_TRIPS
from encoders.history_counts import NEVER_WEEKS as NEVER_WEEKS
from encoders.history_counts import RECENT_BASKETS as RECENT_BASKETS
from encoders.history_counts import RECENT_WEEKS as RECENT_WEEKS
from encoders.history_counts import SLOW_DECAY as _SLOW
from encoders.scratch import Scratch

PRIOR_VISITS = 2.0
"""Weight, in visits, of the category's base rate in a user's purchase rate."""

CAUTIOUS_PRIOR_VISITS = 8.0
"""The same in the cautious rate. Categories differ in how much a few purchases say; of two rates that differ
in caution the heads mix their own."""

CATEGORY_FEATURES = (
    "slow_rate_logit",
    "fast_rate_logit",
    "cautious_rate_logit",
    "log_recency",
    "log_overdue",
    "bought_1_week_ago",
    "bought_2_weeks_ago",
    "bought_3_weeks_ago",
    "bought_4_weeks_ago",
)
USER_FEATURES = (
    "slow_visit_logit",
    "fast_visit_logit",
    "log_visit_recency",
    "log_basket_size",
    "log_basket_spend",
    "log_slow_trips",
    "log_fast_trips",
    "last_trips",
    *(f"log_basket_{k}_weeks_ago" for k in range(1, RECENT_BASKETS + 1)),
)


@dataclass(frozen=True)
class HistoryState:
    """What a user did so far, as decayed counts and recencies; n users, C categories.

    Attributes:
        category_recency: [n, C] uint8 weeks since the category was last bought, capped at NEVER_WEEKS.
        category_slow: [n, C] float16 decayed number of weeks with a purchase, half-life 16 weeks.
        category_fast: [n, C] float16 the same, half-life 4 weeks.
        recent: [n, C] uint8, bit k - 1 is whether the category was bought k weeks ago, k up to RECENT_WEEKS.
        visit_recency: [n] weeks since the last visit, capped.
        visits_slow: [n] decayed number of weeks with a visit, half-life 16 weeks.
        visits_fast: [n] the same, half-life 4 weeks.
        weeks_slow: [n] decayed number of weeks observed, half-life 16 weeks.
        weeks_fast: [n] the same, half-life 4 weeks.
        basket_size: [n] decayed sum of categories bought, half-life 16 weeks.
        basket_spend: [n] decayed sum of spend, log's currency, half-life 16 weeks.
        trips_slow: [n] decayed number of shopping trips, half-life 16 weeks.
        trips_fast: [n] the same, half-life 4 weeks.
        last_trips: [n] trips in the last week.
        coupons_slow: [n] decayed number of weeks with a coupon used, half-life 16 weeks.
        recent_baskets: [n, RECENT_BASKETS] categories bought 1, 2, ... weeks ago.
    """

    category_recency: torch.Tensor
    category_slow: torch.Tensor
    category_fast: torch.Tensor
    recent: torch.Tensor
    visit_recency: torch.Tensor
    visits_slow: torch.Tensor
    visits_fast: torch.Tensor
    weeks_slow: torch.Tensor
    weeks_fast: torch.Tensor
    basket_size: torch.Tensor
    basket_spend: torch.Tensor
    trips_slow: torch.Tensor
    trips_fast: torch.Tensor
    last_trips: torch.Tensor
    coupons_slow: torch.Tensor
    recent_baskets: torch.Tensor

    @classmethod
    def empty(cls, n_users: int, n_categories: int, device: str | torch.device = "cpu") -> HistoryState:
        """Return the state of users about whom nothing is known."""

        def per_user(value: float = 0.0) -> torch.Tensor:
            return torch.full((n_users,), value, device=device)

        def per_category(dtype: torch.dtype, value: float = 0) -> torch.Tensor:
            return torch.full((n_users, n_categories), value, dtype=dtype, device=device)

        return cls(
            category_recency=per_category(torch.uint8, NEVER_WEEKS),
            category_slow=per_category(torch.float16),
            category_fast=per_category(torch.float16),
            recent=per_category(torch.uint8),
            visit_recency=per_user(NEVER_WEEKS),
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
            recent_baskets=torch.zeros((n_users, RECENT_BASKETS), device=device),
        )

    def advance(
        self,
        trips: torch.Tensor,
        bought: torch.Tensor,
        spend: torch.Tensor,
        *,
        coupon_used: torch.Tensor,
        out: HistoryState | None = None,
        scratch: Scratch | None = None,
    ) -> HistoryState:
        """Return the state after one more week.

        Args:
            trips: [n] shopping trips of the week; none is no visit.
            bought: [n, C] bool; False wherever the user did not visit.
            spend: [n] spend of the week in all categories.
            coupon_used: [n] bool, whether a coupon lowered the week's bill.
            out: where to write it; a new state if None.
            scratch: for the arrays in between.
        """
        out = self.blank() if out is None else out
        array = Scratch() if scratch is None else scratch
        n, n_categories = bought.shape
        now = bought.view(torch.uint8)
        # Bytes convert three times as fast as truth values, and by way of float32 faster than directly.
        purchase = array("purchase", n, n_categories, device=bought.device).copy_(now)
        counted_once = array("counted once", n, n_categories, torch.float16, bought.device).copy_(purchase)
        torch.mul(self.category_slow, _SLOW, out=out.category_slow).add_(counted_once)
        torch.mul(self.category_fast, _FAST, out=out.category_fast).add_(counted_once)
        # One more week, or none where bought; then one: without the branch that a `where` would be.
        torch.add(self.category_recency, 1, out=out.category_recency).clamp_(max=int(NEVER_WEEKS))
        later = array("later", n, n_categories, torch.uint8, bought.device)
        out.category_recency.mul_(torch.sub(1, now, out=later)).add_(now)
        torch.bitwise_left_shift(self.recent, 1, out=out.recent).bitwise_or_(now)
        out.recent.bitwise_and_(2**RECENT_WEEKS - 1)

        visited = trips > 0
        counted = trips.to(self.trips_slow.dtype).clamp(max=MOST_TRIPS)
        visit = visited.to(torch.float32)
        size = purchase.sum(dim=1)
        out.visit_recency.copy_(torch.where(visited, 1.0, (self.visit_recency + 1.0).clamp(max=NEVER_WEEKS)))
        for value, decay, name in (
            (visit, _SLOW, "visits_slow"),
            (visit, _FAST, "visits_fast"),
            (torch.ones_like(visit), _SLOW, "weeks_slow"),
            (torch.ones_like(visit), _FAST, "weeks_fast"),
            (size, _SLOW, "basket_size"),
            (spend, _SLOW, "basket_spend"),
            (counted, _SLOW, "trips_slow"),
            (counted, _FAST, "trips_fast"),
            (coupon_used.to(torch.float32), _SLOW, "coupons_slow"),
        ):
            torch.add(value, getattr(self, name), alpha=decay, out=getattr(out, name))
        out.last_trips.copy_(counted)
        out.recent_baskets.copy_(torch.cat([size[:, None], self.recent_baskets[:, :-1]], dim=1))
        return out

    def rows(self, index: torch.Tensor | slice) -> HistoryState:
        """Return the state of the given users, in their order; of a slice without copying."""
        if isinstance(index, slice) or index.dtype == torch.bool or index.dim() != 1:
            return HistoryState(**{f.name: getattr(self, f.name)[index] for f in fields(self)})
        # Three times as fast as indexing with brackets.
        return HistoryState(**{f.name: getattr(self, f.name).index_select(0, index) for f in fields(self)})

    def blank(self) -> HistoryState:
        """Return a state of the same shape to be written block by block with :meth:`write`."""
        return HistoryState(**{f.name: torch.empty_like(getattr(self, f.name)) for f in fields(self)})

    def write(self, index: torch.Tensor | slice, rows: HistoryState) -> None:
        """Put the rows in their places, in place; for a state made by :meth:`blank`."""
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(rows, f.name)

    def to(self, device: str | torch.device) -> HistoryState:
        """Return the state on another device."""
        return HistoryState(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def category_features(state: HistoryState, base_rate: torch.Tensor) -> list[torch.Tensor]:
    """Return the per-category features of the next week, each [n, C], in CATEGORY_FEATURES order.

    A list rather than one [n, C, F] tensor: the market adds the terms up one by one and never holds all.

    Args:
        state: history before the week.
        base_rate: [C] share of visits on which the average user buys the category; the prior.
    """

    def rate_logit(purchases: torch.Tensor, visits: torch.Tensor, prior_visits: float) -> torch.Tensor:
        return _rate_logit(purchases, visits, base_rate, prior_visits)

    recency, slow = state.category_recency.float(), state.category_slow.float()
    # Purchases expected since the last one if they came at the slow weekly rate.
    overdue = recency * slow / state.weeks_slow.clamp(min=1.0)[:, None]
    return [
        rate_logit(slow, state.visits_slow, PRIOR_VISITS),
        rate_logit(state.category_fast.float(), state.visits_fast, PRIOR_VISITS),
        rate_logit(slow, state.visits_slow, CAUTIOUS_PRIOR_VISITS),
        recency.log_(),
        overdue.log1p_(),
        *(((state.recent >> k) & 1).float() for k in range(RECENT_WEEKS)),
    ]


def slow_rate_logit(state: HistoryState, base_rate: torch.Tensor) -> torch.Tensor:
    """Return the logit of each user's own purchase rate by visit, [n, C]: the first category feature.

    Args:
        state: history before the week.
        base_rate: [C] share of visits on which the average user buys the category; the prior.
    """
    return _rate_logit(state.category_slow.float(), state.visits_slow, base_rate, PRIOR_VISITS)


def user_features(state: HistoryState) -> torch.Tensor:
    """Return the per-user features of the next week, [n, len(USER_FEATURES)]."""
    return torch.stack(user_feature_rows(state), dim=1)


def user_feature_rows(state: HistoryState) -> list[torch.Tensor]:
    """Return the per-user features of the next week, each [n], in USER_FEATURES order."""
    visits = state.visits_slow + 0.5
    return [
        _logit((state.visits_slow + 0.5) / (state.weeks_slow + 1.0)),
        _logit((state.visits_fast + 0.5) / (state.weeks_fast + 1.0)),
        torch.log(state.visit_recency),
        torch.log1p(state.basket_size / visits),
        torch.log1p(state.basket_spend / visits),
        torch.log((state.trips_slow + 0.5) / (state.weeks_slow + 1.0)),
        torch.log((state.trips_fast + 0.5) / (state.weeks_fast + 1.0)),
        state.last_trips,
        *torch.log1p(state.recent_baskets).unbind(dim=1),
    ]


def _rate_logit(
    purchases: torch.Tensor, visits: torch.Tensor, base_rate: torch.Tensor, prior_visits: float
) -> torch.Tensor:
    return _logit((purchases + prior_visits * base_rate) / (visits[:, None] + prior_visits))


def _logit(probability: torch.Tensor) -> torch.Tensor:
    return torch.logit(probability, eps=1e-4)
