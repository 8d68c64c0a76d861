"""How far PPO is ahead of the best of its baselines, over enough campaigns to tell.

The myopic rule with a knapsack price, paced by the same forecast, is the strongest baseline of
``couponlab compare``. Both play the same campaigns, each in a judge simulator of its own, with common random
numbers. Both plan many times, for a plan has luck of its own, which is common to all campaigns that follow
it; the interval resamples the plans, each with its campaigns, and users together.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from experiments.benchmarks import Request, Row, describe_machine
from experiments.comparison.campaigns import Arena
from experiments.comparison.lineup import core_lineup
from experiments.comparison.play import Block, default_workers, play_season
from experiments.comparison.statistics import DoubleArray, Estimate, Resamples
from experiments.fitted_run import FittedRun
from experiments.manifest import count_cores, read_manifest
from experiments.seeding import seed_generator
from experiments.stages import finetune, prepare, train

CAMPAIGNS = 120
PLANS = 24
LEARNED, RULE = "PPO", "myopic uplift"


def run(request: Request) -> list[Row]:
    """Play both at each of the run's budgets, and compare.

    Raises:
        ConfigError: not a run folder, or its policy is not trained.
    """
    return lead(request.run, CAMPAIGNS, PLANS)


def lead(folder: Path, campaigns: int, plans: int) -> list[Row]:
    """Return for each budget the lead as a share of the baseline's incremental margin, and what both spend.

    Args:
        folder: a run folder whose policy is trained.
        campaigns: that each plays at each budget.
        plans: that these follow in turn.

    Raises:
        ValueError: plans do not have equally many campaigns.
    """
    if campaigns % plans:
        raise ValueError(f"{campaigns} campaigns are not equally many for each of {plans} plans")
    config = FittedRun.load(folder).config
    recorded = read_manifest(folder) or {}
    arena = Arena(
        prepared=folder / prepare.STAGE.folder,
        response=folder / finetune.STAGE.folder,
        policy=folder / train.STAGE.folder,
        market=config.market,
        device="cpu",
        seed=int(recorded["seed"]),
        campaigns=campaigns,
    )
    opened = arena.open()
    entrants = {one.name: one for one in core_lineup(opened.parts.market, opened.trained)}
    budgets = config.evaluate.budgets
    blocks = {
        (name, multiple): Block(entrants[name], multiple, campaigns, plans=plans)
        for multiple in budgets
        for name in (LEARNED, RULE)
    }
    with TemporaryDirectory() as kept:
        workers = default_workers("cpu", count_cores())
        season = play_season(arena, list(blocks.values()), workers=workers, folder=Path(kept))
    rows, hardware = [], describe_machine()
    users = season.idle.margin.shape[1]
    rng = seed_generator(arena.seed, "lead/intervals")
    resamples = Resamples.draw(plans, users, config.evaluate.n_bootstrap, rng)
    idle = by_plan(season.idle.margin, plans)
    for multiple in budgets:
        ours, theirs = (season.played[blocks[name, multiple]] for name in (LEARNED, RULE))
        of = f"at budget × {multiple:g}; {campaigns} campaigns, {plans} plans"
        gain, rival = (by_plan(played.margin, plans) - idle for played in (ours, theirs))
        spend, rival_spend = (by_plan(played.cost, plans) for played in (ours, theirs))
        rows += [
            _paired(
                f"lead of PPO, share of the baseline's gain, {of}", gain, rival, resamples, hardware, 0.0
            ),
            # Budgets are equal; what is spent of them need not be, where reserves fill the cap.
            _paired(
                f"the same with both net of what they spend, {of}",
                gain - spend,
                rival - rival_spend,
                resamples,
                hardware,
            ),
            Row(
                measure=f"spend a campaign, {of}",
                value=float(ours.cost.sum(axis=1).mean()),
                unit="currency",
                peer=f"{RULE}, paced by forecast",
                peer_value=float(theirs.cost.sum(axis=1).mean()),
                ratio=None,
                bar=None,
                met=None,
                hardware=hardware,
            ),
        ]
    return rows


def _paired(
    measure: str,
    ours: DoubleArray,
    theirs: DoubleArray,
    resamples: Resamples,
    hardware: str,
    bar: float | None = None,
) -> Row:
    """Return the mean difference of gains [plans, n] as a share of the baseline's; met above the bar."""
    found, base = Estimate.of(ours - theirs, resamples), float(theirs.mean())
    return Row(
        measure=measure,
        value=found.value / base,
        unit="share",
        peer=f"{RULE}, paced by forecast",
        peer_value=None,
        ratio=None,
        bar=bar,
        met=None if bar is None else found.low / base > bar,
        hardware=hardware,
        ci_low=found.low / base,
        ci_high=found.high / base,
    )


def by_plan(margin: DoubleArray, plans: int) -> DoubleArray:
    """Return the mean over each plan's campaigns, [plans, n], of [W, n]; campaigns follow plans in turn."""
    return np.asarray(margin.reshape(-1, plans, margin.shape[1]).mean(axis=0))
