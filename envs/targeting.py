"""Rows for the campaign response model: who was targeted, what was known then, and whether they redeemed."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import duckdb
import numpy as np
import numpy.typing as npt

from encoders.panel import Panel
from envs.log_schema import UNLISTED
from envs.logs import Logs
from envs.panel_from_logs import create_users

FEATURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "trips": "log shopping trips a week",
        "coupon_share": "share of trips on which any coupon was used",
        "coupon_recency": "log days since any coupon was last used",
        "category_coupons": "log purchases a week with any coupon in the campaign's categories",
        "redemptions": "log past redemptions of campaign coupons",
        "redemption_rate": "share of past campaigns redeemed",
        "covered_purchases": "log purchases a week of items that the campaign covers",
        "n_coupons": "log number of coupons in the campaign",
        "n_targeted": "log number of users that the campaign was sent to",
        "profile_known": "whether the user's profile is known",
    }
)
"""Columns of the features, in order, with their meaning. All are as of the day before the user's start."""

COUPON_HISTORY: Final = frozenset(
    {"coupon_share", "coupon_recency", "category_coupons", "redemptions", "redemption_rate"}
)
"""The features that tell how the user dealt with coupons before."""

HALF_LIFE_DAYS: Final = 112
"""Age, in days, at which a trip or a coupon use counts half."""

COVERED_HALF_LIFE_DAYS: Final = 28
"""The same for purchases of covered items: coupons are used on what is being bought now."""

NEVER_DAYS: Final = 400
"""Days since the last coupon use where there was none; more than a log of a year can show."""

# Added to a rate before its logarithm, so that none at all is low but finite; in events a week.
_TRIP_FLOOR, _COVERED_FLOOR, _CATEGORY_COUPON_FLOOR = 0.07, 0.07, 0.03
# A user without trips or campaigns so far takes these shares, at this weight.
_SHARE_PRIOR_TRIPS = 2.0
_RATE_PRIOR, _RATE_PRIOR_CAMPAIGNS = 0.12, 1.0

# Sums of decimals do not depend on the order in which threads meet the rows.
_WEIGHT = "DECIMAL(38, 15)"


