"""The weekly panel: what each user bought in each week, and how each category was promoted.

Built once from validated logs and read by everything after. It ends at the split's ``report_end``: the
locked weeks are not in it, so no later stage can read them.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from encoders.weeks import WeekSplit

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Panel:
    """n users x T weeks x C categories; week w of the log is row w - 1.

    Attributes:
        user_ids: [n] pseudonyms.
        profiles: [n] profile as text, empty where unknown.
        categories: [C] category names.
        departments: [C] department of each category.
        bought: [n, T, C] bool, whether the user bought the category in the week.
        visited: [n, T] bool, whether the user bought anything at all (in any category, modelled or not).
        trips: [n, T] uint8, shopping trips (baskets) of the week; 0 where the user did not visit.
        coupon_used: [n, T] bool, whether any coupon lowered the bill of the week.
        basket_spend: [n, T] total spend of the week, all categories, in the log's currency.
        category_spend: [n, T, C] spend by modelled category, after shelf discounts.
        promotion_depth: [T, C] shelf discount as a fraction: fixed-weight index over the items.
        display: [T, C] share of the category's sales weight on display, in [0, 1].
        mailer: [T, C] share of the category's sales weight in the mailer, in [0, 1].
        split: how the weeks are divided.
        first_day: first day of the log's week 1; dates the weeks, and with them season and pay days.
    """

    user_ids: npt.NDArray[np.str_]
    profiles: npt.NDArray[np.str_]
    categories: npt.NDArray[np.str_]
    departments: npt.NDArray[np.str_]
    bought: npt.NDArray[np.bool_]
    visited: npt.NDArray[np.bool_]
    trips: npt.NDArray[np.uint8]
    coupon_used: npt.NDArray[np.bool_]
    basket_spend: FloatArray
    category_spend: FloatArray
    promotion_depth: FloatArray
    display: FloatArray
    mailer: FloatArray
    split: WeekSplit
    first_day: datetime.date = datetime.date(2018, 1, 1)

    def __post_init__(self) -> None:
        n, weeks, categories = self.bought.shape
        expected = {
            "user_ids": (n,),
            "profiles": (n,),
            "categories": (categories,),
            "departments": (categories,),
            "visited": (n, weeks),
            "trips": (n, weeks),
            "coupon_used": (n, weeks),
            "basket_spend": (n, weeks),
            "category_spend": (n, weeks, categories),
            "promotion_depth": (weeks, categories),
            "display": (weeks, categories),
            "mailer": (weeks, categories),
        }
        for name, shape in expected.items():
            actual = getattr(self, name).shape
            if actual != shape:
                raise ValueError(f"Panel.{name} has shape {actual}, expected {shape}")
        if weeks != self.split.report_end:
            raise ValueError(
                f"Panel has {weeks} weeks but may hold only the {self.split.report_end} unlocked"
            )

    @property
    def n_users(self) -> int:
        """Number of users n."""
        return int(self.bought.shape[0])

    @property
    def n_weeks(self) -> int:
        """Number of unlocked weeks T."""
        return int(self.bought.shape[1])

    @property
    def n_categories(self) -> int:
        """Number of modelled categories C."""
        return int(self.bought.shape[2])

    @property
    def first_week_of_year(self) -> int:
        """ISO number of the calendar week in which the log's week 1 begins."""
        return self.first_day.isocalendar().week

    def save(self, path: Path) -> None:
        """Write the panel as one compressed ``.npz`` without pickled objects; the write is atomic."""
        arrays = {name: getattr(self, name) for name in _array_names()}
        split = np.array([self.split.train_end, self.split.tune_end, self.split.report_end])
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            np.savez_compressed(file, split=split, first_day=np.array(self.first_day.isoformat()), **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Panel:
        """Read a panel written by :meth:`save`."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _array_names()}
            split = WeekSplit(*(int(week) for week in stored["split"]))
            first_day = datetime.date.fromisoformat(str(stored["first_day"]))
        return cls(**arrays, split=split, first_day=first_day)


def _array_names() -> list[str]:
    return [f.name for f in fields(Panel) if f.name not in ("split", "first_day")]
