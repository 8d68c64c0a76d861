"""What the response model, and each user's own frequency, predict for given weeks of the panel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from encoders.response import ResponseHeads
from encoders.response_data import ResponseData

DoubleArray = npt.NDArray[np.float64]

_PRIOR_WEEKS = 4.0
"""Weight, in weeks, of the category's rate in a user's own."""


@dataclass(frozen=True)
class EmbeddingTable:
    """User embeddings at A anchor weeks.

    Attributes:
        start_week: [A] 0-based, ascending; the week from which an embedding holds.
        embedding: [A, n, d].
    """

    start_week: npt.NDArray[np.int64]
    embedding: torch.Tensor

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the ``.npz`` that the fine-tuning stage leaves."""
        with np.load(path, allow_pickle=False) as stored:
            embedding = torch.from_numpy(stored["embedding"]).float()
            return cls(stored["start_week"].astype(np.int64), embedding)

    def at(self, week: int) -> torch.Tensor:
        """Return the embeddings that hold in a week (0-based), [n, d]: the latest not after it.

        Raises:
            ValueError: no embedding is that early.
        """
        latest = int(np.searchsorted(self.start_week, week, side="right")) - 1
        if latest < 0:
            raise ValueError(
                f"no embedding holds in week {week + 1}; the first is of {self.start_week[0] + 1}"
            )
        return self.embedding[latest]

    def without_text(self) -> EmbeddingTable:
        """Return embeddings of width 0, for heads without text."""
        return EmbeddingTable(self.start_week, self.embedding[..., :0])


@dataclass(frozen=True)
class WeeklyPrediction:
    """Probabilities for W weeks.

    Attributes:
        visit: [W, n] of a visit in the week.
        purchase: [W, n, C] of a purchase in the week, visit or not.
    """

    visit: DoubleArray
    purchase: DoubleArray


@torch.no_grad()
def predict_weeks(
    heads: ResponseHeads,
    data: ResponseData,
    embeddings: EmbeddingTable,
    weeks: Sequence[int],
    advance: Callable[[], None] = lambda: None,
) -> WeeklyPrediction:
    """Predict all users in the given weeks (0-based), each from what was known before it.

    Args:
        heads: the calibrated model, on the CPU.
        data: states and calendar.
        embeddings: as wide as the heads want them.
        weeks: W of them.
        advance: called after each week.
    """
    n = data.panel.n_users
    visit = np.empty((len(weeks), n))
    purchase = np.empty((len(weeks), n, data.panel.n_categories))
    for k, week in enumerate(weeks):
        calendar = data.calendar.weeks(torch.full((n,), week))
        utilities = heads(data.tape.week(week), embeddings.at(week), calendar)
        visit[k] = torch.sigmoid(utilities.visit.double()).numpy()
        purchase[k] = torch.sigmoid(utilities.purchase.double()).numpy() * visit[k][:, None]
        advance()
    return WeeklyPrediction(visit, purchase)


def own_frequency(data: ResponseData, weeks: Sequence[int]) -> DoubleArray:
    """Return each user's own weekly purchase rate before each week, shrunk to the category's, [W, n, C]."""
    prior = data.bought[: data.panel.split.train_end].float().mean(dim=(0, 1))
    parts = []
    for week in weeks:
        state = data.tape.week(week)
        rate = (state.category_slow + _PRIOR_WEEKS * prior) / (state.weeks_slow[:, None] + _PRIOR_WEEKS)
        parts.append(rate.double().clamp(1e-5, 1 - 1e-5).numpy())
    return np.stack(parts)
