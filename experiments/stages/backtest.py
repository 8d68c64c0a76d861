"""Stage 4: the response model on the reported weeks, beside its peers and its bars."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt
import torch

from encoders.panel import Panel
from encoders.response_data import ResponseData
from envs.targeting import TargetingRows
from experiments.artifacts import (
    EMBEDDINGS_FILE,
    HEADS_FILE,
    NO_TEXT_FILE,
    PANEL_FILE,
    TARGETING_FILE,
    load_heads,
)
from experiments.backtest.calibration_cells import calibration_cells
from experiments.backtest.features import (
    FeatureRows,
    purchase_features,
    purchase_rows,
    visit_features,
    visit_rows,
)
from experiments.backtest.lightgbm_peer import (
    MAX_ROUNDS,
    TUNED_PURCHASE,
    TUNED_VISIT,
    Parameters,
    fit_lightgbm,
    lightgbm_datasets,
    random_search,
)
from experiments.backtest.peer_calibration import PeerCalibration
from experiments.backtest.predictions import EmbeddingTable, own_frequency, predict_weeks
from experiments.backtest.promotion import PROMOTIONS, promotion_response
from experiments.backtest.redemption import redemption_backtest, row_embeddings
from experiments.backtest.scores import Scores, household_draws, reliability_bins, score_households
from experiments.backtest.table import (
    calibration_table,
    promotion_table,
    purchase_table,
    redemption_table,
    visit_table,
)
from experiments.backtest.visit_peers import rfm_visit_probability
from experiments.manifest import write_text
from experiments.stage import Stage, StageContext
from experiments.stages import STAGE_HELP

SEARCH_ROWS = 1_500_000
"""Most rows of a search for LightGBM's parameters: they hardly depend on more, and its time does."""

DoubleArray = npt.NDArray[np.float64]


class _Weeks:
    """0-based weeks of the three periods; training starts with the first embedding."""

    def __init__(self, panel: Panel, embeddings: EmbeddingTable) -> None:
        split = panel.split
        self.train = range(int(embeddings.start_week[0]), split.train_end)
        self.tune = range(split.train_end, split.tune_end)
        self.report = range(split.tune_end, split.report_end)
        self.name = f"{split.tune_end + 1}-{split.report_end}"


def run(ctx: StageContext) -> dict[str, Any]:
    """Score the model and its peers on the same rows of the reported weeks."""
    panel = Panel.load(ctx.input("prepare") / PANEL_FILE)
    data = ResponseData.of_panel(panel)
    response = ctx.input("finetune")
    heads, without_text = load_heads(response / HEADS_FILE), load_heads(response / NO_TEXT_FILE)
    embeddings = EmbeddingTable.load(response / EMBEDDINGS_FILE)
    weeks = _Weeks(panel, embeddings)

    purchase_peer, purchase_parameters = _purchase_booster(ctx, data, weeks)
    visit_peer, visit_parameters = _visit_booster(ctx, data, weeks)
    base_rate = data.base_rate()

    def purchases_of(week: int) -> DoubleArray:
        return _predict(ctx, purchase_peer, purchase_features(data, week, base_rate))

    def visits_of(week: int) -> DoubleArray:
        return _predict(ctx, visit_peer, visit_features(data, week))

    with ctx.progress("predicting the reported weeks", 2 * len(weeks.report) + 2) as bar:
        model = predict_weeks(heads, data, embeddings, weeks.report, bar.advance)
        plain = predict_weeks(without_text, data, embeddings.without_text(), weeks.report, bar.advance)
        lightgbm_purchase, raw_purchase = _calibrated(data.bought, purchases_of, weeks)
        bar.advance()
        lightgbm_visit, raw_visit = _calibrated(data.visited, visits_of, weeks)
        bar.advance()
    purchases = _score(
        ctx,
        "purchases",
        {
            "model": model.purchase,
            "lightgbm": lightgbm_purchase,
            "lightgbm_uncalibrated": raw_purchase,
            "frequency": own_frequency(data, weeks.report),
            "no_text": plain.purchase,
        },
        data.bought[list(weeks.report)].numpy(),
    )
    visits = _score(
        ctx,
        "visits",
        {
            "model": model.visit,
            "rfm": rfm_visit_probability(data, [*weeks.train, *weeks.tune], weeks.report),
            "lightgbm": lightgbm_visit,
            "lightgbm_uncalibrated": raw_visit,
        },
        data.visited[list(weeks.report)].numpy(),
    )
    cells = calibration_cells(model.purchase, data, weeks.report)
    with ctx.progress("replaying the training weeks", (1 + len(PROMOTIONS)) * len(weeks.train)) as bar:
        promotion = promotion_response(heads, data, embeddings, weeks.train, bar.advance)
    redemption = _redemption(ctx, embeddings)

    peers = {name: scores.point() for name, scores in purchases.items()}
    visit_points = {name: _of_visit(scores) for name, scores in visits.items()}
    label = data.bought[list(weeks.report)].numpy().ravel()
    return {
        "fidelity": {
            "split": weeks.name,
            "rows": len(label),
            **peers.pop("model"),
            **peers,
            "visit": visit_points["model"],
            "calibration": reliability_bins(model.purchase.ravel(), label),
        },
        "backtest": {
            "table": [
                *purchase_table(purchases),
                *calibration_table(purchases["model"], cells),
                *visit_table(visits),
                *promotion_table(promotion),
                *redemption_table(redemption),
            ],
            "cells": cells,
            "promotion": promotion,
            "visit": visit_points,
            "redemption": redemption,
            "lightgbm_parameters": {"purchase": purchase_parameters, "visit": visit_parameters},
        },
    }


