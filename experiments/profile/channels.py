"""Which channel moves a user's expected margin of a week most, by the response model.

Shelf display and mailer are fitted. What a message or a held coupon does to visits is assumed, and so is
that a coupon moves a purchase as a shelf discount of the same depth does; so the two parts are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import ResponseHeads
from envs.assumptions import ASSUMED_RANGES, AssumedResponse
from envs.coupons import DealMemory, HeldCoupons
from envs.money import to_currency
from envs.offers import Catalogue, OfferKind
from envs.simulator import Expectation, Outlook, Simulator

_LIFTS = ("message_lift", "coupon_lift")


@dataclass(frozen=True)
class ChannelEffect:
    """What a channel adds to a user's expected margin of one week.

    Attributes:
        channel: "coupon", "push message", "shelf display" or "mailer".
        what: the offer or category with which it does most.
        margin: added margin before cost, currency, with the central assumptions.
        margin_low: the same with all assumed lifts at the low ends of their ranges.
        margin_high: at the high ends.
        without_lifts: what is left of it if message and coupon bring no visits: the part that rests on
            fitted effects.
        cost: expected cost, currency; None where the logs know of none.
        basis: what is fitted and what assumed, in words.
    """

    channel: str
    what: str
    margin: float
    margin_low: float
    margin_high: float
    without_lifts: float
    cost: float | None
    basis: str


@dataclass(frozen=True)
class Channels:
    """All channels for one user and week.

    Attributes:
        visit_probability: without any offer.
        margin: expected margin of the week without any offer, currency.
        effects: most added margin first; without those that neither catalogue nor logs know.
        best: the channel that adds most; None where there is none at all.
        best_without_lifts: the same if the assumed lifts on visits are zero.
    """

    visit_probability: float
    margin: float
    effects: list[ChannelEffect]
    best: str | None
    best_without_lifts: str | None


@dataclass(frozen=True)
class ChannelQuestion:
    """Whom to ask about, and what may be sent.

    Attributes:
        heads: the deployed response model.
        history: [1] of the user before the week.
        embedding: [1, d] of the user.
        calendar: mass promotion by week.
        week: 1-based.
        catalogue: the offers.
        margin_rate: contribution margin per unit of spend.
        words: [C] category names.
        sources: fitted parameter -> where it comes from, in words; depth, display and mailer effect, and
            redemption.
    """

    heads: ResponseHeads
    history: HistoryState
    embedding: torch.Tensor
    calendar: PromotionCalendar
    week: int
    catalogue: Catalogue
    margin_rate: float
    words: list[str]
    sources: Mapping[str, str]

    @property
    def this_week(self) -> PromotionCalendar:
        """The week's mass promotion, one row."""
        return self.calendar.weeks(torch.tensor(self.week - 1))

    def simulator(self, **lifts: float) -> Simulator:
        """The response model with central assumptions, some of them replaced."""
        assumed = replace(AssumedResponse.central(), **lifts)
        return Simulator(self.heads, assumed, self.margin_rate, "profile")


@torch.no_grad()
def compare_channels(question: ChannelQuestion) -> Channels:
    """Return what each channel adds for a rested user who can be reached and holds no coupon yet.

    A coupon and a push message are those of the catalogue with the greatest margin less cost; a coupon is
    announced by a message, whose lift it includes. Display and mailer take the category that gains most,
    from none to the highest share that it had in any week so far.
    """
    lifts = {
        "margin": {name: ASSUMED_RANGES[name].central for name in _LIFTS},
        "margin_low": {name: ASSUMED_RANGES[name].low for name in _LIFTS},
        "margin_high": {name: ASSUMED_RANGES[name].high for name in _LIFTS},
        "without_lifts": dict.fromkeys(_LIFTS, 0.0),
    }
    simulators = {name: question.simulator(**values) for name, values in lifts.items()}
    nothing = _expect(question, simulators["margin"], None)
    effects = [
        *_best_offers(question, simulators, nothing),
        *_best_category(question, nothing, "shelf display", "display"),
        *_best_category(question, nothing, "mailer", "mailer"),
    ]
    effects.sort(key=lambda effect: -effect.margin)
    without_lifts = sorted(effects, key=lambda effect: -effect.without_lifts)
    return Channels(
        visit_probability=float(nothing.visit),
        margin=float(nothing.margin),
        effects=effects,
        best=effects[0].channel if effects else None,
        best_without_lifts=without_lifts[0].channel if effects else None,
    )


