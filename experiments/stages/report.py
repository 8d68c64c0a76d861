"""Stage 8: the report."""

from __future__ import annotations

from typing import Any

from experiments import manifest
from experiments.report.build import build_report
from experiments.stage import Stage, StageContext
from experiments.stages import STAGE_HELP


def run(ctx: StageContext) -> dict[str, Any]:
    """Write ``index.html`` from what the other stages found."""
    with ctx.progress("drawing the report", 1) as bar:
        # Durations are no result, and differ from run to run; the page shows those of the stages before it.
        timing = {
            name: stage["seconds"]
            for name, stage in manifest.read_json(ctx.folder.parent / "manifest.json")["stages"].items()
            if stage.get("seconds") and name != ctx.stage
        }
        path = build_report({**ctx.results(), "timing": timing}, ctx.folder, title="couponlab report")
        bar.advance()
    return {"report": {"path": f"{ctx.folder.name}/{path.name}"}}


STAGE = Stage(
    name="report",
    folder="report",
    sections=(),
    inputs=("prepare", "pretrain", "finetune", "backtest", "train", "evaluate", "export"),
    run=run,
    help=STAGE_HELP["report"],
)
