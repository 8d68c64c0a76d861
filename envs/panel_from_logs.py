"""Turns validated logs into the weekly panel. This is the door at which user ids become pseudonyms.

Every query keeps only weeks up to the split's ``report_end`` *before* it aggregates: the locked weeks
are read by nothing here, not even through an average.
"""

from __future__ import annotations

import hashlib
import hmac

import duckdb
import numpy as np
import numpy.typing as npt

from encoders.panel import FloatArray, Panel
from encoders.weeks import WeekSplit
from envs.log_schema import UNLISTED, quoted
from envs.logs import Logs

MINIMUM_KEY_BYTES = 16
_WEEKS_PER_QUERY = 8

# Sums of floats depend on the order in which threads meet the rows. Sums of decimals are exact, so the
# same log gives the same panel to the last bit, and stages can trust its hash.
_MONEY = "DECIMAL(18, 4)"
_FRACTION = "DECIMAL(38, 15)"


def build_panel(logs: Logs, *, n_categories: int, pseudonym_key: bytes) -> Panel:
    """Aggregate the unlocked weeks of ``logs``.

    Users are those with at least one purchase in the train weeks, in the order of their raw ids, so that
    the order does not depend on the key. Categories are the ``n_categories`` (fewer if the log has
    fewer) that most users bought in the train weeks, most bought first.

    Promotion depth is a fixed-weight index: each item's share of its category's
    train-period sales at shelf price, times the item's chain-level discount rate of the week,
    sum(discount) / sum(spend + discount). Where an item did not sell, its last seen rate is carried
    forward; before its first sale its rate is unknown, and the other items' shares are scaled up.

    Args:
        logs: validated logs.
        n_categories: most categories to model.
        pseudonym_key: secret of at least 16 bytes; whoever has it can link pseudonyms to user ids.

    Raises:
        ValueError: the key is too short, or ``n_categories`` < 1.
    """
    if n_categories < 1:
        raise ValueError(f"n_categories must be at least 1, is {n_categories}")
    split = WeekSplit.of_log(logs.n_weeks)
    with logs.connection.cursor() as cursor:
        raw_ids = create_users(cursor, split)
        names, departments = _create_categories(cursor, split, n_categories)
        shape = (len(raw_ids), split.report_end, len(names))
        trips, coupon_used, basket_spend = _visits(cursor, split, shape)
        bought, category_spend = _purchases(cursor, split, shape)
        _create_shares(cursor, split)
        display, mailer = _promotions(cursor, logs, split, shape)
        return Panel(
            user_ids=np.array(pseudonyms(raw_ids, pseudonym_key)),
            profiles=_profiles(cursor, logs, len(raw_ids)),
            categories=np.array(names),
            departments=np.array(departments),
            bought=bought,
            visited=trips > 0,
            trips=trips,
            coupon_used=coupon_used,
            basket_spend=basket_spend,
            category_spend=category_spend,
            promotion_depth=_depth(cursor, split, shape),
            display=display,
            mailer=mailer,
            split=split,
            first_day=logs.first_monday,
        )


def pseudonyms(user_ids: list[str], key: bytes) -> list[str]:
    """Return a pseudonym for each id: HMAC-SHA256 (RFC 2104) cut to 64 bits, 16 hexadecimal digits.

    Raises:
        ValueError: the key is shorter than 16 bytes, or two ids collide.
    """
    if len(key) < MINIMUM_KEY_BYTES:
        # User ids are few and guessable: with a guessable key the hash could be reversed by trying all.
        raise ValueError(f"the pseudonym key has {len(key)} bytes; at least {MINIMUM_KEY_BYTES} are needed")
    digests = [hmac.new(key, user_id.encode(), hashlib.sha256).hexdigest()[:16] for user_id in user_ids]
    if len(set(digests)) < len(set(user_ids)):
        raise ValueError("two user ids have the same pseudonym; choose another key")
    return digests


def create_users(cursor: duckdb.DuckDBPyConnection, split: WeekSplit) -> list[str]:
    """Create the temporary table ``panel_users`` (user_id, user_index) and return the raw ids in order."""
    cursor.execute(
        "CREATE TEMP TABLE panel_users AS SELECT user_id,"
        " row_number() OVER (ORDER BY CAST(user_id AS VARCHAR)) - 1 AS user_index"
        f" FROM (SELECT DISTINCT user_id FROM transactions WHERE week <= {split.train_end})"
    )
    rows = cursor.execute("SELECT CAST(user_id AS VARCHAR) FROM panel_users ORDER BY user_index").fetchall()
    return [str(row[0]) for row in rows]


