from __future__ import annotations

from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from agents.offer_network import (
    MOST_FACTOR,
    MOST_NET,
    LearnedPolicy,
    OfferNetwork,
    OfferNetworkShape,
    masked_softmax,
)
from agents.policy import MyopicUpliftPolicy
from agents.ppo import OfferActorCritic
from envs.campaign import Campaign
from envs.demo_market import demo_market
from envs.observation import LOG_DUAL_PRICE, OFFER_FEATURES
from envs.offers import Catalogue

N, HIDDEN = 30, 16
K = len(Catalogue.built_in())
SHAPE = OfferNetworkShape(4, K, HIDDEN)


@cache
def observations(seed: int = 0, price: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    market = demo_market(n_users=N)
    running = Campaign(
        market,
        market.predictor,
        start=0,
        users=torch.arange(N),
        budget=1e6,
        seed=seed,
    )
    running.step(torch.where(running.mask[:, 3], 3, 0))
    return running.observation(torch.linspace(price / 3, price * 3, N)), running.mask


def network(trained: bool) -> OfferNetwork:
    torch.manual_seed(1)
    out = OfferNetwork(SHAPE)
    out.set_scale(observations()[0], demo_market(n_users=2).offers)
    if trained:
        with torch.no_grad():
            for parameter in out.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return out.eval()


@torch.no_grad()
def test_before_training_it_ranks_by_net_uplift() -> None:
    fresh, (rows, _) = network(trained=False), observations()
    logits, net = fresh.forward_actor(rows), fresh.layout.net_uplift(rows)
    assert float((net / fresh.money_scale).abs().max()) < 20  # within the bounds, so nothing is tied
    for row in range(N):
        assert spearmanr(logits[row], net[row]).statistic == pytest.approx(1.0)
    torch.testing.assert_close(logits, 8.0 * net / fresh.money_scale, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pressure", [0.0, 0.5, 1.0])
def test_before_training_it_chooses_what_the_myopic_rule_chooses(pressure: float) -> None:
    fresh, market = network(trained=False), demo_market(n_users=N)
    running = Campaign(market, market.predictor, start=0, users=torch.arange(N), budget=1e6, seed=0)
    myopic = MyopicUpliftPolicy(market.layout)
    for price in (0.02, 0.3, 2.0, 20.0):
        rows = running.observation(torch.full((N,), price), pressure)
        best = torch.where(running.mask, fresh.forward_actor(rows), -torch.inf).argmax(dim=1)
        # Up to prices so high that the bounds of the network tie what is far from worth sending.
        assert torch.equal(best, myopic.probabilities(rows, running.mask).argmax(dim=1))


@torch.no_grad()
def test_what_the_network_learns_multiplies_uplift_and_charge_within_bounds() -> None:
    # With the score's weights at zero, its biases alone are f, g and h of all offers.
    rows, _ = observations()
    fresh = network(trained=False)
    uplift = fresh.layout.offer_block(rows, "uplift") / fresh.money_scale
    use = fresh.layout.offer_block(rows, "cost") + fresh.layout.offer_block(rows, "reserve")
    charge = torch.exp(rows[:, LOG_DUAL_PRICE])[:, None] * use / fresh.money_scale
    for term, worth, dear in ((0.7, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, -0.8), (-1.0, 50.0, -50.0)):
        fresh.actor_score.bias.copy_(torch.tensor([term, worth, dear]))
        g, h = (np.exp(MOST_FACTOR * np.tanh(value)) for value in (worth, dear))
        expected = 8.0 * (uplift * g - charge * h).clamp(-20.0, 20.0) + term
        torch.testing.assert_close(fresh.forward_actor(rows), expected, rtol=1e-4, atol=1e-4)
    # However sure the network is, uplift and charge stay within a factor of what was predicted.
    assert np.exp(MOST_FACTOR) == pytest.approx(4.48, abs=0.01)


@torch.no_grad()
@pytest.mark.parametrize("trained", [False, True])
def test_extreme_observations_give_finite_scores(trained: bool) -> None:
    net, (rows, mask) = network(trained=trained), observations()
    generator = torch.Generator().manual_seed(0)
    # As far as the product of price and money is a number in single precision.
    for scale, log_prices in (
        (0.0, (-60.0, 60.0)),
        (1e-30, (0.0, 60.0)),
        (1e6, (-60.0, 60.0)),
        (1e20, (0.0,)),
    ):
        wild = rows * scale * torch.randn(rows.shape, generator=generator)
        for log_price in log_prices:
            wild[:, LOG_DUAL_PRICE] = log_price
            logits, features = net(wild)
            assert torch.isfinite(logits).all()
            assert torch.isfinite(features).all()
            probabilities = net.probabilities(wild, mask)
            assert torch.isfinite(probabilities).all()
            torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(N))


def test_scaling_by_hand() -> None:
    fresh, (rows, _) = network(trained=False), observations()
    offers = demo_market(n_users=2).offers
    context = rows[:, : fresh.layout.n_context]
    torch.testing.assert_close(fresh.context_mean, context.mean(dim=0))
    uplift = fresh.layout.offer_block(rows, "uplift")[:, 1:]
    torch.testing.assert_close(fresh.money_scale, uplift.abs().mean())
    assert fresh.static[3].tolist() == pytest.approx([1.0, 1.0, 0.4, 0.5])
    assert fresh.static[0].tolist() == [0.0] * 4
    normal = fresh.prepare(rows)[:, : fresh.layout.n_context]
    varied = context.std(dim=0) > 1e-3
    assert normal[:, varied].mean(dim=0).abs().max() < 1e-3
    assert normal.abs().max() <= 10
    with pytest.raises(ValueError, match=f"{K} offers, but the network scores 3"):
        OfferNetwork(OfferNetworkShape(4, 3, HIDDEN)).set_scale(rows, offers)
    # Everything needed to serve is in the state: nothing is left outside at export.
    copy = OfferNetwork(SHAPE)
    copy.load_state_dict(fresh.state_dict())
    assert torch.equal(copy.forward_actor(rows), fresh.forward_actor(rows))


@torch.no_grad()
def test_prepared_rows_hold_no_weight_and_are_all_that_is_scored() -> None:
    fresh, trained, (rows, _) = network(trained=False), network(trained=True), observations()
    prepared = fresh.prepare(rows)
    trained.load_state_dict({**trained.state_dict(), **dict(fresh.named_buffers())})
    assert torch.equal(trained.prepare(rows), prepared)
    torch.testing.assert_close(trained.score(prepared), trained.forward_actor(rows))
    torch.testing.assert_close(trained.appraise(prepared), trained.forward_critic(rows))
    logits, features = trained(rows)
    torch.testing.assert_close(logits, trained.forward_actor(rows))
    torch.testing.assert_close(features, trained.forward_critic(rows))
    # By hand, for one offer of one user: money in units of the scale, λ counted in, by the inverse sine.
    layout, user, offer = fresh.layout, 4, 3
    uplift, cost, reserve = (
        float(layout.offer_block(rows, name)[user, offer] / fresh.money_scale)
        for name in ("uplift", "cost", "reserve")
    )
    price = float(torch.exp(rows[user, LOG_DUAL_PRICE]))
    amounts = [uplift - price * (cost + reserve), uplift, price * cost, price * reserve]
    expected = [*np.arcsinh(amounts), *fresh.static[offer].tolist()]
    first = layout.n_context + K + len(expected) * offer
    assert prepared[user, first : first + len(expected)].tolist() == pytest.approx(expected, rel=1e-4)
    seen = float(prepared[user, layout.n_context + offer])
    assert seen == pytest.approx(np.arcsinh(np.clip(amounts[0], -MOST_NET, MOST_NET)), rel=1e-4)


def permuted_offers(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    layout = SHAPE.layout
    blocks = [layout.offer_block(rows, feature)[:, order] for feature in OFFER_FEATURES]
    return torch.cat([rows[:, : layout.n_context], *blocks], dim=1)


@torch.no_grad()
@given(st.permutations(range(K)))
def test_permuted_offers_have_permuted_scores(permutation: list[int]) -> None:
    order = torch.tensor(permutation)
    one, two = network(trained=True), network(trained=True)
    two.static.copy_(one.static[order])
    rows, mask = observations()
    scores = one.forward_actor(rows)
    torch.testing.assert_close(
        two.forward_actor(permuted_offers(rows, order)), scores[:, order], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        masked_softmax(scores, mask)[:, order], masked_softmax(scores[:, order], mask[:, order])
    )


@torch.no_grad()
def test_every_input_moves_the_trained_scores() -> None:
    trained, (rows, _) = network(trained=True), observations()
    names = trained.layout.names()
    base = trained.forward_actor(rows)
    for place, name in enumerate(names):
        moved = rows.clone()
        moved[:, place] += 0.05 if not name.startswith("allowed") else 1.0
        changed = not torch.allclose(trained.forward_actor(moved), base, rtol=0, atol=1e-6)
        # The mask is applied after scoring; all else is used.
        assert changed != name.startswith("allowed"), name


@given(st.integers(0, 2**31))
def test_a_masked_softmax_is_exactly_zero_outside_the_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 40.0 * torch.randn(16, K, generator=generator)
    mask = torch.rand(16, K, generator=generator) < 0.5
    mask[:, 0] = True
    out = masked_softmax(logits, mask)
    assert (out[~mask] == 0).all()
    torch.testing.assert_close(out.sum(dim=1), torch.ones(16))
    for row in range(16):
        inside = mask[row]
        torch.testing.assert_close(out[row, inside], torch.softmax(logits[row, inside], dim=0))


def test_the_learned_policy_is_the_masked_softmax_and_is_frozen() -> None:
    trained, (rows, mask) = network(trained=True), observations()
    policy = LearnedPolicy(trained.train())
    expected = masked_softmax(trained.forward_actor(rows), mask)
    assert torch.equal(policy.probabilities(rows, mask), expected)
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


@torch.no_grad()
def test_the_temperature_sharpens_the_policy_but_not_the_scores() -> None:
    trained, (rows, mask) = network(trained=True), observations()
    scores = trained.forward_actor(rows)
    trained.temperature.fill_(0.5)
    assert torch.equal(trained.forward_actor(rows), scores)
    out = LearnedPolicy(trained).probabilities(rows, mask)
    torch.testing.assert_close(out, masked_softmax(2.0 * scores, mask))
    warm = masked_softmax(scores, mask)
    assert torch.equal(out.argmax(dim=1), warm.argmax(dim=1))
    assert (out.max(dim=1).values >= warm.max(dim=1).values - 1e-6).all()


def test_stable_baselines_policy_uses_the_scores_as_logits(tmp_path: Path) -> None:
    torch.manual_seed(2)
    box = gymnasium.spaces.Box(-np.inf, np.inf, (SHAPE.layout.width,), np.float32)
    policy = OfferActorCritic(box, gymnasium.spaces.Discrete(K), lambda _: 1e-3, shape=SHAPE)
    inner = policy.mlp_extractor
    assert isinstance(inner, OfferNetwork)
    inner.load_state_dict(network(trained=True).state_dict())
    rows, mask = observations()
    with torch.no_grad():
        scores = inner.forward_actor(rows)
        masks = mask.numpy()
        inside = policy.get_distribution(rows, action_masks=masks).distribution
        assert isinstance(inside, torch.distributions.Categorical)
        torch.testing.assert_close(inside.probs, masked_softmax(scores, mask), rtol=1e-4, atol=1e-6)
        actions, values, log_probability = policy(rows, action_masks=masks)
        assert mask.gather(1, actions[:, None]).all()
        chosen = masked_softmax(scores, mask).gather(1, actions[:, None])[:, 0]
        torch.testing.assert_close(log_probability.exp(), chosen, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(values, policy.value_net(inner.forward_critic(rows)))
    # One optimiser holds every parameter, those of the network included.
    held = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in policy.parameters()}
    assert {id(p) for p in inner.parameters()} <= held


def test_layout_and_price_of_the_shape() -> None:
    assert SHAPE.layout.width == observations()[0].shape[1]
    assert SHAPE.to_dict() == {"embedding": 4, "n_offers": K, "hidden": HIDDEN}
    rows, _ = observations(price=0.5)
    assert float(rows[0, LOG_DUAL_PRICE]) == pytest.approx(np.log(0.5 / 3), rel=1e-5)