@dataclass(frozen=True)
class TargetingRows:
    """N pairs of a user and a campaign that was sent to that user, ordered by campaign, then user.

    A row describes redemption *given* targeting; it says nothing on what the campaign caused. Campaigns
    that start in the log's first week are left out, as nothing is known yet of their users, and so are
    those that start in a locked week.

    Attributes:
        user: [N] index into the panel's users.
        campaign: [N] index into ``campaign_ids``.
        start_week: [N] week, from 2, in which the campaign starts for the user; never a locked one.
        days_seen: [N] days of the campaign's window, from 1, that lie in unlocked weeks.
        fully_seen: [N] whether the whole window lies in unlocked weeks.
        features: [N, F] columns of :data:`FEATURES`, computed from days strictly before the start.
        redeemed: [N] whether the user redeemed any offer of the campaign, in an unlocked week.
        campaign_ids: [G] ids of the campaigns that occur, in text order.
        n_weeks: unlocked weeks of the log.
    """

    user: npt.NDArray[np.int64]
    campaign: npt.NDArray[np.int64]
    start_week: npt.NDArray[np.int64]
    days_seen: npt.NDArray[np.int64]
    fully_seen: npt.NDArray[np.bool_]
    features: npt.NDArray[np.float64]
    redeemed: npt.NDArray[np.bool_]
    campaign_ids: npt.NDArray[np.str_]
    n_weeks: int

    def __post_init__(self) -> None:
        n = len(self.user)
        for name in ("user", "campaign", "start_week", "days_seen", "fully_seen", "redeemed"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"TargetingRows.{name} must have the shape of user")
        if self.features.shape != (n, len(FEATURES)):
            raise ValueError(
                f"TargetingRows.features has shape {self.features.shape}, expected {(n, len(FEATURES))}"
            )

    def __len__(self) -> int:
        return len(self.user)

    def save(self, path: Path) -> None:
        """Write the rows as one compressed ``.npz`` without pickled objects; the write is atomic."""
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                user=self.user,
                campaign=self.campaign,
                start_week=self.start_week,
                days_seen=self.days_seen,
                fully_seen=self.fully_seen,
                features=self.features,
                redeemed=self.redeemed,
                campaign_ids=self.campaign_ids,
                n_weeks=np.array(self.n_weeks),
            )
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> TargetingRows:
        """Read rows written by :meth:`save`."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != "n_weeks"}
            return cls(**arrays, n_weeks=int(stored["n_weeks"]))


def targeting_rows(logs: Logs, panel: Panel) -> TargetingRows:
    """Return one row for each user of the panel and campaign that was sent to that user.

    Without campaigns, offers and redemptions the result is empty.

    Args:
        logs: the logs that ``panel`` was built from.
        panel: gives users, profiles and split.

    Raises:
        ValueError: ``panel`` was built from other logs.
    """
    end = panel.split.report_end
    if not {"campaigns", "offers", "redemptions"} <= logs.tables:
        none = np.zeros(0, dtype=np.int64)
        features = np.zeros((0, len(FEATURES)))
        flag = none.astype(bool)
        return TargetingRows(
            none, none, none, none, flag, features, flag, np.zeros(0, dtype=np.str_), n_weeks=end
        )
    with logs.connection.cursor() as cursor:
        n_users = len(create_users(cursor, panel.split))
        if n_users != panel.n_users:
            raise ValueError(f"the panel has {panel.n_users} users, these logs {n_users}: not the same log")
        found = _counts(cursor, logs.first_monday, end)
    campaign_ids, campaign = np.unique(np.asarray(found["campaign_id"], dtype=np.str_), return_inverse=True)
    user = np.asarray(found["user_index"], dtype=np.int64)
    return TargetingRows(
        user=user,
        campaign=campaign.astype(np.int64),
        start_week=np.asarray(found["history_days"], dtype=np.int64) // 7 + 1,
        days_seen=np.asarray(found["days_seen"], dtype=np.int64),
        fully_seen=np.asarray(found["fully_seen"], dtype=np.bool_),
        features=_features(found, (panel.profiles != "")[user]),
        redeemed=np.asarray(found["redeemed"], dtype=np.bool_),
        campaign_ids=campaign_ids,
        n_weeks=end,
    )


def _counts(
    cursor: duckdb.DuckDBPyConnection, first_monday: datetime.date, end: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Return one row of decayed counts for each target; every history join asks for an earlier day."""
    first_day = f"DATE '{first_monday}'"
    last_day = f"DATE '{first_monday + datetime.timedelta(days=7 * end - 1)}'"

    def decayed(half_life: int) -> str:
        age = "date_diff('day', h.day, g.start_day)"
        return f"CAST(power(0.5, {age} / {half_life}.0) AS {_WEIGHT})"

    found = cursor.execute(
        f"""
        WITH sent AS (
            SELECT *, CAST(start AS DATE) AS start_day, CAST("end" AS DATE) AS end_day,
                -- Who is sent it later is not known yet.
                count(*) OVER (PARTITION BY campaign_id ORDER BY CAST(start AS DATE)
                    RANGE UNBOUNDED PRECEDING) AS n_targeted
            FROM campaigns),
        targets AS MATERIALIZED (
            SELECT row_number() OVER () AS target, sent.*, user_index
            FROM sent JOIN panel_users USING (user_id)
            WHERE start_day BETWEEN {first_day} + 7 AND {last_day}),
        lines AS MATERIALIZED (
            SELECT user_id, basket_id, item_id, CAST("timestamp" AS DATE) AS day,
                coupon_discount > 0 AS coupon
            FROM transactions WHERE week <= {end} AND user_id IN (SELECT user_id FROM targets)),
        redeemed_days AS MATERIALIZED (
            SELECT user_id, campaign_id, CAST("timestamp" AS DATE) AS day
            FROM redemptions WHERE week <= {end}),
        trips AS (
            SELECT target, sum({decayed(HALF_LIFE_DAYS)}) AS trips,
                sum({decayed(HALF_LIFE_DAYS)}) FILTER (coupon) AS coupon_trips,
                date_diff('day', max(h.day) FILTER (coupon), any_value(start_day)) AS coupon_days
            FROM targets g JOIN (
                SELECT user_id, basket_id, day, bool_or(coupon) AS coupon FROM lines GROUP BY ALL) h
                ON h.user_id = g.user_id AND h.day < g.start_day
            GROUP BY target),
        covered AS (
            SELECT target, sum({decayed(COVERED_HALF_LIFE_DAYS)}) AS covered
            FROM targets g
            JOIN (SELECT DISTINCT campaign_id, item_id FROM offers) o ON o.campaign_id = g.campaign_id
            JOIN lines h ON h.user_id = g.user_id AND h.item_id = o.item_id AND h.day < g.start_day
            GROUP BY target),
        category_coupons AS (
            SELECT target, sum({decayed(HALF_LIFE_DAYS)}) AS category_coupons
            FROM targets g
            JOIN (SELECT DISTINCT campaign_id, category FROM offers JOIN items USING (item_id)
                WHERE category <> '{UNLISTED}') o ON o.campaign_id = g.campaign_id
            JOIN (SELECT user_id, day, category FROM lines JOIN items USING (item_id) WHERE coupon) h
                ON h.user_id = g.user_id AND h.category = o.category AND h.day < g.start_day
            GROUP BY target),
        redemption_history AS (
            SELECT target, count(*) AS redemptions, count(DISTINCT h.campaign_id) AS campaigns_redeemed
            FROM targets g JOIN redeemed_days h ON h.user_id = g.user_id AND h.day < g.start_day
            GROUP BY target),
        received AS (
            SELECT target, count(*) AS campaigns_received
            FROM targets g JOIN sent h ON h.user_id = g.user_id AND h.start_day < g.start_day
            GROUP BY target),
        outcome AS (
            SELECT DISTINCT target FROM targets g JOIN redeemed_days h
                ON h.user_id = g.user_id AND h.campaign_id = g.campaign_id AND h.day >= g.start_day)
        SELECT user_index, CAST(g.campaign_id AS VARCHAR) AS campaign_id, n_targeted,
            date_diff('day', {first_day}, start_day) AS history_days,
            date_diff('day', start_day, least(end_day, {last_day})) + 1 AS days_seen,
            end_day <= {last_day} AS fully_seen,
            CAST(coalesce(trips, 0) AS DOUBLE) AS trips,
            CAST(coalesce(coupon_trips, 0) AS DOUBLE) AS coupon_trips,
            coalesce(coupon_days, {NEVER_DAYS}) AS coupon_days,
            CAST(coalesce(covered, 0) AS DOUBLE) AS covered,
            CAST(coalesce(category_coupons, 0) AS DOUBLE) AS category_coupons,
            coalesce(redemptions, 0) AS redemptions,
            coalesce(campaigns_redeemed, 0) AS campaigns_redeemed,
            coalesce(campaigns_received, 0) AS campaigns_received,
            coalesce(n_coupons, 0) AS n_coupons,
            target IN (SELECT target FROM outcome) AS redeemed
        FROM targets g
        LEFT JOIN trips USING (target) LEFT JOIN covered USING (target)
        LEFT JOIN category_coupons USING (target) LEFT JOIN redemption_history USING (target)
        LEFT JOIN received USING (target)
        LEFT JOIN (SELECT campaign_id, count(DISTINCT offer_id) AS n_coupons FROM offers GROUP BY ALL) n
            ON n.campaign_id = g.campaign_id
        ORDER BY CAST(g.campaign_id AS VARCHAR), user_index"""
    ).fetchnumpy()
    return {name: np.asarray(values) for name, values in found.items()}


