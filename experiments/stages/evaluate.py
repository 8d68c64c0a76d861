"""Stage 6: policies judged on held-out simulators, and off-policy estimates checked against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.offer_network import LearnedPolicy
from agents.pacing import WeekPrices
from agents.policy import ExploringPolicy, MyopicUpliftPolicy, NoOfferPolicy, Policy, RandomPolicy
from agents.rollout import (
    CampaignSetting,
    LoggedWeek,
    log_campaign,
    open_campaign,
    play,
    value_at_prices,
)
from envs.campaign import UNLIMITED_BUDGET, MarketSpec
from envs.counterfactual import ResponseTypes, response_surface
from experiments.comparison.campaigns import Arena
from experiments.comparison.lineup import core_lineup
from experiments.comparison.play import default_workers, play_season
from experiments.comparison.tables import Comparison, Programme
from experiments.ope.budgeted_policies import values_under_budgets
from experiments.ope.evaluate import evaluate_policy
from experiments.ope.evaluate_returns import evaluate_returns
from experiments.ope.logged_dataset import LoggedDataset
from experiments.ope.price_levels import FixedPath
from experiments.stage import Stage, StageContext
from experiments.stages import STAGE_HELP
from experiments.threads import one_thread

LOG_FILE = "logged.parquet"
TRUTH_CAMPAIGNS = 8
BUDGETED_TRUTHS = 4
"""Campaigns under the cap, played at the prices that the log says exhaust it."""


@one_thread()
def run(ctx: StageContext) -> dict[str, Any]:
    """Compare policies at equal budgets, then evaluate them from one logged campaign."""
    evaluation = ctx.config.evaluate
    arena = Arena(
        prepared=ctx.input("prepare"),
        response=ctx.input("finetune"),
        policy=ctx.input("train"),
        market=ctx.config.market,
        device=ctx.device,
        seed=ctx.seed,
        campaigns=evaluation.campaigns,
    )
    opened = arena.open()
    parts, trained, settings = opened.parts, opened.trained, opened.settings
    market = parts.market
    programme = Programme(
        lineup=core_lineup(market, trained),
        budgets=evaluation.budgets,
        campaigns=evaluation.campaigns,
        frontier_campaigns=min(evaluation.frontier_campaigns, evaluation.campaigns),
        without_lifts=True,
    )
    blocks = programme.blocks()
    campaigns = arena.campaigns + sum(block.plays for block in blocks)
    with ctx.progress("playing judge campaigns", campaigns) as bar:
        workers = default_workers(ctx.device, ctx.threads)
        season = play_season(arena, blocks, workers=workers, folder=ctx.checkpoint, on_campaigns=bar.advance)
    comparison = Comparison(
        programme,
        season,
        market.catalogue,
        parts.panel.profiles[settings[0].users.cpu().numpy()].tolist(),
        n_resamples=evaluation.n_bootstrap,
        seed=ctx.seed_for("intervals"),
    )
    myopic = MyopicUpliftPolicy(market.layout)
    policies: list[Policy] = [NoOfferPolicy(), RandomPolicy(), myopic, trained.policy]
    return {
        **comparison.rows(),
        "sensitivity": comparison.sensitivity(),
        "counterfactual": _counterfactual(market, settings),
        **_off_policy(ctx, market, policies, settings, comparison.price_path()),
    }


def _counterfactual(market: MarketSpec, settings: Sequence[CampaignSetting]) -> list[dict[str, Any]]:
    """What each offer does in a campaign's first week, as the judge worlds know it: mean over campaigns."""
    totals: dict[str, list[list[float]]] = {offer.name: [] for offer in market.catalogue.offers}
    for setting in settings:
        surface = response_surface(open_campaign(market, setting, UNLIMITED_BUDGET))
        for k, found in enumerate(totals.values()):
            shares = ResponseTypes.of(surface.visit[:, 0], surface.visit[:, k]).shares()
            found.append(
                [*shares.values(), float(surface.uplift[:, k].mean()), float(surface.cost[:, k].mean())]
            )
    names = ("persuadable", "sure_thing", "lost_cause", "sleeping_dog", "uplift", "cost")
    return [
        {"offer": offer} | dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))
        for offer, found in totals.items()
    ]


