"""User texts from plain arrays: how a history is put into words, without torch.

:class:`encoders.user_text.UserTextWriter` hands its histories on to here in training and in the market, and a
served policy its own, so that the same history has the same text everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

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


def season_of_week(week: int) -> str:
    """Return the season of a week of the year, counted from January's first, northern hemisphere."""
    month = min(11, int((week - 1) % 52 * 12 / 52))
    return _MONTH_SEASON[month]


class ToldCounts(Protocol):
    """Of a history what texts tell; :class:`encoders.history_counts.HistoryCounts` is one. m users."""

    @property
    def category_slow(self) -> npt.NDArray[np.floating]:
        """[m, C] faded weeks with a purchase."""

    @property
    def recent(self) -> npt.NDArray[np.uint8]:
        """[m, C] in which of the last weeks the category was bought, a bit a week."""

    @property
    def visits_slow(self) -> npt.NDArray[np.floating]:
        """[m] faded weeks with a visit."""

    @property
    def weeks_slow(self) -> npt.NDArray[np.floating]:
        """[m] faded weeks on record."""

    @property
    def trips_slow(self) -> npt.NDArray[np.floating]:
        """[m] faded trips."""

    @property
    def coupons_slow(self) -> npt.NDArray[np.floating]:
        """[m] faded weeks with a coupon used."""


def write_texts(
    counts: ToldCounts,
    profiles: Sequence[str],
    words: Sequence[str],
    style: UserTextStyle,
    week_of_year: int,
) -> list[str]:
    """Return the texts of m users at the start of a week, [m].

    Habits fade with the slow half-life. Of a user with a single week on record, only that week is told as
    recent.

    Args:
        counts: histories before the week.
        profiles: [m] profile of each user as text, possibly empty.
        words: [C] readable category names.
        style: how much to tell.
        week_of_year: of the week; may run past the year's end.
    """
    told = _Told.of(counts, style)
    season = [season_of_week(week_of_year)] if style.season else []
    names = np.array(words, dtype=object)
    habits = names[told.habits].tolist()
    recent = [names[items].tolist() for items in told.recent]
    texts: list[str] = []
    for row, profile in enumerate(profiles):
        parts = [profile] if profile else []
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
    def of(cls, counts: ToldCounts, style: UserTextStyle) -> _Told:
        """Find it for all users at once."""
        visits, weeks = counts.visits_slow.astype(np.float64), counts.weeks_slow.astype(np.float64)
        purchases = counts.category_slow.astype(np.float32)
        m, n_categories = purchases.shape
        known = np.where(visits > 0, visits, 1.0)
        trips = counts.trips_slow.astype(np.float64) / known
        coupons = counts.coupons_slow.astype(np.float64) / known
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

        most = min(style.recent_items, style.max_items, n_categories)
        room = np.full(m, min(style.recent_items, style.max_items))
        recent, recent_counts, without_items = [], [], []
        for weeks_ago in range(1, len(_RECENCY_WORDS) + 1):
            basket = (counts.recent >> (weeks_ago - 1)) & 1 == 1
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