def _features(
    found: Mapping[str, npt.NDArray[np.generic]], profile_known: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return [N, F]. Counts become rates: the history is short early in a log and long late in it."""
    counts = {
        name: np.asarray(values, dtype=np.float64)
        for name, values in found.items()
        if name not in ("campaign_id", "redeemed", "fully_seen")
    }
    weeks = _decayed_weeks(counts["history_days"], HALF_LIFE_DAYS)
    covered_weeks = _decayed_weeks(counts["history_days"], COVERED_HALF_LIFE_DAYS)
    columns = {
        "trips": np.log(counts["trips"] / weeks + _TRIP_FLOOR),
        "coupon_share": counts["coupon_trips"] / (counts["trips"] + _SHARE_PRIOR_TRIPS),
        "coupon_recency": np.log1p(np.minimum(counts["coupon_days"], NEVER_DAYS)),
        "category_coupons": np.log(counts["category_coupons"] / weeks + _CATEGORY_COUPON_FLOOR),
        "redemptions": np.log1p(counts["redemptions"]),
        "redemption_rate": (counts["campaigns_redeemed"] + _RATE_PRIOR)
        / (counts["campaigns_received"] + _RATE_PRIOR_CAMPAIGNS),
        "covered_purchases": np.log(counts["covered"] / covered_weeks + _COVERED_FLOOR),
        "n_coupons": np.log1p(counts["n_coupons"]),
        "n_targeted": np.log(counts["n_targeted"]),
        "profile_known": profile_known.astype(np.float64),
    }
    return np.stack([columns[name] for name in FEATURES], axis=1)


def _decayed_weeks(days: npt.NDArray[np.float64], half_life: int) -> npt.NDArray[np.float64]:
    """Weeks of history of ``days`` days, each day of age a counted as 0.5^(a / half_life): Σ_{a=1}^{days}."""
    ratio = 0.5 ** (1.0 / half_life)
    total: npt.NDArray[np.float64] = ratio * (1.0 - ratio**days) / (1.0 - ratio) / 7.0
    return total
