from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset


def small() -> LoggedDataset:
    """Users 7, 7, 9 in campaigns 1, 2, 1, with 3, 1 and 2 weeks."""
    behaviour = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]] * 2)
    action = np.array([0, 2, 0, 1, 1, 0])
    return LoggedDataset(
        observation=np.arange(12, dtype=np.float32).reshape(6, 2),
        action=action,
        mask=behaviour > 0,
        propensity=behaviour[np.arange(6), action],
        reward=np.arange(6.0),
        cost=np.full(6, 0.5),
        next_observation=np.arange(12, dtype=np.float32).reshape(6, 2) + 2,
        terminated=np.array([False, False, True, True, False, False]),
        truncated=np.array([False, False, False, False, False, True]),
        user=np.array([7, 7, 7, 7, 9, 9]),
        campaign=np.array([1, 1, 1, 2, 1, 1]),
        week=np.array([3, 4, 5, 9, 4, 5]),
        dual_price=np.full(6, 0.25),
        observation_names=("recency", "spend"),
        propensity_source="logged",
        behaviour_probabilities=behaviour,
    )


def test_episodes_are_user_campaign_pairs() -> None:
    log = small()
    assert (log.n_steps, log.n_offers, log.n_episodes) == (6, 3, 3)
    assert log.episode.tolist() == [0, 0, 0, 1, 2, 2]
    assert log.position.tolist() == [0, 1, 2, 0, 0, 1]
    assert log.is_last.tolist() == [False, False, True, True, False, True]
    assert log.episode_slices() == [slice(0, 3), slice(3, 4), slice(4, 6)]


def test_weeks_to_go_count_to_the_end_of_the_campaign_not_of_the_episode() -> None:
    log = small()
    assert log.weeks_to_go.tolist() == [2, 1, 0, 0, 1, 0]
    shorter = replace(log, week=np.array([3, 4, 5, 9, 1, 2]))
    assert shorter.weeks_to_go.tolist() == [2, 1, 0, 0, 4, 3]


@pytest.mark.parametrize("behaviour_known", [True, False])
def test_parquet_round_trip_is_exact(tmp_path: Path, behaviour_known: bool) -> None:
    log = small() if behaviour_known else replace(small(), behaviour_probabilities=None)
    log.save(tmp_path / "log.parquet")
    loaded = LoggedDataset.load(tmp_path / "log.parquet")
    for item in fields(LoggedDataset):
        before, after = getattr(log, item.name), getattr(loaded, item.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]
    names = pq.read_schema(tmp_path / "log.parquet").names
    assert {"observation_recency", "next_observation_spend", "mask_2", "propensity"} <= set(names)


