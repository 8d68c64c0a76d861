"""One's own logs, as a data frame or a Parquet or CSV file, turned into a :class:`LoggedDataset`.

One row of the table is one decision: user, campaign, week, the offer that was sent, and the reward that
followed. What a log does not say is said in the notes; a propensity that was not logged is estimated
(:mod:`experiments.ope.propensity`) and marked so. Rows are counted from 0 in messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.ope.log_checks import (
    BoolArray,
    FloatArray,
    IntArray,
    LoggedDataError,
    check_actions,
    check_propensities,
    refuse,
)
from experiments.ope.log_mapping import LogMapping, required
from experiments.ope.logged_dataset import LoggedDataset, is_logged_dataset
from experiments.ope.own_columns import (
    number_labels,
    read_flags,
    read_labels,
    read_numbers,
    read_weeks,
    weeks_of_timestamps,
)
from experiments.ope.own_features import read_features
from experiments.ope.own_offers import read_offers
from experiments.ope.propensity import PropensityReport, estimate_propensities


@dataclass(frozen=True, eq=False)
class OwnLog:
    """A log of one's own, ready for evaluation, and what its integers stand for.

    Attributes:
        dataset: the log; its integers index ``offers``, ``users`` and ``campaigns``.
        offers: [K] names.
        users: ids of the users, as text.
        campaigns: ids of the campaigns, as text.
        no_offer: index of the offer that means that nothing was sent, None where it is not known.
        row: [N] row of the table that each step was read from.
        notes: what the log did not say and what was taken instead, in words.
        propensity_report: how well the estimated propensities fit; None where they were logged.
    """

    dataset: LoggedDataset
    offers: tuple[str, ...]
    users: tuple[str, ...]
    campaigns: tuple[str, ...]
    no_offer: int | None
    row: IntArray
    notes: tuple[str, ...]
    propensity_report: PropensityReport | None


def read_own_log(path: Path, mapping: LogMapping | None = None, *, rng: np.random.Generator) -> OwnLog:
    """Read a log from a Parquet or CSV file; one written by :meth:`LoggedDataset.save` is taken as it is.

    Args:
        path: ``.parquet``, or ``.csv`` (comma-separated, UTF-8, with a header; an empty cell is missing).
        mapping: which column is what; not needed where they have the standard names.
        rng: divides users into folds where propensities must be estimated.

    Raises:
        LoggedDataError: the file cannot be read, or is no usable log.
    """
    if not path.is_file():
        raise LoggedDataError(f"{path}: no such file")
    if path.suffix == ".csv":
        try:
            # Cells are text here and are read by what their column is for: a guess turns the id 007 into 7.
            # Without a header of its own, so that neither a name that is there twice nor a cell too many is
            # quietly mended.
            cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, na_values=[""])
        except (ValueError, OSError) as error:
            raise LoggedDataError(f"{path} is not a readable CSV file: {error}") from error
        frame = cells.iloc[1:].reset_index(drop=True).set_axis(cells.iloc[0].fillna(""), axis=1)
        return from_frame(frame, mapping, rng=rng)
    if path.suffix != ".parquet":
        raise LoggedDataError(f"{path}: a log is a .parquet or a .csv file")
    try:
        if is_logged_dataset(pq.read_schema(path)):
            if mapping not in (None, LogMapping()):
                raise LoggedDataError(f"{path} was written by LoggedDataset.save: its columns are known")
            return _as_it_is(LoggedDataset.load(path))
        frame = pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise LoggedDataError(f"{path} is not a readable Parquet file: {error}") from error
    return from_frame(frame, mapping, rng=rng)


def from_frame(frame: pd.DataFrame, mapping: LogMapping | None = None, *, rng: np.random.Generator) -> OwnLog:
    """Turn a table of decisions into a log for evaluation. Rows may come in any order.

    Args:
        frame: one row per decision.
        mapping: which column is what; not needed where they have the standard names.
        rng: divides users into folds where propensities must be estimated; otherwise unused.

    Raises:
        LoggedDataError: a column is missing, or a value is not what its column is for; the message names
            column, row and an example.
    """
    mapping = mapping or LogMapping()
    frame = frame.rename(columns=str)
    if frame.empty:
        raise LoggedDataError("the table has no rows")
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise LoggedDataError(f"the table has the column {twice[0]!r} more than once")
    columns = mapping.find(frame)
    user, users = number_labels(read_labels(frame, required(columns, "user", frame), personal=True))
    campaign, campaigns = _read_campaigns(frame, columns)
    sent = read_offers(frame, columns, mapping)
    check_actions(sent.action, sent.mask)
    given_week = _read_weeks(frame, columns, user, campaign)
    order = np.lexsort([given_week, campaign, user]).astype(np.int64)
    week, skipped = _consecutive(given_week, user, campaign, order, close_gaps=mapping.close_gaps)
    last = np.zeros(len(frame), dtype=np.bool_)
    last[order] = _changes(user[order], campaign[order])[1:]
    money = {name: _read_money(frame, columns, name) for name in ("reward", "cost", "dual_price")}
    refuse("dual_price", money["dual_price"] < 0, money["dual_price"], "must not be negative")
    terminated = _read_terminated(frame, columns, last)
    features, names, feature_notes = read_features(frame, columns, mapping)
    notes = [*_notes_on_absent(columns), *sent.notes, *feature_notes]
    if skipped:
        notes.append(f"{skipped} gaps between weeks were closed: a week is the number of a decision")
    probabilities, report = sent.probabilities, None
    if probabilities is None and "propensity" not in columns:
        estimate = estimate_propensities(features, sent.action, sent.mask, user, rng=rng)
        probabilities, report = estimate.probabilities, estimate.report
        notes.append("propensities were not logged: they are estimated from the features, and marked so")
    if probabilities is None or "propensity" in columns:
        propensity = read_numbers(frame, columns["propensity"])
    else:
        propensity = probabilities[np.arange(len(frame)), sent.action]
    check_propensities(propensity, sent.action, sent.mask, probabilities)
    observation = features[order].astype(np.float32)
    dataset = LoggedDataset(
        observation=observation,
        action=sent.action[order],
        mask=sent.mask[order],
        propensity=propensity[order],
        reward=money["reward"][order],
        cost=money["cost"][order],
        next_observation=_next_rows(observation, last[order]),
        terminated=terminated[order],
        truncated=(last & ~terminated)[order],
        user=user[order],
        campaign=campaign[order],
        week=week[order],
        dual_price=money["dual_price"][order],
        observation_names=names,
        propensity_source="logged" if report is None else "estimated",
        behaviour_probabilities=None if probabilities is None else probabilities[order],
    )
    return OwnLog(
        dataset=dataset,
        offers=sent.names,
        users=users,
        campaigns=campaigns,
        no_offer=sent.no_offer,
        row=order,
        notes=tuple(notes),
        propensity_report=report,
    )


def _as_it_is(dataset: LoggedDataset) -> OwnLog:
    """A log that this package wrote: its integers are its names, and offer 0 sends nothing."""
    users, user = np.unique(dataset.user, return_inverse=True)
    campaigns, campaign = np.unique(dataset.campaign, return_inverse=True)
    return OwnLog(
        dataset=replace(dataset, user=user.astype(np.int64), campaign=campaign.astype(np.int64)),
        offers=("no offer", *(f"offer {k}" for k in range(1, dataset.n_offers))),
        users=tuple(str(user) for user in users.tolist()),
        campaigns=tuple(str(campaign) for campaign in campaigns.tolist()),
        no_offer=0,
        row=np.arange(dataset.n_steps, dtype=np.int64),
        notes=(),
        propensity_report=None,
    )


def _read_campaigns(frame: pd.DataFrame, columns: dict[str, str]) -> tuple[IntArray, tuple[str, ...]]:
    if "campaign" not in columns:
        return np.zeros(len(frame), dtype=np.int64), ("all",)
    return number_labels(read_labels(frame, columns["campaign"]))


def _read_weeks(frame: pd.DataFrame, columns: dict[str, str], user: IntArray, campaign: IntArray) -> IntArray:
    """[N] weeks; all 1 where the table has none and no user decides twice in a campaign."""
    if "week" in columns:
        return read_weeks(frame, columns["week"])
    if "timestamp" in columns:
        return weeks_of_timestamps(frame, columns["timestamp"])
    again = _repeated(user, campaign)
    if again.any():
        raise LoggedDataError(
            f"week: the table has neither a week nor a timestamp, and row {int(again.argmax())} is not the "
            f"first of its user and campaign ({int(again.sum())} such): the order of decisions is not known"
        )
    return np.ones(len(frame), dtype=np.int64)


def _repeated(*keys: IntArray) -> BoolArray:
    """[N] whether an earlier row has the same keys."""
    return pd.DataFrame(dict(enumerate(keys))).duplicated().to_numpy(dtype=np.bool_)


def _consecutive(
    week: IntArray, user: IntArray, campaign: IntArray, order: IntArray, *, close_gaps: bool
) -> tuple[IntArray, int]:
    """Return weeks that follow each other within an episode, and how many gaps were closed for that."""
    again = _repeated(user, campaign, week)
    refuse("week", again, week, "has an earlier row of the same user and campaign; one decision a week")
    first = _changes(user[order], campaign[order])[:-1]
    step = np.diff(week[order], prepend=0)
    gap = np.zeros(len(week), dtype=np.bool_)
    gap[order] = ~first & (step != 1)
    if not close_gaps:
        rule = "does not follow the user's week before in this campaign; close_gaps numbers decisions instead"
        refuse("week", gap, week, rule)
        return week, 0
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(week)))
    closed = np.empty_like(week)
    closed[order] = np.repeat(week[order][starts] - starts, lengths) + np.arange(len(week))
    return closed, int(gap.sum())


def _changes(user: IntArray, campaign: IntArray) -> BoolArray:
    """[N + 1] whether an episode begins at a row, and at the end, where one would."""
    inner = (np.diff(user) != 0) | (np.diff(campaign) != 0)
    return np.concatenate([[True], inner, [True]])


def _read_money(frame: pd.DataFrame, columns: dict[str, str], field: str) -> FloatArray:
    if field == "reward":
        return read_numbers(frame, required(columns, field, frame))
    return read_numbers(frame, columns[field]) if field in columns else np.zeros(len(frame))


def _read_terminated(frame: pd.DataFrame, columns: dict[str, str], last: BoolArray) -> BoolArray:
    """[N] whether an episode ended; without a column every one did, with its last row."""
    if "terminated" not in columns:
        return last
    terminated = read_flags(frame, columns["terminated"])
    refuse(columns["terminated"], terminated & ~last, terminated, "stands before the episode's last row")
    return terminated


def _notes_on_absent(columns: dict[str, str]) -> list[str]:
    """Say what was taken for the fields that the table does not have."""
    said = {
        "campaign": "no campaign: all rows are taken as of one campaign",
        "cost": "no cost: it is taken as 0, so that nothing can be said of a budget",
        "dual_price": "no dual price: it is taken as 0; if users shared a budget, estimates hold only under "
        "the pressure that it was logged with",
        "terminated": "no terminated: every episode is taken as ended with its last row",
    }
    return [words for field, words in said.items() if field not in columns]


def _next_rows(observation: npt.NDArray[np.float32], last: BoolArray) -> npt.NDArray[np.float32]:
    """The observation a week later; an episode's last row, after which nothing is known, repeats its own."""
    following = np.roll(observation, -1, axis=0)
    following[last] = observation[last]
    return following
