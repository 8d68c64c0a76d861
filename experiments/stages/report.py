"""Stage 7: the report."""

from __future__ import annotations

from typing import Any

from experiments.pipeline import Stage, StageContext
from experiments.report.build import build_report


def run(ctx: StageContext) -> dict[str, Any]:
    """Write ``index.html`` from what the other stages found."""
    with ctx.progress("drawing the report", 1) as bar:
        path = build_report(ctx.results(), ctx.folder, title="couponlab report")
        bar.advance()
    return {"report": {"path": f"{ctx.folder.name}/{path.name}"}}


STAGE = Stage(
    name="report",
    folder="report",
    sections=(),
    inputs=("prepare", "pretrain", "finetune", "train", "evaluate", "export"),
    run=run,
    help="Write the report with plots.",
)
