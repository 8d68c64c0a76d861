from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from agents.tabular import PacedRules, play_campaign, price_ladder
from agents.tabular_ppo import (
    TabularPPOConfig,
    TabularTraining,
    control_margin,
    network_rules,
    train_tabular_ppo,
)
from envs.tabular_campaign import TabularCampaign
from envs.tabular_env import TabularMarketVectorEnv, observe
from envs.tabular_market import REFERENCE_BUDGET_PER_USER, TabularMarket
from envs.tabular_solution import evaluate, lagrangian_bound, myopic_rule, no_offer_rule
from envs.tabular_users import DEMO_PANTRY, DEMO_USERS

TINY = TabularPPOConfig(n_rollouts=2, n_users=32, batch_size=128, hidden=8)
PRICES = price_ladder(TINY.low_price, TINY.high_price, 5)


@cache
def market() -> TabularMarket:
    return TabularMarket.demo(horizon_weeks=12, offer_weeks=9)


@cache
def tiny_policy() -> MaskableActorCriticPolicy:
    return train_tabular_ppo(market(), TINY, seed=0)


# The reward.


def test_the_control_arm_earns_what_sending_nothing_earns() -> None:
    control = control_margin(market())
    total = float((control.sum(dim=0) * market().share).sum())
    assert total == pytest.approx(float(evaluate(market(), no_offer_rule(market())).margin), abs=1e-12)
    # The demo starts in the steady state without offers: a week is like the next.
    torch.testing.assert_close(control, control[:1].expand_as(control))


