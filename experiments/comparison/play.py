"""Judge campaigns played by every entrant at every budget, in worker processes, each block kept once done.

A block is one entrant at one budget through all campaigns; there is one block more for what the users are
like and do if nothing is sent. Blocks share users, worlds and luck and nothing else, so that it does not
matter which process plays them or in which order. Each is written to a folder when it is done and read from
there: what an interrupted comparison has played is not played again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from agents.forecast import Correction, SpendPlan, follow, plan_spend
from agents.pacing import EvenPacing, Pacer
from agents.rollout import CampaignResult, CampaignSetting, control_margin, open_campaign, play
from experiments.artifacts import save_arrays
from experiments.comparison.campaigns import Arena, OpenArena, without_lifts
from experiments.comparison.lineup import Entrant, Pacing
from experiments.comparison.segments import SEGMENTS, segment_features
from experiments.config import MarketConfig
from experiments.threads import keep_freed_memory, one_thread

DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PLAN_SEED = 0
MOST_WORKERS = 8
"""Processes unless more are asked for: each takes most of a gigabyte."""


def default_workers(device: str, cores: int) -> int:
    """Return how many processes to play in where nobody says: one GPU is not shared out among processes."""
    return min(cores, MOST_WORKERS) if device == "cpu" else 1


@dataclass(frozen=True)
class Block:
    """One entrant at one budget.

    Attributes:
        entrant: who plays.
        multiple: budget as a multiple of ``market.budget_per_user``.
        campaigns: how many of the arena's campaigns, the first ones.
        without_lifts: whether to play them once more where messages and coupons bring no visits.
        plans: how often the campaign is planned where pacing plans it, each time with a twin of its own luck
            and users; the campaigns follow the plans in turn. A plan's luck is common to all that follow it.
    """

    entrant: Entrant
    multiple: float
    campaigns: int
    without_lifts: bool = False
    plans: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.plans <= self.campaigns:
            raise ValueError(f"{self.campaigns} campaigns cannot follow {self.plans} plans")

    @property
    def plays(self) -> int:
        """How many campaigns that makes."""
        return self.campaigns * (1 + self.without_lifts)

    @property
    def file(self) -> str:
        """Name of the file that keeps it."""
        words = f"{self.entrant.name}|{self.multiple!r}|{self.campaigns}|{self.without_lifts}|{self.plans}"
        return f"block-{hashlib.sha256(words.encode()).hexdigest()[:20]}.npz"


@dataclass(frozen=True)
class _Kept:
    """Arrays that are kept in a file."""

    def save(self, path: Path) -> None:
        """Write the arrays, atomically."""
        save_arrays(path, **{f.name: np.asarray(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{f.name: stored[f.name] for f in fields(cls)})


@dataclass(frozen=True)
class Idle(_Kept):
    """W campaigns of n users who are sent nothing; money in the log's currency.

    Attributes:
        margin: [W, n] contribution margin of a campaign.
        segments: [W, n, S] what the shop's predictor says of each user before the first week, in the order
            of SEGMENTS.
    """

    margin: DoubleArray
    segments: DoubleArray


@dataclass(frozen=True)
class Played(_Kept):
    """What an entrant made of W campaigns of T weeks and n users; money in the log's currency.

    Attributes:
        budget: [] for all users together.
        planned: [T] spend that pacing planned, the mean of its plans.
        margin: [W, n] contribution margin before coupon cost.
        margin_without_lifts: [W, n] the same in worlds where messages and coupons bring no visits; [0, n] if
            these were not played.
        cost: [W, n] charged to the budget.
        discount: [W, n] coupons redeemed: cost less delivery.
        offers: [W, n] messages and coupons sent.
        coupons: [W, n] coupons among them.
        sent: [K] how often each offer was sent, all campaigns together.
        spend: [W, T] charged in each week.
        committed: [W, T] spent and reserved at most in each week.
        dual_price: [W, T] λ.
        pressure: [W, T] of the prices.
        refused: [W] offers that the ledger could not cover.
    """

    budget: DoubleArray
    planned: DoubleArray
    margin: DoubleArray
    margin_without_lifts: DoubleArray
    cost: DoubleArray
    discount: DoubleArray
    offers: IntArray
    coupons: IntArray
    sent: IntArray
    spend: DoubleArray
    committed: DoubleArray
    dual_price: DoubleArray
    pressure: DoubleArray
    refused: IntArray


@dataclass(frozen=True)
class Season:
    """All that was played.

    Attributes:
        idle: without any offer; of all campaigns.
        played: by block.
    """

    idle: Idle
    played: Mapping[Block, Played]


def play_season(
    arena: Arena,
    blocks: Sequence[Block],
    *,
    workers: int,
    folder: Path,
    on_campaigns: Callable[[int], None] = lambda _: None,
) -> Season:
    """Play all blocks, but for those that the folder holds already.

    Args:
        arena: where.
        blocks: what; a block given twice is played once.
        workers: processes; with one, this process plays. The results do not depend on it.
        folder: keeps finished blocks; it must hold none of another arena.
        on_campaigns: called with the number of campaigns whenever a block is done or found done.
    """
    tasks: dict[Path, Block | None] = {folder / "idle.npz": None}
    tasks |= {folder / block.file: block for block in blocks}

    def count(path: Path) -> int:
        block = tasks[path]
        return arena.campaigns if block is None else block.plays

    missing = [path for path in tasks if not path.is_file()]
    on_campaigns(sum(count(path) for path in tasks if path not in missing))
    if workers <= 1 or len(missing) <= 1:
        paths: Iterable[Path] = _play_here(arena, [(path, tasks[path]) for path in missing])
    else:
        paths = _play_in_workers(arena, [(path, tasks[path]) for path in missing], workers)
    for path in paths:
        on_campaigns(count(path))
    idle = Idle.load(folder / "idle.npz")
    return Season(idle, {block: Played.load(path) for path, block in tasks.items() if block is not None})


def _play_here(arena: Arena, tasks: Sequence[tuple[Path, Block | None]]) -> Iterable[Path]:
    if not tasks:
        return
    with one_thread():
        opened = arena.open()
        for path, block in tasks:
            _play(opened, arena, block).save(path)
            yield path


def _play_in_workers(
    arena: Arena, tasks: Sequence[tuple[Path, Block | None]], workers: int
) -> Iterable[Path]:
    # Spawned, not forked: a fork copies the locks of torch's threads in whatever state they are.
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_enter,
        initargs=(arena,),
    )
    try:
        for done in as_completed([pool.submit(_play_one, path, block) for path, block in tasks]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


_entered: tuple[Arena, OpenArena] | None = None
"""What a worker process plays in; set once, when it starts."""


def _enter(arena: Arena) -> None:
    """Make a new process ready to play."""
    global _entered
    # An interrupted terminal ends its workers without a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(1)
    threadpool_limits(limits=1)
    _entered = (arena, arena.open())


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that came about."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _play_one(path: Path, block: Block | None) -> Path:
    """Play a block in a worker."""
    assert _entered is not None
    arena, opened = _entered
    _play(opened, arena, block).save(path)
    return path


def _play(opened: OpenArena, arena: Arena, block: Block | None) -> Idle | Played:
    return play_idle(opened) if block is None else play_block(opened, block, arena.market)


def play_idle(opened: OpenArena) -> Idle:
    """Play all campaigns with no offer to anyone."""
    market, value = opened.parts.market, opened.trained.visit_value
    margins, segments = [], []
    for setting in opened.settings:
        segments.append(segment_features(open_campaign(market, setting, 0.0)))
        margins.append(control_margin(market, setting, value))
    return Idle(np.stack(margins), np.stack([np.stack([s[k] for k in SEGMENTS], axis=1) for s in segments]))


def play_block(opened: OpenArena, block: Block, rules: MarketConfig) -> Played:
    """Plan an entrant's campaign as a shop would that knows its predictor only, and play them all."""
    market, trained = opened.parts.market, opened.trained
    entrant, settings = block.entrant, opened.settings[: block.campaigns]
    budget = rules.budget_per_user * block.multiple * len(settings[0].users)
    plans: list[SpendPlan] = []
    planned = np.full(market.horizon_weeks, budget / market.horizon_weeks)
    if entrant.pacing is Pacing.FORECAST:
        campaign = open_campaign(market, replace(settings[0], world=market.predictor), budget)
        plans = [
            plan_spend(entrant.policy, campaign, trained.prices, trained.visit_value, seed=PLAN_SEED + k)
            for k in range(block.plans)
        ]
        planned = np.mean([plan.spend for plan in plans], axis=0)

    def result(number: int, setting: CampaignSetting) -> CampaignResult:
        # A new pacer for each campaign: the one that corrects remembers.
        pacer: Pacer = EvenPacing(trained.prices)
        if plans:
            pacer = follow(plans[number % len(plans)], Correction(rules.pacing))
        return play(entrant.policy, market, setting, budget, pacer, trained.visit_value)

    again = [
        result(k, without_lifts(setting)).margin for k, setting in enumerate(settings) if block.without_lifts
    ]
    played = [result(k, setting) for k, setting in enumerate(settings)]
    return _gathered(played, again, opened, budget, planned)


