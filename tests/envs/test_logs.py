"""Bad logs are refused with one message that names the place, the count and an example."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from encoders.panel import Panel
from envs.log_schema import LogError
from envs.logs import open_logs
from envs.panel_from_logs import build_panel
from envs.redemption_rows import redemption_rows
from envs.synthetic import SyntheticConfig, generate

KEY = b"0123456789abcdef"
SMALL = SyntheticConfig(
    n_users=25,
    n_weeks=26,
    n_categories=4,
    n_campaigns=3,
    campaign_categories=2,
    campaign_weeks=6,
    n_stores=2,
    redemption_rate=0.6,
    target_rate=0.6,
)
Frames = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    directory = tmp_path_factory.mktemp("good")
    generate(SMALL, 3, directory)
    return {path.stem: pd.read_parquet(path) for path in directory.glob("*.parquet")}


def write(frames: Frames, directory: Path, suffix: str) -> None:
    directory.mkdir(exist_ok=True)
    for name, frame in frames.items():
        if suffix == "csv":
            frame.to_csv(directory / f"{name}.csv", index=False)
        else:
            frame.to_parquet(directory / f"{name}.parquet", index=False)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> LogError:
    """Open the log, which must fail without writing to its directory or to the working directory."""
    monkeypatch.chdir(directory.parent)
    before = contents(directory.parent)
    with pytest.raises(LogError) as caught:
        open_logs(directory)
    assert contents(directory.parent) == before
    return caught.value


def put(table: str, column: str, rows: list[int], value: object) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frame = frames[table].copy()
        if isinstance(value, str):
            frame[column] = frame[column].astype(object)
        elif isinstance(value, float):
            frame[column] = frame[column].astype(float)
        frame.loc[rows, column] = value  # type: ignore[call-overload]  # any value, on purpose
        frames[table] = frame

    return change


def drop_column(table: str, column: str) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frames[table] = frames[table].drop(columns=column)

    return change


def repeat(table: str, rows: list[int]) -> Callable[[Frames], None]:
    def change(frames: Frames) -> None:
        frame = frames[table]
        frames[table] = pd.concat([frame, frame.iloc[rows]], ignore_index=True)

    return change


@dataclass(frozen=True)
class Bad:
    name: str
    change: Callable[[Frames], None]
    table: str
    column: str
    rows: int | None
    says: tuple[str, ...]
    suffixes: tuple[str, ...] = ("csv", "parquet")


BAD = [
    Bad("missing column", drop_column("transactions", "spend"), "transactions", "spend", None, ("missing",)),
    Bad(
        "missing column of an optional table",
        drop_column("offers", "offer_id"),
        "offers",
        "offer_id",
        None,
        ("missing", "campaign_id, item_id"),
    ),
    Bad(
        "text in a number",
        put("transactions", "spend", [4, 9], "two dollars"),
        "transactions",
        "spend",
        2,
        ("2 rows are not a finite number", "two dollars (row 5)"),
        suffixes=("csv",),
    ),
    Bad(
        "text for a time",
        put("transactions", "timestamp", [6], "yesterday"),
        "transactions",
        "timestamp",
        1,
        ("1 row is not a local date and time", "yesterday (row 7)"),
        suffixes=("csv",),
    ),
    *(
        Bad(
            f"negative {column}",
            put("transactions", column, [1, 3, 5], -1.25),
            "transactions",
            column,
            3,
            ("3 rows are negative", "-1.25 (row 2)"),
        )
        for column in ("spend", "discount", "quantity", "coupon_discount")
    ),
    *(
        Bad(
            f"gap in {column}",
            put("transactions", column, [2], np.nan),
            "transactions",
            column,
            1,
            ("1 row is", "(row 3)"),
        )
        for column in ("spend", "discount", "quantity")
    ),
    *(
        Bad(
            f"infinite {column}",
            put("transactions", column, [2, 7], np.inf),
            "transactions",
            column,
            2,
            ("2 rows are not finite", "inf (row 3)"),
        )
        for column in ("spend", "discount", "quantity")
    ),
    Bad(
        "zero quantity", put("transactions", "quantity", [0], 0), "transactions", "quantity", 1, ("zero", "0")
    ),
    Bad(
        "missing user",
        put("transactions", "user_id", [8], None),
        "transactions",
        "user_id",
        1,
        ("missing", "row 9"),
    ),
    *(
        Bad(
            f"unknown item in {table}",
            put(table, "item_id", [0, 20], "no-such"),
            table,
            "item_id",
            2,
            ("2 rows are unknown", "no such item_id in items", "no-such (row 1)"),
        )
        for table in ("promotions", "offers")
    ),
    Bad(
        "unknown item in transactions",
        put("transactions", "item_id", [0, 200], "no-such"),
        "transactions",
        "item_id",
        2,
        ("2 rows are unknown", "no-such (row 1)"),
    ),
    *(
        Bad(
            f"unknown campaign in {table}",
            put(table, "campaign_id", [3], "c99"),
            table,
            "campaign_id",
            1,
            ("1 row is unknown", "no such campaign_id in campaigns", "c99 (row 4)"),
        )
        for table in ("offers", "redemptions")
    ),
    Bad(
        "duplicate line",
        repeat("transactions", [0, 1]),
        "transactions",
        "basket_id + item_id",
        2,
        ("2 rows are repetitions", "basket_id b"),
    ),
    *(
        Bad(f"duplicate in {table}", repeat(table, [2]), table, column, 1, ("1 row is repetition", "row "))
        for table, column in (
            ("items", "item_id"),
            ("users", "user_id"),
            ("promotions", "item_id + week + store_id"),
            ("campaigns", "user_id + campaign_id"),
            ("offers", "campaign_id + offer_id + item_id"),
            ("redemptions", "user_id + campaign_id + offer_id + timestamp"),
        )
    ),
    Bad(
        "flag",
        put("promotions", "display", [1], "shelf 5"),
        "promotions",
        "display",
        1,
        ("true/false", "shelf 5 (row 2)"),
        suffixes=("csv",),
    ),
    Bad(
        "week of nought",
        put("promotions", "week", [1], 0),
        "promotions",
        "week",
        1,
        ("before week 1", "0 (row 2)"),
    ),
    Bad(
        "fraction of a week",
        put("promotions", "week", [1], "2.5"),
        "promotions",
        "week",
        1,
        ("whole week number", "2.5 (row 2)"),
        suffixes=("csv",),
    ),
    Bad(
        "campaign that ends before it starts",
        put("campaigns", "end", [2], pd.Timestamp("2020-01-01")),
        "campaigns",
        "end",
        1,
        ("before the campaign's start", "2020-01-01"),
    ),
    Bad(
        "propensity",
        put("campaigns", "propensity", [2], 1.5),
        "campaigns",
        "propensity",
        1,
        ("not in (0, 1]", "1.5 (row 3)"),
    ),
]


@pytest.mark.parametrize(
    ("bad", "suffix"),
    [pytest.param(bad, suffix, id=f"{bad.name}-{suffix}") for bad in BAD for suffix in bad.suffixes],
)
def test_a_bad_table_is_refused_with_place_count_and_example(
    good: Frames, bad: Bad, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = dict(good)
    bad.change(frames)
    write(frames, tmp_path / "log", suffix)
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.table, error.column, error.rows) == (bad.table, bad.column, bad.rows), str(error)
    assert str(error).startswith(f"{bad.table}.{bad.column}: ")
    for words in bad.says:
        assert words in str(error)
    if bad.rows is not None:
        assert error.example is not None
        assert error.example in str(error)
    for user_id in good["users"]["user_id"]:
        assert user_id not in str(error), "a message must not hold a user id"


def test_wrong_parquet_type(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(good | {"items": good["items"].assign(item_id=1.5)}, tmp_path / "log", "parquet")
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.table, error.column, error.rows) == ("items", "item_id", len(good["items"]))
    assert error.example == "1.5"
    assert "DOUBLE" in str(error)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_missing_table(good: Frames, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write({name: frame for name, frame in good.items() if name != "items"}, tmp_path / "log", suffix)
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.table, error.column, error.rows) == ("items", None, None)
    assert "items: the table is missing" in str(error)


def test_missing_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such directory" in str(refused(tmp_path / "nowhere", monkeypatch))


def test_two_files_for_one_table(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(good, tmp_path / "log", "parquet")
    write({"users": good["users"]}, tmp_path / "log", "csv")
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.table, error.example) == ("users", "users.parquet and users.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_empty_file(good: Frames, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(good, tmp_path / "log", suffix)
    (tmp_path / "log" / f"transactions.{suffix}").write_bytes(b"")
    error = refused(tmp_path / "log", monkeypatch)
    assert error.table == "transactions"
    assert "the file is empty" in str(error)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_no_rows(good: Frames, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(good | {"transactions": good["transactions"].head(0)}, tmp_path / "log", suffix)
    assert "transactions: the table has no rows" in str(refused(tmp_path / "log", monkeypatch))


def test_corrupt_parquet(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(good, tmp_path / "log", "parquet")
    path = tmp_path / "log" / "transactions.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused(tmp_path / "log", monkeypatch)
    assert error.table == "transactions"
    assert "transactions.parquet cannot be read" in str(error)


def test_corrupt_page_of_parquet(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose footer is whole, so that only reading the values finds the damage."""
    write(good, tmp_path / "log", "parquet")
    path = tmp_path / "log" / "transactions.parquet"
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(bytes(data))
    assert "transactions.parquet cannot be read" in str(refused(tmp_path / "log", monkeypatch))


