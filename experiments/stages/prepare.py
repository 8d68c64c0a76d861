"""Stage 1: validated logs to the weekly panel, the redemption rows and the targeting rows."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from envs.logs import open_logs
from envs.panel_from_logs import build_panel
from envs.redemption_rows import redemption_rows
from envs.targeting import targeting_rows
from experiments.artifacts import PANEL_FILE, REDEMPTIONS_FILE, TARGETING_FILE, save_arrays
from experiments.ope.campaign_example import campaign_example
from experiments.ope.campaign_rows import campaign_types
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP

KEY_VARIABLE = "COUPONLAB_PSEUDONYM_KEY"
KEY_FILE = "pseudonym.key"
MINIMUM_KEY_BYTES = 16


def pseudonym_key(run: Path) -> bytes:
    """Return the key that pseudonymises user ids: from the environment, or the run's own key file.

    The file is made on first use, readable by its owner alone. Whoever holds the key can map ids of the
    shop to those of the run; without it nobody can.

    Raises:
        StageError: the variable is set but too short to be a key.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given is not None:
        if len(given.encode()) < MINIMUM_KEY_BYTES:
            raise StageError(f"{KEY_VARIABLE} must have at least {MINIMUM_KEY_BYTES} bytes")
        return given.encode()
    path = run / KEY_FILE
    if not path.is_file():
        temporary = path.with_name(path.name + ".tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32), encoding="ascii")
        os.replace(temporary, path)
    return path.read_text(encoding="ascii").encode()


def run(ctx: StageContext) -> dict[str, Any]:
    """Read, check and aggregate the logs."""
    with ctx.progress("reading and checking logs", 5) as bar:
        logs = open_logs(ctx.data, seed=ctx.seed, threads=ctx.threads)
        bar.advance()
        with logs:
            panel = build_panel(
                logs,
                n_categories=ctx.config.prepare.n_categories,
                pseudonym_key=pseudonym_key(ctx.folder.parent),
            )
            bar.advance()
            redemptions = redemption_rows(logs, panel)
            bar.advance()
            targeting = targeting_rows(logs, panel)
            bar.advance()
            example = campaign_example(
                panel, targeting, campaign_types(logs), rng=ctx.rng("campaign example")
            )
            bar.advance()
    for note in logs.notes:
        ctx.log(note)
    panel.save(ctx.folder / PANEL_FILE)
    save_arrays(
        ctx.folder / REDEMPTIONS_FILE,
        user=redemptions.user,
        week=redemptions.week,
        category=redemptions.category,
        redeemed=redemptions.redeemed,
        campaign=redemptions.campaign,
    )
    targeting.save(ctx.folder / TARGETING_FILE)
    split = panel.split
    return {
        "targeting_example": None if example is None else example.to_dict(),
        "data": {
            "origin": logs.origin,
            "content_hash": logs.content_hash,
            "n_users": panel.n_users,
            "n_weeks": panel.n_weeks,
            "n_categories": panel.n_categories,
            "purchase_rate": float(panel.bought.mean()),
            "visit_rate": float(panel.visited.mean()),
            "spend": float(panel.basket_spend.sum(dtype="float64")),
            "split": {
                "train_end": split.train_end,
                "tune_end": split.tune_end,
                "report_end": split.report_end,
            },
            "redemption_rows": len(redemptions.redeemed),
            "redemption_rate": float(redemptions.redeemed.mean()) if len(redemptions.redeemed) else None,
            "targeting_rows": len(targeting),
            "targeted_redemption_rate": float(targeting.redeemed.mean()) if len(targeting) else None,
            "notes": list(logs.notes),
        },
    }


STAGE = Stage(
    name="prepare",
    folder="prepared",
    sections=("prepare",),
    inputs=(),
    run=run,
    help=STAGE_HELP["prepare"],
)
