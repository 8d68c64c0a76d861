from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from agents import decide_events as module
from agents.decide_events import SCHEMA, decide_events
from agents.serving import BundleError, Context, CouponPolicy, DecisionInputError, user_from_json

CONTEXT = Context(week=20, weeks_left=4)


class Exported(Protocol):
    """The fixture of conftest.py, which cannot be imported."""

    folder: Path


def users(count: int) -> list[dict[str, Any]]:
    first = datetime.datetime(2018, 3, 5, 18, 30)
    return [
        {
            "user_id": f"u{k}",
            "profile": "age 35-44" if k % 2 else None,
            "opted_in": k % 3 > 0,
            "transactions": [
                {
                    "timestamp": (first + datetime.timedelta(days=5 * j)).isoformat(),
                    "basket_id": f"{k}-{j}",
                    "item_id": f"i{(k + j) % 12:02d}0",
                    "spend": 1.25 * j,
                }
                for j in range(k % 7)
            ],
            "offers": [{"timestamp": "2018-04-30", "offer": "push only"}] if k % 4 == 0 else [],
        }
        for k in range(count)
    ]


def in_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    for row in rows:
        for line in row["transactions"]:
            line["timestamp"] = datetime.datetime.fromisoformat(line["timestamp"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


@pytest.mark.parametrize("source", ["users.parquet", "users.jsonl"])
@pytest.mark.parametrize("target", ["out.parquet", "out.jsonl"])
def test_a_file_is_decided_as_its_users_are(
    exported: Exported, tmp_path: Path, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS_BATCH", 16)
    path = in_file(tmp_path / source, users(50))
    done: list[int] = []
    out = tmp_path / target
    assert decide_events(exported.folder, path, out, CONTEXT, seed=3, on_users=done.append) == 50
    assert done == [16, 16, 16, 2]
    policy = CouponPolicy.load(exported.folder)
    asked = [
        user_from_json({name: value for name, value in row.items() if value is not None}) for row in users(50)
    ]
    expected = policy.decide(asked, CONTEXT, rng=np.random.default_rng(3)).records()
    found = read(out)
    assert [list(row) for row in found] == [SCHEMA.names] * 50
    for row, record in zip(found, expected, strict=True):
        record["reasons"] = [reason["code"] for reason in record["reasons"]]
        assert row.pop("propensity") == pytest.approx(record.pop("propensity"), abs=1e-6)
        assert row == record
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([source, target])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"user_id": "a", "transactions": [{"timestamp": "2018-03-05", "item_id": "1"}]}],
            r"row 0.transactions\[0\] lacks basket_id",
        ),
        ([{"user_id": "a"}, {"user_id": "a"}], r"users\[1\] has the id of an earlier one"),
        ([{"user_id": "a"}, {"age": 3}], "row 1 has an unknown key 'age'"),
        ([{"user_id": "a"}, 7], "row 1 must be an object"),
    ],
)
def test_a_row_that_is_no_user_is_named_and_nothing_written(
    exported: Exported, tmp_path: Path, rows: list[Any], said: str
) -> None:
    path = in_file(tmp_path / "users.jsonl", rows)
    with pytest.raises(DecisionInputError, match=f"users.jsonl: {said}"):
        decide_events(exported.folder, path, tmp_path / "out.jsonl", CONTEXT)
    assert [one.name for one in tmp_path.iterdir()] == ["users.jsonl"]


def test_files_that_cannot_be_read_are_named(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def refused(name: str, content: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecisionInputError, match=said):
            decide_events(exported.folder, tmp_path / name, out, CONTEXT)
        assert not out.exists()

    refused("a.jsonl", b'{"user_id": "a"}\n{"user_id"', "line 2 is not JSON")
    refused("b.jsonl", b"\xff\xfe", "not readable as JSON lines")
    refused("c.parquet", b"PAR1", "not a readable Parquet file")
    pyarrow.parquet.write_table(pyarrow.table({"user_id": ["a"], "uplift_1": [0.0]}), tmp_path / "d.parquet")
    with pytest.raises(DecisionInputError, match="unknown column 'uplift_1'"):
        decide_events(exported.folder, tmp_path / "d.parquet", out, CONTEXT)
    with pytest.raises(DecisionInputError, match=r"write to a \.parquet or \.jsonl file"):
        decide_events(exported.folder, tmp_path / "a.jsonl", tmp_path / "out.csv", CONTEXT)
    with pytest.raises(BundleError):
        decide_events(tmp_path, tmp_path / "a.jsonl", out, CONTEXT)
