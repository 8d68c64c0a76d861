"""The raw state of a market as the exported graph takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from agents.serving.columns import CALENDAR_ROWS, HISTORY_COLUMNS, INPUTS
from encoders.calendar import PromotionCalendar
from envs.campaign import Campaign
from envs.market import MarketState


@dataclass(frozen=True)
class StateRows:
    """The raw state of n users, and of the week.

    Attributes:
        category_recency: [n, C] uint8; this and the next three as in :class:`encoders.history.HistoryState`.
        category_slow: [n, C] float16.
        category_fast: [n, C] float16.
        recent: [n, C] uint8.
        user: [n, len(USER_COLUMNS)] float32.
        messages: [n] int64, bit k - 1 is whether a message was sent k weeks ago.
        deal_category: [n, R] int64; this and the next two as in :class:`envs.coupons.DealMemory`.
        deal_depth: [n, R] float32.
        deal_weeks_ago: [n, R] float32.
        embedding: [n, d] float32.
        price: [n, 2] float32: dual price λ > 0 and its pressure >= 0.
        calendar: [len(CALENDAR_ROWS), C] float32, the week's mass promotion and trends.
        week: [len(WEEK_COLUMNS)] float32; weeks left in the campaign, this one included, are at least 1.
        available: [1] int64 ticks of the budget that can still be committed.
    """

    category_recency: torch.Tensor
    category_slow: torch.Tensor
    category_fast: torch.Tensor
    recent: torch.Tensor
    user: torch.Tensor
    messages: torch.Tensor
    deal_category: torch.Tensor
    deal_depth: torch.Tensor
    deal_weeks_ago: torch.Tensor
    embedding: torch.Tensor
    price: torch.Tensor
    calendar: torch.Tensor
    week: torch.Tensor
    available: torch.Tensor

    @classmethod
    def of_campaign(
        cls, campaign: Campaign, dual_price: torch.Tensor, pressure: torch.Tensor | float = 1.0
    ) -> StateRows:
        """Take them from a campaign at the start of a week; prices as in ``Campaign.observation``."""
        return cls.of_market(campaign.state, campaign.calendar, campaign.weeks_left, dual_price, pressure)

    @classmethod
    def of_market(
        cls,
        state: MarketState,
        calendar: PromotionCalendar,
        weeks_left: int,
        dual_price: torch.Tensor,
        pressure: torch.Tensor | float = 1.0,
    ) -> StateRows:
        """Take them from a market at the start of a week.

        Args:
            state: n users.
            calendar: the week's row.
            weeks_left: this one included.
            dual_price: [n].
            pressure: one or [n].
        """
        user = [
            *(getattr(state.history, name) for name in HISTORY_COLUMNS),
            *state.history.recent_baskets.unbind(dim=1),
            state.believed_fatigue,
            state.opted_in.float(),
            state.coupons.depth,
            state.coupons.weeks_left.float(),
        ]
        left = torch.full_like(calendar.visit_trend, weeks_left)
        return cls(
            category_recency=state.history.category_recency,
            category_slow=state.history.category_slow,
            category_fast=state.history.category_fast,
            recent=state.history.recent,
            user=torch.stack(user, dim=1),
            messages=state.messages,
            deal_category=state.deals.category,
            deal_depth=state.deals.depth,
            deal_weeks_ago=state.deals.weeks_ago,
            embedding=state.embedding,
            price=torch.stack([dual_price, torch.zeros_like(dual_price) + pressure], dim=1).float(),
            calendar=torch.stack([getattr(calendar, name) for name in CALENDAR_ROWS]).float(),
            week=torch.stack([calendar.visit_trend, calendar.month_start, left]).float(),
            available=state.ledger.available.reshape(1),
        )

    def arguments(self) -> tuple[torch.Tensor, ...]:
        """Return them in the order in which the graph takes them."""
        return tuple(getattr(self, name) for name in INPUTS)
