"""The study's market: solvable exactly, and seen through the shop's own imperfect view of its users.

Users are those of :mod:`envs.tabular_users`: five types in twenty states of fatigue, pantry and subscription.
The shop knows the state, and puts each user into a segment that names his type right in SEGMENT_ACCURACY of
all cases. Policies and value models see the segment, never the type. So a value model errs as it does in a
shop, because users differ in what is not seen, while the values of all policies remain exact expectations
over every possible trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch

from envs.tabular_market import TabularMarket
from envs.tabular_solution import evaluate
from envs.tabular_users import DEMO_PANTRY, DEMO_USERS

SEGMENT_ACCURACY = 0.7
"""Share of users whose segment is their type's; the others are spread evenly over all other segments."""


@dataclass(frozen=True, eq=False)
class StudyMarket:
    """A market with a hidden type for every user, and what the shop believes of it.

    Attributes:
        world: the truth; its types are pairs of type and segment, G = types · Z.
        believed: what the shop plans with; its Z types are the segments.
        segment: [G] int64, segment of each type of the world.
    """

    world: TabularMarket
    believed: TabularMarket
    segment: torch.Tensor

    @classmethod
    def demo(cls, horizon_weeks: int) -> Self:
        """Build the market of the demo's users; offers may be sent in all weeks.

        Args:
            horizon_weeks: length T of a campaign.
        """
        n = len(DEMO_USERS)
        off = (1.0 - SEGMENT_ACCURACY) / (n - 1)
        accuracy = torch.full((n, n), off, dtype=torch.float64).fill_diagonal_(SEGMENT_ACCURACY)
        users = [
            replace(user, name=f"{user.name} seen as {seen.name}", share=user.share * float(accuracy[g, z]))
            for g, user in enumerate(DEMO_USERS)
            for z, seen in enumerate(DEMO_USERS)
        ]
        world = TabularMarket.of_users(
            DEMO_PANTRY, users, horizon_weeks=horizon_weeks, offer_weeks=horizon_weeks
        )
        segment = torch.arange(n).repeat(n)
        return cls(world=world, believed=pooled(world, segment), segment=segment)

    @property
    def n_segments(self) -> int:
        """Number of segments Z."""
        return self.believed.n_types

    @cached_property
    def observation(self) -> torch.Tensor:
        """[Z, S, o] float32, what is seen of a user: one-hot segment, then the features of his state."""
        segments = torch.eye(self.n_segments)[:, None].expand(-1, self.world.n_states, -1)
        states = self.world.features.expand(self.n_segments, -1, -1)
        return torch.cat([segments, states], dim=2)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of the o columns."""
        segments = [f"segment_{user.name.replace(' ', '_')}" for user in DEMO_USERS]
        return (*segments, *(f"state_{k}" for k in range(self.world.features.shape[1])))

    def value(self, rule: torch.Tensor) -> float:
        """Return the exact profit of a rule per user and campaign: expected margin less cost, currency.

        Args:
            rule: [T, Z, S, K] probability of each action.
        """
        found = evaluate(self.world, rule[:, self.segment])
        return float(found.margin - found.cost)


def pooled(world: TabularMarket, segment: torch.Tensor) -> TabularMarket:
    """Return the market in which each segment is one type: the mean of its types, by their shares.

    What a user's state says of his type is not used, as a shop that models segments does not use it.

    Args:
        world: G types that agree on states, costs and masks.
        segment: [G] int64 in 0..Z-1.
    """
    n_segments = int(segment.max()) + 1
    membership = torch.zeros(n_segments, world.n_types, dtype=torch.float64)
    membership[segment, torch.arange(world.n_types)] = world.share
    share = membership.sum(dim=1)
    within = membership / share[:, None]
    event = torch.einsum("zg,gkse->zkse", within, world.event_probability)
    margin = torch.einsum("zg,gkse->zkse", within, world.event_probability * world.margin)
    first = [int((segment == z).nonzero()[0, 0]) for z in range(n_segments)]
    return TabularMarket(
        outcome=torch.einsum("zg,gkset->zkset", within, world.outcome),
        margin=torch.where(event > 0, margin / event.clamp(min=torch.finfo(torch.float64).tiny), 0.0),
        cost=world.cost[first],
        mask=world.mask[first],
        initial=within @ world.initial,
        share=share,
        features=world.features,
        horizon_weeks=world.horizon_weeks,
        offer_weeks=world.offer_weeks,
    )
