from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from encoders.panel import Panel
from encoders.user_text import (
    UserTextStyle,
    anchor_weeks,
    basket_text,
    category_texts,
    category_words,
    season_of_week,
    user_text,
    user_texts,
)

WORDS = ("milk", "bread", "wine", "soap")
WEEKS = 12


def test_a_case_by_hand() -> None:
    bought = np.zeros((6, 4), dtype=np.bool_)
    bought[:5, 0] = True  # milk always
    bought[3, 2] = True  # wine once, two weeks before week 6
    bought[4] = [False, True, False, False]  # last week bread alone
    text = user_text("age 45", bought, 6, WORDS, UserTextStyle(habit_items=2))
    assert text == (
        "age 45 . winter . usually milk , bread . last week bread . two weeks ago wine , milk . "
        "three weeks ago milk . four weeks ago milk"
    )


def test_a_week_without_purchase_and_a_user_without_past() -> None:
    bought = np.zeros((3, 4), dtype=np.bool_)
    assert user_text("", bought, 1, WORDS, UserTextStyle()) == "winter"
    assert user_text("", bought, 3, WORDS, UserTextStyle()) == (
        "winter . last week nothing . two weeks ago nothing"
    )


@given(
    arrays.arrays(np.bool_, (WEEKS, 4)),
    arrays.arrays(np.bool_, (WEEKS, 4)),
    st.integers(1, WEEKS + 1),
    st.integers(0, 8),
)
def test_a_text_knows_nothing_of_its_week_or_later(
    bought: np.ndarray, other: np.ndarray, week: int, items: int
) -> None:
    style = UserTextStyle(max_items=items + 4, habit_items=items)
    changed = bought.copy()
    changed[week - 1 :] = other[week - 1 :]
    assert user_text("", bought, week, WORDS, style) == user_text("", changed, week, WORDS, style)


@given(arrays.arrays(np.bool_, (WEEKS, 4)), st.integers(0, 3), st.integers(0, 12))
def test_no_more_items_than_the_style_allows(bought: np.ndarray, habits: int, more: int) -> None:
    style = UserTextStyle(max_items=habits + more, habit_items=habits)
    named = Counter(word for word in user_text("", bought, WEEKS + 1, WORDS, style).split() if word in WORDS)
    assert named.total() <= style.max_items


@pytest.mark.parametrize(
    ("week", "season"),
    [
        *((1, "winter"), (8, "winter"), (11, "spring"), (20, "spring"), (28, "summer"), (41, "autumn")),
        *((50, "winter"), (52, "winter"), (53, "winter")),
    ],
)
def test_seasons(week: int, season: str) -> None:
    assert season_of_week(week) == season


def test_texts_of_a_panel(panel: Panel) -> None:
    assert category_words(panel)[0] == "food cat 0"
    assert category_texts(panel)[1] == "grocery : food cat 1"
    texts = user_texts(panel, 9, UserTextStyle())
    assert len(texts) == panel.n_users
    assert texts[3] == user_text(
        "age 35 , two adults", panel.bought[3], 9, category_words(panel), UserTextStyle()
    )
    assert texts[0].startswith(season_of_week(9))
    assert user_texts(replace(panel, first_week_of_year=26), 9, UserTextStyle())[0].startswith("summer")


def test_basket_text_and_anchors() -> None:
    assert basket_text(np.array([True, False, True, True]), WORDS, 2) == "milk , wine"
    assert anchor_weeks(48, 2, 45) == [45, 47]
    assert anchor_weeks(41, 4, 41) == [41]
