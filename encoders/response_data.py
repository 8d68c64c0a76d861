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
from encoders.user_text import UserTextStyle, UserTextWriter

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
        paid: [T, n, C] bool, bought and not for nothing: where there is a spend to fit.
        log_spend: [T, n, C] float16 log of spend where paid, 0 elsewhere.
    """

    panel: Panel
    tape: HistoryTape
    calendar: PromotionCalendar
    bought: torch.Tensor
    visited: torch.Tensor
    paid: torch.Tensor
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
            paid=(spend > 0).contiguous(),
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
class UserWeeks:
    """r user-weeks to fit on or to score.

    Attributes:
        user: [r] user index.
        week: [r] 0-based week index.
        embedding: [r, d] embedding of the user in the week.
        weight: [r] how often the row counts; a bootstrap repeats users.
    """

    user: torch.Tensor
    week: torch.Tensor
    embedding: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of_weeks(
        cls,
        weeks: Sequence[int],
        start_weeks: Sequence[int],
        embeddings: torch.Tensor,
        user_weight: torch.Tensor | None = None,
    ) -> UserWeeks:
        """Take all users in the given weeks, with the latest embedding made by then.

        Args:
            weeks: 0-based, none before the first start week.
            start_weeks: A week indices, ascending, at which users were embedded.
            embeddings: [A, n, d].
            user_weight: [n] how often each user counts; once if None, and not at all where zero.

        Raises:
            ValueError: a week lies before the first embedding.
        """
        if min(weeks) < start_weeks[0]:
            raise ValueError(f"week index {min(weeks)} lies before the first embedding, at {start_weeks[0]}")
        n_users = embeddings.shape[1]
        chosen = torch.arange(n_users) if user_weight is None else user_weight.nonzero()[:, 0]
        latest = torch.searchsorted(torch.tensor(start_weeks), torch.tensor(weeks), right=True) - 1
        weight = torch.ones(n_users) if user_weight is None else user_weight.float()
        return cls(
            user=chosen.repeat(len(weeks)),
            week=torch.tensor(weeks).repeat_interleave(len(chosen)),
            embedding=embeddings[latest][:, chosen].flatten(0, 1),
            weight=weight[chosen].repeat(len(weeks)),
        )

    def __len__(self) -> int:
        return len(self.user)

    def where(self, chosen: torch.Tensor) -> UserWeeks:
        """Return the chosen rows, by mask or index."""
        return UserWeeks(self.user[chosen], self.week[chosen], self.embedding[chosen], self.weight[chosen])

    def chunks(self, size: int) -> list[UserWeeks]:
        """Split into stretches of at most ``size`` rows, in order."""
        return [self.where(index) for index in torch.arange(len(self)).split(size)]


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

    def of_users(self, users: torch.Tensor) -> AnchorTexts:
        """Return the texts of the given users alone, in their order here."""
        chosen = torch.isin(self.user, users).nonzero()[:, 0]
        return AnchorTexts(
            [self.tokens[int(k)] for k in chosen],
            self.user[chosen],
            self.first_week[chosen],
            self.last_week[chosen],
        )

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
    writer, tape = UserTextWriter.of_panel(panel, style), HistoryTape.of_panel(panel)
    tokens: list[npt.NDArray[np.int32]] = []
    user: list[npt.NDArray[np.int64]] = []
    first: list[int] = []
    for anchor in anchors:
        state = tape.week(anchor - 1).rows(torch.from_numpy(chosen))
        tokens += tokenize(tokenizer, writer.write(state, chosen.tolist(), anchor), max_tokens)
        user.append(chosen)
        first += [anchor - 1] * len(chosen)
    first_week = torch.tensor(first)
    return AnchorTexts(
        tokens=tokens,
        user=torch.from_numpy(np.concatenate(user)),
        first_week=first_week,
        last_week=(first_week + every - 1).clamp(max=last_week - 1),
    )
