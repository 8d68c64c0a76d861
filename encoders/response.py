"""The response heads: visit, trips, category purchase, spend and redemption, given history and embedding.

    visit      σ(α + w·q_it + τ·trend_t + π·month_t)
    trips      1 + Geometric with mean exp(l + w·g_it), given a visit
    purchase   σ(b_c + w_c·φ_itc + v_c·q_it + r_itc·u_c·g_it + n_itc·(γ_c·e_i·p_c + a_c·e_i)
                 + θ_ic·depth + κ_c·display + μ_c·mailer + τ_c·trend + π_c·month_t), given a visit
    spend      LogNormal(m_c + v·q_it + a·e_i + ω·depth + π·month_t, s_c)
    redeem     σ(ψ + w·g_it + a·e_i), given purchase of a category for which a coupon is held

φ are category features and g user features of :mod:`encoders.history`, q are g with their squares and
products, r is the first of φ, the own rate. e is the user embedding and p_c the embedding of the category's
text by the same BERT, so that e·p_c is the match of two texts; a_c is what the purchases of the category say
beyond it. n is one before the first purchase of the category, falls with each and rises as they are
forgotten (:func:`taste_weight`): what similar users buy says most of a category on which the own record is
silent. θ is a softplus, hence never negative: response is monotone in depth by construction. month is the
share of the week's days at the start of a month, when wages and benefits are spent.

What happens together does so through a Gaussian copula: a category is bought where

    Λ_c·z + δ_c·w_c + √(1 - |Λ_c|² - δ_c²)·ε_c < Φ⁻¹(p_c),

z ~ N(0, I_k) shared by the visit (:mod:`encoders.basket`) and w_c by all users in the week
(:mod:`encoders.week_shocks`). So every purchase keeps exactly the probability p_c that was fitted; a random
effect added to the logit would lower rare ones. Visits share a shock in the same way, and z moves trips and
the spend outside the modelled categories too (:mod:`encoders.basket_ties`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from encoders.calendar import PromotionCalendar
from encoders.history import (
    CATEGORY_FEATURES,
    USER_FEATURES,
    HistoryState,
    category_features,
    user_features,
)

PROMOTION_UNIT = 0.1
"""Promotion enters in tenths: depth and shares vary by a few hundredths within a category, and in whole
units their coefficients would hardly move at the learning rate that suits the standardised features."""


USER_TERMS = (
    *USER_FEATURES,
    *(f"{first} x {second}" for place, first in enumerate(USER_FEATURES) for second in USER_FEATURES[place:]),
)
"""Names of the user features with their squares and products, in the order of the heads' weights."""

TERM_LIMIT = 3.0
"""Standard deviations at which a user feature is cut before it is squared or multiplied."""

TASTE_VISITS = 8.0
"""Visits whose purchases at the base rate weigh as much as the tastes that the embedding tells.

Chosen by log loss on the tuning weeks of Complete Journey, where 3 to 8 are alike (.1595); without it .0001
is lost."""

BASKET_RANK = 16
"""Columns k of the basket loadings. On Complete Journey, fitted on weeks 9-40, the weighted squared error of
the pairs' correlations in weeks 41-44 falls from 16.1 without loadings to 1.76, 1.23, 1.15, 1.11 and 1.10 at
k = 1, 8, 12, 16 and 24; the market pays k multiply-adds for each cell."""

MOST_FURTHER_TRIPS_LOG = 2.0
"""Cap on the log of the expected number of further trips; beyond the data, exp would run away."""


@dataclass(frozen=True)
class Utilities:
    """Linear predictors of one week for n users; everything but the coupon and the push.

    Attributes:
        visit: [n] logit of a visit.
        purchase: [n, C] logit of a category purchase given a visit, at the week's mass promotion.
        depth_slope: [n, C] θ, non-negative: what one unit of further depth adds to ``purchase``.
        log_spend: [n, C] mean of the log of spend given a purchase.
    """

    visit: torch.Tensor
    purchase: torch.Tensor
    depth_slope: torch.Tensor
    log_spend: torch.Tensor


@dataclass(frozen=True)
class FeatureScale:
    """Mean and standard deviation of the features over the training rows, so that coefficients compare.

    Attributes:
        category_mean: [F] of the category features.
        category_std: [F]
        user_mean: [G] of the user features.
        user_std: [G]
    """

    category_mean: torch.Tensor
    category_std: torch.Tensor
    user_mean: torch.Tensor
    user_std: torch.Tensor


