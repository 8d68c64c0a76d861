"""The decision log: what was decided with which probability, and what followed, out of the database.

A row is one decision, by campaign, user and week. ``offer`` is what the policy drew, ``propensity`` the
probability of that draw. A decision that the budget did not cover is marked ``refused``: nothing was sent,
yet the draw was random with the logged propensity, so it stays in the log as it was drawn. What followed is
known once feedback came and the coupon, if there is one, has ended; until then ``outcome_known`` is false
and the margin is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
from sqlalchemy import Connection, Row, Select, select

from agents.service.errors import ServiceError
from agents.service.ledger import CommitmentState
from agents.service.tables import commitments, decisions, feedback, policies
from envs.ticks import TICKS_PER_UNIT

ROWS_AT_ONCE = 10_000
_METADATA_KEY = b"couponlab.decision_log"
_COLUMNS: dict[str, Any] = {
    "campaign": pyarrow.string(),
    "user": pyarrow.string(),
    "week": pyarrow.int64(),
    "weeks_left": pyarrow.int64(),
    "policy": pyarrow.string(),
    "offer": pyarrow.int64(),
    "refused": pyarrow.bool_(),
    "propensity": pyarrow.float64(),
    "dual_price": pyarrow.float64(),
    "outcome_known": pyarrow.bool_(),
    "margin": pyarrow.float64(),
    "cost": pyarrow.float64(),
}


class DecisionLogError(ServiceError):
    """Decisions cannot be put into one log, or a file is not one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DecisionLog:
    """N decisions, sorted by campaign, user and week; K offers, o observation columns.

    Attributes:
        campaign: [N] str.
        user: [N] str, pseudonyms.
        week: [N] int64.
        weeks_left: [N] int64, of the campaign, this one included.
        policy: [N] str, fingerprints of the bundles that decided.
        offer: [N] int64, drawn.
        refused: [N] bool, the budget did not cover it and nothing was sent.
        propensity: [N] float64, of the draw.
        dual_price: [N] float64.
        outcome_known: [N] bool.
        margin: [N] float64, before coupon cost, log's currency; NaN where there was no feedback.
        cost: [N] float64, delivery and redeemed discount so far, log's currency.
        observation: [N, o] float32.
        mask: [N, K] bool.
        probabilities: [N, K] float64.
        observation_names: o.
        offer_names: K.
    """

    campaign: npt.NDArray[np.str_]
    user: npt.NDArray[np.str_]
    week: npt.NDArray[np.int64]
    weeks_left: npt.NDArray[np.int64]
    policy: npt.NDArray[np.str_]
    offer: npt.NDArray[np.int64]
    refused: npt.NDArray[np.bool_]
    propensity: npt.NDArray[np.float64]
    dual_price: npt.NDArray[np.float64]
    outcome_known: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float64]
    cost: npt.NDArray[np.float64]
    observation: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    probabilities: npt.NDArray[np.float64]
    observation_names: tuple[str, ...]
    offer_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.week)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by `export_decisions`.

        Raises:
            DecisionLogError: it is not one.
        """
        try:
            table = pyarrow.parquet.read_table(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DecisionLogError(f"{path}: not a readable Parquet file: {error}") from error
        metadata = (table.schema.metadata or {}).get(_METADATA_KEY)
        if metadata is None:
            raise DecisionLogError(f"{path} is not a decision log: its metadata is missing")
        names = json.loads(metadata)
        n = table.num_rows

        def matrix(name: str, width: int) -> npt.NDArray[Any]:
            flat = table[name].combine_chunks().flatten()
            return flat.to_numpy(zero_copy_only=False).reshape(n, width)  # type: ignore[no-any-return]

        columns = {name: table[name].to_numpy() for name in _COLUMNS}
        columns |= {name: columns[name].astype(np.str_) for name in ("campaign", "user", "policy")}
        return cls(
            **columns,
            observation=matrix("observation", len(names["observation_names"])),
            mask=matrix("mask", len(names["offer_names"])),
            probabilities=matrix("probabilities", len(names["offer_names"])),
            observation_names=tuple(names["observation_names"]),
            offer_names=tuple(names["offer_names"]),
        )


def export_decisions(
    connection: Connection, path: Path, campaigns: Sequence[str] | None = None, *, now: int
) -> int:
    """Write the decisions of campaigns as one Parquet file, whole or not at all, in bounded memory.

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
            *_COLUMNS.items(),
            ("observation", pyarrow.list_(pyarrow.float32(), n_columns)),
            ("mask", pyarrow.list_(pyarrow.bool_(), n_offers)),
            ("probabilities", pyarrow.list_(pyarrow.float64(), n_offers)),
        ],
        metadata={_METADATA_KEY: json.dumps(names).encode()},
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
    arrays = {name: pyarrow.array(plain[name], kind) for name, kind in _COLUMNS.items()}
    arrays |= {
        "observation": matrix(observation, n_columns),
        "mask": matrix(mask, n_offers),
        "probabilities": matrix(probabilities, n_offers),
    }
    return pyarrow.table(arrays, schema=schema)


def _open(row: Row[Any], now: int) -> bool:
    """Whether a decision's coupon can still be redeemed."""
    return bool(row.state == CommitmentState.RESERVED and row.expires_at > now)
