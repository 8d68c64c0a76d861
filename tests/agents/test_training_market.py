from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor

from agents.pacing import PriceRange
from agents.training_market import MOST_SURCHARGE, SURCHARGED_SHARE, TrainingMarket
from agents.visit_value import VisitValue
from envs.assumptions import ASSUMED_RANGES, AssumedResponse
from envs.campaign import UNLIMITED_BUDGET, Campaign, MarketSpec
from envs.demo_market import demo_market
from envs.observation import LOG_DUAL_PRICE
from envs.simulator import Simulator

N, WEEKS, SCALE = 12, 4, 0.05
PRICES = PriceRange(0.02, 5.0)


@cache
def market() -> MarketSpec:
    return demo_market(n_users=40, horizon_weeks=WEEKS)


@cache
def visit_value() -> VisitValue:
    """Untrained: any value of a visit will do where only the arithmetic is tested."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return VisitValue(4, WEEKS, 0.28).eval().requires_grad_(False)


def worlds() -> list[Simulator]:
    predictor = market().predictor
    return [predictor, replace(predictor, margin_rate=0.5, name="rich")]


def training(n_users: int = N, seed: int = 3, users: Sequence[int] = range(40)) -> TrainingMarket:
    return TrainingMarket(
        market(),
        worlds(),
        [0],
        users=torch.tensor(users),
        n_users=n_users,
        prices=PRICES,
        visit_value=visit_value(),
        reward_scale=SCALE,
        seed=seed,
    )


def allowed_at_random(env: TrainingMarket, rng: np.random.Generator) -> np.ndarray:
    masks = env.action_masks()
    return np.array([rng.choice(np.flatnonzero(row)) for row in masks])


def test_the_vector_environment_keeps_stable_baselines_contract() -> None:
    env, rng = training(), np.random.default_rng(0)
    width = market().layout.width
    observation = env.reset()
    assert env.num_envs == N
    for week in range(2 * WEEKS):
        assert observation.shape == (N, width)
        assert observation.dtype == np.float32
        assert all(env.observation_space.contains(row) for row in observation)
        stepped, reward, done, infos = env.step(allowed_at_random(env, rng))
        assert isinstance(stepped, np.ndarray)
        observation = stepped
        assert reward.shape == (N,)
        assert reward.dtype == np.float32
        assert done.dtype == np.bool_
        assert len(infos) == N
        last = week % WEEKS == WEEKS - 1
        assert done.tolist() == [last] * N
        for k, info in enumerate(infos):
            # The next episode's first observation is returned; the last one of this comes in the info.
            assert ("terminal_observation" in info) == last
            if last:
                terminal = info["terminal_observation"]
                assert terminal.shape == (width,)
                assert np.isfinite(terminal).all()
                assert terminal[market().layout.names().index("weeks_left")] == 0
                assert observation[k][market().layout.names().index("weeks_left")] == WEEKS
                assert info["TimeLimit.truncated"] is False
    assert env.episode == 2


def test_masks_come_one_row_per_index() -> None:
    env = training()
    env.reset()
    rows = env.env_method("action_masks")
    assert np.array_equal(np.stack(rows), env.action_masks())
    assert rows[0].dtype == np.bool_
    assert rows[0].shape == (len(market().catalogue),)
    some = env.env_method("action_masks", indices=[2, 5])
    assert np.array_equal(np.stack(some), env.action_masks()[[2, 5]])
    assert env.env_is_wrapped(VecMonitor, indices=[0, 1]) == [False, False]
    assert env.get_attr("episode", indices=1) == [0]
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")


def weekly_multiplier(price: np.ndarray, pressure: np.ndarray, week: int) -> np.ndarray:
    """μ of a week, [n]: a share of the first week's λ alike in all weeks, the rest in the last."""
    last = (1.0 - pressure) * price if week == WEEKS - 1 else 0.0
    return np.asarray(pressure * price / WEEKS + last)


