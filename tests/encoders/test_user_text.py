from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from encoders.history import HistoryState
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.user_text import (
    UserTextStyle,
    UserTextWriter,
    anchor_weeks,
    basket_text,
    category_texts,
    category_words,
    season_of_week,
    user_texts,
)
from encoders.weeks import WeekSplit

WORDS = ("milk", "bread", "wine", "soap")
WEEKS = 12


@dataclass(frozen=True)
class Past:
    """What one user did, oldest week first: bought [w, C], trips and coupons [w]."""

    bought: np.ndarray
    trips: list[int]
    coupons: list[int]


def past_of(bought: np.ndarray, trips: list[int] | None = None, coupons: list[int] | None = None) -> Past:
    """One trip in every week and no coupon, unless given."""
    weeks = len(bought)
    return Past(
        bought.astype(np.bool_),
        [1] * weeks if trips is None else trips,
        [0] * weeks if coupons is None else coupons,
    )


def state_of(past: Past) -> HistoryState:
    """A state in which nothing has faded, as far as texts look at it."""
    trips = torch.tensor(past.trips, dtype=torch.float32)
    bought = torch.from_numpy(past.bought)
    recent = sum(
        (bought[len(bought) - k].to(torch.uint8) << (k - 1) for k in range(1, min(len(bought), 4) + 1)),
        start=torch.zeros(bought.shape[1], dtype=torch.uint8),
    )
    return replace(
        HistoryState.empty(1, bought.shape[1]),
        category_slow=bought.sum(dim=0, keepdim=True).half(),
        recent=recent[None],
        visits_slow=(trips > 0).sum()[None].float(),
        weeks_slow=torch.tensor([float(len(bought))]),
        trips_slow=trips.sum()[None],
        coupons_slow=torch.tensor([float(sum(past.coupons))]),
    )


def text_of(past: Past, style: UserTextStyle | None = None, profile: str = "") -> str:
    writer = UserTextWriter((profile,), WORDS[: past.bought.shape[1]], style or UserTextStyle())
    return writer.write(state_of(past), [0], len(past.bought) + 1)[0]


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
    # Bread 32 weeks ago, two half-lives, and wine last week: rates 1/4 and 1 over the sum of both and one.
    state = HistoryState.empty(1, 4)
    for week in range(33):
        visit = week in (0, 32)
        bought = torch.tensor([[False, week == 0, week == 32, False]])
        trips, spend = torch.tensor([int(visit)]), torch.tensor([float(visit)])
        state = state.advance(trips, bought, spend, coupon_used=torch.tensor([week == 0]))
    assert UserTextWriter(("",), WORDS, UserTextStyle()).write(state, [0], 34) == [
        "summer . shops seldom . coupons sometimes . often wine . sometimes bread . "
        "last week wine . two weeks ago nothing"
    ]


def test_a_user_without_past_is_new() -> None:
    assert text_of(past_of(np.zeros((0, 4)))) == "winter . new customer"
    assert text_of(past_of(np.zeros((3, 4)), trips=[0, 0, 0]), profile="age 45") == (
        "age 45 . winter . new customer"
    )


def test_a_first_visit_is_not_yet_a_habit() -> None:
    text = text_of(past_of(np.array([[1, 0, 0, 0]])))
    assert text == "winter . shops every week . coupons never . often milk . last week milk"


def test_users_are_written_one_by_one() -> None:
    pasts = [past_of(np.eye(4)[:w], coupons=[1] * w) for w in range(5)]
    states = [state_of(past) for past in pasts]
    together = HistoryState(
        **{f.name: torch.cat([getattr(state, f.name) for state in states]) for f in fields(HistoryState)}
    )
    writer = UserTextWriter(("age 45", "", "age 20"), WORDS, UserTextStyle())
    users = [2, 1, 0, 0, 1]
    alone = [writer.write(state, [user], 9)[0] for state, user in zip(states, users, strict=True)]
    assert writer.write(together, users, 9) == alone
    assert [text.startswith("age 20") for text in alone] == [True, False, False, False, False]
    assert writer.write(together.rows(torch.tensor([3, 3])), [1, 2], 9)[1].startswith("age 20 . ")


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
    state = HistoryTape.of_panel(panel).week(8)
    writer = UserTextWriter(
        tuple(panel.profiles), tuple(category_words(panel)), UserTextStyle(), panel.first_week_of_year
    )
    assert UserTextWriter.of_panel(panel, UserTextStyle()) == writer
    assert texts[3] == writer.write(state.rows(torch.tensor([3])), [3], 9)[0]
    assert texts[3].startswith("age 35 , two adults . ")
    assert texts[0].startswith(season_of_week(9))
    assert user_texts(replace(panel, first_day=datetime.date(2018, 6, 25)), 9, UserTextStyle())[0].startswith(
        "summer"
    )


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
