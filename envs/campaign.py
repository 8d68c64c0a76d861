"""A campaign under way: the pure market core with its state, its luck and its calendar."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from encoders.calendar import PromotionCalendar
from encoders.user_encoder import UserEncoder
from envs.luck import Luck, Stream
from envs.market import MarketState, Outcome, World, action_mask, initial_state, issue, transition
from envs.money import to_ticks
from envs.observation import ObservationLayout, Prediction, Recommender, Shop, observe, predict
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
        recommender: how the recommended slots are filled.
        resample_weeks: None to live through the real weeks from the start; else the calendar of each campaign
            is drawn from all weeks in blocks of so many (moving-block bootstrap, Künsch 1989), so that a
            campaign may be longer than what is left of the log.
        user_encoder: encodes users anew from what they did meanwhile; None keeps the population's embeddings.
        re_encode_weeks: weeks from one encoding to the next.
    """

    population: Population
    catalogue: Catalogue
    predictor: Simulator
    horizon_weeks: int
    recommender: Recommender = Recommender.PURCHASE
    resample_weeks: int | None = None
    user_encoder: UserEncoder | None = None
    re_encode_weeks: int | None = None

    def __post_init__(self) -> None:
        if self.horizon_weeks < 1:
            raise ValueError(f"horizon_weeks must be >= 1, got {self.horizon_weeks}")
        n_weeks = self.population.calendar.n_weeks
        for week in self.population.start_weeks:
            if week < 0:
                raise ValueError(f"a campaign cannot start at week index {week}")
            if self.resample_weeks is None and week + self.horizon_weeks > n_weeks:
                raise ValueError(
                    f"a campaign of {self.horizon_weeks} weeks from week {week + 1} runs past the calendar's "
                    f"{n_weeks} weeks; resample the calendar for longer campaigns"
                )
        if self.resample_weeks is not None and not 1 <= self.resample_weeks <= n_weeks:
            raise ValueError(f"resample_weeks must be in 1..{n_weeks}, got {self.resample_weeks}")
        if self.catalogue.n_slots > self.population.n_categories:
            raise ValueError(
                f"the catalogue has {self.catalogue.n_slots} slots but there are only "
                f"{self.population.n_categories} categories"
            )
        if self.recommender is Recommender.UPLIFT_PER_COST and not bool((self.offers.slot >= 0).any()):
            raise ValueError("recommending by uplift per cost needs a percent coupon in the catalogue")
        self._check_encoder()

    def _check_encoder(self) -> None:
        encoder, population = self.user_encoder, self.population
        if (encoder is None) != (self.re_encode_weeks is None):
            raise ValueError("user_encoder and re_encode_weeks go together: give both or neither")
        if encoder is None or self.re_encode_weeks is None:
            return
        if self.re_encode_weeks < 1:
            raise ValueError(f"re_encode_weeks must be >= 1, got {self.re_encode_weeks}")
        for what, own, wanted in (
            ("users", len(encoder.writer.profiles), population.n_users),
            ("categories", len(encoder.writer.words), population.n_categories),
            ("numbers an embedding", encoder.width, population.embedding),
        ):
            if own != wanted:
                raise ValueError(f"the user encoder has {own} {what}, the population {wanted}")

    @cached_property
    def offers(self) -> OfferTensors:
        """The catalogue as columns, on the population's device."""
        return self.catalogue.tensors(self.population.embeddings.device)

    @cached_property
    def shop(self) -> Shop:
        """What the shop knows and has decided."""
        return Shop(self.offers, self.predictor, self.catalogue.n_slots, self.recommender)

    @property
    def layout(self) -> ObservationLayout:
        """Where things stand in an observation."""
        return ObservationLayout(self.population.embedding, len(self.catalogue))


