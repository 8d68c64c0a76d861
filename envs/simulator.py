"""A simulator: fitted response heads with one draw of the assumed parameters.

The same class is the world that answers (``train`` and ``judge`` simulators) and the predictor that the
shop believes in (heads fitted on all households, central assumptions). A policy only ever sees the
predictor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import ResponseHeads
from encoders.response_kernel import People, ResponseKernel, WeekCoefficients
from encoders.scratch import Scratch
from envs.assumptions import AssumedResponse
from envs.coupons import DealMemory, HeldCoupons


@dataclass(frozen=True)
class Outlook:
    """What a simulator expects of n users in a week before any coupon or message is counted.

    The arrays [n, C] are scratch of the simulator: valid until its next outlook.

    Attributes:
        visit_logit: [n]
        further_trips: [n] expected trips after the first in a week with a visit.
        purchase_logit: [n, C] of a category purchase given a visit, past deals counted.
        depth_slope: [n, C] θ, non-negative: what one unit of further depth adds to it.
        purchase: [n, C] probability of that purchase.
        log_spend_user: [n] the users' part of the mean of the log of spend given a purchase.
        log_spend_category: [C] the categories' part; the mean is the sum of both.
        notice: [n] probability that a held coupon is used where it can be.
        basket: [n] expected spend in the modelled categories given a visit, currency.
        pull: [n] by how much ``basket`` grows per unit of discount on everything, currency; to first order.
    """

    visit_logit: torch.Tensor
    further_trips: torch.Tensor
    purchase_logit: torch.Tensor
    depth_slope: torch.Tensor
    purchase: torch.Tensor
    log_spend_user: torch.Tensor
    log_spend_category: torch.Tensor
    notice: torch.Tensor
    basket: torch.Tensor
    pull: torch.Tensor

    def rows(self, index: torch.Tensor) -> Outlook:
        """Return the outlook of the given users, in arrays of its own."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "log_spend_category"}
        return replace(self, **{name: value.index_select(0, index) for name, value in values.items()})


@dataclass(frozen=True)
class Expectation:
    """Expected outcome of one week for n users, given everything known before the week's chance.

    Attributes:
        visit: [n] probability of a visit.
        margin: [n] contribution margin before coupon cost, currency.
        discount: [n] redeemed discount, currency.
        idle_visit: [n] what ``visit`` would be had the user got no message and held no coupon.
        idle_margin: [n] what ``margin`` would be then.
    """

    visit: torch.Tensor
    margin: torch.Tensor
    discount: torch.Tensor
    idle_visit: torch.Tensor
    idle_margin: torch.Tensor


@dataclass(frozen=True)
class CouponTerms:
    """What coupons would do for n users each, given a visit; [n], or [n, K] for K coupons each.

    Attributes:
        extra: added to the purchase logit of the covered category once noticed; for a threshold coupon,
            the discount on everything that the user reckons with, as a fraction.
        gain: expected spend that the coupon adds, given a visit, currency.
        redeem: probability of redemption given a visit.
        discount: expected discount given a visit, currency.
    """

    extra: torch.Tensor
    gain: torch.Tensor
    redeem: torch.Tensor
    discount: torch.Tensor


