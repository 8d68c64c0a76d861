"""Stage 5: PPO on the training simulators."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from agents.forecast import plan_spend
from agents.pacing import PriceRange, price_range
from agents.policy import MyopicUpliftPolicy
from agents.ppo import PPOConfig, RolloutReport, train_ppo
from agents.training_market import TrainingMarket
from agents.visit_value import VisitValue, fit_visit_value
from envs.campaign import UNLIMITED_BUDGET, Campaign
from experiments.artifacts import (
    POLICY_FILE,
    POLICY_SHAPE_FILE,
    VISIT_VALUE_FILE,
    MarketParts,
    late_starts,
    load_market,
    save_module,
)
from experiments.config import PpoConfig
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP
from experiments.threads import one_thread

REPORTED_ROLLOUTS = 60
BUDGETS = (0.1, 2.0)
"""One policy serves all budgets between these, as multiples of the reference."""
PLANNED_USERS = 400
HISTORY_WEEKS = 12
"""Of a user before the first campaign that policies are trained on."""


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
    return price_range(prediction.uplift, prediction.budget_use(1.0)), scale


def training_prices(
    parts: MarketParts, starts: Sequence[int], wide: PriceRange, visit_value: VisitValue, budget: float
) -> PriceRange:
    """Return the λ that budgets from BUDGETS[0] to BUDGETS[1] times the given one lead to.

    What a network learns it learns for the prices that it sees; these are the ones at which the myopic rule
    would keep to such budgets, in the predictor's world.

    Args:
        parts: the market.
        starts: of training campaigns; the last is planned for.
        wide: range to look in.
        visit_value: what a visit is worth later.
        budget: per user and campaign, currency.
    """
    market = parts.market
    users = parts.train_users.to(market.population.embeddings.device)
    myopic = MyopicUpliftPolicy(market.layout)
    reached: list[float] = []
    for share in BUDGETS:
        campaign = Campaign(
            market,
            market.predictor,
            start=starts[-1],
            users=users,
            budget=share * budget * len(users),
            seed=0,
        )
        plan = plan_spend(myopic, campaign, wide, visit_value, n_users=PLANNED_USERS)
        reached += [min(max(week.spend, wide.low), wide.high) for week in plan.reached]
    return PriceRange(min(reached), max(reached)) if min(reached) < max(reached) else wide


def training_starts(parts: MarketParts) -> list[int]:
    """Return the campaign starts of the training weeks whose users have a history worth the name.

    A shop that sends coupons has known its users for longer than a month, and in a short history every visit
    weighs more. Where no start is late enough, all that end within the training weeks serve.
    """
    market = parts.market
    starts = list(market.population.starts_before(parts.panel.split.train_end, market.horizon_weeks))
    known = [k for k in starts if market.population.start_weeks[k] >= HISTORY_WEEKS]
    return known or starts


def ppo_config(settings: PpoConfig) -> PPOConfig:
    """Return the settings of a run as PPO takes them."""
    return PPOConfig(
        **{f.name: getattr(settings, f.name) for f in fields(PPOConfig)},
    )


def run(ctx: StageContext) -> dict[str, Any]:
    """Train the policy; weeks after the training period serve no start."""
    parts = load_market(ctx.input("prepare"), ctx.input("finetune"), ctx.config.market, ctx.device)
    settings = ctx.config.ppo
    market = parts.market
    starts = training_starts(parts)
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
        wide, scale = offered_prices(parts)
    except ValueError as error:
        raise StageError(f"the catalogue cannot be paced: {error}") from error
    # Fits and plans work on arrays too small to share between threads.
    with one_thread():
        visit_value = _fit_visit_value(ctx, parts, starts)
        save_module(visit_value, ctx.folder / VISIT_VALUE_FILE)
        prices = training_prices(parts, starts, wide, visit_value, ctx.config.market.budget_per_user)
    env = TrainingMarket(
        market,
        parts.train_worlds,
        starts,
        users=parts.train_users,
        n_users=settings.n_envs,
        prices=prices,
        visit_value=visit_value,
        reward_scale=scale,
        seed=ctx.seed_for("market"),
    )
    steps_per_rollout = market.horizon_weeks * settings.n_envs

    with ctx.progress("training PPO", -(-settings.total_steps // steps_per_rollout)) as bar:

        def show(report: RolloutReport) -> None:
            bar.advance(reward=report.reward, spend=report.cost, entropy=report.entropy)

        network, reports = train_ppo(
            env,
            ppo_config(settings),
            seed=ctx.seed_for("ppo"),
            device=ctx.device,
            checkpoint=ctx.checkpoint / "ppo.pt",
            tensorboard=ctx.folder.parent / "tensorboard",
            on_rollout=show,
        )
    network.temperature.fill_(settings.temperature)
    save_module(network, ctx.folder / POLICY_FILE)
    content = {
        "shape": network.shape.to_dict(),
        "price_range": [prices.low, prices.high],
        "visit_value": visit_value.shape(),
    }
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


def _fit_visit_value(ctx: StageContext, parts: MarketParts, starts: Sequence[int]) -> VisitValue:
    """Fit what a visit is worth later, with a bar."""
    with ctx.progress("fitting what a visit is worth later", 100) as bar:
        shown = 0

        def fitted(share: float) -> None:
            nonlocal shown
            bar.advance(int(100 * share) - shown)
            shown = int(100 * share)

        return fit_visit_value(
            parts.market,
            parts.train_worlds,
            starts,
            users=parts.train_users,
            seed=ctx.seed_for("visit value"),
            on_round=fitted,
        )


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
