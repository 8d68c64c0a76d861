from __future__ import annotations

import numpy as np
import pytest

from experiments.ope import one_step
from experiments.ope.episode_terms import EpisodeTerms, plain_mean
from experiments.ope.slope import choose_by_slope, ratio_thresholds, slope


@pytest.mark.parametrize(
    ("estimates", "half_widths", "chosen"),
    [
        ([1.0], [0.5], 0),
        ([1.0, 1.2, 1.4], [0.5, 0.2, 0.1], 2),
        ([1.0, 1.2, 9.0], [0.5, 0.2, 0.1], 1),
        ([1.0, 4.0, 1.0], [0.5, 0.1, 0.1], 0),  # what comes after a miss is not looked at
        # Each meets the one before it, but not all of them: [-1, 1], [0, 2], [1.5, 2.5].
        ([0.0, 1.0, 2.0], [0.5, 0.5, 0.25], 1),
        ([0.0, 1.0], [0.0, 0.5], 1),
    ],
)
def test_the_last_interval_that_meets_all_before_it(
    estimates: list[float], half_widths: list[float], chosen: int
) -> None:
    assert slope(estimates, half_widths) == chosen


def test_thresholds_fall_from_no_bias_to_the_direct_method() -> None:
    ratio = np.concatenate([np.zeros(50), np.arange(1.0, 101.0)])
    thresholds = ratio_thresholds(ratio, n_settings=4)
    assert thresholds == pytest.approx([np.inf, 75.25, 50.5, 25.75, 0.0])
    assert ratio_thresholds(np.zeros(3)) == [np.inf, 0.0]
    assert ratio_thresholds(np.ones(3)) == [np.inf, 1.0, 0.0]


def test_choice_hangs_on_whether_the_model_is_right() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    ratio = rng.lognormal(-2.0, 2.0, size=n)

    def switch(model: float) -> tuple[float, EpisodeTerms]:
        log = {
            "reward": rng.normal(1.0, 1.0, size=n),
            "ratio": ratio,
            "q": np.full(n, model),
            "v": np.full(n, model),
        }
        return choose_by_slope(
            lambda threshold: one_step.switch_doubly_robust(**log, threshold=threshold),
            ratio_thresholds(ratio),
            np.arange(n),
        )

    right, terms = switch(1.0)
    assert right == 0.0  # the correction is noise: leave it out
    assert terms.estimate() == pytest.approx(1.0)
    wrong, _ = switch(4.0)
    assert wrong > np.quantile(ratio, 0.5)  # the correction is needed


def test_standard_errors_are_those_of_clusters() -> None:
    """Ten users of 100 equal rows: by rows the second setting would be out of reach, by users it is not."""
    user = np.repeat(np.arange(10), 100)
    values = np.random.default_rng(1).normal(size=10)[user]
    settings = {"log": plain_mean(values), "model": plain_mean(np.full(1000, values.mean() + 0.5))}
    assert choose_by_slope(settings.__getitem__, ["log", "model"], user)[0] == "model"
    assert choose_by_slope(settings.__getitem__, ["log", "model"], np.arange(1000))[0] == "log"


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no settings"):
        choose_by_slope(lambda _: plain_mean(np.ones(3)), [], np.arange(3))
