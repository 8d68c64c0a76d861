"""Stage 6: policies judged on held-out simulators, and off-policy estimates checked against the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.offer_network import LearnedPolicy, OfferNetwork, OfferNetworkShape
from agents.pacing import PriceRange
from agents.policy import ExploringPolicy, MyopicUpliftPolicy, NoOfferPolicy, Policy, RandomPolicy
from agents.rollout import (
    CampaignResult,
    CampaignSetting,
    LoggedWeek,
    control_margin,
    log_campaign,
    open_campaign,
    play,
    value_at_prices,
)
from envs.campaign import UNLIMITED_BUDGET, MarketSpec
from envs.counterfactual import ResponseTypes, response_surface
from experiments.artifacts import (
    POLICY_FILE,
    POLICY_SHAPE_FILE,
    MarketParts,
    late_starts,
    load_market,
    load_module,
)
from experiments.ope.evaluate import evaluate_policy
from experiments.ope.logged_dataset import LoggedDataset
from experiments.stage import Stage, StageContext
from experiments.stages import STAGE_HELP
from experiments.threads import one_thread

LOG_FILE = "logged.parquet"
TRUTH_CAMPAIGNS = 8
DoubleArray = npt.NDArray[np.float64]


def load_policy(folder: Path) -> tuple[LearnedPolicy, PriceRange]:
    """Load the trained policy and its range of dual prices from the ``train`` stage's folder."""
    content = json.loads((folder / POLICY_SHAPE_FILE).read_text(encoding="utf-8"))
    network = OfferNetwork(OfferNetworkShape(**content["shape"]))
    load_module(network, folder / POLICY_FILE)
    return LearnedPolicy(network), PriceRange(*content["price_range"])


def world_means(gains: DoubleArray, world: npt.NDArray[np.int64]) -> DoubleArray:
    """Return each user's mean gain in each world, [W, n], from campaigns [campaigns, n] and their worlds."""
    return np.stack([gains[world == w].mean(axis=0) for w in np.unique(world)])


