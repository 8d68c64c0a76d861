"""A small market with parameters written down here: for `gymnasium.make`, tests and first steps.

Nothing in it is fitted and no figure from it means anything for a shop; it has the shape of a real one.
"""

from __future__ import annotations

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import CATEGORY_FEATURES, USER_FEATURES, HistoryState
from encoders.response import FeatureScale, ResponseHeads
from envs.assumptions import AssumedResponse
from envs.campaign import MarketSpec
from envs.offers import Catalogue
from envs.population import Population
from envs.simulator import Simulator

N_CATEGORIES = 12
EMBEDDING = 4
N_WEEKS = 24
MARGIN_RATE = 0.28


def demo_heads() -> ResponseHeads:
    """Return response heads with hand-set parameters: base rates 5-35%, θ = 2, spend around 3."""
    heads = ResponseHeads(torch.linspace(0.35, 0.05, N_CATEGORIES), EMBEDDING)
    heads.set_scale(
        FeatureScale(
            category_mean=torch.tensor([-2.0, -2.0, -2.0, 2.0, 0.3, 0.1, 0.1, 0.1, 0.1]),
            category_std=torch.ones(len(CATEGORY_FEATURES)),
            user_mean=torch.tensor([0.0, 0.0, 0.7, 1.5, 3.0, 0.0, 0.0, 1.0, 0.8, 0.8, 0.8, 0.8]),
            user_std=torch.ones(len(USER_FEATURES)),
        )
    )
    with torch.no_grad():
        heads.visit_user[2] = -0.2
        heads.purchase_embedding[:, 0] = 0.3
        heads.redemption_bias.fill_(-1.5)
        heads.basket_loadings[:, 0] = 0.15**0.5
        heads.other_spend_ratio.fill_(0.2)
    return heads


def demo_market(n_users: int = 64, horizon_weeks: int = 8, seed: int = 0) -> MarketSpec:
    """Build the demo market.

    Args:
        n_users: n.
        horizon_weeks: length of a campaign.
        seed: of the users' histories and the calendar.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = demo_heads()
    calendar = PromotionCalendar(
        depth=0.2 * torch.rand(N_WEEKS, N_CATEGORIES, generator=generator),
        display=0.1 * torch.rand(N_WEEKS, N_CATEGORIES, generator=generator),
        mailer=0.1 * torch.rand(N_WEEKS, N_CATEGORIES, generator=generator),
        category_trend=torch.zeros(N_WEEKS, N_CATEGORIES),
        visit_trend=torch.zeros(N_WEEKS),
        month_start=torch.zeros(N_WEEKS),
    )
    state = HistoryState.empty(n_users, N_CATEGORIES)
    visit_rate = 0.2 + 0.7 * torch.rand(n_users, generator=generator)
    taste = heads.base_rate * (0.4 + 1.2 * torch.rand(n_users, N_CATEGORIES, generator=generator))
    for _ in range(N_WEEKS - horizon_weeks):
        visited = torch.rand(n_users, generator=generator) < visit_rate
        bought = (torch.rand(n_users, N_CATEGORIES, generator=generator) < taste) & visited[:, None]
        state = state.advance(visited, bought, 4.0 * bought.sum(dim=1), coupon_used=torch.zeros_like(visited))
    population = Population(
        start_weeks=(N_WEEKS - horizon_weeks,),
        histories=(state,),
        embeddings=torch.randn(1, n_users, EMBEDDING, generator=generator),
        calendar=calendar,
    )
    predictor = Simulator(heads, AssumedResponse.central(), MARGIN_RATE, "demo")
    return MarketSpec(population, Catalogue.built_in(), predictor, horizon_weeks)
