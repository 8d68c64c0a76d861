"""A request is carried out once, however often it is sent.

The first transaction that claims a request id does the work and stores the answer, in one commit. A retry
with the same id and body gets that answer; the same id with another body is refused. A process that dies
before it commits leaves nothing behind, so the retry does the work.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from agents.service.tables import requests


class RequestConflictError(ValueError):
    """A request id was used before for something else."""


def hash_body(body: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal; equal values have equal hashes."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def find_answer(connection: Connection, request_id: str, kind: str, body_hash: str) -> Any | None:
    """Return the answer that was given to a request, or None if it was never carried out.

    Raises:
        RequestConflictError: the id stands for another request.
    """
    found = connection.execute(select(requests).where(requests.c.request_id == request_id)).one_or_none()
    if found is None:
        return None
    if (found.kind, found.body_hash) != (kind, body_hash):
        raise RequestConflictError(
            f"request id {request_id!r} was used before for another request; send a new id with a new body"
        )
    return json.loads(found.answer)


def claim(connection: Connection, request_id: str, kind: str, body_hash: str, *, now: int) -> Any | None:
    """Claim a request id for this transaction; waits for another that is carrying it out.

    Args:
        connection: in a writing transaction, as its first statement.
        request_id: chosen by the caller.
        kind: of the request, such as ``decide``.
        body_hash: see `hash_body`.
        now: UNIX seconds.

    Returns:
        None where the work is now this transaction's; otherwise the answer that was given.

    Raises:
        RequestConflictError: the id stands for another request.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    row = {"request_id": request_id, "kind": kind, "body_hash": body_hash, "received_at": now}
    claiming = insert(requests).values(row).on_conflict_do_nothing().returning(requests.c.request_id)
    if connection.execute(claiming).one_or_none() is not None:
        return None
    return find_answer(connection, request_id, kind, body_hash)


def store_answer(connection: Connection, request_id: str, answer: Any) -> None:
    """Write the answer of a request that this transaction claimed."""
    text = json.dumps(answer, allow_nan=False)
    connection.execute(requests.update().where(requests.c.request_id == request_id).values(answer=text))
