"""Speed of PPO training: the policy network in a run's market, beside the learner's own network in none.

The peer is MaskablePPO with its MlpPolicy in a market that costs nothing: constant observations and rewards,
every offer allowed. Users side by side, weeks, batch size, passes, widths of observation and number of offers
are equal, and so are the threads, one a core, as in the ``train`` stage. What our side does more: it lives
each week in three simulators and works out what was to be expected, predicts uplift and cost of every offer,
scores each offer by a network that shares weights over offers, and writes a checkpoint and TensorBoard's log
a rollout.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from agents.pacing import PriceRange
from agents.ppo import train_ppo
from agents.training_market import TrainingMarket
from agents.visit_value import VisitValue
from envs.campaign import MarketSpec
from envs.demo_market import demo_market
from envs.simulator import Simulator
from experiments.artifacts import load_market
from experiments.benchmarks import Request, Row, describe_machine
from experiments.config import MarketConfig, PpoConfig
from experiments.fitted_run import FittedRun
from experiments.manifest import read_manifest
from experiments.stages import finetune, prepare
from experiments.stages.train import ppo_config
from experiments.threads import flushed_denormals, keep_freed_memory

ROUNDS = 3
ROLLOUTS = 6
"""Rollouts that are measured each time that a side trains; one more comes before them."""

RATIO_BAR = 0.6


@dataclass(frozen=True)
class TrainingSetting:
    """What there is to train on.

    Attributes:
        market: the market.
        worlds: simulators that answer.
        starts: positions of start weeks.
        users: [m] users to draw from.
        words: the market in words.
        bar: ratio to reach; None for a stand-in, whose pace is no shop's.
    """

    market: MarketSpec
    worlds: tuple[Simulator, ...]
    starts: tuple[int, ...]
    users: torch.Tensor
    words: str
    bar: float | None = None


@dataclass(frozen=True)
class RolloutSeconds:
    """Where a rollout's time went, from the end of one to the end of the next.

    Attributes:
        total: seconds.
        market: of them in the market: weeks, observations, masks.
        update: of them learning from the rollout before, and saving it.
    """

    total: float
    market: float
    update: float

    @property
    def acting(self) -> float:
        """Seconds in the policy network to choose offers, and in the buffer that keeps them."""
        return self.total - self.market - self.update


class TimedMarket(TrainingMarket):
    """A training market that notes when it was entered and left."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.visits: list[tuple[float, float]] = []

    def step_wait(self) -> VecEnvStepReturn:
        """Let the week happen."""
        start = time.perf_counter()
        result = super().step_wait()
        self.visits.append((start, time.perf_counter()))
        return result

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method; the learner asks for masks so."""
        start = time.perf_counter()
        result = super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
        self.visits.append((start, time.perf_counter()))
        return result


class EmptyMarket(VecEnv):
    """Users to whom nothing happens: a vector environment at no cost.

    Args:
        n_users: side by side.
        width: of an observation.
        n_offers: K, all allowed.
        horizon_weeks: of an episode.
    """

    def __init__(self, n_users: int, width: int, n_offers: int, horizon_weeks: int) -> None:
        self.horizon_weeks = horizon_weeks
        self.week = 0
        self.render_mode = None
        rng = np.random.default_rng(0)
        # Constant over time, but not zero: a learner with nothing to learn would soon compute with numbers
        # too small for the processor to be quick at.
        self._observation = rng.standard_normal((n_users, width)).astype(np.float32)
        self._reward = rng.standard_normal(n_users).astype(np.float32)
        self._done = {done: np.full(n_users, done) for done in (False, True)}
        self._masks = list(np.ones((n_users, n_offers), dtype=np.bool_))
        self._infos: list[dict[str, Any]] = [{}] * n_users
        super().__init__(
            n_users,
            gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32),
            gymnasium.spaces.Discrete(n_offers),
        )

    def reset(self) -> np.ndarray:  # type: ignore[override]
        """Return the observations, [n, o]."""
        self.week = 0
        return self._observation

    def step_async(self, actions: np.ndarray) -> None:
        """Ignore the offers."""

    def step_wait(self) -> VecEnvStepReturn:
        """Return the same as ever; the campaign ends after its weeks."""
        self.week = (self.week + 1) % self.horizon_weeks
        return self._observation, self._reward, self._done[self.week == 0], self._infos  # type: ignore[return-value]

    def action_masks(self) -> np.ndarray:
        """Return that all may be sent, [n, K]."""
        return np.stack(self._masks)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Return the masks, the only thing that is asked for."""
        if method_name != "action_masks":
            raise AttributeError(method_name)
        return self._masks

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute for each index."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute."""
        setattr(self, attr_name, value)

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """No user is wrapped."""
        return [False for _ in self._get_indices(indices)]


