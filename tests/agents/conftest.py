"""One exported policy for all tests of export, serving and deciding: the exporter takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents.bundle_writer import PolicyFacts, write_manifest, write_settings, write_tables
from agents.export import (
    export_encoder_graph,
    export_network_graph,
    export_policy_graph,
    quantise_encoder_graph,
)
from agents.offer_network import OfferNetwork, OfferNetworkShape
from agents.serving.pacing import BudgetPlan, PlannedWeek
from agents.state_rows import StateRows
from agents.visit_value import VisitValue, VisitValueConfig, fit_visit_value
from encoders.bert import EnsembleEncoder, TextEncoder, new_pretraining_model, train_wordpiece
from encoders.calendar import PromotionCalendar
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.user_encoder import UserEncoder
from encoders.user_text import UserTextStyle, UserTextWriter, user_texts
from encoders.weeks import WeekSplit
from envs.campaign import Campaign, MarketSpec
from envs.demo_market import EMBEDDING, N_CATEGORIES, demo_market
from envs.population import Population

Rows = npt.NDArray[np.float32]


N_USERS = 64
LOG_WEEKS = 30
HORIZON_WEEKS = 5
PLANS = (
    BudgetPlan(0.05, tuple(PlannedWeek(0.01, 4.0, 0.5) for _ in range(HORIZON_WEEKS))),
    BudgetPlan(0.5, tuple(PlannedWeek(0.1, 0.2 + 0.1 * k, 0.1 * k) for k in range(HORIZON_WEEKS))),
)


@dataclass(frozen=True)
class Exported:
    """A bundle beside what it was made from."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec
    panel: Panel
    user_encoder: UserEncoder


def shop_panel() -> Panel:
    """Users who visit in 70% of the weeks and buy each category with 25%; one bought nothing modelled."""
    rng = np.random.default_rng(1)
    split = WeekSplit.of_log(LOG_WEEKS)
    shape = (N_USERS, split.report_end)
    visited = rng.random(shape) < 0.7
    bought = (rng.random((*shape, N_CATEGORIES)) < 0.25) & visited[:, :, None]
    bought[3] = False
    spend = np.round(bought * rng.lognormal(1.0, 0.5, bought.shape), 2).astype(np.float32)
    return Panel(
        user_ids=np.array([f"u{k}" for k in range(N_USERS)]),
        profiles=np.array(["age 35-44, income under 25K" if k % 2 else "" for k in range(N_USERS)]),
        categories=np.array([f"FOOD/KIND-{chr(65 + c)}" for c in range(N_CATEGORIES)]),
        departments=np.array(["GROCERY"] * N_CATEGORIES),
        bought=bought,
        visited=visited,
        trips=(visited * rng.geometric(0.5, shape)).clip(max=255).astype(np.uint8),
        coupon_used=visited & (rng.random(shape) < 0.2),
        basket_spend=(spend.sum(axis=2) + visited * 1.25).astype(np.float32),
        category_spend=spend,
        promotion_depth=rng.uniform(0, 0.3, (shape[1], N_CATEGORIES)).astype(np.float32),
        display=rng.uniform(0, 0.5, (shape[1], N_CATEGORIES)).astype(np.float32),
        mailer=rng.uniform(0, 0.5, (shape[1], N_CATEGORIES)).astype(np.float32),
        split=split,
    )


def shop_encoder(panel: Panel) -> UserEncoder:
    style = UserTextStyle(max_items=8, recent_items=3)
    texts = user_texts(panel, panel.n_weeks, style)
    tokenizer = train_wordpiece(texts, 200)
    torch.manual_seed(0)
    bert = new_pretraining_model(tokenizer.get_vocab_size(), 2, 16, 2, 0.0, max_tokens=48).bert
    encoder = EnsembleEncoder([TextEncoder(bert, EMBEDDING)]).eval()
    return UserEncoder(UserTextWriter.of_panel(panel, style), tokenizer, encoder, max_tokens=48)


def shop_market(panel: Panel, encoder: UserEncoder) -> MarketSpec:
    """The demo's offers and response model with the panel's users, at a start from which the log goes on."""
    tape, start = HistoryTape.of_panel(panel), panel.n_weeks - HORIZON_WEEKS
    history = tape.week(start)
    population = Population(
        start_weeks=(start,),
        histories=(history,),
        embeddings=encoder.embed(history, range(panel.n_users), start + 1)[None],
        calendar=PromotionCalendar.of_panel(panel),
    )
    demo = demo_market(n_users=2)
    return MarketSpec(population, demo.catalogue, demo.predictor, HORIZON_WEEKS)


def market_rows(market: MarketSpec, n_weeks: int = 4) -> Rows:
    """Observations of a few weeks in which random offers were sent, at many dual prices."""
    generator = torch.Generator().manual_seed(0)
    n = market.population.n_users
    running = Campaign(market, market.predictor, start=0, users=torch.arange(n), budget=1e5, seed=0)
    rows = []
    for _ in range(n_weeks):
        rows.append(running.observation(torch.exp(torch.empty(n).uniform_(-5, 3, generator=generator))))
        running.step(torch.multinomial(running.mask.float(), 1, generator=generator)[:, 0])
    return torch.cat(rows).numpy()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    panel = shop_panel()
    encoder = shop_encoder(panel)
    market = shop_market(panel, encoder)
    torch.manual_seed(4)
    network = OfferNetwork(OfferNetworkShape(market.population.embedding, len(market.catalogue), 16))
    network.set_scale(torch.from_numpy(market_rows(market)), market.offers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        network.temperature.fill_(0.7)
    folder = tmp_path_factory.mktemp("bundle")
    running = Campaign(market, market.predictor, start=0, users=torch.arange(2), budget=1.0, seed=0)
    export_policy_graph(
        market.shop, network, StateRows.of_campaign(running, torch.ones(2)), folder / "policy.onnx"
    )
    export_network_graph(network, folder / "network.onnx")
    export_encoder_graph(encoder.encoder, folder / "encoder.onnx")
    quantise_encoder_graph(folder / "encoder.onnx", folder / "encoder.int8.onnx")
    encoder.tokenizer.no_truncation()
    (folder / "tokenizer.json").write_text(encoder.tokenizer.to_str(), encoding="utf-8")
    items = np.array([f"i{c:02d}{k}" for c in range(N_CATEGORIES) for k in range(3)])
    write_tables(folder, panel, market.population.calendar, items, np.repeat(np.arange(N_CATEGORIES), 3))
    facts = PolicyFacts(
        market=market,
        panel=panel,
        columns=market.layout.names(),
        style=encoder.writer.style,
        max_tokens=encoder.max_tokens,
        plans=PLANS,
        default_budget_per_user=0.5,
        provenance={"trained_by": "test"},
    )
    write_settings(folder, facts)
    write_manifest(folder)
    return Exported(folder, network, market, panel, encoder)


@pytest.fixture(scope="session")
def rows(exported: Exported) -> Rows:
    """[256, o] observations as the market shows them."""
    return market_rows(exported.market)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the bundle that a test may damage."""
    count = 0

    def copy() -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"copy-{count}"
        folder.mkdir()
        for path in exported.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return copy


@pytest.fixture(scope="session")
def fitted() -> tuple[MarketSpec, VisitValue]:
    """A market in which visits matter, and what they are worth in it."""
    market = demo_market(n_users=48, horizon_weeks=5)
    config = VisitValueConfig(rows=40_000, n_users=2000, batch_size=1000, learning_rate=1e-2)
    return market, fit_visit_value(
        market, [market.predictor], [0], users=torch.arange(48), seed=0, config=config
    )
