"""The users of a market: histories and embeddings at the weeks in which a campaign may start."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState


@dataclass(frozen=True)
class Population:
    """n users at S start weeks.

    Attributes:
        start_weeks: S week indices (0-based) at which a campaign may start.
        histories: per start week, the state of all users before it.
        embeddings: [S, n, d] user embeddings from texts written at the start week.
        calendar: mass promotion by week, from which the weeks of a campaign are taken.
    """

    start_weeks: tuple[int, ...]
    histories: tuple[HistoryState, ...]
    embeddings: torch.Tensor
    calendar: PromotionCalendar

    def __post_init__(self) -> None:
        if not self.start_weeks:
            raise ValueError("a population needs at least one start week")
        if not len(self.start_weeks) == len(self.histories) == self.embeddings.shape[0]:
            raise ValueError("start weeks, histories and embeddings differ in number")

    @property
    def n_users(self) -> int:
        """Number of users n."""
        return int(self.embeddings.shape[1])

    @property
    def embedding(self) -> int:
        """Width d of the embeddings."""
        return int(self.embeddings.shape[2])

    @property
    def n_categories(self) -> int:
        """Number of categories C."""
        return int(self.calendar.depth.shape[1])

    def starts_before(self, end_week: int, horizon_weeks: int) -> list[int]:
        """Return positions of the starts whose campaign ends by week index ``end_week`` (exclusive)."""
        return [k for k, week in enumerate(self.start_weeks) if week + horizon_weeks <= end_week]

    def to(self, device: str | torch.device) -> Population:
        """Return the population on another device."""
        return Population(
            self.start_weeks,
            tuple(history.to(device) for history in self.histories),
            self.embeddings.to(device),
            self.calendar.to(device),
        )