def taste_weight(state: HistoryState, base_rate: torch.Tensor) -> torch.Tensor:
    """Return how much the embedding counts for each category, in (0, 1], [n, C].

    It is the prior's share of the purchases in the mean of a beta posterior: what the embedding says of a
    user's tastes counts in full before the first purchase of a category, and less with each.

    Args:
        state: [n] histories before the week.
        base_rate: [C] share of visits with a purchase of the category.
    """
    prior = TASTE_VISITS * base_rate
    return prior / (prior + state.category_slow.float())


class ResponseHeads(nn.Module):
    """Fitted parameters of the response model, C categories and embedding width d.

    Args:
        base_rate: [C] share of visits with a purchase of the category; prior and initial value.
        embedding: width d of user and category embeddings; 0 leaves text out altogether.
    """

    def __init__(self, base_rate: torch.Tensor, embedding: int) -> None:
        super().__init__()
        n_categories = base_rate.shape[0]
        n_category_features, n_user_features = len(CATEGORY_FEATURES), len(USER_FEATURES)
        n_terms = len(USER_TERMS)
        self.embedding = embedding
        self.base_rate: torch.Tensor
        self.category_match: torch.Tensor
        self.category_mean: torch.Tensor
        self.category_std: torch.Tensor
        self.user_mean: torch.Tensor
        self.user_std: torch.Tensor
        self.calibration: torch.Tensor
        self.category_shift: torch.Tensor
        self.basket_loadings: torch.Tensor
        self.trips_loadings: torch.Tensor
        self.other_spend_loadings: torch.Tensor
        self.other_spend_ratio: torch.Tensor
        self.other_spend_share: torch.Tensor
        self.other_spend_deviation: torch.Tensor
        self.basket_spend_deviation: torch.Tensor
        self.visit_week_deviation: torch.Tensor
        self.category_week_deviation: torch.Tensor
        self.register_buffer("base_rate", base_rate.clone())
        self.register_buffer("category_match", torch.zeros(n_categories, embedding))
        self.register_buffer("category_mean", torch.zeros(n_category_features))
        self.register_buffer("category_std", torch.ones(n_category_features))
        self.register_buffer("user_mean", torch.zeros(n_user_features))
        self.register_buffer("user_std", torch.ones(n_user_features))
        # Rows: visit, purchase. Columns: slope, intercept; fitted on the tuning weeks.
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        # What each category's purchase logit has moved by since training; fitted on the tuning weeks.
        self.register_buffer("category_shift", torch.zeros(n_categories))
        # Λ: what a visit's factors z do to purchases, trips and other spend, on the probit scale.
        self.register_buffer("basket_loadings", torch.zeros(n_categories, BASKET_RANK))
        self.register_buffer("trips_loadings", torch.zeros(BASKET_RANK))
        self.register_buffer("other_spend_loadings", torch.zeros(BASKET_RANK))
        # Spend outside the modelled categories per unit of spend inside, the share of visits that have any,
        # and the standard deviation of its log where there is some.
        self.register_buffer("other_spend_ratio", torch.zeros(()))
        self.register_buffer("other_spend_share", torch.ones(()))
        self.register_buffer("other_spend_deviation", torch.zeros(()))
        # Standard deviation of the log of all spend on a visit, around what is expected of the visit.
        self.register_buffer("basket_spend_deviation", torch.ones(()))
        # Standard deviations, on the probit scale, of the shocks that all users share in a week.
        self.register_buffer("visit_week_deviation", torch.zeros(()))
        self.register_buffer("category_week_deviation", torch.zeros(n_categories))

        self.visit_bias = nn.Parameter(torch.zeros(()))
        self.visit_user = nn.Parameter(torch.zeros(n_terms))
        self.visit_trend = nn.Parameter(torch.zeros(()))
        self.visit_month_start = nn.Parameter(torch.zeros(()))

        self.trips_bias = nn.Parameter(torch.tensor(-1.0))
        self.trips_features = nn.Parameter(torch.zeros(n_user_features))

        self.purchase_bias = nn.Parameter(torch.zeros(n_categories))
        self.purchase_features = nn.Parameter(torch.zeros(n_categories, n_category_features))
        self.purchase_user = nn.Parameter(torch.zeros(n_categories, n_terms))
        # By how much the weight of the own rate moves with the user's features.
        self.purchase_rate_user = nn.Parameter(torch.zeros(n_categories, n_user_features))
        self.purchase_trend = nn.Parameter(torch.zeros(n_categories))
        self.purchase_month_start = nn.Parameter(torch.zeros(n_categories))
        # Small at the start: the match of untrained texts is noise, and the habits are worth keeping.
        self.match_weight = nn.Parameter(torch.full((n_categories,), 0.2))
        self.purchase_embedding = nn.Parameter(torch.zeros(n_categories, embedding))
        # softplus(-1.5) / PROMOTION_UNIT = 2.0, near the two-way fixed-effects estimate on these logs (2.19).
        self.depth_level = nn.Parameter(torch.full((n_categories,), -1.5))
        self.depth_embedding = nn.Parameter(torch.zeros(embedding))
        self.display_effect = nn.Parameter(torch.zeros(n_categories))
        self.mailer_effect = nn.Parameter(torch.zeros(n_categories))

        self.spend_level = nn.Parameter(torch.ones(n_categories))
        self.spend_user = nn.Parameter(torch.zeros(n_terms))
        self.spend_embedding = nn.Parameter(torch.zeros(embedding))
        self.spend_depth = nn.Parameter(torch.zeros(()))
        self.spend_month_start = nn.Parameter(torch.zeros(()))
        self.spend_log_deviation = nn.Parameter(torch.full((n_categories,), -0.3))

        self.redemption_bias = nn.Parameter(torch.tensor(-2.3))
        self.redemption_features = nn.Parameter(torch.zeros(n_user_features))
        self.redemption_embedding = nn.Parameter(torch.zeros(embedding))

    @property
    def n_categories(self) -> int:
        """Number of categories C."""
        return int(self.base_rate.shape[0])

    @property
    def basket_residual(self) -> torch.Tensor:
        """[C] weight √(1 - |Λ_c|² - δ_c²) of what decides a purchase alone."""
        shared = self.basket_loadings.square().sum(dim=1) + self.category_week_deviation.square()
        return (1.0 - shared).clamp(min=0.0).sqrt()

    @property
    def trips_residual(self) -> torch.Tensor:
        """Weight √(1 - |Λ|²) of what decides the number of trips besides the basket's factors."""
        return (1.0 - self.trips_loadings.square().sum()).clamp(min=0.0).sqrt()

    @property
    def other_spend_residual(self) -> torch.Tensor:
        """Weight √(1 - |Λ|²) of what decides on other spend besides the basket's factors."""
        return (1.0 - self.other_spend_loadings.square().sum()).clamp(min=0.0).sqrt()

    @property
    def spend_deviation(self) -> torch.Tensor:
        """Standard deviation s_c of the log of spend, [C]."""
        return self.spend_log_deviation.exp()

    @property
    def expected_spend_factor(self) -> torch.Tensor:
        """[C] factor from exp(mean of the log) to the mean of a lognormal."""
        return torch.exp(0.5 * self.spend_deviation**2)

    def set_scale(self, scale: FeatureScale) -> None:
        """Fix the standardisation of the features and start from the slow rate; once, before fitting.

        The start reproduces each user's own shrunken purchase rate, so that the biases need not travel far:
        while they do, promotion coefficients pick up the differences between categories.
        """
        self.category_mean.copy_(scale.category_mean)
        self.category_std.copy_(scale.category_std)
        self.user_mean.copy_(scale.user_mean)
        self.user_std.copy_(scale.user_std)
        own = 0.9
        with torch.no_grad():
            self.purchase_features[:, 0] = own * scale.category_std[0]
            self.purchase_bias.copy_(own * scale.category_mean[0] + (1 - own) * torch.logit(self.base_rate))
            self.visit_user[0] = scale.user_std[0]
            self.visit_bias.copy_(scale.user_mean[0])

    def standard_user_features(self, state: HistoryState) -> torch.Tensor:
        """Return standardised user features g, [n, G]."""
        return (user_features(state) - self.user_mean) / self.user_std

    def user_terms(self, state: HistoryState) -> torch.Tensor:
        """Return standardised user features and their squares and products, [n, G(G + 3)/2].

        How much a small basket last week says depends on how often a user shops: without the products the
        heads lose more than text has brought. Features are cut at TERM_LIMIT before they are multiplied.
        """
        g = self.standard_user_features(state)
        bounded = g.clamp(-TERM_LIMIT, TERM_LIMIT)
        first, second = torch.triu_indices(g.shape[1], g.shape[1], device=g.device)
        return torch.cat([g, bounded[:, first] * bounded[:, second]], dim=1)

    def depth_effect(self, user_level: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Return θ before calibration, [..., C], non-negative, for users at a level of their own."""
        effect: torch.Tensor = nn.functional.softplus(self.depth_level + user_level) / PROMOTION_UNIT
        return effect

    def category_vectors(self, category_match: torch.Tensor | None = None) -> torch.Tensor:
        """Return what a user embedding is multiplied with for each category's tastes, [C, d].

        Args:
            category_match: [C, d] category embeddings where they are being trained; else the stored ones.
        """
        match = self.category_match if category_match is None else category_match
        matched: torch.Tensor = self.match_weight[:, None] * match / max(self.embedding, 1) ** 0.5
        return matched + self.purchase_embedding

    def visit_logit(self, state: HistoryState, calendar: PromotionCalendar) -> torch.Tensor:
        """Return the logit of a visit, [n], from histories and the calendar's n weeks, or a single one.

        No embedding enters: it is weeks old, and the rhythm of visits is in the history up to last week.
        """
        of_week = self.visit_trend * calendar.visit_trend + self.visit_month_start * calendar.month_start
        logit = self.visit_bias + self.user_terms(state) @ self.visit_user + of_week
        return self.calibration[0, 0] * logit + self.calibration[0, 1]

    def forward(
        self,
        state: HistoryState,
        embedding: torch.Tensor,
        calendar: PromotionCalendar,
        category_match: torch.Tensor | None = None,
    ) -> Utilities:
        """Return the linear predictors of one week, one row per user.

        Args:
            state: [n] histories before the week.
            embedding: [n, d] user embeddings.
            calendar: the n weeks that the rows stand for, or a single week for all rows.
            category_match: [C, d] category embeddings where they are being trained; else the stored ones.
        """
        g = self.user_terms(state)
        purchase = self.purchase_bias + g @ self.purchase_user.T
        features = category_features(state, self.base_rate)
        if self.embedding:
            tastes = embedding @ self.category_vectors(category_match).T
            purchase = torch.addcmul(purchase, taste_weight(state, self.base_rate), tastes)
        weights = self.purchase_features / self.category_std
        purchase = purchase - weights @ self.category_mean
        bounded = g[:, : len(USER_FEATURES)].clamp(-TERM_LIMIT, TERM_LIMIT)
        rate_weight = bounded @ (self.purchase_rate_user / self.category_std[0]).T
        purchase = torch.addcmul(purchase, features[0] - self.category_mean[0], rate_weight)
        for k, feature in enumerate(features):
            purchase = torch.addcmul(purchase, feature, weights[:, k])
        slope = self.depth_effect((embedding @ self.depth_embedding)[:, None])
        purchase = (
            purchase
            + slope * calendar.depth
            + self.display_effect / PROMOTION_UNIT * calendar.display
            + self.mailer_effect / PROMOTION_UNIT * calendar.mailer
            + self.purchase_trend * calendar.category_trend
            + self.purchase_month_start * calendar.month_start[..., None]
        )
        log_spend = (
            self.spend_level
            + (g @ self.spend_user + embedding @ self.spend_embedding)[:, None]
            + self.spend_depth * calendar.depth
            + self.spend_month_start * calendar.month_start[..., None]
        )
        return Utilities(
            visit=self.visit_logit(state, calendar),
            purchase=self.calibration[1, 0] * purchase + self.calibration[1, 1] + self.category_shift,
            depth_slope=self.calibration[1, 0] * slope,
            log_spend=log_spend,
        )

    def mean_further_trips(self, state: HistoryState) -> torch.Tensor:
        """Return the expected number of trips after the first in a week with a visit, [n]."""
        level = self.trips_bias + self.standard_user_features(state) @ self.trips_features
        mean: torch.Tensor = level.clamp(max=MOST_FURTHER_TRIPS_LOG).exp()
        return mean

    def redemption_logit(self, state: HistoryState, embedding: torch.Tensor) -> torch.Tensor:
        """Return the logit of redeeming a held coupon at a purchase of its category, [n]."""
        return (
            self.redemption_bias
            + self.standard_user_features(state) @ self.redemption_features
            + embedding @ self.redemption_embedding
        )
