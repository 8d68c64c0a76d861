"""What would have happened: the truth that a simulated market knows and a shop never does.

For any state, the expected response of every user under every offer, computed by the very formulas by which
the world answers; and what users are to an offer: who is moved by it, who would have come anyway, who never
comes, and whom it drives away.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from envs.blocks import blocks, padded, taken
from envs.campaign import UNLIMITED_BUDGET, Campaign
from envs.coupons import HeldCoupons
from envs.ledger import Ledger
from envs.market import issued_coupons
from envs.money import to_currency, to_ticks
from envs.simulator import Expectation


@dataclass(frozen=True)
class ResponseSurface:
    """Expected outcome of the coming week for n users under each of K offers, whoever may get them.

    Attributes:
        visit: [n, K] probability of a visit.
        margin: [n, K] contribution margin before coupon cost, currency.
        cost: [n, K] charged to the budget: redeemed discount and delivery, currency.
    """

    visit: torch.Tensor
    margin: torch.Tensor
    cost: torch.Tensor

    @property
    def uplift(self) -> torch.Tensor:
        """[n, K] expected margin over that of sending nothing."""
        return self.margin - self.margin[:, :1]


@dataclass(frozen=True)
class ResponseTypes:
    """How likely each of n users is of each type, [n] each; they add up to 1.

    An outcome with probability p0 without and p1 with the offer is taken to be decided by the same chance in
    both cases, as in the market: then one of the two events contains the other.

    Attributes:
        persuadable: does it only if the offer is sent.
        sure_thing: does it anyway.
        lost_cause: does it in neither case.
        sleeping_dog: does it only if left alone.
    """

    persuadable: torch.Tensor
    sure_thing: torch.Tensor
    lost_cause: torch.Tensor
    sleeping_dog: torch.Tensor

    @classmethod
    def of(cls, without: torch.Tensor, with_offer: torch.Tensor) -> ResponseTypes:
        """Return the types from the probabilities of an outcome, [n] each.

        Raises:
            ValueError: a probability lies outside [0, 1].
        """
        for chance in (without, with_offer):
            if not bool(((chance >= 0) & (chance <= 1)).all()):
                raise ValueError("probabilities must lie in [0, 1]")
        return cls(
            persuadable=(with_offer - without).clamp(min=0.0),
            sure_thing=torch.minimum(without, with_offer),
            lost_cause=1.0 - torch.maximum(without, with_offer),
            sleeping_dog=(without - with_offer).clamp(min=0.0),
        )

    def shares(self) -> dict[str, float]:
        """Return the mean share of each type."""
        return {
            name: float(getattr(self, name).mean())
            for name in ("persuadable", "sure_thing", "lost_cause", "sleeping_dog")
        }


def response_surface(campaign: Campaign) -> ResponseSurface:
    """Return the world's expected response of every user to every offer in the coming week.

    A coupon that a user already holds gives way to the one that is tried. Masks and money left do not matter.

    Args:
        campaign: before the week; not changed.
    """
    state, offers, calendar = campaign.state, campaign.spec.offers, campaign.calendar
    slots, world = campaign.prediction.slots, campaign.world
    n, n_offers = campaign.n_users, len(campaign.spec.catalogue)
    visit, margin, discount = (torch.empty((n, n_offers), device=campaign.device) for _ in range(3))
    weeks = [simulator.coefficients(calendar) for simulator in world.simulators]
    for k, block in blocks(n, world.member, campaign.device):
        simulator = world.simulators[k]
        m = block.stop - block.start if isinstance(block, slice) else len(block)
        rows = block if isinstance(block, slice) else padded(block)
        history, embedding = state.history.rows(rows), taken(state.embedding, rows)
        people = simulator.people(history, embedding, weeks[k])
        outlook = simulator.outlook(
            people, history, embedding, state.deals.rows(rows), weeks[k], pull=offers.has_threshold
        )
        carried, fatigue = state.coupons.rows(rows), taken(state.fatigue, rows)
        receptivity = taken(state.receptivity, rows)
        for offer in range(n_offers):
            sent = torch.full_like(carried.category, offer)
            coupons: HeldCoupons = issued_coupons(
                sent, taken(slots, rows), offers, campaign.weeks_left
            ).where(offers.coupon[sent], carried)
            terms = simulator.held_terms(outlook, calendar.depth, coupons)
            found: Expectation = simulator.expectation(
                outlook, terms, offers.message[sent], fatigue, coupons.held, receptivity
            )
            for whole, part in ((visit, found.visit), (margin, found.margin), (discount, found.discount)):
                whole[block, offer] = part[:m]
    return ResponseSurface(visit, margin, discount + to_currency(offers.delivery_cost).float())


def long_run_uplift(campaign: Campaign, offer: torch.Tensor) -> torch.Tensor:
    """Return what sending offers now is worth by the campaign's end, [n] expected margin, currency.

    Both arms live through the same luck and receive nothing later, so what a message costs in fatigue and
    opt-out where more were to follow is not in it. There is money enough for all.

    Args:
        campaign: before a week; not changed.
        offer: [n] int64.
    """
    arms = []
    for sent in (offer, torch.zeros_like(offer)):
        arm = copy.copy(campaign)
        plenty = Ledger.open(to_ticks(UNLIMITED_BUDGET), campaign.device)
        reserved = campaign.state.ledger.reserved
        arm.restore(replace(campaign.state, ledger=replace(plenty, reserved=reserved)))
        total = arm.step_with_expectation(sent)[1].margin.double()
        while not arm.done:
            total = total + arm.step_with_expectation()[1].margin
        arms.append(total)
    return arms[0] - arms[1]
