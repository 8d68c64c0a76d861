from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents.adaptive import AdaptivePolicy
from agents.bandits import BanditFeatures, LinearThompsonSampling, LinUCB
from agents.experience import Experience, collect_experience
from agents.policy import RandomPolicy, sample
from envs.campaign import UNLIMITED_BUDGET, Campaign
from envs.demo_market import demo_market
from envs.observation import CONTEXT_FEATURES, LOG_DUAL_PRICE, PRESSURE, ObservationLayout

K = 3
LAYOUT = ObservationLayout(2, K)
NAMES = LAYOUT.names()
VISIT, BASKET = (CONTEXT_FEATURES.index(name) for name in ("visit_probability", "expected_basket_margin"))
Rows = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def observed(n: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    rows = np.zeros((n, LAYOUT.width), dtype=np.float32)
    rows[:, : LAYOUT.n_context] = rng.normal(2.0, 3.0, size=(n, LAYOUT.n_context))
    rows[:, VISIT] = rng.random(n)
    rows[:, [LOG_DUAL_PRICE, PRESSURE]] = 0.0
    # A column that never changes must do no harm.
    rows[:, CONTEXT_FEATURES.index("visit_trend")] = 0.25
    for k in (1, 2):
        rows[:, NAMES.index(f"uplift_{k}")] = rng.gamma(2.0, 0.2 * k, size=n)
        rows[:, NAMES.index(f"cost_{k}")] = 0.2 * k
        rows[:, NAMES.index(f"reserve_{k}")] = 0.3 * k
    return rows


def true_margin(rows: Rows, offer: npt.NDArray[np.int64]) -> Doubles:
    """Linear in the features: offer 1 gains with the visit probability, offer 2 loses with it."""
    slope = np.array([0.0, 1.5, -1.5])[offer]
    level = np.array([0.0, 0.2, 1.4])[offer]
    return np.asarray(level + slope * rows[:, VISIT], dtype=np.float64)


@cache
def experience(n: int = 3_000, noise: float = 0.5) -> Experience:
    rng = np.random.default_rng(5)
    rows, offer = observed(n, 0), rng.integers(K, size=n)
    margin = true_margin(rows, offer) + noise * rng.normal(size=n)
    return Experience(
        layout=LAYOUT,
        observation=rows,
        mask=np.ones((n, K), dtype=np.bool_),
        offer=offer,
        propensity=np.full(n, 1 / K, dtype=np.float32),
        margin=margin.astype(np.float32),
        cost=np.zeros(n, dtype=np.float32),
        window_weeks=1,
    )


def features_by_hand(given: Experience, rows: Rows, offer: npt.NDArray[np.int64]) -> Doubles:
    """One; context and embedding without λ and its pressure, standardised; uplift over its RMS."""
    keep = [k for k in range(LAYOUT.n_context) if NAMES[k] not in ("log_dual_price", "pressure")]
    seen = given.observation[:, keep].astype(np.float64)
    deviation = seen.std(axis=0)
    deviation[deviation < 1e-6] = 1.0
    user = (rows[:, keep] - seen.mean(axis=0)) / deviation
    block = given.observation[:, [NAMES.index(f"uplift_{k}") for k in range(K)]].astype(np.float64)
    uplift = np.array([rows[i, NAMES.index(f"uplift_{k}")] for i, k in enumerate(offer)])
    return np.column_stack([np.ones(len(rows)), user, uplift / np.sqrt((block**2).mean())])


def ridge_by_hand(x: Doubles, reward: Doubles, ridge: float, weight: Doubles | None = None) -> Doubles:
    """Ridge regression as least squares on rows that are added: another way than the normal equations."""
    root = np.ones(len(x)) if weight is None else np.sqrt(weight)
    rows = np.vstack([root[:, None] * x, np.sqrt(ridge) * np.eye(x.shape[1])])
    return np.asarray(np.linalg.lstsq(rows, np.append(root * reward, np.zeros(x.shape[1])))[0])


def bandits() -> list[LinUCB | LinearThompsonSampling]:
    return [
        LinUCB.fit(experience(), alpha=0.5, ridge=2.0),
        LinearThompsonSampling.fit(experience(), seed=3, ridge=2.0),
    ]


BANDITS = pytest.mark.parametrize("which", [0, 1], ids=["LinUCB", "LinTS"])


# The regressions -----------------------------------------------------------------------------------


@BANDITS
def test_theta_is_the_ridge_estimate(which: int) -> None:
    bandit, given = bandits()[which], experience()
    x = features_by_hand(given, given.observation, given.offer)
    margin = given.margin.astype(np.float64)
    residual = np.empty(len(x))
    for k in range(K):
        rows = given.offer == k
        theta = ridge_by_hand(x[rows], margin[rows], 2.0)
        np.testing.assert_allclose(bandit.theta[k], theta, atol=1e-8)
        residual[rows] = margin[rows] - x[rows] @ theta
    assert bandit.noise_variance == pytest.approx((residual**2).mean())
    assert bandit.noise_variance == pytest.approx(0.25, rel=0.1)


@BANDITS
def test_learning_adds_the_week_with_its_weight(which: int) -> None:
    given = experience()
    bandit = bandits()[which].fresh(1)
    noise = bandit.noise_variance
    # A real week: margins with the whole basket in them, far noisier than the experience.
    week, rng = observed(400, 8), np.random.default_rng(2)
    offer = rng.integers(K, size=400)
    expected = week[:, VISIT].astype(np.float64) * week[:, BASKET]
    margin = expected + true_margin(week, offer) + 6.0 * rng.normal(size=400)
    x = features_by_hand(given, week, offer)
    surprise = margin - expected - (x * bandit.theta[offer]).sum(axis=1)
    weight = noise / (surprise**2).mean()
    assert weight < 0.02
    bandit.learn(torch.from_numpy(week), torch.from_numpy(offer), torch.from_numpy(margin), torch.zeros(400))
    first = features_by_hand(given, given.observation, given.offer)
    for k in range(K):
        old, new = given.offer == k, offer == k
        theta = ridge_by_hand(
            np.vstack([first[old], x[new]]),
            np.append(given.margin[old].astype(np.float64), (margin - expected)[new]),
            2.0,
            np.append(np.ones(old.sum()), np.full(new.sum(), weight)),
        )
        np.testing.assert_allclose(bandit.theta[k], theta, atol=1e-7)


def test_many_noisy_weeks_bring_it_to_a_changed_truth() -> None:
    bandit = LinUCB.fit(experience(300), alpha=0.0).fresh(0)
    rng = np.random.default_rng(0)
    for week in range(60):
        rows, offer = observed(500, 100 + week), rng.integers(K, size=500)
        expected = rows[:, VISIT].astype(np.float64) * rows[:, BASKET]
        # In this campaign offer 1 is worth one more than it was, whoever gets it.
        margin = expected + true_margin(rows, offer) + (offer == 1) + 2.0 * rng.normal(size=500)
        bandit.learn(*(torch.from_numpy(each) for each in (rows, offer, margin, 0.0 * margin)))
    rows = observed(500, 9)
    x = bandit.features(rows, np.full(500, 1))
    gain = float((x @ bandit.theta[1] - true_margin(rows, np.full(500, 1))).mean())
    # The first hundred rows of offer 1 count sixteen-fold: 1 - 100 / (100 + 10,000 / 16).
    assert gain == pytest.approx(0.86, abs=0.1)


# Scores --------------------------------------------------------------------------------------------


def chosen(scores: Doubles, price: float, mask: npt.NDArray[np.bool_]) -> list[int]:
    net = scores - price * np.array([0.0, 0.5, 1.0])
    return [int(k) for k in np.where(mask, net, -np.inf).argmax(axis=1)]


@pytest.mark.parametrize("price", [0.05, 0.7, 1.5])
def test_linucb_takes_the_best_upper_bound_net_of_the_price(price: float) -> None:
    given = experience(60)
    bandit = LinUCB.fit(given, alpha=2.0, ridge=1.5)
    rows = observed(200, 4)
    rows[:, LOG_DUAL_PRICE] = np.log(price)
    mask = np.random.default_rng(0).random((200, K)) < 0.8
    mask[:, 0] = True
    scores = np.empty((200, K))
    for k in range(K):
        x = features_by_hand(given, rows, np.full(200, k))
        old = features_by_hand(given, given.observation, given.offer)[given.offer == k]
        inverse = np.linalg.inv(1.5 * np.eye(x.shape[1]) + old.T @ old)
        width = np.array([np.sqrt(row @ inverse @ row) for row in x])
        scores[:, k] = x @ bandit.theta[k] + 2.0 * np.sqrt(bandit.noise_variance) * width
    probabilities = bandit.probabilities(torch.from_numpy(rows), torch.from_numpy(mask))
    assert probabilities.argmax(dim=1).tolist() == chosen(scores, price, mask)
    assert probabilities.sum(dim=1).tolist() == [1.0] * 200
    assert probabilities.max(dim=1).values.tolist() == [1.0] * 200
    assert probabilities.dtype == torch.float32


def test_linucb_tries_what_it_does_not_know() -> None:
    given = experience()
    often = given.offer != 2
    seldom = np.flatnonzero(given.offer == 2)[:5]
    kept = np.sort(np.append(np.flatnonzero(often), seldom))
    few = replace(
        given,
        **{name: getattr(given, name)[kept] for name in ("observation", "mask", "offer", "propensity")},
        margin=given.margin[kept],
        cost=given.cost[kept],
    )
    rows, mask = torch.from_numpy(observed(300, 2)), torch.ones(300, K, dtype=torch.bool)
    shares = [
        float(LinUCB.fit(few, alpha=alpha).probabilities(rows, mask)[:, 2].mean()) for alpha in (0.0, 10.0)
    ]
    assert shares[1] > 0.95
    assert shares[0] < shares[1]


def test_the_draws_of_lints_have_the_moments_of_the_posterior() -> None:
    bandit = LinearThompsonSampling.fit(experience(300), seed=0, scale=1.5, ridge=2.0)
    draws = np.array([bandit.fresh(seed).drawn for seed in range(4_000)])
    assert draws.shape == (4_000, K, bandit.features.width)
    for k in range(K):
        covariance = 1.5**2 * bandit.noise_variance * np.linalg.inv(bandit.precision[k])
        deviation = np.sqrt(np.diag(covariance))
        z = (draws[:, k].mean(axis=0) - bandit.theta[k]) / deviation * np.sqrt(4_000)
        assert np.abs(z).max() < 4.5
        found = np.cov(draws[:, k].T)
        scale = deviation[:, None] * deviation
        np.testing.assert_allclose(found / scale, covariance / scale, atol=0.08)


def test_lints_chooses_by_its_draw_and_draws_once_a_week() -> None:
    bandit = LinearThompsonSampling.fit(experience(60), seed=0, scale=3.0).fresh(7)
    rows, mask = torch.from_numpy(observed(100, 3)), torch.ones(100, K, dtype=torch.bool)
    before = bandit.drawn.copy()
    for price in (0.1, 0.9):
        rows[:, LOG_DUAL_PRICE] = float(np.log(price))
        scores = np.column_stack(
            [
                features_by_hand(experience(60), rows.numpy(), np.full(100, k)) @ bandit.drawn[k]
                for k in range(K)
            ]
        )
        probabilities = bandit.probabilities(rows, mask)
        assert probabilities.argmax(dim=1).tolist() == chosen(scores, price, mask.numpy())
        # Asking again, at whatever price, is answered by the same draw.
        assert np.array_equal(bandit.drawn, before)
        assert torch.equal(bandit.probabilities(rows, mask), probabilities)
    bandit.learn(rows, torch.zeros(100, dtype=torch.int64), torch.zeros(100), torch.zeros(100))
    assert not np.array_equal(bandit.drawn, before)
    without = LinearThompsonSampling.fit(experience(60), seed=0, scale=0.0)
    np.testing.assert_allclose(without.drawn, without.theta)


@BANDITS
def test_a_higher_price_never_uses_more(which: int) -> None:
    bandit = bandits()[which]
    rows, mask = torch.from_numpy(observed(300, 6)), torch.ones(300, K, dtype=torch.bool)
    used = []
    for price in np.geomspace(0.01, 30, 25):
        rows[:, LOG_DUAL_PRICE] = float(np.log(price))
        used.append(float((bandit.probabilities(rows, mask) @ torch.tensor([0.0, 0.5, 1.0])).sum()))
    assert used == sorted(used, reverse=True)
    assert used[0] > 100
    assert used[-1] == 0


@BANDITS
def test_the_best_offer_of_each_user_is_found(which: int) -> None:
    rows, mask = observed(500, 11), torch.ones(500, K, dtype=torch.bool)
    rows[:, LOG_DUAL_PRICE] = -20.0
    truth = np.column_stack([true_margin(rows, np.full(500, k)) for k in range(K)])
    found = bandits()[which].probabilities(torch.from_numpy(rows), mask).argmax(dim=1).numpy()
    assert (truth.max(axis=1) - truth[np.arange(500), found]).mean() < 0.05


# In campaigns --------------------------------------------------------------------------------------


@BANDITS
def test_a_fresh_copy_learns_alone(which: int) -> None:
    bandit = bandits()[which]
    assert isinstance(bandit, AdaptivePolicy)
    rows, mask = torch.from_numpy(observed(50, 1)), torch.ones(50, K, dtype=torch.bool)
    theta, before = bandit.theta.copy(), bandit.probabilities(rows, mask)
    first, second = bandit.fresh(5), bandit.fresh(5)
    week = (rows, torch.ones(50, dtype=torch.int64), torch.full((50,), 40.0), torch.zeros(50))
    for _ in range(3):
        first.learn(*week)
    assert np.array_equal(bandit.theta, theta)
    assert torch.equal(bandit.probabilities(rows, mask), before)
    assert np.array_equal(second.theta, theta)
    assert not np.array_equal(first.theta, theta)
    # Equal seeds and weeks, equal copies.
    for _ in range(3):
        second.learn(*week)
    assert np.array_equal(first.theta, second.theta)
    assert torch.equal(first.probabilities(rows, mask), second.probabilities(rows, mask))


@BANDITS
def test_a_row_depends_neither_on_the_others_nor_on_what_was_asked_before(which: int) -> None:
    bandit = bandits()[which]
    rows, mask = torch.from_numpy(observed(20, 1)), torch.ones(20, K, dtype=torch.bool)
    together = bandit.probabilities(rows, mask)
    alone = [bandit.probabilities(rows[k : k + 1], mask[k : k + 1]) for k in range(20)]
    assert torch.equal(torch.cat(alone), together)
    assert bandit.probabilities(rows[:0], mask[:0]).shape == (0, K)


@pytest.mark.parametrize("which", [0, 1])
def test_a_campaign_of_the_market(which: int) -> None:
    market = demo_market(n_users=30, horizon_weeks=4)
    given = collect_experience(
        market,
        [market.predictor],
        [0],
        users=torch.arange(30),
        n_users=30,
        n_rows=360,
        window_weeks=1,
        seed=0,
    )
    bandit = (LinUCB.fit(given) if which == 0 else LinearThompsonSampling.fit(given, seed=0)).fresh(0)
    running = Campaign(
        market, market.predictor, start=0, users=torch.arange(30), budget=UNLIMITED_BUDGET, seed=1
    )
    while not running.done:
        observation = running.observation(torch.full((30,), 0.3))
        probabilities = bandit.probabilities(observation, running.mask)
        assert (probabilities[~running.mask] == 0).all()
        offer = sample(probabilities, torch.rand(30, generator=torch.Generator().manual_seed(0)))
        outcome = running.step(offer)
        bandit.learn(observation, outcome.offer, outcome.margin, outcome.cost)
    assert np.isfinite(bandit.theta).all()
    assert not isinstance(RandomPolicy(), AdaptivePolicy)


# Bad input -----------------------------------------------------------------------------------------


def test_what_cannot_be_learned_from_is_refused() -> None:
    given = experience(30)
    with pytest.raises(ValueError, match="one week at a time; the experience sums over 2"):
        LinUCB.fit(replace(given, window_weeks=2))
    features = BanditFeatures.of_experience(given)
    empty = {
        name: getattr(given, name)[:0]
        for name in ("observation", "mask", "offer", "propensity", "margin", "cost")
    }
    with pytest.raises(ValueError, match="has no rows"):
        LinUCB(features).warm_start(replace(given, **empty))
    other = ObservationLayout(3, K)
    wider = np.zeros((30, other.width), dtype=np.float32)
    with pytest.raises(ValueError, match="another observation layout"):
        LinUCB(features).warm_start(replace(given, layout=other, observation=wider))
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="ridge must be > 0"):
            LinUCB(features, ridge=ridge)
    with pytest.raises(ValueError, match="alpha must be >= 0"):
        LinUCB(features, alpha=-0.1)
    with pytest.raises(ValueError, match="scale must be >= 0"):
        LinearThompsonSampling(features, 0, scale=-0.1)
