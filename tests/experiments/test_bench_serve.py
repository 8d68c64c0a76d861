from __future__ import annotations

import numpy as np

from agents.serving import UserStates
from agents.serving.columns import USER_COLUMNS
from encoders.panel import Panel
from encoders.weeks import WeekSplit
from experiments.benchmarks.serve import _fastest, _latencies, _times, panel_events


def small_panel() -> Panel:
    rng = np.random.default_rng(0)
    split = WeekSplit.of_log(26)
    shape = (3, split.report_end)
    trips = rng.integers(0, 4, shape).astype(np.uint8)
    bought = (rng.random((*shape, 4)) < 0.4) & (trips > 0)[:, :, None]
    zeros = np.zeros((split.report_end, 4), dtype=np.float32)
    return Panel(
        user_ids=np.array(["a", "b", "c"]),
        profiles=np.array(["", "age 35", ""]),
        categories=np.array(["W", "X", "Y", "Z"]),
        departments=np.array(["D"] * 4),
        bought=bought,
        visited=trips > 0,
        trips=trips,
        coupon_used=np.zeros(shape, dtype=bool),
        basket_spend=trips.astype(np.float32),
        category_spend=bought.astype(np.float32),
        promotion_depth=zeros,
        display=zeros,
        mailer=zeros,
        split=split,
    )


def test_a_household_as_raw_lines_has_its_trips_and_purchases() -> None:
    panel = small_panel()
    for row in range(3):
        user = panel_events(panel, row, 12)
        assert (user.user_id, user.profile) == (panel.user_ids[row], panel.profiles[row])
        lines = user.purchases
        week = (lines.day - np.datetime64(panel.first_day)).astype(int) // 7
        assert set(week) == set(np.flatnonzero(panel.visited[row, :12]))
        for number in set(week):
            now = week == number
            assert len(set(lines.basket_id[now])) == panel.trips[row, number]
            bought = {name for name in lines.category[now] if name}
            assert bought == set(panel.categories[panel.bought[row, number]])


def test_states_are_repeated_under_new_names() -> None:
    few = UserStates(
        user_id=("a", "b"),
        category_recency=np.ones((2, 3), dtype=np.uint8),
        category_slow=np.zeros((2, 3), dtype=np.float16),
        category_fast=np.zeros((2, 3), dtype=np.float16),
        recent=np.zeros((2, 3), dtype=np.uint8),
        user=np.arange(2 * len(USER_COLUMNS), dtype=np.float32).reshape(2, -1),
        messages=np.array([5, 6]),
        deal_category=np.zeros((2, 4), dtype=np.int64),
        deal_depth=np.zeros((2, 4), dtype=np.float32),
        deal_weeks_ago=np.ones((2, 4), dtype=np.float32),
        embedding=np.zeros((2, 2), dtype=np.float32),
    )
    many = _times(few, 5)
    assert many.messages.tolist() == [5, 6, 5, 6, 5]
    assert len(set(many.user_id)) == len(many) == 5


def test_every_call_is_timed_and_those_to_warm_up_are_not() -> None:
    called: list[int] = []
    found = _latencies([lambda: called.append(0), lambda: called.append(1)], 20)
    assert found.shape == (20,)
    assert (found > 0).all()
    assert called == [0, 1] * 11
    assert _fastest(lambda: called.append(2), 3) > 0
    assert called.count(2) == 4
