"""What the shop does to everyone: mass promotion and season, week by week.

A shop knows its promotions before the week begins. The log knows the shelf discount only through what was
bought in the week, at the prices paid then: an index over items, carried forward where an item did not sell.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from encoders.panel import Panel

TREND_RECENT_WEEKS = 4
TREND_REFERENCE_WEEKS = 13
MONTH_START_DAYS = 7


@dataclass(frozen=True)
class PromotionCalendar:
    """T weeks x C categories of mass promotion; row t is week t + 1 of the log.

    Attributes:
        depth: [T, C] shelf discount, fraction of the regular price.
        display: [T, C] share of the category's sales weight on display.
        mailer: [T, C] share of the category's sales weight in the mailer.
        category_trend: [T, C] log ratio of the category's purchase rate in the four weeks before to the
            thirteen weeks before: the season as it shows itself, without looking ahead.
        visit_trend: [T] the same for visits.
        month_start: [T] share of the week's days that are among the first seven of a month, known ahead.
            Wages and benefits are paid then, and households buy more in the days that follow (Stephens 2006;
            Hastings and Shapiro 2018).
    """

    depth: torch.Tensor
    display: torch.Tensor
    mailer: torch.Tensor
    category_trend: torch.Tensor
    visit_trend: torch.Tensor
    month_start: torch.Tensor

    @property
    def n_weeks(self) -> int:
        """Number of weeks T."""
        return int(self.depth.shape[0])

    @classmethod
    def of_panel(cls, panel: Panel) -> PromotionCalendar:
        """Build the calendar of the unlocked weeks of a panel."""
        visits = np.maximum(panel.visited.sum(axis=0), 1).astype(np.float64)
        category_rate = panel.bought.sum(axis=0) / visits[:, None]
        return cls(
            depth=torch.from_numpy(panel.promotion_depth),
            display=torch.from_numpy(panel.display),
            mailer=torch.from_numpy(panel.mailer),
            category_trend=torch.from_numpy(_trend(category_rate)),
            visit_trend=torch.from_numpy(_trend(panel.visited.mean(axis=0))),
            month_start=month_start(panel.first_day, panel.n_weeks),
        )

    def weeks(self, index: torch.Tensor) -> PromotionCalendar:
        """Return the calendar of the given week indices, in their order."""
        return PromotionCalendar(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: str | torch.device) -> PromotionCalendar:
        """Return the calendar on another device."""
        return PromotionCalendar(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def with_trends_held(self, week: int) -> PromotionCalendar:
        """Return the calendar as a forecast made before a week may know it.

        From the week on, the trends are those of that week: later ones are measured on weeks that a forecast
        has yet to make. Promotion and the days of the month are known ahead.

        Args:
            week: 0-based index of the first week that is forecast.
        """
        held = torch.arange(self.n_weeks, device=self.depth.device).clamp(max=week)
        return replace(self, category_trend=self.category_trend[held], visit_trend=self.visit_trend[held])


def month_start(first_day: datetime.date, n_weeks: int) -> torch.Tensor:
    """Return the share of each week's days that are among the first seven of a month, [T].

    Args:
        first_day: of the first week.
        n_weeks: T.
    """
    days = [first_day + datetime.timedelta(days=k) for k in range(7 * n_weeks)]
    early = torch.tensor([float(day.day <= MONTH_START_DAYS) for day in days])
    return early.reshape(n_weeks, 7).mean(dim=1)


def _trend(rate: np.ndarray) -> np.ndarray:
    """Log ratio of the recent to the reference mean of a weekly rate, from earlier weeks only."""
    floor = 1e-4
    out = np.zeros(rate.shape, dtype=np.float32)
    for week in range(TREND_RECENT_WEEKS + 1, rate.shape[0]):
        recent = rate[week - TREND_RECENT_WEEKS : week].mean(axis=0)
        reference = rate[max(1, week - TREND_REFERENCE_WEEKS) : week].mean(axis=0)
        out[week] = np.log(np.maximum(recent, floor) / np.maximum(reference, floor))
    return np.clip(out, -1.5, 1.5)
