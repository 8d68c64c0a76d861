"""The budget ledger: one hard cap for all users, worst-case liability reserved at issue.

    spent + reserved <= budget, at every instant

Issuing reserves, redemption settles, expiry releases, messages are charged at once. Amounts are whole
ticks (:mod:`envs.money`), so conservation is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ledger:
    """State of the budget; each a 0-dimensional int64 tensor of ticks.

    Attributes:
        budget: the cap.
        spent: settled discounts and delivery costs.
        reserved: worst-case cost of the coupons outstanding.
    """

    budget: torch.Tensor
    spent: torch.Tensor
    reserved: torch.Tensor

    @classmethod
    def open(cls, budget: int, device: str | torch.device = "cpu") -> Ledger:
        """Open a ledger with ``budget`` ticks.

        Raises:
            ValueError: the budget is negative.
        """
        if budget < 0:
            raise ValueError(f"a budget cannot be negative: {budget} ticks")
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(torch.full_like(zero, budget), zero, zero.clone())

    @property
    def available(self) -> torch.Tensor:
        """Ticks that can still be committed."""
        return self.budget - self.spent - self.reserved

    def grant(self, charge: torch.Tensor, liability: torch.Tensor, priority: torch.Tensor) -> torch.Tensor:
        """Decide which requests are granted when they may ask for more than is left.

        Requests are served in the order of ``priority``, a random number drawn per user, until the first
        that does not fit; it and all after it are refused. So the outcome does not depend on the order in
        which users stand in the batch, and no user is favoured by index.

        Args:
            charge: [n] ticks charged at once.
            liability: [n] ticks reserved.
            priority: [n] random numbers; lowest first.

        Returns:
            [n] bool; a request for nothing is always granted.
        """
        request = charge + liability
        order = torch.argsort(priority, stable=True)
        fits = torch.cumsum(request[order], dim=0) <= self.available
        granted = torch.empty_like(fits)
        granted[order] = fits
        return granted | (request == 0)

    def commit(self, charge: torch.Tensor, liability: torch.Tensor) -> Ledger:
        """Charge and reserve the sums of granted requests, [n] ticks each."""
        return Ledger(self.budget, self.spent + charge.sum(), self.reserved + liability.sum())

    def settle(self, cost: torch.Tensor, released: torch.Tensor) -> Ledger:
        """Pay redeemed discounts and release the reservations of coupons that ended, [n] ticks each."""
        return Ledger(self.budget, self.spent + cost.sum(), self.reserved - released.sum())
