"""The history without torch is the history with it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.history import HistoryState
from encoders.history_counts import FAST_DECAY, NEVER_WEEKS, SLOW_DECAY, HistoryCounts
from encoders.history_words import season_of_week, write_texts
from encoders.user_text import UserTextStyle, UserTextWriter


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5), st.integers(1, 90))
def test_weeks_go_by_alike(seed: int, n: int, n_categories: int, weeks: int) -> None:
    rng = np.random.default_rng(seed)
    counts, state = HistoryCounts.empty(n, n_categories), HistoryState.empty(n, n_categories)
    for _ in range(weeks):
        trips = rng.integers(0, 12, n).astype(np.uint8)
        bought = (rng.random((n, n_categories)) < 0.3) & (trips > 0)[:, None]
        spend = (rng.random(n) * 100 * (trips > 0)).astype(np.float32)
        coupon = rng.random(n) < 0.2
        counts = counts.advance(trips, bought, spend, coupon)
        state = state.advance(
            *(torch.from_numpy(values) for values in (trips, bought, spend)),
            coupon_used=torch.from_numpy(coupon),
        )
    for f in fields(HistoryState):
        own, theirs = getattr(counts, f.name), getattr(state, f.name).numpy()
        assert (own.dtype, own.shape) == (theirs.dtype, theirs.shape), f.name
        if own.dtype == np.float32:
            # torch rounds the last numbers of a vector twice, the others once.
            np.testing.assert_allclose(own, theirs, rtol=2e-6, atol=1e-7, err_msg=f.name)
        else:
            assert np.array_equal(own, theirs), f.name


def test_fields_are_the_states() -> None:
    assert [f.name for f in fields(HistoryCounts)] == [f.name for f in fields(HistoryState)]


def test_a_week_by_hand() -> None:
    start = HistoryCounts.empty(2, 2)
    assert (start.category_recency == NEVER_WEEKS).all()
    one = start.advance(
        np.array([9, 0]),
        np.array([[True, False], [False, False]]),
        np.array([8.0, 0.0], dtype=np.float32),
        np.array([True, False]),
    )
    two = one.advance(
        np.array([0, 1]),
        np.zeros((2, 2), dtype=bool),
        np.array([0.0, 4.0], dtype=np.float32),
        np.zeros(2, dtype=bool),
    )
    assert two.category_recency.tolist() == [[2, 60], [60, 60]]
    assert two.recent.tolist() == [[2, 0], [0, 0]]
    assert two.last_trips.tolist() == [0.0, 1.0]
    assert one.last_trips.tolist() == [7.0, 0.0]
    assert two.visit_recency.tolist() == [2.0, 1.0]
    np.testing.assert_allclose(two.basket_spend, [8.0 * SLOW_DECAY, 4.0], rtol=1e-6)
    np.testing.assert_allclose(two.trips_fast, [7.0 * FAST_DECAY, 1.0], rtol=1e-6)
    np.testing.assert_allclose(two.coupons_slow, [SLOW_DECAY, 0.0], rtol=1e-6)
    np.testing.assert_allclose(two.category_slow[0, 0], SLOW_DECAY, rtol=1e-3)
    assert two.recent_baskets.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]


def test_texts_are_the_writers_own() -> None:
    rng = np.random.default_rng(3)
    counts, state = HistoryCounts.empty(30, 6), HistoryState.empty(30, 6)
    for _ in range(20):
        trips = rng.integers(0, 3, 30)
        bought = (rng.random((30, 6)) < 0.3) & (trips > 0)[:, None]
        spend = np.ones(30, dtype=np.float32)
        counts = counts.advance(trips, bought, spend, trips > 1)
        state = state.advance(
            torch.from_numpy(trips),
            torch.from_numpy(bought),
            torch.from_numpy(spend),
            coupon_used=torch.from_numpy(trips > 1),
        )
    words = tuple(f"kind {k}" for k in range(6))
    profiles = tuple("age 35" if k % 2 else "" for k in range(30))
    style = UserTextStyle(max_items=6, recent_items=2)
    writer = UserTextWriter(profiles, words, style, first_week_of_year=40)
    assert write_texts(counts, profiles, words, style, 40 + 21 - 1) == writer.write(state, range(30), 21)
    assert season_of_week(60) in write_texts(counts, profiles, words, style, 60)[0]
