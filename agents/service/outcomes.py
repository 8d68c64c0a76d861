"""What followed decisions: the margin, and what a coupon cost where the till did not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from agents.service import ledger
from agents.service.errors import UnknownError
from agents.service.tables import commitments, decisions, feedback
from envs.ticks import TICKS_PER_UNIT, to_ticks


class FeedbackConflictError(ValueError):
    """The outcome of a decision was reported before, or contradicts what was redeemed."""


@dataclass(frozen=True)
class Outcome:
    """What followed a decision.

    Attributes:
        decision_id: which.
        margin: contribution margin of the user's week before coupon cost, log's currency.
        redeemed_cost: discount taken with its coupon, log's currency; None leaves that to
            `CouponDesk.redeem`.
    """

    decision_id: str
    margin: float
    redeemed_cost: float | None = None


def note_outcomes(connection: Connection, request_id: str, outcomes: Sequence[Outcome], *, now: int) -> None:
    """Note outcomes, and settle the coupons whose redemption they report.

    Args:
        connection: in a writing transaction that claimed the request.
        request_id: of the claimed request.
        outcomes: at most one per decision.
        now: UNIX seconds.

    Raises:
        UnknownError: there is no such decision.
        FeedbackConflictError: an outcome was reported before, or its cost is not what was redeemed.
        ClosedError: a coupon has expired.
        LedgerError: a cost is above what the coupon can cost.
    """
    ids = [outcome.decision_id for outcome in outcomes]
    query = select(decisions.c.decision_id, decisions.c.campaign).where(decisions.c.decision_id.in_(ids))
    campaigns = {row.decision_id: row.campaign for row in connection.execute(query)}
    for decision_id in ids:
        if decision_id not in campaigns:
            raise UnknownError(f"there is no decision {decision_id!r}")
    ledger.lock_campaigns(connection, campaigns.values())
    known = set(connection.scalars(select(feedback.c.decision_id).where(feedback.c.decision_id.in_(ids))))
    for decision_id in ids:
        if decision_id in known:
            raise FeedbackConflictError(f"the outcome of decision {decision_id!r} was reported before")
        known.add(decision_id)
    _settle_reported(connection, outcomes, now)
    rows = [
        {
            "decision_id": outcome.decision_id,
            "request_id": request_id,
            "margin": outcome.margin,
            "received_at": now,
        }
        for outcome in outcomes
    ]
    connection.execute(feedback.insert(), rows)


def _settle_reported(connection: Connection, outcomes: Sequence[Outcome], now: int) -> None:
    """Settle coupons whose redemption was not reported yet; where it was, the cost must be the same."""
    costs = {
        outcome.decision_id: to_ticks(outcome.redeemed_cost)
        for outcome in outcomes
        if outcome.redeemed_cost is not None
    }
    query = select(commitments.c.commitment_id, commitments.c.state, commitments.c.cost)
    found = connection.execute(query.where(commitments.c.commitment_id.in_(list(costs)))).all()
    held = {row.commitment_id: row for row in found}
    settled: dict[str, int] = {}
    for decision_id, cost in costs.items():
        row = held.get(decision_id)
        paid = 0 if row is None else row.cost
        if row is not None and row.state == ledger.CommitmentState.RESERVED and cost > 0:
            settled[decision_id] = cost
        elif cost != paid:
            raise FeedbackConflictError(
                f"decision {decision_id!r}: redeemed_cost is {cost / TICKS_PER_UNIT}, but what was redeemed "
                f"is {paid / TICKS_PER_UNIT}"
            )
    if settled:
        ledger.settle(connection, settled, now=now)
