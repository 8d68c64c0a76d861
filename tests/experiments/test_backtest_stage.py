"""The backtest stage on a small panel whose true model is known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from encoders.panel import Panel
from encoders.response import ResponseHeads
from encoders.weeks import WeekSplit
from envs.targeting import FEATURES, TargetingRows
from experiments.artifacts import (
    EMBEDDINGS_FILE,
    HEADS_FILE,
    NO_TEXT_FILE,
    PANEL_FILE,
    TARGETING_FILE,
    save_arrays,
    save_module,
)
from experiments.config import BacktestConfig, RunConfig
from experiments.progress import EventLog, Reporter
from experiments.stage import DeclaredConfig, StageContext
from experiments.stages.backtest import STAGE

N, C = 300, 8
SETTINGS = BacktestConfig(n_bootstrap=40, lightgbm_rows=20_000)
FIDELITY = {
    "split",
    "rows",
    "log_loss",
    "auc",
    "average_precision",
    "ece",
    "lightgbm",
    "lightgbm_uncalibrated",
    "frequency",
    "no_text",
    "visit",
    "calibration",
}


def response_heads(embedding: int) -> ResponseHeads:
    """Visits at a rate of 0.6; category levels; depth 2.0."""
    heads = ResponseHeads(torch.full((C,), 0.2), embedding)
    with torch.no_grad():
        heads.visit_bias.fill_(0.4)
        heads.purchase_bias.copy_(torch.linspace(-2.5, -0.5, C))
        heads.depth_level.fill_(float(np.log(np.expm1(0.2))))
    return heads


def drawn_panel() -> Panel:
    rng = np.random.default_rng(0)
    split = WeekSplit.of_log(40)
    weeks = split.report_end
    depth = rng.uniform(0, 0.4, (weeks, C)).astype(np.float32)
    visited = rng.random((N, weeks)) < 1 / (1 + np.exp(-0.4))
    probability = 1 / (1 + np.exp(-(np.linspace(-2.5, -0.5, C) + 2.0 * depth)))
    bought = (rng.random((N, weeks, C)) < probability) & visited[:, :, None]
    spend = (3.0 * bought).astype(np.float32)
    return Panel(
        user_ids=np.array([f"u{i}" for i in range(N)]),
        profiles=np.array([""] * N),
        categories=np.array([f"FOOD/CAT-{c}" for c in range(C)]),
        departments=np.array(["GROCERY"] * C),
        bought=bought,
        visited=visited,
        trips=visited.astype(np.uint8),
        coupon_used=np.zeros_like(visited),
        basket_spend=spend.sum(axis=2),
        category_spend=spend,
        promotion_depth=depth,
        display=rng.uniform(0, 1, (weeks, C)).astype(np.float32),
        mailer=np.zeros((weeks, C), dtype=np.float32),
        split=split,
    )


def targeting_rows(n_weeks: int, n_campaigns: int = 6) -> TargetingRows:
    """All users are sent all campaigns, in weeks 3, 8, ..., 28; those with much of each feature redeem."""
    rng = np.random.default_rng(1)
    campaign, user = (grid.ravel() for grid in np.indices((n_campaigns, N)))
    features = rng.standard_normal((len(user), len(FEATURES)))
    return TargetingRows(
        user=user,
        campaign=campaign,
        start_week=3 + 5 * campaign,
        days_seen=np.full(len(user), 28),
        fully_seen=np.ones(len(user), dtype=bool),
        features=features,
        redeemed=rng.random(len(user)) < 1 / (1 + np.exp(2 - features.sum(axis=1))),
        campaign_ids=np.array([f"c{number}" for number in range(n_campaigns)]),
        n_weeks=n_weeks,
    )


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the stages before leave."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("prepare", "finetune")}
    panel = drawn_panel()
    panel.save(folders["prepare"] / PANEL_FILE)
    targeting_rows(panel.n_weeks).save(folders["prepare"] / TARGETING_FILE)
    save_module(response_heads(3), folders["finetune"] / HEADS_FILE)
    save_module(response_heads(0), folders["finetune"] / NO_TEXT_FILE)
    starts = np.arange(4, panel.n_weeks, 4)
    table = np.zeros((len(starts), N, 3), dtype=np.float32)
    save_arrays(folders["finetune"] / EMBEDDINGS_FILE, start_week=starts, embedding=table)
    return folders


def run(folder: Path, inputs: dict[str, Path], settings: BacktestConfig = SETTINGS) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    with EventLog(folder.parent / "events.jsonl") as events:
        ctx = StageContext(
            stage=STAGE.name,
            config=DeclaredConfig(replace(RunConfig(), backtest=settings), STAGE),
            seed=1,
            folder=folder,
            device="cpu",
            threads=1,
            data="synthetic",
            resuming=False,
            _inputs=inputs,
            _reporter=Reporter(Console(file=io.StringIO()), events),
        )
        return STAGE.run(ctx)


@pytest.fixture(scope="module")
def finished(
    earlier: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run") / "backtest"
    return folder, run(folder, earlier)


def test_results_have_what_the_report_reads(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[1]
    assert set(results) == {"fidelity", "backtest"}
    fidelity, backtest = results["fidelity"], results["backtest"]
    assert set(fidelity) == FIDELITY
    assert fidelity["rows"] == N * C * 4
    assert {"auc", "log_loss"} == set(fidelity["visit"])
    assert sum(b["rows"] for b in fidelity["calibration"]) == fidelity["rows"]
    assert set(backtest) == {
        "table",
        "cells",
        "promotion",
        "visit",
        "redemption",
        "lightgbm_parameters",
    }
    columns = {
        "measure",
        "value",
        "peer",
        "peer_value",
        "difference",
        "ci_low",
        "ci_high",
        "bar",
        "met",
    }
    assert all(set(row) == columns for row in backtest["table"])
    json.dumps(results)
    json.dumps(backtest["table"], allow_nan=False)


def test_the_true_model_is_level_with_itself_and_ahead_of_noise(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    table = {(row["measure"], row["peer"]): row for row in finished[1]["backtest"]["table"]}
    text = table["purchase: log loss, relative", "no_text"]
    assert (text["difference"], text["ci_low"], text["ci_high"]) == (0.0, 0.0, 0.0)
    assert text["met"] is False
    assert table["purchase: log loss, relative", "lightgbm"]["difference"] < 0
    assert table["visit: auc", "rfm"]["value"] == 0.5  # constant visits: all tied
    assert table["calibration error (ECE)", None]["value"] < 0.03
    assert table["mailer semi-elasticity", "two-way fixed effects"]["met"] is None
    depth = next(row for row in finished[1]["backtest"]["promotion"] if row["name"] == "depth")
    assert depth["model"] == pytest.approx(2.0 * 0.75, abs=0.2)  # 2.0 · (1 - p)


def test_redemption_is_judged_against_its_bar(finished: tuple[Path, dict[str, Any]]) -> None:
    backtest = finished[1]["backtest"]
    (row,) = [row for row in backtest["table"] if row["measure"].startswith("redemption")]
    model = backtest["redemption"]["model"]
    assert model["auc"] > 0.85
    assert (row["value"], row["ci_low"], row["ci_high"]) == (
        model["auc"],
        model["auc_low"],
        model["auc_high"],
    )
    assert (row["bar"], row["met"]) == (0.82, True)
    # The first campaign starts before there are embeddings, and its rows are kept.
    assert backtest["redemption"]["train"]["rows"] == 5 * N


def test_without_campaigns_there_is_no_row_of_redemption(earlier: dict[str, Path], tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    panel = Panel.load(earlier["prepare"] / PANEL_FILE)
    panel.save(prepared / PANEL_FILE)
    targeting_rows(panel.n_weeks, n_campaigns=0).save(prepared / TARGETING_FILE)
    backtest = run(tmp_path / "backtest", {**earlier, "prepare": prepared})["backtest"]
    assert backtest["redemption"] == {"rows": 0}
    assert not [row for row in backtest["table"] if row["measure"].startswith("redemption")]


def test_an_interrupted_stage_keeps_its_boosters_and_ends_the_same(
    finished: tuple[Path, dict[str, Any]], earlier: dict[str, Path]
) -> None:
    folder, results = finished
    kept = sorted((folder / "checkpoint").glob("lightgbm_*.json"))
    assert len(kept) == 2
    written = [path.stat().st_mtime_ns for path in kept]
    again = run(folder, earlier)
    assert [path.stat().st_mtime_ns for path in kept] == written
    assert json.dumps(again) == json.dumps(results)


def test_a_search_can_be_asked_for(earlier: dict[str, Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, lightgbm_trials=2)
    searched = run(tmp_path / "backtest", earlier, settings)["backtest"]["lightgbm_parameters"]
    assert set(searched) == {"purchase", "visit"}
    assert all(found["rounds"] >= 1 for found in searched.values())
    stored = run(tmp_path / "stored", earlier)["backtest"]["lightgbm_parameters"]
    assert searched["purchase"] != stored["purchase"]