def test_ragged_csv(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(good, tmp_path / "log", "csv")
    with (tmp_path / "log" / "transactions.csv").open("a") as file:
        file.write("u000001,b1,too,few\n")
    error = refused(tmp_path / "log", monkeypatch)
    assert error.table == "transactions"
    assert "u000001" not in str(error)


def test_week_without_transactions(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = good["transactions"]["timestamp"]
    monday = pd.Timestamp(SMALL.first_monday)
    kept = good["transactions"][~((times - monday).dt.days // 7).isin([8, 9, 20])]
    write(good | {"transactions": kept}, tmp_path / "log", "parquet")
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.table, error.column, error.rows) == ("transactions", "timestamp", 3)
    assert "3 weeks are without any transaction, of 26 in the log" in str(error)
    assert error.example == "week 9, which starts on 2024-02-26"


def test_log_too_short(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = pd.Timestamp(SMALL.first_monday) + pd.Timedelta(weeks=25)
    frame = good["transactions"]
    write(good | {"transactions": frame[frame["timestamp"] < last]}, tmp_path / "log", "parquet")
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.table, error.column) == ("transactions", "timestamp")
    assert "25 weeks, at least 26" in str(error)


def test_basket_of_two_users(good: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = good["transactions"].copy()
    basket = frame["basket_id"].value_counts().index[0]
    rows = frame.index[frame["basket_id"] == basket]
    frame.loc[rows[0], "user_id"] = "u999999"
    write(good | {"transactions": frame}, tmp_path / "log", "csv")
    error = refused(tmp_path / "log", monkeypatch)
    assert (error.column, error.rows, error.example) == ("basket_id", len(rows), f"basket {basket}")


def same(left: Panel, right: Panel) -> bool:
    names = (name for name in left.__dataclass_fields__ if name != "split")
    return left.split == right.split and all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in names
    )


def test_csv_equals_parquet(good: Frames, tmp_path: Path) -> None:
    panels, rows = [], []
    for suffix in ("csv", "parquet"):
        write(good, tmp_path / suffix, suffix)
        with open_logs(tmp_path / suffix) as logs:
            panels.append(build_panel(logs, n_categories=3, pseudonym_key=KEY))
            rows.append(redemption_rows(logs, panels[-1]))
            columns = "user_id, basket_id, timestamp, item_id, quantity, spend, discount, store_id, week"
            order = "SELECT {} FROM transactions ORDER BY basket_id, item_id"
            table = logs.connection.execute(order.format(columns)).fetchall()
            assert len(table) == len(good["transactions"])
    assert same(*panels)
    assert len(rows[0]) > 0
    for name in rows[0].__dataclass_fields__:
        assert np.array_equal(getattr(rows[0], name), getattr(rows[1], name))


def test_weeks_start_on_the_monday_before_the_first_transaction(good: Frames, tmp_path: Path) -> None:
    frame = good["transactions"]
    later = frame[frame["timestamp"] >= "2024-01-03"]
    write(good | {"transactions": later}, tmp_path / "log", "parquet")
    with open_logs(tmp_path / "log") as logs:
        assert logs.first_monday == datetime.date(2024, 1, 1)
        assert logs.n_weeks == 26
        weeks = logs.connection.execute("SELECT week, basket_id FROM transactions").fetchall()
    expected = dict(
        zip(
            later["basket_id"],
            (later["timestamp"] - pd.Timestamp("2024-01-01")).dt.days // 7 + 1,
            strict=True,
        )
    )
    assert all(expected[basket] == week for week, basket in weeks)


def test_hash_follows_the_content_and_notes_tell_what_was_ignored(good: Frames, tmp_path: Path) -> None:
    hashes = []
    for name, spend in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        frame = good["transactions"].copy()
        frame.loc[0, "spend"] = spend
        frame["cashier"] = "x"
        write(good | {"transactions": frame, "weather": good["users"]}, tmp_path / name, "parquet")
        with open_logs(tmp_path / name) as logs:
            hashes.append(logs.content_hash)
            assert any("cashier" in note for note in logs.notes)
            assert any("weather.parquet" in note for note in logs.notes)
    assert hashes[0] == hashes[1] != hashes[2]


def test_threads_are_limited(good: Frames, tmp_path: Path) -> None:
    write(good, tmp_path / "log", "parquet")
    with open_logs(tmp_path / "log", threads=1) as logs:
        assert logs.connection.execute("SELECT current_setting('threads')").fetchall() == [(1,)]


def test_synthetic_source_is_reproducible_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        open_logs("synthetic", seed=1, synthetic=SMALL) as one,
        open_logs("synthetic", seed=1, synthetic=SMALL) as same_seed,
        open_logs("synthetic", seed=2, synthetic=SMALL) as other,
    ):
        assert one.content_hash == same_seed.content_hash != other.content_hash
        total = "SELECT sum(spend), count(*) FROM transactions"
        totals = [logs.connection.execute(total).fetchall() for logs in (one, same_seed, other)]
        assert totals[0][0][1] == totals[1][0][1]
        assert totals[0] != totals[2]
        assert not list(tmp_path.iterdir())
