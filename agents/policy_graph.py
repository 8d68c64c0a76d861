"""From a user's raw state to offer probabilities in one module, to be exported as one graph.

The same formulas as :func:`envs.observation.predict`, :func:`envs.observation.observe`,
:func:`envs.market.action_mask` and the policy network, without scratch arrays; the tests hold it to the
market's own code. A difference of two sigmoids is written as a product, which is equal and loses no digits: a
policy multiplies uplift, a small difference of large numbers, by its sharpness, and what two runtimes may
differ in (float32 in the market: 3e-4 in a probability) must stay far below what a propensity may be off by.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from agents.normal_cdf import normal_cdf
from agents.offer_network import OfferNetwork
from agents.response_graph import PeopleTerms, ResponseGraph, WeekTerms
from agents.serving.columns import USER_COLUMNS
from envs.assumptions import AssumedResponse
from envs.money import to_currency
from envs.observation import Recommender, Shop
from envs.offers import MOST_REMEMBERED_WEEKS

_LEAST_RATE = 1e-3
_LEAST_COST = 1e-6


class PolicyGraph(nn.Module):
    """State rows to (probabilities, slots, observation): what is exported.

    Args:
        shop: catalogue, predictor and recommender.
        network: the policy.
        wide: what is computed in per category; see :class:`agents.response_graph.ResponseGraph`.
    """

    place: torch.Tensor
    message: torch.Tensor
    coupon: torch.Tensor
    request: torch.Tensor
    liability: torch.Tensor
    delivery: torch.Tensor
    validity: torch.Tensor
    percent_slot: torch.Tensor
    percent_depth: torch.Tensor
    percent_most: torch.Tensor
    percent_delivery: torch.Tensor
    threshold_depth: torch.Tensor
    threshold_spend: torch.Tensor
    threshold_most: torch.Tensor

    def __init__(self, shop: Shop, network: OfferNetwork, wide: torch.dtype = torch.float32) -> None:
        super().__init__()
        predictor, offers = shop.predictor, shop.offers
        self.network = copy.deepcopy(network).cpu().double().eval().requires_grad_(False)
        heads = copy.deepcopy(predictor.heads).cpu().double().eval().requires_grad_(False)
        self.heads = heads
        self.response = ResponseGraph(heads, wide)
        self.wide = wide
        self.assumed: AssumedResponse = predictor.assumed
        self.margin_rate = predictor.margin_rate
        self.recommender = shop.recommender
        self.n_slots = shop.n_slots
        self.cap = offers.cap
        slot, depth = offers.slot.cpu(), offers.depth.cpu()
        threshold = offers.min_spend.cpu() > 0
        percent = (slot >= 0) & (depth > 0)
        plain = ~(percent | threshold)
        kinds = (plain, percent, threshold)
        # Offers are worked out kind by kind, and put in the catalogue's order at the end.
        self.n_plain, self.n_percent, self.n_threshold = (int(kind.sum()) for kind in kinds)
        order = torch.cat([kind.nonzero()[:, 0] for kind in kinds])
        most, delivery = offers.max_discount.cpu(), to_currency(offers.delivery_cost.cpu())
        for name, value in {
            "place": torch.argsort(order),
            "message": offers.message.cpu(),
            "coupon": offers.coupon.cpu(),
            "request": (offers.delivery_cost + offers.liability).cpu(),
            "liability": to_currency(offers.liability.cpu()),
            "delivery": delivery,
            "validity": offers.validity_weeks.cpu().double(),
            "percent_slot": slot[percent],
            "percent_depth": depth[percent].double(),
            "percent_most": most[percent].double(),
            "percent_delivery": delivery[percent],
            "threshold_depth": depth[threshold].double(),
            "threshold_spend": offers.min_spend.cpu()[threshold].double(),
            "threshold_most": most[threshold].double(),
        }.items():
            self.register_buffer(name, value)

    def forward(
        self,
        category_recency: torch.Tensor,
        category_slow: torch.Tensor,
        category_fast: torch.Tensor,
        recent: torch.Tensor,
        user: torch.Tensor,
        messages: torch.Tensor,
        deal_category: torch.Tensor,
        deal_depth: torch.Tensor,
        deal_weeks_ago: torch.Tensor,
        embedding: torch.Tensor,
        price: torch.Tensor,
        calendar: torch.Tensor,
        week: torch.Tensor,
        available: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return probabilities [n, K] float32, slots [n, M] int64 and the observation [n, o] float32.

        Args: as in :class:`agents.state_rows.StateRows`.
        """
        people_of, text, price = user.double(), embedding.double(), price.double()
        visit_trend, month_start, weeks_left = week.double().unbind(dim=0)
        shelf, display, mailer, trend = calendar.double().unbind(dim=0)
        terms = WeekTerms(shelf, display, mailer, trend, visit_trend, month_start)
        people = self.response.people(people_of, text, terms)
        logit, depth_slope = self.response.purchase(
            people, category_recency, category_slow, category_fast, recent, user, embedding, terms
        )
        penalty = self.assumed.deal_penalty(deal_weeks_ago, deal_depth) * (deal_category >= 0)
        logit = logit.scatter_add(1, deal_category.clamp(min=0), -penalty.to(self.wide))
        purchase = torch.sigmoid(logit)
        log_spend = self.response.log_spend(terms)
        spend = torch.exp(log_spend) * self.heads.expected_spend_factor
        of_user = torch.exp(people.log_spend)
        basket = of_user * (purchase @ spend.to(self.wide)).double()

        first_own = USER_COLUMNS.index("fatigue")
        fatigue, opted_in, coupon_depth, coupon_weeks = people_of[:, first_own:].unbind(dim=1)
        held = coupon_weeks > 0
        visit = self._visits(people.visit, fatigue, held)
        if self.recommender is Recommender.PURCHASE:
            score = purchase
        else:
            score = self._uplift_per_cost(visit.base, people, purchase, logit, depth_slope, spend, terms)
        slots = torch.topk(score, self.n_slots, dim=1).indices
        parts = [torch.zeros_like(basket)[:, None, None].expand(-1, 3, self.n_plain)]
        if self.n_percent:
            chosen = slots.index_select(1, self.percent_slot)
            of_slot, slope = (values.gather(1, chosen).double() for values in (logit, depth_slope))
            parts.append(self._percent(of_slot, slope, chosen, people, log_spend, terms))
        if self.n_threshold:
            growing = (purchase - purchase * purchase) * depth_slope
            pulled = growing @ ((1.0 - terms.shelf) * spend).to(self.wide)
            parts.append(self._threshold(basket, of_user * pulled.double()))
        notice = torch.sigmoid(people.redemption)
        effect = notice[:, None, None] * torch.cat(parts, dim=2).index_select(2, self.place)
        gain, redeem, discount = effect.unbind(dim=1)

        others = 1.0 + self.heads.other_spend_ratio
        later_weeks = torch.minimum(self.validity.clamp(min=1.0), weeks_left) - 1.0
        rate = (visit.later * redeem).clamp(min=_LEAST_RATE)
        still_held = (1.0 - visit.now * redeem) * (1.0 - torch.pow(1.0 - rate, later_weeks)) / rate
        now = others * visit.more_now * basket[:, None] + visit.now * gain
        later = others * visit.more_later * basket[:, None] + visit.later * gain
        uplift = self.margin_rate * (now + later * still_held)
        cost = discount * (visit.now + visit.later * still_held) + self.delivery

        reserved = self.liability * torch.minimum(self.validity, weeks_left) / weeks_left
        at_end = self.liability * (self.validity >= weeks_left)
        pressure = price[:, 1:]
        reserve = pressure * reserved + (1.0 - pressure) * at_end
        messages_left = self._messages_left(messages)
        reachable = (opted_in > 0) & (messages_left > 0)
        single = ~held[:, None] | ~self.coupon
        allowed = (reachable[:, None] | ~self.message) & single & (self.request <= available)
        one = torch.ones_like(basket)
        context = [
            visit.base,
            *people.features.unbind(dim=1),
            self.margin_rate * others * basket,
            notice,
            fatigue,
            opted_in,
            held.double(),
            coupon_depth * held,
            coupon_weeks,
            one * weeks_left,
            one * visit_trend,
            messages_left.double(),
            torch.log(price[:, 0]),
            price[:, 1],
        ]
        observation = torch.cat(
            [torch.stack(context, dim=1), text, uplift, cost, reserve, allowed.double()], dim=1
        )
        return self.network.probabilities(observation, allowed).float(), slots, observation.float()

    def _visits(self, logit: torch.Tensor, fatigue: torch.Tensor, held: torch.Tensor) -> _Visits:
        assumed = self.assumed
        carried = assumed.coupon_lift * held.double()[:, None]
        base = logit[:, None] + carried
        coupon = assumed.coupon_lift * (held[:, None] | self.coupon).double() - carried
        both = coupon + assumed.message_lift * self.message.double() * (1.0 - fatigue)[:, None]
        now, later, stays = torch.sigmoid(base + both), torch.sigmoid(base + coupon), torch.sigmoid(-base)
        return _Visits(
            base=torch.sigmoid(base)[:, 0],
            now=now,
            later=later,
            # σ(a + l) - σ(a) = σ(a + l)·σ(-a)·(1 - e^-l)
            more_now=now * stays * (1.0 - torch.exp(-both)),
            more_later=later * stays * (1.0 - torch.exp(-coupon)),
        )

    def _uplift_per_cost(
        self,
        base_visit: torch.Tensor,
        people: PeopleTerms,
        purchase: torch.Tensor,
        logit: torch.Tensor,
        depth_slope: torch.Tensor,
        spend: torch.Tensor,
        week: WeekTerms,
    ) -> torch.Tensor:
        """What the percent coupons, at their mean depth, bring for their cost in each category, [n, C]."""
        depth = self.percent_depth.mean()
        deeper = depth_slope.double() * (1.0 - week.shelf) * depth
        more = torch.sigmoid(logit.double() + deeper) * torch.sigmoid(-logit.double())
        of_user = base_visit * torch.sigmoid(people.redemption) * torch.exp(people.log_spend)
        chance = of_user[:, None] * spend
        gain = self.margin_rate * chance * more * (1.0 - torch.exp(-deeper))
        cost = self.percent_delivery.mean() + chance * torch.sigmoid(logit.double() + deeper) * depth
        return gain / cost.clamp(min=_LEAST_COST)

    def _percent(
        self,
        logit: torch.Tensor,
        depth_slope: torch.Tensor,
        category: torch.Tensor,
        people: PeopleTerms,
        log_spend: torch.Tensor,
        week: WeekTerms,
    ) -> torch.Tensor:
        """Gain, redemption and discount of the percent coupons once noticed, given a visit, [n, 3, P]."""
        deeper = depth_slope * self.percent_depth * (1.0 - week.shelf)[category]
        bought = torch.sigmoid(logit + deeper)
        deviation = self.heads.spend_deviation[category]
        log_mean = people.log_spend[:, None] + log_spend[category]
        spend = torch.exp(log_mean + 0.5 * deviation**2)
        more = bought * torch.sigmoid(-logit) * (1.0 - torch.exp(-deeper)) * spend
        # The limited expected value of a lognormal, as in envs.simulator.expected_discount.
        gap = (torch.log(self.percent_most / self.percent_depth) - log_mean) / deviation
        below = self.percent_depth * spend * normal_cdf(gap - deviation)
        return torch.stack([more, bought, bought * (below + self.percent_most * normal_cdf(-gap))], dim=1)

    def _threshold(self, basket: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
        """The same of the threshold coupons, [n, 3, Q]."""
        deviation = self.heads.basket_spend_deviation
        total = ((1.0 + self.heads.other_spend_ratio) * basket)[:, None]

        def reach(spend: torch.Tensor) -> torch.Tensor:
            gap = torch.log(spend / self.threshold_spend) - 0.5 * deviation**2
            return normal_cdf(gap / deviation)

        growth = self.threshold_depth * reach(total) * pull[:, None]
        reached = reach(total + growth)
        return torch.stack([growth, reached, reached * self.threshold_most], dim=1)

    def _messages_left(self, messages: torch.Tensor) -> torch.Tensor:
        if self.cap is None:
            return torch.full_like(messages, MOST_REMEMBERED_WEEKS)
        sent = torch.zeros_like(messages)
        for k in range(self.cap.weeks - 1):
            # ONNX shifts no signed integers, and divides them by way of floating point.
            sent = sent + (messages % 2 ** (k + 1) >= 2**k).to(messages.dtype)
        return self.cap.messages - sent


@dataclass(frozen=True)
class _Visits:
    """Probabilities of a visit: without an offer [n]; with each, in its week and in later ones, [n, K]."""

    base: torch.Tensor
    now: torch.Tensor
    later: torch.Tensor
    more_now: torch.Tensor
    more_later: torch.Tensor
