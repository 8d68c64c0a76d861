"""User, category and basket texts: what the encoder reads.

A user text is the profile, the season, how often the user shops and uses coupons, habits by how often the
category is bought, then the last two weeks, what is unusual first. It is written from the history state
before the week that it serves: the same state, by the same code, in training and in the market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from encoders.history import HistoryState
from encoders.history_tape import HistoryTape
from encoders.panel import Panel

_MONTH_SEASON = (*("winter",) * 2, *("spring",) * 3, *("summer",) * 3, *("autumn",) * 3, "winter")
_RECENCY_WORDS = ("last week", "two weeks ago")
_TRIP_WORDS = ((0.85, "every week"), (0.6, "most weeks"), (0.3, "some weeks"), (0.0, "seldom"))
_HABIT_WORDS = ((0.55, "every trip"), (0.25, "often"), (0.1, "sometimes"), (0.0, "rarely"))
_COUPON_WORDS = ((0.3, "often"), (0.05, "sometimes"), (0.0, "rarely"))
"""Lowest rate of each word, descending."""

_TWO_TRIPS, _SEVERAL_TRIPS = 1.4, 2.2
"""Trips in a week with a visit above which they are told."""

_SHOPS = np.array(
    [[f"shops {word}{more}" for more in ("", " , two trips", " , several trips")] for _, word in _TRIP_WORDS]
)
_COUPONS = np.array([f"coupons {word}" for word in (*(word for _, word in _COUPON_WORDS), "never")])

SEASON_WEEKS = 60
"""Training weeks from which on texts tell the season: a year, and some weeks of the next."""


@dataclass(frozen=True)
class UserTextStyle:
    """How much of a history a text tells.

    Attributes:
        max_items: categories named in all, habits and recent weeks together.
        recent_items: of these, how many are kept for the last two weeks.
        season: whether the season is told. In less than a year of training no season comes twice, and what is
            learnt of a season is what happened in it.
    """

    max_items: int = 24
    recent_items: int = 8
    season: bool = True


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
        told = _Told.of(state, self.style)
        season = [season_of_week(self.first_week_of_year + week - 1)] if self.style.season else []
        names = np.array(self.words, dtype=object)
        habits = names[told.habits].tolist()
        recent = [names[items].tolist() for items in told.recent]
        texts: list[str] = []
        for row, user in enumerate(users):
            parts = [self.profiles[user]] if self.profiles[user] else []
            parts += season
            if told.new[row]:
                texts.append(" . ".join([*parts, "new customer"]))
                continue
            parts += [told.shops[row], told.coupons[row]]
            end = 0
            for (_, word), count in zip(_HABIT_WORDS, told.habit_counts[row], strict=True):
                if count:
                    parts.append(f"{word} " + " , ".join(habits[row][end : end + count]))
                    end += count
            for recency, items, count, otherwise in zip(
                _RECENCY_WORDS, recent, told.recent_counts[row], told.without_items[row], strict=True
            ):
                if count:
                    parts.append(f"{recency} " + " , ".join(items[row][:count]))
                elif otherwise:
                    parts.append(f"{recency} {otherwise}")
            texts.append(" . ".join(parts))
        return texts


@dataclass(frozen=True)
class _Told:
    """What the texts of m users say, in lists for one pass over the users.

    Attributes:
        new: [m] whether nothing is known.
        shops: [m] how often the user shops.
        coupons: [m] how often a coupon is used.
        habits: [m, H] categories by falling rate, of which the first few are named.
        habit_counts: [m, W] how many of them take each of the habit words, in their order.
        recent: per recent week [m, R] categories, the rarest habit first, of which the first few are named.
        recent_counts: [m, weeks] how many of them.
        without_items: [m, weeks] what is said where none is named: that nothing was bought, or that there was
            no room left; empty of a week before the first on record.
    """

    new: list[bool]
    shops: list[str]
    coupons: list[str]
    habits: npt.NDArray[np.int64]
    habit_counts: list[list[int]]
    recent: list[npt.NDArray[np.int64]]
    recent_counts: list[list[int]]
    without_items: list[list[str]]

    @classmethod
    def of(cls, state: HistoryState, style: UserTextStyle) -> _Told:
        """Find it for all users at once."""

        def per_user(value: torch.Tensor) -> npt.NDArray[np.float64]:
            return value.double().cpu().numpy()

        visits, weeks = per_user(state.visits_slow), per_user(state.weeks_slow)
        purchases = state.category_slow.float().cpu().numpy()
        m, n_categories = purchases.shape
        known = np.where(visits > 0, visits, 1.0)
        trips, coupons = per_user(state.trips_slow) / known, per_user(state.coupons_slow) / known
        shops = _steps(visits / np.where(weeks > 0, weeks, 1.0), _TRIP_WORDS)
        several = (trips > _TWO_TRIPS).astype(np.int64) + (trips > _SEVERAL_TRIPS)
        uses = np.where(coupons > 0, _steps(coupons, _COUPON_WORDS), len(_COUPON_WORDS))

        n_habits = min(max(style.max_items - style.recent_items, 0), n_categories)
        habits = np.argsort(-purchases, axis=1, kind="stable")[:, :n_habits]
        count = np.take_along_axis(purchases, habits, axis=1).astype(np.float64)
        # One imagined visit without purchases: what was bought on the only visit is not yet a habit.
        step = _steps(count / (visits + 1.0)[:, None], _HABIT_WORDS)
        named = count > 0
        habit_counts = np.stack([(named & (step == k)).sum(axis=1) for k in range(len(_HABIT_WORDS))], axis=1)

        bits = state.recent.cpu().numpy()
        most = min(style.recent_items, style.max_items, n_categories)
        room = np.full(m, min(style.recent_items, style.max_items))
        recent, recent_counts, without_items = [], [], []
        for weeks_ago in range(1, len(_RECENCY_WORDS) + 1):
            basket = (bits >> (weeks_ago - 1)) & 1 == 1
            # Rarest habit first: what is unusual says more than what is bought every week.
            by_rate = np.argsort(np.where(basket, purchases, np.inf), axis=1, kind="stable")
            recent.append(by_rate[:, :most])
            size = basket.sum(axis=1)
            recent_counts.append(np.minimum(size, room))
            room = room - recent_counts[-1]
            # Decayed, k weeks on record still count more than k - 1/2, for the few that matter here.
            observed = weeks > weeks_ago - 0.5
            without_items.append(np.where(observed, np.where(size == 0, "nothing", "shopped"), ""))
        return cls(
            new=(visits == 0.0).tolist(),
            shops=_SHOPS[shops, several].tolist(),
            coupons=_COUPONS[uses].tolist(),
            habits=habits,
            habit_counts=habit_counts.tolist(),
            recent=recent,
            recent_counts=np.stack(recent_counts, axis=1).tolist(),
            without_items=np.stack(without_items, axis=1).tolist(),
        )


def _steps(rate: npt.NDArray[np.float64], scale: tuple[tuple[float, str], ...]) -> npt.NDArray[np.int64]:
    """Position in ``scale`` of the highest step that each rate reaches."""
    step = np.zeros(rate.shape, dtype=np.int64)
    for lowest, _ in scale[:-1]:
        step += rate < lowest
    return step


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
