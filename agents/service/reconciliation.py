"""Whether the ledger's counters are what its rows add up to, to the tick."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from agents.service.ledger import Balance, CommitmentState, read_balance
from agents.service.tables import commitments


@dataclass(frozen=True)
class Reconciliation:
    """A campaign's counters beside what its commitments add up to; ticks.

    Attributes:
        balance: the counters.
        spent: sum of charges and settled costs.
        reserved: sum of the liabilities outstanding.
        commitments: number of commitments by state.
    """

    balance: Balance
    spent: int
    reserved: int
    commitments: dict[CommitmentState, int]

    @property
    def exact(self) -> bool:
        """Whether the counters are the sums, to the tick, and within the budget."""
        same = (self.spent, self.reserved) == (self.balance.spent, self.balance.reserved)
        return same and self.balance.available >= 0


def reconcile(connection: Connection, campaign: str) -> Reconciliation:
    """Add up a campaign's commitments, to be compared with its counters.

    Args:
        connection: in a transaction that sees one state throughout (:meth:`Database.read`).
        campaign: whose budget.

    Raises:
        UnknownError: there is no such campaign.
    """
    outstanding = case((commitments.c.state == CommitmentState.RESERVED, commitments.c.liability), else_=0)
    query = (
        select(
            commitments.c.state,
            func.count().label("n"),
            func.sum(commitments.c.charge + commitments.c.cost).label("spent"),
            func.sum(outstanding).label("reserved"),
        )
        .where(commitments.c.campaign == campaign)
        .group_by(commitments.c.state)
    )
    sums = connection.execute(query).all()
    return Reconciliation(
        balance=read_balance(connection, campaign),
        spent=sum(int(row.spent) for row in sums),
        reserved=sum(int(row.reserved) for row in sums),
        commitments={CommitmentState(row.state): row.n for row in sums},
    )