def two_level_interval(
    by_world: DoubleArray, rng: np.random.Generator, n_bootstrap: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over worlds and users.

    Worlds are resampled, then users: what is assumed differs between worlds, and a policy's margin depends
    more on that than on who the users are. With few worlds the interval is rough, but not blind to them.

    Args:
        by_world: [W, n] mean gain of each user in each world.
        rng: source of the resamples.
        n_bootstrap: number of resamples.
        confidence: of the interval.
    """
    n_worlds, n = by_world.shape
    means = np.array(
        [
            by_world[rng.integers(n_worlds, size=n_worlds)].mean(axis=0)[rng.integers(n, size=n)].mean()
            for _ in range(n_bootstrap)
        ]
    )
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def judge_settings(ctx: StageContext, parts: MarketParts) -> list[CampaignSetting]:
    """Return the campaigns that every policy plays: judge worlds in turn, judge users, late start weeks."""
    settings = ctx.config.evaluate
    population = parts.market.population
    late = late_starts(parts)
    users = parts.judge_users
    wanted = ctx.config.market.n_users
    if wanted:
        chosen = ctx.rng("users").permutation(len(users))[:wanted]
        users = users[torch.from_numpy(np.sort(chosen)).to(users.device)]
    device = population.embeddings.device
    return [
        CampaignSetting(
            world=parts.judge_worlds[k % len(parts.judge_worlds)],
            start=late[k % len(late)],
            users=users.to(device),
            seed=ctx.seed_for(f"campaign {k}"),
        )
        for k in range(settings.campaigns)
    ]


@one_thread()
def run(ctx: StageContext) -> dict[str, Any]:
    """Compare policies at equal budgets, then evaluate them from one logged campaign."""
    parts = load_market(ctx.input("prepare"), ctx.input("finetune"), ctx.config.market, ctx.device)
    learned, prices = load_policy(ctx.input("train"))
    learned.network.to(ctx.device)
    market = parts.market
    myopic = MyopicUpliftPolicy(market.layout)
    policies: list[Policy] = [NoOfferPolicy(), RandomPolicy(), myopic, learned]
    settings = judge_settings(ctx, parts)
    compared = _compare(ctx, market, policies, settings, prices)
    path = compared.pop("price_path")
    sensitivity = _sensitivity(ctx, market, learned, settings, prices)
    return {
        **compared,
        "sensitivity": sensitivity,
        "counterfactual": _counterfactual(market, settings),
        **_off_policy(ctx, market, policies, myopic, settings, path),
    }


def _compare(
    ctx: StageContext,
    market: MarketSpec,
    policies: Sequence[Policy],
    settings: Sequence[CampaignSetting],
    prices: PriceRange,
) -> dict[str, Any]:
    """Play every campaign with every policy at every budget, under common random numbers."""
    evaluation = ctx.config.evaluate
    n_users = len(settings[0].users)
    names = [setting.world.name for setting in settings]
    world = np.array([names.index(name) for name in names])
    rows: list[dict[str, Any]] = []
    comparison: list[dict[str, Any]] = []
    pacing: list[dict[str, Any]] = []
    offers: list[dict[str, Any]] = []
    price_path: list[float] = []
    # The log is made at the price path of the budget nearest to the configured one.
    logged_multiple = min(evaluation.budgets, key=lambda multiple: abs(multiple - 1.0))
    plays = len(settings) * (1 + len(policies) * len(evaluation.budgets))
    with ctx.progress("playing judge campaigns", plays) as bar:
        controls = []
        for setting in settings:
            controls.append(control_margin(market, setting))
            bar.advance()
        for multiple in evaluation.budgets:
            budget = ctx.config.market.budget_per_user * multiple * n_users
            gains: dict[str, DoubleArray] = {}
            spends: dict[str, float] = {}
            for policy in policies:
                results: list[CampaignResult] = []
                for setting in settings:
                    results.append(play(policy, market, setting, budget, prices))
                    bar.advance()
                gain = world_means(
                    np.array([r.margin - control for r, control in zip(results, controls, strict=True)]),
                    world,
                )
                gains[policy.name] = gain
                low, high = two_level_interval(gain, ctx.rng("intervals"), evaluation.n_bootstrap)
                spend = float(np.mean([result.cost.sum() for result in results]))
                spends[policy.name] = spend
                weekly = np.mean([result.weekly_spend for result in results], axis=0)
                path = np.exp(np.mean([np.log(result.dual_price) for result in results], axis=0))
                rows.append(
                    {
                        "name": policy.name,
                        "lambda": float(np.exp(np.log(path).mean())),
                        "budget_multiple": multiple,
                        "budget": budget,
                        "spend": spend,
                        "utilisation": spend / budget,
                        "incremental_margin": float(gain.mean()) * n_users,
                        "ci_low": low * n_users,
                        "ci_high": high * n_users,
                        "world_low": float(gain.mean(axis=1).min()) * n_users,
                        "world_high": float(gain.mean(axis=1).max()) * n_users,
                        "n_users": n_users,
                        "campaigns": len(settings),
                        "refused": int(np.sum([result.refused for result in results])),
                        "peak_commitment_share": max(result.peak_commitment for result in results) / budget,
                    }
                )
                pacing.append(
                    {
                        "policy": policy.name,
                        "budget_multiple": multiple,
                        "planned": [budget / len(weekly)] * len(weekly),
                        "spend": weekly.tolist(),
                        "dual_price": path.tolist(),
                    }
                )
                sent = np.sum([result.offers_sent for result in results], axis=0)
                offers += [
                    {
                        "policy": policy.name,
                        "budget_multiple": multiple,
                        "offer": offer.name,
                        "share": float(count / sent.sum()),
                    }
                    for offer, count in zip(market.catalogue.offers, sent, strict=True)
                ]
                if isinstance(policy, LearnedPolicy) and multiple == logged_multiple:
                    price_path = path.tolist()
            comparison += _paired(ctx, gains, spends, multiple, n_users)
    return {
        "policies": rows,
        "comparison": comparison,
        "pacing": pacing,
        "offers": offers,
        "price_path": price_path,
    }


def _paired(
    ctx: StageContext,
    gains: dict[str, DoubleArray],
    spends: dict[str, float],
    multiple: float,
    n_users: int,
) -> list[dict[str, Any]]:
    """Paired differences of PPO to each other policy, per campaign, and how their spends compare."""
    learned = gains[LearnedPolicy.name]
    rows = []
    for name, gain in gains.items():
        if name == LearnedPolicy.name:
            continue
        difference = learned - gain
        low, high = two_level_interval(difference, ctx.rng("intervals"), ctx.config.evaluate.n_bootstrap)
        spent = spends[LearnedPolicy.name]
        rows.append(
            {
                "name": LearnedPolicy.name,
                "baseline": name,
                "budget_multiple": multiple,
                "difference": float(difference.mean()) * n_users,
                "ci_low": low * n_users,
                "ci_high": high * n_users,
                "spend_share": spends[name] / spent if spent > 0 else None,
            }
        )
    return rows


def _sensitivity(
    ctx: StageContext,
    market: MarketSpec,
    learned: Policy,
    settings: Sequence[CampaignSetting],
    prices: PriceRange,
) -> list[dict[str, Any]]:
    """Play the judge campaigns again in worlds where messages and coupons bring no visits."""
    n_users = len(settings[0].users)
    budget = ctx.config.market.budget_per_user * n_users

    def mean_gain(campaigns: Sequence[CampaignSetting]) -> float:
        gains = [
            (play(learned, market, setting, budget, prices).margin - control_margin(market, setting)).sum()
            for setting in campaigns
        ]
        return float(np.mean(gains))

    without = [
        replace(
            setting,
            world=replace(
                setting.world, assumed=replace(setting.world.assumed, message_lift=0.0, coupon_lift=0.0)
            ),
        )
        for setting in settings
    ]
    with ctx.progress("checking what is assumed", 2) as bar:
        baseline = mean_gain(settings)
        bar.advance()
        remaining = mean_gain(without)
        bar.advance()
    return [
        {
            "policy": learned.name,
            "assumption": "messages and coupons bring no visits",
            "incremental_margin": remaining,
            "baseline_margin": baseline,
            "n_users": n_users,
        }
    ]


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
    myopic: Policy,
    settings: Sequence[CampaignSetting],
    price_path: Sequence[float],
) -> dict[str, Any]:
    """Log a campaign with an exploring policy, estimate every policy from it, and simulate the truth."""
    evaluation = ctx.config.evaluate
    behaviour = ExploringPolicy(myopic, evaluation.behaviour_exploration)
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
    return {
        "ope": rows,
        "logged": {
            "behaviour": behaviour.name,
            "steps": dataset.n_steps,
            "users": dataset.n_episodes,
            "dual_price": list(price_path),
        },
    }


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
        dual_price=np.tile(np.array([w.dual_price for w in weeks]), n),
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