@pytest.mark.parametrize("episode", [0, 1])
def test_the_reward_by_hand_from_a_parallel_campaign(episode: int) -> None:
    env, rng = training(seed=9), np.random.default_rng(1)
    env.episode = episode
    observation = env.reset()
    # The documented seeding: everything of an episode follows from the seed and its number.
    drawn = np.random.default_rng([9, episode])
    users = torch.from_numpy(drawn.choice(40, N, replace=False))
    start = int(drawn.choice([0]))
    redrawn = [replace(world, assumed=AssumedResponse.draw(drawn)) for world in worlds()]
    luck = int(drawn.integers(2**62))
    beside = Campaign(market(), redrawn, start=start, users=users, budget=UNLIMITED_BUDGET, seed=luck)
    first = np.exp(drawn.uniform(np.log(PRICES.low), np.log(PRICES.high), N))
    pressure = drawn.uniform(size=N)
    surcharge = first * drawn.uniform(0.0, MOST_SURCHARGE, N)
    surcharged_weeks = drawn.integers(0, WEEKS + 1, N) * (drawn.random(N) < SURCHARGED_SHARE)
    longest = int(market().offers.validity_weeks.max())
    total = np.zeros(N)
    sums = {"incremental": 0.0, "cost": 0.0}
    for week in range(WEEKS):
        # λ_s is what all multipliers from week s on add up to; μ_t / λ_s of it does not depend on the last.
        multipliers = [weekly_multiplier(first, pressure, t) for t in range(week, WEEKS)]
        price = np.sum(multipliers, axis=0)
        # A week's own multiplier may be higher still; with a coupon of the longest validity, that is felt as
        # if all weeks' were by so much that it comes to the same.
        more = surcharge * (week < surcharged_weeks)
        weekly = pressure * first / WEEKS + more / min(longest, WEEKS - week)
        price = price + more
        share = weekly * (WEEKS - week) / price
        seen = beside.observation(torch.from_numpy(price).float(), torch.from_numpy(share).float())
        np.testing.assert_allclose(observation, seen.numpy(), rtol=1e-4, atol=1e-5)
        after = visit_value().after(beside).double().numpy()
        actions = allowed_at_random(env, rng)
        outcome, expected = beside.step_with_expectation(torch.from_numpy(actions))
        observation, reward, _, _ = env.step(actions)  # type: ignore[assignment]
        cost = expected.discount.double().numpy() + outcome.delivery.double().numpy() / 10_000
        incremental = (expected.margin - expected.idle_margin).double().numpy()
        more_visits = (expected.visit - expected.idle_visit).double().numpy()
        incremental = incremental + more_visits * (after[:, 1] - after[:, 0])
        reserved = outcome.reserved.double().numpy() / 10_000
        by_hand = (incremental - price * cost - (multipliers[0] + more) * reserved) / SCALE
        np.testing.assert_allclose(reward, by_hand, rtol=1e-4, atol=1e-4)
        total += reward
        sums["incremental"] += float(incremental.sum())
        sums["cost"] += float(cost.sum())
    totals = env.take_totals()
    assert totals["reward"] == pytest.approx(total.sum(), rel=1e-4, abs=1e-3)
    assert totals["incremental_margin"] == pytest.approx(sums["incremental"], rel=1e-4, abs=1e-4)
    assert totals["cost"] == pytest.approx(sums["cost"], rel=1e-4)
    assert totals["user_weeks"] == N * WEEKS
    assert set(env.take_totals().values()) == {0.0}


def test_sending_nothing_earns_exactly_nothing() -> None:
    env = training()
    env.reset()
    for _ in range(2 * WEEKS):
        _, reward, _, _ = env.step(np.zeros(N, dtype=np.int64))
        assert reward.tolist() == [0.0] * N


def test_only_who_holds_nothing_and_gets_nothing_earns_exactly_nothing() -> None:
    env, rng = training(), np.random.default_rng(2)
    env.reset()
    idle_again = 0
    for week in range(WEEKS):
        held = env._campaign.state.coupons.held.numpy()
        actions = np.where(rng.random(N) < 0.5, allowed_at_random(env, rng), 0)
        idle = ~held & (actions == 0)
        _, reward, _, _ = env.step(actions)
        assert (reward[idle] == 0).all()
        assert (reward[~idle] != 0).all()
        idle_again += int(idle.sum()) * (week > 0)
    # Also for users whose history earlier offers had changed.
    assert idle_again > 0


