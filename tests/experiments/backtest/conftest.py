"""A panel drawn from response heads that are known, small enough for seconds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from encoders.panel import Panel
from encoders.response import PROMOTION_UNIT, ResponseHeads
from encoders.response_data import ResponseData
from encoders.weeks import WeekSplit
from experiments.backtest.predictions import EmbeddingTable

C = 6
VISIT_LOGIT = 0.4
DEPTH, DISPLAY, MAILER = 2.0, 0.8, 0.5


def true_heads(embedding: int = 0) -> ResponseHeads:
    """Heads that know no history: constant visits, category levels, and promotion effects of known size."""
    heads = ResponseHeads(torch.full((C,), 0.2), embedding)
    with torch.no_grad():
        heads.visit_bias.fill_(VISIT_LOGIT)
        heads.purchase_bias.copy_(torch.linspace(-2.5, -0.5, C))
        heads.depth_level.fill_(float(np.log(np.expm1(DEPTH * PROMOTION_UNIT))))
        heads.display_effect.fill_(DISPLAY * PROMOTION_UNIT)
        heads.mailer_effect.fill_(MAILER * PROMOTION_UNIT)
    return heads


def drawn_data(
    n_users: int = 60, log_weeks: int = 40, seed: int = 0, visit_spread: float = 0.0
) -> ResponseData:
    """A panel in which :func:`true_heads` hold exactly, up to users' own visit levels if these spread."""
    rng = np.random.default_rng(seed)
    split = WeekSplit.of_log(log_weeks)
    weeks = split.report_end
    depth = rng.uniform(0, 0.4, (weeks, C)).astype(np.float32)
    display = rng.uniform(0, 1, (weeks, C)).astype(np.float32)
    mailer = rng.uniform(0, 1, (weeks, C)).astype(np.float32)
    level = VISIT_LOGIT + visit_spread * rng.standard_normal((n_users, 1))
    visited = rng.random((n_users, weeks)) < 1 / (1 + np.exp(-level))
    logit = np.linspace(-2.5, -0.5, C) + DEPTH * depth + DISPLAY * display + MAILER * mailer
    bought = (rng.random((n_users, weeks, C)) < 1 / (1 + np.exp(-logit))) & visited[:, :, None]
    spend = (2.0 * bought).astype(np.float32)
    panel = Panel(
        user_ids=np.array([f"u{i}" for i in range(n_users)]),
        profiles=np.array([""] * n_users),
        categories=np.array([f"FOOD/CAT-{c}" for c in range(C)]),
        departments=np.array(["GROCERY"] * C),
        bought=bought,
        visited=visited,
        trips=visited.astype(np.uint8),
        coupon_used=np.zeros_like(visited),
        basket_spend=spend.sum(axis=2) + visited.astype(np.float32),
        category_spend=spend,
        promotion_depth=depth,
        display=display,
        mailer=mailer,
        split=split,
    )
    return ResponseData.of_panel(panel)


def blank_embeddings(data: ResponseData, width: int = 0) -> EmbeddingTable:
    """Embeddings of zeros at weeks 5, 9, 13, ... of the log."""
    starts = np.arange(4, data.panel.n_weeks, 4)
    return EmbeddingTable(starts, torch.zeros(len(starts), data.panel.n_users, width))


@pytest.fixture
def heads() -> ResponseHeads:
    return true_heads()


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ResponseData]:
    return drawn_data


@pytest.fixture(scope="session")
def data() -> ResponseData:
    return drawn_data()


@pytest.fixture
def embeddings(data: ResponseData) -> EmbeddingTable:
    return blank_embeddings(data)
