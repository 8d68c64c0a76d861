"""How many labels the response model needs: fits on a share of the households, with and without pretraining.

Each point is a run of the pipeline up to fine-tuning; all are scored on all households' reported weeks, of
which no fit has seen a label.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from encoders.panel import Panel
from encoders.response_data import ResponseData
from experiments.artifacts import EMBEDDINGS_FILE, HEADS_FILE, NO_TEXT_FILE, PANEL_FILE, load_heads
from experiments.backtest.predictions import EmbeddingTable, predict_weeks
from experiments.backtest.scores import score
from experiments.benchmarks import Row, describe_machine
from experiments.config import RunConfig, load_config
from experiments.manifest import count_cores

SHARES = (0.01, 0.05, 0.2, 1.0)
MOST_EPOCHS = 12
"""Passes over the texts of a few households; over all of them it is as many as the preset says."""


def run() -> list[Row]:
    """Fit on each share with and without pretraining, and without text, and compare log losses."""
    hardware = describe_machine()
    rows = []
    with TemporaryDirectory() as folder:
        for share in SHARES:
            losses = {
                pretrained: _losses(Path(folder) / f"{share:g}-{pretrained}", share, pretrained)
                for pretrained in (True, False)
            }
            no_text = losses[True]["no text"]
            for pretrained, words in ((True, "pretrained"), (False, "not pretrained")):
                rows.append(
                    Row.compare(
                        f"log loss, labels of {share:.0%} of the households, {words}",
                        losses[pretrained]["text"],
                        "nats",
                        peer="the same without text",
                        peer_value=no_text,
                        higher_is_better=False,
                        hardware=hardware,
                    )
                )
    return rows


def _losses(out: Path, share: float, pretrained: bool) -> dict[str, float]:
    """Log loss of weekly category purchases on the reported weeks, with and without text."""
    from experiments.pipeline import RunRequest, run_pipeline
    from experiments.stages.registry import STAGES

    config = _config(share, pretrained)
    request = RunRequest(
        config=config,
        out=out,
        data="complete-journey",
        seed=0,
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=count_cores(),
        preset="default",
        until="finetune",
        force=(),
    )
    run_pipeline(STAGES, request, Console(stderr=True))
    panel = Panel.load(out / "prepared" / PANEL_FILE)
    data = ResponseData.of_panel(panel)
    weeks = range(panel.split.tune_end, panel.split.report_end)
    label = data.bought[list(weeks)].numpy().ravel()
    table = EmbeddingTable.load(out / "response" / EMBEDDINGS_FILE)
    found = {}
    for name, file, own in (
        ("text", HEADS_FILE, table),
        ("no text", NO_TEXT_FILE, table.without_text()),
    ):
        predicted = predict_weeks(load_heads(out / "response" / file), data, own, weeks)
        found[name] = score(predicted.purchase.ravel(), label)["log_loss"]
    return found


def _config(share: float, pretrained: bool) -> RunConfig:
    config = load_config("default")
    epochs = min(MOST_EPOCHS, round(config.finetune.epochs / share))
    return replace(
        config,
        pretrain=replace(config.pretrain, epochs=config.pretrain.epochs if pretrained else 0),
        finetune=replace(config.finetune, label_share=share, epochs=epochs),
        # A simulator of each side is the least there can be; none is used.
        simulators=replace(config.simulators, n_train=1, n_judge=1),
    )
