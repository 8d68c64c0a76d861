"""All stages of a run, in order."""

from __future__ import annotations

from experiments.stage import Stage
from experiments.stages import backtest, evaluate, export, finetune, prepare, pretrain, report, train

STAGES: tuple[Stage, ...] = (
    prepare.STAGE,
    pretrain.STAGE,
    finetune.STAGE,
    backtest.STAGE,
    train.STAGE,
    evaluate.STAGE,
    export.STAGE,
    report.STAGE,
)
