"""The budget ledger in a database: one hard cap a campaign, worst-case liability reserved at issue.

    spent + reserved <= budget, in every committed state

The rules are those of :class:`envs.ledger.Ledger`. Each function works in the caller's transaction and first
locks the campaign's row of ``budgets``, so that all changes of a campaign stand in one line; the update is
conditional all the same, and a CHECK constraint stands behind it. Amounts are ticks, times UNIX seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

from agents.service.errors import ClosedError, LedgerError, UnknownError
from agents.service.granting import MOST_TICKS, Ask, grant
from agents.service.tables import budgets, commitments
from envs.ticks import TICKS_PER_UNIT


class CommitmentState(StrEnum):
    """What became of a commitment."""

    RESERVED = "reserved"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Balance:
    """A campaign's budget; ticks.

    Attributes:
        campaign: its id.
        budget: the cap.
        spent: settled discounts and delivery costs.
        reserved: worst-case cost of the coupons outstanding.
    """

    campaign: str
    budget: int
    spent: int
    reserved: int

    @property
    def available(self) -> int:
        """Ticks that can still be committed."""
        return self.budget - self.spent - self.reserved


def open_budget(connection: Connection, campaign: str, budget: int) -> Balance:
    """Open a campaign's budget; one that is open with the same budget is left as it is.

    Raises:
        LedgerError: the budget is negative, or the campaign is open with another.
    """
    if not 0 <= budget <= MOST_TICKS:
        raise LedgerError(f"a budget must be in 0..{MOST_TICKS} ticks, got {budget}")
    # Two processes that start together may both get here; the second waits for the first.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = {"campaign": campaign, "budget": budget, "spent": 0, "reserved": 0}
    connection.execute(insert(budgets).values(row).on_conflict_do_nothing())
    found = read_balance(connection, campaign)
    if found.budget != budget:
        raise LedgerError(
            f"campaign {campaign!r} is open with a budget of {_shown(found.budget)}, not {_shown(budget)}; "
            "a new budget needs a new campaign"
        )
    return found


def read_balance(connection: Connection, campaign: str, *, lock: bool = False) -> Balance:
    """Return a campaign's balance, and hold its row until the transaction ends if ``lock``.

    Raises:
        UnknownError: there is no such campaign.
    """
    query = select(budgets).where(budgets.c.campaign == campaign)
    found = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if found is None:
        raise UnknownError(f"there is no campaign {campaign!r}")
    return Balance(**found._mapping)


def read_balances(connection: Connection) -> list[Balance]:
    """Return the balances of all campaigns, by name."""
    return [
        Balance(**row._mapping) for row in connection.execute(select(budgets).order_by(budgets.c.campaign))
    ]


def read_available(connection: Connection, campaign: str, *, now: int) -> int:
    """Return the ticks that `reserve` could commit: what is due counts as released.

    Raises:
        UnknownError: there is no such campaign.
    """
    due = connection.scalar(select(func.sum(commitments.c.liability)).where(_due(campaign, now)))
    return read_balance(connection, campaign).available + int(due or 0)


def reserve(
    connection: Connection, campaign: str, request_id: str, asks: Sequence[Ask], *, seed: bytes, now: int
) -> list[bool]:
    """Commit what the budget covers, after releasing what is due.

    Who is served where it does not cover all is for :func:`agents.service.granting.grant` to say. An ask for
    nothing leaves no commitment.

    Args:
        connection: in a writing transaction that claimed the request.
        campaign: whose budget.
        request_id: of the claimed request.
        asks: one per user.
        seed: key of the hash, at most 64 bytes.
        now: UNIX seconds.

    Returns:
        Whether each ask was granted.

    Raises:
        UnknownError: there is no such campaign.
    """
    left = read_balance(connection, campaign, lock=True).available
    _, released = _release_due(connection, campaign, now)
    granted = grant(asks, left + released, seed)
    booked = [ask for ask, fits in zip(asks, granted, strict=True) if fits and ask.charge + ask.liability]
    if booked:
        rows = [_row(ask, campaign, request_id, now) for ask in booked]
        connection.execute(commitments.insert(), rows)
        charge, liability = sum(ask.charge for ask in booked), sum(ask.liability for ask in booked)
        _move(connection, campaign, spent=charge, reserved=liability)
    return granted


def _row(ask: Ask, campaign: str, request_id: str, now: int) -> dict[str, Any]:
    return {
        "commitment_id": ask.commitment_id,
        "campaign": campaign,
        "request_id": request_id,
        "user_key": ask.user_key,
        "charge": ask.charge,
        "liability": ask.liability,
        "cost": 0,
        # With nothing reserved there is nothing that could still happen.
        "state": CommitmentState.RESERVED if ask.liability else CommitmentState.SETTLED,
        "granted_at": now,
        "expires_at": ask.expires_at,
        "closed_at": None if ask.liability else now,
    }


def settle(connection: Connection, costs: Mapping[str, int], *, now: int) -> None:
    """Pay redeemed discounts and release what was reserved for them: all, or none if one cannot be.

    Args:
        connection: in a writing transaction.
        costs: by commitment id, ticks, at most the liability; of commitments reserved and not yet due.
        now: UNIX seconds.

    Raises:
        UnknownError: there is no such commitment.
        ClosedError: it has ended, or is due.
        LedgerError: a cost is negative or above the liability.
    """
    held = _lock_open(connection, list(costs), now)
    for row in held:
        if not 0 <= costs[row.commitment_id] <= row.liability:
            raise LedgerError(
                f"commitment {row.commitment_id!r} reserved {_shown(row.liability)}; a cost of "
                f"{_shown(costs[row.commitment_id])} is not within"
            )
    _close(connection, held, CommitmentState.SETTLED, costs, now)


def release(connection: Connection, commitment_id: str, *, now: int) -> None:
    """Release what was reserved for a coupon that will not be used, such as one that never arrived.

    Raises:
        UnknownError: there is no such commitment.
        ClosedError: it has ended, or is due.
    """
    held = _lock_open(connection, [commitment_id], now)
    _close(connection, held, CommitmentState.RELEASED, {commitment_id: 0}, now)


def expire(connection: Connection, campaign: str, *, now: int) -> int:
    """Release what is due, and return how many commitments that were.

    Raises:
        UnknownError: there is no such campaign.
    """
    read_balance(connection, campaign, lock=True)
    return _release_due(connection, campaign, now)[0]


def _release_due(connection: Connection, campaign: str, now: int) -> tuple[int, int]:
    """Return the number of commitments that were due and the ticks released, the campaign's row locked."""
    ended = (
        commitments.update().where(_due(campaign, now)).values(state=CommitmentState.EXPIRED, closed_at=now)
    )
    released = connection.scalars(ended.returning(commitments.c.liability)).all()
    if released:
        _move(connection, campaign, spent=0, reserved=-sum(released))
    return len(released), sum(released)


