from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.history import HistoryState
from encoders.history_tape import HistoryTape
from encoders.user_text import category_words
from experiments.fitted_run import FittedRun
from experiments.profile.habits import PurchaseRates, favourites, percentiles, segments


def test_percentiles_count_ties_half() -> None:
    np.testing.assert_allclose(percentiles(np.array([2.0, 1.0, 4.0, 2.0])), [0.5, 0.125, 0.875, 0.5])


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_percentiles_are_the_share_below_plus_half_the_ties(values: list[int]) -> None:
    array = np.array(values, dtype=float)
    expected = [(np.sum(array < v) + 0.5 * np.sum(array == v)) / len(array) for v in array]
    np.testing.assert_allclose(percentiles(array), expected)


def test_segments_by_terciles_and_recency(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    visited = np.zeros_like(panel.visited)
    # User i came last i + 1 weeks before week 17, and the week before that if i is even.
    for user in range(9):
        visited[user, 15 - user] = True
        visited[user, 14 - user] = user % 2 == 0
    visited[:, 16:] = True
    spend = np.where(visited, 10.0, 0.0).astype(np.float32)
    spend[0] *= 100
    spend[4] *= 0.75
    spend[:, 16:] = 1e6
    found = segments(replace(panel, visited=visited, basket_spend=spend), 17)
    assert [one.weeks_since_visit for one in found] == list(range(1, 10))
    # Even users came on two of the 13 weeks, odd ones on one.
    assert found[0].visit_rate == pytest.approx(2 / 13)
    assert found[1].visit_rate == pytest.approx(1 / 13)
    assert found[1].visit_percentile == pytest.approx(4 / 9 / 2)
    assert found[0].visit_percentile == pytest.approx(4 / 9 + 5 / 9 / 2)
    assert found[0].spend == pytest.approx(2000 / 13)
    assert found[0].name == "frequent, high spend, active"
    assert found[1].name == "rare, low spend, active"
    assert found[4].name == "frequent, medium spend, lapsing"
    assert found[8].name.endswith("lapsed")


def test_segment_of_a_user_who_never_came(fitted_run: FittedRun) -> None:
    visited = fitted_run.panel.visited.copy()
    visited[3] = False
    found = segments(replace(fitted_run.panel, visited=visited), 17)[3]
    assert found.weeks_since_visit is None
    assert found.name.endswith("no visit yet")


def test_rates_of_a_stranger_are_the_base_rate() -> None:
    base = np.array([0.1, 0.5])
    rates = PurchaseRates.of_history(HistoryState.empty(3, 2), base)
    np.testing.assert_allclose(rates.own, np.tile(base, (3, 1)))
    np.testing.assert_allclose(rates.population, 0.0)


def test_favourites_are_what_is_bought_more_than_by_others(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    bought = panel.bought.copy()
    bought[4, :, 0] = panel.visited[4]
    bought[4, :, 4] = False
    panel = replace(panel, bought=bought)
    rates = PurchaseRates.of_history(
        HistoryTape.of_panel(panel).week(16), fitted_run.heads.base_rate.double().numpy()
    )
    words = category_words(panel)
    found = favourites(panel, words, rates, 4, 17, most=3)
    assert found[0].category == "food cat 0"
    assert "food cat 4" not in [one.category for one in found]
    # Half-life of 16 weeks, two imagined visits of the average user.
    weight = 0.5 ** (np.arange(16)[::-1] / 16)
    visits = weight @ panel.visited[4, :16]
    own = (visits + 2 * 0.1) / (visits + 2)
    everyone = (weight @ panel.bought[:, :16, 0].sum(axis=0)) / (weight @ panel.visited[:, :16].sum(axis=0))
    assert found[0].rate == pytest.approx(own, rel=2e-3)
    assert found[0].population_rate == pytest.approx(everyone, rel=2e-3)
    assert found[0].lift == pytest.approx(own / everyone, rel=2e-3)
    assert found[0].weeks_since == 16 - np.flatnonzero(panel.visited[4, :16])[-1]
    assert all(one.rate > one.population_rate for one in found)