def _create_categories(
    cursor: duckdb.DuckDBPyConnection, split: WeekSplit, n_categories: int
) -> tuple[list[str], list[str]]:
    """Create ``panel_categories`` (category, category_index); return names and departments."""
    cursor.execute(
        "CREATE TEMP TABLE panel_categories AS SELECT category, row_number() OVER"
        " (ORDER BY count(DISTINCT user_id) DESC, category) - 1 AS category_index"
        " FROM transactions JOIN items USING (item_id)"
        f" WHERE week <= {split.train_end} AND category <> '{UNLISTED}'"
        f" GROUP BY category ORDER BY category_index LIMIT {n_categories}"
    )
    # A category can straddle departments: the one with most items names it.
    rows = cursor.execute(
        "SELECT category, first(department ORDER BY n DESC, department) FROM panel_categories"
        " LEFT JOIN (SELECT category, coalesce(department, '') AS department, count(*) AS n"
        " FROM items GROUP BY ALL) USING (category) GROUP BY category, category_index ORDER BY category_index"
    ).fetchall()
    return [str(row[0]) for row in rows], [str(row[1]) for row in rows]


def _visits(
    cursor: duckdb.DuckDBPyConnection, split: WeekSplit, shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], FloatArray]:
    """Return trips, whether a coupon was used, and spend, each [n, T]."""
    found = cursor.execute(
        f"SELECT user_index, week - 1 AS week, CAST(sum(CAST(spend AS {_MONEY})) AS DOUBLE) AS spend,"
        " least(count(DISTINCT basket_id), 255) AS trips,"
        " bool_or(coupon_discount > 0) AS coupon"
        f" FROM transactions JOIN panel_users USING (user_id) WHERE week <= {split.report_end} GROUP BY ALL"
    ).fetchnumpy()
    index = found["user_index"], found["week"]
    trips, coupon = np.zeros(shape[:2], dtype=np.uint8), np.zeros(shape[:2], dtype=bool)
    spend = np.zeros(shape[:2], dtype=np.float32)
    trips[index] = found["trips"]
    coupon[index] = found["coupon"]
    spend[index] = found["spend"]
    return trips, coupon, spend


def _purchases(
    cursor: duckdb.DuckDBPyConnection, split: WeekSplit, shape: tuple[int, int, int]
) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    found = cursor.execute(
        "SELECT user_index, week - 1 AS week, category_index,"
        f" CAST(sum(CAST(spend AS {_MONEY})) AS DOUBLE) AS spend FROM transactions"
        " JOIN panel_users USING (user_id) JOIN items USING (item_id) JOIN panel_categories USING (category)"
        f" WHERE week <= {split.report_end} GROUP BY ALL"
    ).fetchnumpy()
    bought, spend = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.float32)
    index = found["user_index"], found["week"], found["category_index"]
    bought[index] = True
    spend[index] = found["spend"]
    return bought, spend


def _create_shares(cursor: duckdb.DuckDBPyConnection, split: WeekSplit) -> None:
    """Create ``panel_shares``: each item's share of its category's train-period sales at shelf price."""
    sales = f"sum(CAST(spend AS {_MONEY}) + CAST(discount AS {_MONEY}))"
    cursor.execute(
        "CREATE TEMP TABLE panel_shares AS SELECT item_id, category_index,"
        " CAST(sales AS DOUBLE) / CAST(sum(sales) OVER (PARTITION BY category_index) AS DOUBLE) AS share FROM"
        f" (SELECT item_id, category_index, {sales} AS sales FROM transactions JOIN items USING (item_id)"
        f" JOIN panel_categories USING (category) WHERE week <= {split.train_end} GROUP BY ALL)"
        " WHERE sales > 0"
    )


