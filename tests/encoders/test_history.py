from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from encoders.history import (
    CATEGORY_FEATURES,
    NEVER_WEEKS,
    PRIOR_VISITS,
    USER_FEATURES,
    HistoryState,
    category_features,
    user_features,
)
from encoders.history_tape import HistoryTape
from encoders.panel import Panel


def half(weeks: float, half_life: float) -> float:
    """What is left of a count of one after ``weeks``."""
    return float(0.5 ** (weeks / half_life))


def test_three_weeks_by_hand() -> None:
    # Week 1: both categories, 10 spent; week 2: no visit; week 3: a visit, category 0 alone, 4 spent.
    state = HistoryState.empty(1, 2)
    for visited, bought, spend in (
        (True, [True, True], 10.0),
        (False, [False, False], 0.0),
        (True, [True, False], 4.0),
    ):
        state = state.advance(torch.tensor([visited]), torch.tensor([bought]), torch.tensor([spend]))
    expected = {
        "category_recency": [1.0, 3.0],
        "category_slow": [half(2, 16) + 1, half(2, 16)],
        "category_fast": [half(2, 4) + 1, half(2, 4)],
        "visit_recency": 1.0,
        "visits_slow": half(2, 16) + 1,
        "visits_fast": half(2, 4) + 1,
        "weeks_slow": half(2, 16) + half(1, 16) + 1,
        "weeks_fast": half(2, 4) + half(1, 4) + 1,
        "basket_size": 2 * half(2, 16) + 1,
        "basket_spend": 10 * half(2, 16) + 4,
    }
    assert set(expected) == {f.name for f in fields(HistoryState)}
    for name, value in expected.items():
        torch.testing.assert_close(getattr(state, name)[0], torch.tensor(value))


def test_features_by_hand() -> None:
    state = HistoryState.empty(1, 1).advance(
        torch.tensor([True]), torch.tensor([[True]]), torch.tensor([10.0])
    )
    base = 0.25
    features = category_features(state, torch.tensor([base]))
    rate = (1 + PRIOR_VISITS * base) / (1 + PRIOR_VISITS)
    expected = {
        "slow_rate_logit": math.log(rate / (1 - rate)),
        "fast_rate_logit": math.log(rate / (1 - rate)),
        "log_recency": 0.0,
        "log_overdue": math.log(2.0),
        "just_bought": math.exp(-0.5),
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
    }
    assert list(USER_FEATURES) == list(user)
    torch.testing.assert_close(user_features(state)[0], torch.tensor([user[name] for name in USER_FEATURES]))


def test_a_user_of_whom_nothing_is_known_has_the_base_rate() -> None:
    base = torch.tensor([0.1, 0.4])
    features = category_features(HistoryState.empty(3, 2), base)
    torch.testing.assert_close(torch.sigmoid(features[0]), base.expand(3, 2))
    assert torch.isfinite(user_features(HistoryState.empty(3, 2))).all()


def test_recency_is_capped() -> None:
    state = HistoryState.empty(1, 1).advance(
        torch.tensor([True]), torch.tensor([[True]]), torch.tensor([1.0])
    )
    seen = []
    for _ in range(70):
        state = state.advance(torch.tensor([False]), torch.tensor([[False]]), torch.tensor([0.0]))
        seen.append((float(state.category_recency), float(state.visit_recency)))
    assert seen[0] == (2.0, 2.0)
    assert seen[-1] == (NEVER_WEEKS, NEVER_WEEKS)
    assert max(max(pair) for pair in seen) == NEVER_WEEKS


def test_tape_against_a_loop_over_weeks(panel: Panel) -> None:
    # An independent reading of the definition: sums over past weeks, no recursion.
    tape = HistoryTape.of_panel(panel)
    for week in (0, 1, 7, panel.n_weeks):
        state = tape.week(week)
        age = week - 1 - np.arange(week)
        slow, fast = 0.5 ** (age / 16.0), 0.5 ** (age / 4.0)
        bought = panel.bought[:, :week].astype(float)
        visited = panel.visited[:, :week].astype(float)
        for name, value in {
            "category_slow": np.einsum("nwc,w->nc", bought, slow),
            "category_fast": np.einsum("nwc,w->nc", bought, fast),
            "visits_slow": visited @ slow,
            "visits_fast": visited @ fast,
            "weeks_slow": np.full(panel.n_users, slow.sum()),
            "weeks_fast": np.full(panel.n_users, fast.sum()),
            "basket_size": bought.sum(axis=2) @ slow,
            "basket_spend": panel.basket_spend[:, :week] @ slow,
        }.items():
            # Half precision keeps eleven bits.
            np.testing.assert_allclose(getattr(state, name).numpy(), value, rtol=2e-3, atol=2e-3)
        for user in range(panel.n_users):
            for category in range(panel.n_categories):
                when = np.flatnonzero(panel.bought[user, :week, category])
                expected = week - when[-1] if when.size else NEVER_WEEKS
                assert float(state.category_recency[user, category]) == expected


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
            torch.from_numpy(panel.visited[:, week]),
            torch.from_numpy(panel.bought[:, week]),
            torch.from_numpy(panel.basket_spend[:, week]),
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
