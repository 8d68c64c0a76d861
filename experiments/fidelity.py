"""How well the response model predicts real shoppers, beside what a data scientist would otherwise use.

All rows are (user, week, category) of the reported weeks; all models are scored on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from encoders.calibration import linear_predictors
from encoders.history import CATEGORY_FEATURES, USER_FEATURES, category_features, user_features
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData

N_BINS = 15
DoubleArray = npt.NDArray[np.float64]


def sigmoid(logit: npt.NDArray[np.floating]) -> DoubleArray:
    """Logistic function in double precision."""
    out: DoubleArray = 1.0 / (1.0 + np.exp(-np.asarray(logit, dtype=np.float64)))
    return out


def calibration_bins(
    probability: DoubleArray, label: npt.NDArray[np.bool_], n_bins: int = N_BINS
) -> list[dict[str, float]]:
    """Split rows into bins of equal mass by prediction; mean prediction, observed rate and rows of each."""
    order = np.argsort(probability, kind="stable")
    return [
        {
            "predicted": float(probability[rows].mean()),
            "observed": float(label[rows].mean()),
            "rows": float(len(rows)),
        }
        for rows in np.array_split(order, n_bins)
        if len(rows)
    ]


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean absolute gap between prediction and observation over bins, weighted by rows."""
    rows = sum(b["rows"] for b in bins)
    return float(sum(b["rows"] * abs(b["predicted"] - b["observed"]) for b in bins) / rows)


def score(probability: DoubleArray, label: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return log loss (nats), AUC, average precision and ECE of predicted probabilities."""
    return {
        "log_loss": float(log_loss(label, probability)),
        "auc": float(roc_auc_score(label, probability)),
        "average_precision": float(average_precision_score(label, probability)),
        "ece": expected_calibration_error(calibration_bins(probability, label)),
    }


def weekly_purchase(
    heads: ResponseHeads, data: ResponseData, texts: AnchorTexts, embeddings: torch.Tensor
) -> tuple[DoubleArray, DoubleArray, torch.Tensor, torch.Tensor]:
    """Return P(visit) [r], P(purchase in the week) [r, C], user [r] and week index [r]."""
    visit, purchase, user, week = linear_predictors(heads, data, texts, embeddings)
    visit_probability = sigmoid(visit)
    return visit_probability, visit_probability[:, None] * sigmoid(purchase), user, week


def frequency_baseline(data: ResponseData, user: torch.Tensor, week: torch.Tensor) -> DoubleArray:
    """Return the user's own weekly rate per category, shrunk to the category's, [r, C]."""
    end = data.panel.split.train_end
    prior = data.bought[:end].float().mean(dim=(0, 1))
    state = data.tape.before(week, user)
    rate = (state.category_slow + 4.0 * prior) / (state.weeks_slow[:, None] + 4.0)
    return rate.double().numpy().clip(1e-5, 1 - 1e-5)


def peer_features(data: ResponseData, user: torch.Tensor, week: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return the response model's own history and promotion features for LightGBM, [r, C, F].

    Category features, user features, depth, display, mailer, both trends, and the category's number.
    """
    state = data.tape.before(week, user)
    columns = category_features(state, data.base_rate())
    shape = columns[0].shape
    columns += [feature[:, None].expand(shape) for feature in user_features(state).T]
    calendar = data.calendar.weeks(week)
    columns += [calendar.depth, calendar.display, calendar.mailer, calendar.category_trend]
    columns.append(calendar.visit_trend[:, None].expand(shape))
    columns.append(torch.arange(shape[1], dtype=torch.float32).expand(shape))
    return torch.stack(columns, dim=2).numpy()


N_PEER_FEATURES = len(CATEGORY_FEATURES) + len(USER_FEATURES) + 6


def lightgbm_peer(
    data: ResponseData,
    train: AnchorTexts,
    tune: AnchorTexts,
    *,
    n_rows: int,
    seed: int,
    threads: int,
    on_round: Callable[[int], None] = lambda _: None,
) -> lightgbm.Booster:
    """Train LightGBM on sampled rows of the training weeks, stopping early on the tuning weeks.

    Args:
        data: states and labels.
        train: which user-weeks are the training weeks.
        tune: which are the tuning weeks.
        n_rows: rows (user, week, category) sampled for training; a third as many for stopping.
        seed: of the sample and of LightGBM.
        threads: CPU threads.
        on_round: called after each boosting round with its number.
    """
    rng = np.random.default_rng(seed)

    def sample(texts: AnchorTexts, rows: int) -> lightgbm.Dataset:
        _, user, week = texts.rows(torch.arange(len(texts)))
        size = min(len(user), max(1, rows // data.panel.n_categories))
        chosen = torch.from_numpy(np.sort(rng.choice(len(user), size, replace=False)))
        features = peer_features(data, user[chosen], week[chosen]).reshape(-1, N_PEER_FEATURES)
        label = data.bought[week[chosen], user[chosen]].numpy().ravel()
        return lightgbm.Dataset(
            features, label, categorical_feature=[N_PEER_FEATURES - 1], free_raw_data=True
        )

    training = sample(train, n_rows)
    parameters = {
        "objective": "binary",
        "learning_rate": 0.08,
        "num_leaves": 31,
        "min_data_in_leaf": 200,
        "max_cat_to_onehot": 1,
        "cat_smooth": 50.0,
        "verbose": -1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "num_threads": threads,
    }
    return lightgbm.train(
        parameters,
        training,
        num_boost_round=400,
        valid_sets=[sample(tune, n_rows // 3)],
        callbacks=[
            lightgbm.early_stopping(25, verbose=False),
            lambda environment: on_round(environment.iteration + 1),
        ],
    )


def lightgbm_probability(
    booster: lightgbm.Booster, data: ResponseData, user: torch.Tensor, week: torch.Tensor
) -> DoubleArray:
    """Return LightGBM's weekly purchase probabilities, [r, C]."""
    parts = []
    for chunk in torch.arange(len(user)).split(2048):
        features = peer_features(data, user[chunk], week[chunk])
        flat = booster.predict(features.reshape(-1, N_PEER_FEATURES))
        parts.append(np.asarray(flat, dtype=np.float64).reshape(features.shape[:2]))
    return np.concatenate(parts)


def fidelity_report(
    probability: dict[str, DoubleArray],
    visit_probability: DoubleArray,
    data: ResponseData,
    user: torch.Tensor,
    week: torch.Tensor,
) -> dict[str, Any]:
    """Assemble the ``fidelity`` part of the results; the model itself is under the key "model".

    Args:
        probability: model name -> [r, C] weekly purchase probability.
        visit_probability: [r] of the model itself.
        data: labels.
        user: [r].
        week: [r] 0-based.
    """
    label = data.bought[week, user].numpy().ravel()
    split = data.panel.split
    scores = {name: score(values.ravel(), label) for name, values in probability.items()}
    visited = data.visited[week, user].numpy()
    return {
        "split": f"{split.tune_end + 1}-{split.report_end}",
        "rows": len(label),
        **scores.pop("model"),
        **scores,
        "visit": {
            "auc": float(roc_auc_score(visited, visit_probability)),
            "log_loss": float(log_loss(visited, visit_probability)),
        },
        "calibration": calibration_bins(probability["model"].ravel(), label),
    }
