"""Can a classifier tell simulated user-weeks from real ones (Lopez-Paz & Oquab 2017)?"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from experiments.realism.replay import ShoppingWeeks

FOLDS = 5
ROUNDS = 120
_SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


@dataclass(frozen=True)
class Verdict:
    """What the classifier found.

    Attributes:
        auc: area under the ROC curve on held-out users; 0.5 where real and simulated cannot be told apart.
        importance: share of the gain by feature, largest first.
    """

    auc: float
    importance: dict[str, float]


def user_week_rows(weeks: ShoppingWeeks) -> npt.NDArray[np.float32]:
    """Return what is known of each user-week, [n·T, 7 + C], user by user.

    Visited, categories bought, spend and trips; weeks visited, categories and spend of the user in all weeks;
    and whether each category was bought.
    """
    n_weeks = weeks.trips.shape[1]
    size = weeks.bought.sum(axis=2)
    of_week = [weeks.visited, size, weeks.spend, weeks.trips]
    of_user = [values.sum(axis=1, keepdims=True).repeat(n_weeks, axis=1) for values in of_week[:3]]
    columns = np.stack([*of_week, *of_user], axis=2)
    rows = np.concatenate([columns, weeks.bought], axis=2).reshape(-1, 7 + weeks.bought.shape[2])
    return rows.astype(np.float32)


def tell_apart(
    real: ShoppingWeeks, simulated: ShoppingWeeks, categories: list[str], *, seed: int, threads: int
) -> Verdict:
    """Train a gradient-boosted classifier on some users' weeks, real and simulated, and test it on others'.

    Args:
        real: n users.
        simulated: the same users.
        categories: C names.
        seed: of the folds and of LightGBM.
        threads: CPU threads.
    """
    parts = [user_week_rows(real), user_week_rows(simulated)]
    features = np.concatenate(parts)
    label = np.repeat([1.0, 0.0], len(parts[0]))
    n_users, n_weeks = real.trips.shape
    # A user's weeks, real and simulated, stay together: none is tested on whom it was trained on.
    fold = np.tile(np.random.default_rng(seed).integers(0, FOLDS, n_users).repeat(n_weeks), 2)
    score, gain = np.zeros(len(label)), np.zeros(features.shape[1])
    for k in range(FOLDS):
        train = lightgbm.Dataset(features[fold != k], label[fold != k])
        booster = lightgbm.train({**_SETTINGS, "seed": seed, "num_threads": threads}, train, ROUNDS)
        score[fold == k] = np.asarray(booster.predict(features[fold == k]))
        gain += booster.feature_importance("gain")
    names = ["visited", "categories", "spend", "trips", "user's visits", "user's categories", "user's spend"]
    shares = gain / max(float(gain.sum()), 1e-12)
    order = np.argsort(-shares, kind="stable")
    named = [*names, *categories]
    return Verdict(float(roc_auc_score(label, score)), {named[k]: float(shares[k]) for k in order})
