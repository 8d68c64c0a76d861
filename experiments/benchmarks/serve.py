"""How fast an exported policy decides, how soon it is ready, and how much must be installed for it.

Everything runs in this process on two threads, but for the start and the size: these are measured in a
virtual environment without torch, which pip fills from its index; where there is none, their rows are left
out. The peer is what users of Stable-Baselines3 would call: ``predict`` of the same network on an observation
that is ready, while the bundle starts from raw state. How often the machine itself stalls stands beside: a
percentile of a millisecond's work says as much of its neighbours as of the work.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch

from agents.ppo import OfferActorCritic
from agents.serving import Context, CouponPolicy, Purchases, UserEvents, UserStates
from agents.serving.states import STATE_ARRAYS
from agents.state_rows import StateRows
from encoders.panel import Panel
from envs.campaign import UNLIMITED_BUDGET, Campaign
from experiments.artifacts import MarketParts, late_starts, load_market
from experiments.benchmarks import Request, Row, describe_machine
from experiments.fitted_run import FittedRun
from experiments.stages import export, finetune, prepare, train
from experiments.trained import Trained

BATCH = 10_000
THREADS = 2
CALLS = 2_000
ENCODED_CALLS = 300
FIXED_WORK = 40_000
"""Numbers that are added up to see how steadily the machine works; about half a millisecond."""
PEER_CALLS = 500
REPEATS = 15
SPENT_WEEKS = 3
"""Weeks of random offers before the states are taken: then there are coupons, messages and deals in them."""

ONE_USER_BAR = 2.0
ENCODER_BAR = 20.0
BATCH_BAR = 100_000.0
PEER_BAR = 10.0
START_BAR = 1.5
SIZE_BAR = 400.0

PACKAGES = ("numpy", "onnxruntime", "tokenizers")
_START = "import sys, time; t = time.perf_counter(); from agents.serving import CouponPolicy; " + (
    "CouponPolicy.load(sys.argv[1]); print(time.perf_counter() - t)"
)


def run(request: Request) -> list[Row]:
    """Measure the exported policy of a run folder."""
    hardware = describe_machine()
    folder = request.run / export.STAGE.folder
    fitted = FittedRun.load(request.run)
    parts = load_market(
        request.run / prepare.STAGE.folder, request.run / finetune.STAGE.folder, fitted.config.market, "cpu"
    )
    policy = CouponPolicy.load(folder, threads=THREADS)
    campaign, states = played_states(parts)
    context = Context(
        week=parts.market.population.start_weeks[campaign.start] + campaign.state.week + 1,
        weeks_left=campaign.weeks_left,
    )
    many, rng = _times(states, BATCH), np.random.default_rng(0)
    rate = BATCH / _fastest(lambda: policy.decide(many, context, rng=rng), REPEATS)
    single = [_only(states, k) for k in range(min(len(states.user_id), 200))]
    one = _latencies([partial(policy.decide, user, context, rng=rng) for user in single], CALLS)
    peer = _peer_seconds(request.run, campaign)
    rows = [
        Row.compare(
            f"batch of {BATCH:,} states, {THREADS} threads",
            rate,
            "decisions/s",
            bar=BATCH_BAR,
            hardware=hardware,
        ),
        Row.compare(
            "one user with cached embedding, in process, p99",
            float(np.percentile(one, 99)),
            "ms",
            bar=ONE_USER_BAR,
            higher_is_better=False,
            hardware=hardware,
        ),
        Row.compare(
            "one user with cached embedding, in process, p50", float(np.median(one)), "ms", hardware=hardware
        ),
        Row.compare(
            "a user in a batch, from raw state; the peer one at a time, from an observation",
            1e6 / rate,
            "µs",
            peer="Stable-Baselines3 predict",
            peer_value=1e6 * peer,
            bar=PEER_BAR,
            higher_is_better=False,
            hardware=hardware,
        ),
        Row.compare(
            "a user alone, from raw state; the peer likewise, from an observation",
            1e3 * float(np.median(one)),
            "µs",
            peer="Stable-Baselines3 predict",
            peer_value=1e6 * peer,
            higher_is_better=False,
            hardware=hardware,
        ),
        *_encoder_rows(folder, parts.panel, context, hardware),
        Row.compare(
            "the machine by itself: p99 of a fixed half millisecond of work, as a multiple of its p50",
            _stalls(),
            "ratio",
            hardware=hardware,
        ),
    ]
    with tempfile.TemporaryDirectory(prefix="couponlab-serve-") as directory:
        rows += _install_rows(Path(directory), folder, hardware)
    return rows


def played_states(parts: MarketParts) -> tuple[Campaign, UserStates]:
    """Return a campaign of all users after some weeks of random offers, and the users' states."""
    market = parts.market
    n = market.population.n_users
    campaign = Campaign(
        market,
        market.predictor,
        start=late_starts(parts)[0],
        users=torch.arange(n),
        budget=UNLIMITED_BUDGET,
        seed=0,
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(min(SPENT_WEEKS, market.horizon_weeks - 1)):
        campaign.step(torch.multinomial(campaign.mask.float(), 1, generator=generator)[:, 0])
    rows = StateRows.of_campaign(campaign, torch.ones(n))
    arrays: dict[str, Any] = {name: getattr(rows, name).numpy() for name in STATE_ARRAYS}
    return campaign, UserStates(tuple(f"u{k}" for k in range(n)), **arrays)


def panel_events(panel: Panel, row: int, n_weeks: int) -> UserEvents:
    """Return a user of a panel as raw lines: one for each category and week, in as many baskets as trips."""
    day, basket, category = [], [], []
    for week in np.flatnonzero(panel.visited[row, :n_weeks]):
        trips = int(panel.trips[row, week])
        bought = [str(panel.categories[c]) for c in np.flatnonzero(panel.bought[row, week])]
        for k, name in enumerate(bought + [""] * max(trips - len(bought), 0)):
            day.append(panel.first_day + datetime.timedelta(days=7 * int(week) + k % 7))
            basket.append(f"{week}-{k % trips}")
            category.append(name)
    count = len(day)
    purchases = Purchases(
        np.array(day, dtype="datetime64[D]"),
        np.array(basket, dtype=np.str_),
        np.array(["" if name else "other" for name in category], dtype=np.str_),
        np.array(category, dtype=np.str_),
        np.full(count, 2.0),
        np.zeros(count),
    )
    return UserEvents(str(panel.user_ids[row]), str(panel.profiles[row]), purchases=purchases)


def _encoder_rows(folder: Path, panel: Panel, context: Context, hardware: str) -> list[Row]:
    """One user from raw events, his text read by BERT each time."""
    rows = []
    rng, first_week = np.random.default_rng(0), context.week or 1
    users = [panel_events(panel, k, first_week - 1) for k in range(min(panel.n_users, ENCODED_CALLS))]
    for encoder, bar in (("fp32", ENCODER_BAR), ("int8", None)):
        policy = CouponPolicy.load(folder, encoder=encoder)  # type: ignore[arg-type]
        # A profile of its own makes each text new to the encoder's memory.
        asked = [replace(user, profile=f"{user.profile} {k}") for k, user in enumerate(users)]
        calls = [partial(policy.decide, [user], context, rng=rng) for user in asked]
        found = _latencies(calls, len(asked))
        rows.append(
            Row.compare(
                f"one user from raw events, encoder included ({encoder}), p99",
                float(np.percentile(found, 99)),
                "ms",
                bar=bar,
                higher_is_better=False,
                hardware=hardware,
            )
        )
        rows.append(
            Row.compare(
                f"one user from raw events, encoder included ({encoder}), p50",
                float(np.median(found)),
                "ms",
                hardware=hardware,
            )
        )
    return rows


def _stalls() -> float:
    """Return p99 / p50 of work that is always the same and touches no memory to speak of."""
    work = partial(sum, range(FIXED_WORK))
    found = _latencies([work], CALLS)
    return float(np.percentile(found, 99) / np.median(found))


def _peer_seconds(run: Path, campaign: Campaign) -> float:
    """Median seconds of Stable-Baselines3's ``predict`` for one user."""
    network = Trained.load(run / train.STAGE.folder, "cpu").policy.network
    observation = campaign.observation(torch.ones(campaign.n_users)).numpy()
    mask = campaign.mask.numpy()
    space = gymnasium.spaces.Box(-np.inf, np.inf, (observation.shape[1],), np.float32)
    actor = OfferActorCritic(
        space, gymnasium.spaces.Discrete(mask.shape[1]), lambda _: 1e-3, shape=network.shape
    )
    actor.mlp_extractor.load_state_dict(network.state_dict())
    actor.set_training_mode(False)
    asked = [partial(actor.predict, observation[k], action_masks=mask[k]) for k in range(min(len(mask), 200))]
    return float(np.median(_latencies(asked, PEER_CALLS))) / 1e3


def _install_rows(directory: Path, folder: Path, hardware: str) -> list[Row]:
    """Start and size in an environment of its own; nothing where pip finds no packages."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    packages = Path(next(directory.glob("lib/python*/site-packages")))
    before = _megabytes(packages)
    pip = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-compile", *PACKAGES],
        capture_output=True,
        check=False,
    )
    if pip.returncode:
        return []
    (packages / "couponlab.pth").write_text(f"{Path(__file__).resolve().parents[2]}\n", encoding="utf-8")
    size = _megabytes(packages) - before
    starts = []
    for _ in range(4):
        done = subprocess.run(
            [python, "-c", _START, str(folder.resolve())],
            capture_output=True,
            text=True,
            check=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        starts.append(float(done.stdout))
    # The first one compiles Python's files, as it would once after an install.
    return [
        Row.compare(
            "start without torch: import and load, median",
            float(np.median(starts[1:])),
            "s",
            bar=START_BAR,
            higher_is_better=False,
            hardware=hardware,
        ),
        Row.compare(
            f"installed without torch: {', '.join(PACKAGES)} and what they need",
            size,
            "MB",
            bar=SIZE_BAR,
            higher_is_better=False,
            hardware=hardware,
        ),
    ]


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _only(states: UserStates, row: int) -> UserStates:
    return UserStates((states.user_id[row],), **states.feed(row, row + 1))


def _times(states: UserStates, count: int) -> UserStates:
    """As many users as asked for, the given ones over and over."""
    rows = np.arange(count) % len(states.user_id)
    arrays: dict[str, Any] = {name: getattr(states, name)[rows] for name in STATE_ARRAYS}
    return UserStates(tuple(f"u{k}" for k in range(count)), **arrays)


def _fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def _latencies(calls: Sequence[Callable[[], object]], count: int) -> npt.NDArray[np.float64]:
    """Milliseconds of each of ``count`` calls, the given ones in turn, after a tenth to warm up."""
    found = np.empty(count)
    for k in range(count // 10):
        calls[k % len(calls)]()
    for k in range(count):
        start = time.perf_counter()
        calls[k % len(calls)]()
        found[k] = 1e3 * (time.perf_counter() - start)
    return found
