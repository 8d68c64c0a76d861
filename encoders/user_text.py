"""User, category and basket texts: what the encoder reads.

A user text is the profile, the season, how often the user shops and uses coupons, habits by how often the
category is bought, then the last two weeks, what is unusual first. It is written from the history state
before the week that it serves: the same state, by the same code, in training and in the market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from encoders.history import HistoryState
from encoders.history_tape import HistoryTape
from encoders.history_words import UserTextStyle as UserTextStyle
from encoders.history_words import season_of_week as season_of_week
from encoders.history_words import write_texts
from encoders.panel import Panel

SEASON_WEEKS = 60
"""Training weeks from which on texts tell the season: a year, and some weeks of the next."""


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


@dataclass(frozen=True)
class UserTextWriter:
    """Writes the texts of users from their histories, for training and for the market alike.

    Attributes:
        profiles: [n] profile of each user as text, possibly empty.
        words: [C] readable category names.
        style: how much to tell.
        first_week_of_year: number within the year of the log's week 1.
    """

    profiles: tuple[str, ...]
    words: tuple[str, ...]
    style: UserTextStyle
    first_week_of_year: int = 1

    @classmethod
    def of_panel(cls, panel: Panel, style: UserTextStyle) -> UserTextWriter:
        """Take profiles, names and dates from the logs."""
        return cls(
            tuple(str(profile) for profile in panel.profiles),
            tuple(category_words(panel)),
            style,
            panel.first_week_of_year,
        )

    def write(self, state: HistoryState, users: Sequence[int], week: int) -> list[str]:
        """Return the texts of some users at the start of ``week``, [m].

        Habits fade with the state's slow half-life. Of a user with a single week on record, only that week is
        told as recent.

        Args:
            state: histories of the m users before ``week``.
            users: [m] whose they are, as positions among the profiles.
            week: 1-based week of the log, or after its end, that the texts serve.
        """
        return write_texts(
            _Counts.of(state),
            [self.profiles[user] for user in users],
            self.words,
            self.style,
            self.first_week_of_year + week - 1,
        )


@dataclass(frozen=True)
class _Counts:
    """What texts tell of a history, as arrays."""

    category_slow: npt.NDArray[np.float32]
    recent: npt.NDArray[np.uint8]
    visits_slow: npt.NDArray[np.float32]
    weeks_slow: npt.NDArray[np.float32]
    trips_slow: npt.NDArray[np.float32]
    coupons_slow: npt.NDArray[np.float32]

    @classmethod
    def of(cls, state: HistoryState) -> _Counts:
        return cls(**{f.name: getattr(state, f.name).cpu().numpy() for f in fields(cls)})


def user_texts(panel: Panel, week: int, style: UserTextStyle) -> list[str]:
    """Return the text of every user of a panel at the start of ``week``, [n]."""
    state = HistoryTape.of_panel(panel).week(week - 1)
    return UserTextWriter.of_panel(panel, style).write(state, range(panel.n_users), week)


def basket_text(bought: npt.NDArray[np.bool_], words: Sequence[str], max_items: int) -> str:
    """Return the text of one basket, [C] bool, for next-basket prediction."""
    return " , ".join(words[c] for c in np.flatnonzero(bought)[:max_items])


def anchor_weeks(last_week: int, every: int, first_week: int) -> list[int]:
    """Return the weeks at which texts are written: each serves itself and the ``every`` - 1 weeks after."""
    return list(range(first_week, last_week + 1, every))
