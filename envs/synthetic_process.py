"""The process that a synthetic market's users follow, and draws from it (see :mod:`envs.synthetic`)."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from envs.synthetic_truth import SyntheticTruth, sigmoid

_DEPARTMENTS: Final = {
    "GROCERY": ("CEREAL", "COFFEE", "PASTA", "SOUP", "SNACKS", "SOFT DRINKS", "BAKED BREAD", "CANDY"),
    "PRODUCE": ("SALAD", "BERRIES", "CITRUS", "POTATOES"),
    "DAIRY": ("MILK", "CHEESE", "YOGURT", "EGGS"),
    "MEAT": ("BEEF", "CHICKEN", "LUNCHMEAT"),
    "FROZEN": ("FROZEN PIZZA", "ICE CREAM"),
    "DRUG": ("SHAMPOO", "DETERGENT", "DIAPERS"),
}
_SHELF_DEPTHS: Final = (0.1, 0.2, 0.3, 0.4)
_FACTORS: Final = 2


@dataclass(frozen=True)
class SyntheticConfig:
    """Size and parameters of a synthetic market.

    Attributes:
        n_users: users n.
        n_weeks: weeks T of the log, locked ones included.
        n_categories: modelled categories C.
        items_per_category: items in each; they share their category's promotions.
        n_stores: stores; promotions are recorded in the first half of them only.
        n_campaigns: coupon campaigns G, spread evenly over the weeks.
        campaign_weeks: weeks that each campaign lasts.
        campaign_categories: categories that each campaign covers, one offer for each.
        first_monday: first day of week 1, a Monday.
        visit_logit: mean over users of the weekly visit logit (0 is half of the users).
        visit_spread: standard deviation over users of the visit logit.
        season: amplitude of the yearly season in the visit logit.
        purchase_logit: mean over users and categories of the purchase logit, given a visit.
        taste_spread: standard deviation of taste over users within a category.
        depth_response: mean over categories of theta, the effect of shelf depth on the purchase logit.
        kappa_display: effect of display on the purchase logit.
        kappa_mailer: effect of the mailer on the purchase logit.
        promotion_rate: share of category-weeks with a shelf discount.
        coupon_lift: effect of holding a coupon on the purchase logit; 0 leaves the process of the shelf.
        redemption_rate: mean over users of rho, redemption given a covered purchase.
        target_rate: typical propensity of being sent a campaign.
    """

    n_users: int = 400
    n_weeks: int = 53
    n_categories: int = 24
    items_per_category: int = 4
    n_stores: int = 8
    n_campaigns: int = 8
    campaign_weeks: int = 5
    campaign_categories: int = 6
    first_monday: datetime.date = datetime.date(2024, 1, 1)
    visit_logit: float = 0.3
    visit_spread: float = 0.8
    season: float = 0.3
    purchase_logit: float = -2.5
    taste_spread: float = 0.9
    depth_response: float = 2.2
    kappa_display: float = 0.5
    kappa_mailer: float = 0.3
    promotion_rate: float = 0.35
    coupon_lift: float = 0.0
    redemption_rate: float = 0.2
    target_rate: float = 0.35

    def __post_init__(self) -> None:
        for name in ("n_users", "n_weeks", "n_categories", "items_per_category", "n_stores"):
            if getattr(self, name) < 1:
                raise ValueError(f"SyntheticConfig.{name} must be at least 1, is {getattr(self, name)}")
        if self.first_monday.weekday() != 0:
            raise ValueError(f"SyntheticConfig.first_monday {self.first_monday} is not a Monday")
        if self.campaign_categories > self.n_categories:
            raise ValueError("SyntheticConfig.campaign_categories exceeds n_categories")
        if self.n_campaigns and not 1 <= self.campaign_weeks <= self.n_weeks:
            raise ValueError("SyntheticConfig.campaign_weeks must lie between 1 and n_weeks")
        for name in ("redemption_rate", "target_rate", "promotion_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"SyntheticConfig.{name} must lie in (0, 1), is {getattr(self, name)}")


@dataclass(frozen=True)
class Campaigns:
    """G coupon campaigns.

    Attributes:
        start: [G] first week, from 0.
        covers: [G, C] whether the campaign has an offer for the category.
        sent: [G, n] whether the user was sent it.
    """

    start: npt.NDArray[np.int64]
    covers: npt.NDArray[np.bool_]
    sent: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What the users did.

    Attributes:
        visited: [n, T] whether the user visited.
        bought: [n, T, C] whether the user bought; only on visits.
        redeemed: [R, 4] redemptions as user, week from 0, category and campaign.
    """

    visited: npt.NDArray[np.bool_]
    bought: npt.NDArray[np.bool_]
    redeemed: npt.NDArray[np.int64]


