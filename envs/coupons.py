"""Coupons that users hold, and the deals that they remember."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch

from envs.blocks import taken

REMEMBERED_DEALS = 4
"""Redeemed coupons that are remembered for a user; a further one takes the place of the oldest."""


@dataclass(frozen=True)
class HeldCoupons:
    """The coupon that each of n users holds; at most one.

    Attributes:
        category: [n] int64 category index of a percent coupon; -1 for a threshold coupon, and for none.
        depth: [n] float32 discount as a fraction; of a threshold coupon what it saves over what it asks for.
        min_spend: [n] float32 currency that the week's basket must reach; 0 for a percent coupon.
        max_discount: [n] float32 currency.
        liability: [n] int64 ticks reserved for it.
        weeks_left: [n] int64 weeks in which it can still be redeemed, the current one included; 0 if none is
            held.
    """

    category: torch.Tensor
    depth: torch.Tensor
    min_spend: torch.Tensor
    max_discount: torch.Tensor
    liability: torch.Tensor
    weeks_left: torch.Tensor

    @classmethod
    def none(cls, n_users: int, device: str | torch.device = "cpu") -> Self:
        """Return no coupon for each of n users."""
        zero = torch.zeros(n_users, dtype=torch.int64, device=device)
        return cls(
            category=zero - 1,
            depth=zero.float(),
            min_spend=zero.float(),
            max_discount=zero.float(),
            liability=zero.clone(),
            weeks_left=zero.clone(),
        )

    @property
    def held(self) -> torch.Tensor:
        """[n] bool."""
        return self.weeks_left > 0

    @property
    def on_basket(self) -> torch.Tensor:
        """[n] bool, whether a threshold coupon is held."""
        return self.min_spend > 0

    def where(self, keep: torch.Tensor, other: Self) -> Self:
        """Return these coupons where ``keep`` [n], and ``other`` elsewhere."""
        return replace(
            self,
            **{
                f.name: torch.where(keep, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
            },
        )

    def rows(self, index: torch.Tensor | slice) -> Self:
        """Return the coupons of the given users."""
        return replace(self, **{f.name: taken(getattr(self, f.name), index) for f in fields(self)})


@dataclass(frozen=True)
class DealMemory:
    """The last percent coupons that each of n users redeemed, newest first; R = REMEMBERED_DEALS.

    Attributes:
        category: [n, R] int64, -1 where there is none.
        depth: [n, R] float32.
        weeks_ago: [n, R] float32, at least 1.
    """

    category: torch.Tensor
    depth: torch.Tensor
    weeks_ago: torch.Tensor

    @classmethod
    def none(cls, n_users: int, device: str | torch.device = "cpu") -> Self:
        """Return no deals for each of n users."""
        shape = (n_users, REMEMBERED_DEALS)
        return cls(
            category=torch.full(shape, -1, dtype=torch.int64, device=device),
            depth=torch.zeros(shape, device=device),
            weeks_ago=torch.ones(shape, device=device),
        )

    def after_week(self, redeemed: torch.Tensor, coupons: HeldCoupons) -> Self:
        """Return the memory a week later.

        Args:
            redeemed: [n] bool, whether the coupon held was redeemed in the week.
            coupons: held during the week; only percent coupons are deals on a category.
        """
        new = (redeemed & (coupons.category >= 0))[:, None]

        def pushed(old: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
            return torch.where(new, torch.cat([first[:, None], old[:, :-1]], dim=1), old)

        return replace(
            self,
            category=pushed(self.category, coupons.category),
            depth=pushed(self.depth, coupons.depth),
            # Those remembered are a week older; the new one was redeemed a week ago, seen from the next.
            weeks_ago=pushed(self.weeks_ago + 1.0, torch.ones_like(coupons.depth)),
        )

    def rows(self, index: torch.Tensor | slice) -> Self:
        """Return the memory of the given users."""
        return replace(self, **{f.name: taken(getattr(self, f.name), index) for f in fields(self)})
