"""Speed of the market core: user-weeks per second at 120 categories, full baskets, every user deciding."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import FeatureScale, ResponseHeads
from envs.assumptions import AssumedResponse
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.offers import Catalogue
from envs.population import Population
from envs.simulator import Simulator
from experiments.benchmarks import Row, describe_machine

N_CATEGORIES = 120
HORIZON_WEEKS = 8
SIZES = (10_000, 100_000)
REPEATS = 3
BAR = 500_000.0


def benchmark_market(n_users: int, embedding: int = 64, seed: int = 0) -> MarketSpec:
    """Build a market of the size of Complete Journey's with parameters drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    heads = ResponseHeads(0.01 + 0.3 * torch.rand(N_CATEGORIES, generator=generator) ** 2, embedding)
    heads.set_scale(
        FeatureScale(
            category_mean=torch.tensor([-3.0, -2.7, -2.9, 3.1, 0.2, 0.06, 0.06, 0.06, 0.06]),
            category_std=torch.tensor([1.4, 1.1, 1.0, 1.3, 0.3, 0.24, 0.24, 0.24, 0.24]),
            user_mean=torch.tensor([0.1, 0.2, 0.7, 2.2, 3.6, 0.0, 0.0, 0.8, 1.2, 1.2, 1.2, 1.2]),
            user_std=torch.tensor([1.6, 1.4, 1.0, 0.7, 0.9, 1.0, 1.0, 1.1, 1.2, 1.2, 1.2, 1.2]),
        )
    )
    heads.category_match.copy_(torch.randn(N_CATEGORIES, embedding, generator=generator))
    heads.basket_correlation.fill_(0.2)
    heads.other_spend_ratio.fill_(0.23)
    depth, display, mailer, trend = (
        0.1 * torch.rand(HORIZON_WEEKS, N_CATEGORIES, generator=generator) for _ in range(4)
    )
    calendar = PromotionCalendar(depth, display, mailer, trend, torch.zeros(HORIZON_WEEKS))
    empty = HistoryState.empty(n_users, N_CATEGORIES)
    visits = 8.0 * torch.rand(n_users, generator=generator)
    history = replace(
        empty,
        category_recency=1.0 + 20.0 * torch.rand(n_users, N_CATEGORIES, generator=generator),
        category_slow=visits[:, None] * heads.base_rate,
        category_fast=0.4 * visits[:, None] * heads.base_rate,
        visit_recency=1.0 + 2.0 * torch.rand(n_users, generator=generator),
        visits_slow=visits,
        visits_fast=0.4 * visits,
        weeks_slow=torch.full((n_users,), 16.0),
        weeks_fast=torch.full((n_users,), 5.0),
        basket_size=12.0 * visits,
        basket_spend=50.0 * visits,
    )
    population = Population(
        start_weeks=(0,),
        histories=(history,),
        embeddings=torch.randn(1, n_users, embedding, generator=generator),
        calendar=calendar,
    )
    predictor = Simulator(heads, AssumedResponse.central(), 0.28, "benchmark")
    return MarketSpec(population, Catalogue.built_in(), predictor, HORIZON_WEEKS)


def user_weeks_per_second(n_users: int, *, with_predictions: bool) -> float:
    """Play campaigns and return the median rate of all their weeks but the first.

    Args:
        n_users: n.
        with_predictions: also predict slots, uplift and cost of every offer, as a policy needs.
    """
    market = benchmark_market(n_users)
    seconds = []
    for seed in range(REPEATS):
        campaign = Campaign(
            market,
            market.predictor,
            start=0,
            users=torch.arange(n_users),
            budget=UNLIMITED_BUDGET,
            generator=torch.Generator().manual_seed(seed),
        )
        while not campaign.done:
            start = time.perf_counter()
            if with_predictions:
                campaign.step((campaign.state.opted_in & campaign.mask[:, 1]).long())
            else:
                campaign.step_without_offers()
            if campaign.state.week > 1:
                seconds.append(time.perf_counter() - start)
    return n_users / median(seconds)


def run() -> list[Row]:
    """Measure the core alone and with predictions."""
    hardware = describe_machine()
    rows = []
    for n_users in SIZES:
        for with_predictions in (False, True):
            what = "week with predictions of all offers" if with_predictions else "week"
            rows.append(
                Row.compare(
                    f"{what}, {n_users:,} users, {N_CATEGORIES} categories",
                    user_weeks_per_second(n_users, with_predictions=with_predictions),
                    "user-weeks/s",
                    bar=BAR if n_users == max(SIZES) and not with_predictions else None,
                    hardware=hardware,
                )
            )
    return rows
