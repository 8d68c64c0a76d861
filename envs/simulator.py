"""A simulator: fitted response heads with one draw of the assumed parameters.

The same class is the world that answers (``train`` and ``judge`` simulators) and the predictor that the
shop believes in (heads fitted on all households, central assumptions). A policy only ever sees the
predictor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import HistoryState
from encoders.response import ResponseHeads, Utilities
from envs.assumptions import AssumedResponse


@dataclass(frozen=True)
class HeldCoupons:
    """The coupon that each of n users holds; at most one.

    Attributes:
        category: [n] int64 category index, -1 where none is held.
        depth: [n] float32 discount as a fraction.
        max_discount: [n] float32 currency.
        liability: [n] int64 ticks reserved for it.
        weeks_left: [n] int64 weeks in which it can still be redeemed, the current one included.
    """

    category: torch.Tensor
    depth: torch.Tensor
    max_discount: torch.Tensor
    liability: torch.Tensor
    weeks_left: torch.Tensor

    @classmethod
    def none(cls, n_users: int, device: str | torch.device = "cpu") -> HeldCoupons:
        """Return no coupon for each of n users."""
        zero = torch.zeros(n_users, dtype=torch.int64, device=device)
        return cls(zero - 1, zero.float(), zero.float(), zero.clone(), zero.clone())

    @property
    def held(self) -> torch.Tensor:
        """[n] bool."""
        return self.category >= 0

    def where(self, keep: torch.Tensor, other: HeldCoupons) -> HeldCoupons:
        """Return these coupons where ``keep`` [n], and ``other`` elsewhere."""
        return HeldCoupons(
            torch.where(keep, self.category, other.category),
            torch.where(keep, self.depth, other.depth),
            torch.where(keep, self.max_discount, other.max_discount),
            torch.where(keep, self.liability, other.liability),
            torch.where(keep, self.weeks_left, other.weeks_left),
        )


@dataclass(frozen=True)
class Expectation:
    """Expected outcome of one week for n users, given everything known before the week's chance.

    Attributes:
        visit: [n] probability of a visit.
        basket: [n] spend in the modelled categories given a visit, without what a coupon adds, currency.
        margin: [n] contribution margin before coupon cost, currency.
        discount: [n] redeemed discount, currency.
    """

    visit: torch.Tensor
    basket: torch.Tensor
    margin: torch.Tensor
    discount: torch.Tensor


@dataclass(frozen=True)
class Simulator:
    """n users respond through these heads and assumptions.

    Attributes:
        heads: fitted parameters; evaluation mode, no gradient.
        assumed: assumed parameters.
        margin_rate: contribution margin per unit of spend, before coupon cost.
        name: for reports.
    """

    heads: ResponseHeads
    assumed: AssumedResponse
    margin_rate: float
    name: str

    def __post_init__(self) -> None:
        if not 0 < self.margin_rate < 1:
            raise ValueError(f"margin_rate must be in (0, 1), got {self.margin_rate}")
        self.heads.eval().requires_grad_(False)

    def utilities(
        self, history: HistoryState, embedding: torch.Tensor, calendar: PromotionCalendar
    ) -> Utilities:
        """Return the week's linear predictors without coupon or message; see :class:`ResponseHeads`."""
        return self.heads(history, embedding, calendar)  # type: ignore[no-any-return]

    def notice_probability(self, history: HistoryState, embedding: torch.Tensor) -> torch.Tensor:
        """Return the probability that a held coupon is used at a purchase of its category, [n]."""
        return torch.sigmoid(self.heads.redemption_logit(history, embedding))

    def visit_logit(
        self, utilities: Utilities, message: torch.Tensor, fatigue: torch.Tensor, held: torch.Tensor
    ) -> torch.Tensor:
        """Return the visit logit with message and coupon, [n].

        Args:
            utilities: of the week.
            message: [n] bool, a push message arrives.
            fatigue: [n] in [0, 1].
            held: [n] bool, a coupon is held.
        """
        lift = self.assumed.message_lift * message * (1.0 - fatigue) + self.assumed.coupon_lift * held
        return utilities.visit + lift

    def expected_spend(self, utilities: Utilities) -> torch.Tensor:
        """Return the expected spend in each category given that it is bought, [n, C], currency."""
        return torch.exp(utilities.log_spend) * self.heads.expected_spend_factor

    def margin_of_spend(
        self, modelled_spend: torch.Tensor, coupon_gain: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """Return the margin on a basket, with the share of the categories that are not modelled added.

        Args:
            modelled_spend: [n] spend in the modelled categories, without what a coupon adds.
            coupon_gain: [n] what a coupon adds; it brings no spend in other categories with it.
        """
        return self.margin_rate * ((1.0 + self.heads.other_spend_ratio) * modelled_spend + coupon_gain)

    def expectation(
        self,
        utilities: Utilities,
        shelf_depth: torch.Tensor,
        notice: torch.Tensor,
        message: torch.Tensor,
        fatigue: torch.Tensor,
        coupons: HeldCoupons,
    ) -> Expectation:
        """Return the week's expected outcome in closed form.

        A coupon is noticed with probability r = σ(ψ). Noticed, it deepens the category's discount and is
        redeemed at the purchase; unnoticed, it changes the visit only. So redemption given purchase is
        about r, and lift and cost stay coherent.

        Args:
            utilities: of the week, [n, C].
            shelf_depth: [C] the week's shelf discount.
            notice: [n] probability r.
            message: [n] bool.
            fatigue: [n].
            coupons: held during the week.
        """
        visit = torch.sigmoid(self.visit_logit(utilities, message, fatigue, coupons.held))
        basket = (torch.sigmoid(utilities.purchase) * self.expected_spend(utilities)).sum(dim=1)
        category = coupons.category.clamp(min=0)[:, None]

        def of_category(values: torch.Tensor) -> torch.Tensor:
            return values.gather(1, category)[:, 0]

        logit = of_category(utilities.purchase)
        extra = of_category(utilities.depth_slope) * coupons.depth * (1.0 - shelf_depth[category[:, 0]])
        noticed = notice * coupons.held
        with_coupon = torch.sigmoid(logit + extra)
        log_mean = of_category(utilities.log_spend)
        deviation = self.heads.spend_deviation[category[:, 0]]
        spend = torch.exp(log_mean + 0.5 * deviation**2)
        gain = noticed * (with_coupon - torch.sigmoid(logit)) * spend
        discount = expected_discount(log_mean, deviation, coupons.depth, coupons.max_discount)
        return Expectation(
            visit=visit,
            basket=basket,
            margin=self.margin_of_spend(visit * basket, visit * gain),
            discount=visit * noticed * with_coupon * discount,
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
    below = torch.special.ndtr((log_limit - log_mean - deviation**2) / deviation)
    above = 1.0 - torch.special.ndtr((log_limit - log_mean) / deviation)
    value = safe_depth * torch.exp(log_mean + 0.5 * deviation**2) * below + cap * above
    return torch.where(depth > 0, value, 0.0)
