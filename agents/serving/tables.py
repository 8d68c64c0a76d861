"""Look-up tables of a bundle: which category an item is of, and what the shop promoted in which week."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.serving.bundle import TABLES_FILE, Bundle
from agents.serving.columns import CALENDAR_ROWS
from agents.serving.errors import BundleError, DecisionInputError
from agents.serving.settings import PolicySettings

FloatArray = npt.NDArray[np.float32]

ARRAYS = ("item_id", "item_category", "calendar", "visit_trend", "month_start", "neutral")


@dataclass(frozen=True, eq=False)
class Tables:
    """Tables of a bundle.

    Attributes:
        item_id: [I] ids of the items in modelled categories as text, ascending.
        item_category: [I] int64 category index of each.
        calendar: [T, len(CALENDAR_ROWS), C] mass promotion and category trends of the log's weeks.
        visit_trend: [T] of the log's weeks.
        month_start: [T'] share of each week's days at the start of a month, for the log's weeks and years on.
        neutral: [len(CALENDAR_ROWS), C] what is taken of a week that the bundle does not know: the training
            weeks' mean promotion, and no trend.
    """

    item_id: npt.NDArray[np.str_]
    item_category: npt.NDArray[np.int64]
    calendar: FloatArray
    visit_trend: FloatArray
    month_start: FloatArray
    neutral: FloatArray

    @classmethod
    def of_bundle(cls, bundle: Bundle, settings: PolicySettings) -> Tables:
        """Read them.

        Raises:
            BundleError: the file is none, or its arrays do not fit the settings.
        """
        place = bundle.folder / TABLES_FILE
        try:
            with np.load(io.BytesIO(bundle.files[TABLES_FILE]), allow_pickle=False) as stored:
                tables = cls(**{name: stored[name] for name in ARRAYS})
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{place} is not readable: {error}") from error
        weeks, n_categories = settings.known_weeks, len(settings.categories)
        shapes = {
            "calendar": (weeks, len(CALENDAR_ROWS), n_categories),
            "visit_trend": (weeks,),
            "neutral": (len(CALENDAR_ROWS), n_categories),
            "item_category": tables.item_id.shape,
        }
        for name, shape in shapes.items():
            if getattr(tables, name).shape != shape:
                raise BundleError(
                    f"{place}: {name} has shape {getattr(tables, name).shape}, expected {shape}"
                )
        if len(tables.month_start) < weeks:
            raise BundleError(f"{place}: month_start ends before the log's {weeks} weeks")
        return tables

    def week(self, week: int) -> tuple[FloatArray, float, float]:
        """Return calendar rows [len(CALENDAR_ROWS), C], visit trend and month start of a 1-based week.

        Raises:
            DecisionInputError: it lies before the log or years after it.
        """
        if not 1 <= week <= len(self.month_start):
            raise DecisionInputError(
                f"week {week} is outside of the weeks 1..{len(self.month_start)} of the exported policy"
            )
        month_start = float(self.month_start[week - 1])
        if week > len(self.calendar):
            return self.neutral.copy(), 0.0, month_start
        return self.calendar[week - 1].copy(), float(self.visit_trend[week - 1]), month_start

    def categories_of(self, items: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
        """Return the category index of each item, [m]; -1 where its category is not modelled."""
        if not len(items) or not len(self.item_id):
            return np.full(len(items), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.item_id, items), len(self.item_id) - 1)
        found: npt.NDArray[np.int64] = np.where(self.item_id[place] == items, self.item_category[place], -1)
        return found
