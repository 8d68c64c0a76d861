"""Puts a user's profile together from a run's panel, embeddings and response model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoders.calendar import PromotionCalendar
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.user_text import SEASON_WEEKS, UserTextStyle, category_words, user_texts
from envs.offers import Catalogue
from experiments.config import ConfigError
from experiments.fitted_run import FittedRun
from experiments.profile.channels import ChannelQuestion, Channels, compare_channels
from experiments.profile.drift import Drift, Neighbours, find_neighbours, measure_drift
from experiments.profile.habits import (
    Favourite,
    FloatArray,
    PurchaseRates,
    Segment,
    favourites,
    percentiles,
    segments,
)

MOST_FAVOURITES = 8
MOST_NEIGHBOURS = 5
EXAMPLE_DEPTH = 0.2
"""Further discount at which price sensitivity is put into words."""


@dataclass(frozen=True)
class Standing:
    """A figure of the model for one user, among all users.

    Attributes:
        value: of the user.
        percentile: share of users with a lower one, in (0, 1); ties count half.
        low: 5% of users lie below.
        median: of all users.
        high: 5% of users lie above.
        source: where the model has it from, in words.
    """

    value: float
    percentile: float
    low: float
    median: float
    high: float
    source: str

    @classmethod
    def among(cls, values: FloatArray, user: int, source: str) -> Standing:
        """Place a user among the values of all, [n]."""
        low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
        share = percentiles(values)[user]
        return cls(float(values[user]), float(share), float(low), float(median), float(high), source)


@dataclass(frozen=True)
class Campaign:
    """A campaign that the user was sent before the profile's week.

    Attributes:
        campaign: its id.
        week: 1-based week in which it started for the user.
        redeemed: whether the user redeemed any offer of it, in an unlocked week.
    """

    campaign: str
    week: int
    redeemed: bool


@dataclass(frozen=True)
class UserProfile:
    """All there is to say of a user at the start of a week.

    Attributes:
        user: pseudonym.
        week: 1-based; nothing of it or of later weeks is used, but its mass promotion, which is planned.
        embedded_week: start week of the embedding and text that serve it.
        segment: by visits, spend and recency.
        favourites: categories bought more than by others.
        price: mean over categories of θ, what a unit of discount adds to the log odds of a purchase.
        price_odds: factor on the odds of a purchase at a further discount of 20%.
        channels: what would move the user.
        redemption: probability of using a held coupon at a purchase of its category.
        campaigns: sent to the user so far.
        redeemed_share: of all users' campaigns before the week; None where there were none.
        drift: change over time.
        neighbours: nearest users by embedding.
        text: what the encoder was given.
        text_tokens: its length.
        most_tokens: the encoder reads no further than this.
    """

    user: str
    week: int
    embedded_week: int
    segment: Segment
    favourites: list[Favourite]
    price: Standing
    price_odds: float
    channels: Channels
    redemption: Standing
    campaigns: list[Campaign]
    redeemed_share: float | None
    drift: Drift
    neighbours: Neighbours
    text: str
    text_tokens: int
    most_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON."""
        return asdict(self)


def find_user(panel: Panel, name: str) -> int:
    """Return the index of the user with this pseudonym or unique beginning of one.

    Raises:
        ConfigError: no user or several match; an example is named.
    """
    exact = np.flatnonzero(panel.user_ids == name)
    if len(exact):
        return int(exact[0])
    matches = np.flatnonzero(np.char.startswith(panel.user_ids, name)) if name else np.arange(panel.n_users)
    if len(matches) == 1:
        return int(matches[0])
    if len(matches) == 0:
        raise ConfigError(
            f"no user's pseudonym is or begins with {name!r}; one of the {panel.n_users} users is "
            f"{panel.user_ids[0]}"
        )
    first, second = panel.user_ids[matches[:2]]
    raise ConfigError(
        f"{name!r} begins the pseudonyms of {len(matches)} users, {first} and {second} among them; give more"
    )