def draw_truth(
    config: SyntheticConfig, users: np.random.Generator, promotions: np.random.Generator
) -> SyntheticTruth:
    """Draw the parameters; users and promotions have streams of their own."""
    n, weeks, categories = config.n_users, config.n_weeks, config.n_categories
    # Tastes share a few factors over categories, so that a basket, and the profile, tell of the others.
    factors = users.normal(size=(n, _FACTORS))
    loadings = users.normal(size=(_FACTORS, categories)) / np.sqrt(_FACTORS)
    taste = config.taste_spread * (0.8 * factors @ loadings + 0.6 * users.normal(size=(n, categories)))
    popularity = users.normal(scale=0.7, size=categories)
    visit = config.visit_logit + config.visit_spread * users.normal(size=n)
    rho = users.beta(4 * config.redemption_rate, 4 * (1 - config.redemption_rate), size=n)
    propensity = np.clip(
        sigmoid(np.log(config.target_rate / (1 - config.target_rate)) + visit - config.visit_logit),
        0.05,
        0.95,
    )
    on_sale = promotions.random((weeks, categories)) < config.promotion_rate
    depth = np.where(on_sale, promotions.choice(_SHELF_DEPTHS, size=(weeks, categories)), 0.0)
    # Discounts, displays and mailers come together in shops, but not always: both effects are identified.
    display = promotions.random((weeks, categories)) < 0.1 + 0.3 * on_sale
    mailer = promotions.random((weeks, categories)) < 0.15 + 0.4 * on_sale
    names = [(name, department) for department, group in _DEPARTMENTS.items() for name in group]
    names += [(f"CATEGORY {index + 1}", "GENERAL") for index in range(len(names), categories)]
    return SyntheticTruth(
        user_ids=np.array([f"u{index:06d}" for index in range(n)]),
        categories=np.array([name for name, _ in names[:categories]]),
        departments=np.array([department for _, department in names[:categories]]),
        theta=config.depth_response * np.exp(users.normal(scale=0.25, size=categories) - 0.25**2 / 2),
        kappa_display=config.kappa_display,
        kappa_mailer=config.kappa_mailer,
        coupon_lift=config.coupon_lift,
        user_visit_logit=visit,
        season=config.season * np.cos(2 * np.pi * np.arange(weeks) / 52),
        taste=config.purchase_logit + popularity + taste,
        factors=factors,
        depth=depth,
        display=display.astype(np.float64),
        mailer=mailer.astype(np.float64),
        log_spend_mean=users.normal(loc=1.2, scale=0.4, size=categories),
        log_spend_sd=0.5,
        redemption_probability=rho,
        propensity=np.tile(propensity, (config.n_campaigns, 1)),
    )


def draw_campaigns(config: SyntheticConfig, truth: SyntheticTruth, rng: np.random.Generator) -> Campaigns:
    """Draw which categories each campaign covers, and to whom it is sent, by the propensity."""
    count, latest = config.n_campaigns, config.n_weeks - config.campaign_weeks
    covers = np.zeros((count, config.n_categories), dtype=bool)
    for campaign in range(count):
        covers[campaign, rng.choice(config.n_categories, config.campaign_categories, replace=False)] = True
    return Campaigns(
        start=np.linspace(0, latest, count).round().astype(np.int64),
        covers=covers,
        sent=rng.random(truth.propensity.shape) < truth.propensity,
    )


def draw_outcome(
    config: SyntheticConfig, truth: SyntheticTruth, campaigns: Campaigns, rng: np.random.Generator
) -> Outcome:
    """Draw visits, purchases and redemptions."""
    n, weeks, categories = config.n_users, config.n_weeks, config.n_categories
    holds = np.zeros((n, weeks, categories), dtype=bool)
    for start, covers, sent in zip(campaigns.start, campaigns.covers, campaigns.sent, strict=True):
        window = slice(start, start + config.campaign_weeks)
        holds[:, window] |= (sent[:, None] & covers[None, :])[:, None, :]
    visited = rng.random((n, weeks)) < sigmoid(truth.visit_logit)
    chance = sigmoid(truth.purchase_logit + truth.coupon_lift * holds)
    bought = visited[:, :, None] & (rng.random((n, weeks, categories)) < chance)
    redeems = (
        bought & holds & (rng.random((n, weeks, categories)) < truth.redemption_probability[:, None, None])
    )
    rows = []
    for user, week, category in np.argwhere(redeems):
        # With coupons of two campaigns in hand, the one that ends first is used.
        live = (campaigns.start <= week) & (week < campaigns.start + config.campaign_weeks)
        usable = live & campaigns.sent[:, user] & campaigns.covers[:, category]
        rows.append((user, week, category, int(np.flatnonzero(usable)[0])))
    return Outcome(visited, bought, np.array(rows, dtype=np.int64).reshape(-1, 4))
