"""User, category and basket texts: what the encoder reads.

A user text is the profile, the season, habits, then purchases newest first with recency words. It is
written from weeks before the one that it serves, never from that week or later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.panel import Panel

_MONTH_SEASON = (*("winter",) * 2, *("spring",) * 3, *("summer",) * 3, *("autumn",) * 3, "winter")
_RECENCY_WORDS = ("last week", "two weeks ago", "three weeks ago", "four weeks ago")


@dataclass(frozen=True)
class UserTextStyle:
    """How much of a history a text tells.

    Attributes:
        max_items: categories named in all, habits and recent weeks together.
        habit_items: of these, how many go to the categories bought most often.
        habit_weeks: weeks that count for a habit.
    """

    max_items: int = 24
    habit_items: int = 8
    habit_weeks: int = 26


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
    bought: npt.NDArray[np.bool_],
    week: int,
    words: Sequence[str],
    style: UserTextStyle,
    first_week_of_year: int = 1,
) -> str:
    """Return the text of one user at the start of ``week``.

    Args:
        profile: profile as text, possibly empty.
        bought: [T, C] purchases; only rows before ``week`` are read.
        week: 1-based week that the text serves.
        words: [C] readable category names.
        style: how much to tell.
        first_week_of_year: number within the year of the log's week 1.
    """
    past = bought[: week - 1]
    parts = [profile] if profile else []
    # The season in a word; a week's number would be one that training never saw.
    parts.append(season_of_week(first_week_of_year + week - 1))
    counts = past[-style.habit_weeks :].sum(axis=0)
    habits = [int(c) for c in np.argsort(-counts, kind="stable")[: style.habit_items] if counts[c] > 0]
    if habits:
        parts.append("usually " + " , ".join(words[c] for c in habits))
    room = style.max_items - len(habits)
    for weeks_ago, recency in enumerate(_RECENCY_WORDS, start=1):
        if weeks_ago > len(past) or room <= 0:
            break
        basket = np.flatnonzero(past[-weeks_ago])
        if basket.size:
            # Rarest habit first: what is unusual says more than what is bought every week.
            chosen = basket[np.argsort(counts[basket], kind="stable")][:room]
            parts.append(recency + " " + " , ".join(words[c] for c in chosen))
            room -= len(chosen)
        else:
            parts.append(recency + " nothing")
    return " . ".join(parts)


def user_texts(panel: Panel, week: int, style: UserTextStyle) -> list[str]:
    """Return the text of every user at the start of ``week``, [n]."""
    words = category_words(panel)
    return [
        user_text(str(panel.profiles[user]), panel.bought[user], week, words, style, panel.first_week_of_year)
        for user in range(panel.n_users)
    ]


def basket_text(bought: npt.NDArray[np.bool_], words: Sequence[str], max_items: int) -> str:
    """Return the text of one basket, [C] bool, for next-basket prediction."""
    return " , ".join(words[c] for c in np.flatnonzero(bought)[:max_items])


def anchor_weeks(last_week: int, every: int, first_week: int) -> list[int]:
    """Return the weeks at which texts are written: each serves itself and the ``every`` - 1 weeks after."""
    return list(range(first_week, last_week + 1, every))
