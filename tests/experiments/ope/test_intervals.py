from __future__ import annotations

import numpy as np
import pytest

from experiments.ope.estimators import EpisodeTerms, self_normalised, weighted_per_decision
from experiments.ope.intervals import bootstrap_estimates, delta_interval, percentile_interval


def random_terms(rng: np.random.Generator, n: int, width: int) -> EpisodeTerms:
    return EpisodeTerms(rng.normal(size=(n, width)), rng.lognormal(size=(n, width)))


def test_equals_resampling_clusters_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.ope.intervals._BLOCK_BYTES", 8 * 5 * 3)  # blocks of 3 resamples
    rng = np.random.default_rng(0)
    cluster = np.array([4, 4, 9, 1, 1, 1, 7, 30])
    terms = [random_terms(rng, 8, 1), random_terms(rng, 8, 3)]
    fast = bootstrap_estimates(terms, cluster, rng=np.random.default_rng(5), n_bootstrap=10)
    draws = np.random.default_rng(5)
    names = np.unique(cluster)
    for resample in fast:
        drawn = names[draws.integers(names.size, size=names.size)]
        rows = np.concatenate([np.flatnonzero(cluster == name) for name in drawn])
        slow = [EpisodeTerms(t.numerator[rows], t.denominator[rows]).estimate() for t in terms]
        np.testing.assert_allclose(resample, slow, rtol=1e-12)


@pytest.mark.parametrize("constant", [1.0, 3.7, -0.3])
def test_constant_reward_gives_self_normalised_intervals_of_no_width(constant: float) -> None:
    rng = np.random.default_rng(1)
    episode, position = np.repeat(np.arange(200), 3), np.tile(np.arange(3), 200)
    for estimator in (self_normalised, weighted_per_decision):
        terms = estimator(
            outcome=np.full(600, constant), ratio=rng.lognormal(size=600), episode=episode, position=position
        )
        cluster = rng.integers(60, size=200)
        bootstrap = percentile_interval(bootstrap_estimates([terms], cluster, rng=rng)[:, 0])
        for interval in (bootstrap, delta_interval(terms, cluster)):
            assert interval.low == pytest.approx(3 * constant, rel=1e-12)
            assert interval.width == pytest.approx(0, abs=1e-12)


def test_delta_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    interval = delta_interval(EpisodeTerms(values[:, None], np.ones((4, 1))), np.arange(4), 0.9)
    half = 1.6448536269514722 * values.std(ddof=1) / 2
    assert (interval.low, interval.high) == pytest.approx((4 - half, 4 + half))


def test_both_intervals_agree_on_a_ratio_of_many_clusters() -> None:
    rng = np.random.default_rng(2)
    terms = random_terms(rng, 4000, 3)
    cluster = rng.integers(1500, size=4000)
    bootstrap = percentile_interval(bootstrap_estimates([terms], cluster, rng=rng)[:, 0])
    delta = delta_interval(terms, cluster)
    assert bootstrap.width == pytest.approx(delta.width, rel=0.1)
    assert bootstrap.low == pytest.approx(delta.low, abs=0.1 * delta.width)


def test_coverage_on_clustered_gaussian_means() -> None:
    """80 users with 1 to 5 episodes and a shared effect: by rows, a 90% interval would cover far less."""
    rng = np.random.default_rng(3)
    trials, hits = 400, np.zeros(3)
    for _ in range(trials):
        cluster = np.repeat(np.arange(80), rng.integers(1, 6, size=80))
        outcome = 2.0 + rng.normal(size=80)[cluster] + 0.3 * rng.normal(size=cluster.size)
        terms = EpisodeTerms(outcome[:, None], np.ones((cluster.size, 1)))
        estimates = bootstrap_estimates([terms], cluster, rng=rng, n_bootstrap=200)[:, 0]
        by_rows = delta_interval(terms, np.arange(cluster.size), 0.9)
        intervals = (percentile_interval(estimates, 0.9), delta_interval(terms, cluster, 0.9), by_rows)
        hits += [interval.low <= 2.0 <= interval.high for interval in intervals]
    bootstrap, delta, rows = hits / trials
    assert bootstrap == pytest.approx(0.9, abs=0.045)  # 3 standard errors
    assert delta == pytest.approx(0.9, abs=0.045)
    assert rows < 0.8


def test_undefined_resamples_make_the_interval_undefined() -> None:
    weight = np.zeros((10, 1))
    weight[0] = 1.0  # a third of the resamples misses the only weight
    terms = EpisodeTerms(weight, weight)
    estimates = bootstrap_estimates([terms], np.arange(10), rng=np.random.default_rng(0), n_bootstrap=50)
    assert np.isnan(percentile_interval(estimates[:, 0]).low)
    nothing = EpisodeTerms(np.zeros((10, 1)), np.zeros((10, 1)))
    assert np.isnan(delta_interval(nothing, np.arange(10)).high)


def test_bad_arguments() -> None:
    terms = random_terms(np.random.default_rng(0), 4, 1)
    with pytest.raises(ValueError, match="at least 2 clusters"):
        delta_interval(terms, np.zeros(4, dtype=np.int64))
    with pytest.raises(ValueError, match="confidence"):
        delta_interval(terms, np.arange(4), confidence=95)
    with pytest.raises(ValueError, match="n_bootstrap"):
        bootstrap_estimates([terms], np.arange(4), rng=np.random.default_rng(0), n_bootstrap=0)