def _off_policy(
    ctx: StageContext,
    market: MarketSpec,
    policies: Sequence[Policy],
    settings: Sequence[CampaignSetting],
    price_path: Sequence[WeekPrices],
) -> dict[str, Any]:
    """Log a campaign of PPO that explores, estimate every policy from it, and simulate the truth.

    It is the log that a shop has which deployed the policy. It says much of policies that act alike, and
    little of others; the verdicts say which.
    """
    evaluation = ctx.config.evaluate
    learned = next(policy for policy in policies if policy.name == LearnedPolicy.name)
    behaviour = ExploringPolicy(learned, evaluation.behaviour_exploration)
    first = settings[0]
    setting = CampaignSetting(
        first.world, first.start, first.users[: evaluation.log_users], ctx.seed_for("logged campaign")
    )
    weeks = log_campaign(behaviour, market, setting, price_path)
    dataset = logged_dataset(weeks, setting, market)
    dataset.save(ctx.folder / LOG_FILE)
    observation = torch.from_numpy(dataset.observation).to(ctx.device)
    mask = torch.from_numpy(dataset.mask).to(ctx.device)
    rows: list[dict[str, Any]] = []
    returns: list[dict[str, Any]] = []
    with ctx.progress("off-policy evaluation", len(policies) * (2 + TRUTH_CAMPAIGNS)) as bar:
        for policy in policies:
            probabilities = policy.probabilities(observation, mask).double().cpu().numpy()
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            truths = []
            for k in range(TRUTH_CAMPAIGNS):
                again = CampaignSetting(
                    setting.world, setting.start, setting.users, ctx.seed_for(f"truth {k}")
                )
                truths.append([part.mean() for part in value_at_prices(policy, market, again, price_path)])
                bar.advance()
            truth = dict(zip(("reward", "cost"), np.mean(truths, axis=0), strict=True))
            for outcome in ("reward", "cost"):
                estimates = evaluate_policy(
                    dataset,
                    probabilities,
                    policy=policy.name,
                    rng=ctx.rng("off-policy evaluation"),
                    outcome=outcome,
                    n_bootstrap=evaluation.n_bootstrap,
                )
                rows += [
                    asdict(estimate) | {"outcome": outcome, "truth": float(truth[outcome])}
                    for estimate in estimates
                ]
                bar.advance()
            found = evaluate_returns(
                dataset,
                probabilities,
                policy=policy.name,
                rng=ctx.rng("distribution of returns"),
                n_bootstrap=evaluation.n_bootstrap,
            )
            returns += [asdict(one) for one in found]
    return {
        "ope": rows,
        "returns": returns,
        "ope_budget": _shared_budget(ctx, market, [learned], dataset, setting, price_path),
        "logged": {
            "behaviour": behaviour.name,
            "steps": dataset.n_steps,
            "users": dataset.n_episodes,
            "dual_price": [week.spend for week in price_path],
            "pressure": [week.pressure for week in price_path],
        },
    }


def _shared_budget(
    ctx: StageContext,
    market: MarketSpec,
    policies: Sequence[Policy],
    dataset: LoggedDataset,
    setting: CampaignSetting,
    price_path: Sequence[WeekPrices],
) -> list[dict[str, Any]]:
    """What policies are worth at budgets that all users share, from the log, and played under the cap."""
    evaluation, n = ctx.config.evaluate, len(setting.users)
    found = values_under_budgets(
        dataset,
        policies,
        market.offers,
        [multiple * ctx.config.market.budget_per_user for multiple in evaluation.budgets],
        rng=ctx.rng("shared budget"),
        n_bootstrap=evaluation.n_bootstrap,
        device=ctx.device,
    )
    by_name = {policy.name: policy for policy in policies}
    rows = []
    for one in found:
        truth = None
        if np.isfinite(one.level):
            pacer = FixedPath(price_path).at_level(one.level)
            played = [
                play(by_name[one.policy], market, again, one.budget * n, pacer).margin.mean()
                for again in (
                    replace(setting, seed=ctx.seed_for(f"truth {k}")) for k in range(BUDGETED_TRUTHS)
                )
            ]
            truth = float(np.mean(played))
        rows.append(one.to_dict() | {"truth": truth})
    return rows


def logged_dataset(
    weeks: Sequence[LoggedWeek], setting: CampaignSetting, market: MarketSpec
) -> LoggedDataset:
    """Lay T logged weeks of n users out as n episodes, one after the other."""
    n, horizon = len(setting.users), len(weeks)

    def episodes(name: str) -> npt.NDArray[Any]:
        stacked = np.stack([getattr(week, name) for week in weeks], axis=1)
        return stacked.reshape(n * horizon, *stacked.shape[2:])

    action = episodes("action")
    probabilities = episodes("probabilities")
    week = np.tile(np.arange(horizon, dtype=np.int64), n)
    return LoggedDataset(
        observation=episodes("observation"),
        action=action,
        mask=episodes("mask"),
        propensity=probabilities[np.arange(len(action)), action],
        reward=episodes("reward"),
        cost=episodes("cost"),
        next_observation=episodes("next_observation"),
        terminated=week == horizon - 1,
        truncated=np.zeros(n * horizon, dtype=np.bool_),
        user=np.repeat(np.arange(n, dtype=np.int64), horizon),
        campaign=np.zeros(n * horizon, dtype=np.int64),
        week=week + market.population.start_weeks[setting.start] + 1,
        dual_price=np.tile(np.array([w.prices.spend for w in weeks]), n),
        observation_names=tuple(market.layout.names()),
        propensity_source="logged",
        behaviour_probabilities=probabilities,
    )


STAGE = Stage(
    name="evaluate",
    folder="evaluation",
    sections=("market", "evaluate"),
    inputs=("prepare", "finetune", "train"),
    run=run,
    help=STAGE_HELP["evaluate"],
)