def test_an_episode_follows_from_its_number_alone() -> None:
    def episode(env: TrainingMarket) -> list[np.ndarray]:
        rng = np.random.default_rng(5)
        seen = []
        for _ in range(WEEKS):
            observation, reward, _, infos = env.step(allowed_at_random(env, rng))
            seen += [reward, infos[0].get("terminal_observation", observation)]
        return seen

    whole = training()
    coming = whole.reset()
    for k in range(3):
        resumed = training()
        resumed.episode = k
        assert np.array_equal(resumed.reset(), coming)
        for a, b in zip(episode(whole), episode(resumed), strict=True):
            assert np.array_equal(a, b)
        coming = whole._observation()
    other = training(seed=4)
    assert not np.array_equal(other.reset(), training().reset())


def test_resetting_twice_opens_the_same_episode() -> None:
    env = training()
    first = env.reset()
    env.step(np.zeros(N, dtype=np.int64))
    assert np.array_equal(env.reset(), first)


def test_users_prices_and_worlds_of_an_episode() -> None:
    env = training(users=range(20, 40))
    prices, pressures, surcharges, weeks, assumed = [], [], [], [], []
    for episode in range(60):
        env.episode = episode
        observation = env.reset()
        users = env._campaign.users
        assert len(set(users.tolist())) == N
        assert users.min() >= 20
        first = torch.as_tensor(env._prices.spend(WEEKS))
        plain = (env._surcharged_weeks == 0).numpy()
        np.testing.assert_allclose(observation[plain, LOG_DUAL_PRICE], first.log().numpy()[plain], rtol=1e-4)
        prices += first.log().tolist()
        pressures += torch.as_tensor(env._prices.pressure(WEEKS)).tolist()
        surcharges += (env._surcharge / first).tolist()
        weeks += env._surcharged_weeks.tolist()
        world = env._campaign.world
        # Each world answers for every second user, with assumptions drawn for this episode.
        assert [simulator.margin_rate for simulator in world.simulators] == [0.28, 0.5]
        assert world.member is not None
        assert torch.bincount(world.member).tolist() == [N // 2, N // 2]
        assumed += [simulator.assumed for simulator in world.simulators]
    low, high = np.log(PRICES.low), np.log(PRICES.high)
    assert low - 1e-5 <= min(prices) < low + 0.1
    assert high - 0.1 < max(prices) <= high + 1e-5
    assert np.mean(prices) == pytest.approx((low + high) / 2, abs=0.25)
    assert 0 <= min(pressures) < 0.02 < 0.98 < max(pressures) <= 1
    assert np.mean(pressures) == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(prices, pressures)[0, 1]) < 0.15
    assert 0 <= min(surcharges) < 0.02 < MOST_SURCHARGE - 0.02 < max(surcharges) <= MOST_SURCHARGE + 1e-6
    spared, each = 1.0 - SURCHARGED_SHARE, SURCHARGED_SHARE / (WEEKS + 1)
    assert np.bincount(weeks) / len(weeks) == pytest.approx([spared + each, *[each] * WEEKS], abs=0.05)
    assert len(set(assumed)) == 120
    for name, of in ASSUMED_RANGES.items():
        values = np.array([getattr(response, name) for response in assumed])
        assert (values >= of.low).all()
        assert (values <= of.high).all()
        middle, error = (of.low + of.high) / 2, (of.high - of.low) / np.sqrt(12 * 120)
        assert abs(values.mean() - middle) < 4 * error
    # More seats than users: the same user at several prices.
    crowded = training(n_users=30, users=range(5))
    crowded.reset()
    assert set(crowded._campaign.users.tolist()) <= set(range(5))


def test_the_worlds_given_are_left_as_they_were() -> None:
    env = training()
    env.reset()
    assert [world.assumed for world in env.worlds] == [AssumedResponse.central()] * 2
    assert env.worlds == tuple(worlds())


def test_training_needs_a_world_and_a_start() -> None:
    arguments = {
        "users": torch.arange(4),
        "n_users": 2,
        "prices": PRICES,
        "visit_value": visit_value(),
        "reward_scale": 1.0,
        "seed": 0,
    }
    for some_worlds, starts in (([], [0]), (worlds(), [])):
        with pytest.raises(ValueError, match="at least one world and one start week"):
            TrainingMarket(market(), some_worlds, starts, **arguments)  # type: ignore[arg-type]
