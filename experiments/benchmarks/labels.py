"""How many labels the response model needs: fits on a share of the households, with and without pretraining.

Pretraining reads the texts and past purchase rates of all households; the response to what came next is
fitted on a share of them. All fits are scored on all households' reported weeks, whose labels none has seen.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from rich.console import Console

from encoders.panel import Panel
from encoders.response_data import ResponseData
from experiments.artifacts import EMBEDDINGS_FILE, HEADS_FILE, NO_TEXT_FILE, PANEL_FILE, load_heads
from experiments.backtest.predictions import EmbeddingTable, predict_weeks
from experiments.backtest.scores import Scores, household_draws, percentile_interval, score_households
from experiments.benchmarks import Row, describe_machine
from experiments.config import RunConfig, load_config
from experiments.manifest import count_cores

SHARES = (0.01, 0.05, 0.2, 1.0)
MOST_EPOCHS = 12
"""Passes over the texts of a few households; over all of them it is as many as the preset says."""

UNTRAINED_LEARNING_RATE = 5e-4
"""Peak for an encoder that starts from chance; what suits a pretrained one would hardly move it."""

N_BOOTSTRAP = 200


@dataclass(frozen=True)
class _Fit:
    """Scores of one fit on the same rows and draws, with text and without."""

    text: Scores
    no_text: Scores


def run() -> list[Row]:
    """Fit on each share with and without pretraining, and without text, and compare log losses."""
    hardware = describe_machine()
    with TemporaryDirectory() as folder:
        fits = {
            pretrained: _fits(Path(folder) / f"pretrained-{pretrained}", pretrained)
            for pretrained in (True, False)
        }
    rows = []
    for share in SHARES:
        labels = f"labels of {share:.0%} of the households"
        no_text = fits[True][share].no_text
        for pretrained, words in ((True, "pretrained text"), (False, "text, not pretrained")):
            text = fits[pretrained][share].text
            for measure, unit in (("log_loss", "nats"), ("auc", "AUC")):
                rows.append(_row(f"{labels}, {words}", measure, unit, text, no_text, hardware))
    return rows


def _row(what: str, measure: str, unit: str, text: Scores, no_text: Scores, hardware: str) -> Row:
    """A measure beside the same without text; the interval is the difference's, added to the peer."""
    ours, peer = text.values[measure], no_text.values[measure]
    low, high = percentile_interval((ours - peer)[1:])
    row = Row.compare(
        f"{measure.replace('_', ' ')}, {what}",
        float(ours[0]),
        unit,
        peer="the same without text",
        peer_value=float(peer[0]),
        higher_is_better=measure == "auc",
        hardware=hardware,
    )
    return replace(row, ci_low=float(peer[0]) + low, ci_high=float(peer[0]) + high)


def _fits(folder: Path, pretrained: bool) -> dict[float, _Fit]:
    """Pretrain once, or not at all, and fit on each share."""
    start = folder / "start"
    _run(start, _config(1.0, pretrained), "pretrain")
    found = {}
    for share in SHARES:
        out = folder / f"{share:g}"
        shutil.copytree(start, out)
        _run(out, _config(share, pretrained), "finetune")
        found[share] = fit = _scores(out)
        losses = [scores.point()["log_loss"] for scores in (fit.text, fit.no_text)]
        Console(stderr=True).print(
            f"{share:.0%} of the labels, {'' if pretrained else 'not '}pretrained: "
            f"log loss {losses[0]:.5f}, without text {losses[1]:.5f}"
        )
        shutil.rmtree(out)
    return found


def _run(out: Path, config: RunConfig, until: str) -> None:
    from experiments.pipeline import RunRequest, run_pipeline
    from experiments.stages.registry import STAGES

    request = RunRequest(
        config=config,
        out=out,
        data="complete-journey",
        seed=0,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=count_cores(),
        preset="default",
        until=until,
        force=(),
    )
    run_pipeline(STAGES, request, Console(stderr=True))


def _scores(out: Path) -> _Fit:
    """Score weekly category purchases of the reported weeks."""
    panel = Panel.load(out / "prepared" / PANEL_FILE)
    data = ResponseData.of_panel(panel)
    weeks = range(panel.split.tune_end, panel.split.report_end)
    label = data.bought[list(weeks)].numpy()
    table = EmbeddingTable.load(out / "response" / EMBEDDINGS_FILE)
    draws = household_draws(panel.n_users, N_BOOTSTRAP, np.random.default_rng(0))
    found = [
        score_households(
            predict_weeks(load_heads(out / "response" / file), data, own, weeks).purchase, label, draws
        )
        for file, own in ((HEADS_FILE, table), (NO_TEXT_FILE, table.without_text()))
    ]
    return _Fit(*found)


def _config(share: float, pretrained: bool) -> RunConfig:
    config = load_config("default")
    pretrain, finetune = config.pretrain, config.finetune
    if not pretrained:
        # All that the encoder learns it learns here: as long as the other in all, and as fast.
        finetune = replace(
            finetune,
            epochs=finetune.epochs + pretrain.habit_epochs,
            learning_rate=UNTRAINED_LEARNING_RATE,
        )
        pretrain = replace(pretrain, epochs=0, habit_epochs=0)
    epochs = min(MOST_EPOCHS, round(finetune.epochs / share))
    return replace(
        config,
        pretrain=pretrain,
        finetune=replace(finetune, label_share=share, epochs=epochs),
        # A simulator of each side is the least there can be; none is used.
        simulators=replace(config.simulators, n_train=1, n_judge=1),
    )
