"""Stage 5: policies judged on held-out simulators, and off-policy estimates checked against the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
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
    play,
    value_at_prices,
)
from envs.campaign import MarketSpec
from experiments.artifacts import POLICY_FILE, POLICY_SHAPE_FILE, MarketParts, load_market, load_module
from experiments.ope.evaluate import evaluate_policy
from experiments.ope.logged_dataset import LoggedDataset
from experiments.stage import Stage, StageContext, StageError
from experiments.stages import STAGE_HELP
from experiments.threads import one_thread

LOG_FILE = "logged.parquet"
TRUTH_CAMPAIGNS = 8
DoubleArray = npt.NDArray[np.float64]


def load_policy(folder: Any) -> tuple[LearnedPolicy, PriceRange]:
    """Load the trained policy and its range of dual prices from the ``train`` stage's folder."""
    content = json.loads((folder / POLICY_SHAPE_FILE).read_text(encoding="utf-8"))
    network = OfferNetwork(OfferNetworkShape(**content["shape"]))
    load_module(network, folder / POLICY_FILE)
    return LearnedPolicy(network), PriceRange(*content["price_range"])


def mean_interval(
    values: DoubleArray, rng: np.random.Generator, n_bootstrap: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling the entries of ``values`` [n] (one per user)."""
    n = len(values)
    means = np.array([values[rng.integers(n, size=n)].mean() for _ in range(n_bootstrap)])
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def judge_settings(ctx: StageContext, parts: MarketParts) -> list[CampaignSetting]:
    """Return the campaigns that every policy plays: judge worlds in turn, judge users, late start weeks."""
    settings = ctx.config.evaluate
    population = parts.market.population
    late = [k for k, week in enumerate(population.start_weeks) if week >= parts.panel.split.train_end]
    if not late:
        raise StageError(
            f"no campaign of {parts.market.horizon_weeks} weeks starts after the training weeks; "
            "lower market.horizon_weeks"
        )
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
    return {**compared, **_off_policy(ctx, market, policies, myopic, settings, path)}


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
            for policy in policies:
                results: list[CampaignResult] = []
                for setting in settings:
                    results.append(play(policy, market, setting, budget, prices))
                    bar.advance()
                gain = np.mean(
                    [result.margin - control for result, control in zip(results, controls, strict=True)],
                    axis=0,
                )
                gains[policy.name] = gain
                low, high = mean_interval(gain, ctx.rng("intervals"), evaluation.n_bootstrap)
                spend = float(np.mean([result.cost.sum() for result in results]))
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
            comparison += _paired(ctx, gains, multiple, n_users)
    return {
        "policies": rows,
        "comparison": comparison,
        "pacing": pacing,
        "offers": offers,
        "price_path": price_path,
    }


def _paired(
    ctx: StageContext, gains: dict[str, DoubleArray], multiple: float, n_users: int
) -> list[dict[str, Any]]:
    """Paired differences of PPO to each other policy, per campaign, with intervals by user."""
    learned = gains[LearnedPolicy.name]
    rows = []
    for name, gain in gains.items():
        if name == LearnedPolicy.name:
            continue
        difference = learned - gain
        low, high = mean_interval(difference, ctx.rng("intervals"), ctx.config.evaluate.n_bootstrap)
        rows.append(
            {
                "name": LearnedPolicy.name,
                "baseline": name,
                "budget_multiple": multiple,
                "difference": float(difference.mean()) * n_users,
                "ci_low": low * n_users,
                "ci_high": high * n_users,
            }
        )
    return rows


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