def test_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.parquet"
    small().save(path)
    before = path.read_bytes()

    def half_written(table: object, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", half_written)
    with pytest.raises(OSError, match="disk full"):
        small().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    small().save(path)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["cost"]), path)
    with pytest.raises(LoggedDataError, match="column cost is missing"):
        LoggedDataset.load(path)
    nulls = pa.array([1.0, None, 1.0, 1.0, None, 1.0])
    pq.write_table(table.set_column(table.column_names.index("cost"), "cost", nulls), path)
    with pytest.raises(LoggedDataError, match="column cost has 2 nulls"):
        LoggedDataset.load(path)
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(LoggedDataError, match="metadata is missing"):
        LoggedDataset.load(path)
    for damaged in (b"{}", b"{x", b"3", b'{"observation_names": ["a"], "n_offers": "many"}'):
        pq.write_table(table.replace_schema_metadata({b"couponlab.logged_dataset": damaged}), path)
        with pytest.raises(LoggedDataError, match="its metadata is damaged"):
            LoggedDataset.load(path)
    typed = table.set_column(table.column_names.index("mask_1"), "mask_1", pa.array([1, 0, 1, 1, 0, 1]))
    pq.write_table(typed, path)
    with pytest.raises(LoggedDataError, match="mask_1 has dtype int64, expected bool"):
        LoggedDataset.load(path)
    words = pa.array(["1.0", "2.0", "x", "1.0", "1.0", "1.0"])
    pq.write_table(table.set_column(table.column_names.index("cost"), "cost", words), path)
    with pytest.raises(LoggedDataError, match=r"cost: row 0 is '1\.0': is not of type float64"):
        LoggedDataset.load(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(LoggedDataError, match="not a readable Parquet file"):
        LoggedDataset.load(path)
    with pytest.raises(LoggedDataError, match="no such file"):
        LoggedDataset.load(tmp_path / "absent.parquet")


def changed(name: str, row: int | tuple[int, int], value: Any) -> Callable[[], dict[str, Any]]:
    def change() -> dict[str, Any]:
        array = getattr(small(), name).copy()
        array[row] = value
        return {name: array}

    return change


BAD_INPUT: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "shape": (lambda: {"reward": np.zeros(5)}, r"reward has shape \(5,\), expected \(6,\)"),
    "mask shape": (lambda: {"mask": np.ones(6, dtype=np.bool_)}, r"mask has shape \(6,\)"),
    "no offers": (lambda: {"mask": np.ones((6, 0), dtype=np.bool_)}, r"mask has shape \(6, 0\)"),
    "dtype": (lambda: {"cost": np.zeros(6, dtype=np.float32)}, "cost has dtype float32, expected float64"),
    "observation width": (lambda: {"observation_names": ("a",)}, r"observation has shape \(6, 2\)"),
    "names as a list": (lambda: {"observation_names": ["a", "b"]}, "must be a tuple of texts"),
    "names that are numbers": (lambda: {"observation_names": (1, 2)}, "must be a tuple of texts"),
    "mixed types": (
        lambda: {"reward": np.array([0.0, 1.0, "2", 3.0, None, 5.0], dtype=np.object_)},
        r"reward: row 2 is '2': is not of type float64 \(2 such\)",
    ),
    "truth values among numbers": (
        lambda: {"cost": np.array([0.0, True, 2.0, 3.0, 4.0, 5.0], dtype=np.object_)},
        "cost: row 1 is True: is not of type float64",
    ),
    "mixed matrix": (
        lambda: {"mask": np.array([[True, 1, True]] * 6, dtype=np.object_)},
        r"mask\[1\]: row 0 is 1: is not of type bool",
    ),
    "untyped": (lambda: {"cost": np.zeros(6, dtype=np.object_)}, "cost has dtype object, expected float64"),
    "observation names": (lambda: {"observation_names": ("a", "a")}, "observation_names repeat"),
    "source": (lambda: {"propensity_source": "guessed"}, "propensity_source is 'guessed'"),
    "not finite": (changed("reward", 2, np.nan), r"reward: row 2 is nan: must be finite \(1 such\)"),
    "matrix entry": (changed("observation", (4, 1), np.inf), r"observation\[1\]: row 4 is inf"),
    "zero propensity": (changed("propensity", 3, 0.0), r"propensity: row 3 is 0.0: must lie in \(0, 1\]"),
    "large propensity": (changed("propensity", 3, 1.5), "propensity: row 3 is 1.5"),
    "propensity of another offer": (changed("propensity", 0, 0.4), "row 0 is 0.4: differs from behaviour"),
    "negative price": (changed("dual_price", 1, -1.0), "dual_price: row 1 is -1.0"),
    "action range": (changed("action", 1, 3), r"action: row 1 is 3: must lie in 0..2"),
    "masked action": (changed("mask", (0, 0), False), "action: row 0 is 0: was masked out"),
    "masked behaviour": (changed("mask", (0, 1), False), "behaviour_probabilities: row 0 is 0.5"),
    "row sum": (changed("behaviour_probabilities", (1, 0), 0.1), "behaviour_probabilities: row 1 is 0.9"),
    "negative probability": (changed("behaviour_probabilities", (1, 0), -0.2), r"probabilities\[0\]: row 1"),
    "week gap": (changed("week", 2, 6), "week: row 2 is 6: must follow the row above"),
    "week order": (changed("week", 0, 4), "week: row 1 is 4"),
    "early end": (changed("terminated", 0, True), "terminated: row 0 is True: may stand only"),
    "early cut": (changed("truncated", 4, True), "truncated: row 4 is True: may stand only"),
    "open end": (changed("truncated", 5, False), "truncated: row 5 is False: must be set"),
    "scattered": (
        lambda: {
            "user": np.array([7, 7, 7, 9, 7, 7]),
            "campaign": np.array([1, 1, 1, 1, 1, 1]),
            "week": np.array([3, 4, 5, 5, 6, 7]),
        },
        "user: row 4 is 7: comes back",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_with_row_and_column(case: str) -> None:
    change, message = BAD_INPUT[case]
    with pytest.raises(LoggedDataError, match=message):
        replace(small(), **change())
