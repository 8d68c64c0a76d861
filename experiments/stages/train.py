"""Stage 5: PPO on the training simulators."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from agents.pacing import PriceRange, price_range
from agents.ppo import PPOConfig, RolloutReport, train_ppo
from agents.training_market import TrainingMarket
from envs.campaign import UNLIMITED_BUDGET, Campaign
from experiments.artifacts import (
    POLICY_FILE,
    POLICY_SHAPE_FILE,
    MarketParts,
    late_starts,
    load_market,
    save_module,
)
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP
from experiments.threads import one_thread

REPORTED_ROLLOUTS = 60


def offered_prices(parts: MarketParts) -> tuple[PriceRange, float]:
    """Return the range of the dual price and the mean predicted uplift, from the first campaign start."""
    campaign = Campaign(
        parts.market,
        parts.market.predictor,
        start=0,
        users=torch.arange(parts.market.population.n_users, device=parts.train_users.device),
        budget=UNLIMITED_BUDGET,
        seed=0,
    )
    prediction = campaign.prediction
    scale = float(prediction.uplift[:, 1:].abs().mean())
    return price_range(prediction.uplift, prediction.budget_use), scale


@one_thread()
def run(ctx: StageContext) -> dict[str, Any]:
    """Train the policy; weeks after the training period serve no start."""
    parts = load_market(ctx.input("prepare"), ctx.input("finetune"), ctx.config.market, ctx.device)
    settings = ctx.config.ppo
    market = parts.market
    starts = market.population.starts_before(parts.panel.split.train_end, market.horizon_weeks)
    if not starts:
        raise StageError(
            f"no campaign of {market.horizon_weeks} weeks fits into the {parts.panel.split.train_end} "
            "training weeks; lower market.horizon_weeks"
        )
    if not late_starts(parts):
        raise StageError(
            f"no campaign of {market.horizon_weeks} weeks starts after the training weeks, so none could "
            "be judged; lower market.horizon_weeks"
        )
    try:
        prices, scale = offered_prices(parts)
    except ValueError as error:
        raise StageError(f"the catalogue cannot be paced: {error}") from error
    env = TrainingMarket(
        market,
        parts.train_worlds,
        starts,
        users=parts.train_users,
        n_users=settings.n_envs,
        prices=prices,
        reward_scale=scale,
        seed=ctx.seed_for("market"),
    )
    config = PPOConfig(
        total_steps=settings.total_steps,
        learning_rate=settings.learning_rate,
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        gae_lambda=settings.gae_lambda,
        discount_factor=settings.discount_factor,
        entropy=settings.entropy,
        clip_range=settings.clip_range,
        hidden=settings.hidden,
    )
    steps_per_rollout = market.horizon_weeks * settings.n_envs

    with ctx.progress("training PPO", -(-settings.total_steps // steps_per_rollout)) as bar:

        def show(report: RolloutReport) -> None:
            bar.advance(reward=report.reward, spend=report.cost, entropy=report.entropy)

        network, reports = train_ppo(
            env,
            config,
            seed=ctx.seed_for("ppo"),
            device=ctx.device,
            checkpoint=ctx.checkpoint / "ppo.pt",
            tensorboard=ctx.folder.parent / "tensorboard",
            on_rollout=show,
        )
    network.temperature.fill_(settings.temperature)
    save_module(network, ctx.folder / POLICY_FILE)
    content = {"shape": network.shape.to_dict(), "price_range": [prices.low, prices.high]}
    temporary = ctx.folder / (POLICY_SHAPE_FILE + ".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, ctx.folder / POLICY_SHAPE_FILE)
    return {
        "training": {
            "price_range": [prices.low, prices.high],
            "user_weeks": reports[-1].steps,
            "rollouts": [vars(report) for report in _thinned(reports)],
        }
    }


def _thinned(reports: list[RolloutReport]) -> list[RolloutReport]:
    """Means over stretches of rollouts, at most REPORTED_ROLLOUTS of them, for the training curve."""
    size = -(-len(reports) // REPORTED_ROLLOUTS)
    stretches = [reports[k : k + size] for k in range(0, len(reports), size)]

    def mean(stretch: list[RolloutReport], name: str) -> float:
        return float(sum(getattr(report, name) for report in stretch)) / len(stretch)

    return [
        RolloutReport(
            steps=stretch[-1].steps,
            reward=mean(stretch, "reward"),
            incremental_margin=mean(stretch, "incremental_margin"),
            cost=mean(stretch, "cost"),
            entropy=mean(stretch, "entropy"),
        )
        for stretch in stretches
    ]


STAGE = Stage(
    name="train",
    folder="policy",
    sections=("market", "ppo"),
    inputs=("prepare", "finetune"),
    run=run,
    help=STAGE_HELP["train"],
)
