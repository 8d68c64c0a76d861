"""The decision log as a file, to be read without what the service needs to run.

A row is one decision, by campaign, user and week. ``offer`` is what the policy drew, ``propensity`` the
probability of that draw. A decision that the budget did not cover is marked ``refused``: nothing was sent,
yet the draw was random with the logged propensity, so it stays in the log as it was drawn. What followed is
known once feedback came and the coupon, if there is one, has ended; until then ``outcome_known`` is false
and the margin is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet

from agents.service.errors import ServiceError

METADATA_KEY = b"couponlab.decision_log"
"""Of the names of observation columns and offers, as JSON."""
COLUMNS: dict[str, Any] = {
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
"""Of a file, besides observations, masks and probabilities."""


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
        """Read a file written by :func:`agents.service.decision_log.export_decisions`.

        Raises:
            DecisionLogError: it is not one.
        """
        try:
            table = pyarrow.parquet.read_table(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DecisionLogError(f"{path}: not a readable Parquet file: {error}") from error
        metadata = (table.schema.metadata or {}).get(METADATA_KEY)
        if metadata is None:
            raise DecisionLogError(f"{path} is not a decision log: its metadata is missing")
        names = json.loads(metadata)
        n = table.num_rows

        def matrix(name: str, width: int) -> npt.NDArray[Any]:
            flat = table[name].combine_chunks().flatten()
            return flat.to_numpy(zero_copy_only=False).reshape(n, width)  # type: ignore[no-any-return]

        columns = {name: table[name].to_numpy() for name in COLUMNS}
        columns |= {name: columns[name].astype(np.str_) for name in ("campaign", "user", "policy")}
        return cls(
            **columns,
            observation=matrix("observation", len(names["observation_names"])),
            mask=matrix("mask", len(names["offer_names"])),
            probabilities=matrix("probabilities", len(names["offer_names"])),
            observation_names=tuple(names["observation_names"]),
            offer_names=tuple(names["offer_names"]),
        )
