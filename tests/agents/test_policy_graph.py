"""The exported graph against the market's own code, the market's taken to float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from scipy.special import ndtr

from agents.export import export_policy_graph
from agents.normal_cdf import normal_cdf
from agents.offer_network import LearnedPolicy, OfferNetwork, OfferNetworkShape
from agents.parity import Parity, policy_parity
from agents.parity_states import edge_states, market_states
from agents.policy_graph import PolicyGraph
from agents.serving.columns import HISTORY_COLUMNS, INPUTS, OUTPUTS, USER_COLUMNS
from agents.state_rows import StateRows
from encoders.history import RECENT_BASKETS, HistoryState
from encoders.scratch import Scratch
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.market import action_mask
from envs.observation import Recommender, observe, predict
from envs.offers import Catalogue

Values = TypeVar("Values")


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec


@contextmanager
def in_float64() -> Iterator[None]:
    """The market's code computes in float64 here, whatever it asks for."""
    with pytest.MonkeyPatch.context() as patch:
        plain = Scratch.__call__

        def doubled(
            self: Scratch, name: str, rows: int, columns: int, *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            if not args and "dtype" not in kwargs:
                kwargs["dtype"] = torch.float64
            return plain(self, name, rows, columns, *args, **kwargs)

        patch.setattr(Scratch, "__call__", doubled)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def doubled(values: Values) -> Values:
    """A dataclass of tensors with its float32 fields in float64."""
    new = {}
    for f in fields(values):  # type: ignore[arg-type]
        value = getattr(values, f.name)
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            new[f.name] = value.double()
    return replace(values, **new)  # type: ignore[type-var]


def market_answer(
    campaign: Campaign, network: OfferNetwork, price: torch.Tensor, pressure: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities, slots and observation as the market and the policy have them, in float64."""
    state, spec = campaign.state, campaign.spec
    precise = replace(
        doubled(state),
        history=doubled(state.history),
        coupons=doubled(state.coupons),
        deals=doubled(state.deals),
    )
    with in_float64():
        predictor = replace(spec.predictor, heads=copy.deepcopy(spec.predictor.heads).double())
        shop = replace(spec.shop, predictor=predictor)
        mask = action_mask(precise, shop.offers)
        prediction = predict(precise, shop, doubled(campaign.calendar), campaign.weeks_left)
        rows = observe(prediction, precise.embedding, mask, price.double(), pressure.double())
        policy = LearnedPolicy(copy.deepcopy(network).double())
        return policy.probabilities(rows, mask), prediction.slots, rows


def campaigns(market: MarketSpec, budget: float = UNLIMITED_BUDGET) -> Iterator[Campaign]:
    """A campaign before each of its weeks, random offers being sent."""
    generator = torch.Generator().manual_seed(0)
    users = torch.arange(market.population.n_users)
    running = Campaign(market, market.predictor, start=0, users=users, budget=budget, seed=3)
    while not running.done:
        yield running
        running.step(torch.multinomial(running.mask.double(), 1, generator=generator)[:, 0])


def prices(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.empty(n).uniform_(-5, 4, generator=generator)), torch.rand(n, generator=generator)


def a_network(market: MarketSpec, seed: int = 2) -> OfferNetwork:
    torch.manual_seed(seed)
    network = OfferNetwork(OfferNetworkShape(market.population.embedding, len(market.catalogue), 16))
    running = next(campaigns(market))
    network.set_scale(running.observation(*prices(running.n_users)), market.offers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        network.temperature.fill_(0.3)
    return network


def variants() -> dict[str, MarketSpec]:
    plain = demo_market(n_users=96, horizon_weeks=5)
    offers = plain.catalogue.offers
    return {
        "built in": plain,
        "uplift per cost": replace(plain, recommender=Recommender.UPLIFT_PER_COST),
        "no cap": replace(plain, catalogue=Catalogue(offers)),
        "percent only": replace(plain, catalogue=Catalogue(offers[:5], plain.catalogue.cap)),
        "threshold only": replace(plain, catalogue=Catalogue((offers[0], *offers[9:]), plain.catalogue.cap)),
        "messages only": replace(plain, catalogue=Catalogue(offers[:2], plain.catalogue.cap)),
    }


@pytest.mark.parametrize("name", variants())
def test_the_graph_is_the_market_and_the_policy(name: str) -> None:
    market = variants()[name]
    network = a_network(market)
    exact = PolicyGraph(market.shop, network, torch.float64)
    served = PolicyGraph(market.shop, network)
    # A budget that runs out makes some offers too dear in the last weeks.
    for budget in (UNLIMITED_BUDGET, 60.0):
        for running in campaigns(market, budget):
            price, pressure = prices(running.n_users, running.state.week)
            probabilities, slots, rows = market_answer(running, network, price, pressure)
            state = StateRows.of_campaign(running, price, pressure)
            with torch.no_grad():
                found = exact(*state.arguments())
                fast = served(*state.arguments())
            torch.testing.assert_close(found[0], probabilities.float(), rtol=0, atol=2e-7)
            assert torch.equal(found[1], slots)
            torch.testing.assert_close(found[2], rows.to(torch.float32), rtol=3e-7, atol=1e-7)
            torch.testing.assert_close(fast[0], probabilities.float(), rtol=0, atol=1e-5)
            assert torch.equal(fast[0].argmax(dim=1), probabilities.argmax(dim=1))


def test_what_the_market_shows_in_float32_is_the_same_but_for_rounding(exported: Exported) -> None:
    market, network = exported.market, exported.network
    graph = PolicyGraph(market.shop, network)
    for running in campaigns(market):
        price, pressure = prices(running.n_users)
        rows = running.observation(price, pressure)
        with torch.no_grad():
            probabilities, slots, shown = graph(*StateRows.of_campaign(running, price, pressure).arguments())
        assert torch.equal(slots, running.prediction.slots)
        # Uplift is a difference of large numbers: float32 leaves it a few digits less than the rest.
        torch.testing.assert_close(shown, rows, rtol=2e-3, atol=2e-5)
        trained = LearnedPolicy(copy.deepcopy(network)).probabilities(rows, running.mask)
        torch.testing.assert_close(probabilities, trained, rtol=0, atol=2e-3)


def test_onnx_is_the_graph_on_ten_thousand_random_and_edge_states(exported: Exported) -> None:
    rng = np.random.default_rng(0)
    states = market_states(exported.market, 5000, rng)
    states += [edge_states(rows, exported.market.horizon_weeks, rng) for rows in states]
    parity = policy_parity(exported.market.shop, exported.network, exported.folder, states)
    assert parity.rows >= 10_000
    assert parity.largest <= 1e-5
    assert parity.same_best


def test_edge_states_are_at_the_edges() -> None:
    market = demo_market(n_users=64)
    rng = np.random.default_rng(1)
    (rows,) = market_states(market, 10, rng, rows=64)
    edge = edge_states(rows, 8, rng)
    place = {name: k for k, name in enumerate(USER_COLUMNS)}
    assert (edge.user[:, place["weeks_slow"]] == 0).any()
    assert (edge.category_slow > 20).all(dim=1).any()
    assert set(edge.user[:, place["opted_in"]].tolist()) == {0.0, 1.0}
    assert {0, 2**30 - 1} <= set(edge.messages.tolist())
    assert (edge.user[:, place["coupon_weeks_left"]] == 30).any()
    assert edge.price[:, 0].min() == pytest.approx(1e-8)
    # What was given is left as it was.
    assert (rows.user[:, place["weeks_slow"]] > 0).all()


def test_another_policy_is_told_apart(exported: Exported) -> None:
    other = copy.deepcopy(exported.network)
    with torch.no_grad():
        other.sharpness.mul_(-1.0)
    states = market_states(exported.market, 200, np.random.default_rng(0))
    parity = policy_parity(exported.market.shop, other, exported.folder, states)
    assert parity.largest > 0.1
    assert not parity.same_best


def test_parity_of_ties_and_differences() -> None:
    reference = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=np.float32)
    tied = reference + np.array([[0.0, 1e-7, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    assert Parity.of(tied, reference).same_best
    other = np.array([[0.5, 0.5, 0.0], [0.2, 0.5, 0.3]], dtype=np.float32)
    found = Parity.of(other, reference)
    assert found.largest == pytest.approx(0.2)
    assert (found.same_best, found.rows) == (False, 2)
    assert Parity.of(tied, reference).worst(found) == Parity(found.largest, False, 4)


def test_one_user_is_answered_as_among_many(exported: Exported) -> None:
    session = onnxruntime.InferenceSession(
        exported.folder / "policy.onnx", providers=["CPUExecutionProvider"]
    )
    (rows,) = market_states(exported.market, 10, np.random.default_rng(2), rows=64)
    feed: dict[str, npt.NDArray[Any]] = {
        name: value.numpy() for name, value in zip(INPUTS, rows.arguments(), strict=True)
    }
    together = session.run(list(OUTPUTS), feed)[0]
    for n in (1, 3):
        part = {name: value if name in INPUTS[-3:] else value[:n] for name, value in feed.items()}
        np.testing.assert_allclose(session.run(list(OUTPUTS), part)[0], together[:n], atol=1e-6)


def test_columns_are_the_fields_of_the_history() -> None:
    names = {f.name for f in fields(HistoryState)}
    assert set(HISTORY_COLUMNS) <= names
    assert sum(name.startswith("basket_") and "ago" in name for name in USER_COLUMNS) == RECENT_BASKETS


def test_the_normal_distribution_function() -> None:
    at = torch.linspace(-9.0, 9.0, 4001, dtype=torch.float64)
    np.testing.assert_allclose(normal_cdf(at).numpy(), ndtr(at.numpy()), rtol=0, atol=1e-12)
    inside = at[at.abs() < 7.0]
    np.testing.assert_allclose(normal_cdf(inside).numpy(), ndtr(inside.numpy()), rtol=1e-8)


def test_exporting_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    market = demo_market(n_users=8)
    network = a_network(market)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (rows,) = market_states(market, 8, np.random.default_rng(0), rows=8)
    export_policy_graph(market.shop, network, rows, tmp_path / "policy.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert next(network.parameters()).dtype == torch.float32
    assert market.predictor.heads.base_rate.dtype == torch.float32
