from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from encoders.panel import Panel
from experiments.fitted_run import FittedRun
from experiments.realism.bands import category_counts, coverage, prediction_band
from experiments.realism.classifier import tell_apart, user_week_rows
from experiments.realism.distributions import (
    DISTRIBUTIONS,
    category_shares,
    ks_complement,
    mean_complement,
    spend_per_visit,
    total_errors,
    weeks_between_visits,
)
from experiments.realism.figures import save_figures
from experiments.realism.lifts import LEAST_SUPPORT, frequent_pairs, pair_lifts, top_pairs
from experiments.realism.replay import ShoppingWeeks, real_weeks, replays


def drawn(n: int, seed: int, chance: float = 0.6, weeks: int = 4, c: int = 5) -> ShoppingWeeks:
    rng = np.random.default_rng(seed)
    trips = (rng.random((n, weeks)) < chance) * rng.geometric(0.5, (n, weeks)).clip(max=7)
    bought = (rng.random((n, weeks, c)) < np.linspace(0.1, 0.5, c)) & (trips > 0)[:, :, None]
    spend = (trips > 0) * rng.lognormal(3.0, 0.5, (n, weeks))
    return ShoppingWeeks(trips, bought, spend, rng.integers(1, 5, n).astype(float))


def test_the_complement_is_one_minus_the_ks_statistic() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=300), rng.normal(0.3, 1.2, size=217).round(1)
    assert ks_complement(one, other) == pytest.approx(1 - ks_2samp(one, other).statistic, abs=1e-12)
    assert ks_complement(one, one[::-1]) == 1.0
    assert ks_complement(np.zeros(3), np.ones(5)) == 0.0
    with pytest.raises(ValueError, match="distribution of nothing"):
        ks_complement(one, np.zeros(0))


def test_samples_by_hand() -> None:
    """Two users in three weeks; the first visited last week, the second four weeks ago."""
    trips = np.array([[0, 2, 1], [0, 0, 1]])
    bought = np.zeros((2, 3, 2), dtype=bool)
    bought[0, 1] = [True, True]
    bought[1, 2] = [True, False]
    weeks = ShoppingWeeks(trips, bought, np.array([[0, 9.0, 4.0], [0, 0, 2.0]]), np.array([1.0, 4.0]))
    found = {name: samples(weeks).tolist() for name, samples in DISTRIBUTIONS.items()}
    assert found["visits per household"] == [2, 1]
    assert found["categories per visit"] == [2, 0, 1]
    assert spend_per_visit(weeks).tolist() == [9, 4, 2]
    # The first came again after two weeks and after one, the second after six.
    assert sorted(weeks_between_visits(weeks).tolist()) == [1, 2, 6]
    assert category_shares(weeks).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_totals_are_relative_to_the_real_ones() -> None:
    real = drawn(500, 0)
    half = replace(real, spend=0.5 * real.spend)
    assert total_errors(real, [real, half]) == pytest.approx({"visits": 0, "purchases": 0, "spend": -0.25})
    assert mean_complement(real, [real, real], spend_per_visit) == 1.0


def test_lifts_by_hand() -> None:
    baskets = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=bool)
    pairs = (np.array([0, 0, 1]), np.array([1, 2, 2]))
    # P(0) = 3/4, P(1) = 1/2, P(2) = 1/2.
    assert pair_lifts(baskets, pairs).tolist() == pytest.approx([0.5 / 0.375, 0.25 / 0.375, 0.0])
    none = np.concatenate([baskets, np.zeros((4, 1), dtype=bool)], axis=1)
    assert pair_lifts(none, (np.array([0]), np.array([3]))).tolist() == [0.0]
    first, second = top_pairs(baskets)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 2)]


def test_a_pair_bought_by_chance_has_no_part() -> None:
    baskets = np.zeros((1000, 3), dtype=bool)
    baskets[:400, 0] = baskets[:300, 1] = True
    baskets[: round(1000 * LEAST_SUPPORT) - 1, 2] = True
    assert [index.tolist() for index in top_pairs(baskets)] == [[0], [1]]
    assert [index.tolist() for index in frequent_pairs(baskets)] == [[0, 0, 1], [1, 2, 2]]