def choose_week(run: FittedRun, week: int | None) -> int:
    """Return the 1-based week of a profile: the last start week unless one is named.

    Raises:
        ConfigError: users have no embedding yet in that week, or it is not in the panel.
    """
    starts = run.embeddings.start_week
    if week is None:
        return int(starts[-1]) + 1
    if not starts[0] < week <= run.panel.n_weeks:
        raise ConfigError(
            f"--week {week}: choose a week from {starts[0] + 1} to {run.panel.n_weeks}, for example "
            f"{starts[-1] + 1}; earlier users have no embedding, and later weeks are locked"
        )
    return week


@torch.no_grad()
def profile_user(run: FittedRun, user: int, week: int) -> UserProfile:
    """Describe a user at the start of a week.

    Args:
        run: a fitted run.
        user: index into its panel's users.
        week: 1-based, from :func:`choose_week`.
    """
    panel, heads, table = run.panel, run.heads, run.embeddings
    words = category_words(panel)
    embedded = int(table.start_week[table.start_week < week][-1])
    embedding = table.at(week - 1)
    history = HistoryTape.of_panel(panel).week(week - 1)
    calendar = PromotionCalendar.of_panel(panel)
    utilities = heads(history, embedding, calendar.weeks(torch.tensor(week - 1)))
    rates = PurchaseRates.of_history(history, heads.base_rate.double().numpy())
    standing = segments(panel, week)
    price = Standing.among(
        utilities.depth_slope.double().mean(dim=1).numpy(), user, run.fitted_source("depth effect")
    )
    notice = torch.sigmoid(heads.redemption_logit(history, embedding).double())
    campaigns, redeemed_share = _campaigns(run, user, week)
    market = run.config.market
    season = panel.split.train_end >= SEASON_WEEKS
    style = UserTextStyle(max_items=run.config.text.max_items, season=season)
    text = user_texts(panel, embedded + 1, style)[user]
    run.tokenizer.no_truncation()
    one = torch.tensor([user])
    return UserProfile(
        user=str(panel.user_ids[user]),
        week=week,
        embedded_week=embedded + 1,
        segment=standing[user],
        favourites=favourites(panel, words, rates, user, week, MOST_FAVOURITES),
        price=price,
        price_odds=float(np.exp(EXAMPLE_DEPTH * price.value)),
        channels=compare_channels(
            ChannelQuestion(
                heads=heads,
                history=history.rows(one),
                embedding=embedding[one],
                calendar=calendar,
                week=week,
                catalogue=Catalogue.from_toml(Path(market.catalogue))
                if market.catalogue
                else Catalogue.built_in(),
                margin_rate=market.margin_rate,
                words=words,
                sources={
                    name: run.fitted_source(name)
                    for name in ("depth effect", "display effect", "mailer effect", "redemption")
                },
            )
        ),
        redemption=Standing.among(notice.numpy(), user, run.fitted_source("redemption")),
        campaigns=campaigns,
        redeemed_share=redeemed_share,
        drift=measure_drift(panel, words, table, user, week),
        neighbours=find_neighbours(panel, words, embedding, rates, standing, user, MOST_NEIGHBOURS),
        text=text,
        text_tokens=len(run.tokenizer.encode(text).ids),
        most_tokens=run.config.text.max_tokens,
    )


def _campaigns(run: FittedRun, user: int, week: int) -> tuple[list[Campaign], float | None]:
    """The user's campaigns that started before the week, and the share redeemed among all users' such."""
    rows = run.targeting
    before = rows.start_week < week
    own = np.flatnonzero(before & (rows.user == user))
    own = own[np.argsort(rows.start_week[own], kind="stable")]
    found = [
        Campaign(
            str(rows.campaign_ids[rows.campaign[row]]), int(rows.start_week[row]), bool(rows.redeemed[row])
        )
        for row in own
    ]
    return found, float(rows.redeemed[before].mean()) if before.any() else None