def _of_visit(scores: Scores) -> dict[str, float]:
    point = scores.point()
    return {measure: point[measure] for measure in ("auc", "log_loss")}


def _redemption(ctx: StageContext, embeddings: EmbeddingTable) -> dict[str, Any]:
    """Judge redemption by targeted users; the targeting rows say how much can be."""
    rows = TargetingRows.load(ctx.input("prepare") / TARGETING_FILE)
    with ctx.progress("fitting and judging redemption by targeted users") as bar:
        found = redemption_backtest(
            rows,
            embedding=row_embeddings(rows, embeddings) if len(rows) else None,
            n_bootstrap=ctx.config.backtest.n_bootstrap,
            rng=ctx.rng("targeted users"),
        )
        bar.advance()
    return found


def _score(
    ctx: StageContext, subject: str, probability: dict[str, DoubleArray], label: npt.NDArray[np.bool_]
) -> dict[str, Scores]:
    """Score each model on the same draws of households."""
    draws = household_draws(label.shape[1], ctx.config.backtest.n_bootstrap, ctx.rng("households"))
    scores = {}
    with ctx.progress(f"resampling households: {subject}", len(probability)) as bar:
        for name, values in probability.items():
            scores[name] = score_households(values, label, draws)
            bar.advance()
    return scores


# LightGBM -----------------------------------------------------------------------------------------


def _purchase_booster(
    ctx: StageContext, data: ResponseData, weeks: _Weeks
) -> tuple[lightgbm.Booster, dict[str, float | int]]:
    def sample(n_rows: int) -> tuple[FeatureRows, FeatureRows]:
        rng = ctx.rng("LightGBM rows")
        train = purchase_rows(data, weeks.train, n_rows, rng)
        return train, purchase_rows(data, weeks.tune, n_rows // 3, rng)

    return _booster(ctx, "purchases", sample, TUNED_PURCHASE)


def _visit_booster(
    ctx: StageContext, data: ResponseData, weeks: _Weeks
) -> tuple[lightgbm.Booster, dict[str, float | int]]:
    def sample(_: int) -> tuple[FeatureRows, FeatureRows]:
        return visit_rows(data, weeks.train), visit_rows(data, weeks.tune)

    return _booster(ctx, "visits", sample, TUNED_VISIT)


def _booster(
    ctx: StageContext,
    subject: str,
    sample: Callable[[int], tuple[FeatureRows, FeatureRows]],
    stored: Parameters,
) -> tuple[lightgbm.Booster, dict[str, float | int]]:
    """Fit LightGBM, or read what an earlier attempt fitted; return it with its parameters and rounds.

    Args:
        ctx: of the stage.
        subject: what it predicts.
        sample: most training rows -> training and tuning rows.
        stored: parameters to use unless the settings ask for a search.
    """
    kept = ctx.checkpoint / f"lightgbm_{subject}.json"
    if not kept.is_file():
        settings, seed = ctx.config.backtest, ctx.seed_for(f"LightGBM {subject}")
        parameters = dict(stored)
        if settings.lightgbm_trials:
            train, tune = lightgbm_datasets(*sample(min(SEARCH_ROWS, settings.lightgbm_rows)))
            with ctx.progress(f"tuning LightGBM: {subject}", settings.lightgbm_trials) as bar:
                parameters = random_search(
                    train,
                    tune,
                    settings.lightgbm_trials,
                    rng=ctx.rng(f"LightGBM search: {subject}"),
                    seed=seed,
                    threads=ctx.threads,
                    on_trial=lambda _, loss: bar.advance(loss=loss),
                )
        train, tune = lightgbm_datasets(*sample(settings.lightgbm_rows))
        with ctx.progress(f"training LightGBM: {subject}", MAX_ROUNDS) as bar:
            booster = fit_lightgbm(
                train, tune, parameters, seed=seed, threads=ctx.threads, on_round=bar.advance
            )
        content = {
            "parameters": {**parameters, "rounds": booster.best_iteration},
            "model": booster.model_to_string(),
        }
        write_text(kept, json.dumps(content))
    content = json.loads(kept.read_text(encoding="utf-8"))
    return lightgbm.Booster(model_str=content["model"]), content["parameters"]


def _calibrated(
    label: torch.Tensor, predict: Callable[[int], DoubleArray], weeks: _Weeks
) -> tuple[DoubleArray, DoubleArray]:
    """Predict the reported weeks, calibrated on the tuning weeks as the response model is, and as fitted."""
    tuning = np.stack([predict(week) for week in weeks.tune])
    calibration = PeerCalibration.of(tuning, label[list(weeks.tune)].numpy())
    raw = np.stack([predict(week) for week in weeks.report])
    return calibration.apply(raw), raw


def _predict(ctx: StageContext, booster: lightgbm.Booster, features: npt.NDArray[np.float32]) -> DoubleArray:
    """Return the booster's probabilities for features [..., F], [...]."""
    flat = booster.predict(features.reshape(-1, features.shape[-1]), num_threads=ctx.threads)
    return np.asarray(flat, dtype=np.float64).reshape(features.shape[:-1])


STAGE = Stage(
    name="backtest",
    folder="backtest",
    sections=("backtest",),
    inputs=("prepare", "finetune"),
    run=run,
    help=STAGE_HELP["backtest"],
)
