"""A market small enough to be solved exactly: few user types, few states, known probabilities.

What PPO and heuristics earn here can be held against a known optimum (:mod:`envs.tabular_solution`). Users
are independent but for the budget that they share, which makes the market a weakly coupled Markov decision
process (Hawkins 2003, MIT; Boutilier & Lu 2016, UAI; Brown & Smith 2020, Operations Research).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from envs.money import to_currency, to_ticks
from envs.tabular_users import DEMO_PANTRY, DEMO_USERS, NO_PURCHASE, REDEMPTION, Pantry, UserType

DEMO_HORIZON_WEEKS = 52
DEMO_OFFER_WEEKS = 48
"""The last four weeks of the demo send nothing, so that purchases merely brought forward are missed."""

REFERENCE_BUDGET_PER_USER = 3.0
"""Currency for the whole horizon; the demo market's budget at which policies are compared."""

PROBABILITY_TOLERANCE = 1e-9
"""How far probabilities may be from summing to one."""


@dataclass(frozen=True, eq=False)
class TabularMarket:
    """The model of a tabular market: G types, K actions (0 sends nothing), S states, E events a week.

    The joint distribution of a week's event and the next state is the primitive, not the marginals of
    each: who buys today also has the full pantry tomorrow.

    Attributes:
        outcome: [G, K, S, E, S] float64, probability of event and next state.
        margin: [G, K, S, E] float64 currency, contribution margin of the event before coupon cost.
        cost: [G, K, S, E] int64 ticks, what the event costs the budget.
        mask: [G, K, S] bool, whether the action may be taken; action 0 always may.
        initial: [G, S] float64, distribution of the first state.
        share: [G] float64, share of each type among users.
        features: [S, f] float32, what an agent sees of each state.
        horizon_weeks: length T of a campaign.
        offer_weeks: weeks at its start in which offers may be sent; afterwards only action 0 is allowed.

    Raises:
        ValueError: a shape or type does not fit, something is not finite, probabilities do not sum to one,
            a cost is negative, or action 0 is masked or costs something.
    """

    outcome: torch.Tensor
    margin: torch.Tensor
    cost: torch.Tensor
    mask: torch.Tensor
    initial: torch.Tensor
    share: torch.Tensor
    features: torch.Tensor
    horizon_weeks: int
    offer_weeks: int

    def __post_init__(self) -> None:
        if self.outcome.ndim != 5:
            raise ValueError(f"outcome must have shape [G, K, S, E, S], got {list(self.outcome.shape)}")
        types, actions, states, events, _ = self.outcome.shape
        for name, shape, dtype in (
            ("outcome", (types, actions, states, events, states), torch.float64),
            ("margin", (types, actions, states, events), torch.float64),
            ("cost", (types, actions, states, events), torch.int64),
            ("mask", (types, actions, states), torch.bool),
            ("initial", (types, states), torch.float64),
            ("share", (types,), torch.float64),
            ("features", (states, *self.features.shape[-1:]), torch.float32),
        ):
            value: torch.Tensor = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} of shape {list(shape)}, got {value.dtype} {list(value.shape)}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} has values that are not finite")
        _check_distribution("outcome[type, action, state]", self.outcome.flatten(start_dim=3))
        _check_distribution("initial[type]", self.initial)
        _check_distribution("share", self.share[None])
        if bool((self.cost < 0).any()):
            raise ValueError(f"a cost cannot be negative, got {int(self.cost.min())} ticks")
        if not bool(self.mask[:, 0].all()):
            raise ValueError("the mask must allow action 0, sending nothing, in every state")
        if bool((self.cost[:, 0] != 0).any()):
            raise ValueError("action 0, sending nothing, must cost nothing")
        if not 0 <= self.offer_weeks <= self.horizon_weeks or self.horizon_weeks < 1:
            raise ValueError(
                f"need 0 <= offer_weeks <= horizon_weeks and horizon_weeks >= 1, got {self.offer_weeks} and "
                f"{self.horizon_weeks}"
            )

    @property
    def n_types(self) -> int:
        """Number of user types G."""
        return int(self.outcome.shape[0])

    @property
    def n_actions(self) -> int:
        """Number of actions K, sending nothing included."""
        return int(self.outcome.shape[1])

    @property
    def n_states(self) -> int:
        """Number of states S."""
        return int(self.outcome.shape[2])

    @cached_property
    def event_probability(self) -> torch.Tensor:
        """[G, K, S, E] probability of each event of a week."""
        return self.outcome.sum(dim=-1)

    @cached_property
    def transition(self) -> torch.Tensor:
        """[G, K, S, S] probability of each next state."""
        return self.outcome.sum(dim=-2)

    @cached_property
    def expected_margin(self) -> torch.Tensor:
        """[G, K, S] expected contribution margin of a week before coupon cost, currency."""
        return (self.event_probability * self.margin).sum(dim=-1)

    @cached_property
    def expected_cost(self) -> torch.Tensor:
        """[G, K, S] expected charge to the budget in a week, currency."""
        return (self.event_probability * to_currency(self.cost)).sum(dim=-1)

    @cached_property
    def worst_case_cost(self) -> torch.Tensor:
        """[G, K, S] int64 ticks, the dearest event that can happen; what the ledger reserves."""
        return torch.where(self.event_probability > 0, self.cost, 0).amax(dim=-1)

    @cached_property
    def allowed(self) -> torch.Tensor:
        """[T, G, S, K] bool, which actions may be taken in which week."""
        mask = self.mask.transpose(1, 2).expand(self.horizon_weeks, -1, -1, -1).clone()
        mask[self.offer_weeks :, :, :, 1:] = False
        return mask

    @classmethod
    def of_users(
        cls, pantry: Pantry, users: Sequence[UserType], *, horizon_weeks: int, offer_weeks: int
    ) -> TabularMarket:
        """Build the market of given user types, who start rested and in the steady state without offers.

        Args:
            pantry: what all types share.
            users: the types; their shares sum to one.
            horizon_weeks: length T of a campaign.
            offer_weeks: weeks at its start in which offers may be sent.

        Raises:
            ValueError: a type does not have one lift for each offer, or the shares do not sum to one.
        """
        for user in users:
            if len(user.lift) != len(pantry.offers):
                raise ValueError(
                    f"type {user.name!r} has {len(user.lift)} lifts for {len(pantry.offers)} offers"
                )
        states = pantry.states
        index = {state: s for s, state in enumerate(states)}
        shape = (len(users), len(pantry.offers) + 1, len(states), REDEMPTION + 1)
        outcome = torch.zeros(*shape, len(states), dtype=torch.float64)
        margin = torch.zeros(shape, dtype=torch.float64)
        cost = torch.zeros(shape, dtype=torch.int64)
        mask = torch.zeros(shape[:3], dtype=torch.bool)
        for g, user in enumerate(users):
            margin[g, :, :, NO_PURCHASE + 1 :] = user.margin
            for k in range(shape[1]):
                for s, state in enumerate(states):
                    mask[g, k, s] = pantry.allows(k, state)
                    # What a masked action would do is never asked; the row repeats that of sending nothing.
                    sent = k if mask[g, k, s] else 0
                    for probability, event, after in pantry.outcomes(user, sent, state):
                        outcome[g, k, s, event, index[after]] += probability
        for k, offer in enumerate(pantry.offers, start=1):
            cost[:, k] = to_ticks(pantry.delivery_fee)
            cost[:, k, :, REDEMPTION] += to_ticks(offer.discount)
        start = torch.zeros(len(states), dtype=torch.float64)
        start[index[states[0]]] = pantry.opt_in_share
        start[index[states[-1]]] = 1.0 - pantry.opt_in_share
        settled = torch.linalg.matrix_power(outcome[:, 0].sum(dim=-2), 4096)
        return cls(
            outcome=outcome,
            margin=margin,
            cost=cost,
            mask=mask,
            initial=start @ settled,
            share=torch.tensor([user.share for user in users], dtype=torch.float64),
            features=pantry.features(),
            horizon_weeks=horizon_weeks,
            offer_weeks=offer_weeks,
        )

    @classmethod
    def demo(
        cls, *, horizon_weeks: int = DEMO_HORIZON_WEEKS, offer_weeks: int = DEMO_OFFER_WEEKS
    ) -> TabularMarket:
        """Return the demo market, in which looking one week ahead is a costly mistake.

        Its parameters are DEMO_PANTRY and DEMO_USERS of :mod:`envs.tabular_users`.
        """
        return cls.of_users(DEMO_PANTRY, DEMO_USERS, horizon_weeks=horizon_weeks, offer_weeks=offer_weeks)


def _check_distribution(name: str, rows: torch.Tensor) -> None:
    """Refuse rows [..., m] that are not probabilities summing to one."""
    if bool((rows < 0).any()):
        raise ValueError(f"{name} has a negative probability: {float(rows.min())}")
    error = (rows.sum(dim=-1) - 1.0).abs()
    if bool((error > PROBABILITY_TOLERANCE).any()):
        worst = int(error.argmax())
        total = float(rows.sum(dim=-1).flatten()[worst])
        raise ValueError(f"{name} must sum to 1; a row sums to {total}")
