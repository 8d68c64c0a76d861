"""What a policy sees: the predictor's view of each user, and of each offer for that user.

The predictor is the deployed response model with central assumptions. It fills the recommended slots and
states, for every offer, the expected uplift and cost; the world that answers is another simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import USER_FEATURES, user_features
from envs.market import MarketState
from envs.money import to_currency
from envs.offers import OfferTensors
from envs.simulator import Simulator, expected_discount

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
    "log_dual_price",
)
OFFER_FEATURES = ("uplift", "cost", "reserve", "allowed")
LOG_DUAL_PRICE = CONTEXT_FEATURES.index("log_dual_price")


@dataclass(frozen=True)
class Prediction:
    """The predictor's view of one week for n users; money in the log's currency.

    Attributes:
        slots: [n, M] recommended category indices, most likely purchase first.
        uplift: [n, K] expected margin of sending the offer now, over sending nothing, while it is valid.
        cost: [n, K] expected cost to the budget of sending it.
        reserve: [K] liability that sending it reserves, times the share of the weeks left in which it does.
            Where the cap binds alike in all weeks, keeping a unit reserved for w of the W weeks left costs
            w / W of what spending it costs: spent money is missing in all W weeks, reserved money in w.
        context: [n, len(CONTEXT_FEATURES)] with the dual price still at 1.
    """

    slots: torch.Tensor
    uplift: torch.Tensor
    cost: torch.Tensor
    reserve: torch.Tensor
    context: torch.Tensor

    @property
    def budget_use(self) -> torch.Tensor:
        """[n, K] what sending an offer takes from the budget: expected cost plus reserve."""
        return self.cost + self.reserve


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


def predict(
    state: MarketState,
    offers: OfferTensors,
    predictor: Simulator,
    calendar: PromotionCalendar,
    weeks_left: int,
    n_slots: int,
) -> Prediction:
    """Return the predictor's view at the start of a week.

    Uplift and cost of a coupon count the weeks in which it is valid, as if each were like this one and at
    most one redemption paid; what a message does to fatigue and later weeks is left for the policy to learn.

    Args:
        state: at the start of the week.
        offers: the catalogue.
        predictor: the deployed response model.
        calendar: the week's row.
        weeks_left: weeks of the campaign left, this one included.
        n_slots: M.
    """
    n = state.n_users
    utilities = predictor.utilities(state.history, state.embedding, calendar)
    notice = predictor.notice_probability(state.history, state.embedding)
    purchase = torch.sigmoid(utilities.purchase)
    likelihood, slots = torch.topk(purchase, n_slots, dim=1)
    spend = predictor.expected_spend(utilities)
    basket = (purchase * spend).sum(dim=1)
    nothing = torch.zeros(n, dtype=torch.bool, device=basket.device)
    carried = state.coupons.held
    base_visit = torch.sigmoid(predictor.visit_logit(utilities, nothing, state.believed_fatigue, carried))
    base_margin = predictor.margin_of_spend(base_visit * basket)

    slot_logit = utilities.purchase.gather(1, slots)
    slot_slope = utilities.depth_slope.gather(1, slots) * (1.0 - calendar.depth[slots])
    slot_spend = spend.gather(1, slots)
    slot_log_spend = utilities.log_spend.gather(1, slots)
    slot_deviation = predictor.heads.spend_deviation[slots]
    uplift, cost = [], []
    for k in range(len(offers.message)):
        message = offers.message[k].expand(n)
        coupon = offers.coupon[k].expand(n)
        held = carried | coupon
        visit = torch.sigmoid(predictor.visit_logit(utilities, message, state.believed_fatigue, held))
        later = torch.sigmoid(predictor.visit_logit(utilities, nothing, state.believed_fatigue, held))
        place = offers.slot[k]
        with_coupon = torch.sigmoid(slot_logit[:, place] + slot_slope[:, place] * offers.depth[k])
        gain = notice * coupon * (with_coupon - likelihood[:, place]) * slot_spend[:, place]
        weeks = offers.validity_weeks[k].clamp(min=1, max=weeks_left)
        first = predictor.margin_of_spend(visit * basket, visit * gain) - base_margin
        following = predictor.margin_of_spend(later * basket, later * gain) - base_margin
        redeem = notice * coupon * with_coupon
        discount = expected_discount(
            slot_log_spend[:, place],
            slot_deviation[:, place],
            offers.depth[k].expand(n),
            offers.max_discount[k].expand(n),
        )
        # Expected number of later weeks in which the coupon is still there: a geometric sum, for at most one
        # redemption is paid. The floor on the weekly rate keeps the quotient exact enough in float32.
        rate = (later * redeem).clamp(min=1e-3)
        later_weeks = (weeks - 1).clamp(min=0).to(basket.dtype)
        still_held = (1.0 - visit * redeem) * (1.0 - (1.0 - rate) ** later_weeks) / rate
        uplift.append(first + following * still_held)
        expected = discount * (visit * redeem + later * redeem * still_held)
        cost.append(expected + to_currency(offers.delivery_cost[k]).to(basket.dtype))
    context = torch.cat(
        [
            base_visit[:, None],
            user_features(state.history),
            predictor.margin_of_spend(basket)[:, None],
            notice[:, None],
            state.believed_fatigue[:, None],
            state.opted_in[:, None],
            carried[:, None],
            state.coupons.depth[:, None],
            state.coupons.weeks_left[:, None],
            torch.full_like(basket, weeks_left)[:, None],
            calendar.visit_trend.expand(n)[:, None],
            torch.zeros_like(basket)[:, None],
        ],
        dim=1,
    )
    weeks = offers.validity_weeks.clamp(max=weeks_left)
    reserve = to_currency(offers.liability) * weeks / max(weeks_left, 1)
    return Prediction(
        slots=slots,
        uplift=torch.stack(uplift, dim=1),
        cost=torch.stack(cost, dim=1),
        reserve=reserve.to(basket.dtype),
        context=context.float(),
    )


def observe(
    prediction: Prediction, embedding: torch.Tensor, mask: torch.Tensor, dual_price: torch.Tensor
) -> torch.Tensor:
    """Return observation rows [n, o] for a dual price per user, [n].

    Args:
        prediction: the predictor's view.
        embedding: [n, d].
        mask: [n, K] bool, offers that may be sent.
        dual_price: [n] λ > 0: margin that a unit of budget must bring.
    """
    context = prediction.context.clone()
    context[:, LOG_DUAL_PRICE] = torch.log(dual_price)
    reserve = prediction.reserve.expand_as(prediction.cost)
    blocks = [context, embedding, prediction.uplift, prediction.cost, reserve, mask.float()]
    return torch.cat(blocks, dim=1)
