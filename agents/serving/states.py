"""Precomputed states of users: what the policy's graph takes, a row a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.serving.columns import USER_COLUMNS
from agents.serving.errors import DecisionInputError

_TYPES: dict[str, type[np.generic]] = {
    "category_recency": np.uint8,
    "category_slow": np.float16,
    "category_fast": np.float16,
    "recent": np.uint8,
    "user": np.float32,
    "messages": np.int64,
    "deal_category": np.int64,
    "deal_depth": np.float32,
    "deal_weeks_ago": np.float32,
    "embedding": np.float32,
}

STATE_ARRAYS = tuple(_TYPES)


@dataclass(frozen=True, eq=False)
class UserStates:
    """What a shop knows of n users before a week, as the market keeps it.

    Attributes:
        user_id: [n] distinct.
        category_recency: [n, C] uint8; this and the next three as in encoders.history_counts.HistoryCounts.
        category_slow: [n, C] float16.
        category_fast: [n, C] float16.
        recent: [n, C] uint8.
        user: [n, len(USER_COLUMNS)] float32.
        messages: [n] int64, bit k - 1 is whether a message was sent k weeks ago.
        deal_category: [n, R] int64 category of the last percent coupons redeemed, newest first; -1 for none.
        deal_depth: [n, R] float32.
        deal_weeks_ago: [n, R] float32, at least 1.
        embedding: [n, d] float32.
        text: [n] what the encoder read of each; empty where nobody knows. Message texts look at it.
        last_template: [n] template of the last message to each, None without one; empty where nobody knows.
    """

    user_id: tuple[str, ...]
    category_recency: npt.NDArray[np.uint8]
    category_slow: npt.NDArray[np.float16]
    category_fast: npt.NDArray[np.float16]
    recent: npt.NDArray[np.uint8]
    user: npt.NDArray[np.float32]
    messages: npt.NDArray[np.int64]
    deal_category: npt.NDArray[np.int64]
    deal_depth: npt.NDArray[np.float32]
    deal_weeks_ago: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]
    text: tuple[str, ...] = ()
    last_template: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.user_id)
        for name in ("text", "last_template"):
            if len(getattr(self, name)) not in (0, n):
                raise DecisionInputError(
                    f"states: {name} has {len(getattr(self, name))} entries for {n} users"
                )
        for name, kind in _TYPES.items():
            values = getattr(self, name)
            if values.dtype != kind or len(values) != n:
                raise DecisionInputError(
                    f"states: {name} holds {values.dtype} of shape {values.shape}, expected {np.dtype(kind)} "
                    f"for {n} users"
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise DecisionInputError(f"states: {name}, row {row} holds what is not a finite number")
        if self.user.shape != (n, len(USER_COLUMNS)):
            raise DecisionInputError(
                f"states: user has shape {self.user.shape}, expected {(n, len(USER_COLUMNS))}"
            )
        if (self.category_recency < 1).any():
            raise DecisionInputError("states: category_recency counts weeks from 1")

    def __len__(self) -> int:
        return len(self.user_id)

    def feed(self, first: int, last: int) -> dict[str, Any]:
        """Return their arrays by name, as the graph takes them."""
        return {name: getattr(self, name)[first:last] for name in STATE_ARRAYS}

    @classmethod
    def joined(cls, parts: list[UserStates]) -> UserStates:
        """Put blocks of users, at least one, together."""
        if len(parts) == 1:
            return parts[0]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in STATE_ARRAYS}
        ids, texts, templates = (
            tuple(one for part in parts for one in getattr(part, name))
            for name in ("user_id", "text", "last_template")
        )
        return cls(ids, **arrays, text=texts, last_template=templates)