def test_a_type_that_nobody_is_of_has_a_control_arm_too() -> None:
    nobody = replace(market(), share=torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert bool(torch.isfinite(control_margin(nobody)).all())


def play_at_random(env: TabularTraining, seed: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Price, action and reward of each week of one campaign."""
    env.reset()
    rng = np.random.default_rng(seed)
    weeks = []
    for _ in range(env.market.horizon_weeks):
        mask = env.action_masks()
        actions = (rng.random(mask.shape) * mask).argmax(axis=1)
        price = env.users.dual_price
        _, reward, _, _ = env.step(actions)
        weeks.append((price, torch.from_numpy(actions), torch.as_tensor(reward).double()))
    return weeks


def test_the_expected_reward_is_the_mean_of_the_realised_one() -> None:
    config = replace(TINY, n_users=20_000)
    env = TabularTraining(market(), config, seed=5)
    played = play_at_random(env, 0)
    # The same campaign in the Gymnasium environment, whose rewards are realised.
    twin = TabularMarketVectorEnv(config.n_users, market(), price_range=(config.low_price, config.high_price))
    twin.reset(seed=5)
    user_type = twin.campaign.user_type
    control = control_margin(market())
    realised, expected = torch.zeros(config.n_users).double(), torch.zeros(config.n_users).double()
    for week, (price, actions, reward) in enumerate(played):
        torch.testing.assert_close(twin.dual_price, price)
        _, reward_of_twin, _, _, info = twin.step(actions.numpy())
        assert not info["masked"].any()
        realised += torch.from_numpy(reward_of_twin)
        expected += reward * (1.0 + price) + control[week, user_type]
    difference = realised - expected
    assert abs(float(difference.mean())) < 4.0 * float(difference.std()) / config.n_users**0.5
    assert float(expected.std()) < float(realised.std())


def test_users_who_get_nothing_gain_nothing_on_average() -> None:
    env = TabularTraining(market(), replace(TINY, n_users=20_000), seed=1)
    env.reset()
    nothing = np.zeros(20_000, dtype=np.int64)
    total = sum(torch.as_tensor(env.step(nothing)[1]).double() for _ in range(market().horizon_weeks))
    assert isinstance(total, torch.Tensor)
    assert abs(float(total.mean())) < 4.0 * float(total.std()) / 20_000**0.5


def test_campaigns_follow_each_other_as_stable_baselines_wants_it() -> None:
    env = TabularTraining(market(), TINY, seed=2)
    first = env.reset()
    for week in range(market().horizon_weeks):
        price = env.users.dual_price
        observation, _, done, infos = env.step(np.zeros(TINY.n_users, dtype=np.int64))
        last = week == market().horizon_weeks - 1
        assert done.tolist() == [last] * TINY.n_users
    assert isinstance(observation, np.ndarray)
    # Next comes the first week of a new campaign at new prices; the old one's end is in the infos.
    torch.testing.assert_close(torch.from_numpy(observation[:, -2]), torch.ones(TINY.n_users))
    assert not torch.equal(price, env.users.dual_price)
    assert not np.array_equal(observation, first)
    assert [info["terminal_observation"][-2] for info in infos] == [0.0] * TINY.n_users
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * TINY.n_users
    low, high = np.log([TINY.low_price, TINY.high_price])
    assert bool(((observation[:, -1] >= low - 1e-6) & (observation[:, -1] <= high + 1e-6)).all())


def test_equal_seeds_train_in_equal_campaigns() -> None:
    one, two, other = (play_at_random(TabularTraining(market(), TINY, seed=seed), 0) for seed in (1, 1, 2))
    for (price, _, reward), (price_2, _, reward_2) in zip(one, two, strict=True):
        assert torch.equal(price, price_2)
        assert torch.equal(reward, reward_2)
    assert not torch.equal(one[0][0], other[0][0])


# From network to rules.


@pytest.mark.parametrize("greedy", [True, False])
def test_rules_of_a_network_are_distributions_within_the_mask(greedy: bool) -> None:
    rules = network_rules(market(), tiny_policy(), PRICES, greedy=greedy)
    assert rules.shape == (5, *market().allowed.shape)
    assert rules.dtype == torch.float64
    assert bool((rules >= 0).all())
    assert float(rules.sum(dim=-1).sub(1.0).abs().max()) < 1e-12
    assert float((rules * ~market().allowed).max()) == 0.0
    # Nothing is ruled out but by the mask, or all but one are.
    assert bool(((rules > 0) == market().allowed).all()) is not greedy
    assert bool(((rules == 0) | (rules == 1)).all()) is greedy


def test_rules_are_what_the_network_says_in_a_campaign() -> None:
    generator = torch.Generator().manual_seed(0)
    campaign = TabularCampaign(market(), n_users=300, budget=1e6, generator=generator)
    rules = network_rules(market(), tiny_policy(), PRICES, greedy=False)
    for _ in range(market().offer_weeks + 1):
        price = torch.randint(len(PRICES), (300,), generator=generator)
        mask = campaign.mask
        observation = observe(campaign, PRICES[price])
        with torch.no_grad():
            distribution = tiny_policy().get_distribution(observation, mask.numpy()).distribution
        assert isinstance(distribution, torch.distributions.Categorical)
        expected = rules[price, campaign.week, campaign.user_type, campaign.state].float()
        torch.testing.assert_close(distribution.probs, expected, atol=1e-6, rtol=0.0)
        campaign.step(torch.multinomial(mask.double(), 1, generator=generator)[:, 0])


# Training.


def test_the_seed_decides() -> None:
    again, other = (train_tabular_ppo(market(), TINY, seed=seed) for seed in (0, 1))
    weights, weights_again, weights_other = (
        torch.nn.utils.parameters_to_vector(policy.parameters()) for policy in (tiny_policy(), again, other)
    )
    assert torch.equal(weights, weights_again)
    assert not torch.equal(weights, weights_other)


def mean_share(rules: torch.Tensor, of: TabularMarket, budget: float) -> float:
    bound = lagrangian_bound(of, budget)
    paced = PacedRules(of, rules)
    campaigns = [play_campaign(paced, bound, n_users=1_000, seed=seed) for seed in range(4)]
    assert all(campaign.spend <= budget for campaign in campaigns)
    return float(np.mean([bound.share_of_bound(campaign.expected_margin) for campaign in campaigns]))


def test_a_few_seconds_of_training_teach_foresight() -> None:
    # Myopia spends on sure things, whose purchases are only brought forward.
    users = [replace(DEMO_USERS[g], share=0.5) for g in (0, 1)]
    simple = TabularMarket.of_users(DEMO_PANTRY, users, horizon_weeks=12, offer_weeks=9)
    config = TabularPPOConfig(n_rollouts=12, n_users=1024, batch_size=1024)
    prices = price_ladder(config.low_price, config.high_price, 60)
    learnt = network_rules(simple, train_tabular_ppo(simple, config, seed=0), prices)
    for budget in (0.8, 1.5):
        myopia = mean_share(myopic_rule(simple, prices), simple, budget)
        assert mean_share(learnt, simple, budget) > myopia + 0.2


@pytest.mark.slow
def test_one_policy_comes_close_to_the_bound_at_every_budget() -> None:
    demo, config = TabularMarket.demo(), TabularPPOConfig()
    prices = price_ladder(config.low_price, config.high_price, 200)
    rules = network_rules(demo, train_tabular_ppo(demo, config, seed=0), prices)
    for budget in (
        0.5 * REFERENCE_BUDGET_PER_USER,
        REFERENCE_BUDGET_PER_USER,
        2.0 * REFERENCE_BUDGET_PER_USER,
    ):
        assert mean_share(rules, demo, budget) > 0.95


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_rollouts": 0}, "n_rollouts must be >= 1, got 0"),
        ({"n_users": 0}, "n_users must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"clip_range": float("inf")}, "clip_range must be > 0 and finite"),
        ({"gae_lambda": 1.1}, r"gae_lambda must be in \[0, 1\]"),
        ({"entropy": -0.1}, "entropy must be >= 0"),
        ({"low_price": 0.0}, "dual prices must be positive"),
        ({"low_price": 3.0}, r"increasing, got 3\.0 to 2\.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_prices_and_markets_that_do_not_fit_the_network_are_refused() -> None:
    for prices in (torch.tensor([0.0]), torch.tensor([float("nan")]), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="prices must be"):
            network_rules(market(), tiny_policy(), prices)
    wider = replace(market(), features=torch.eye(market().n_states))
    with pytest.raises(ValueError, match=r"reads observations of shape \(16,\), the market has \(27,\)"):
        network_rules(wider, tiny_policy(), PRICES)
