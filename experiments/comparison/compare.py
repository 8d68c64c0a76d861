"""``couponlab compare``: the long comparison of a finished run, with all baselines and more campaigns."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import manifest
from experiments.comparison.campaigns import Arena
from experiments.comparison.lineup import BASELINE_STEPS, all_lineup
from experiments.comparison.play import default_workers, play_season
from experiments.comparison.record import (
    FOLDER,
    JUDGED_STAGES,
    KEY,
    comparison_fingerprint,
    complete_digests,
)
from experiments.comparison.tables import Comparison, Programme
from experiments.config import ConfigError, RunConfig, build_config, section_to_dict
from experiments.manifest import CHECKPOINT_FOLDER
from experiments.pipeline import locked
from experiments.progress import EventLog, Reporter
from experiments.seeding import seed_integer
from experiments.stage import RESULTS_FILE, StageError
from experiments.stages import finetune, prepare, report, train
from experiments.threads import one_thread

COMMAND = "compare"


def compare_run(
    out: Path,
    *,
    campaigns: int,
    workers: int | None = None,
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare the policy of a run with all others, keep the rows in the run folder and draw its report anew.

    An interrupted comparison goes on where it was when it is asked for again with the same number of
    campaigns. Budgets and resamples are those of the run's settings [evaluate].

    Args:
        out: the run folder; its policy must be trained.
        campaigns: that each entrant plays at each budget.
        workers: processes that play; by default as many as there are cores, up to a limit.
        device: ``cpu`` or ``cuda``.
        console: where to show progress; standard output by default.

    Returns:
        The tables, with ``campaigns``, ``seconds`` and a fingerprint of what they are of: what
        ``results.json`` has under KEY.

    Raises:
        ConfigError: not a run folder, its policy is not trained, or another version of the package made it.
        StageError: another process is at work in the run folder, or the catalogue cannot be learned.
    """
    started = time.monotonic()
    workers = workers or default_workers(device, manifest.count_cores())
    recorded = manifest.read_manifest(out)
    if recorded is None:
        raise ConfigError(f"{out} is not a run folder; give --out, for example --out runs/default")
    with locked(out), EventLog(out / "events.jsonl") as events:
        config, seed = _trained_config(out, recorded), int(recorded["seed"])
        market = section_to_dict(config.market)
        fingerprint = comparison_fingerprint(market, seed, complete_digests(out))
        events.write("compare_started", campaigns=campaigns, workers=workers)
        found = _compared(
            Arena(
                prepared=out / prepare.STAGE.folder,
                response=out / finetune.STAGE.folder,
                policy=out / train.STAGE.folder,
                market=config.market,
                device=device,
                seed=seed,
                campaigns=campaigns,
            ),
            config,
            out / FOLDER / CHECKPOINT_FOLDER / _source_and(fingerprint, campaigns),
            workers,
            Reporter(console or Console(), events),
        )
        content = {
            **found,
            "campaigns": campaigns,
            "seconds": round(time.monotonic() - started, 1),
            "fingerprint": fingerprint,
        }
        plain: dict[str, Any] = manifest.to_json(content, COMMAND)
        manifest.write_json(out / FOLDER / RESULTS_FILE, plain)
        shutil.rmtree(out / FOLDER / CHECKPOINT_FOLDER, ignore_errors=True)
        _publish(out, plain)
        events.write("compare_finished", seconds=plain["seconds"])
    return plain


def _trained_config(out: Path, recorded: Mapping[str, Any]) -> RunConfig:
    """The run's settings, once it is certain that its policy is trained."""
    complete = complete_digests(out)
    for name in JUDGED_STAGES:
        if name not in complete:
            raise ConfigError(
                f"{out}: stage {name} is not complete, so there is no policy to compare; run: "
                f"couponlab {train.STAGE.name} --out {out}"
            )
    try:
        return build_config([(str(out / "manifest.json"), recorded["config"])])
    except ConfigError as error:
        raise ConfigError(f"{error}; another version of the package made this run") from None


def _source_and(fingerprint: str, campaigns: int) -> str:
    """Name of the folder of finished blocks: none are taken over from other code, policies or campaigns."""
    source = manifest.hash_source(__name__)
    return manifest.hash_value([fingerprint, campaigns, source])[:16]


def _compared(
    arena: Arena, config: RunConfig, folder: Path, workers: int, reporter: Reporter
) -> dict[str, Any]:
    """Fit the learners, play, and lay the rows out."""
    if folder.parent.is_dir():
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        opened = arena.open()
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{arena.policy.parent} cannot be read ({error}); files are missing or of another version of the "
            f"package; run: couponlab {train.STAGE.name} --out {arena.policy.parent}"
        ) from error
    parts = opened.parts
    with reporter.progress("fitting the learners", BASELINE_STEPS, stage=COMMAND) as bar, one_thread():
        try:
            lineup = all_lineup(
                parts,
                train.training_starts(parts),
                opened.trained,
                arena.seed,
                threads=workers,
                on_step=bar.advance,
            )
        except ValueError as error:
            raise StageError(f"not all baselines can be trained: {error}") from error
    programme = Programme(lineup, config.evaluate.budgets, arena.campaigns, arena.campaigns)
    blocks = programme.blocks()
    plays = arena.campaigns + sum(block.plays for block in blocks)
    with reporter.progress("playing judge campaigns", plays, stage=COMMAND) as bar:
        season = play_season(arena, blocks, workers=workers, folder=folder, on_campaigns=bar.advance)
    users = opened.settings[0].users.cpu().numpy()
    return Comparison(
        programme,
        season,
        parts.market.catalogue,
        parts.panel.profiles[users].tolist(),
        n_resamples=config.evaluate.n_bootstrap,
        seed=seed_integer(arena.seed, "comparison/intervals"),
    ).rows()


def _publish(out: Path, content: Mapping[str, Any]) -> None:
    """Put a comparison into the run's results and, where the run has one, into its report."""
    results = {**manifest.read_json(out / RESULTS_FILE), KEY: content}
    manifest.write_json(out / RESULTS_FILE, results)
    record = manifest.read_record(out, report.STAGE.name)
    if record is None or record.status != "complete":
        return
    folder = out / report.STAGE.folder
    # What the record says must hold for the page whenever the run is looked at, also after a kill here.
    manifest.record_path(out, report.STAGE.name).unlink()
    report.draw(results, out)
    record.outputs = manifest.hash_outputs(folder)
    manifest.write_record(out, report.STAGE.name, record)
