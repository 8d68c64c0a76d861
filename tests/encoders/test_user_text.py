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
    Past,
    UserTextStyle,
    anchor_weeks,
    basket_text,
    category_texts,
    category_words,
    season_of_week,
    user_text,
    user_texts,
)
from encoders.weeks import WeekSplit

WORDS = ("milk", "bread", "wine", "soap")
WEEKS = 12
WITHOUT_DECAY = UserTextStyle(half_life_weeks=float("inf"))


def past_of(bought: np.ndarray, trips: list[int] | None = None, coupons: list[int] | None = None) -> Past:
    """One trip in every week and no coupon, unless given."""
    weeks = len(bought)
    return Past(
        bought.astype(np.bool_),
        np.array([1] * weeks if trips is None else trips, dtype=np.uint8),
        np.array([0] * weeks if coupons is None else coupons, dtype=np.bool_),
    )


def text_of(past: Past, style: UserTextStyle = WITHOUT_DECAY, profile: str = "") -> str:
    return user_text(profile, past, len(past.bought) + 1, WORDS, style)


def test_a_case_by_hand() -> None:
    bought = np.zeros((9, 4))
    bought[:8, 0] = 1  # milk on eight of nine visits, rate 8/10
    bought[:3, 1] = 1  # bread on three, rate 3/10
    bought[7:, 2] = 1  # wine in the last two weeks, rate 2/10
    bought[8, 3] = 1  # soap last week, rate 1/10
    trips, coupons = [2, 2, 2, 1, 1, 1, 1, 1, 3], [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert text_of(past_of(bought, trips, coupons), profile="age 45") == (
        "age 45 . spring . shops every week , two trips . coupons sometimes . "
        "every trip milk . often bread . sometimes wine , soap . "
        "last week soap , wine . two weeks ago wine , milk"
    )


def test_the_past_fades() -> None:
    # Bread eight weeks ago, wine last week, one visit each: rates 1/16 and 1 over the sum of both and one.
    bought = np.zeros((9, 4))
    bought[0, 1] = bought[8, 2] = 1
    past = past_of(bought, trips=[1, 0, 0, 0, 0, 0, 0, 0, 1])
    style = UserTextStyle(half_life_weeks=2.0)
    assert text_of(past, style) == (
        "spring . shops some weeks . coupons never . often wine . rarely bread . "
        "last week wine . two weeks ago nothing"
    )
    assert "often bread , wine" in text_of(past)


def test_a_user_without_past_is_new() -> None:
    assert text_of(past_of(np.zeros((0, 4)))) == "winter . new customer"
    assert text_of(past_of(np.zeros((3, 4)), trips=[0, 0, 0]), profile="age 45") == (
        "age 45 . winter . new customer"
    )


def test_a_first_visit_is_not_yet_a_habit() -> None:
    text = text_of(past_of(np.array([[1, 0, 0, 0]])))
    assert text == "winter . shops every week . coupons never . often milk . last week milk"


@pytest.mark.parametrize(
    ("visits", "word"),
    [(20, "every week"), (17, "every week"), (12, "most weeks"), (6, "some weeks"), (5, "seldom")],
)
def test_how_often_the_user_shops(visits: int, word: str) -> None:
    trips = [1] * visits + [0] * (20 - visits)
    assert f"shops {word} . " in text_of(past_of(np.zeros((20, 4)), trips))


@pytest.mark.parametrize(("trips", "words"), [(1, ""), (2, " , two trips"), (3, " , several trips")])
def test_trips_a_week(trips: int, words: str) -> None:
    assert f"shops every week{words} . coupons" in text_of(past_of(np.zeros((3, 4)), [trips] * 3))


@pytest.mark.parametrize(
    ("used", "word"), [(0, "never"), (1, "rarely"), (3, "sometimes"), (17, "sometimes"), (18, "often")]
)
def test_how_often_the_user_has_coupons(used: int, word: str) -> None:
    coupons = [1] * used + [0] * (60 - used)
    assert f". coupons {word}" in text_of(past_of(np.zeros((60, 4)), coupons=coupons))


def test_a_basket_without_room_is_still_a_basket() -> None:
    bought = np.ones((2, 4))
    assert text_of(past_of(bought), UserTextStyle(max_items=6, recent_items=4)).endswith(
        "last week milk , bread , wine , soap . two weeks ago shopped"
    )


@given(
    arrays.arrays(np.bool_, (WEEKS, 4)),
    arrays.arrays(np.uint8, (WEEKS,), elements=st.integers(0, 9)),
    arrays.arrays(np.bool_, (WEEKS,)),
    st.integers(1, WEEKS + 1),
    st.integers(0, 2**31),
)
def test_the_text_of_a_panel_knows_nothing_of_its_week_or_later(
    bought: np.ndarray, trips: np.ndarray, coupons: np.ndarray, week: int, seed: int
) -> None:
    weeks = WeekSplit(8, 10, WEEKS)
    plain = random_rest(weeks, 0)
    one = replace(plain, bought=bought[None], trips=trips[None], coupon_used=coupons[None])
    changed = random_rest(weeks, seed)
    for name in ("bought", "trips", "coupon_used", "visited", "basket_spend", "category_spend"):
        getattr(changed, name)[:, : week - 1] = getattr(one, name)[:, : week - 1]
    assert user_texts(one, week, UserTextStyle()) == user_texts(changed, week, UserTextStyle())


def random_rest(split: WeekSplit, seed: int) -> Panel:
    """One user, whatever he does."""
    rng = np.random.default_rng(seed)
    weeks = split.report_end
    return Panel(
        user_ids=np.array(["u"]),
        profiles=np.array(["age 45"]),
        categories=np.array(WORDS),
        departments=np.array(["food"] * 4),
        bought=rng.random((1, weeks, 4)) < 0.5,
        visited=rng.random((1, weeks)) < 0.5,
        trips=rng.integers(0, 4, (1, weeks)).astype(np.uint8),
        coupon_used=rng.random((1, weeks)) < 0.5,
        basket_spend=rng.random((1, weeks)).astype(np.float32),
        category_spend=rng.random((1, weeks, 4)).astype(np.float32),
        promotion_depth=rng.random((weeks, 4)).astype(np.float32),
        display=rng.random((weeks, 4)).astype(np.float32),
        mailer=rng.random((weeks, 4)).astype(np.float32),
        split=split,
    )


@given(arrays.arrays(np.bool_, (WEEKS, 4)), st.integers(0, 12), st.integers(0, 12))
def test_no_more_items_than_the_style_allows(bought: np.ndarray, most: int, recent: int) -> None:
    style = UserTextStyle(max_items=most, recent_items=recent)
    named = Counter(word for word in text_of(past_of(bought), style).split() if word in WORDS)
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
    past = Past(panel.bought[3, :8], panel.trips[3, :8], panel.coupon_used[3, :8])
    assert texts[3] == user_text("age 35 , two adults", past, 9, category_words(panel), UserTextStyle())
    assert texts[0].startswith(season_of_week(9))
    assert user_texts(replace(panel, first_week_of_year=26), 9, UserTextStyle())[0].startswith("summer")


def test_basket_text_and_anchors() -> None:
    assert basket_text(np.array([True, False, True, True]), WORDS, 2) == "milk , wine"
    assert anchor_weeks(48, 2, 45) == [45, 47]
    assert anchor_weeks(41, 4, 41) == [41]


def test_the_season_can_be_left_out(panel: Panel) -> None:
    told = user_texts(panel, 9, UserTextStyle())
    silent = user_texts(panel, 9, UserTextStyle(season=False))
    season = season_of_week(9)
    assert all(season in text for text in told)
    assert [text.replace(f"{season} . ", "", 1) for text in told] == silent
