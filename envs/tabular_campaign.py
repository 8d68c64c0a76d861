"""A campaign on a tabular market: n users under one hard budget, stepped together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envs.ledger import Ledger
from envs.money import to_currency, to_ticks
from envs.tabular_market import TabularMarket


@dataclass(frozen=True)
class TabularOutcome:
    """What happened in one week to n users.

    Attributes:
        sent: [n] int64, the action that took place; 0 where the ledger refused.
        refused: [n] bool, asked for and not granted.
        event: [n] int64, the week's event.
        margin: [n] float64 currency, before coupon cost.
        cost: [n] float64 currency charged to the budget.
    """

    sent: torch.Tensor
    refused: torch.Tensor
    event: torch.Tensor
    margin: torch.Tensor
    cost: torch.Tensor


class TabularCampaign:
    """n users of a tabular market, one budget, T weeks.

    Chance is drawn in a shape that does not depend on the actions: two campaigns with equally seeded
    generators share their luck (common random numbers).

    Args:
        market: the model.
        n_users: n; their types and first states are drawn.
        budget: currency for all users together.
        generator: all chance of this campaign.

    Attributes:
        user_type: [n] int64.
        state: [n] int64 at the start of the coming week.
        week: weeks that have passed.
        ledger: the shared budget.

    Raises:
        ValueError: there is no user, or the budget is negative or not finite.
    """

    def __init__(
        self, market: TabularMarket, *, n_users: int, budget: float, generator: torch.Generator
    ) -> None:
        if n_users < 1:
            raise ValueError(f"n_users must be >= 1, got {n_users}")
        if not 0 <= budget < float("inf"):
            raise ValueError(f"budget must be >= 0 and finite, got {budget}")
        self.market = market
        self.n_users = n_users
        self.generator = generator
        self.device = market.outcome.device
        self.ledger = Ledger.open(to_ticks(budget), self.device)
        self.week = 0
        self.user_type = _draw(market.share.expand(n_users, -1), self._uniform())
        self.state = _draw(market.initial[self.user_type], self._uniform())

    @property
    def weeks_left(self) -> int:
        """Weeks left, the coming one included; 0 once the campaign is over."""
        return self.market.horizon_weeks - self.week

    @property
    def done(self) -> bool:
        """Whether the campaign is over."""
        return self.weeks_left <= 0

    @property
    def counts(self) -> torch.Tensor:
        """[G, S] float64, how many users of each type are in each state."""
        counts = torch.zeros_like(self.market.initial)
        one = torch.ones(self.n_users, dtype=torch.float64, device=self.device)
        return counts.index_put((self.user_type, self.state), one, accumulate=True)

    @property
    def mask(self) -> torch.Tensor:
        """[n, K] bool, what may be sent in the coming week; nothing dearer than what is left.

        Only action 0 once the campaign is over.
        """
        if self.done:
            nothing = torch.zeros(self.n_users, self.market.n_actions, dtype=torch.bool, device=self.device)
            nothing[:, 0] = True
            return nothing
        worst = self.market.worst_case_cost[self.user_type, :, self.state]
        return self.market.allowed[self.week, self.user_type, self.state] & (worst <= self.ledger.available)

    def step(self, actions: torch.Tensor) -> TabularOutcome:
        """Send offers as far as the ledger grants them, and let the week happen.

        Each request reserves the dearest event that can follow. Requests are served in a random order
        until the first that does not fit; what the week did not cost is free again at its end.

        Args:
            actions: [n] int64, within the mask.

        Raises:
            ValueError: the campaign is over, or an action is outside the mask.
        """
        if self.done:
            raise ValueError("the campaign is over")
        if actions.shape != (self.n_users,) or actions.dtype != torch.int64:
            raise ValueError(
                f"actions must be int64 of shape [{self.n_users}], got {actions.dtype} {list(actions.shape)}"
            )
        if bool(((actions < 0) | (actions >= self.market.n_actions)).any()):
            raise ValueError(f"actions must be in 0..{self.market.n_actions - 1}")
        allowed = self.mask.gather(1, actions[:, None])[:, 0]
        if not bool(allowed.all()):
            user = int((~allowed).nonzero()[0, 0])
            raise ValueError(f"action {int(actions[user])} is masked for user {user} in week {self.week + 1}")
        priority, luck = self._uniform(), self._uniform()

        worst = self.market.worst_case_cost[self.user_type, actions, self.state]
        granted = self.ledger.grant(torch.zeros_like(worst), worst, priority)
        sent = torch.where(granted, actions, 0)
        reserved = worst * granted
        reserving = self.ledger.commit(torch.zeros_like(reserved), reserved)

        row = (self.user_type, sent, self.state)
        drawn = _draw(self.market.outcome[row].flatten(start_dim=1), luck)
        event = drawn // self.market.n_states
        cost = self.market.cost[row].gather(1, event[:, None])[:, 0]
        margin = self.market.margin[row].gather(1, event[:, None])[:, 0]
        self.ledger = reserving.settle(cost, reserved)
        self.state = drawn % self.market.n_states
        self.week += 1
        return TabularOutcome(sent, sent != actions, event, margin, to_currency(cost))

    def _uniform(self) -> torch.Tensor:
        return torch.rand(self.n_users, dtype=torch.float64, generator=self.generator, device=self.device)


def _draw(probability: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw an index for each row of probabilities [n, m] by inversion of its distribution."""
    cumulative = probability.cumsum(dim=1)
    # Divided by its last entry the distribution ends at exactly 1 > u, whatever the rounding, and what
    # has no probability is never drawn.
    return (cumulative / cumulative[:, -1:] <= uniform[:, None]).sum(dim=1)
