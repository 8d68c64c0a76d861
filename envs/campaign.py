"""A campaign under way: the pure market core with its state, its generator and its calendar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from encoders.calendar import PromotionCalendar
from envs.market import (
    MarketState,
    Outcome,
    Shocks,
    action_mask,
    draw_shocks,
    initial_state,
    issue,
    transition,
)
from envs.money import to_ticks
from envs.observation import ObservationLayout, Prediction, observe, predict
from envs.offers import Catalogue, OfferTensors
from envs.population import Population
from envs.simulator import Expectation, Simulator

UNLIMITED_BUDGET = 1e9
"""Currency; stands for "no cap" where the dual price alone limits spending."""


@dataclass(frozen=True)
class MarketSpec:
    """What all campaigns of a market share.

    Attributes:
        population: users, start weeks and calendar.
        catalogue: what may be sent.
        predictor: what the shop believes; fills slots and observations.
        horizon_weeks: length T of a campaign.
    """

    population: Population
    catalogue: Catalogue
    predictor: Simulator
    horizon_weeks: int

    def __post_init__(self) -> None:
        if self.horizon_weeks < 1:
            raise ValueError(f"horizon_weeks must be >= 1, got {self.horizon_weeks}")
        for week in self.population.start_weeks:
            if week < 0:
                raise ValueError(f"a campaign cannot start at week index {week}")
            if week + self.horizon_weeks > self.population.calendar.n_weeks:
                raise ValueError(
                    f"a campaign of {self.horizon_weeks} weeks from week {week + 1} runs past the calendar's "
                    f"{self.population.calendar.n_weeks} weeks"
                )
        if self.catalogue.n_slots > self.population.n_categories:
            raise ValueError(
                f"the catalogue has {self.catalogue.n_slots} slots but there are only "
                f"{self.population.n_categories} categories"
            )

    @cached_property
    def offers(self) -> OfferTensors:
        """The catalogue as columns, on the population's device."""
        return self.catalogue.tensors(self.population.embeddings.device)

    @property
    def layout(self) -> ObservationLayout:
        """Where things stand in an observation."""
        return ObservationLayout(self.population.embedding, len(self.catalogue))


class Campaign:
    """n users, one world, one budget, T weeks.

    Args:
        spec: the market.
        world: the simulator that answers.
        start: position in the population's start weeks.
        users: [n] indices of the users taking part.
        budget: currency for all users together.
        generator: all chance of this campaign; two campaigns with equally seeded generators and the same
            users share their luck.
    """

    def __init__(
        self,
        spec: MarketSpec,
        world: Simulator,
        *,
        start: int,
        users: torch.Tensor,
        budget: float,
        generator: torch.Generator,
    ) -> None:
        self.spec = spec
        self.world = world
        self.start = start
        self.users = users
        self.generator = generator
        population = spec.population
        self.device = population.embeddings.device
        reachable = torch.rand(len(users), generator=generator, device=self.device)
        self.state: MarketState = initial_state(
            population.histories[start].rows(users),
            population.embeddings[start][users],
            reachable < world.assumed.opt_in_share,
            to_ticks(budget),
        )
        self._prediction: Prediction | None = None
        self._mask: torch.Tensor | None = None

    @property
    def n_users(self) -> int:
        """Number of users n."""
        return len(self.users)

    @property
    def weeks_left(self) -> int:
        """Weeks left, the coming one included; 0 once the campaign is over."""
        return self.spec.horizon_weeks - self.state.week

    @property
    def done(self) -> bool:
        """Whether the campaign is over."""
        return self.weeks_left <= 0

    @property
    def calendar(self) -> PromotionCalendar:
        """The coming week's row of the calendar; the last week's once the campaign is over."""
        week = self.spec.population.start_weeks[self.start] + min(
            self.state.week, self.spec.horizon_weeks - 1
        )
        return self.spec.population.calendar.weeks(torch.tensor(week, device=self.device))

    @property
    def prediction(self) -> Prediction:
        """The predictor's view of the coming week."""
        if self._prediction is None:
            self._prediction = predict(
                self.state,
                self.spec.offers,
                self.spec.predictor,
                self.calendar,
                max(self.weeks_left, 0),
                self.spec.catalogue.n_slots,
            )
        return self._prediction

    @property
    def mask(self) -> torch.Tensor:
        """[n, K] bool, what may be sent in the coming week."""
        if self._mask is None:
            self._mask = action_mask(self.state, self.spec.offers)
        return self._mask

    def observation(self, dual_price: torch.Tensor) -> torch.Tensor:
        """Return observation rows [n, o] at dual prices [n]."""
        return observe(self.prediction, self.state.embedding, self.mask, dual_price)

    def draw(self) -> Shocks:
        """Draw the coming week's chance."""
        return draw_shocks(self.n_users, self.spec.population.n_categories, self.generator, self.device)

    def step(self, offer: torch.Tensor, shocks: Shocks | None = None) -> tuple[Outcome, Expectation]:
        """Send offers and let the week happen.

        Args:
            offer: [n] int64 offers chosen.
            shocks: the week's chance; drawn from the campaign's generator if None.

        Raises:
            ValueError: the campaign is over, or an offer is outside the mask.
        """
        if self.done:
            raise ValueError("the campaign is over")
        allowed = self.mask.gather(1, offer[:, None])[:, 0]
        if not bool(allowed.all()):
            user = int((~allowed).nonzero()[0, 0])
            raise ValueError(
                f"offer {int(offer[user])} is masked for user {user} in week {self.state.week + 1}"
            )
        chance = self.draw() if shocks is None else shocks
        calendar = self.calendar
        state, sent = issue(
            self.state, offer, self.prediction.slots, self.spec.offers, self.weeks_left, chance.priority
        )
        return self._advance(state, sent, offer, calendar, chance)

    def step_without_offers(self, shocks: Shocks | None = None) -> tuple[Outcome, Expectation]:
        """Let the week happen with nothing sent; the control arm, which needs no prediction.

        Raises:
            ValueError: the campaign is over.
        """
        if self.done:
            raise ValueError("the campaign is over")
        chance = self.draw() if shocks is None else shocks
        nothing = torch.zeros(self.n_users, dtype=torch.int64, device=self.device)
        return self._advance(self.state, nothing, nothing, self.calendar, chance)

    def _advance(
        self,
        state: MarketState,
        sent: torch.Tensor,
        requested: torch.Tensor,
        calendar: PromotionCalendar,
        shocks: Shocks,
    ) -> tuple[Outcome, Expectation]:
        self.state, outcome, expectation = transition(
            state,
            sent,
            self.spec.offers,
            self.world,
            calendar,
            shocks,
            self.spec.predictor.assumed,
            requested,
        )
        self._prediction = None
        self._mask = None
        return outcome, expectation
