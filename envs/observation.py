"""What a policy sees: the predictor's view of each user, and of each offer for that user.

The predictor is the deployed response model with central assumptions. It fills the recommended slots and
states, for every offer, the expected uplift and cost; the world that answers is another simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import USER_FEATURES, HistoryState, user_features
from encoders.response_kernel import WeekCoefficients
from envs.blocks import blocks, padded, taken
from envs.coupons import DealMemory, HeldCoupons
from envs.market import MarketState, messages_left
from envs.money import to_currency
from envs.offers import OfferTensors
from envs.simulator import Outlook, Simulator

CONTEXT_FEATURES = (
    "visit_probability",
    *USER_FEATURES,
    "expected_basket_margin",
    "notice_probability",
    "fatigue",
    "opted_in",
    "coupon_held",
    "coupon_depth",
    "coupon_weeks_left",
    "weeks_left",
    "visit_trend",
    "messages_left",
    "log_dual_price",
    "pressure",
)
OFFER_FEATURES = ("uplift", "cost", "reserve", "allowed")
LOG_DUAL_PRICE = CONTEXT_FEATURES.index("log_dual_price")
PRESSURE = CONTEXT_FEATURES.index("pressure")


@dataclass(frozen=True)
class Prediction:
    """The predictor's view of one week for n users; money in the log's currency.

    Attributes:
        slots: [n, M] recommended category indices, best first.
        uplift: [n, K] expected margin of sending the offer now, over sending nothing, while it is valid.
        cost: [n, K] expected cost to the budget of sending it.
        reserved: [K] liability that sending it reserves, times the share of the weeks left in which it does.
        at_end: [K] the liability if it may still be reserved in the campaign's last week, else 0.
        context: [n, len(CONTEXT_FEATURES)] with the dual price still at 1.
    """

    slots: torch.Tensor
    uplift: torch.Tensor
    cost: torch.Tensor
    reserved: torch.Tensor
    at_end: torch.Tensor
    context: torch.Tensor

    def reserve(self, pressure: torch.Tensor | float) -> torch.Tensor:
        """Return what keeping an offer's liability reserved costs, in units of money spent, [K] or [n, K].

        The budget must hold in every week: spent so far plus reserved. A unit spent is missing in all W weeks
        left, a unit reserved for w weeks only in those. If the cap binds alike in all weeks (pressure 1), the
        reserved unit costs w / W of the spent one; if only at the campaign's end (pressure 0), it costs as
        much as the spent one where it is still reserved then, and nothing where it is free again.

        Args:
            pressure: share of the dual price that comes from all weeks alike, >= 0; one or [n, 1].
        """
        return pressure * self.reserved + (1.0 - pressure) * self.at_end

    def budget_use(self, pressure: torch.Tensor | float) -> torch.Tensor:
        """Return what sending an offer takes from the budget, [n, K]: expected cost plus reserve."""
        return self.cost + self.reserve(pressure)


@dataclass(frozen=True)
class ObservationLayout:
    """Where things stand in an observation row of width o = context + d + 4·K.

    Attributes:
        embedding: width d of the user embedding.
        n_offers: K.
    """

    embedding: int
    n_offers: int

    @property
    def width(self) -> int:
        """Width o of a row."""
        return len(CONTEXT_FEATURES) + self.embedding + len(OFFER_FEATURES) * self.n_offers

    @property
    def n_context(self) -> int:
        """Columns before the offer features: context, then embedding."""
        return len(CONTEXT_FEATURES) + self.embedding

    def names(self) -> list[str]:
        """Return the name of each column, [o]."""
        return [
            *CONTEXT_FEATURES,
            *(f"embedding_{k}" for k in range(self.embedding)),
            *(f"{feature}_{k}" for feature in OFFER_FEATURES for k in range(self.n_offers)),
        ]

    def offer_block(self, rows: torch.Tensor, feature: str) -> torch.Tensor:
        """Return the columns of one offer feature, [n, K]."""
        start = self.n_context + OFFER_FEATURES.index(feature) * self.n_offers
        return rows[:, start : start + self.n_offers]

    def net_uplift(self, rows: torch.Tensor) -> torch.Tensor:
        """Return uplift − λ·(cost + reserve) of each offer, [n, K], λ from the rows themselves."""
        price = torch.exp(rows[:, LOG_DUAL_PRICE])[:, None]
        use = self.offer_block(rows, "cost") + self.offer_block(rows, "reserve")
        return self.offer_block(rows, "uplift") - price * use


class Recommender(StrEnum):
    """By what the recommended slots of each user are filled."""

    PURCHASE = "purchase"
    UPLIFT_PER_COST = "uplift_per_cost"


@dataclass(frozen=True)
class Shop:
    """What the shop knows and has decided: its offers, its model of users, how it recommends.

    Attributes:
        offers: the catalogue.
        predictor: the deployed response model.
        n_slots: M recommended slots.
        recommender: how they are filled.
    """

    offers: OfferTensors
    predictor: Simulator
    n_slots: int
    recommender: Recommender = Recommender.PURCHASE


def predict(state: MarketState, shop: Shop, calendar: PromotionCalendar, weeks_left: int) -> Prediction:
    """Return the predictor's view at the start of a week.

    Uplift and cost of a coupon count the weeks in which it is valid, as if each were like this one and at
    most one redemption paid; what a message does to fatigue and later weeks is left for the policy to learn.

    Args:
        state: at the start of the week.
        shop: offers, predictor and recommender.
        calendar: the week's row.
        weeks_left: weeks of the campaign left, this one included.
    """
    n, device, offers = state.n_users, state.embedding.device, shop.offers
    n_offers = len(offers.message)
    slots = torch.empty((n, shop.n_slots), dtype=torch.int64, device=device)
    uplift, cost = (torch.empty((n, n_offers), device=device) for _ in range(2))
    context = torch.empty((n, len(CONTEXT_FEATURES)), device=device)
    week = shop.predictor.coefficients(calendar)
    for _, rows in blocks(n, None, device):
        m = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        chosen = rows if isinstance(rows, slice) else padded(rows)
        part = _predict_block(_ShopView.of(state, offers, chosen), shop, calendar, week, weeks_left)
        for whole, found in zip((slots, uplift, cost, context), part, strict=True):
            whole[rows] = found[:m]
    weeks = offers.validity_weeks.clamp(max=weeks_left)
    liability = to_currency(offers.liability)
    return Prediction(
        slots=slots,
        uplift=uplift,
        cost=cost,
        reserved=(liability * weeks / max(weeks_left, 1)).float(),
        at_end=(liability * (weeks >= max(weeks_left, 1))).float(),
        context=context,
    )


@dataclass(frozen=True)
class _ShopView:
    """What the shop sees of a block of n users; the attributes are those of MarketState."""

    history: HistoryState
    embedding: torch.Tensor
    believed_fatigue: torch.Tensor
    opted_in: torch.Tensor
    messages_left: torch.Tensor
    coupons: HeldCoupons
    deals: DealMemory

    @classmethod
    def of(cls, state: MarketState, offers: OfferTensors, rows: torch.Tensor | slice) -> _ShopView:
        return cls(
            state.history.rows(rows),
            taken(state.embedding, rows),
            taken(state.believed_fatigue, rows),
            taken(state.opted_in, rows),
            messages_left(taken(state.messages, rows), offers),
            state.coupons.rows(rows),
            state.deals.rows(rows),
        )


def _predict_block(
    users: _ShopView, shop: Shop, calendar: PromotionCalendar, week: WeekCoefficients, weeks_left: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots [n, M], uplift [n, K], cost [n, K] and context of a block of users."""
    predictor, offers = shop.predictor, shop.offers
    people = predictor.people(users.history, users.embedding, week)
    outlook = predictor.outlook(
        people, users.history, users.embedding, users.deals, week, pull=offers.has_threshold
    )
    carried = users.coupons.held
    n, silent = len(carried), torch.zeros_like(carried)
    fatigue = users.believed_fatigue

    def visits(message: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        lift = predictor.visit_lift(message, fatigue[:, None], held)
        return torch.sigmoid(outlook.visit_logit[:, None] + lift)

    base_visit = visits(silent[:, None], carried[:, None])[:, 0]
    slots = _recommend(outlook, base_visit, shop, calendar)
    # From here on [n, K]: a column an offer.
    held = carried[:, None] | offers.coupon
    visit, later = visits(offers.message.expand(n, -1), held), visits(silent[:, None], held)
    terms = predictor.coupon_terms(
        outlook,
        calendar.depth,
        torch.where(offers.slot >= 0, slots[:, offers.slot.clamp(min=0)], -1),
        offers.depth,
        offers.min_spend,
        offers.max_discount,
    )
    basket = outlook.basket[:, None]
    base_margin = predictor.margin_of_spend(base_visit[:, None] * basket)
    first = predictor.margin_of_spend(visit * basket, visit * terms.gain) - base_margin
    following = predictor.margin_of_spend(later * basket, later * terms.gain) - base_margin
    # Expected number of later weeks in which the coupon is still there: a geometric sum, for at most one
    # redemption is paid. The floor on the weekly rate keeps the quotient exact enough in float32.
    rate = (later * terms.redeem).clamp(min=1e-3)
    later_weeks = (offers.validity_weeks.clamp(min=1, max=weeks_left) - 1).clamp(min=0).float()
    still_held = (1.0 - visit * terms.redeem) * (1.0 - (1.0 - rate) ** later_weeks) / rate
    uplift = first + following * still_held
    cost = terms.discount * (visit + later * still_held) + to_currency(offers.delivery_cost).float()
    context = torch.cat(
        [
            base_visit[:, None],
            user_features(users.history),
            predictor.margin_of_spend(outlook.basket)[:, None],
            outlook.notice[:, None],
            fatigue[:, None],
            users.opted_in[:, None],
            carried[:, None],
            (users.coupons.depth * carried)[:, None],
            users.coupons.weeks_left[:, None],
            torch.full_like(base_visit, weeks_left)[:, None],
            calendar.visit_trend.expand(n)[:, None],
            users.messages_left[:, None],
            # The dual price and its pressure are the asker's.
            torch.zeros_like(base_visit)[:, None].expand(-1, 2),
        ],
        dim=1,
    )
    return slots, uplift, cost, context.float()


def _recommend(
    outlook: Outlook, visit: torch.Tensor, shop: Shop, calendar: PromotionCalendar
) -> torch.Tensor:
    """Return the categories recommended to each user, best first, [n, M]."""
    score = outlook.purchase
    if shop.recommender is Recommender.UPLIFT_PER_COST:
        # At the mean depth and delivery cost of the percent coupons: a slot serves all of them.
        percent = shop.offers.slot >= 0
        depth = shop.offers.depth[percent].mean()
        delivery = to_currency(shop.offers.delivery_cost[percent]).float().mean()
        slope = outlook.depth_slope * (1.0 - calendar.depth)
        bought = torch.sigmoid(outlook.purchase_logit + slope * depth)
        of_category = torch.exp(outlook.log_spend_category) * shop.predictor.heads.expected_spend_factor
        of_user = visit * outlook.notice * torch.exp(outlook.log_spend_user)
        chance = of_user[:, None] * of_category
        gain = shop.predictor.margin_rate * chance * (bought - outlook.purchase)
        score = gain / (delivery + chance * bought * depth).clamp(min=1e-6)
    return torch.topk(score, shop.n_slots, dim=1).indices


def observe(
    prediction: Prediction,
    embedding: torch.Tensor,
    mask: torch.Tensor,
    dual_price: torch.Tensor,
    pressure: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Return observation rows [n, o] for a dual price per user, [n].

    Args:
        prediction: the predictor's view.
        embedding: [n, d].
        mask: [n, K] bool, offers that may be sent.
        dual_price: [n] λ > 0: margin that a unit of budget must bring.
        pressure: >= 0, one or [n]; see :meth:`Prediction.reserve`.
    """
    context = prediction.context.clone()
    context[:, LOG_DUAL_PRICE] = torch.log(dual_price)
    context[:, PRESSURE] = pressure
    column = context[:, PRESSURE, None]
    reserve = prediction.reserve(column).expand_as(prediction.cost)
    blocks = [context, embedding, prediction.uplift, prediction.cost, reserve, mask.float()]
    return torch.cat(blocks, dim=1)
