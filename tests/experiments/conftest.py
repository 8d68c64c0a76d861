"""A fitted run put together by hand: a small random panel, and response heads of known parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from encoders.history import CATEGORY_FEATURES, USER_FEATURES
from encoders.panel import Panel
from encoders.response import ResponseHeads
from encoders.response_data import ResponseData
from encoders.weeks import WeekSplit
from envs.targeting import FEATURES, TargetingRows
from experiments.backtest.predictions import EmbeddingTable
from experiments.config import RunConfig
from experiments.fitted_run import FittedRun
from experiments.parameter_table import assumed_parameters, fitted_parameters

N, C, D = 9, 5, 4
START_WEEKS = (4, 8, 12, 16)


def small_panel(seed: int = 0) -> Panel:
    """26 weeks of a log, 21 of them unlocked."""
    rng = np.random.default_rng(seed)
    split = WeekSplit.of_log(26)
    weeks = split.report_end
    trips = rng.integers(0, 4, (N, weeks)).astype(np.uint8)
    visited = trips > 0
    bought = (rng.random((N, weeks, C)) < np.linspace(0.1, 0.7, C)) & visited[:, :, None]
    spend = (bought * rng.lognormal(1.0, 0.5, bought.shape)).astype(np.float32)
    return Panel(
        user_ids=np.array([f"{'ab' if i < 2 else f'c{i}'}{i}0" for i in range(N)]),
        profiles=np.array(["age 35 , two adults" if i % 2 else "" for i in range(N)]),
        categories=np.array([f"FOOD/CAT-{c}" for c in range(C)]),
        departments=np.array(["GROCERY"] * C),
        bought=bought,
        visited=visited,
        trips=trips,
        coupon_used=visited & (rng.random(visited.shape) < 0.1),
        basket_spend=(1.25 * spend.sum(axis=2)).astype(np.float32),
        category_spend=spend,
        promotion_depth=rng.uniform(0, 0.3, (weeks, C)).astype(np.float32),
        display=rng.uniform(0, 1, (weeks, C)).astype(np.float32),
        mailer=rng.uniform(0, 1, (weeks, C)).astype(np.float32),
        split=split,
    )


def known_heads(seed: int = 0) -> ResponseHeads:
    """Heads in which every parameter matters and no response saturates."""
    generator = torch.Generator().manual_seed(seed)
    heads = ResponseHeads(torch.linspace(0.1, 0.6, C), D)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        heads.category_match.copy_(torch.randn(C, D, generator=generator))
        heads.category_std.copy_(torch.linspace(0.8, 1.2, len(CATEGORY_FEATURES)))
        heads.user_std.copy_(torch.linspace(0.8, 1.2, len(USER_FEATURES)))
        heads.calibration.copy_(torch.tensor([[0.8, -0.1], [1.2, 0.1]]))
        heads.basket_loadings[:, 0] = 0.1**0.5
        heads.other_spend_ratio.fill_(0.25)
    return heads.eval().requires_grad_(False)


def small_targeting() -> TargetingRows:
    """Users 0 and 1 in campaigns of weeks 3 and 10, user 0 also in one of week 20; two redemptions."""
    user = np.array([0, 1, 0, 1, 0])
    return TargetingRows(
        user=user,
        campaign=np.array([1, 1, 0, 0, 2]),
        start_week=np.array([10, 10, 3, 3, 20]),
        days_seen=np.full(5, 14),
        fully_seen=np.ones(5, dtype=np.bool_),
        features=np.zeros((5, len(FEATURES))),
        redeemed=np.array([True, False, False, False, True]),
        campaign_ids=np.array(["early", "middle", "late"]),
        n_weeks=21,
    )


@pytest.fixture
def fitted_run() -> FittedRun:
    panel, heads = small_panel(), known_heads()
    generator = torch.Generator().manual_seed(7)
    embedding = torch.randn(len(START_WEEKS), N, D, generator=generator)
    redeemed = np.array([True, False, False, False])
    vocabulary = {"[UNK]": 0, "food": 1}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return FittedRun(
        config=RunConfig(),
        panel=panel,
        heads=heads,
        embeddings=EmbeddingTable(np.array(START_WEEKS), embedding),
        targeting=small_targeting(),
        tokenizer=tokenizer,
        response={
            "fitted": fitted_parameters(heads, ResponseData.of_panel(panel), redeemed),
            "assumed": assumed_parameters(),
        },
    )
