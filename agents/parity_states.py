"""States to compare two runtimes on: what markets show, dealt out anew, and the edges of what may occur."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from agents.serving.columns import CALENDAR_ROWS, USER_COLUMNS, WEEK_COLUMNS
from agents.state_rows import StateRows
from encoders.history import HistoryState
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.offers import MOST_REMEMBERED_WEEKS

PRICES = (1e-3, 1e3)
EDGE_PRICES = (1e-8, 1.0, 1e8)
EDGE_SHARE = 0.3


def market_states(
    market: MarketSpec, count: int, rng: np.random.Generator, rows: int = 500
) -> list[StateRows]:
    """Return at least ``count`` users of campaigns in which random offers were sent, at random prices.

    Args:
        market: whose users.
        count: N.
        rng: source of all chance.
        rows: most users in a part; each part is of one week.
    """
    population, found, n = market.population, [], 0
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    while n < count:
        start = int(rng.integers(len(population.start_weeks)))
        users = torch.from_numpy(np.sort(rng.permutation(population.n_users)[:rows]))
        seed = int(rng.integers(2**31))
        campaign = Campaign(
            market, market.predictor, start=start, users=users, budget=UNLIMITED_BUDGET, seed=seed
        )
        while not campaign.done and n < count:
            low, high = np.log(PRICES)
            price = torch.from_numpy(np.exp(rng.uniform(low, high, len(users))).astype(np.float32))
            pressure = torch.from_numpy(rng.random(len(users), dtype=np.float32))
            found.append(StateRows.of_campaign(campaign, price, pressure))
            n += len(users)
            campaign.step(torch.multinomial(campaign.mask.float(), 1, generator=generator)[:, 0])
    return found


def edge_states(rows: StateRows, horizon_weeks: int, rng: np.random.Generator) -> StateRows:
    """Return as many users at the edges of what may occur.

    Histories stay whole, and go to others' embeddings and memories. Some users are new, some buy everything
    every week; fatigue, opt-in, messages, coupons, prices and the week are at their ends more often than not.

    Args:
        rows: of a market.
        horizon_weeks: longest campaign.
        rng: source of all chance.
    """
    n, n_categories = rows.category_slow.shape

    def dealt(values: torch.Tensor) -> torch.Tensor:
        return values[torch.from_numpy(rng.permutation(n))]

    def some() -> torch.Tensor:
        return torch.from_numpy(rng.random(n) < EDGE_SHARE)

    def one_of(*values: float) -> torch.Tensor:
        return torch.from_numpy(rng.choice(np.array(values, dtype=np.float32), n))

    user = rows.user.clone()
    history = {
        name: getattr(rows, name).clone()
        for name in ("category_recency", "category_slow", "category_fast", "recent")
    }
    for extreme in (HistoryState.empty(n, n_categories), _everything_always(n, n_categories)):
        chosen = some()
        for name, values in history.items():
            values[chosen] = getattr(extreme, name)[chosen]
        columns = [getattr(extreme, name) for name in USER_COLUMNS if hasattr(extreme, name)]
        whole = torch.cat([torch.stack(columns, dim=1), extreme.recent_baskets], dim=1)
        user[chosen, : whole.shape[1]] = whole[chosen]
    place = {name: k for k, name in enumerate(USER_COLUMNS)}
    memory = slice(place["fatigue"], len(USER_COLUMNS))
    user[:, memory] = dealt(user[:, memory])
    edges = some()
    user[edges, place["fatigue"]] = one_of(0.0, 1.0)[edges]
    user[edges, place["opted_in"]] = one_of(0.0, 1.0)[edges]
    held = one_of(0.0, 1.0, 30.0)
    user[edges, place["coupon_weeks_left"]] = held[edges]
    user[edges, place["coupon_depth"]] = (one_of(0.01, 0.99) * (held > 0))[edges]
    messages = dealt(rows.messages)
    every_week = (1 << MOST_REMEMBERED_WEEKS) - 1
    messages[edges] = torch.from_numpy(rng.choice([0, 1, every_week], n))[edges]
    deal = torch.from_numpy(rng.permutation(n))
    price = torch.stack([one_of(*EDGE_PRICES), one_of(0.0, 0.5, 1.0)], dim=1)
    calendar = rows.calendar * torch.from_numpy(
        rng.choice([0.0, 1.0, 3.0], rows.calendar.shape).astype(np.float32)
    )
    calendar[: CALENDAR_ROWS.index("category_trend")].clamp_(max=1.0)
    week = rows.week.clone()
    week[WEEK_COLUMNS.index("weeks_left")] = float(rng.choice([1, 2, horizon_weeks]))
    return replace(
        rows,
        **history,
        user=user,
        messages=messages,
        deal_category=rows.deal_category[deal],
        deal_depth=rows.deal_depth[deal],
        deal_weeks_ago=rows.deal_weeks_ago[deal],
        embedding=dealt(rows.embedding),
        price=price,
        calendar=calendar,
        week=week,
        available=torch.tensor([int(rng.choice([0, 5_000, 2**62]))]),
    )


def _everything_always(n: int, n_categories: int) -> HistoryState:
    """Users who bought every category in every week of two years, on seven trips and for a fortune."""
    state = HistoryState.empty(n, n_categories)
    everyone = torch.ones(n, dtype=torch.bool)
    for _ in range(104):
        state = state.advance(
            torch.full((n,), 7.0),
            torch.ones(n, n_categories, dtype=torch.bool),
            torch.full((n,), 1e4),
            coupon_used=everyone,
        )
    return state