def _depth(cursor: duckdb.DuckDBPyConnection, split: WeekSplit, shape: tuple[int, int, int]) -> FloatArray:
    # An item's rate is a step function of the week, so only its steps are aggregated: the change of
    # share * rate at each week of sale, and the share itself at the first. Their running sums over the
    # weeks are the index and the share of the items whose rate is known.
    found = cursor.execute(
        f"""
        WITH rates AS (
            SELECT item_id, category_index, share, week,
                CAST(sum(CAST(discount AS {_MONEY})) AS DOUBLE)
                    / CAST(sum(CAST(spend AS {_MONEY}) + CAST(discount AS {_MONEY})) AS DOUBLE) AS rate
            FROM transactions JOIN panel_shares USING (item_id)
            WHERE week <= {split.report_end} GROUP BY ALL
            HAVING sum(CAST(spend AS {_MONEY}) + CAST(discount AS {_MONEY})) > 0),
        steps AS (
            SELECT *, lag(rate) OVER (PARTITION BY item_id ORDER BY week) AS before FROM rates)
        SELECT week - 1 AS week, category_index,
            CAST(sum(CAST(share * (rate - coalesce(before, 0)) AS {_FRACTION})) AS DOUBLE) AS index_step,
            CAST(sum(CAST(CASE WHEN before IS NULL THEN share ELSE 0 END AS {_FRACTION})) AS DOUBLE)
                AS known_step
        FROM steps GROUP BY ALL"""
    ).fetchnumpy()
    steps = np.zeros((2, *shape[1:]))
    steps[0][found["week"], found["category_index"]] = found["index_step"]
    steps[1][found["week"], found["category_index"]] = found["known_step"]
    index, known = np.cumsum(steps, axis=1)
    depth: npt.NDArray[np.float64] = np.divide(index, known, out=np.zeros_like(index), where=known > 0)
    return depth.clip(0.0, 1.0).astype(np.float32)


def _promotions(
    cursor: duckdb.DuckDBPyConnection, logs: Logs, split: WeekSplit, shape: tuple[int, int, int]
) -> tuple[FloatArray, FloatArray]:
    """Return display and mailer, each [T, C]: sales-weighted share promoted in the mean covered store."""
    shares = np.zeros((2, *shape[1:]))
    covered = np.zeros(shape[1], dtype=bool)
    if "promotions" not in logs.tables:
        return shares[0].astype(np.float32), shares[1].astype(np.float32)
    # A few weeks at a time: a large log's promotions, grouped all at once, need gigabytes.
    for first in range(1, split.report_end + 1, _WEEKS_PER_QUERY):
        last = min(first + _WEEKS_PER_QUERY - 1, split.report_end)
        found = cursor.execute(
            f"""
            WITH seen AS MATERIALIZED (
                SELECT item_id, store_id, week, display, mailer FROM promotions
                WHERE week BETWEEN {first} AND {last}),
            coverage AS (
                -- Rows without a store speak of the whole chain, as one store.
                SELECT week, greatest(count(DISTINCT store_id), 1) AS stores FROM seen GROUP BY week),
            promoted AS (
                SELECT week, category_index,
                    sum(CAST(share AS {_FRACTION})) FILTER (display) AS display,
                    sum(CAST(share AS {_FRACTION})) FILTER (mailer) AS mailer
                FROM seen JOIN panel_shares USING (item_id) GROUP BY ALL)
            SELECT week - 1 AS week, coalesce(category_index, -1) AS category_index,
                coalesce(CAST(display AS DOUBLE) / stores, 0) AS display,
                coalesce(CAST(mailer AS DOUBLE) / stores, 0) AS mailer
            FROM coverage LEFT JOIN promoted USING (week)"""
        ).fetchnumpy()
        covered[found["week"]] = True
        known = found["category_index"] >= 0
        index = found["week"][known], found["category_index"][known]
        shares[0][index], shares[1][index] = found["display"][known], found["mailer"][known]
    # A week that no store reports is unknown, not unpromoted: the train weeks' mean stands in for it.
    train = np.arange(shape[1]) < split.train_end
    if (covered & train).any():
        shares[:, ~covered] = shares[:, covered & train].mean(axis=1, keepdims=True)
    clipped = np.clip(shares, 0.0, 1.0).astype(np.float32)
    return clipped[0], clipped[1]


def _profiles(cursor: duckdb.DuckDBPyConnection, logs: Logs, n_users: int) -> npt.NDArray[np.str_]:
    """Return [n] texts such as ``age 45-54, income 50-74K``; what is not known is left out."""
    profiles = [""] * n_users
    if "users" in logs.tables:
        described = cursor.execute("DESCRIBE users").fetchall()
        names = [str(row[0]) for row in described if row[0] != "user_id"]
        columns = "".join(f", {quoted(name)}" for name in names)
        labels = [name.replace("_", " ") for name in names]
        rows = cursor.execute(
            f"SELECT user_index{columns} FROM users JOIN panel_users USING (user_id)"
        ).fetchall()
        for index, *values in rows:
            known = zip(labels, values, strict=True)
            profiles[index] = ", ".join(f"{label} {value}" for label, value in known if value is not None)
    return np.array(profiles, dtype=np.str_)
