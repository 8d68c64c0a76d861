from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest

from agents import decide
from agents.decide import DECIDE_BATCH, decide_file
from agents.offer_network import OfferNetwork
from agents.serving import BundleError, CouponPolicy, DecisionInputError, ObservationPolicy
from envs.campaign import MarketSpec
from envs.offers import Catalogue

Rows = npt.NDArray[np.float32]


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path
    network: OfferNetwork
    market: MarketSpec


@pytest.fixture
def policy(exported: Exported) -> CouponPolicy:
    return CouponPolicy.load(exported.folder)


@pytest.fixture
def folder(exported: Exported) -> Path:
    return Path(exported.folder)


def table(policy: CouponPolicy, rows: Rows, user_id: Any = None) -> dict[str, Any]:
    ids = pyarrow.array([f"u{k}" for k in range(len(rows))]) if user_id is None else user_id
    return {"user_id": ids} | {name: rows[:, k] for k, name in enumerate(policy.columns)}


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


# Round trips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_decisions_of_a_file_are_those_of_its_rows(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path, suffix: str
) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows))
    out = tmp_path / f"out{suffix}"
    done: list[int] = []
    assert decide_file(folder, users, out, seed=4, on_users=done.append) == len(rows) == sum(done)
    decided = policy.decide_rows(rows, rng=np.random.default_rng(4))
    probabilities = policy.probabilities(rows)
    for k, line in enumerate(read(out)):
        assert list(line) == ["user_id", "offer", "offer_name", "propensity"]
        assert line["user_id"] == f"u{k}"
        assert line["offer"] == decided.offer[k]
        assert line["offer_name"] == policy.offers[line["offer"]]
        assert line["propensity"] == pytest.approx(float(probabilities[k, line["offer"]]), rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["users.parquet", out.name])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    "ids",
    [
        pyarrow.array([2**62, -3, 0], pyarrow.int64()),
        pyarrow.array([7, 8, 2**32 - 1], pyarrow.uint32()),
        pyarrow.array(["007", "顾客", 'quo"te']),
        pyarrow.array(["a", "b", "a"]).dictionary_encode(),
    ],
    ids=["int64", "uint32", "text", "categorical"],
)
def test_user_ids_come_back_as_they_were(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path, ids: Any, suffix: str
) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows[:3], ids))
    out = tmp_path / f"out{suffix}"
    decide_file(folder, users, out)
    assert [line["user_id"] for line in read(out)] == ids.to_pylist()
    if suffix == ".parquet":
        assert pyarrow.parquet.read_schema(out).field("user_id").type == ids.type


def test_the_seed_decides(policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows))
    contents = []
    for number, seed in enumerate((1, 1, 2)):
        decide_file(folder, users, tmp_path / f"{number}.jsonl", seed=seed)
        contents.append((tmp_path / f"{number}.jsonl").read_text())
    assert contents[0] == contents[1] != contents[2]


def test_columns_may_come_in_any_order_and_type(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path
) -> None:
    columns = table(policy, rows)
    mixed = {"extra": ["x"] * len(rows)} | dict(reversed(columns.items()))
    for name in policy.columns:
        if name.startswith("allowed"):
            mixed[name] = columns[name] > 0.5
        elif name.startswith("cost"):
            mixed[name] = columns[name].astype(np.float64)
        elif name == "weeks_left":
            mixed[name] = columns[name].astype(np.int8)
    decide_file(folder, write(tmp_path / "plain.parquet", columns), tmp_path / "plain.jsonl", seed=1)
    decide_file(folder, write(tmp_path / "mixed.parquet", mixed), tmp_path / "mixed.jsonl", seed=1)
    assert (tmp_path / "plain.jsonl").read_text() == (tmp_path / "mixed.jsonl").read_text()


# The dual price ------------------------------------------------------------------------------------


def test_where_the_dual_price_comes_from(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path
) -> None:
    place = policy.columns.index("log_dual_price")
    columns = table(policy, rows)
    own = write(tmp_path / "own.parquet", columns)
    del columns["log_dual_price"]
    bare = write(tmp_path / "bare.parquet", columns)

    def expected(price: float) -> list[int]:
        priced = rows.copy()
        priced[:, place] = np.log(price)
        offers: list[int] = policy.decide_rows(priced, rng=np.random.default_rng(0)).offer.tolist()
        return offers

    def decided(users: Path, dual_price: float | None) -> list[int]:
        decide_file(folder, users, tmp_path / "out.jsonl", seed=0, dual_price=dual_price)
        return [line["offer"] for line in read(tmp_path / "out.jsonl")]

    assert decided(own, None) == policy.decide_rows(rows, rng=np.random.default_rng(0)).offer.tolist()
    assert decided(bare, None) == expected(0.2)  # the bundle's own
    assert decided(bare, 2.0) == decided(own, 2.0) == expected(2.0)
    assert expected(2.0) != expected(0.2)
    for price in (0.0, -1.0, float("nan")):
        with pytest.raises(DecisionInputError, match="dual price must be > 0"):
            decided(own, price)
    with pytest.raises(DecisionInputError, match="log_dual_price"):
        decided(own, float("inf"))


# Batches -------------------------------------------------------------------------------------------


