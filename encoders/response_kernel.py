"""The response heads in use: the linear predictors of :class:`encoders.response.ResponseHeads`, fast.

Same formulas, without gradients, for the market, which asks for them for every user and week. What does not
depend on users (calibration, scales, the week's promotion) is folded into the coefficients once a week; what
depends on users and not on categories is one matrix product; the rest runs in arrays that are used again. The
tests hold it to the heads' own forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from encoders.calendar import PromotionCalendar
from encoders.history import (
    CAUTIOUS_PRIOR_VISITS,
    PRIOR_VISITS,
    RECENT_WEEKS,
    USER_FEATURES,
    HistoryState,
    user_feature_rows,
)
from encoders.response import (
    MOST_FURTHER_TRIPS_LOG,
    PROMOTION_UNIT,
    TASTE_VISITS,
    TERM_LIMIT,
    USER_TERMS,
    ResponseHeads,
)
from encoders.scratch import Scratch

_COLUMNS = 16
"""Columns of the product that gives what depends on users alone: five are used, and the width of a vector
keeps the product's result for a user independent of who stands beside him."""

_VISIT, _SPEND, _DEPTH, _TRIPS, _REDEMPTION = range(5)


@dataclass(frozen=True)
class WeekCoefficients:
    """The heads' coefficients of one week, calibration and promotion folded in; K user terms.

    Attributes:
        user: [K, _COLUMNS] of what depends on users alone.
        user_embedding: [d, _COLUMNS] the same of the embedding.
        user_constant: [_COLUMNS]
        purchase_constant: [C]
        purchase_user: [K, C]
        rate_constant: [C] weight of the slow rate.
        rate_user: [G, C] by how much it moves with the user's features.
        taste: [d, C] the embedding's, times the prior's purchases.
        features: [F, C] weights of the category features; the first is in ``rate_constant``.
        depth_level: [C] exp of the level of θ.
        depth: [C] shelf discount.
        log_spend: [C] the categories' part of the mean of the log of spend.
    """

    user: torch.Tensor
    user_embedding: torch.Tensor
    user_constant: torch.Tensor
    purchase_constant: torch.Tensor
    purchase_user: torch.Tensor
    rate_constant: torch.Tensor
    rate_user: torch.Tensor
    taste: torch.Tensor
    features: torch.Tensor
    depth_level: torch.Tensor
    depth: torch.Tensor
    log_spend: torch.Tensor


@dataclass(frozen=True)
class People:
    """What depends on users and not on categories, for n users before a week.

    Attributes:
        terms: [K, n] standardised user features with squares and products.
        visit: [n] logit of a visit.
        log_spend: [n] the users' part of the mean of the log of spend.
        depth: [n] the users' part of the level of θ.
        further_trips: [n] expected trips after the first in a week with a visit.
        redemption: [n] logit of redeeming a held coupon.
    """

    terms: torch.Tensor
    visit: torch.Tensor
    log_spend: torch.Tensor
    depth: torch.Tensor
    further_trips: torch.Tensor
    redemption: torch.Tensor

    def rows(self, index: torch.Tensor) -> People:
        """Return the given users."""
        features = self.terms[: len(USER_FEATURES)].index_select(1, index)
        return People(
            terms=_with_products(features),
            visit=self.visit.index_select(0, index),
            log_spend=self.log_spend.index_select(0, index),
            depth=self.depth.index_select(0, index),
            further_trips=self.further_trips.index_select(0, index),
            redemption=self.redemption.index_select(0, index),
        )


