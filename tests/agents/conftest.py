"""One exported policy for all tests of export, serving and deciding: the exporter takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents.export import export_policy_graph, write_manifest, write_settings
from agents.offer_network import OfferNetwork, OfferNetworkShape
from agents.visit_value import VisitValue, VisitValueConfig, fit_visit_value
from envs.campaign import Campaign, MarketSpec
from envs.demo_market import demo_market

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Exported:
    """A bundle beside what it was made from."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec


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
    market = demo_market(n_users=64)
    torch.manual_seed(4)
    network = OfferNetwork(OfferNetworkShape(market.population.embedding, len(market.catalogue), 16))
    network.set_scale(torch.from_numpy(market_rows(market)), market.offers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        network.temperature.fill_(0.7)
    folder = tmp_path_factory.mktemp("bundle")
    export_policy_graph(network, folder / "policy.onnx")
    write_settings(
        folder,
        network,
        market.catalogue,
        dual_prices={"0.5": 0.2},
        default_dual_price=0.1,
        provenance={"trained_by": "test"},
    )
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    write_manifest(folder)
    return Exported(folder, network, market)


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
