"""How a user changed over the start weeks, and which users are like him now; both by embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from encoders.history import PRIOR_VISITS
from encoders.panel import Panel
from experiments.backtest.predictions import EmbeddingTable
from experiments.profile.habits import FloatArray, PurchaseRates, Segment

TOP_CATEGORIES = 3


@dataclass(frozen=True)
class DriftStep:
    """A start week, and the weeks between the one before it and itself.

    Attributes:
        week: 1-based start week.
        cosine: of the centred embedding with the one before; None at the first.
        population_cosine: median of the same over all users.
        visit_rate: visits a week.
        basket_size: categories bought per visit; None without a visit.
        basket_spend: spend per visit, log's currency; None without a visit.
        top_categories: bought in most weeks.
    """

    week: int
    cosine: float | None
    population_cosine: float | None
    visit_rate: float
    basket_size: float | None
    basket_spend: float | None
    top_categories: list[str]


@dataclass(frozen=True)
class CategoryChange:
    """How the purchases of a category per visit changed from the first half of the weeks to the second.

    Attributes:
        category: name.
        before: rate in the first half, shrunk to the population's.
        after: in the second.
        population_change: change of the population's rate: what is season or assortment.
    """

    category: str
    before: float
    after: float
    population_change: float


@dataclass(frozen=True)
class Drift:
    """Change over time.

    Attributes:
        steps: one a start week up to the profile's week.
        half: last week of the first half that ``rising`` and ``falling`` compare.
        rising: most beyond the population's change first.
        falling: the same downwards.
    """

    steps: list[DriftStep]
    half: int
    rising: list[CategoryChange]
    falling: list[CategoryChange]


def measure_drift(panel: Panel, words: list[str], embeddings: EmbeddingTable, user: int, week: int) -> Drift:
    """Describe the change of one user up to the start of a 1-based week."""
    centred = _centre(embeddings.embedding)
    starts = [int(start) for start in embeddings.start_week if start < week]
    steps = []
    for a, start in enumerate(starts):
        begin = starts[a - 1] if a else 0
        cosine = torch.cosine_similarity(centred[a], centred[a - 1], dim=1) if a else None
        visited = panel.visited[user, begin:start]
        bought = panel.bought[user, begin:start]
        visits = int(visited.sum())
        weeks_bought = bought.sum(axis=0)
        top = np.argsort(-weeks_bought, kind="stable")[:TOP_CATEGORIES]
        spend = float(panel.basket_spend[user, begin:start].sum(dtype=np.float64))
        steps.append(
            DriftStep(
                week=start + 1,
                cosine=None if cosine is None else float(cosine[user]),
                population_cosine=None if cosine is None else float(cosine.median()),
                visit_rate=float(visited.mean()),
                basket_size=float(bought.sum()) / visits if visits else None,
                basket_spend=spend / visits if visits else None,
                top_categories=[words[c] for c in top if weeks_bought[c] > 0],
            )
        )
    half = (week - 1) // 2
    changes = _changes(panel, user, half, week - 1)
    beyond = np.array([after - before - everyone for before, after, everyone in changes])
    order = np.argsort(-beyond, kind="stable")

    def named(chosen: np.ndarray) -> list[CategoryChange]:
        return [CategoryChange(words[c], *changes[c]) for c in chosen[:TOP_CATEGORIES]]

    return Drift(
        steps=steps,
        half=half,
        rising=named(order[beyond[order] > 0]),
        falling=named(order[beyond[order] < 0][::-1]),
    )


def _centre(embedding: torch.Tensor) -> torch.Tensor:
    """Embeddings less the mean user's of their week: what all users have in common says nothing of one."""
    return embedding - embedding.mean(dim=-2, keepdim=True)


def _changes(panel: Panel, user: int, half: int, end: int) -> list[tuple[float, float, float]]:
    """Rate before, rate after, and the population's change, of each category."""
    rates = []
    for begin, stop in ((0, half), (half, end)):
        bought, visited = panel.bought[:, begin:stop], panel.visited[:, begin:stop]
        everyone: FloatArray = bought.sum(axis=(0, 1)) / max(int(visited.sum()), 1)
        own = (bought[user].sum(axis=0) + PRIOR_VISITS * everyone) / (visited[user].sum() + PRIOR_VISITS)
        rates.append((own, everyone))
    (before, all_before), (after, all_after) = rates
    return [
        (float(b), float(a), float(e)) for b, a, e in zip(before, after, all_after - all_before, strict=True)
    ]


@dataclass(frozen=True)
class Neighbour:
    """A user whose embedding points the same way.

    Attributes:
        user: pseudonym.
        cosine: of the centred embeddings.
        segment: in words.
        in_common: categories that both buy more than others do, greatest common excess first.
    """

    user: str
    cosine: float
    segment: str
    in_common: list[str]


@dataclass(frozen=True)
class Neighbours:
    """The nearest users.

    Attributes:
        nearest: nearest first.
        population_cosine: median cosine of the user with all others, for scale.
    """

    nearest: list[Neighbour]
    population_cosine: float


def find_neighbours(
    panel: Panel,
    words: list[str],
    embedding: torch.Tensor,
    rates: PurchaseRates,
    segments: list[Segment],
    user: int,
    most: int,
) -> Neighbours:
    """Return up to ``most`` other users by cosine of centred embeddings, [n, d]."""
    centred = _centre(embedding)
    cosine = torch.cosine_similarity(centred, centred[user : user + 1], dim=1)
    others = torch.arange(panel.n_users) != user
    order = torch.argsort(torch.where(others, cosine, -torch.inf), descending=True, stable=True)
    excess = rates.excess
    found = []
    for other in order[: min(most, panel.n_users - 1)].tolist():
        common = np.minimum(excess[user], excess[other])
        shared = np.argsort(-common, kind="stable")[:TOP_CATEGORIES]
        found.append(
            Neighbour(
                user=str(panel.user_ids[other]),
                cosine=float(cosine[other]),
                segment=segments[other].name,
                in_common=[words[c] for c in shared if common[c] > 0],
            )
        )
    return Neighbours(found, float(cosine[others].median()) if panel.n_users > 1 else 1.0)
