"""User, category and basket texts: what the encoder reads.

A user text is the profile, the season, how often the user shops and uses coupons, habits by how often the
category is bought, then the last two weeks, what is unusual first. It is
written from weeks before the one that it serves, never from that week or later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.panel import Panel

_MONTH_SEASON = (*("winter",) * 2, *("spring",) * 3, *("summer",) * 3, *("autumn",) * 3, "winter")
_RECENCY_WORDS = ("last week", "two weeks ago")
_TRIP_WORDS = ((0.85, "every week"), (0.6, "most weeks"), (0.3, "some weeks"), (0.0, "seldom"))
_HABIT_WORDS = ((0.55, "every trip"), (0.25, "often"), (0.1, "sometimes"), (0.0, "rarely"))
_COUPON_WORDS = ((0.3, "often"), (0.05, "sometimes"), (0.0, "rarely"))
"""Lowest rate of each word, descending."""


SEASON_WEEKS = 60
"""Training weeks from which on texts tell the season: a year, and some weeks of the next."""


@dataclass(frozen=True)
class UserTextStyle:
    """How much of a history a text tells.

    Attributes:
        max_items: categories named in all, habits and recent weeks together.
        recent_items: of these, how many are kept for the last two weeks.
        half_life_weeks: after which a purchase counts half for a habit.
        season: whether the season is told. In less than a year of training no season comes twice, and what is
            learnt of a season is what happened in it.
    """

    max_items: int = 24
    recent_items: int = 8
    half_life_weeks: float = 16.0
    season: bool = True


@dataclass(frozen=True)
class Past:
    """What one user did in the weeks before a text, oldest first.

    Attributes:
        bought: [w, C] bool.
        trips: [w] shopping trips.
        coupon_used: [w] bool, whether a coupon lowered the bill.
    """

    bought: npt.NDArray[np.bool_]
    trips: npt.NDArray[np.uint8]
    coupon_used: npt.NDArray[np.bool_]


def category_words(panel: Panel) -> list[str]:
    """Return a readable lower-case name for each category, [C]."""
    return [
        " ".join(str(name).lower().replace("/", " ").replace("-", " ").split()) for name in panel.categories
    ]


def category_texts(panel: Panel) -> list[str]:
    """Return the text of each category for the encoder, [C]: department and name."""
    return [
        f"{str(department).lower()} : {words}"
        for department, words in zip(panel.departments, category_words(panel), strict=True)
    ]


def season_of_week(week: int) -> str:
    """Return the season of a week of the year, counted from January's first, northern hemisphere."""
    month = min(11, int((week - 1) % 52 * 12 / 52))
    return _MONTH_SEASON[month]


def user_text(
    profile: str,
    past: Past,
    week: int,
    words: Sequence[str],
    style: UserTextStyle,
    first_week_of_year: int = 1,
) -> str:
    """Return the text of one user at the start of ``week``.

    Args:
        profile: profile as text, possibly empty.
        past: the weeks before ``week``.
        week: 1-based week that the text serves.
        words: [C] readable category names.
        style: how much to tell.
        first_week_of_year: number within the year of the log's week 1.
    """
    parts = [profile] if profile else []
    # The season in a word; a week's number would be one that training never saw.
    if style.season:
        parts.append(season_of_week(first_week_of_year + week - 1))
    n_weeks = len(past.bought)
    weight = 0.5 ** (np.arange(n_weeks)[::-1] / style.half_life_weeks)
    visited = past.trips > 0
    visits = float(weight @ visited)
    if visits == 0.0:
        return " . ".join([*parts, "new customer"])
    trips = float(weight @ past.trips) / visits
    shops = "shops " + _word(visits / float(weight.sum()), _TRIP_WORDS)
    parts.append(shops + (" , several trips" if trips > 2.2 else " , two trips" if trips > 1.4 else ""))
    coupons = float(weight @ past.coupon_used) / visits
    parts.append("coupons " + (_word(coupons, _COUPON_WORDS) if coupons > 0 else "never"))
    # One imagined visit without purchases: what was bought on the only visit is not yet a habit.
    rate = (weight @ past.bought) / (visits + 1.0)
    habits = np.argsort(-rate, kind="stable")
    habits = habits[rate[habits] > 0][: max(style.max_items - style.recent_items, 0)]
    named = [_word(rate[c], _HABIT_WORDS) for c in habits]
    for _, word in _HABIT_WORDS:
        chosen = [words[c] for c, own in zip(habits, named, strict=True) if own == word]
        if chosen:
            parts.append(f"{word} " + " , ".join(chosen))
    room = min(style.recent_items, style.max_items)
    for weeks_ago, recency in enumerate(_RECENCY_WORDS[:n_weeks], start=1):
        basket = np.flatnonzero(past.bought[-weeks_ago])
        # Rarest habit first: what is unusual says more than what is bought every week.
        unusual = basket[np.argsort(rate[basket], kind="stable")][:room]
        room -= len(unusual)
        told = (
            " , ".join(words[c] for c in unusual)
            if len(unusual)
            else "nothing"
            if not len(basket)
            else "shopped"
        )
        parts.append(f"{recency} {told}")
    return " . ".join(parts)


def _word(rate: float, scale: tuple[tuple[float, str], ...]) -> str:
    """The word of the highest step that ``rate`` reaches."""
    return next(word for lowest, word in scale if rate >= lowest)


def user_texts(panel: Panel, week: int, style: UserTextStyle) -> list[str]:
    """Return the text of every user at the start of ``week``, [n]."""
    words = category_words(panel)
    end = week - 1
    return [
        user_text(
            str(panel.profiles[user]),
            Past(panel.bought[user, :end], panel.trips[user, :end], panel.coupon_used[user, :end]),
            week,
            words,
            style,
            panel.first_week_of_year,
        )
        for user in range(panel.n_users)
    ]


def basket_text(bought: npt.NDArray[np.bool_], words: Sequence[str], max_items: int) -> str:
    """Return the text of one basket, [C] bool, for next-basket prediction."""
    return " , ".join(words[c] for c in np.flatnonzero(bought)[:max_items])


def anchor_weeks(last_week: int, every: int, first_week: int) -> list[int]:
    """Return the weeks at which texts are written: each serves itself and the ``every`` - 1 weeks after."""
    return list(range(first_week, last_week + 1, every))
