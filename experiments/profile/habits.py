"""What a user buys and how often he comes, beside the population."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from encoders.history import PRIOR_VISITS, HistoryState
from encoders.panel import Panel

FloatArray = npt.NDArray[np.float64]

SEGMENT_WEEKS = 13
"""Weeks before the profile's week that visits and spend are counted over: a quarter."""

_VISIT_WORDS = ("rare", "regular", "frequent")
_SPEND_WORDS = ("low spend", "medium spend", "high spend")
_RECENCY_WORDS = ((2, "active"), (8, "lapsing"))
"""Most weeks since the last visit of each word; beyond, a user has lapsed."""


def percentiles(values: npt.NDArray[np.floating]) -> FloatArray:
    """Return the share of the population below each value, ties counted half, [n] in (0, 1)."""
    ranks = rankdata(values)
    shares: FloatArray = (ranks - 0.5) / len(ranks)
    return shares


@dataclass(frozen=True)
class Segment:
    """Where a user stands by recency, frequency and spend.

    Attributes:
        name: in words: terciles of visits and of spend among all users, and recency.
        visit_rate: visits a week (weeks with one or more trips) over the segment's weeks.
        visit_percentile: share of users with fewer.
        spend: a week, log's currency, over the same weeks.
        spend_percentile: share of users with less.
        weeks_since_visit: 1 for last week; None where there was no visit yet.
    """

    name: str
    visit_rate: float
    visit_percentile: float
    spend: float
    spend_percentile: float
    weeks_since_visit: int | None


def segments(panel: Panel, week: int) -> list[Segment]:
    """Return the segment of every user at the start of a 1-based week, from the weeks before, [n]."""
    end = week - 1
    start = max(0, end - SEGMENT_WEEKS)
    visit_rate = panel.visited[:, start:end].mean(axis=1)
    spend = panel.basket_spend[:, start:end].mean(axis=1, dtype=np.float64)
    visit_share, spend_share = percentiles(visit_rate), percentiles(spend)
    found = []
    for user in range(panel.n_users):
        visits = np.flatnonzero(panel.visited[user, :end])
        recency = end - int(visits[-1]) if len(visits) else None
        words = (_tercile(visit_share[user], _VISIT_WORDS), _tercile(spend_share[user], _SPEND_WORDS))
        found.append(
            Segment(
                name=", ".join((*words, _recency_word(recency))),
                visit_rate=float(visit_rate[user]),
                visit_percentile=float(visit_share[user]),
                spend=float(spend[user]),
                spend_percentile=float(spend_share[user]),
                weeks_since_visit=recency,
            )
        )
    return found


def _tercile(share: float, words: tuple[str, str, str]) -> str:
    return words[min(int(3 * share), 2)]


def _recency_word(weeks: int | None) -> str:
    if weeks is None:
        return "no visit yet"
    return next((word for most, word in _RECENCY_WORDS if weeks <= most), "lapsed")


@dataclass(frozen=True)
class PurchaseRates:
    """Purchases of a category per visit, recent visits counting more (half-life 16 weeks).

    Attributes:
        own: [n, C] of each user, shrunk by two imagined visits of the average user.
        population: [C] of all users together.
    """

    own: FloatArray
    population: FloatArray

    @classmethod
    def of_history(cls, state: HistoryState, base_rate: npt.NDArray[np.floating]) -> PurchaseRates:
        """Read the rates from histories, shrunk as the model's features are, to ``base_rate`` [C]."""
        bought = state.category_slow.double().numpy()
        visits = state.visits_slow.double().numpy()
        own = (bought + PRIOR_VISITS * base_rate) / (visits[:, None] + PRIOR_VISITS)
        return cls(own, bought.sum(axis=0) / max(float(visits.sum()), 1e-9))

    @property
    def excess(self) -> FloatArray:
        """[n, C] own rate less the population's."""
        return self.own - self.population


@dataclass(frozen=True)
class Favourite:
    """A category that a user buys more than others do.

    Attributes:
        category: name.
        rate: purchases per visit, shrunk.
        population_rate: of all users.
        lift: rate / population_rate; None where nobody bought it.
        weeks_since: 1 for last week; None where it was not bought yet.
    """

    category: str
    rate: float
    population_rate: float
    lift: float | None
    weeks_since: int | None


def favourites(
    panel: Panel, words: list[str], rates: PurchaseRates, user: int, week: int, most: int
) -> list[Favourite]:
    """Return up to ``most`` categories bought more than by others, greatest excess first."""
    excess = rates.excess[user]
    order = np.argsort(-excess, kind="stable")[:most]
    found = []
    for c in order[excess[order] > 0]:
        own, all_users = float(rates.own[user, c]), float(rates.population[c])
        weeks = np.flatnonzero(panel.bought[user, : week - 1, c])
        since = week - 1 - int(weeks[-1]) if len(weeks) else None
        found.append(Favourite(words[c], own, all_users, own / all_users if all_users else None, since))
    return found
