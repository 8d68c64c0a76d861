"""The history state before each week of a panel, for training."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from encoders.history import HistoryState
from encoders.panel import Panel


@dataclass(frozen=True)
class HistoryTape:
    """States before week 1, 2, ..., T and after week T.

    Attributes:
        stored: field of HistoryState -> [T + 1, n, ...].
    """

    stored: dict[str, torch.Tensor]

    @classmethod
    def of_panel(cls, panel: Panel) -> HistoryTape:
        """Replay a panel week by week."""
        state = HistoryState.empty(panel.n_users, panel.n_categories)
        names = [f.name for f in fields(HistoryState)]
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for week in range(panel.n_weeks + 1):
            for name in names:
                rows[name].append(getattr(state, name))
            if week < panel.n_weeks:
                state = state.advance(
                    torch.from_numpy(panel.trips[:, week]),
                    torch.from_numpy(panel.bought[:, week]),
                    torch.from_numpy(panel.basket_spend[:, week]),
                    coupon_used=torch.from_numpy(panel.coupon_used[:, week]),
                )
        return cls({name: torch.stack(values) for name, values in rows.items()})

    def before(self, week_index: torch.Tensor, user: torch.Tensor) -> HistoryState:
        """Return the states of ``user`` before week ``week_index`` (0-based), both [m]."""
        return HistoryState(**{name: value[week_index, user] for name, value in self.stored.items()})

    def week(self, week_index: int) -> HistoryState:
        """Return the state of all users before week ``week_index`` (0-based)."""
        return HistoryState(**{name: value[week_index] for name, value in self.stored.items()})
