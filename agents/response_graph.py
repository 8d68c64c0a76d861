"""The predictor's response model as a graph: linear predictors of a week from raw state rows.

The formulas are those of :mod:`encoders.response_kernel`; the tests hold them to it. What is per category
runs in float32, whose roundings average out over a basket, or in float64 where that is too coarse for a
policy; what is per user or per offer runs in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from agents.serving.columns import USER_COLUMNS
from encoders.history import (
    CAUTIOUS_PRIOR_VISITS,
    PRIOR_VISITS,
    RECENT_BASKETS,
    RECENT_WEEKS,
    USER_FEATURES,
)
from encoders.response import PROMOTION_UNIT, TASTE_VISITS, TERM_LIMIT, ResponseHeads

_LEAST_PROBABILITY = 1e-4
_LEAST_ODDS = _LEAST_PROBABILITY / (1.0 - _LEAST_PROBABILITY)


@dataclass(frozen=True)
class WeekTerms:
    """The week, in float64.

    Attributes:
        shelf: [C] depth of the shelf discount.
        display: [C]
        mailer: [C]
        category_trend: [C]
        visit_trend: scalar.
        month_start: scalar.
    """

    shelf: torch.Tensor
    display: torch.Tensor
    mailer: torch.Tensor
    category_trend: torch.Tensor
    visit_trend: torch.Tensor
    month_start: torch.Tensor


@dataclass(frozen=True)
class PeopleTerms:
    """What depends on users and not on categories; float64 but for ``terms`` and ``bounded``.

    Attributes:
        features: [n, G] user features.
        terms: [n, G + G²] wide, standardised features and all products of bounded ones.
        bounded: [n, G] wide.
        visit: [n] logit of a visit.
        log_spend: [n]
        depth: [n] the users' part of the level of θ.
        redemption: [n] logit of redeeming a held coupon.
    """

    features: torch.Tensor
    terms: torch.Tensor
    bounded: torch.Tensor
    visit: torch.Tensor
    log_spend: torch.Tensor
    depth: torch.Tensor
    redemption: torch.Tensor


class ResponseGraph(nn.Module):
    """Response heads without gradient, scratch or Python numbers that depend on the week.

    Args:
        heads: fitted, in float64.
        wide: what is computed in per category; float64 takes a third longer in all.
    """

    of_own_rate: torch.Tensor
    of_fast_rate: torch.Tensor
    of_cautious_rate: torch.Tensor
    of_recency: torch.Tensor
    of_overdue: torch.Tensor
    of_recent: torch.Tensor
    of_purchase_user: torch.Tensor
    of_rate_user: torch.Tensor
    of_taste: torch.Tensor
    of_base_rate: torch.Tensor
    of_depth_level: torch.Tensor
    of_depth_unit: torch.Tensor
    of_first_mean: torch.Tensor
    user_columns: torch.Tensor
    embedding_columns: torch.Tensor
    centre: torch.Tensor

    def __init__(self, heads: ResponseHeads, wide: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.wide = wide
        n_features, width = len(USER_FEATURES), heads.embedding
        slope = heads.calibration[1, 0]
        weights = slope * heads.purchase_features / heads.category_std
        of_user = torch.zeros(len(heads.visit_user), 4, dtype=torch.float64)
        of_user[:, 0], of_user[:, 1] = heads.calibration[0, 0] * heads.visit_user, heads.spend_user
        of_user[:n_features, 3] = heads.redemption_features
        of_embedding = torch.zeros(width, 4, dtype=torch.float64)
        for place, name in ((1, "spend"), (2, "depth"), (3, "redemption")):
            of_embedding[:, place] = getattr(heads, f"{name}_embedding")
        bits = torch.arange(2**RECENT_WEEKS)[:, None] >> torch.arange(RECENT_WEEKS) & 1
        by_category = {
            "own_rate": weights[:, 0],
            "fast_rate": weights[:, 1],
            "cautious_rate": weights[:, 2],
            "recency": weights[:, 3],
            "overdue": weights[:, 4],
            # What each pattern of recent purchases adds, so that no bit need be looked at alone.
            "recent": bits.double() @ weights[:, 5 : 5 + RECENT_WEEKS].T,
            "purchase_user": _with_all_products(slope * heads.purchase_user.T),
            "rate_user": slope * heads.purchase_rate_user.T / heads.category_std[0],
            "taste": slope * heads.category_vectors().T * (TASTE_VISITS * heads.base_rate),
            "base_rate": heads.base_rate,
            "depth_level": torch.exp(heads.depth_level),
            "depth_unit": slope / PROMOTION_UNIT,
            "first_mean": heads.category_mean[0],
        }
        for name, value in by_category.items():
            self.register_buffer(f"of_{name}", value.detach().to(wide).contiguous())
        self.register_buffer("user_columns", _with_all_products(of_user).contiguous())
        self.register_buffer("embedding_columns", of_embedding.detach())
        self.register_buffer("centre", (weights[:, 1:] @ heads.category_mean[1:]).detach())

    def people(self, user: torch.Tensor, embedding: torch.Tensor, week: WeekTerms) -> PeopleTerms:
        """Return what depends on users alone.

        Args:
            user: [n, len(USER_COLUMNS)] float64.
            embedding: [n, d] float64.
            week: of the decision.
        """
        heads = self.heads

        def columns(first: str, count: int) -> torch.Tensor:
            start = USER_COLUMNS.index(first)
            return user[:, start : start + count]

        weeks = columns("weeks_slow", 2) + 1.0
        features = torch.cat(
            [
                _logit((columns("visits_slow", 2) + 0.5) / weeks),
                torch.log(columns("visit_recency", 1)),
                torch.log(1.0 + columns("basket_size", 2) / (columns("visits_slow", 1) + 0.5)),
                torch.log((columns("trips_slow", 2) + 0.5) / weeks),
                columns("last_trips", 1),
                torch.log(1.0 + columns("basket_1_week_ago", RECENT_BASKETS)),
            ],
            dim=1,
        )
        standard = (features - heads.user_mean) / heads.user_std
        bounded = standard.clamp(-TERM_LIMIT, TERM_LIMIT)
        # All products, of which half have no weight: cheaper than to gather those that do.
        products = (bounded[:, :, None] * bounded[:, None, :]).flatten(start_dim=1)
        terms = torch.cat([standard, products], dim=1)
        found = terms @ self.user_columns + embedding @ self.embedding_columns
        slope, intercept = heads.calibration[0].unbind()
        of_week = heads.visit_trend * week.visit_trend + heads.visit_month_start * week.month_start
        visit, log_spend, depth, redemption = found.unbind(dim=1)
        return PeopleTerms(
            features=features,
            terms=terms.to(self.wide),
            bounded=bounded.to(self.wide),
            visit=visit + (intercept + slope * (heads.visit_bias + of_week)),
            log_spend=log_spend,
            depth=depth,
            redemption=redemption + heads.redemption_bias,
        )

    def purchase(
        self,
        people: PeopleTerms,
        category_recency: torch.Tensor,
        category_slow: torch.Tensor,
        category_fast: torch.Tensor,
        recent: torch.Tensor,
        user: torch.Tensor,
        embedding: torch.Tensor,
        week: WeekTerms,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logit of each purchase and its slope θ in depth, both [n, C] wide.

        Args: as the graph takes them.
        """
        heads, wide = self.heads, self.wide
        slope, intercept = heads.calibration[1].unbind()
        level = (
            heads.purchase_bias
            + (heads.display_effect * week.display + heads.mailer_effect * week.mailer) / PROMOTION_UNIT
            + heads.purchase_trend * week.category_trend
            + heads.purchase_month_start * week.month_start
        )
        constant = (slope * level + intercept + heads.category_shift - self.centre).to(wide)
        slow, fast, recency = (
            values.float().to(wide) for values in (category_slow, category_fast, category_recency)
        )
        visits_slow, visits_fast, weeks_slow = user[:, :3].to(wide).split(1, dim=1)

        def rate_logit(purchases: torch.Tensor, visits: torch.Tensor, prior_visits: float) -> torch.Tensor:
            some = purchases + prior_visits * self.of_base_rate
            # Odds are cut where the probability would be.
            odds = some / ((visits + prior_visits) - some)
            return torch.log(odds.clamp(_LEAST_ODDS, 1.0 / _LEAST_ODDS))

        logit = constant + people.terms @ self.of_purchase_user
        if heads.embedding:
            logit = logit + (embedding.to(wide) @ self.of_taste) / (slow + TASTE_VISITS * self.of_base_rate)
        own = rate_logit(slow, visits_slow, PRIOR_VISITS) - self.of_first_mean
        logit = logit + own * (self.of_own_rate + people.bounded @ self.of_rate_user)
        logit = logit + rate_logit(fast, visits_fast, PRIOR_VISITS) * self.of_fast_rate
        logit = logit + rate_logit(slow, visits_slow, CAUTIOUS_PRIOR_VISITS) * self.of_cautious_rate
        logit = logit + torch.log(recency) * self.of_recency
        overdue = recency * slow / weeks_slow.clamp(min=1.0)
        logit = logit + torch.log(1.0 + overdue) * self.of_overdue
        logit = logit + self.of_recent.gather(0, recent.long())
        # softplus(level + user) as log(1 + e^level·e^user).
        depth_slope = torch.log(1.0 + self.of_depth_level * torch.exp(people.depth).to(wide)[:, None])
        depth_slope = depth_slope * self.of_depth_unit
        return logit + depth_slope * week.shelf.to(wide), depth_slope

    def log_spend(self, week: WeekTerms) -> torch.Tensor:
        """Return the categories' part of the mean of the log of spend, [C]."""
        heads = self.heads
        of_month = heads.spend_month_start * week.month_start
        return heads.spend_level + heads.spend_depth * week.shelf + of_month


def _with_all_products(weights: torch.Tensor) -> torch.Tensor:
    """Weights [G(G + 3)/2, k] of features and of each product once, as weights [G + G², k] of them all."""
    count = len(USER_FEATURES)
    first, second = torch.triu_indices(count, count)
    square = torch.zeros(count, count, weights.shape[1], dtype=weights.dtype)
    square[first, second] = weights.detach()[count:]
    return torch.cat([weights.detach()[:count], square.flatten(end_dim=1)])


def _logit(probability: torch.Tensor) -> torch.Tensor:
    bounded = probability.clamp(_LEAST_PROBABILITY, 1.0 - _LEAST_PROBABILITY)
    return torch.log(bounded / (1.0 - bounded))