def _gathered(
    results: Sequence[CampaignResult],
    again: Sequence[DoubleArray],
    opened: OpenArena,
    budget: float,
    planned: DoubleArray,
) -> Played:
    catalogue = opened.parts.market.catalogue.offers
    delivery = np.array([offer.delivery_cost for offer in catalogue])
    coupon = np.array([offer.is_coupon for offer in catalogue])

    def stacked(of: Callable[[CampaignResult], Any]) -> npt.NDArray[Any]:
        return np.stack([np.asarray(of(result)) for result in results])

    return Played(
        budget=np.array(budget),
        planned=planned,
        margin=stacked(lambda r: r.margin),
        margin_without_lifts=np.array(again).reshape(len(again), len(results[0].margin)),
        cost=stacked(lambda r: r.cost),
        # Ledgers count hundredths of a cent: what differs by less is the rounding of a difference.
        discount=stacked(lambda r: r.cost - r.sent @ delivery).round(4),
        offers=stacked(lambda r: r.sent[:, 1:].sum(axis=1)),
        coupons=stacked(lambda r: r.sent[:, coupon].sum(axis=1)),
        sent=stacked(lambda r: r.offers_sent).sum(axis=0),
        spend=stacked(lambda r: r.weekly_spend),
        committed=stacked(lambda r: r.committed),
        dual_price=stacked(lambda r: r.dual_price),
        pressure=stacked(lambda r: r.pressure),
        refused=stacked(lambda r: r.refused),
    )
