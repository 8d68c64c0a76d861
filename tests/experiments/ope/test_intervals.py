from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.ope.episode_terms import EpisodeTerms, plain_mean
from experiments.ope.influence import cluster_influence, cluster_sums, standard_error
from experiments.ope.intervals import (
    Interval,
    IntervalKind,
    cluster_bootstrap,
    delta_interval,
    empirical_bernstein_interval,
    percentile_interval,
)
from experiments.ope.sequential import self_normalised, weighted_per_decision

KINDS: tuple[IntervalKind, ...] = ("percentile", "bca", "studentised")
CLUSTER = np.array([4, 4, 9, 1, 1, 1, 7, 30])


def random_terms(rng: np.random.Generator, n: int, width: int) -> EpisodeTerms:
    return EpisodeTerms(rng.normal(size=(n, width)), rng.lognormal(size=(n, width)))


def resampled_rows(draws: np.random.Generator, cluster: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster drawn, one array a draw."""
    names = np.unique(cluster)
    drawn = names[draws.integers(names.size, size=names.size)]
    return [np.flatnonzero(cluster == name) for name in drawn]


def test_equals_resampling_clusters_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.ope.intervals._BLOCK_BYTES", 8 * 5 * 3)  # blocks of 3 resamples
    rng = np.random.default_rng(0)
    terms = [random_terms(rng, 8, 1), random_terms(rng, 8, 3)]
    fast = cluster_bootstrap(terms, CLUSTER, rng=np.random.default_rng(5), n_bootstrap=10, studentise=True)
    assert fast.standard_errors is not None
    draws = np.random.default_rng(5)
    for estimates, errors in zip(fast.estimates, fast.standard_errors, strict=True):
        parts = resampled_rows(draws, CLUSTER)
        rows = np.concatenate(parts)
        again = np.repeat(np.arange(len(parts)), [part.size for part in parts])  # each draw a cluster
        slow = [EpisodeTerms(t.numerator[rows], t.denominator[rows]) for t in terms]
        np.testing.assert_allclose(estimates, [t.estimate() for t in slow], rtol=1e-12)
        influences = [cluster_influence(t, again) for t in slow]
        np.testing.assert_allclose(errors, [standard_error(i) for i in influences], rtol=1e-9)
    np.testing.assert_allclose(fast.estimate, [t.estimate() for t in terms])
    plain = cluster_bootstrap(terms, CLUSTER, rng=np.random.default_rng(5), n_bootstrap=10)
    np.testing.assert_array_equal(plain.estimates, fast.estimates)


def test_influence_is_the_derivative_by_a_clusters_weight() -> None:
    """ψ_c = C dθ/dm_c, where cluster c counts m_c times (Efron & Tibshirani 1993, ch. 21)."""
    terms = random_terms(np.random.default_rng(1), 8, 3)
    influence = cluster_influence(terms, CLUSTER)
    step = 1e-6
    for found, name in zip(influence, np.unique(CLUSTER), strict=True):
        values = []
        for sign in (1, -1):
            count = (1 + sign * step * (name == CLUSTER))[:, None]
            values.append(EpisodeTerms(terms.numerator * count, terms.denominator * count).estimate())
        assert found == pytest.approx(5 * (values[0] - values[1]) / (2 * step), rel=1e-6)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


def test_cluster_sums_in_the_order_of_names() -> None:
    values = np.arange(16.0).reshape(8, 2)
    np.testing.assert_array_equal(cluster_sums(values, CLUSTER)[:, 0], [24, 2, 12, 4, 14])
    shuffled = np.array([3, 1, 2, 0])
    np.testing.assert_array_equal(cluster_sums(values[:4], shuffled), values[[3, 1, 2, 0]])
    with pytest.raises(ValueError, match=r"cluster has shape \(3,\), expected \(8,\)"):
        cluster_sums(values, np.arange(3))


@pytest.mark.parametrize("constant", [1.0, 3.7, -0.3])
def test_constant_reward_gives_self_normalised_intervals_of_no_width(constant: float) -> None:
    rng = np.random.default_rng(1)
    episode, position = np.repeat(np.arange(200), 3), np.tile(np.arange(3), 200)
    for estimator in (self_normalised, weighted_per_decision):
        terms = estimator(
            outcome=np.full(600, constant), ratio=rng.lognormal(size=600), episode=episode, position=position
        )
        cluster = rng.integers(60, size=200)
        bootstrap = cluster_bootstrap([terms], cluster, rng=rng, n_bootstrap=200, studentise=True)
        for interval in (*(bootstrap.interval(0, kind) for kind in KINDS), delta_interval(terms, cluster)):
            assert interval.low == pytest.approx(3 * constant, rel=1e-12)
            assert interval.width == pytest.approx(0, abs=1e-12)


def test_delta_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    interval = delta_interval(plain_mean(values), np.arange(4), 0.9)
    half = 1.6448536269514722 * values.std(ddof=1) / 2
    assert (interval.low, interval.high) == pytest.approx((4 - half, 4 + half))


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_agree_on_a_ratio_of_many_clusters(kind: IntervalKind) -> None:
    rng = np.random.default_rng(2)
    terms = random_terms(rng, 4000, 3)
    cluster = rng.integers(1500, size=4000)
    bootstrap = cluster_bootstrap([terms], cluster, rng=rng, studentise=True).interval(0, kind)
    delta = delta_interval(terms, cluster)
    assert bootstrap.width == pytest.approx(delta.width, rel=0.1)
    assert bootstrap.low == pytest.approx(delta.low, abs=0.1 * delta.width)


def skewed_intervals(n_bootstrap: int) -> dict[IntervalKind, Interval]:
    values = np.random.default_rng(4).exponential(size=30)
    bootstrap = cluster_bootstrap(
        [plain_mean(values)],
        np.arange(30),
        rng=np.random.default_rng(5),
        n_bootstrap=n_bootstrap,
        studentise=True,
    )
    return {kind: bootstrap.interval(0, kind, 0.9) for kind in KINDS}


def test_bca_and_percentile_equal_scipy_on_a_skewed_mean() -> None:
    values = np.random.default_rng(4).exponential(size=30)
    found = skewed_intervals(40_000)
    methods: dict[IntervalKind, Any] = {"bca": "BCa", "percentile": "percentile"}
    for kind, method in methods.items():
        peer = stats.bootstrap(
            (values,), np.mean, n_resamples=40_000, confidence_level=0.9, method=method, rng=6
        ).confidence_interval
        width = peer.high - peer.low
        mine = found[kind]
        assert mine.low == pytest.approx(peer.low, abs=0.02 * width)
        assert mine.high == pytest.approx(peer.high, abs=0.02 * width)


def test_studentised_interval_by_hand() -> None:
    """By its definition with loops; and on skewed data it reaches farther to the long side than BCa."""
    values = np.random.default_rng(4).exponential(size=30)
    draws, scores = np.random.default_rng(5), []
    for _ in range(2000):
        sample = values[draws.integers(30, size=30)]
        scores.append((sample.mean() - values.mean()) / (sample.std(ddof=0) / np.sqrt(29)))
    low, high = np.quantile(scores, [0.05, 0.95])
    error = values.std(ddof=1) / np.sqrt(30)
    found = skewed_intervals(2000)
    assert found["studentised"].low == pytest.approx(values.mean() - high * error, rel=1e-9)
    assert found["studentised"].high == pytest.approx(values.mean() - low * error, rel=1e-9)
    assert found["studentised"].high > found["bca"].high > found["percentile"].high


def test_coverage_on_clustered_gaussian_means() -> None:
    """80 users with 1 to 5 episodes and a shared effect: by rows, a 90% interval would cover far less."""
    rng = np.random.default_rng(3)
    trials, hits = 400, np.zeros(len(KINDS) + 2)
    for _ in range(trials):
        cluster = np.repeat(np.arange(80), rng.integers(1, 6, size=80))
        outcome = 2.0 + rng.normal(size=80)[cluster] + 0.3 * rng.normal(size=cluster.size)
        terms = plain_mean(outcome)
        bootstrap = cluster_bootstrap([terms], cluster, rng=rng, n_bootstrap=200, studentise=True)
        intervals = [bootstrap.interval(0, kind, 0.9) for kind in KINDS]
        intervals += [
            delta_interval(terms, cluster, 0.9),
            delta_interval(terms, np.arange(cluster.size), 0.9),
        ]
        hits += [interval.low <= 2.0 <= interval.high for interval in intervals]
    *clustered, by_rows = hits / trials
    assert clustered == pytest.approx([0.9] * 4, abs=0.045)  # 3 standard errors
    assert by_rows < 0.8


def test_undefined_resamples_make_the_interval_undefined() -> None:
    weight = np.zeros((10, 1))
    weight[0] = 1.0  # a third of the resamples misses the only weight
    terms = EpisodeTerms(weight, weight)
    nothing = EpisodeTerms(np.zeros((10, 1)), np.zeros((10, 1)))
    bootstrap = cluster_bootstrap(
        [terms, nothing], np.arange(10), rng=np.random.default_rng(0), n_bootstrap=50, studentise=True
    )
    for kind in KINDS:
        for column in (0, 1):
            interval = bootstrap.interval(column, kind)
            assert np.isnan(interval.low)
            assert np.isnan(interval.high)
    assert np.isnan(delta_interval(nothing, np.arange(10)).high)


def test_empirical_bernstein_by_hand() -> None:
    """Three clusters whose values, in episodes' units, lie within [0, 10]; δ = 0.1, half to each side."""
    terms = plain_mean(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 3.0]))
    cluster = np.array([0, 0, 0, 1, 1, 2])
    interval = empirical_bernstein_interval(terms, cluster, bounds=(0.0, 10.0), confidence=0.9)
    values = np.array([6.0, 9.0, 3.0]) * 3 / 6
    half = np.sqrt(2 * values.var(ddof=1) * np.log(2 / 0.05) / 3) + 7 * 10 * np.log(2 / 0.05) / (3 * 2)
    assert (interval.low, interval.high) == pytest.approx((3 - half, 3 + half))
    assert values.mean() == terms.estimate()


