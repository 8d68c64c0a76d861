from __future__ import annotations

from dataclasses import fields

import numpy as np

from encoders.history import CATEGORY_FEATURES, USER_FEATURES, category_features, user_features
from encoders.response_data import ResponseData
from experiments.backtest.features import purchase_features, purchase_rows, visit_features, visit_rows

WEEK = 20


def test_a_purchase_row_holds_histories_the_calendar_and_the_category(data: ResponseData) -> None:
    base_rate = data.base_rate()
    features = purchase_features(data, WEEK, base_rate)
    n_calendar = len(fields(data.calendar))
    n, n_categories = data.panel.n_users, data.panel.n_categories
    assert features.shape == (
        n,
        n_categories,
        len(CATEGORY_FEATURES) + len(USER_FEATURES) + n_calendar + 1,
    )
    state = data.tape.week(WEEK)
    for k, feature in enumerate(category_features(state, base_rate)):
        np.testing.assert_array_equal(features[:, :, k], feature.numpy())
    user = user_features(state)[3].numpy()
    start = len(CATEGORY_FEATURES)
    np.testing.assert_array_equal(features[3, 2, start : start + len(USER_FEATURES)], user)
    for value in (data.calendar.depth, data.calendar.display, data.calendar.mailer):
        same = (features[0] == value[WEEK].numpy()[:, None]).all(axis=0)
        assert same.any()
    np.testing.assert_array_equal(features[5, :, -1], np.arange(n_categories))


def test_a_visit_row_holds_the_user_and_what_is_known_of_the_week(data: ResponseData) -> None:
    features = visit_features(data, WEEK)
    np.testing.assert_array_equal(
        features[:, : len(USER_FEATURES)], user_features(data.tape.week(WEEK)).numpy()
    )
    for column, name in enumerate(("visit_trend", "month_start"), start=len(USER_FEATURES)):
        assert (features[:, column] == float(getattr(data.calendar, name)[WEEK])).all()


def test_all_rows_are_the_weeks_one_after_another(data: ResponseData) -> None:
    weeks = [10, 11, 14]
    rows = purchase_rows(data, weeks, 10**9, np.random.default_rng(0))
    base_rate = data.base_rate()
    expected = np.concatenate([purchase_features(data, week, base_rate) for week in weeks])
    np.testing.assert_array_equal(rows.features, expected.reshape(-1, expected.shape[2]))
    np.testing.assert_array_equal(rows.label, data.bought[weeks].numpy().ravel())
    assert rows.categorical == (expected.shape[2] - 1,)
    visits = visit_rows(data, weeks)
    assert len(visits.features) == len(visits.label) == 3 * data.panel.n_users
    np.testing.assert_array_equal(visits.label, data.visited[weeks].numpy().ravel())


def test_a_sample_is_of_whole_user_weeks(data: ResponseData) -> None:
    n_categories = data.panel.n_categories
    rows = purchase_rows(data, range(5, 15), 10 * n_categories + 3, np.random.default_rng(1))
    again = purchase_rows(data, range(5, 15), 10 * n_categories + 3, np.random.default_rng(1))
    np.testing.assert_array_equal(rows.features, again.features)
    assert len(rows.label) == 10 * n_categories
    everything = purchase_rows(data, range(5, 15), 10**9, np.random.default_rng(1))
    known = {
        row.tobytes(): bool(label) for row, label in zip(everything.features, everything.label, strict=True)
    }
    assert all(row.tobytes() in known for row in rows.features)
    assert len(purchase_rows(data, [5], 1, np.random.default_rng(0)).label) == n_categories
