"""Rows for the redemption model: covered purchases by targeted users, and whether they used the coupon."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from encoders.panel import Panel
from envs.log_schema import TYPE_A
from envs.logs import Logs
from envs.panel_from_logs import create_users

REDEMPTION_DAYS = 2
"""How far, in days, the recorded redemption may lie from the purchase: the logs date it separately."""


@dataclass(frozen=True)
class RedemptionRows:
    """N covered purchases, ordered by user, week, campaign and category.

    One row stands for one targeted user, campaign, week inside the campaign's window, and category in
    which the user then bought an item that the campaign's offers cover. It describes redemption *given*
    targeting and purchase; it says nothing on what the campaign caused.

    Attributes:
        user: [N] index into the panel's users.
        week: [N] week, from 1, never a locked one.
        category: [N] index into the panel's categories.
        redeemed: [N] whether the user redeemed an offer of the campaign that covers the category, within
            two days of such a purchase.
        campaign: [N] index into ``campaign_ids``.
        campaign_ids: [G] ids of the campaigns that occur, in text order.
    """

    user: npt.NDArray[np.int64]
    week: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    redeemed: npt.NDArray[np.bool_]
    campaign: npt.NDArray[np.int64]
    campaign_ids: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        for field in fields(self)[:-1]:
            if getattr(self, field.name).shape != self.user.shape:
                raise ValueError(f"RedemptionRows.{field.name} must have the shape of user")

    def __len__(self) -> int:
        return len(self.user)


def redemption_rows(logs: Logs, panel: Panel) -> RedemptionRows:
    """Return the covered purchases of the panel's users in its unlocked weeks.

    Campaigns of type ``Type A`` are left out: their logs tell the pool of offers, not which a user was
    sent. Without campaigns, offers and redemptions the result is empty.

    Args:
        logs: the logs that ``panel`` was built from.
        panel: gives users, categories and split.

    Raises:
        ValueError: ``panel`` was built from other logs.
    """
    if not {"campaigns", "offers", "redemptions"} <= logs.tables:
        none = np.zeros(0, dtype=np.int64)
        return RedemptionRows(none, none, none, none.astype(bool), none, np.zeros(0, dtype=np.str_))
    end = panel.split.report_end
    with logs.connection.cursor() as cursor:
        n_users = len(create_users(cursor, panel.split))
        if n_users != panel.n_users:
            raise ValueError(f"the panel has {panel.n_users} users, these logs {n_users}: not the same log")
        cursor.execute("CREATE TEMP TABLE panel_categories (category VARCHAR, category_index BIGINT)")
        cursor.execute(
            "INSERT INTO panel_categories SELECT unnest(?), unnest(range(?))",
            [panel.categories.tolist(), panel.n_categories],
        )
        found = cursor.execute(
            f"""
            WITH covered AS (  -- which offers of a campaign cover something in a category
                SELECT DISTINCT campaign_id, offer_id, item_id, category_index
                FROM offers JOIN items USING (item_id) JOIN panel_categories USING (category)),
            bought AS (
                SELECT DISTINCT p.user_id, user_index, c.campaign_id, week, category_index,
                    CAST(t."timestamp" AS DATE) AS day
                FROM (SELECT * FROM transactions WHERE week <= {end}) t
                JOIN panel_users p ON p.user_id = t.user_id
                JOIN campaigns c ON c.user_id = t.user_id
                    AND CAST(t."timestamp" AS DATE) BETWEEN CAST(c.start AS DATE) AND CAST(c."end" AS DATE)
                JOIN (SELECT DISTINCT campaign_id, item_id, category_index FROM covered) o
                    ON o.campaign_id = c.campaign_id AND o.item_id = t.item_id
                WHERE c.campaign_type IS DISTINCT FROM '{TYPE_A}'),
            redeemed AS (
                SELECT DISTINCT r.user_id, r.campaign_id, category_index, CAST(r."timestamp" AS DATE) AS day
                FROM (SELECT * FROM redemptions WHERE week <= {end}) r
                JOIN (SELECT DISTINCT campaign_id, offer_id, category_index FROM covered) o
                    ON o.campaign_id = r.campaign_id AND o.offer_id = r.offer_id)
            SELECT user_index, b.week, b.category_index, CAST(b.campaign_id AS VARCHAR) AS campaign_id,
                bool_or(r.day IS NOT NULL) AS redeemed
            FROM bought b LEFT JOIN redeemed r
                ON r.user_id = b.user_id AND r.campaign_id = b.campaign_id
                AND r.category_index = b.category_index
                AND abs(date_diff('day', b.day, r.day)) <= {REDEMPTION_DAYS}
            GROUP BY user_index, b.week, b.category_index, b.campaign_id
            ORDER BY user_index, b.week, CAST(b.campaign_id AS VARCHAR), b.category_index"""
        ).fetchnumpy()
    campaign_ids, campaign = np.unique(np.asarray(found["campaign_id"], dtype=np.str_), return_inverse=True)
    return RedemptionRows(
        user=np.asarray(found["user_index"], dtype=np.int64),
        week=np.asarray(found["week"], dtype=np.int64),
        category=np.asarray(found["category_index"], dtype=np.int64),
        redeemed=np.asarray(found["redeemed"], dtype=np.bool_),
        campaign=campaign.astype(np.int64),
        campaign_ids=campaign_ids,
    )
