from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.history import (
    CATEGORY_FEATURES,
    CAUTIOUS_PRIOR_VISITS,
    MOST_TRIPS,
    NEVER_WEEKS,
    PRIOR_VISITS,
    RECENT_BASKETS,
    RECENT_WEEKS,
    USER_FEATURES,
    HistoryState,
    category_features,
    user_features,
)
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.scratch import Scratch


def half(weeks: float, half_life: float) -> float:
    """What is left of a count of one after ``weeks``."""
    return float(0.5 ** (weeks / half_life))


def a_week(
    state: HistoryState, trips: int, bought: list[bool], spend: float, coupon_used: bool = False
) -> HistoryState:
    """The state of one user a week later."""
    return state.advance(
        torch.tensor([trips]),
        torch.tensor([bought]),
        torch.tensor([spend]),
        coupon_used=torch.tensor([coupon_used]),
    )


def assert_same(one: HistoryState, other: HistoryState) -> None:
    for f in fields(HistoryState):
        assert torch.equal(getattr(one, f.name), getattr(other, f.name)), f.name


def test_three_weeks_by_hand() -> None:
    # Week 1: three trips, both categories, 10 spent, with a coupon; week 2: no visit; week 3: one trip,
    # category 0, 4 spent.
    state = a_week(HistoryState.empty(1, 2), 3, [True, True], 10.0, coupon_used=True)
    state = a_week(state, 0, [False, False], 0.0)
    state = a_week(state, 1, [True, False], 4.0)
    expected: dict[str, float | list[float]] = {
        "category_recency": [1.0, 3.0],
        "category_slow": [half(2, 16) + 1, half(2, 16)],
        "category_fast": [half(2, 4) + 1, half(2, 4)],
        # Bought one week ago, bit 0; bought three weeks ago, bit 2.
        "recent": [0b101, 0b100],
        "visit_recency": 1.0,
        "visits_slow": half(2, 16) + 1,
        "visits_fast": half(2, 4) + 1,
        "weeks_slow": half(2, 16) + half(1, 16) + 1,
        "weeks_fast": half(2, 4) + half(1, 4) + 1,
        "basket_size": 2 * half(2, 16) + 1,
        "basket_spend": 10 * half(2, 16) + 4,
        "trips_slow": 3 * half(2, 16) + 1,
        "trips_fast": 3 * half(2, 4) + 1,
        "last_trips": 1.0,
        "coupons_slow": half(2, 16),
        "recent_baskets": [1.0, 0.0, 2.0, 0.0],
    }
    assert set(expected) == {f.name for f in fields(HistoryState)}
    for name, value in expected.items():
        found = getattr(state, name)[0]
        torch.testing.assert_close(found, torch.tensor(value, dtype=found.dtype))


def test_features_by_hand() -> None:
    state = a_week(HistoryState.empty(1, 1), 2, [True], 10.0)
    base = 0.25
    features = category_features(state, torch.tensor([base]))
    rate = (1 + PRIOR_VISITS * base) / (1 + PRIOR_VISITS)
    cautious = (1 + CAUTIOUS_PRIOR_VISITS * base) / (1 + CAUTIOUS_PRIOR_VISITS)
    expected = {
        "slow_rate_logit": math.log(rate / (1 - rate)),
        "fast_rate_logit": math.log(rate / (1 - rate)),
        "cautious_rate_logit": math.log(cautious / (1 - cautious)),
        "log_recency": 0.0,
        "log_overdue": math.log(2.0),
        "bought_1_week_ago": 1.0,
        "bought_2_weeks_ago": 0.0,
        "bought_3_weeks_ago": 0.0,
        "bought_4_weeks_ago": 0.0,
    }
    assert list(CATEGORY_FEATURES) == list(expected)
    for value, name in zip(features, CATEGORY_FEATURES, strict=True):
        assert float(value) == pytest.approx(expected[name], abs=1e-6)
    visit = math.log(0.75 / 0.25)
    user = {
        "slow_visit_logit": visit,
        "fast_visit_logit": visit,
        "log_visit_recency": 0.0,
        "log_basket_size": math.log(1 + 1 / 1.5),
        "log_basket_spend": math.log(1 + 10 / 1.5),
        "log_slow_trips": math.log(2.5 / 2),
        "log_fast_trips": math.log(2.5 / 2),
        "last_trips": 2.0,
        "log_basket_1_weeks_ago": math.log(2.0),
        "log_basket_2_weeks_ago": 0.0,
        "log_basket_3_weeks_ago": 0.0,
        "log_basket_4_weeks_ago": 0.0,
    }
    assert list(USER_FEATURES) == list(user)
    torch.testing.assert_close(user_features(state)[0], torch.tensor([user[name] for name in USER_FEATURES]))


