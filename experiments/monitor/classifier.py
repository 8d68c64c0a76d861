"""Can a classifier tell new rows from the reference? A two-sample test of all columns together.

Lopez-Paz & Oquab (2017): if both come from the same distribution, no classifier has a held-out AUC above .5.
It sees what column-wise tests do not: that columns no longer go together as they did.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
import numpy.typing as npt

from experiments.backtest.ranking import HouseholdRanking
from experiments.monitor.stability import Sample

FOLDS = 5
ROUNDS = 60
N_RESAMPLES = 300
MOST_USERS = 1_500
"""Of either side, drawn at random: more make the interval narrower than any threshold needs."""

_SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


@dataclass(frozen=True)
class Separation:
    """What a classifier makes of two sets of rows.

    Attributes:
        auc: held-out area under the ROC curve; .5 where they cannot be told apart.
        low: lower end of its 95% interval, users resampled.
        high: upper end.
        most_telling: the three columns of the largest gain.
    """

    auc: float
    low: float
    high: float
    most_telling: tuple[str, ...]


def separate(
    names: tuple[str, ...], reference: Sample, new: Sample, *, seed: int, threads: int = 1
) -> Separation:
    """Train LightGBM to tell new rows from reference rows, tested on users that it was not trained on.

    A user who is in both samples is in one fold with both: else he would be recognised, not told apart.

    Args:
        names: [k] of the columns.
        reference: one side.
        new: the other.
        seed: of the draw of users, the folds, LightGBM and the resamples.
        threads: CPU threads.
    """
    rng = np.random.default_rng([seed, 1])
    sides = (reference, new)
    kept = [some_users(side.user, MOST_USERS, rng) for side in sides]
    rows = np.concatenate([side.values[chosen] for side, chosen in zip(sides, kept, strict=True)])
    rows = rows.astype(np.float32)
    label = np.repeat([0.0, 1.0], [len(chosen) for chosen in kept])
    everyone = np.concatenate([side.user[chosen] for side, chosen in zip(sides, kept, strict=True)])
    known, user = np.unique(everyone, return_inverse=True)
    fold = rng.permutation(len(known))[user] % FOLDS
    score, gain = np.zeros(len(label)), np.zeros(len(names))
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        if not test.any():
            continue
        if label[train].min() == label[train].max():
            # All users of one side are held out: nothing can be learnt from the other alone.
            score[test] = label[train].mean()
            continue
        booster = lightgbm.train(
            {**_SETTINGS, "seed": seed, "num_threads": threads},
            lightgbm.Dataset(rows[train], label[train]),
            ROUNDS,
        )
        # Log-odds less the fold's own: folds differ in the share of new rows, which tells nothing of a row.
        score[test] = np.asarray(booster.predict(rows[test], raw_score=True)) - _log_odds(label[train])
        gain += booster.feature_importance("gain")
    draws = np.ones((1 + N_RESAMPLES, len(known)))
    for row in draws[1:]:
        row[:] = np.bincount(rng.integers(len(known), size=len(known)), minlength=len(known))
    auc = HouseholdRanking(score, label > 0, user, len(known)).auc(draws)
    low, high = np.nanquantile(auc[1:], [0.025, 0.975])
    order = np.argsort(-gain, kind="stable")[:3]
    return Separation(float(auc[0]), float(low), float(high), tuple(names[k] for k in order))


def some_users(user: npt.NDArray[np.integer], most: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the places of the rows [N] of at most ``most`` users, drawn at random."""
    known = np.unique(user)
    if len(known) <= most:
        return np.arange(len(user))
    return np.flatnonzero(np.isin(user, rng.choice(known, most, replace=False)))


def _log_odds(label: npt.NDArray[np.float64]) -> float:
    share = label.mean()
    return float(np.log(share / (1.0 - share)))
