"""The decision log out of the database: what was decided with which probability, and what followed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
from sqlalchemy import Connection, Row, Select, select

from agents.service.decision_file import COLUMNS, METADATA_KEY, DecisionLogError
from agents.service.ledger import CommitmentState
from agents.service.tables import commitments, decisions, feedback, policies
from envs.ticks import TICKS_PER_UNIT

ROWS_AT_ONCE = 10_000


def export_decisions(
    connection: Connection, path: Path, campaigns: Sequence[str] | None = None, *, now: int
) -> int:
    """Write the decisions of campaigns as one file for `DecisionLog`, whole or not at all, in bounded memory.

    Args:
        connection: in a transaction that sees one state throughout (:meth:`Database.read`).
        path: where to.
        campaigns: which; None for all.
        now: UNIX seconds; a coupon whose time is over has ended, whether or not it was released yet.

    Returns:
        Number of decisions.

    Raises:
        DecisionLogError: there are none, or the policies that decided differ in observations or offers.
    """
    query = _query(campaigns)
    names = _names(connection, query)
    n_columns, n_offers = len(names["observation_names"]), len(names["offer_names"])
    schema = pyarrow.schema(
        [
            *COLUMNS.items(),
            ("observation", pyarrow.list_(pyarrow.float32(), n_columns)),
            ("mask", pyarrow.list_(pyarrow.bool_(), n_offers)),
            ("probabilities", pyarrow.list_(pyarrow.float64(), n_offers)),
        ],
        metadata={METADATA_KEY: json.dumps(names).encode()},
    )
    temporary = path.with_name(path.name + ".part")
    n = 0
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for rows in _partitions(connection, query):
                writer.write_table(_table(rows, schema, n_columns, n_offers, now))
                n += len(rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return n


def _query(campaigns: Sequence[str] | None) -> Select[Any]:
    coupon = decisions.c.decision_id == commitments.c.commitment_id
    query = (
        select(
            *(column for column in decisions.c if column.name not in ("answer", "request_id", "decided_at")),
            commitments.c.charge,
            commitments.c.cost,
            commitments.c.state,
            commitments.c.expires_at,
            feedback.c.margin,
        )
        .outerjoin(commitments, coupon)
        .outerjoin(feedback, feedback.c.decision_id == decisions.c.decision_id)
        .order_by(decisions.c.campaign, decisions.c.user_key, decisions.c.week)
    )
    return query if campaigns is None else query.where(decisions.c.campaign.in_(campaigns))


def _names(connection: Connection, query: Select[Any]) -> dict[str, list[str]]:
    used = query.with_only_columns(decisions.c.policy).order_by(None).distinct()
    found = connection.execute(
        select(policies).where(policies.c.fingerprint.in_(used)).order_by(policies.c.fingerprint)
    ).all()
    if not found:
        raise DecisionLogError("there are no decisions to export")
    for other in found[1:]:
        if (other.observation_names, other.offer_names) != (found[0].observation_names, found[0].offer_names):
            raise DecisionLogError(
                f"policies {found[0].fingerprint[:12]} and {other.fingerprint[:12]} have other observations "
                f"or offers; export their campaigns apart"
            )
    first = found[0]
    return {
        "observation_names": json.loads(first.observation_names),
        "offer_names": json.loads(first.offer_names),
    }


def _partitions(connection: Connection, query: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    result = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query)
    yield from result.partitions()


def _table(rows: Sequence[Row[Any]], schema: Any, n_columns: int, n_offers: int, now: int) -> Any:
    observation = np.frombuffer(b"".join(row.observation for row in rows), dtype="<f4")
    probabilities = np.frombuffer(b"".join(row.probabilities for row in rows), dtype="<f8")
    packed = np.frombuffer(b"".join(row.mask for row in rows), dtype=np.uint8).reshape(len(rows), -1)
    mask = np.unpackbits(packed, axis=1, count=n_offers).astype(np.bool_)

    def matrix(values: npt.NDArray[Any], width: int) -> Any:
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), width)

    plain = {
        "campaign": [row.campaign for row in rows],
        "user": [row.user_key for row in rows],
        "outcome_known": [row.margin is not None and not _open(row, now) for row in rows],
        "margin": [float("nan") if row.margin is None else row.margin for row in rows],
        "cost": [0.0 if row.charge is None else (row.charge + row.cost) / TICKS_PER_UNIT for row in rows],
    }
    for name in ("week", "weeks_left", "policy", "offer", "refused", "propensity", "dual_price"):
        plain[name] = [getattr(row, name) for row in rows]
    arrays = {name: pyarrow.array(plain[name], kind) for name, kind in COLUMNS.items()}
    arrays |= {
        "observation": matrix(observation, n_columns),
        "mask": matrix(mask, n_offers),
        "probabilities": matrix(probabilities, n_offers),
    }
    return pyarrow.table(arrays, schema=schema)


def _open(row: Row[Any], now: int) -> bool:
    """Whether a decision's coupon can still be redeemed."""
    return bool(row.state == CommitmentState.RESERVED and row.expires_at > now)
