"""Logged decisions with known propensities: the input of every offline estimate.

One row is one decision: user, campaign, week, what was observed, which offer was sent and with what
probability, and what followed. The rows of one (user, campaign) pair are one *episode*: contiguous, in
consecutive weeks, of any length. Shapes: N logged steps, K offers, o observation columns, E episodes.

A shared budget couples users. The log therefore carries the dual price λ of each step: at a fixed λ path
users are independent of one another, and only then may their importance weights be multiplied per user.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, starmap
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.ope.log_checks import BoolArray as BoolArray
from experiments.ope.log_checks import FloatArray as FloatArray
from experiments.ope.log_checks import IntArray as IntArray
from experiments.ope.log_checks import LoggedDataError as LoggedDataError
from experiments.ope.log_checks import check_actions, check_propensities, refuse
from experiments.ope.log_checks import require_array as require_array
from experiments.ope.log_checks import require_probabilities as require_probabilities

PropensitySource = Literal["logged", "estimated"]

_STEP_COLUMNS: dict[str, type[np.generic]] = {
    "user": np.int64,
    "campaign": np.int64,
    "week": np.int64,
    "action": np.int64,
    "propensity": np.float64,
    "reward": np.float64,
    "cost": np.float64,
    "dual_price": np.float64,
    "terminated": np.bool_,
    "truncated": np.bool_,
}
_METADATA_KEY = b"couponlab.logged_dataset"


@dataclass(frozen=True, eq=False, kw_only=True)
class LoggedDataset:
    """N logged decisions of n users, grouped into episodes.

    Attributes:
        observation: [N, o] float32, what the behaviour policy saw before it acted.
        action: [N] int64, the offer sent, in 0..K-1.
        mask: [N, K] bool, the offers that were allowed.
        propensity: [N] float64 in (0, 1], probability with which the behaviour policy took ``action``.
        reward: [N] float64, contribution margin before coupon cost, in the log's currency.
        cost: [N] float64, coupon and push cost, in the log's currency.
        next_observation: [N, o] float32, what was seen a week later.
        terminated: [N] bool, the episode ended here (campaign over, user opted out).
        truncated: [N] bool, the log stops here although the episode went on.
        user: [N] int64.
        campaign: [N] int64.
        week: [N] int64.
        dual_price: [N] float64, the price λ ≥ 0 of a unit of budget at this step.
        observation_names: o distinct names of the observation columns.
        propensity_source: whether ``propensity`` was logged by the policy that acted, or estimated later.
        behaviour_probabilities: [N, K] float64, the behaviour policy's whole distribution, if known; it is
            estimated where ``propensity`` is.

    Raises:
        LoggedDataError: a column has the wrong shape, type or value, or episodes are out of order.
    """

    observation: npt.NDArray[np.float32]
    action: IntArray
    mask: BoolArray
    propensity: FloatArray
    reward: FloatArray
    cost: FloatArray
    next_observation: npt.NDArray[np.float32]
    terminated: BoolArray
    truncated: BoolArray
    user: IntArray
    campaign: IntArray
    week: IntArray
    dual_price: FloatArray
    observation_names: tuple[str, ...]
    propensity_source: PropensitySource
    behaviour_probabilities: FloatArray | None = None

    def __post_init__(self) -> None:
        self._check_columns()
        self._check_values()
        self._check_episodes()

    def _check_columns(self) -> None:
        if self.propensity_source not in get_args(PropensitySource):
            raise LoggedDataError(f"propensity_source is {self.propensity_source!r}")
        if not isinstance(self.observation_names, tuple) or not all(
            isinstance(name, str) for name in self.observation_names
        ):
            raise LoggedDataError(f"observation_names must be a tuple of texts: {self.observation_names!r}")
        if len(set(self.observation_names)) != len(self.observation_names):
            raise LoggedDataError(f"observation_names repeat: {self.observation_names}")
        if self.mask.ndim != 2 or 0 in self.mask.shape:
            raise LoggedDataError(f"mask has shape {self.mask.shape}, expected (N, K) with N, K >= 1")
        n_observation = len(self.observation_names)
        require_array("mask", self.mask, np.bool_, self.mask.shape)
        for name in ("observation", "next_observation"):
            require_array(name, getattr(self, name), np.float32, (self.n_steps, n_observation))
        for name, dtype in _STEP_COLUMNS.items():
            require_array(name, getattr(self, name), dtype, (self.n_steps,))

    def _check_values(self) -> None:
        refuse("dual_price", self.dual_price < 0, self.dual_price, "must not be negative")
        check_actions(self.action, self.mask)
        check_propensities(self.propensity, self.action, self.mask, self.behaviour_probabilities)

    def _check_episodes(self) -> None:
        starts = self.episode_starts
        order = starts[np.lexsort([self.campaign[starts], self.user[starts]])]  # stable: rows ascend
        again = (np.diff(self.user[order]) == 0) & (np.diff(self.campaign[order]) == 0)
        repeated = np.zeros(self.n_steps, dtype=np.bool_)
        repeated[order[1:][again]] = True
        refuse("user", repeated, self.user, "comes back to a campaign whose rows stand elsewhere")
        jump = (self.position > 0) & (np.diff(self.week, prepend=0) != 1)
        refuse("week", jump, self.week, "must follow the row above it by one week within an episode")
        for name in ("terminated", "truncated"):
            flag: BoolArray = getattr(self, name)
            refuse(name, flag & ~self.is_last, flag, "may stand only on an episode's last row")
        open_ended = self.is_last & ~(self.terminated | self.truncated)
        refuse("truncated", open_ended, self.truncated, "must be set where an episode stops unterminated")

    @property
    def n_steps(self) -> int:
        """Number of logged steps N."""
        return int(self.mask.shape[0])

    @property
    def n_offers(self) -> int:
        """Number of offers K."""
        return int(self.mask.shape[1])

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return int(self.episode_starts.size)

    @cached_property
    def episode_starts(self) -> IntArray:
        """[E] the first row of each episode."""
        new = (np.diff(self.user) != 0) | (np.diff(self.campaign) != 0)
        return np.concatenate([[0], np.flatnonzero(new) + 1]).astype(np.int64)

    @cached_property
    def episode(self) -> IntArray:
        """[N] the episode 0..E-1 of each row."""
        lengths = np.diff(np.append(self.episode_starts, self.n_steps))
        return np.repeat(np.arange(self.n_episodes, dtype=np.int64), lengths)

    @cached_property
    def position(self) -> IntArray:
        """[N] the place 0, 1, … of each row within its episode."""
        return np.arange(self.n_steps, dtype=np.int64) - self.episode_starts[self.episode]

    @cached_property
    def is_last(self) -> BoolArray:
        """[N] whether the row is its episode's last."""
        return np.asarray(np.diff(self.episode, append=self.n_episodes) != 0)

    @cached_property
    def weeks_to_go(self) -> IntArray:
        """[N] weeks from the row to the last logged week of its campaign.

        Counted to the campaign's end, not the episode's: when a user will opt out is not known in advance.
        """
        _, campaign = np.unique(self.campaign, return_inverse=True)
        ends = np.full(int(campaign.max()) + 1, np.iinfo(np.int64).min)
        np.maximum.at(ends, campaign, self.week)
        return np.asarray(ends[campaign] - self.week, dtype=np.int64)

    def episode_slices(self) -> list[slice]:
        """Return the E row ranges of the episodes."""
        return list(starmap(slice, pairwise([*self.episode_starts.tolist(), self.n_steps])))

    def save(self, path: Path) -> None:
        """Write one Parquet file, atomically; [N, o] and [N, K] arrays become a column per name or offer."""
        columns = {name: getattr(self, name) for name in _STEP_COLUMNS}
        matrices = {
            "observation": self.observation,
            "next_observation": self.next_observation,
            "mask": self.mask,
        }
        if self.behaviour_probabilities is not None:
            matrices["behaviour_probability"] = self.behaviour_probabilities
        for prefix, matrix in matrices.items():
            names = _matrix_columns(prefix, self.observation_names, self.n_offers)
            columns |= {name: matrix[:, index] for index, name in enumerate(names)}
        metadata = {
            "observation_names": self.observation_names,
            "n_offers": self.n_offers,
            "propensity_source": self.propensity_source,
            "has_behaviour_probabilities": self.behaviour_probabilities is not None,
        }
        table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
        temporary = path.with_name(path.name + ".part")
        try:
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> LoggedDataset:
        """Read and validate a file written by :meth:`save`.

        Raises:
            LoggedDataError: the file lacks a column or has nulls in it, or its content is not valid.
        """
        if not path.is_file():
            raise LoggedDataError(f"{path}: no such file")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise LoggedDataError(f"{path} is not a readable Parquet file: {error}") from error
        if not is_logged_dataset(table.schema):
            raise LoggedDataError(f"{path} was not written by LoggedDataset.save: its metadata is missing")
        try:
            metadata = json.loads(table.schema.metadata[_METADATA_KEY])
            names, n_offers = tuple(metadata["observation_names"]), int(metadata["n_offers"])
            known, source = metadata["has_behaviour_probabilities"], metadata["propensity_source"]
        except (ValueError, KeyError, TypeError) as error:
            raise LoggedDataError(f"{path}: its metadata is damaged: {error!r}") from error

        def column(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
            if name not in table.column_names:
                raise LoggedDataError(f"{path}: column {name} is missing")
            if table[name].null_count:
                raise LoggedDataError(f"{path}: column {name} has {table[name].null_count} nulls")
            values = np.asarray(table[name].to_numpy())
            require_array(name, values, dtype, (table.num_rows,))
            return values

        def matrix(prefix: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
            stack = [column(name, dtype) for name in _matrix_columns(prefix, names, n_offers)]
            return np.stack(stack, axis=1) if stack else np.empty((table.num_rows, 0), dtype=dtype)

        return cls(
            **{name: column(name, dtype) for name, dtype in _STEP_COLUMNS.items()},
            observation=matrix("observation", np.float32),
            next_observation=matrix("next_observation", np.float32),
            mask=matrix("mask", np.bool_),
            behaviour_probabilities=matrix("behaviour_probability", np.float64) if known else None,
            observation_names=names,
            propensity_source=source,
        )


def is_logged_dataset(schema: pa.Schema) -> bool:
    """Return whether a Parquet file of this schema was written by :meth:`LoggedDataset.save`."""
    return _METADATA_KEY in (schema.metadata or {})


def _matrix_columns(prefix: str, observation_names: tuple[str, ...], n_offers: int) -> list[str]:
    endings = observation_names if prefix.endswith("observation") else tuple(str(k) for k in range(n_offers))
    return [f"{prefix}_{ending}" for ending in endings]
