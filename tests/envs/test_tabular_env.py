from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from envs.tabular_env import TabularMarketEnv, TabularMarketVectorEnv
from envs.tabular_market import TabularMarket
from envs.tabular_solution import solve


@pytest.fixture(scope="module")
def market() -> TabularMarket:
    return TabularMarket.demo(horizon_weeks=6, offer_weeks=5)


def random_episode(env: TabularMarketEnv, seed: int) -> list[tuple[Any, ...]]:
    """Observations, rewards, ends and infos of one episode of random actions, masked ones included."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    rows: list[tuple[Any, ...]] = [(observation, 0.0, False, info)]
    while not rows[-1][2]:
        observation, reward, terminated, truncated, info = env.step(np.int64(rng.integers(4)))
        assert not truncated
        rows.append((observation, reward, terminated, info))
    return rows


def test_gymnasium_accepts_the_env() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m(ax|in)imum value is -?infinity")
        warnings.filterwarnings("ignore", message=".*not within the observation space")
        warnings.filterwarnings("ignore", message=".*env.spec")
        check_env(TabularMarketEnv(), skip_render_check=True)


def test_stable_baselines3_accepts_the_env() -> None:
    check_env_of_sb3(TabularMarketEnv(), warn=False)


def test_two_envs_of_one_seed_live_the_same_episode(market: TabularMarket) -> None:
    one, two = (random_episode(TabularMarketEnv(market), seed=4) for _ in range(2))
    assert len(one) == len(two) == 7
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:3] == b[1:3]
    other = random_episode(TabularMarketEnv(market), seed=5)
    assert any(a[1] != b[1] for a, b in zip(one[1:], other[1:], strict=True))


def test_a_second_episode_is_another_one(market: TabularMarket) -> None:
    env = TabularMarketEnv(market)
    env.reset(seed=0)
    firsts = {env.reset()[0].tobytes() for _ in range(20)}
    assert len(firsts) > 3


def test_the_observation_shows_type_state_time_and_price(market: TabularMarket) -> None:
    env = TabularMarketEnv(market, dual_price=2.0)
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        for week in range(6):
            campaign = env.campaign
            assert observation[:5].tolist() == np.eye(5)[int(campaign.user_type[0])].tolist()
            np.testing.assert_array_equal(observation[5:14], market.features[int(campaign.state[0])].numpy())
            assert observation[14] == pytest.approx(1.0 - week / 6)
            assert observation[15] == pytest.approx(np.log(2.0))
            observation, _, _, _, _ = env.step(np.int64(1))
        assert observation[14] == 0.0


def test_the_reward_is_margin_minus_priced_cost(market: TabularMarket) -> None:
    for price in (0.5, 3.0):
        env = TabularMarketEnv(market, dual_price=price)
        for seed in range(5):
            for observation, reward, _, info in random_episode(env, seed)[1:]:
                assert reward == pytest.approx(info["margin"] - price * info["cost"], abs=1e-12)
                assert observation in env.observation_space


def test_a_masked_offer_becomes_no_offer_and_is_reported(market: TabularMarket) -> None:
    env = TabularMarketEnv(market)
    for seed in range(40):  # until a user who cannot be reached
        _, info = env.reset(seed=seed)
        if not info["action_mask"][1]:
            break
    np.testing.assert_array_equal(env.action_masks(), [True, False, False, False])
    assert not info["masked"]
    _, _, _, _, info = env.step(np.int64(3))
    assert info["masked"]
    assert info["cost"] == 0.0


def test_misuse_is_told(market: TabularMarket) -> None:
    env = TabularMarketEnv(market)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(0))
    with pytest.raises(RuntimeError, match="reset"):
        TabularMarketVectorEnv(2, market).action_masks()
    random_episode(env, 0)
    with pytest.raises(ValueError, match="the campaign is over"):
        env.step(np.int64(0))
    for price in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="dual_price must be > 0"):
            TabularMarketEnv(market, dual_price=price)
        with pytest.raises(ValueError, match="dual_price must be > 0"):
            TabularMarketVectorEnv(2, market, dual_price=[1.0, price])
    with pytest.raises(ValueError, match="one for each of 2 users"):
        TabularMarketVectorEnv(2, market, dual_price=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="num_envs must be >= 1"):
        TabularMarketVectorEnv(0, market)
    for prices in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="price_range"):
            TabularMarketVectorEnv(2, market, price_range=prices)


def test_an_env_survives_pickling_in_the_middle_of_an_episode(market: TabularMarket) -> None:
    env = TabularMarketEnv(market)
    env.reset(seed=2)
    env.step(np.int64(1))
    copy = pickle.loads(pickle.dumps(env))
    for action in (0, 3, 0, 1):
        a, b = env.step(np.int64(action)), copy.step(np.int64(action))
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:3] == b[1:3]
    np.testing.assert_array_equal(env.reset()[0], copy.reset()[0])


def test_next_step_autoreset(market: TabularMarket) -> None:
    env = TabularMarketVectorEnv(8, market)
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    for _ in range(3):
        prices = env.dual_price.clone()
        for week in range(6):
            observation, reward, terminated, truncated, info = env.step(rng.integers(0, 4, 8))
            assert observation in env.observation_space
            assert terminated.tolist() == [week == 5] * 8
            assert not truncated.any()
            np.testing.assert_allclose(reward, info["margin"] - prices.numpy() * info["cost"])
        last = env.campaign
        # The step after the end starts anew, whatever the action, without reward.
        observation, reward, terminated, truncated, info = env.step(rng.integers(0, 4, 8))
        assert env.campaign is not last
        assert env.campaign.week == 0
        assert reward.tolist() == [0.0] * 8
        assert not terminated.any()
        assert not truncated.any()
        np.testing.assert_array_equal(info["action_mask"], env.action_masks())
        assert not torch.equal(env.dual_price, prices)


def test_vector_envs_of_one_seed_live_the_same_weeks(market: TabularMarket) -> None:
    one, two = TabularMarketVectorEnv(10, market), TabularMarketVectorEnv(10, market)
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(one.reset(seed=9)[0], two.reset(seed=9)[0])
    for _ in range(15):
        actions = rng.integers(0, 4, 10)
        masks = one.action_masks().copy()
        a, b = one.step(actions), two.step(actions)
        for left, right in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(left, right)
        if "masked" in a[4]:
            np.testing.assert_array_equal(a[4]["masked"], ~masks[np.arange(10), actions])
            assert (a[4]["cost"][a[4]["masked"]] == 0.0).all()


def test_prices_are_given_or_drawn_log_uniformly(market: TabularMarket) -> None:
    given_prices = TabularMarketVectorEnv(3, market, dual_price=[0.5, 1.0, 2.0])
    observation, _ = given_prices.reset(seed=0)
    np.testing.assert_allclose(observation[:, -1], np.log([0.5, 1.0, 2.0]), rtol=1e-6)
    same = TabularMarketVectorEnv(3, market, dual_price=1.5)
    assert same.reset(seed=0)[0][:, -1] == pytest.approx(np.log(1.5))
    n = 4000
    drawn = TabularMarketVectorEnv(n, market, price_range=(0.2, 5.0))
    observation, _ = drawn.reset(seed=0)
    standing = np.sort((observation[:, -1] - np.log(0.2)) / np.log(25.0))
    # Kolmogorov-Smirnov distance from the uniform distribution, at a level of 0.1%.
    assert np.abs(standing - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5
    assert standing[0] >= 0.0
    assert standing[-1] <= 1.0


def test_the_optimal_rule_earns_its_value_in_the_vector_env(market: TabularMarket) -> None:
    # Two prices at once: the return of each half is that of the dynamic programme.
    n, prices = 20_000, (0.8, 1.6)
    solution = solve(market, torch.tensor(prices, dtype=torch.float64))
    env = TabularMarketVectorEnv(n, market, dual_price=np.repeat(prices, n // 2))
    env.reset(seed=1)
    half = torch.arange(2).repeat_interleave(n // 2)
    earned = np.zeros(n)
    for week in range(6):
        rule = solution.rule[half, week, env.campaign.user_type, env.campaign.state]
        _, reward, _, _, info = env.step(rule.argmax(dim=-1).numpy())
        assert not info["masked"].any()
        earned += reward
    for k in range(2):
        expected = float((market.share[:, None] * market.initial * solution.values[k, 0]).sum())
        sample = earned[half.numpy() == k]
        assert abs(sample.mean() - expected) < 4.0 * sample.std() / (n // 2) ** 0.5


def test_gymnasium_makes_both_kinds_by_id() -> None:
    env = gymnasium.make("envs:couponlab/TabularMarket-v0")
    assert isinstance(env.unwrapped, TabularMarketEnv)
    many = gymnasium.make_vec(
        "couponlab/TabularMarket-v0", num_envs=3, vectorization_mode="vector_entry_point"
    )
    assert many.num_envs == 3