def _due(campaign: str, now: int) -> ColumnElement[bool]:
    return (
        (commitments.c.campaign == campaign)
        & (commitments.c.state == CommitmentState.RESERVED)
        & (commitments.c.expires_at <= now)
    )


def lock_campaigns(connection: Connection, campaigns: Iterable[str]) -> None:
    """Hold the rows of campaigns until the transaction ends.

    Raises:
        UnknownError: there is no such campaign.
    """
    # In one order for all, so that two transactions never wait for each other.
    for campaign in sorted(set(campaigns)):
        read_balance(connection, campaign, lock=True)


def _lock_open(connection: Connection, commitment_ids: Sequence[str], now: int) -> Sequence[Row[Any]]:
    """Return commitments that can still be closed, their campaigns' rows locked."""
    query = select(commitments).where(commitments.c.commitment_id.in_(commitment_ids))
    found = {row.commitment_id: row for row in connection.execute(query)}
    for commitment_id in commitment_ids:
        if commitment_id not in found:
            raise UnknownError(f"there is no commitment {commitment_id!r}")
    lock_campaigns(connection, (row.campaign for row in found.values()))
    held = connection.execute(query).all()  # as they are now that nobody else can change them
    for row in held:
        if row.state != CommitmentState.RESERVED:
            raise ClosedError(f"commitment {row.commitment_id!r} is {row.state} already")
        if row.expires_at <= now:
            raise ClosedError(f"commitment {row.commitment_id!r} has expired")
    return held


def _close(
    connection: Connection,
    held: Sequence[Row[Any]],
    state: CommitmentState,
    costs: Mapping[str, int],
    now: int,
) -> None:
    """End commitments whose campaigns are locked, and move the money."""
    connection.execute(
        commitments.update()
        .where(commitments.c.commitment_id == bindparam("ended_id"))
        .values(state=state, cost=bindparam("ended_cost"), closed_at=now),
        [{"ended_id": row.commitment_id, "ended_cost": costs[row.commitment_id]} for row in held],
    )
    for campaign in {row.campaign for row in held}:
        rows = [row for row in held if row.campaign == campaign]
        spent = sum(costs[row.commitment_id] for row in rows)
        _move(connection, campaign, spent=spent, reserved=-sum(row.liability for row in rows))


def _move(connection: Connection, campaign: str, *, spent: int, reserved: int) -> None:
    """Change the counters if that keeps them within the budget, else fail and let the caller roll back."""
    fits = budgets.c.spent + budgets.c.reserved + (spent + reserved) <= budgets.c.budget
    changed = connection.execute(
        budgets.update()
        .where((budgets.c.campaign == campaign) & fits)
        .values(spent=budgets.c.spent + spent, reserved=budgets.c.reserved + reserved)
    ).rowcount
    if changed != 1:
        raise LedgerError(f"campaign {campaign!r}: {_shown(spent + reserved)} more would exceed the budget")


def _shown(ticks: int) -> str:
    """Return an amount in currency, as people read it."""
    return f"{ticks / TICKS_PER_UNIT:.12g}"
