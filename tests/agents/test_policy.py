from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from agents.offer_network import LearnedPolicy, OfferNetwork, OfferNetworkShape
from agents.policy import (
    ExploringPolicy,
    MyopicUpliftPolicy,
    NoOfferPolicy,
    Policy,
    RandomPolicy,
    greedy,
    sample,
)
from envs.demo_market import demo_market
from envs.observation import LOG_DUAL_PRICE, ObservationLayout
from envs.offers import Catalogue

K = len(Catalogue.built_in())
LAYOUT = ObservationLayout(4, K)
SEEDS = st.integers(0, 2**31)


def rows(seed: int, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations far beyond what a market shows, and a mask that always lets nothing be sent."""
    generator = torch.Generator().manual_seed(seed)
    observation = 3.0 * torch.randn(n, LAYOUT.width, generator=generator)
    observation[:, LOG_DUAL_PRICE] = 12.0 * torch.randn(n, generator=generator)
    mask = torch.rand(n, K, generator=generator) < torch.rand(n, 1, generator=generator)
    mask[:, 0] = True
    start = LAYOUT.width - K
    observation[:, start:] = mask.float()
    return observation, mask


@cache
def learned() -> LearnedPolicy:
    torch.manual_seed(0)
    network = OfferNetwork(OfferNetworkShape(4, K, 16))
    torch.nn.init.normal_(network.actor_score.weight)
    network.set_scale(rows(1, 200)[0], demo_market(n_users=2).offers)
    return LearnedPolicy(network)


def policies() -> list[Policy]:
    myopic = MyopicUpliftPolicy(LAYOUT)
    return [
        NoOfferPolicy(),
        RandomPolicy(),
        myopic,
        ExploringPolicy(myopic, 0.2),
        ExploringPolicy(RandomPolicy(), 1.0),
        learned(),
        ExploringPolicy(learned(), 0.05),
    ]


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.name)
@given(seed=SEEDS)
def test_rows_are_distributions_within_the_mask(policy: Policy, seed: int) -> None:
    observation, mask = rows(seed)
    probabilities = policy.probabilities(observation, mask)
    assert probabilities.shape == (12, K)
    assert (probabilities >= 0).all()
    assert (probabilities[~mask] == 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(12), rtol=0, atol=2e-6)


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.name)
def test_a_row_does_not_depend_on_the_other_rows(policy: Policy) -> None:
    observation, mask = rows(4)
    together = policy.probabilities(observation, mask)
    for k in range(len(mask)):
        alone = policy.probabilities(observation[k : k + 1], mask[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-6)


# Sampling ------------------------------------------------------------------------------------------


def test_samples_come_as_often_as_their_probability() -> None:
    p = torch.tensor([0.5, 0.0, 0.2, 0.25, 0.0, 0.05])
    n = 200_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(sample(p.expand(n, -1), uniform), minlength=6).numpy()
    drawn = p.numpy() > 0
    assert counts[~drawn].sum() == 0
    assert chisquare(counts[drawn], n * p.numpy()[drawn].astype(np.float64)).pvalue > 0.001


NEAR_ONE = [float(np.nextafter(np.float32(1), np.float32(0))), float(np.nextafter(1.0, 0.0))]


@given(
    st.lists(
        st.one_of(st.just(0.0), st.floats(1e-30, 1), st.floats(0.01, 1)), min_size=1, max_size=12
    ).filter(any),
    st.one_of(st.sampled_from([0.0, 1e-45, *NEAR_ONE]), st.floats(0, 1, exclude_max=True)),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_an_offer_of_probability_zero_is_never_drawn(
    weights: list[float], u: float, dtype: torch.dtype
) -> None:
    p = torch.tensor([weights], dtype=torch.float64)
    p = (p / p.sum()).to(dtype)
    offer = int(sample(p, torch.tensor([u], dtype=torch.float64)))
    assert float(p[0, offer]) > 0
    # And it is the inverse of the cumulative distribution.
    cumulative = p[0].double().cumsum(0)
    assert float(cumulative[offer]) >= u * float(cumulative[-1])
    assert offer == 0 or float(cumulative[offer - 1]) <= u * float(cumulative[-1])


def test_greedy_takes_the_first_of_the_best_allowed() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [5.0, 1.0, 1.0], [-4.0, -2.0, -9.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True], [False, True, True], [True, False, True], [True, True, True]])
    expected = torch.tensor([[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.float32)
    assert torch.equal(greedy(scores, mask), expected)


# Baselines -----------------------------------------------------------------------------------------


def test_no_offer_sends_nothing() -> None:
    observation, mask = rows(0)
    assert NoOfferPolicy().probabilities(observation, mask)[:, 0].tolist() == [1.0] * 12


def test_random_sends_more_rarely_at_a_higher_price_and_all_offers_alike() -> None:
    observation, mask = rows(7)
    observation[:, LOG_DUAL_PRICE] = torch.linspace(-5, 5, 12)
    probabilities = RandomPolicy().probabilities(observation, mask)
    for k in range(12):
        allowed = mask[k].clone()
        allowed[0] = False
        if not allowed.any():
            assert float(probabilities[k, 0]) == 1.0
            continue
        send = 1 / (1 + np.exp(float(observation[k, LOG_DUAL_PRICE])))
        expected = send / int(allowed.sum())
        assert probabilities[k, allowed].tolist() == pytest.approx([expected] * int(allowed.sum()), rel=1e-5)
        assert float(probabilities[k, 0]) == pytest.approx(1 - send, abs=1e-6)


@pytest.mark.parametrize("n_offers", range(2, 31))
def test_random_is_never_negative_where_sending_is_free(n_offers: int) -> None:
    observation = torch.zeros(1, LAYOUT.width)
    observation[:, LOG_DUAL_PRICE] = -30.0
    probabilities = RandomPolicy().probabilities(observation, torch.ones(1, n_offers, dtype=torch.bool))
    assert (probabilities >= 0).all()


@given(SEEDS)
def test_myopic_uplift_is_the_best_by_trying_all(seed: int) -> None:
    observation, mask = rows(seed)
    observation[:, LOG_DUAL_PRICE].clamp_(-3, 3)
    probabilities = MyopicUpliftPolicy(LAYOUT).probabilities(observation, mask)
    names = LAYOUT.names()
    values = [dict(zip(names, row, strict=True)) for row in observation.tolist()]
    for k, row in enumerate(values):
        price = np.exp(row["log_dual_price"])
        net = {
            j: row[f"uplift_{j}"] - price * (row[f"cost_{j}"] + row[f"reserve_{j}"])
            for j in range(K)
            if mask[k, j]
        }
        chosen = int(probabilities[k].argmax())
        assert float(probabilities[k, chosen]) == 1.0
        assert net[chosen] >= max(net.values()) - 1e-4 * (1 + abs(max(net.values())))


@given(SEEDS, st.floats(0.001, 1))
def test_exploring_is_the_mixture(seed: int, share: float) -> None:
    observation, mask = rows(seed)
    base = MyopicUpliftPolicy(LAYOUT)
    policy = ExploringPolicy(base, share)
    uniform = mask.float() / mask.sum(dim=1, keepdim=True)
    expected = (1 - share) * base.probabilities(observation, mask) + share * uniform
    probabilities = policy.probabilities(observation, mask)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-6)
    assert (probabilities[mask] > 0).all()


def test_exploring_names_its_base_and_wants_a_share() -> None:
    assert ExploringPolicy(MyopicUpliftPolicy(LAYOUT), 0.1).name == "myopic uplift, 10% explored"
    for share in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"exploration must be in \(0, 1\]"):
            ExploringPolicy(NoOfferPolicy(), share)