def test_a_user_of_whom_nothing_is_known_has_the_base_rate() -> None:
    base = torch.tensor([0.1, 0.4])
    features = category_features(HistoryState.empty(3, 2), base)
    torch.testing.assert_close(torch.sigmoid(features[0]), base.expand(3, 2))
    assert torch.isfinite(user_features(HistoryState.empty(3, 2))).all()


def test_recency_is_capped() -> None:
    state = a_week(HistoryState.empty(1, 1), 1, [True], 1.0)
    seen = []
    for _ in range(70):
        state = a_week(state, 0, [False], 0.0)
        seen.append((float(state.category_recency), float(state.visit_recency)))
    assert seen[0] == (2.0, 2.0)
    assert seen[-1] == (NEVER_WEEKS, NEVER_WEEKS)
    assert max(max(pair) for pair in seen) == NEVER_WEEKS


def test_weeks_further_back_than_the_memory_are_forgotten() -> None:
    state = HistoryState.empty(1, 2)
    base = torch.tensor([0.1, 0.1])
    first = CATEGORY_FEATURES.index("bought_1_week_ago")
    for week in range(2 * RECENT_WEEKS):
        # Category 0 in week 0 alone, category 1 always.
        state = a_week(state, 1, [week == 0, True], 1.0)
        recent = torch.stack(category_features(state, base)[first:])[:, 0]
        assert recent[:, 0].tolist() == [float(k == week) for k in range(RECENT_WEEKS)]
        assert recent[:, 1].tolist() == [float(k <= week) for k in range(RECENT_WEEKS)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_trips_beyond_the_cap_say_no_more(dtype: torch.dtype) -> None:
    trips = torch.tensor([0, 1, int(MOST_TRIPS), int(MOST_TRIPS) + 1, 255]).to(dtype)
    never = torch.zeros(5, dtype=torch.bool)
    state = HistoryState.empty(5, 1).advance(trips, never[:, None], torch.ones(5), coupon_used=never)
    assert state.last_trips.tolist() == [0.0, 1.0, MOST_TRIPS, MOST_TRIPS, MOST_TRIPS]
    assert state.visits_slow.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    torch.testing.assert_close(user_features(state)[2], user_features(state)[4])


class Replay:
    """The same history kept in double precision by numpy, user by user and week by week."""

    def __init__(self, n_users: int, n_categories: int) -> None:
        self.last = np.full((n_users, n_categories), NEVER_WEEKS)
        self.counts = {name: np.zeros((n_users, n_categories)) for name in ("category_slow", "category_fast")}
        self.sums = {name: np.zeros(n_users) for name in ("visits_slow", "basket_spend", "trips_fast")}

    def week(
        self, trips: npt.NDArray[np.int64], bought: npt.NDArray[np.bool_], spend: npt.NDArray[np.float32]
    ) -> None:
        slow, fast = 0.5 ** (1 / 16), 0.5 ** (1 / 4)
        for name, decay in (("category_slow", slow), ("category_fast", fast)):
            self.counts[name] = self.counts[name] * decay + bought
        self.last = np.where(bought, 1, np.minimum(self.last + 1, NEVER_WEEKS))
        for name, decay, value in (
            ("visits_slow", slow, trips > 0),
            ("basket_spend", slow, spend),
            ("trips_fast", fast, np.minimum(trips, MOST_TRIPS)),
        ):
            self.sums[name] = self.sums[name] * decay + value


def random_weeks(
    n_users: int, n_categories: int, weeks: int, seed: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.float32]]]:
    """Trips, purchases and spend by week; users and categories differ in how often they occur."""
    rng = np.random.default_rng(seed)
    share = rng.beta(0.4, 1.0, (n_users, n_categories))
    out = []
    for _ in range(weeks):
        trips = rng.geometric(0.3, n_users) - 1
        bought = (rng.random(share.shape) < share) & (trips > 0)[:, None]
        out.append((trips, bought, rng.lognormal(2.0, 1.0, n_users).astype(np.float32) * (trips > 0)))
    return out


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 45), st.integers(0, 2**31))
def test_advancing_against_a_replay_in_double_precision(
    n_users: int, n_categories: int, weeks: int, seed: int
) -> None:
    state, replay = HistoryState.empty(n_users, n_categories), Replay(n_users, n_categories)
    for trips, bought, spend in random_weeks(n_users, n_categories, weeks, seed):
        tensors = (torch.from_numpy(value) for value in (trips, bought, spend))
        state = state.advance(*tensors, coupon_used=torch.zeros(n_users, dtype=torch.bool))
        replay.week(trips, bought, spend)
    for name, exact in replay.counts.items():
        kept = getattr(state, name)
        assert kept.dtype == torch.float16
        # Every week rounds to eleven bits, twice; of an error half is left after the half-life.
        np.testing.assert_allclose(kept.double().numpy(), exact, rtol=5e-3, atol=1e-5)
    for name, total in replay.sums.items():
        np.testing.assert_allclose(getattr(state, name).numpy(), total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(state.category_recency.numpy(), replay.last)


def test_half_precision_keeps_the_counts_of_a_log() -> None:
    n_users, n_categories = 300, 60
    state, replay = HistoryState.empty(n_users, n_categories), Replay(n_users, n_categories)
    for trips, bought, spend in random_weeks(n_users, n_categories, 40, 0):
        tensors = (torch.from_numpy(value) for value in (trips, bought, spend))
        state = state.advance(*tensors, coupon_used=torch.zeros(n_users, dtype=torch.bool))
        replay.week(trips, bought, spend)
    for name, exact in replay.counts.items():
        known = exact > 0.01
        error = getattr(state, name).double().numpy()[known] / exact[known] - 1
        assert np.abs(error).max() < 3e-3
        assert abs(error.mean()) < 3e-4


def test_writing_into_arrays_of_another_time_changes_nothing() -> None:
    # Whatever was in them: the market writes blocks of users into one state, with arrays used again.
    scratch = Scratch()
    for n_users, n_categories in ((6, 5), (4, 3), (9, 5)):
        state = HistoryState.empty(n_users, n_categories)
        target = state.blank()
        for trips, bought, spend in random_weeks(n_users, n_categories, 6, n_users):
            week = tuple(torch.from_numpy(value) for value in (trips, bought, spend))
            used = torch.from_numpy(trips > 1)
            fresh = state.advance(*week, coupon_used=used)
            before = state.rows(torch.arange(n_users))
            found = state.advance(*week, coupon_used=used, out=target, scratch=scratch)
            assert found is target
            assert_same(found, fresh)
            assert_same(state, before)
            state, target = found, state


def test_rows_of_a_slice_are_a_view_that_can_be_written(panel: Panel) -> None:
    state = HistoryTape.of_panel(panel).week(10)
    copy = state.blank()
    copy.rows(slice(0, 2)).write(slice(0, 2), state.rows(slice(0, 2)))
    order = torch.tensor([4, 2, 3])
    copy.write(order, state.rows(order))
    assert_same(copy, state)
    chosen = torch.tensor([True, False, True, False, True])
    assert_same(state.rows(chosen), state.rows(torch.tensor([0, 2, 4])))
    assert_same(state.to("cpu"), state)


def test_tape_against_a_loop_over_weeks(panel: Panel) -> None:
    # An independent reading of the definition: sums over past weeks, no recursion.
    tape = HistoryTape.of_panel(panel)
    for week in (0, 1, 7, panel.n_weeks):
        state = tape.week(week)
        age = week - 1 - np.arange(week)
        slow, fast = 0.5 ** (age / 16.0), 0.5 ** (age / 4.0)
        bought = panel.bought[:, :week].astype(float)
        visited = panel.visited[:, :week].astype(float)
        trips = panel.trips[:, :week].clip(max=7).astype(float)
        for name, value in {
            "category_slow": np.einsum("nwc,w->nc", bought, slow),
            "category_fast": np.einsum("nwc,w->nc", bought, fast),
            "visits_slow": visited @ slow,
            "visits_fast": visited @ fast,
            "weeks_slow": np.full(panel.n_users, slow.sum()),
            "weeks_fast": np.full(panel.n_users, fast.sum()),
            "basket_size": bought.sum(axis=2) @ slow,
            "basket_spend": panel.basket_spend[:, :week] @ slow,
            "trips_slow": trips @ slow,
            "trips_fast": trips @ fast,
            "coupons_slow": panel.coupon_used[:, :week] @ slow,
            "last_trips": trips[:, -1] if week else np.zeros(panel.n_users),
        }.items():
            # Half precision keeps eleven bits.
            np.testing.assert_allclose(getattr(state, name).numpy(), value, rtol=2e-3, atol=2e-3)
        size = np.zeros((panel.n_users, RECENT_BASKETS))
        for weeks_ago in range(1, min(week, RECENT_BASKETS) + 1):
            size[:, weeks_ago - 1] = panel.bought[:, week - weeks_ago].sum(axis=1)
        np.testing.assert_array_equal(state.recent_baskets.numpy(), size)
        for user in range(panel.n_users):
            for category in range(panel.n_categories):
                when = np.flatnonzero(panel.bought[user, :week, category])
                expected = week - when[-1] if when.size else NEVER_WEEKS
                assert float(state.category_recency[user, category]) == expected
                ago = [week - w for w in when if week - w <= RECENT_WEEKS]
                assert int(state.recent[user, category]) == sum(2 ** (weeks - 1) for weeks in ago)


def test_tape_before_is_the_replayed_state(panel: Panel) -> None:
    tape = HistoryTape.of_panel(panel)
    base = torch.full((panel.n_categories,), 0.2)
    replay = HistoryState.empty(panel.n_users, panel.n_categories)
    everyone = torch.arange(panel.n_users)
    for week in range(panel.n_weeks):
        stored = tape.before(torch.full((panel.n_users,), week), everyone)
        torch.testing.assert_close(user_features(stored), user_features(replay), rtol=0, atol=0)
        for kept, exact in zip(category_features(stored, base), category_features(replay, base), strict=True):
            torch.testing.assert_close(kept, exact, rtol=0, atol=5e-3)
        replay = replay.advance(
            torch.from_numpy(panel.trips[:, week]),
            torch.from_numpy(panel.bought[:, week]),
            torch.from_numpy(panel.basket_spend[:, week]),
            coupon_used=torch.from_numpy(panel.coupon_used[:, week]),
        )


def test_the_tape_does_not_look_ahead(panel: Panel) -> None:
    changed = panel.bought.copy()
    changed[:, 9:] = ~changed[:, 9:]
    other = Panel(**{**{f.name: getattr(panel, f.name) for f in fields(Panel)}, "bought": changed})
    before, after = HistoryTape.of_panel(panel), HistoryTape.of_panel(other)
    for name in before.stored:
        torch.testing.assert_close(before.stored[name][:10], after.stored[name][:10], rtol=0, atol=0)
    assert not torch.equal(before.stored["category_slow"][10], after.stored["category_slow"][10])


def test_rows_selects_users_in_their_order(panel: Panel) -> None:
    state = HistoryTape.of_panel(panel).week(10)
    index = torch.tensor([3, 0, 3])
    for f in fields(HistoryState):
        torch.testing.assert_close(getattr(state.rows(index), f.name), getattr(state, f.name)[index])
