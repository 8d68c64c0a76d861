"""Past campaigns as decisions: one row per user and campaign, sent or not, as a log of one's own would be.

A log of shopping tells who was sent a campaign, and by that who was not. What was known of a user then is
counted here from the weeks before; spend in the weeks after is the outcome. The same rows can be made for a
time before the campaign began, when it cannot have had an effect: the placebo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from encoders.panel import Panel
from envs.logs import Logs
from envs.targeting import TargetingRows

WINDOW_WEEKS: Final = 4
"""Weeks over which spend is counted: most coupons are used within four weeks of a campaign's start."""
HISTORY_WEEKS: Final = 8
"""Weeks that must be known before the window for a user's habits to show."""
MINIMUM_USERS: Final = 20
"""Users who were sent a campaign, and users who were not, below which it tells nothing of its targeting."""
NOT_SENT, SENT = "not sent", "sent"
ANY_TYPE: Final = "any type"
"""The type of a campaign of which none is recorded."""

_RECENT, _SEASON = 4, 12


def campaign_types(logs: Logs) -> dict[str, str]:
    """Return the type of each campaign that has one, by campaign id.

    A campaign recorded under several types takes the first in text order. Complete Journey has types A, B
    and C.
    """
    if "campaigns" not in logs.tables:
        return {}
    with logs.connection.cursor() as cursor:
        rows = cursor.execute(
            "SELECT CAST(campaign_id AS VARCHAR), min(campaign_type) FROM campaigns"
            " WHERE campaign_type IS NOT NULL GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    return {str(campaign): str(kind) for campaign, kind in rows}


def campaign_rows(
    panel: Panel, targeting: TargetingRows, types: Mapping[str, str], *, lead_weeks: int = 0
) -> pd.DataFrame:
    """Return one row for each campaign and user who had shopped before its window.

    A campaign counts if :data:`MINIMUM_USERS` users who had shopped before were sent it and as many were not,
    if :data:`HISTORY_WEEKS` weeks lie before its placebo's window, so that both windows are of the same
    campaigns, and if its own window lies in the panel, which has no locked week.

    Args:
        panel: weekly spend, visits and coupon use.
        targeting: who was sent which campaign, from the same logs.
        types: type of each campaign, by id; :data:`ANY_TYPE` for others.
        lead_weeks: weeks by which the window lies before the campaign's; 0 is the campaign's own.

    Returns:
        Columns ``user_id`` (index into the panel), ``campaign``, ``campaign_type``, ``week`` (first of the
        window), ``offer`` (:data:`SENT` or :data:`NOT_SENT`), ``reward`` (spend of the window), and
        ``feature_…``, which know only weeks before the window.

    Raises:
        ValueError: ``lead_weeks`` is negative or beyond the history that is asked of every campaign.
    """
    if not 0 <= lead_weeks <= WINDOW_WEEKS:
        raise ValueError(f"lead_weeks must lie in 0..{WINDOW_WEEKS}, not {lead_weeks}")
    starts, sent_to = _campaigns(panel, targeting)
    first = HISTORY_WEEKS + WINDOW_WEEKS + 1
    frames: list[pd.DataFrame] = []
    for number, campaign in enumerate(targeting.campaign_ids):
        start = int(starts[number])
        if start < first or start + WINDOW_WEEKS - 1 > panel.n_weeks:
            continue
        # Of the earliest window, so that the campaigns are the same for all.
        early = panel.visited[:, : start - WINDOW_WEEKS - 1].any(axis=1)
        n_sent, n_not = (int((early & group).sum()) for group in (sent_to[number], ~sent_to[number]))
        if min(n_sent, n_not) < MINIMUM_USERS:
            continue
        week = start - lead_weeks
        known = np.asarray(panel.visited[:, : week - 1].any(axis=1), dtype=np.bool_)
        features = _features(panel, week, starts, sent_to) | {"campaign": f"campaign {campaign}"}
        window = panel.basket_spend[:, week - 1 : week - 1 + WINDOW_WEEKS].sum(axis=1, dtype=np.float64)
        columns = {
            "user_id": np.arange(panel.n_users),
            "campaign": str(campaign),
            "campaign_type": types.get(str(campaign), ANY_TYPE),
            "week": week,
            "offer": np.where(sent_to[number], SENT, NOT_SENT),
            "reward": window,
        } | {f"feature_{name}": values for name, values in features.items()}
        frames.append(pd.DataFrame(columns).loc[known])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _campaigns(panel: Panel, targeting: TargetingRows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the week [G] in which each campaign began for its first user, and [G, n] who was sent it."""
    n_campaigns = len(targeting.campaign_ids)
    starts = np.full(n_campaigns, np.iinfo(np.int64).max)
    np.minimum.at(starts, targeting.campaign, targeting.start_week)
    sent_to = np.zeros((n_campaigns, panel.n_users), dtype=np.bool_)
    sent_to[targeting.campaign, targeting.user] = True
    return starts, sent_to


def _features(
    panel: Panel, week: int, starts: npt.NDArray[np.int64], sent_to: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float64] | str]:
    """[n] values of each feature, of the weeks before ``week``."""
    spend = panel.basket_spend[:, : week - 1].astype(np.float64)
    visited = panel.visited[:, : week - 1]
    coupon = panel.coupon_used[:, : week - 1]
    breadth = panel.bought[:, max(0, week - 1 - _SEASON) : week - 1].sum(axis=2)
    weeks_away = np.where(visited.any(axis=1), visited[:, ::-1].argmax(axis=1), week)
    amounts = {
        "recent": spend[:, -_RECENT:].mean(axis=1),
        "season": spend[:, -_SEASON:].mean(axis=1),
        "before": spend.mean(axis=1),
    }
    earlier = starts < week
    recent = earlier & (starts >= week - HISTORY_WEEKS)
    return {
        **{f"spend_{name}": amount for name, amount in amounts.items()},
        **{f"log_spend_{name}": np.log1p(amount) for name, amount in amounts.items()},
        "visits_recent": visited[:, -_RECENT:].mean(axis=1),
        "visits_season": visited[:, -_SEASON:].mean(axis=1),
        "visits_before": visited.mean(axis=1),
        "weeks_away": np.log1p(weeks_away),
        "coupons_season": coupon[:, -_SEASON:].mean(axis=1),
        "coupons_before": coupon.mean(axis=1),
        "categories_season": np.log1p(breadth.mean(axis=1)),
        "campaigns_before": sent_to[earlier].mean(axis=0) if earlier.any() else np.zeros(panel.n_users),
        "campaigns_recent": sent_to[recent].sum(axis=0).astype(np.float64),
        "profile_known": (panel.profiles != "").astype(np.float64),
    }
