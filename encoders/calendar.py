"""What the shop does to everyone: mass promotion and season, week by week.

A shop knows its promotions before the week begins. The log knows the shelf discount only through what was
bought in the week, at the prices paid then: an index over items, carried forward where an item did not sell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from encoders.panel import Panel

TREND_RECENT_WEEKS = 4
TREND_REFERENCE_WEEKS = 13


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
    """

    depth: torch.Tensor
    display: torch.Tensor
    mailer: torch.Tensor
    category_trend: torch.Tensor
    visit_trend: torch.Tensor

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
        )

    def weeks(self, index: torch.Tensor) -> PromotionCalendar:
        """Return the calendar of the given week indices, in their order."""
        return PromotionCalendar(
            self.depth[index],
            self.display[index],
            self.mailer[index],
            self.category_trend[index],
            self.visit_trend[index],
        )

    def to(self, device: str | torch.device) -> PromotionCalendar:
        """Return the calendar on another device."""
        return PromotionCalendar(
            self.depth.to(device),
            self.display.to(device),
            self.mailer.to(device),
            self.category_trend.to(device),
            self.visit_trend.to(device),
        )


def _trend(rate: np.ndarray) -> np.ndarray:
    """Log ratio of the recent to the reference mean of a weekly rate, from earlier weeks only."""
    floor = 1e-4
    out = np.zeros(rate.shape, dtype=np.float32)
    for week in range(TREND_RECENT_WEEKS + 1, rate.shape[0]):
        recent = rate[week - TREND_RECENT_WEEKS : week].mean(axis=0)
        reference = rate[max(1, week - TREND_REFERENCE_WEEKS) : week].mean(axis=0)
        out[week] = np.log(np.maximum(recent, floor) / np.maximum(reference, floor))
    return np.clip(out, -1.5, 1.5)