class Campaign:
    """n users, a world, one budget, T weeks.

    Everything about a campaign follows from its arguments; ``state`` is all that changes, and may be kept and
    put back (:meth:`restore`), or pickled with the campaign, to go on from the same place with the same luck.

    Args:
        spec: the market.
        world: the simulator that answers, or several, each for its share of the users.
        start: position in the population's start weeks.
        users: [n] indices of the users taking part.
        budget: currency for all users together.
        seed: of all chance; two campaigns with equal seeds share the luck of the users that they share.
        member: [n] int64, which of several simulators answers for each user; in turn if None.
    """

    def __init__(
        self,
        spec: MarketSpec,
        world: Simulator | Sequence[Simulator],
        *,
        start: int,
        users: torch.Tensor,
        budget: float,
        seed: int,
        member: torch.Tensor | None = None,
    ) -> None:
        self.spec = spec
        self.start = start
        self.users = users
        self.seed = seed
        population = spec.population
        self.device = population.embeddings.device
        if member is None:
            self.world = World.of(world, len(users), self.device)
        else:
            several = (world,) if isinstance(world, Simulator) else tuple(world)
            self.world = World(several, member)
        self.luck = Luck(seed, _individuals(users))
        self.weeks = self._calendar_weeks()
        simulators = self.world.simulators
        share = self.world.per_user([s.assumed.opt_in_share for s in simulators], self.device)
        spread = self.world.per_user([s.assumed.message_spread for s in simulators], self.device)
        # What a user is like is a trait of him and of the world, the same in every campaign.
        traits = torch.stack(
            [
                Luck(zlib.crc32(s.name.encode()), self.luck.user).normal(Stream.RECEPTIVITY, 0)
                for s in simulators
            ]
        )
        trait = traits[0] if self.world.member is None else traits.gather(0, self.world.member[None])[0]
        history, embedding = population.histories[start], population.embeddings[start]
        # States are never written to: where everyone takes part, the population's own will do.
        if not torch.equal(users, torch.arange(population.n_users, device=self.device)):
            history, embedding = history.rows(users), embedding[users]
        self.state: MarketState = initial_state(
            history,
            embedding,
            self.luck.uniform(Stream.OPT_IN, 0) < share,
            1.0 + spread * trait,
            to_ticks(budget),
        )
        self._prediction: Prediction | None = None
        self._mask: torch.Tensor | None = None

    def _calendar_weeks(self) -> torch.Tensor:
        """[T] week indices that the campaign lives through."""
        spec, horizon = self.spec, self.spec.horizon_weeks
        steps = torch.arange(horizon, device=self.device)
        if spec.resample_weeks is None:
            return spec.population.start_weeks[self.start] + steps
        block = spec.resample_weeks
        places = spec.population.calendar.n_weeks - block + 1
        drawn = Luck(self.seed, steps[: -(-horizon // block)]).uniform(Stream.CALENDAR, 0) * places
        first = drawn.long().clamp(max=places - 1)
        return (first[:, None] + torch.arange(block, device=self.device)).flatten()[:horizon]

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
        week = self.weeks[min(self.state.week, self.spec.horizon_weeks - 1)]
        return self.spec.population.calendar.weeks(week)

    @property
    def prediction(self) -> Prediction:
        """The predictor's view of the coming week."""
        if self._prediction is None:
            self._prediction = predict(self.state, self.spec.shop, self.calendar, max(self.weeks_left, 0))
        return self._prediction

    @property
    def mask(self) -> torch.Tensor:
        """[n, K] bool, what may be sent in the coming week."""
        if self._mask is None:
            self._mask = action_mask(self.state, self.spec.offers)
        return self._mask

    def observation(self, dual_price: torch.Tensor, pressure: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Return observation rows [n, o] at dual prices [n]; ``pressure`` as in :func:`observe`."""
        return observe(self.prediction, self.state.embedding, self.mask, dual_price, pressure)

    def restore(self, state: MarketState) -> None:
        """Go back, or forward, to a state of this campaign."""
        self.state = state
        self._prediction = None
        self._mask = None

    def step(self, offer: torch.Tensor | None = None) -> Outcome:
        """Send offers and let the week happen.

        Args:
            offer: [n] int64 offers chosen; None sends nothing, and then needs no prediction.

        Raises:
            ValueError: the campaign is over, or an offer is outside the mask.
        """
        return self._step(offer, expect=False)[0]

    def step_with_expectation(self, offer: torch.Tensor | None = None) -> tuple[Outcome, Expectation]:
        """Do the same, and return too what was to be expected once the offers were sent.

        Raises:
            ValueError: as :meth:`step`.
        """
        outcome, expectation = self._step(offer, expect=True)
        assert expectation is not None
        return outcome, expectation

    def _step(self, offer: torch.Tensor | None, *, expect: bool) -> tuple[Outcome, Expectation | None]:
        if self.done:
            raise ValueError("the campaign is over")
        state = self.state
        if offer is None:
            offer = sent = torch.zeros(self.n_users, dtype=torch.int64, device=self.device)
        else:
            self._check(offer)
            priority = self.luck.order(Stream.PRIORITY, state.week)
            state, sent = issue(
                state, offer, self.prediction.slots, self.spec.offers, self.weeks_left, priority
            )
        # For a million users they take a quarter of a gigabyte, and the week needs them no more.
        self._prediction = self._mask = None
        after, outcome, expectation = transition(
            state,
            sent,
            self.spec.offers,
            self.world,
            self.calendar,
            self.luck,
            self.spec.predictor.assumed,
            offer,
            expect=expect,
        )
        self.restore(self._re_encoded(after))
        return outcome, expectation

    def _re_encoded(self, state: MarketState) -> MarketState:
        """The state with its users encoded anew if it is time to; after the last week nothing comes of it."""
        encoder, every = self.spec.user_encoder, self.spec.re_encode_weeks
        if encoder is None or every is None or state.week % every or state.week >= self.spec.horizon_weeks:
            return state
        # Texts count weeks from 1. A resampled calendar moves promotion, not the time of the year.
        week = self.spec.population.start_weeks[self.start] + state.week + 1
        return replace(state, embedding=encoder.embed(state.history, self.users, week))

    def _check(self, offer: torch.Tensor) -> None:
        allowed = self.mask.gather(1, offer[:, None])[:, 0]
        if self.device.type != "cpu":
            # Reading the answer would make the GPU wait; the device itself stops on a wrong one.
            torch._assert_async(allowed.all())
            return
        if not bool(allowed.all()):
            user = int((~allowed).nonzero()[0, 0])
            raise ValueError(
                f"offer {int(offer[user])} is masked for user {user} in week {self.state.week + 1}"
            )


def _individuals(users: torch.Tensor) -> torch.Tensor:
    """Numbers that tell apart who takes part, [n]: who is drawn twice is two individuals."""
    order = torch.argsort(users, stable=True)
    ranked = users[order]
    first = torch.searchsorted(ranked, ranked)
    again = torch.empty_like(users)
    again[order] = torch.arange(len(users), device=users.device) - first
    return users + (again << 40)
