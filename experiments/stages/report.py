"""Stage 8: the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import manifest
from experiments.comparison.record import KEY, complete_digests, load_comparison
from experiments.report.build import build_report
from experiments.stage import Stage, StageContext
from experiments.stages import STAGE_HELP

FOLDER = "report"


def run(ctx: StageContext) -> dict[str, Any]:
    """Write ``index.html`` from what the other stages found, and from a comparison if there is one."""
    out, results = ctx.folder.parent, ctx.results()
    recorded = manifest.read_json(out / "manifest.json")
    market, seed = recorded["config"]["market"], recorded["seed"]
    if compared := load_comparison(out, market, seed, complete_digests(out)):
        results[KEY] = compared
    with ctx.progress("drawing the report", 1) as bar:
        path = draw(results, out)
        bar.advance()
    return {"report": {"path": f"{ctx.folder.name}/{path.name}"}}


def draw(results: Mapping[str, Any], out: Path) -> Path:
    """Draw the report of a run folder from its results; return the page's path."""
    # Durations are no result, and differ from run to run; the page shows those of the stages before it.
    timing = {
        name: stage["seconds"]
        for name, stage in manifest.read_json(out / "manifest.json")["stages"].items()
        if stage.get("seconds") and name != STAGE.name
    }
    return build_report({**results, "timing": timing}, out / FOLDER, title="couponlab report")


STAGE = Stage(
    name="report",
    folder=FOLDER,
    sections=(),
    inputs=("prepare", "pretrain", "finetune", "backtest", "train", "evaluate", "export"),
    run=run,
    help=STAGE_HELP["report"],
)