class ResponseKernel:
    """Linear predictors of a set of response heads, block by block.

    Args:
        heads: fitted; not changed while the kernel is in use.
        scratch: for arrays between.
    """

    def __init__(self, heads: ResponseHeads, scratch: Scratch) -> None:
        self.heads = heads
        self.scratch = scratch

    @torch.no_grad()
    def coefficients(self, week: PromotionCalendar) -> WeekCoefficients:
        """Fold the coefficients for one week: a row of the calendar, depth [C] and so on."""
        heads = self.heads
        slope, intercept = heads.calibration[1]
        n_terms, device = len(USER_TERMS), heads.base_rate.device
        user = torch.zeros(n_terms, _COLUMNS, device=device)
        embedding = torch.zeros(heads.embedding, _COLUMNS, device=device)
        constant = torch.zeros(_COLUMNS, device=device)
        features = len(USER_FEATURES)
        visit_slope, visit_intercept = heads.calibration[0]
        user[:, _VISIT] = visit_slope * heads.visit_user
        constant[_VISIT] = visit_intercept + visit_slope * (
            heads.visit_bias
            + heads.visit_trend * week.visit_trend
            + heads.visit_month_start * week.month_start
        )
        user[:, _SPEND] = heads.spend_user
        user[:features, _TRIPS] = heads.trips_features
        user[:features, _REDEMPTION] = heads.redemption_features
        constant[_TRIPS] = heads.trips_bias
        constant[_REDEMPTION] = heads.redemption_bias
        embedding[:, _SPEND] = heads.spend_embedding
        embedding[:, _DEPTH] = heads.depth_embedding
        embedding[:, _REDEMPTION] = heads.redemption_embedding

        weights = slope * heads.purchase_features / heads.category_std
        rate_user = slope * heads.purchase_rate_user / heads.category_std[0]
        promotion = (heads.display_effect * week.display + heads.mailer_effect * week.mailer) / PROMOTION_UNIT
        level = (
            heads.purchase_bias
            + promotion
            + heads.purchase_trend * week.category_trend
            + heads.purchase_month_start * week.month_start
        )
        return WeekCoefficients(
            user=user,
            user_embedding=embedding,
            user_constant=constant,
            purchase_constant=slope * level
            + intercept
            + heads.category_shift
            # The first feature is centred where it is used.
            - weights[:, 1:] @ heads.category_mean[1:],
            purchase_user=(slope * heads.purchase_user).T.contiguous(),
            rate_constant=weights[:, 0].contiguous(),
            rate_user=rate_user.T.contiguous(),
            taste=(slope * heads.category_vectors().T * (TASTE_VISITS * heads.base_rate)).contiguous(),
            features=weights.T.contiguous(),
            depth_level=heads.depth_level.exp(),
            depth=week.depth,
            log_spend=heads.spend_level
            + heads.spend_depth * week.depth
            + heads.spend_month_start * week.month_start,
        )

    @torch.no_grad()
    def people(self, state: HistoryState, embedding: torch.Tensor, week: WeekCoefficients) -> People:
        """Return what depends on users alone; arrays of its own.

        Args:
            state: [n] histories before the week.
            embedding: [n, d].
            week: of :meth:`coefficients`.
        """
        heads = self.heads
        rows = torch.stack(user_feature_rows(state))
        terms = _with_products(rows.sub_(heads.user_mean[:, None]).div_(heads.user_std[:, None]))
        found = torch.addmm(week.user_constant, terms.T, week.user).addmm_(embedding, week.user_embedding)
        visit, log_spend, depth, trips, redemption = found.T[:5].contiguous()
        return People(
            terms=terms,
            visit=visit,
            log_spend=log_spend,
            depth=depth,
            further_trips=trips.clamp(max=MOST_FURTHER_TRIPS_LOG).exp_(),
            redemption=redemption,
        )

    @torch.no_grad()
    def purchase(
        self, people: People, state: HistoryState, embedding: torch.Tensor, week: WeekCoefficients
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logit of each category purchase and its slope θ in depth, both [n, C].

        Both are scratch: valid until the next call.

        Args:
            people: of the same users.
            state: [n] histories before the week.
            embedding: [n, d].
            week: of :meth:`coefficients`.
        """
        heads, base_rate = self.heads, self.heads.base_rate
        n, n_categories = state.category_slow.shape
        device = base_rate.device

        def array(name: str) -> torch.Tensor:
            return self.scratch(name, n, n_categories, device=device)

        logit, slow, a, b = array("logit"), array("slow"), array("a"), array("b")
        torch.addmm(week.purchase_constant, people.terms.T, week.purchase_user, out=logit)
        slow.copy_(state.category_slow)
        if heads.embedding:
            # The prior's share of the purchases: its numerator is in the coefficients.
            torch.add(slow, base_rate, alpha=TASTE_VISITS, out=a)
            torch.mm(embedding, week.taste, out=b)
            logit.addcdiv_(b, a)

        def rate_logit(purchases: torch.Tensor, visits: torch.Tensor, prior_visits: float) -> torch.Tensor:
            torch.add(purchases, base_rate, alpha=prior_visits, out=a)
            a.mul_((visits + prior_visits).reciprocal_()[:, None])
            return torch.logit(a, eps=1e-4, out=a)

        bounded = people.terms[: len(USER_FEATURES)].clamp(-TERM_LIMIT, TERM_LIMIT)
        torch.addmm(week.rate_constant, bounded.T, week.rate_user, out=b)
        centred = rate_logit(slow, state.visits_slow, PRIOR_VISITS).sub_(heads.category_mean[0])
        logit.addcmul_(centred, b)
        logit.addcmul_(rate_logit(slow, state.visits_slow, CAUTIOUS_PRIOR_VISITS), week.features[2])
        b.copy_(state.category_fast)
        logit.addcmul_(rate_logit(b, state.visits_fast, PRIOR_VISITS), week.features[1])
        b.copy_(state.category_recency)
        slow.mul_(b).mul_(state.weeks_slow.clamp(min=1.0).reciprocal_()[:, None])
        logit.addcmul_(slow.log1p_(), week.features[4])
        logit.addcmul_(b.log_(), week.features[3])
        bit = self.scratch("bit", n, n_categories, torch.uint8, device)
        for k in range(RECENT_WEEKS):
            torch.bitwise_and(state.recent, 1 << k, out=bit)
            # The bit is worth 2^k; dividing that out costs less than shifting the array.
            logit.addcmul_(b.copy_(bit), week.features[5 + k], value=0.5**k)
        # softplus(level + user) as log(1 + e^level·e^user).
        slope = array("slope")
        torch.mul(week.depth_level, people.depth.exp()[:, None], out=slope)
        slope.log1p_().mul_(heads.calibration[1, 0] / PROMOTION_UNIT)
        logit.addcmul_(slope, week.depth)
        return logit, slope


def _with_products(features: torch.Tensor) -> torch.Tensor:
    """Standardised features [G, n] with the squares and products of the bounded ones, [K, n]."""
    count, n = features.shape
    terms = torch.empty(len(USER_TERMS), n, device=features.device)
    terms[:count] = features
    bounded = features.clamp(-TERM_LIMIT, TERM_LIMIT)
    place = count
    for k in range(count):
        torch.mul(bounded[k], bounded[k:], out=terms[place : place + count - k])
        place += count - k
    return terms