class _RolloutEnds(BaseCallback):
    """Notes when each rollout ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(time.perf_counter())


def training_setting(folder: Path) -> TrainingSetting:
    """Return the market of a run at the default horizon; the demo market if there is no default run yet.

    Args:
        folder: a run folder.

    Raises:
        ConfigError: the folder was named and is no run folder, or its response model is not fitted.
    """
    if folder == Request().run and read_manifest(folder) is None:
        market = demo_market(n_users=PpoConfig().n_envs, horizon_weeks=MarketConfig().horizon_weeks)
        users = torch.arange(market.population.n_users)
        return TrainingSetting(market, (market.predictor,), (0,), users, "the demo market")
    run = FittedRun.load(folder)
    parts = load_market(
        folder / prepare.STAGE.folder,
        folder / finetune.STAGE.folder,
        replace(run.config.market, horizon_weeks=MarketConfig().horizon_weeks),
        "cpu",
    )
    market = parts.market
    starts = market.population.starts_before(parts.panel.split.train_end, market.horizon_weeks)
    # Where a log is too short for the default horizon, any start has the same cost.
    return TrainingSetting(
        market,
        parts.train_worlds,
        tuple(starts) or (0,),
        parts.train_users,
        f"the market of {folder}, {market.population.n_categories} categories",
        RATIO_BAR,
    )


def timed_market(setting: TrainingSetting, n_users: int) -> TimedMarket:
    """Return the training market as the ``train`` stage builds it, with a clock."""
    return TimedMarket(
        setting.market,
        setting.worlds,
        setting.starts,
        users=setting.users,
        n_users=n_users,
        # What money is worth changes what is sent, not how long it takes.
        prices=PriceRange(0.1, 10.0),
        # As fast before it is fitted as after.
        visit_value=VisitValue(
            setting.market.population.embedding,
            setting.market.horizon_weeks,
            setting.market.predictor.margin_rate,
        ),
        reward_scale=1.0,
        seed=0,
    )


def our_rollouts(env: TimedMarket, settings: PpoConfig, n_rollouts: int) -> list[RolloutSeconds]:
    """Train anew, and return where the time of each rollout but the first went.

    Args:
        env: the market.
        settings: of PPO; ``n_envs`` is the market's own.
        n_rollouts: how many are measured.
    """
    env.episode = 0
    env.visits.clear()
    ends: list[float] = []
    steps = (n_rollouts + 1) * env.num_envs * env.market.horizon_weeks
    config = ppo_config(replace(settings, total_steps=steps))
    with TemporaryDirectory() as folder:
        train_ppo(
            env,
            config,
            seed=0,
            device="cpu",
            checkpoint=Path(folder) / "ppo.pt",
            tensorboard=Path(folder) / "tensorboard",
            on_rollout=lambda _: ends.append(time.perf_counter()),
        )
    return split_seconds(ends, env.visits)


def split_seconds(ends: Sequence[float], visits: Sequence[tuple[float, float]]) -> list[RolloutSeconds]:
    """Split the time between the ends of rollouts by what was going on.

    Args:
        ends: when each rollout ended; its update follows.
        visits: when the market was entered and left, in order and without overlap.
    """
    found = []
    for start, end in pairwise(ends):
        within = [(entered, left) for entered, left in visits if start <= entered and left <= end]
        update = (within[0][0] if within else end) - start
        found.append(RolloutSeconds(end - start, sum(left - entered for entered, left in within), update))
    return found


def peer_rollouts(env: EmptyMarket, settings: PpoConfig, n_rollouts: int) -> list[float]:
    """Train MaskablePPO's own MlpPolicy anew, and return the seconds of each rollout but the first."""
    steps = env.num_envs * env.horizon_weeks
    model = MaskablePPO(
        "MlpPolicy",
        env,
        learning_rate=settings.learning_rate,
        n_steps=env.horizon_weeks,
        batch_size=min(settings.batch_size, steps),
        n_epochs=settings.n_epochs,
        gamma=settings.discount_factor,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        ent_coef=settings.entropy,
        seed=0,
        device="cpu",
    )
    noted = _RolloutEnds()
    model.learn((n_rollouts + 1) * steps, callback=noted)
    return [end - start for start, end in pairwise(noted.ends)]


@flushed_denormals()
def run(request: Request) -> list[Row]:
    """Train both sides in turn, and compare user-weeks a second."""
    keep_freed_memory()
    setting, settings = training_setting(request.run), PpoConfig()
    market = setting.market
    ours = timed_market(setting, settings.n_envs)
    empty = EmptyMarket(settings.n_envs, market.layout.width, market.layout.n_offers, market.horizon_weeks)
    rollouts: list[RolloutSeconds] = []
    peers: list[float] = []
    our_rollouts(ours, settings, 1)
    peer_rollouts(empty, settings, 1)
    for _ in range(ROUNDS):
        rollouts += our_rollouts(ours, settings, ROLLOUTS)
        peers += peer_rollouts(empty, settings, ROLLOUTS)
    steps = settings.n_envs * market.horizon_weeks
    hardware = describe_machine()
    peer = f"sb3-contrib {metadata.version('sb3-contrib')} MaskablePPO, MlpPolicy, market at no cost"
    peer_rate = steps / median(peers)
    rows = [
        Row.compare(
            f"training steps per second; {setting.words}, {settings.n_envs} users, {market.horizon_weeks} "
            f"weeks, batches of {settings.batch_size}, {settings.n_epochs} passes, "
            f"{torch.get_num_threads()} threads",
            steps / median(one.total for one in rollouts),
            "user-weeks/s",
            peer=peer,
            peer_value=peer_rate,
            bar=setting.bar,
            hardware=hardware,
        ),
        Row.compare(
            "the same, our time in the market not counted",
            steps / median(one.total - one.market for one in rollouts),
            "user-weeks/s",
            peer=peer,
            peer_value=peer_rate,
            hardware=hardware,
        ),
    ]
    shares = {
        "in the market": [one.market / one.total for one in rollouts],
        "in the policy network to choose offers": [one.acting / one.total for one in rollouts],
        "in the update and its checkpoint": [one.update / one.total for one in rollouts],
    }
    rows += [
        Row.compare(f"share of our time {words}", median(found), "share", hardware=hardware)
        for words, found in shares.items()
    ]
    return rows