def test_a_large_file_is_read_in_bounded_batches(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 2 * DECIDE_BATCH + 100
    many = np.tile(rows, (n // len(rows) + 1, 1))[:n]
    users = write(tmp_path / "users.parquet", table(policy, many, np.arange(n)), row_group_size=5000)
    sizes = []
    lay_out = decide._observation

    def counted(batch: Any, *rest: Any) -> Any:
        sizes.append(batch.num_rows)
        return lay_out(batch, *rest)

    monkeypatch.setattr(decide, "_observation", counted)
    assert decide_file(folder, users, tmp_path / "out.parquet", seed=9) == n
    assert len(sizes) >= 3
    assert max(sizes) <= DECIDE_BATCH
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert np.array_equal(written["user_id"].to_numpy(), np.arange(n))
    # Batches leave no trace in the draws.
    whole = policy.decide_rows(many, rng=np.random.default_rng(9))
    assert np.array_equal(written["offer"].to_numpy(), whole.offer)
    np.testing.assert_allclose(written["propensity"].to_numpy(), whole.propensity, rtol=1e-5)


def test_no_users_are_no_decisions(policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows[:0], pyarrow.array([], pyarrow.string())))
    for suffix in (".parquet", ".jsonl"):
        assert decide_file(folder, users, tmp_path / f"out{suffix}") == 0
        assert read(tmp_path / f"out{suffix}") == []


# Errors --------------------------------------------------------------------------------------------


def refused(folder: Path, users: Path, error: type[BaseException], match: str | None) -> None:
    """Refused with a message, leaving neither a part of a file nor a changed one."""
    before = {path.name for path in users.parent.iterdir()}
    for suffix in (".parquet", ".jsonl"):
        out = users.parent / f"old{suffix}"
        out.write_text("yesterday's decisions")
        with pytest.raises(error, match=match):
            decide_file(folder, users, out)
        assert out.read_text() == "yesterday's decisions"
        out.unlink()
    assert {path.name for path in users.parent.iterdir()} == before


def test_missing_columns_are_named(policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path) -> None:
    columns = table(policy, rows)
    del columns["fatigue"], columns["cost_3"]
    users = write(tmp_path / "users.parquet", columns)
    refused(
        folder, users, DecisionInputError, r"users\.parquet: 2 columns are missing, for example 'fatigue'"
    )
    columns = table(policy, rows)
    del columns["user_id"]
    refused(folder, write(users, columns), DecisionInputError, "for example 'user_id'")


def test_what_is_not_a_number_is_named_by_file_column_and_row(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path
) -> None:
    # In the third batch: the row is counted from the start of the file.
    n = 2 * DECIDE_BATCH + 50
    many = np.tile(rows, (n // len(rows) + 1, 1))[:n]
    bad = 2 * DECIDE_BATCH + 7
    many[bad, 3] = np.nan
    users = write(tmp_path / "users.parquet", table(policy, many, np.arange(n)))
    match = rf"users\.parquet: column '{policy.columns[3]}', row {bad}: nan is not a finite number"
    refused(folder, users, DecisionInputError, match)


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("fatigue", pyarrow.array([None, 0.5], pyarrow.float64()), "column 'fatigue', row 0: nan"),
        ("weeks_left", pyarrow.array([3, None], pyarrow.int64()), "column 'weeks_left', row 1: nan"),
        ("fatigue", pyarrow.array(["high", "low"]), "column 'fatigue' does not hold numbers"),
        ("fatigue", pyarrow.array(["0.1", "0.2"]), "column 'fatigue' does not hold numbers"),
        ("fatigue", pyarrow.array([1, 2], pyarrow.timestamp("us")), "column 'fatigue' does not hold numbers"),
        ("fatigue", pyarrow.array([[1.0], [2.0]]), "column 'fatigue' does not hold numbers"),
        ("fatigue", pyarrow.array([1e300, 0.5]), "column 'fatigue', row 0: inf"),
        ("allowed_0", pyarrow.array([1, 0]), "row 1: .*allowed"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_bad_column_is_named(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path, column: str, values: Any, match: str
) -> None:
    columns = table(policy, rows[:2])
    if column == "allowed_0":
        columns |= {f"allowed_{k}": np.zeros(2) for k in range(len(Catalogue.built_in()))}
    columns[column] = values
    refused(
        folder, write(tmp_path / "users.parquet", columns), DecisionInputError, rf"users\.parquet: .*{match}"
    )


def test_what_is_not_parquet_is_refused(folder: Path, tmp_path: Path) -> None:
    users = tmp_path / "users.parquet"
    for content in (b"", b"user_id,fatigue\n1,0.5\n", b"PAR1 and nothing more PAR1"):
        users.write_bytes(content)
        refused(folder, users, DecisionInputError, "not a readable Parquet file")
    users.unlink()
    refused(folder, users, DecisionInputError, "not a readable Parquet file")


def test_a_truncated_file_leaves_nothing_behind(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path
) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows))
    content = bytearray(users.read_bytes())
    content[4:2000] = bytes(1996)
    users.write_bytes(bytes(content))
    refused(folder, users, DecisionInputError, r"users\.parquet")


def test_a_bad_bundle_and_a_bad_output_name_are_refused_first(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path
) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows))
    refused(tmp_path / "none", users, BundleError, "is not an exported policy")
    for name in ("out.csv", "out", "out.parquet.gz"):
        with pytest.raises(DecisionInputError, match=r"write to a \.parquet or \.jsonl file"):
            decide_file(folder, users, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_an_interruption_leaves_nothing_behind(
    policy: CouponPolicy, folder: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = write(tmp_path / "users.parquet", table(policy, rows))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ObservationPolicy, "decide", interrupt)
    refused(folder, users, KeyboardInterrupt, None)
