"""The response model's own history and promotion features as plain columns, for peers that need a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from encoders.history import HistoryState, category_features, user_features
from encoders.response_data import ResponseData


@dataclass(frozen=True)
class FeatureRows:
    """Rows of a supervised problem.

    Attributes:
        features: [r, F] float32.
        label: [r] bool.
        categorical: columns of ``features`` that hold category numbers.
    """

    features: npt.NDArray[np.float32]
    label: npt.NDArray[np.bool_]
    categorical: tuple[int, ...] = ()


def promotion_columns(data: ResponseData, week: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return all that the calendar says of a week (0-based): per category [C], and of the week [1]."""
    of_week = data.calendar.weeks(torch.tensor([week]))
    values = [getattr(of_week, item.name) for item in fields(of_week)]
    return [value[0] for value in values if value.ndim == 2], [value for value in values if value.ndim == 1]


def purchase_features(
    data: ResponseData, week: int, base_rate: torch.Tensor, users: torch.Tensor | None = None
) -> npt.NDArray[np.float32]:
    """Return the features of one week's category purchases, [n, C, F]; the last is the category's number.

    Category features, user features, and all that the calendar says: promotion and trends.

    Args:
        data: states and calendar.
        week: 0-based.
        base_rate: [C] prior of the category features.
        users: [n] user indices; all if None.
    """
    state = _state(data, week, users)
    per_category, per_week = promotion_columns(data, week)
    columns = [*category_features(state, base_rate)]
    shape = columns[0].shape
    columns += [feature[:, None] for feature in user_features(state).T]
    columns += [*per_category, *per_week, torch.arange(shape[1], dtype=torch.float32)]
    # Filled column by column: stacking expanded columns would hold everything twice.
    out = np.empty((*shape, len(columns)), dtype=np.float32)
    for k, column in enumerate(columns):
        out[:, :, k] = column.numpy()
    return out


def visit_features(data: ResponseData, week: int) -> npt.NDArray[np.float32]:
    """Return the features of one week's visits, [n, G + V]: user features, then the week's own trends."""
    user = user_features(_state(data, week, None))
    _, per_week = promotion_columns(data, week)
    return torch.cat([user, *(value.expand(len(user), 1) for value in per_week)], dim=1).numpy()


def purchase_rows(
    data: ResponseData, weeks: Sequence[int], n_rows: int, rng: np.random.Generator
) -> FeatureRows:
    """Return the purchase problem over some weeks, all categories of at most ``n_rows // C`` user-weeks.

    Args:
        data: states, calendar and labels.
        weeks: 0-based.
        n_rows: most rows; at least one user-week is taken.
        rng: draws the user-weeks where not all are taken.
    """
    n, n_categories = data.panel.n_users, data.panel.n_categories
    size = min(len(weeks) * n, max(1, n_rows // n_categories))
    chosen = np.sort(rng.choice(len(weeks) * n, size, replace=False))
    base_rate = data.base_rate()
    features, label = None, np.empty((size, n_categories), dtype=np.bool_)
    done = 0
    for k, week in enumerate(weeks):
        users = torch.from_numpy(chosen[chosen // n == k] % n)
        if not len(users):
            continue
        part = purchase_features(data, week, base_rate, users)
        if features is None:
            features = np.empty((size, *part.shape[1:]), dtype=np.float32)
        features[done : done + len(users)] = part
        label[done : done + len(users)] = data.bought[week, users].numpy()
        done += len(users)
    assert features is not None
    width = features.shape[2]
    return FeatureRows(features.reshape(-1, width), label.ravel(), (width - 1,))


def visit_rows(data: ResponseData, weeks: Sequence[int]) -> FeatureRows:
    """Return the visit problem of all users over some weeks (0-based)."""
    return FeatureRows(
        np.concatenate([visit_features(data, week) for week in weeks]),
        data.visited[list(weeks)].numpy().ravel(),
    )


def _state(data: ResponseData, week: int, users: torch.Tensor | None) -> HistoryState:
    if users is None:
        return data.tape.week(week)
    return data.tape.before(torch.full_like(users, week), users)
