from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from envs.coupon_market import CouponMarketEnv, CouponMarketVectorEnv
from envs.demo_market import demo_market

ENV_ID = "couponlab/CouponMarket-v0"


def random_episode(env: CouponMarketEnv, seed: int, **options: int) -> list[tuple[Any, ...]]:
    """Observations and rewards of one episode of random offers, masked ones included."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options=dict(options))
    rows: list[tuple[Any, ...]] = [(observation, 0.0, False, info)]
    while not rows[-1][2]:
        action = np.int64(rng.integers(len(env.market.catalogue)))
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        rows.append((observation, reward, terminated, info))
    return rows


def test_gymnasium_accepts_the_registered_env() -> None:
    env = gymnasium.make(ENV_ID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m(ax|in)imum value is -?infinity")
        warnings.filterwarnings("ignore", message=".*not within the observation space")
        check_env(env.unwrapped)
    assert env.spec is not None
    assert env.spec.id == "couponlab/CouponMarket-v0"


def test_stable_baselines3_accepts_the_env() -> None:
    check_env_of_sb3(CouponMarketEnv(), warn=False)


def test_two_envs_of_one_seed_live_the_same_episode() -> None:
    one, two = (random_episode(CouponMarketEnv(), seed=4) for _ in range(2))
    assert len(one) == len(two) == 9
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:3] == b[1:3]
    other = random_episode(CouponMarketEnv(), seed=5)
    assert any(a[1] != b[1] for a, b in zip(one[1:], other[1:], strict=True))


def test_a_second_episode_is_another_one() -> None:
    env = CouponMarketEnv()
    first, _ = env.reset(seed=0)
    second, _ = env.reset()
    assert not np.array_equal(first, second)


def test_options_choose_the_user() -> None:
    env = CouponMarketEnv()
    for user in (0, 63):
        env.reset(seed=1, options={"user": user, "start": 0})
        assert env.campaign.users.tolist() == [user]


def test_the_reward_is_margin_minus_priced_cost() -> None:
    for price in (0.5, 3.0):
        env = CouponMarketEnv(dual_price=price)
        for seed in range(5):
            for observation, reward, _, info in random_episode(env, seed)[1:]:
                assert reward == pytest.approx(info["margin"] - price * info["cost"], abs=1e-5)
                assert observation in env.observation_space


def test_a_masked_offer_becomes_no_offer_and_is_reported() -> None:
    env = CouponMarketEnv()
    for seed in range(20):  # until a user who cannot be reached
        _, info = env.reset(seed=seed)
        if not info["action_mask"][1]:
            break
    # Only what comes without a message may be sent to him.
    np.testing.assert_array_equal(env.action_masks(), [not o.is_message for o in env.market.catalogue.offers])
    assert not info["masked"]
    _, _, _, _, info = env.step(np.int64(3))
    assert info["masked"]
    assert info["cost"] == 0.0


def test_misuse_is_told() -> None:
    env = CouponMarketEnv()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.int64(0))
    random_episode(env, 0)
    with pytest.raises(ValueError, match="the campaign is over"):
        env.step(np.int64(0))
    for price in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="dual_price must be > 0"):
            CouponMarketEnv(dual_price=price)
        with pytest.raises(ValueError, match="dual_price must be > 0"):
            CouponMarketVectorEnv(dual_price=price)
    for n in (0, 65):
        with pytest.raises(ValueError, match=rf"1\.\.64, the population; got {n}"):
            CouponMarketVectorEnv(num_envs=n)


def test_an_env_survives_pickling_in_the_middle_of_an_episode() -> None:
    env = CouponMarketEnv(market=demo_market(n_users=8))
    env.reset(seed=2)
    env.step(np.int64(1))
    copy = pickle.loads(pickle.dumps(env))
    for action in (0, 3, 0, 1):
        a, b = env.step(np.int64(action)), copy.step(np.int64(action))
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:3] == b[1:3]
    np.testing.assert_array_equal(env.reset()[0], copy.reset()[0])


def random_actions(env: CouponMarketVectorEnv, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.integers(0, len(env.market.catalogue), env.num_envs)


def test_the_vector_env_is_made_by_gymnasium() -> None:
    env = gymnasium.make_vec(ENV_ID, num_envs=5, vectorization_mode="vector_entry_point")
    observation, _ = env.reset(seed=0)
    assert env.num_envs == 5
    assert observation in env.observation_space
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP


def test_next_step_autoreset() -> None:
    env = CouponMarketVectorEnv(num_envs=6)
    rng = np.random.default_rng(0)
    env.reset(seed=3)
    for episode in range(3):
        users = env.campaign.users.clone()
        for week in range(8):
            observation, reward, terminated, truncated, _ = env.step(random_actions(env, rng))
            assert observation in env.observation_space
            assert terminated.tolist() == [week == 7] * 6
            assert not truncated.any()
            assert reward.shape == (6,)
        last = env.campaign
        # The step after the end starts anew, whatever the action, without reward.
        observation, reward, terminated, truncated, info = env.step(random_actions(env, rng))
        assert env.campaign is not last
        assert env.campaign.state.week == 0
        assert reward.tolist() == [0.0] * 6
        assert not terminated.any()
        assert not truncated.any()
        np.testing.assert_array_equal(info["action_mask"], env.action_masks())
        assert env.campaign.users.tolist() != users.tolist(), episode


def test_vector_envs_of_one_seed_live_the_same_weeks() -> None:
    one, two = CouponMarketVectorEnv(num_envs=10), CouponMarketVectorEnv(num_envs=10)
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(one.reset(seed=9)[0], two.reset(seed=9)[0])
    for _ in range(20):
        actions = random_actions(one, rng)
        a, b = one.step(actions), two.step(actions)
        for left, right in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(left, right)


def test_all_users_share_one_budget() -> None:
    env = CouponMarketVectorEnv(num_envs=40, budget_per_user=0.05, dual_price=2.0)
    env.reset(seed=0)
    rng = np.random.default_rng(2)
    total, refused = 0.0, 0
    for _ in range(8):
        before = env.action_masks().copy()
        actions = random_actions(env, rng)
        _, reward, _, _, info = env.step(actions)
        np.testing.assert_array_equal(info["masked"], ~before[np.arange(40), actions])
        assert not (info["masked"] & info["refused"]).any()
        np.testing.assert_allclose(reward, info["margin"] - 2.0 * info["cost"], atol=1e-5)
        total += float(info["cost"].sum())
        refused += int(info["refused"].sum())
    assert 0 < total <= 0.05 * 40 + 1e-9
    assert refused > 0
    assert len(set(env.campaign.users.tolist())) == 40
