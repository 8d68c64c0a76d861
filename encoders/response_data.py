"""What the response heads are fitted on: texts at anchor weeks, and the weeks that each text serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from encoders.bert import tokenize
from encoders.calendar import PromotionCalendar
from encoders.history import category_features, user_features
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.response import FeatureScale
from encoders.user_text import UserTextStyle, user_texts

FIRST_TEXT_WEEK = 5
"""Before this week a history is too short to say anything."""


@dataclass(frozen=True)
class ResponseData:
    """A panel made ready for fitting.

    Attributes:
        panel: the logs by week.
        tape: history state before each week.
        calendar: mass promotion by week.
        bought: [T, n, C] bool.
        visited: [T, n] bool.
        log_spend: [T, n, C] float16 log of spend where bought, 0 elsewhere.
    """

    panel: Panel
    tape: HistoryTape
    calendar: PromotionCalendar
    bought: torch.Tensor
    visited: torch.Tensor
    log_spend: torch.Tensor

    @classmethod
    def of_panel(cls, panel: Panel) -> ResponseData:
        """Replay the panel and lay its labels out week first."""
        spend = torch.from_numpy(panel.category_spend).transpose(0, 1)
        return cls(
            panel=panel,
            tape=HistoryTape.of_panel(panel),
            calendar=PromotionCalendar.of_panel(panel),
            bought=torch.from_numpy(panel.bought).transpose(0, 1).contiguous(),
            visited=torch.from_numpy(panel.visited).T.contiguous(),
            log_spend=torch.where(spend > 0, spend.clamp(min=0.05).log(), 0.0).half().contiguous(),
        )

    def base_rate(self) -> torch.Tensor:
        """Return the share of visits with a purchase of each category over the training weeks, [C]."""
        end = self.panel.split.train_end
        bought = self.bought[:end].sum(dim=(0, 1)).float()
        return (bought + 1.0) / (float(self.visited[:end].sum()) + 2.0)

    def feature_scale(self, base_rate: torch.Tensor) -> FeatureScale:
        """Return the spread of the features over all users at three training weeks."""
        end = self.panel.split.train_end
        per_category, per_user = [], []
        for week in (end // 2, 3 * end // 4, end - 1):
            state = self.tape.week(week)
            per_category.append(
                torch.stack([feature.flatten() for feature in category_features(state, base_rate)])
            )
            per_user.append(user_features(state))
        category = torch.cat(per_category, dim=1)
        user = torch.cat(per_user, dim=0)
        return FeatureScale(
            category_mean=category.mean(dim=1),
            category_std=category.std(dim=1).clamp(min=1e-3),
            user_mean=user.mean(dim=0),
            user_std=user.std(dim=0).clamp(min=1e-3),
        )


@dataclass(frozen=True)
class AnchorTexts:
    """User texts at anchor weeks; text k is of one user at one week and serves the weeks that follow.

    Attributes:
        tokens: token ids of each text.
        user: [m] user index.
        first_week: [m] 0-based index of the first week served.
        last_week: [m] 0-based index of the last week served.
    """

    tokens: list[npt.NDArray[np.int32]]
    user: torch.Tensor
    first_week: torch.Tensor
    last_week: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Expand texts into the weeks that they serve.

        Args:
            text: [b] text indices.

        Returns:
            Position in ``text``, user index and 0-based week index of each row, each [r].
        """
        span = int((self.last_week - self.first_week).max()) + 1
        week = self.first_week[text][:, None] + torch.arange(span)
        inside = week <= self.last_week[text][:, None]
        position = torch.arange(len(text))[:, None].expand_as(week)
        return position[inside], self.user[text][position[inside]], week[inside]


def training_anchors(train_end: int, every: int) -> list[int]:
    """Return the 1-based anchor weeks of training, the last of which serves up to ``train_end``."""
    count = (train_end + 1 - FIRST_TEXT_WEEK) // every
    return [train_end + 1 - every * k for k in range(count, 0, -1)]


def anchor_texts(
    panel: Panel,
    tokenizer: Tokenizer,
    anchors: Sequence[int],
    last_week: int,
    *,
    every: int,
    style: UserTextStyle,
    max_tokens: int,
    users: npt.NDArray[np.int64] | None = None,
) -> AnchorTexts:
    """Write and tokenise the text of every user at each anchor.

    Args:
        panel: the logs by week.
        tokenizer: of the encoder.
        anchors: 1-based weeks.
        last_week: 1-based; no text serves a week after it.
        every: weeks that a text serves.
        style: how much the texts tell.
        max_tokens: cut of a text.
        users: user indices; all if None.
    """
    chosen = np.arange(panel.n_users) if users is None else users
    tokens: list[npt.NDArray[np.int32]] = []
    user: list[npt.NDArray[np.int64]] = []
    first: list[int] = []
    for anchor in anchors:
        texts = user_texts(panel, anchor, style)
        tokens += tokenize(tokenizer, [texts[i] for i in chosen], max_tokens)
        user.append(chosen)
        first += [anchor - 1] * len(chosen)
    first_week = torch.tensor(first)
    return AnchorTexts(
        tokens=tokens,
        user=torch.from_numpy(np.concatenate(user)),
        first_week=first_week,
        last_week=(first_week + every - 1).clamp(max=last_week - 1),
    )