def _outlook(question: ChannelQuestion, simulator: Simulator, week: PromotionCalendar) -> Outlook:
    """What the simulator expects of the user in a week, before coupons and messages."""
    coefficients = simulator.coefficients(week)
    people = simulator.people(question.history, question.embedding, coefficients)
    deals = DealMemory.none(1)
    found = simulator.outlook(people, question.history, question.embedding, deals, coefficients, pull=True)
    # In arrays of its own: another outlook of the same simulator may follow before this one is read.
    return found.rows(torch.zeros(1, dtype=torch.int64))


def _expect(question: ChannelQuestion, simulator: Simulator, offer: int | None) -> Expectation:
    """The week's expectation if an offer of the catalogue is sent, or none."""
    offers, week = question.catalogue.tensors(), question.this_week
    outlook = _outlook(question, simulator, week)
    coupons, message = HeldCoupons.none(1), torch.zeros(1, dtype=torch.bool)
    if offer is not None:
        message = offers.message[offer].reshape(1)
        if offers.coupon[offer]:
            slot = int(offers.slot[offer])
            covered = (
                _slots(outlook.purchase_logit, question.catalogue)[slot] if slot >= 0 else torch.tensor(-1)
            )
            coupons = HeldCoupons(
                category=covered.reshape(1),
                depth=offers.depth[offer].reshape(1),
                min_spend=offers.min_spend[offer].reshape(1),
                max_discount=offers.max_discount[offer].reshape(1),
                liability=offers.liability[offer].reshape(1),
                weeks_left=offers.validity_weeks[offer].reshape(1),
            )
    terms = simulator.held_terms(outlook, week.depth, coupons)
    return simulator.expectation(outlook, terms, message, torch.zeros(1), coupons.held)


def _slots(purchase_logit: torch.Tensor, catalogue: Catalogue) -> torch.Tensor:
    """The recommended categories, [M], most likely purchase first; as the predictor fills them."""
    return torch.topk(purchase_logit[0], catalogue.n_slots).indices


def _best_offers(
    question: ChannelQuestion, simulators: dict[str, Simulator], nothing: Expectation
) -> list[ChannelEffect]:
    """The best coupon and the best push message of the catalogue, where it has any."""
    central = simulators["margin"]
    offers = question.catalogue.tensors()
    slots = _slots(_outlook(question, central, question.this_week).purchase_logit, question.catalogue)
    found: dict[str, tuple[float, ChannelEffect]] = {}
    for k, offer in enumerate(question.catalogue.offers):
        if offer.kind is OfferKind.NONE:
            continue
        coupon = bool(offers.coupon[k])
        channel = "coupon" if coupon else "push message"
        added = {
            name: float(_expect(question, simulator, k).margin - nothing.margin)
            for name, simulator in simulators.items()
        }
        cost = float(_expect(question, central, k).discount + to_currency(offers.delivery_cost[k]))
        effect = ChannelEffect(
            channel=channel,
            what=f"{offer.name}: {question.words[int(slots[offer.slot - 1])]}" if offer.slot else offer.name,
            cost=cost,
            basis=_coupon_basis(question.sources)
            if coupon
            else "assumed altogether: these logs hold no messages",
            **added,
        )
        net = effect.margin - cost
        if channel not in found or net > found[channel][0]:
            found[channel] = (net, effect)
    return [effect for _, effect in found.values()]


def _coupon_basis(sources: Mapping[str, str]) -> str:
    return (
        "assumed: its lift on visits, and that it acts on the purchase as a shelf discount does; from the "
        f"logs: how strong a shelf discount acts ({sources['depth effect']}), and how often a coupon is used "
        f"({sources['redemption']})"
    )


def _best_category(
    question: ChannelQuestion, nothing: Expectation, channel: str, column: str
) -> list[ChannelEffect]:
    """The category that gains most from a mass promotion column; none where the logs show none."""
    simulator = question.simulator()
    highest: torch.Tensor = getattr(question.calendar, column)[: question.week].amax(dim=0)
    if not highest.any():
        return []
    off, on = (
        _outlook(question, simulator, replace(question.this_week, **{column: share}))
        for share in (torch.zeros_like(highest), highest)
    )
    log_spend = off.log_spend_user[:, None] + off.log_spend_category
    spend = torch.exp(log_spend) * simulator.heads.expected_spend_factor
    gain = nothing.visit[:, None] * (on.purchase - off.purchase) * spend
    # As with a coupon, what is bought on promotion brings no spend in other categories with it.
    margin = simulator.margin_of_spend(torch.zeros(1), gain[0])
    best = int(margin.argmax())
    added = float(margin[best])
    return [
        ChannelEffect(
            channel=channel,
            what=f"{question.words[best]}: from none to {float(highest[best]):.0%} of its sales",
            margin=added,
            margin_low=added,
            margin_high=added,
            without_lifts=added,
            cost=None,
            basis=f"{question.sources[f'{column} effect']}; it reaches every shopper, at a cost unknown here",
        )
    ]
