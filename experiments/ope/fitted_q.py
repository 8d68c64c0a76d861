"""Fitted Q evaluation (FQE) over a finite horizon, cross-fitted by user.

For weeks-to-go h = 0, 1, … the value of offer k in observation x is fitted by ridge regression of

    y = r + γ v_{h-1}(x')        (y = r on an episode's last row)

on the logged rows, where v(x) = Σ_k π(k|x) q(x, k) for the target policy π. The model of each stage is

    q_h(x, k) = b_0 + β·x̃ + b_k + δ_k·x̃

with x̃ the standardised observation: a part shared by all offers, and per-offer deviations that the ridge
shrinks towards it, so that a rarely sent offer borrows from the others.

Users are split into folds; the rows of a fold get their values from a whole backward chain fitted without
that fold. That keeps doubly robust estimates valid with any model. numpy only.

Source: Le, Voloshin & Yue (2019), Algorithm 3 (FQE); Chernozhukov et al. (2018), §3 (cross-fitting).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.ope.logged_dataset import BoolArray, FloatArray, IntArray, LoggedDataset

_JITTER = 1e-10
"""Added to the normal equations, relative to their mean diagonal, so that they are never singular."""


@dataclass(frozen=True)
class FittedQConfig:
    """Settings of fitted Q evaluation.

    Attributes:
        ridge: shrinkage of slopes and per-offer deviations, in rows: 10 weighs as much as 10 observations.
        n_folds: folds of users; at most as many as there are users, at least 2.
    """

    ridge: float = 10.0
    n_folds: int = 5

    def __post_init__(self) -> None:
        if not (np.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge must be finite and not negative, not {self.ridge}")
        if self.n_folds < 2:
            raise ValueError(f"n_folds must be at least 2, not {self.n_folds}")


@dataclass(frozen=True, eq=False)
class FittedQ:
    """Values of the target policy at the logged rows, each from a model that has not seen the row's user.

    Attributes:
        q: [N, K] value of sending offer k now and following the target policy afterwards.
        v: [N] value of following the target policy, Σ_k π(k|x) q(x, k).
    """

    q: FloatArray
    v: FloatArray


def fit_q(
    dataset: LoggedDataset,
    target_probabilities: FloatArray,
    outcome: FloatArray,
    *,
    rng: np.random.Generator,
    discount_factor: float = 1.0,
    config: FittedQConfig | None = None,
) -> FittedQ:
    """Fit q and v of the target policy at every logged row.

    Stages run backwards over the weeks left in the *campaign*, which the policy knows; the length of the
    episode, which it does not, is never used as a feature. The next value is taken at the next logged row,
    where the target's probabilities are known, so a truncated episode ends in value 0 like a terminated
    one: the estimand is the value within the logged weeks, at the logged λ path. A stage without training
    rows takes the model of the stage before it.

    Args:
        dataset: N logged steps.
        target_probabilities: [N, K] of the target policy.
        outcome: [N] what is summed over weeks: reward, cost, or any other.
        rng: assigns users to folds.
        discount_factor: γ per week.
        config: ridge and folds; the default settings if not given.

    Raises:
        ValueError: the log holds fewer than 2 users.
    """
    config = config or FittedQConfig()
    fold, n_folds = _folds(dataset.user, config.n_folds, rng)
    centre = dataset.observation.mean(axis=0, dtype=np.float64)
    scale = dataset.observation.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1.0
    q = np.zeros((dataset.n_steps, dataset.n_offers))
    value = np.zeros((dataset.n_steps, n_folds))  # v by row under each fold's model
    coefficients = np.zeros((n_folds, 1 + len(dataset.observation_names), dataset.n_offers))
    for rows in _stages(dataset.weeks_to_go):
        standardised = (dataset.observation[rows] - centre) / scale
        features = np.hstack([np.ones((rows.size, 1)), standardised])
        continues = ~dataset.is_last[rows]
        targets = np.repeat(outcome[rows, None], n_folds, axis=1)
        targets[continues] += discount_factor * value[rows[continues] + 1]
        grams, moments = _normal_equations(
            features, targets, dataset.action[rows], fold[rows], n_folds, dataset.n_offers
        )
        for model in range(n_folds):
            others = np.arange(n_folds) != model
            if (fold[rows] != model).any():
                gram, moment = grams[others].sum(axis=0), moments[others, :, :, model].sum(axis=0)
                coefficients[model] = _solve_ridge(gram, moment, config.ridge)
            predicted = features @ coefficients[model]
            value[rows, model] = (target_probabilities[rows] * predicted).sum(axis=1)
            held_out = fold[rows] == model
            q[rows[held_out]] = predicted[held_out]
    return FittedQ(q=q, v=value[np.arange(dataset.n_steps), fold])


def _folds(user: IntArray, n_folds: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.intp], int]:
    """Assign users to folds of equal size (±1); returns the fold of each row [N] and their number."""
    users, index = np.unique(user, return_inverse=True)
    if users.size < 2:
        raise ValueError("cross-fitting needs at least 2 users")
    n_folds = min(n_folds, users.size)
    return rng.permutation(np.arange(users.size) % n_folds)[index], n_folds


def _stages(weeks_to_go: IntArray) -> list[npt.NDArray[np.intp]]:
    """Rows of each number of weeks to go, ascending."""
    order = np.argsort(weeks_to_go, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(weeks_to_go[order])) + 1)


def _normal_equations(
    features: FloatArray,
    targets: FloatArray,
    action: IntArray,
    fold: npt.NDArray[np.intp],
    n_folds: int,
    n_offers: int,
) -> tuple[FloatArray, FloatArray]:
    """Return XᵀX [F, K, d, d] and XᵀY [F, K, d, F] of the rows of each fold and offer."""
    width = features.shape[1]
    grams = np.zeros((n_folds, n_offers, width, width))
    moments = np.zeros((n_folds, n_offers, width, n_folds))
    for part in range(n_folds):
        for offer in range(n_offers):
            chosen: BoolArray = (fold == part) & (action == offer)
            x = features[chosen]
            grams[part, offer] = x.T @ x
            moments[part, offer] = x.T @ targets[chosen]
    return grams, moments


def _solve_ridge(gram: FloatArray, moment: FloatArray, ridge: float) -> FloatArray:
    """Solve the joint ridge regression; returns the coefficients of each offer as [d, K].

    With G_k = XᵀX and m_k = Xᵀy of offer k's rows, the deviation of its coefficients from the shared ones is
    δ_k = (G_k + λI)⁻¹ (m_k - G_k β). Put into the condition for β, which is penalised by P, all but its
    intercept, that leaves one system of the size of β, and none of the size of all offers together:
    (Σ_k (G_k + λI)⁻¹ G_k + P/λ) β = Σ_k (G_k + λI)⁻¹ m_k.

    Args:
        gram: [K, d, d] XᵀX of each offer's rows.
        moment: [K, d] Xᵀy of each offer's rows.
        ridge: penalty in rows.
    """
    n_offers, width = moment.shape
    jitter = _JITTER * 2 * np.trace(gram, axis1=1, axis2=2).sum() / ((1 + n_offers) * width)
    penalty = ridge + jitter
    known = np.concatenate([gram, moment[:, :, None]], axis=2)
    solved = np.linalg.solve(gram + penalty * np.eye(width), known)
    explained, own = solved[:, :, :-1], solved[:, :, -1]
    shrunk = np.ones(width)
    shrunk[0] = jitter / penalty
    shared = np.linalg.solve(explained.sum(axis=0) + np.diag(shrunk), own.sum(axis=0))
    return np.asarray((shared + own - explained @ shared).T)
