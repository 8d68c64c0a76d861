"""How much a policy loses by not knowing the simulator that it is judged by.

A specialist is trained on one judge simulator alone, on its users, with what is assumed there; it and the
run's own policy, which has seen neither, play the same campaigns of that simulator. Both are planned in the
predictor's world and paced alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from agents.forecast import PIDPacing, plan_spend
from agents.offer_network import LearnedPolicy
from agents.pacing import PriceRange
from agents.policy import Policy
from agents.ppo import PPOConfig, train_ppo
from agents.rollout import CampaignSetting, control_margin, open_campaign, play
from agents.training_market import TrainingMarket
from agents.visit_value import fit_visit_value
from envs.assumptions import AssumedResponse
from envs.simulator import Simulator
from experiments.artifacts import MarketParts, late_starts, load_market
from experiments.benchmarks import Request, Row, describe_machine
from experiments.config import ConfigError, PpoConfig
from experiments.fitted_run import FittedRun
from experiments.manifest import read_record
from experiments.stages import finetune, prepare, train
from experiments.threads import flushed_denormals, one_thread
from experiments.trained import Trained

N_SIMULATORS = 6
CAMPAIGNS = 6
STEPS = 1_000_000
"""Of a specialist; about one simulator there is less to be learnt than about all of them."""
SHARE_BAR = 0.9


def run(request: Request) -> list[Row]:
    """Compare the run's policy with a specialist in each of N_SIMULATORS judge simulators.

    Raises:
        ConfigError: the folder is no run folder, or its policy is not trained.
    """
    folder = request.run
    fitted = FittedRun.load(folder)
    record = read_record(folder, train.STAGE.name)
    if record is None or record.status != "complete":
        raise ConfigError(f"{folder}: stage train is not complete; run: couponlab train --out {folder}")
    parts = load_market(
        folder / prepare.STAGE.folder, folder / finetune.STAGE.folder, fitted.config.market, "cpu"
    )
    trained = Trained.load(folder / train.STAGE.folder, "cpu")
    budget = fitted.config.market.budget_per_user * len(parts.judge_users)
    console, hardware = Console(stderr=True), describe_machine()
    rows: list[Row] = []
    shares = []
    with flushed_denormals():
        for k, world in enumerate(judge_simulators(parts)):
            specialist = train_specialist(parts, world, fitted.config.ppo, trained.prices, seed=k)
            with one_thread():
                general, own = (
                    mean_gain(policy, parts, world, budget, trained, seed=k)
                    for policy in (trained.policy, specialist)
                )
            shares.append(general / own)
            console.print(f"simulator {k + 1} of {N_SIMULATORS}: {shares[-1]:.3f} of the specialist's gain")
            rows.append(
                Row.compare(
                    f"gain in simulator {k + 1}",
                    general,
                    "per user",
                    peer="trained on it alone",
                    peer_value=own,
                    hardware=hardware,
                )
            )
    worst = float(np.quantile(shares, 0.1))
    rows.append(
        Row.compare(
            "worst decile of the shares", worst, "of the specialist's", bar=SHARE_BAR, hardware=hardware
        )
    )
    return rows


def judge_simulators(parts: MarketParts) -> Sequence[Simulator]:
    """Return N_SIMULATORS judge simulators: the fitted heads in turn, what is assumed drawn for each."""
    rng = np.random.default_rng(0)
    judges = parts.judge_worlds
    return [
        replace(judges[k % len(judges)], assumed=AssumedResponse.draw(rng), name=f"robustness {k + 1}")
        for k in range(N_SIMULATORS)
    ]


def train_specialist(
    parts: MarketParts, world: Simulator, settings: PpoConfig, prices: PriceRange, seed: int
) -> LearnedPolicy:
    """Train PPO on one simulator, with a run's settings and prices but STEPS."""
    market = parts.market
    starts = train.training_starts(parts)
    _, scale = train.offered_prices(parts)
    value = fit_visit_value(market, [world], starts, users=parts.judge_users, seed=seed)
    env = TrainingMarket(
        market,
        [world],
        starts,
        users=parts.judge_users,
        n_users=settings.n_envs,
        prices=prices,
        visit_value=value,
        reward_scale=scale,
        seed=seed,
        redraw_assumptions=False,
    )
    config: PPOConfig = train.ppo_config(replace(settings, total_steps=min(STEPS, settings.total_steps)))
    with TemporaryDirectory() as folder:
        network, _ = train_ppo(env, config, seed=seed, device="cpu", checkpoint=Path(folder) / "ppo.pt")
    network.temperature.fill_(settings.temperature)
    return LearnedPolicy(network)


def mean_gain(
    policy: Policy, parts: MarketParts, world: Simulator, budget: float, trained: Trained, seed: int
) -> float:
    """Return the incremental margin per user of a policy in one simulator, mean over CAMPAIGNS."""
    late = late_starts(parts)
    gains = []
    plans = {}
    for k in range(CAMPAIGNS):
        start = late[k % len(late)]
        setting = CampaignSetting(world, start, parts.judge_users, 1000 * seed + k)
        if start not in plans:
            before = open_campaign(parts.market, replace(setting, world=parts.market.predictor), budget)
            plans[start] = plan_spend(policy, before, trained.prices, trained.visit_value)
        played = play(policy, parts.market, setting, budget, PIDPacing(plans[start]), trained.visit_value)
        gains.append((played.margin - control_margin(parts.market, setting, trained.visit_value)).mean())
    return float(np.mean(gains))
