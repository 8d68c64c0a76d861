"""The weeks that are compared: as they were, and as the market lives them from the same start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from encoders.calendar import PromotionCalendar
from encoders.history import MOST_TRIPS
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from envs.assumptions import AssumedResponse
from envs.campaign import Campaign, MarketSpec
from envs.offers import Catalogue
from envs.population import Population
from envs.simulator import Simulator
from experiments.fitted_run import FittedRun


@dataclass(frozen=True)
class ShoppingWeeks:
    """What n users did in T weeks.

    Attributes:
        trips: [n, T] shopping trips, 0 without a visit, at most MOST_TRIPS.
        bought: [n, T, C] bool.
        spend: [n, T] currency, all categories.
        since_visit: [n] weeks since the last visit before the first week; 1 is the week before.
    """

    trips: npt.NDArray[np.int64]
    bought: npt.NDArray[np.bool_]
    spend: npt.NDArray[np.float64]
    since_visit: npt.NDArray[np.float64]

    @property
    def visited(self) -> npt.NDArray[np.bool_]:
        """[n, T] whether the user visited."""
        return self.trips > 0

    @property
    def baskets(self) -> npt.NDArray[np.bool_]:
        """[v, C] purchases of the v weeks with a visit."""
        return self.bought[self.visited]


def real_weeks(panel: Panel, since_visit: npt.NDArray[np.float64], first: int, last: int) -> ShoppingWeeks:
    """Return the panel's weeks from ``first`` to before ``last``, 0-based."""
    weeks = slice(first, last)
    return ShoppingWeeks(
        np.minimum(panel.trips[:, weeks], int(MOST_TRIPS)).astype(np.int64),
        panel.bought[:, weeks],
        panel.basket_spend[:, weeks].astype(np.float64),
        since_visit,
    )


def replays(
    run: FittedRun, n_seeds: int, advance: Callable[[], None] = lambda: None
) -> tuple[ShoppingWeeks, list[ShoppingWeeks]]:
    """Return the reported weeks as they were, and as often simulated as there are seeds.

    All users start from their real histories before the first reported week, with the embeddings made then;
    promotion is the real calendar's, which a shop knows ahead. The trends are held at their values before the
    first week: later ones are measured on weeks that are being simulated. Nothing is sent.

    Args:
        run: whose response model lives through the weeks; none of it was fitted on them.
        n_seeds: how often.
        advance: called after each simulation.
    """
    panel = run.panel
    first, last = panel.split.tune_end, panel.split.report_end
    history = HistoryTape.of_panel(panel).week(first)
    since = history.visit_recency.double().numpy()
    calendar = PromotionCalendar.of_panel(panel).with_trends_held(first)
    simulator = Simulator(run.heads, AssumedResponse.central(), run.config.market.margin_rate, "replay")
    population = Population((first,), (history,), run.embeddings.at(first)[None], calendar)
    market = MarketSpec(population, Catalogue.built_in(), simulator, last - first)
    simulated = []
    for seed in range(n_seeds):
        simulated.append(_live(market, simulator, seed, since))
        advance()
    return real_weeks(panel, since, first, last), simulated


def _live(
    market: MarketSpec, simulator: Simulator, seed: int, since_visit: npt.NDArray[np.float64]
) -> ShoppingWeeks:
    users = torch.arange(market.population.n_users)
    campaign = Campaign(market, simulator, start=0, users=users, budget=0.0, seed=seed)
    trips, bought, spend = [], [], []
    while not campaign.done:
        outcome = campaign.step()
        # The state's own arrays may be written over in the next week.
        trips.append(campaign.state.history.last_trips.numpy().astype(np.int64))
        bought.append(outcome.bought.numpy().copy())
        spend.append(outcome.spend.numpy().astype(np.float64))
    return ShoppingWeeks(
        np.stack(trips, axis=1), np.stack(bought, axis=1), np.stack(spend, axis=1), since_visit
    )