def test_empirical_bernstein_covers_where_the_bootstrap_does_not() -> None:
    """50 draws of an indicator of chance 1%: most logs hold none, and the bootstrap is sure of 0."""
    rng, covered = np.random.default_rng(7), np.zeros(2)
    for _ in range(100):
        terms = plain_mean((rng.random(50) < 0.01).astype(np.float64))
        bound = empirical_bernstein_interval(terms, np.arange(50), bounds=(0.0, 1.0))
        resampled = cluster_bootstrap([terms], np.arange(50), rng=rng, n_bootstrap=50)
        bootstrap = percentile_interval(resampled.estimates[:, 0])
        covered += [bound.low <= 0.01 <= bound.high, bootstrap.low <= 0.01 <= bootstrap.high]
    assert covered[0] == 100
    assert covered[1] < 60


def test_bad_arguments() -> None:
    terms = random_terms(np.random.default_rng(0), 4, 1)
    with pytest.raises(ValueError, match="at least 2 clusters"):
        delta_interval(terms, np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="confidence"):
        delta_interval(terms, np.arange(4), confidence=95)
    with pytest.raises(ValueError, match="n_bootstrap"):
        cluster_bootstrap([terms], np.arange(4), rng=np.random.default_rng(0), n_bootstrap=0)
    bootstrap = cluster_bootstrap([terms], np.arange(4), rng=np.random.default_rng(0), n_bootstrap=5)
    with pytest.raises(ValueError, match="pass studentise=True"):
        bootstrap.interval(0, "studentised")
    with pytest.raises(ValueError, match="not for ratios"):
        empirical_bernstein_interval(terms, np.arange(4), bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"bounds: cluster 1 has 2, outside \[0, 1\] \(2 such\)"):
        empirical_bernstein_interval(plain_mean(np.arange(3.0) + 1), np.arange(3), bounds=(0.0, 1.0))
