"""Which rows and columns of two logs can be compared for drift, and how bad a drift is.

Drift is a change of the users that a policy meets. What is the same for all users of a week (season, prices,
weeks left) is no feature of users and left out. A campaign changes its users as it goes on: they tire, they
hold coupons. Rows are therefore compared only in the weeks-to-go that both logs have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.monitor.classifier import Separation, separate, some_users
from experiments.monitor.findings import Finding, Level, MonitorError, graded, worst
from experiments.monitor.spend import WEEKS_LEFT
from experiments.monitor.stability import ColumnStability, Sample, compare_columns
from experiments.ope.logged_dataset import LoggedDataset

PSI_WARNING, PSI_ALARM = 0.10, 0.25
"""The usual reading of PSI: below .10 no change, .10 to .25 some, above a major one (Siddiqi 2006, ch. 9)."""

SIGNIFICANCE = 0.05
"""Chance, over all columns of a group together, that one is significant though nothing has drifted."""

AUC_WARNING, AUC_ALARM = 0.60, 0.70
"""Of a classifier that tells new from reference rows; with its interval clear of .5. .6 is what the market of
this package reaches against the real weeks that it was fitted beside; from .7 on, weights of one log on the
other would rest on few rows."""

MOST_USERS = 5_000
"""Of either side, drawn at random: with so many, chance makes a PSI of hundredths at most."""

EMBEDDING = "embedding_"


@dataclass(frozen=True)
class Drift:
    """Drift of one group of columns.

    Attributes:
        group: ``feature`` or ``embedding``.
        columns: by column, largest PSI first.
        separation: what a classifier makes of the columns together.
    """

    group: str
    columns: list[ColumnStability]
    separation: Separation

    def findings(self) -> list[Finding]:
        """Return one finding on the columns one by one, and one on them together."""
        levels = [column_level(column) for column in self.columns]
        level = worst(levels)
        loud = [one for one, found in zip(self.columns, levels, strict=True) if found is level]
        named = ", ".join(f"{one.column} {one.psi:.2f}" for one in loud[:3])
        top = self.columns[0]
        words = (
            f"largest PSI {top.psi:.3f} ({top.column}, p {top.p_value:.3f}) of {len(self.columns)} columns"
            if level is Level.OK
            else f"{len(loud)} of {len(self.columns)} columns: PSI of {named}; p {loud[0].p_value:.3f}"
        )
        apart = self.separation
        return [
            Finding(f"{self.group} drift", level, words),
            Finding(
                f"{self.group} drift, classifier",
                separation_level(apart),
                f"AUC {apart.auc:.3f} ({apart.low:.3f} to {apart.high:.3f}) of telling new rows from the "
                f"reference, most by {', '.join(apart.most_telling)}",
            ),
        ]


def column_level(column: ColumnStability) -> Level:
    """Return how bad a column's PSI is; nothing is wrong where chance alone may do as much."""
    return graded(column.psi, PSI_WARNING, PSI_ALARM) if column.p_value <= SIGNIFICANCE else Level.OK


def separation_level(found: Separation) -> Level:
    """Return how bad it is that new rows can be told apart."""
    return graded(found.auc, AUC_WARNING, AUC_ALARM) if found.low > 0.5 else Level.OK


def measure_drift(
    reference: LoggedDataset, log: LoggedDataset, *, seed: int, threads: int = 1
) -> list[Drift]:
    """Measure the drift of features and, if there are any, of embeddings.

    Args:
        reference: what the policy was evaluated on.
        log: what it meets now.
        seed: of permutations, folds and the classifier.
        threads: CPU threads of the classifier.

    Raises:
        MonitorError: the logs have no weeks-to-go in common, or no column that differs between users.
    """
    rng = np.random.default_rng([seed, 0])
    sides = []
    for side, rows in zip((reference, log), comparable_rows(reference, log), strict=True):
        chosen = rows[some_users(side.user[rows], MOST_USERS, rng)]
        sides.append(Sample(side.observation[chosen], side.user[chosen]))
    names = log.observation_names
    telling = [
        k for k in range(len(names)) if _differs_within_week(reference, k) or _differs_within_week(log, k)
    ]
    if not telling:
        raise MonitorError("no observation column differs between users of a week: there is nothing to drift")
    groups = {
        "feature": [k for k in telling if not names[k].startswith(EMBEDDING)],
        "embedding": [k for k in telling if names[k].startswith(EMBEDDING)],
    }
    found = []
    for group, columns in groups.items():
        if not columns:
            continue
        named = tuple(names[k] for k in columns)
        old, new = (Sample(side.values[:, columns], side.user) for side in sides)
        found.append(
            Drift(
                group,
                compare_columns(named, old, new, rng=rng),
                separate(named, old, new, seed=seed, threads=threads),
            )
        )
    return found


def comparable_rows(
    reference: LoggedDataset, log: LoggedDataset
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of both logs in the weeks-to-go that both have; all rows if they do not tell.

    Raises:
        MonitorError: they have none in common.
    """
    if WEEKS_LEFT not in log.observation_names:
        return np.arange(reference.n_steps), np.arange(log.n_steps)
    place = log.observation_names.index(WEEKS_LEFT)
    old, new = (np.round(side.observation[:, place]).astype(np.int64) for side in (reference, log))
    common = np.intersect1d(old, new)
    if not common.size:
        raise MonitorError(
            f"no week of the log is as far from its campaign's end as one of the reference: {WEEKS_LEFT} is "
            f"{new.min()}-{new.max()} here and {old.min()}-{old.max()} there"
        )
    return np.flatnonzero(np.isin(old, common)), np.flatnonzero(np.isin(new, common))


def _differs_within_week(log: LoggedDataset, column: int) -> bool:
    """Whether a column differs between the users of any week of any campaign."""
    _, week = np.unique(np.stack([log.campaign, log.week]), axis=1, return_inverse=True)
    week = week.ravel()
    values = log.observation[:, column]
    first = np.empty(int(week.max()) + 1, dtype=values.dtype)
    first[week[::-1]] = values[::-1]
    return bool((values != first[week]).any())
