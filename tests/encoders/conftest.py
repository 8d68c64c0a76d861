"""A random panel small enough to reason about, and a BERT small enough to train in a second."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from encoders.bert import new_pretraining_model
from encoders.panel import Panel
from encoders.weeks import WeekSplit

MakePanel = Callable[..., Panel]


def random_panel(n_users: int = 5, n_categories: int = 4, seed: int = 0, log_weeks: int = 26) -> Panel:
    """Shoppers who visit in 70% of the weeks, twice on average, and buy each category with 40%."""
    rng = np.random.default_rng(seed)
    split = WeekSplit.of_log(log_weeks)
    weeks = split.report_end
    visited = rng.random((n_users, weeks)) < 0.7
    bought = (rng.random((n_users, weeks, n_categories)) < 0.4) & visited[:, :, None]
    trips = (visited * rng.geometric(0.5, visited.shape)).clip(max=255).astype(np.uint8)
    category_spend = (bought * rng.lognormal(1.0, 0.5, bought.shape)).astype(np.float32)
    return Panel(
        user_ids=np.array([f"u{i}" for i in range(n_users)]),
        profiles=np.array(["age 35 , two adults" if i % 2 else "" for i in range(n_users)]),
        categories=np.array([f"FOOD/CAT-{c}" for c in range(n_categories)]),
        departments=np.array(["GROCERY"] * n_categories),
        bought=bought,
        visited=visited,
        trips=trips,
        coupon_used=visited & (rng.random(visited.shape) < 0.3),
        basket_spend=(1.25 * category_spend.sum(axis=2)).astype(np.float32),
        category_spend=category_spend,
        promotion_depth=rng.uniform(0, 0.3, (weeks, n_categories)).astype(np.float32),
        display=rng.uniform(0, 1, (weeks, n_categories)).astype(np.float32),
        mailer=rng.uniform(0, 1, (weeks, n_categories)).astype(np.float32),
        split=split,
    )


@pytest.fixture
def make_panel() -> MakePanel:
    return random_panel


@pytest.fixture
def panel() -> Panel:
    return random_panel()


@pytest.fixture
def make_bert() -> Callable[..., BertForPreTraining]:
    def build(vocabulary: int = 40, seed: int = 0, dropout: float = 0.1) -> BertForPreTraining:
        torch.manual_seed(seed)
        return new_pretraining_model(vocabulary, 1, 16, 2, dropout, max_tokens=32)

    return build
