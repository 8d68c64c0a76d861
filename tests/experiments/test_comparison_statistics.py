from __future__ import annotations

import numpy as np
import pytest

from experiments.comparison.statistics import Estimate, PairedDifference, Resamples


def normal(n_worlds: int, n_users: int, between: float, within: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    worlds = between * rng.standard_normal((n_worlds, 1))
    users = within * rng.standard_normal((1, n_users))
    return 1.0 + worlds + users


def drawn(n_worlds: int, n_users: int, n: int = 2000, seed: int = 1) -> Resamples:
    return Resamples.draw(n_worlds, n_users, n, np.random.default_rng(seed))


def test_weights_are_counts_of_draws_with_replacement() -> None:
    resamples = drawn(5, 7)
    for weights, size in ((resamples.world, 5), (resamples.user, 7)):
        assert weights.shape == (2000, size)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0)
        np.testing.assert_allclose(weights * size, np.round(weights * size), atol=1e-12)
        np.testing.assert_allclose(weights.mean(axis=0), 1 / size, atol=0.01)


def test_a_resample_is_the_mean_over_the_worlds_and_users_drawn() -> None:
    values = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    # World 1 twice; users 0, 0, 2.
    one = Resamples(np.array([[0.0, 1.0]]), np.array([[2 / 3, 0.0, 1 / 3]]))
    assert one.means(values)[0] == pytest.approx((10 + 10 + 30) / 3)


def test_a_constant_has_no_interval() -> None:
    low, high = drawn(4, 50).interval(np.full((4, 50), 2.5))
    assert low == pytest.approx(2.5)
    assert high == pytest.approx(2.5)


def test_the_interval_has_the_width_of_the_two_variances() -> None:
    values = normal(40, 400, between=0.3, within=2.0)
    low, high = drawn(40, 400, n=4000).interval(values)
    # The plug-in variance of the mean: between worlds and between users, each over its number.
    variance = values.mean(axis=1).var() / 40 + values.mean(axis=0).var() / 400
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.06)


def test_worlds_that_differ_widen_the_interval_however_many_users_there_are() -> None:
    alike, apart = (normal(6, 3000, between=between, within=0.5) for between in (0.0, 1.0))
    resamples = drawn(6, 3000, n=500)
    widths = [high - low for low, high in (resamples.interval(values) for values in (alike, apart))]
    assert widths[1] > 10 * widths[0]


@pytest.mark.parametrize("sizes", [(0, 5, 10), (5, 0, 10), (5, 5, 0)])
def test_nothing_cannot_be_resampled(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Resamples.draw(*sizes, np.random.default_rng(0))


def test_an_estimate_scales_with_the_number_of_users() -> None:
    one = Estimate.of(normal(5, 30, 0.1, 1.0), drawn(5, 30))
    many = one.times(30)
    assert one.low < one.value < one.high
    assert (many.value, many.low, many.high) == (30 * one.value, 30 * one.low, 30 * one.high)


def test_a_paired_difference_does_not_see_what_both_share() -> None:
    shared, resamples = normal(8, 200, between=5.0, within=5.0), drawn(8, 200)
    paired = PairedDifference.of(shared + 0.5, shared, spend=20.0, baseline_spend=15.0, resamples=resamples)
    assert paired.difference.value == pytest.approx(0.5)
    assert paired.difference.high - paired.difference.low < 1e-9
    assert paired.relative == pytest.approx(0.5 / shared.mean())
    assert paired.spend_share == pytest.approx(0.75)


def test_there_is_no_share_of_nothing() -> None:
    gain, resamples = np.ones((3, 10)), drawn(3, 10)
    paired = PairedDifference.of(gain, np.zeros((3, 10)), 0.0, 5.0, resamples)
    assert paired.relative is None
    assert paired.spend_share is None
    assert PairedDifference.of(gain, -gain, 1.0, 1.0, resamples).relative is None
