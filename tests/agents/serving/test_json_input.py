from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.serving import (
    MOST_EVENTS,
    Context,
    DecisionInputError,
    Promotion,
    context_from_json,
    user_from_json,
)

USER: dict[str, Any] = {
    "user_id": 17,
    "profile": {"age": "45-54", "household_size": 2, "income": None},
    "opted_in": False,
    "since": "2017-01-05",
    "transactions": [
        {
            "timestamp": "2017-10-02T18:05:00",
            "basket_id": 900,
            "item_id": "1001",
            "spend": 2.5,
            "coupon_discount": 0.25,
            "quantity": 1,
            "discount": 0.0,
            "store_id": "s1",
        },
        {"timestamp": "2017-10-03", "basket_id": "901", "category": "MILK", "spend": 1},
    ],
    "offers": [{"timestamp": "2017-10-02", "offer": "20% slot 1", "category": "MILK", "template": "plain"}],
    "redemptions": [{"timestamp": "2017-10-05", "offer": "20% slot 1"}],
}


def changed(path: tuple[Any, ...], value: Any) -> Any:
    content = json.loads(json.dumps(USER))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return content


def test_a_user_in_full() -> None:
    user = user_from_json(USER)
    assert (user.user_id, user.opted_in, user.since) == ("17", False, datetime.date(2017, 1, 5))
    assert user.profile == "age 45-54, household size 2"
    lines = user.purchases
    assert lines.day.tolist() == [datetime.date(2017, 10, 2), datetime.date(2017, 10, 3)]
    assert lines.basket_id.tolist() == ["900", "901"]
    assert lines.item_id.tolist() == ["1001", ""]
    assert lines.category.tolist() == ["", "MILK"]
    assert lines.spend.tolist() == [2.5, 1.0]
    assert lines.coupon_discount.tolist() == [0.25, 0.0]
    (sent,) = user.sent
    assert (sent.day, sent.offer, sent.category) == (datetime.date(2017, 10, 2), "20% slot 1", "MILK")
    assert user.last_template == "plain"
    assert user.redeemed == (datetime.date(2017, 10, 5),)


def test_a_user_of_whom_nothing_is_known() -> None:
    user = user_from_json({"user_id": "new"})
    assert (user.profile, user.opted_in, user.since, user.sent, user.redeemed) == ("", True, None, (), ())
    assert len(user.purchases) == 0
    assert user.last_template is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], r"user must be an object, not \[\]"),
        ({}, "user lacks user_id"),
        (changed(("user_id",), ""), "user.user_id must be a text or a whole number, not ''"),
        (changed(("user_id",), True), "user.user_id must be a text or a whole number"),
        (changed(("age",), 3), "unknown key 'age'"),
        (changed(("opted_in",), 1), "user.opted_in must be true or false, not 1"),
        (changed(("since",), "yesterday"), "user.since must be an ISO date or timestamp, not 'yesterday'"),
        (changed(("transactions",), {}), "user.transactions must be a list"),
        (changed(("transactions", 1, "spend"), "2"), r"transactions\[1\].spend must be a number, not '2'"),
        (
            changed(("transactions", 1, "spend"), float("nan")),
            r"transactions\[1\].spend must be a finite number",
        ),
        (changed(("transactions", 1, "spend"), 10**400), r"transactions\[1\].spend must be a finite number"),
        (changed(("transactions", 1, "spend"), -1), r"transactions\[1\].spend must be at least 0, not -1"),
        (
            changed(("transactions", 1, "category"), None),
            r"transactions\[1\] needs an item_id, or a category",
        ),
        (changed(("transactions", 0, "basket_id"), None), r"transactions\[0\] lacks basket_id"),
        (changed(("transactions", 0, "price"), 3), r"transactions\[0\] has an unknown key 'price'"),
        (changed(("offers", 0, "offer"), None), r"offers\[0\] lacks offer"),
        (changed(("redemptions", 0, "timestamp"), 7), r"redemptions\[0\].timestamp must be a text, not 7"),
        (changed(("profile", "age"), [1]), r"user.profile.age must be a text or a number, not \[1\]"),
        ({"user_id": "u", "offers": [{}] * (MOST_EVENTS + 1)}, f"at most {MOST_EVENTS} are read"),
    ],
)
def test_a_user_that_is_none_is_named(content: Any, said: str) -> None:
    with pytest.raises(DecisionInputError, match=said):
        user_from_json(content)


def test_too_many_events_of_several_kinds() -> None:
    line = {"timestamp": "2017-10-03", "basket_id": "1", "item_id": "1", "spend": 1}
    half = MOST_EVENTS // 2 + 1
    sent = {"timestamp": "2017-10-02", "offer": "push only"}
    with pytest.raises(DecisionInputError, match=r"users\[4\]: user with \d+ events"):
        user_from_json({"user_id": "u", "transactions": [line] * half, "offers": [sent] * half}, "users[4]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*USER, "x"]) | st.text(), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_user_or_refused(content: Any) -> None:
    try:
        user_from_json(content)
    except DecisionInputError as error:
        assert "user" in str(error)  # noqa: PT017 - either is right, and nothing else


@given(
    JSON
    | st.dictionaries(
        st.sampled_from(["date", "week", "weeks_left", "available", "promotion", "query"]), JSON
    )
)
def test_any_json_is_a_context_or_refused(content: Any) -> None:
    try:
        context_from_json(content)
    except DecisionInputError as error:
        assert "context" in str(error)  # noqa: PT017 - either is right, and nothing else


def test_a_context_in_full() -> None:
    found = context_from_json(
        {
            "date": "2017-11-20",
            "weeks_left": 8,
            "budget_per_user": 1,
            "dual_price": 1.5,
            "pressure": None,
            "available": 10.25,
            "query": "barbecue",
            "promotion": {"depth": {"MILK": 0.1}, "visit_trend": -0.1, "mailer": None},
        }
    )
    assert found == Context(
        date=datetime.date(2017, 11, 20),
        weeks_left=8,
        budget_per_user=1.0,
        dual_price=1.5,
        available=10.25,
        query="barbecue",
        promotion=Promotion(depth={"MILK": 0.1}, visit_trend=-0.1),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x", "context must be an object"),
        ({"when": 1}, "context has an unknown key 'when'"),
        ({"week": 1.5}, "context.week must be a whole number, not 1.5"),
        ({"date": 5}, "context.date must be a text, not 5"),
        ({"available": "all"}, "context.available must be a number, not 'all'"),
        ({"promotion": {"depth": [1]}}, "context.promotion.depth must be an object of category names"),
        ({"promotion": {"depth": {"MILK": None}}}, r"context.promotion.depth\['MILK'\] must be a number"),
        ({"promotion": {"price": {}}}, "context.promotion has an unknown key 'price'"),
    ],
)
def test_a_context_that_is_none_is_named(content: Any, said: str) -> None:
    with pytest.raises(DecisionInputError, match=said):
        context_from_json(content)


def test_numbers_are_kept_to_the_last_digit() -> None:
    line = {"timestamp": "2017-10-03", "basket_id": "1", "item_id": "1", "spend": 0.1 + 0.2}
    user = user_from_json({"user_id": "u", "transactions": [line]})
    assert user.purchases.spend.tolist() == [0.30000000000000004]
    assert user.purchases.spend.dtype == np.float64