def test_the_band_holds_nine_of_ten_further_draws() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(200, (21, 40, 50))
    low, high = prediction_band(counts[:20])
    assert ((counts[20] >= low) & (counts[20] <= high)).mean() == pytest.approx(0.9, abs=0.03)
    with pytest.raises(ValueError, match="at least 19"):
        prediction_band(counts[:18])


def test_coverage_of_weeks_of_the_same_kind_and_of_another() -> None:
    simulated = [drawn(400, seed) for seed in range(20)]
    assert coverage(drawn(400, 99), simulated).mean() == pytest.approx(0.9, abs=0.2)
    assert coverage(drawn(400, 99, chance=0.3), simulated).mean() < 0.2
    assert category_counts(simulated[0]).shape == (4, 5)


def test_the_classifier_tells_what_differs_and_only_that() -> None:
    names = [f"category {c}" for c in range(5)]
    real, same = drawn(1500, 0), drawn(1500, 1)
    alike = tell_apart(real, same, names, seed=0, threads=1)
    # Cross-validation of noise errs downwards: what is rare in training is frequent in the test.
    assert alike.auc == pytest.approx(0.5, abs=0.05)
    assert alike == tell_apart(real, same, names, seed=0, threads=1)
    dear = tell_apart(real, replace(same, spend=3.0 * same.spend), names, seed=0, threads=1)
    assert dear.auc > 0.75
    assert next(iter(dear.importance)) in {"spend", "user's spend"}
    assert sum(dear.importance.values()) == pytest.approx(1.0)


def test_a_user_weeks_row_holds_its_week_and_its_user() -> None:
    weeks = drawn(3, 0)
    rows = user_week_rows(weeks)
    assert rows.shape == (12, 12)
    row = rows[1 * 4 + 2]
    assert row[:4] == pytest.approx(
        [float(weeks.visited[1, 2]), weeks.bought[1, 2].sum(), weeks.spend[1, 2], weeks.trips[1, 2]]
    )
    assert row[4:7] == pytest.approx([weeks.visited[1].sum(), weeks.bought[1].sum(), weeks.spend[1].sum()])
    np.testing.assert_array_equal(row[7:], weeks.bought[1, 2])


def test_real_weeks_are_the_panels(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    weeks = real_weeks(panel, np.ones(panel.n_users), 3, 6)
    np.testing.assert_array_equal(weeks.visited, panel.visited[:, 3:6])
    np.testing.assert_array_equal(weeks.bought, panel.bought[:, 3:6])
    np.testing.assert_allclose(weeks.spend, panel.basket_spend[:, 3:6])


def test_replays_start_from_the_real_past_and_see_nothing_of_the_weeks(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    end, last = panel.split.tune_end, panel.split.report_end
    real, simulated = replays(fitted_run, 2)
    np.testing.assert_array_equal(real.bought, panel.bought[:, end:last])
    assert [each.bought.shape for each in simulated] == [real.bought.shape] * 2
    assert not np.array_equal(simulated[0].bought, simulated[1].bought)
    assert not (simulated[0].bought & ~simulated[0].visited[:, :, None]).any()
    # Other purchases in the reported weeks change nothing in the simulated ones.
    quiet = _without_purchases(panel, end)
    again = replays(replace(fitted_run, panel=quiet), 1)[1][0]
    np.testing.assert_array_equal(again.bought, simulated[0].bought)
    np.testing.assert_array_equal(again.spend, simulated[0].spend)


def _without_purchases(panel: Panel, end: int) -> Panel:
    changed = {}
    for name in ("bought", "visited", "trips", "basket_spend", "category_spend"):
        changed[name] = getattr(panel, name).copy()
        changed[name][:, end:] = 0
    return replace(panel, **changed)


def test_figures_are_drawn_and_name_the_finding(tmp_path: Path) -> None:
    simulated = [drawn(200, seed) for seed in range(20)]
    real = drawn(200, 99)
    files = save_figures(tmp_path / "figures", real, simulated, top_pairs(real.baskets), 18)
    assert [file.name for file in files] == ["distributions.svg", "lifts.svg", "bands.svg"]
    for file in files:
        assert file.read_text(encoding="utf-8").startswith("<svg")
