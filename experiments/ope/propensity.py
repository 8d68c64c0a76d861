"""Propensities that were not logged, estimated from what was known before each decision.

A multinomial model of the offer sent, over the offers allowed, cross-fitted by user: the scores of a user's
rows come from a model that has not seen the user, and are calibrated on the scores of other folds. What it
cannot give is a reason for sending that is in no feature. So such propensities are marked ``estimated``, and
lower every verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import lightgbm
import numpy as np

from experiments.ope.calibration import OfferCalibration, offer_calibration
from experiments.ope.log_checks import BoolArray, FloatArray, IntArray, LoggedDataError
from experiments.ope.masked_softmax import fit_logistic, fit_scaling, log_loss, masked_softmax

Model: TypeAlias = Literal["marginal", "logistic", "boosted"]
_Scores: TypeAlias = Callable[[FloatArray, BoolArray], FloatArray]

_INTERCEPT_RIDGE: Final = 0.1
"""Penalty on intercepts, in rows: too small to matter but where an offer is hardly ever sent."""


@dataclass(frozen=True)
class PropensityConfig:
    """Settings of the propensity model.

    Attributes:
        n_folds: folds of users; at most as many as there are users, at least 2.
        ridge: penalty on the weights of the logistic model, in rows, over standardised features.
        rounds: of boosting; 0 leaves boosted trees out.
        learning_rate: of boosting.
        leaves: of a tree.
        leaf_rows: fewest rows of a leaf.
    """

    n_folds: int = 5
    ridge: float = 1.0
    rounds: int = 60
    learning_rate: float = 0.1
    leaves: int = 8
    leaf_rows: int = 50

    def __post_init__(self) -> None:
        if self.n_folds < 2:
            raise ValueError(f"n_folds must be at least 2, not {self.n_folds}")
        if not (np.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge must be finite and positive, not {self.ridge}")
        if self.rounds < 0:
            raise ValueError(f"rounds must not be negative, not {self.rounds}")


@dataclass(frozen=True)
class PropensityReport:
    """How well estimated propensities fit, on users that their models have not seen.

    Attributes:
        model: the one that was taken, by log loss.
        n_rows: rows with a choice, that is with more than one offer allowed.
        n_users: users who ever had a choice.
        log_loss: of each model after calibration, in nats per row with a choice. ``marginal`` knows only how
            often each offer is sent where it is allowed.
        uncalibrated_log_loss: of the model that was taken, before calibration.
        temperature: by which calibration divided its scores, mean over folds; above 1 where it was too sure.
        offers: calibration by offer.
    """

    model: Model
    n_rows: int
    n_users: int
    log_loss: Mapping[Model, float]
    uncalibrated_log_loss: float
    temperature: float
    offers: tuple[OfferCalibration, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PropensityEstimate:
    """Estimated behaviour policy at N rows.

    Attributes:
        probabilities: [N, K], rows sum to 1, 0 outside the mask and for offers that the log never shows.
        report: how well they fit.
    """

    probabilities: FloatArray
    report: PropensityReport


def estimate_propensities(
    features: FloatArray,
    action: IntArray,
    mask: BoolArray,
    user: IntArray,
    *,
    rng: np.random.Generator,
    config: PropensityConfig | None = None,
) -> PropensityEstimate:
    """Estimate the probability of each offer at each row.

    Three models compete by cross-fitted log loss: the share of each offer, a masked multinomial logistic
    regression, and boosted trees (LightGBM; Ke et al. 2017). Each is calibrated by a temperature and a bias
    per offer, fitted on the held-out scores of the other folds (Guo et al. 2017). Cross-fitting: Chernozhukov
    et al. (2018), §3.

    Args:
        features: [N, d] known before the decision.
        action: [N] offers sent, each allowed.
        mask: [N, K] bool.
        user: [N], rows of one user share a fold.
        rng: assigns users to folds and seeds the trees.
        config: settings; the default ones if not given.

    Raises:
        LoggedDataError: fewer than 2 users ever had a choice.
    """
    config = config or PropensityConfig()
    choice = mask.sum(axis=1) > 1
    if not choice.any():
        raise LoggedDataError("propensities: every row allows one offer only, so nothing was decided")
    users = np.unique(user[choice])
    if users.size < 2:
        raise LoggedDataError("propensities cannot be estimated from one user: give more, or log them")
    n_folds = min(config.n_folds, users.size)
    fold_of_user = rng.permutation(np.arange(users.size) % n_folds)
    # Whoever never had a choice teaches nothing and may stand in any fold.
    fold = fold_of_user[np.searchsorted(users, user).clip(max=users.size - 1)]
    # An offer that is never sent has probability 0; a model would make up a small one.
    shown = np.zeros(mask.shape[1], dtype=np.bool_)
    shown[np.unique(action)] = True
    possible = mask & shown
    fits = _fitters(features, config, seed=int(rng.integers(2**31)))
    raw: dict[Model, FloatArray] = {}
    calibrated: dict[Model, FloatArray] = {}
    temperatures: dict[Model, float] = {}
    for name, fit in fits.items():
        scores = np.zeros(mask.shape)
        for k in range(n_folds):
            held_out, others = fold == k, fold != k
            predict = fit(others & choice, action, possible)
            scores[held_out] = predict(features[held_out], possible[held_out])
        raw[name] = scores
        calibrated[name], temperatures[name] = _calibrate(scores, action, possible, fold, choice)
    losses = {name: log_loss(p[choice], action[choice]) for name, p in calibrated.items()}
    model = min(losses, key=lambda name: losses[name])
    probabilities = calibrated[model]
    return PropensityEstimate(
        probabilities=probabilities,
        report=PropensityReport(
            model=model,
            n_rows=int(choice.sum()),
            n_users=int(users.size),
            log_loss=losses,
            uncalibrated_log_loss=log_loss(masked_softmax(raw[model], possible)[choice], action[choice]),
            temperature=temperatures[model],
            offers=offer_calibration(probabilities, action, mask, user),
        ),
    )


_Fit: TypeAlias = Callable[[BoolArray, IntArray, BoolArray], _Scores]


def _fitters(features: FloatArray, config: PropensityConfig, seed: int) -> dict[Model, _Fit]:
    """Return the competing models; each is fitted to chosen rows and then scores others."""
    n_features = features.shape[1]
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)

    def logistic(columns: int) -> _Fit:
        def fit(rows: BoolArray, action: IntArray, mask: BoolArray) -> _Scores:
            model = fit_logistic(
                ((features[rows] - centre) / scale)[:, :columns],
                action[rows],
                mask[rows],
                ridge=config.ridge,
                intercept_ridge=_INTERCEPT_RIDGE,
            )
            return lambda x, _: model.scores(((x - centre) / scale)[:, :columns])

        return fit

    def boosted(rows: BoolArray, action: IntArray, mask: BoolArray) -> _Scores:
        # Trees see the mask as features: their loss knows only all offers at once.
        parameters = {
            "objective": "multiclass",
            "num_class": mask.shape[1],
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.leaf_rows,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(np.hstack([features[rows], mask[rows]]), action[rows])
        booster = lightgbm.train(parameters, data, num_boost_round=config.rounds)
        return lambda x, allowed: np.asarray(booster.predict(np.hstack([x, allowed]), raw_score=True))

    models: dict[Model, _Fit] = {"marginal": logistic(0)}
    if n_features:
        models["logistic"] = logistic(n_features)
        if config.rounds:
            models["boosted"] = boosted
    return models


def _calibrate(
    scores: FloatArray, action: IntArray, mask: BoolArray, fold: IntArray, choice: BoolArray
) -> tuple[FloatArray, float]:
    """Return [N, K] probabilities, each fold's calibrated on the others', and the mean temperature."""
    probabilities = np.zeros(mask.shape)
    temperatures = []
    for k in np.unique(fold):
        others = choice & (fold != k)
        scaling = fit_scaling(scores[others], action[others], mask[others], intercept_ridge=_INTERCEPT_RIDGE)
        held_out = fold == k
        probabilities[held_out] = masked_softmax(scaling.apply(scores[held_out]), mask[held_out])
        temperatures.append(scaling.temperature)
    return probabilities, float(np.mean(temperatures))