@dataclass(frozen=True)
class Simulator:
    """n users respond through these heads and assumptions.

    Attributes:
        heads: fitted parameters; evaluation mode, no gradient.
        assumed: assumed parameters.
        margin_rate: contribution margin per unit of spend, before coupon cost.
        name: for reports; it also seeds what users are like in this world and the logs do not tell.
    """

    heads: ResponseHeads
    assumed: AssumedResponse
    margin_rate: float
    name: str
    kernel: ResponseKernel = field(init=False, repr=False, compare=False)
    scratch: Scratch = field(init=False, repr=False, compare=False, default_factory=Scratch)

    def __post_init__(self) -> None:
        if not 0 < self.margin_rate < 1:
            raise ValueError(f"margin_rate must be in (0, 1), got {self.margin_rate}")
        self.heads.eval().requires_grad_(False)
        object.__setattr__(self, "kernel", ResponseKernel(self.heads, self.scratch))

    def visit_lift(
        self,
        message: torch.Tensor,
        fatigue: torch.Tensor,
        held: torch.Tensor,
        receptivity: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """Return what message and coupon add to the visit logit, [n] or whatever the arguments broadcast to.

        Args:
            message: [n] bool, a push message arrives.
            fatigue: [n] in [0, 1].
            held: [n] bool, a coupon is held.
            receptivity: [n] multiple of the average message's lift; 1 where it is not known.
        """
        of_message = self.assumed.message_lift * message * (1.0 - fatigue) * receptivity
        return of_message + self.assumed.coupon_lift * held

    def margin_of_spend(
        self, modelled_spend: torch.Tensor, coupon_gain: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """Return the margin on a basket, with the share of the categories that are not modelled added.

        Args:
            modelled_spend: [n] spend in the modelled categories, without what a coupon adds.
            coupon_gain: [n] what a coupon adds; it brings no spend in other categories with it.
        """
        return self.margin_rate * ((1.0 + self.heads.other_spend_ratio) * modelled_spend + coupon_gain)

    def coefficients(self, calendar: PromotionCalendar) -> WeekCoefficients:
        """Return the heads' coefficients of a week: one row of the calendar."""
        return self.kernel.coefficients(calendar)

    def people(self, history: HistoryState, embedding: torch.Tensor, week: WeekCoefficients) -> People:
        """Return what depends on users alone; see :class:`encoders.response_kernel.People`."""
        return self.kernel.people(history, embedding, week)

    def outlook(
        self,
        people: People,
        history: HistoryState,
        embedding: torch.Tensor,
        deals: DealMemory,
        week: WeekCoefficients,
        *,
        pull: bool,
    ) -> Outlook:
        """Return what to expect of the week before coupons and messages.

        Args:
            people: of :meth:`people`, for the same users.
            history: [n] before the week.
            embedding: [n, d].
            deals: remembered.
            week: of :meth:`coefficients`.
            pull: whether ``Outlook.pull`` is needed, as it is for threshold coupons; zero if not.
        """
        logit, slope = self.kernel.purchase(people, history, embedding, week)
        penalty = self.assumed.deal_penalty(deals.weeks_ago, deals.depth) * (deals.category >= 0)
        logit.scatter_add_(1, deals.category.clamp(min=0), -penalty)
        n, n_categories = logit.shape
        purchase, part = (
            self.scratch(name, n, n_categories, device=logit.device) for name in ("purchase", "part")
        )
        torch.sigmoid(logit, out=purchase)
        spend = torch.exp(week.log_spend) * self.heads.expected_spend_factor
        of_user = torch.exp(people.log_spend)
        basket = of_user * torch.mul(purchase, spend, out=part).sum(dim=1)
        growth = torch.zeros_like(basket)
        if pull:
            # p·(1 - p)·θ·(1 - shelf depth)·spend, summed.
            part.addcmul_(part, purchase, value=-1.0).mul_(slope)
            growth = of_user * part.mul_(1.0 - week.depth).sum(dim=1)
        return Outlook(
            visit_logit=people.visit,
            further_trips=people.further_trips,
            purchase_logit=logit,
            depth_slope=slope,
            purchase=purchase,
            log_spend_user=people.log_spend,
            log_spend_category=week.log_spend,
            notice=torch.sigmoid(people.redemption),
            basket=basket,
            pull=growth,
        )

    def coupon_terms(
        self,
        outlook: Outlook,
        shelf_depth: torch.Tensor,
        category: torch.Tensor,
        depth: torch.Tensor,
        min_spend: torch.Tensor,
        max_discount: torch.Tensor,
    ) -> CouponTerms:
        """Return what a coupon would do for each user, in closed form.

        A coupon is noticed with probability r = σ(ψ). Noticed, a percent coupon deepens the category's
        discount and is redeemed at the purchase; unnoticed, it changes the visit only. So redemption given
        purchase is about r, and lift and cost stay coherent.

        A threshold coupon is a discount of save / spend on everything for those who reach the threshold; a
        user reckons with it times the chance of reaching it as things stand. The basket's total is taken as
        lognormal (deviation ``heads.basket_spend_deviation``), its growth to first order in the discount.

        Args:
            outlook: of the week.
            shelf_depth: [C] the week's shelf discount.
            category: [n] or, for K coupons each, [n, K]: covered by a percent coupon; -1 for a threshold
                coupon or none. What follows and what is returned have the same shape, or broadcast to it.
            depth: 0 where there is no coupon.
            min_spend: above 0 for a threshold coupon.
            max_discount: most that it can cost, currency.
        """
        place = category.clamp(min=0)

        def of_category(values: torch.Tensor) -> torch.Tensor:
            return values.gather(1, place.reshape(len(place), -1)).reshape(place.shape)

        def of_user(values: torch.Tensor) -> torch.Tensor:
            return values if place.dim() == 1 else values[:, None]

        on_basket, notice = min_spend > 0, of_user(outlook.notice)
        deeper = of_category(outlook.depth_slope) * depth * (1.0 - shelf_depth[place])
        with_coupon = torch.sigmoid(of_category(outlook.purchase_logit) + deeper)
        log_mean = of_user(outlook.log_spend_user) + outlook.log_spend_category[place]
        deviation = self.heads.spend_deviation[place]
        expected = expected_discount(log_mean, deviation, depth, max_discount)
        spend = torch.exp(log_mean + 0.5 * deviation**2)
        more = (with_coupon - of_category(outlook.purchase)) * spend

        total = (1.0 + self.heads.other_spend_ratio) * of_user(outlook.basket)
        reckoned = depth * self._reach(total, min_spend)
        growth = reckoned * of_user(outlook.pull)
        reached = self._reach(total + growth, min_spend)
        coupon = depth > 0
        return CouponTerms(
            extra=torch.where(on_basket, reckoned, deeper),
            gain=coupon * notice * torch.where(on_basket, growth, more),
            redeem=coupon * notice * torch.where(on_basket, reached, with_coupon),
            discount=coupon * notice * torch.where(on_basket, reached * max_discount, with_coupon * expected),
        )

    def _reach(self, total: torch.Tensor, min_spend: torch.Tensor) -> torch.Tensor:
        """Probability that a basket of expected total reaches a threshold; lognormal."""
        deviation = self.heads.basket_spend_deviation
        gap = torch.log(total / min_spend.clamp(min=1e-6)) - 0.5 * deviation**2
        return normal_cdf(gap / deviation)

    def expectation(
        self,
        outlook: Outlook,
        coupon: CouponTerms,
        message: torch.Tensor,
        fatigue: torch.Tensor,
        held: torch.Tensor,
        receptivity: torch.Tensor | float = 1.0,
    ) -> Expectation:
        """Return the week's expected outcome in closed form.

        Args:
            outlook: of the week.
            coupon: what the coupons held do.
            message: [n] bool.
            fatigue: [n].
            held: [n] bool, a coupon is held.
            receptivity: [n] as in :meth:`visit_lift`.
        """
        lift = self.visit_lift(message, fatigue, held, receptivity)
        visit, idle = torch.sigmoid(outlook.visit_logit + lift), torch.sigmoid(outlook.visit_logit)
        return Expectation(
            visit=visit,
            margin=self.margin_of_spend(visit * outlook.basket, visit * coupon.gain),
            discount=visit * coupon.discount,
            idle_visit=idle,
            idle_margin=self.margin_of_spend(idle * outlook.basket),
        )

    def held_terms(self, outlook: Outlook, shelf_depth: torch.Tensor, coupons: HeldCoupons) -> CouponTerms:
        """Return :meth:`coupon_terms` of the coupons that users hold."""
        return self.coupon_terms(
            outlook,
            shelf_depth,
            coupons.category,
            coupons.depth * coupons.held,
            coupons.min_spend,
            coupons.max_discount,
        )


def expected_discount(
    log_mean: torch.Tensor, deviation: torch.Tensor, depth: torch.Tensor, cap: torch.Tensor
) -> torch.Tensor:
    """Return E[min(depth·S, cap)] for S ~ LogNormal(log_mean, deviation), the limited expected value.

    With k = cap / depth: depth·e^{m + s²/2}·Φ((ln k - m - s²)/s) + cap·(1 - Φ((ln k - m)/s)).
    (Klugman, Panjer & Willmot, Loss Models, appendix A.) All arguments [n]; zero where depth is zero.
    """
    safe_depth = depth.clamp(min=1e-6)
    log_limit = torch.log(cap.clamp(min=1e-6) / safe_depth)
    below = normal_cdf((log_limit - log_mean - deviation**2) / deviation)
    above = 1.0 - normal_cdf((log_limit - log_mean) / deviation)
    value = safe_depth * torch.exp(log_mean + 0.5 * deviation**2) * below + cap * above
    return torch.where(depth > 0, value, 0.0)


def normal_cdf(value: torch.Tensor) -> torch.Tensor:
    """Return Φ(value), by the error function: many times faster than ``torch.special.ndtr`` on a CPU."""
    return 0.5 + 0.5 * torch.erf(value * math.sqrt(0.5))
