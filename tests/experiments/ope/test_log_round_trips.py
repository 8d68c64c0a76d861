"""What is written is what is read, to the last bit: Parquet and Minari, for arbitrary valid logs."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from experiments.ope.logged_dataset import LoggedDataError, LoggedDataset
from experiments.ope.minari_format import from_minari, to_minari


def floats(draw: st.DrawFn, shape: int | tuple[int, int], width: int = 64) -> npt.NDArray[Any]:
    """Any finite values, subnormal ones and -0.0 among them."""
    dtype = np.float32 if width == 32 else np.float64
    elements = st.floats(allow_nan=False, allow_infinity=False, width=32 if width == 32 else 64)
    return draw(hnp.arrays(dtype, shape, elements=elements))


@st.composite
def logs(draw: st.DrawFn, *, most_features: int = 2, fewest_features: int = 0) -> LoggedDataset:
    """Logs of one to four episodes with any weeks, masks, propensities and money."""
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    n, k = sum(lengths), draw(st.integers(1, 3))
    o = draw(st.integers(fewest_features, most_features))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = draw(
        st.lists(
            st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
            min_size=len(lengths),
            max_size=len(lengths),
            unique=True,
        )
    )
    user, campaign = (np.repeat(np.array([pair[i] for pair in pairs]), lengths) for i in (0, 1))
    position = np.concatenate([np.arange(length) for length in lengths])
    start = np.repeat(rng.integers(-10, 500, size=len(lengths)), lengths)
    last = np.zeros(n, dtype=np.bool_)
    last[np.cumsum(lengths) - 1] = True
    terminated = last & (rng.random(n) < 0.5)
    action = rng.integers(0, k, size=n)
    mask = rng.random((n, k)) < 0.6
    mask[np.arange(n), action] = True
    weight = np.where(mask, rng.random((n, k)) + 0.01, 0.0)
    probabilities = weight / weight.sum(axis=1, keepdims=True)
    known = draw(st.booleans())
    observation = floats(draw, (n, o), 32)
    following = np.roll(observation, -1, axis=0) if draw(st.booleans()) else floats(draw, (n, o), 32)
    names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=4)
    return LoggedDataset(
        observation=observation,
        action=action.astype(np.int64),
        mask=mask,
        propensity=probabilities[np.arange(n), action],
        reward=floats(draw, n),
        cost=floats(draw, n),
        next_observation=following,
        terminated=terminated,
        truncated=last & ~terminated,
        user=user.astype(np.int64),
        campaign=campaign.astype(np.int64),
        week=(start + position).astype(np.int64),
        dual_price=np.abs(floats(draw, n)),
        observation_names=tuple(draw(st.lists(names, min_size=o, max_size=o, unique=True))),
        propensity_source=draw(st.sampled_from(["logged", "estimated"])),
        behaviour_probabilities=probabilities if known else None,
    )


def assert_same(before: LoggedDataset, after: LoggedDataset) -> None:
    for item in fields(LoggedDataset):
        one, other = getattr(before, item.name), getattr(after, item.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, item.name
            assert one.shape == other.shape, item.name
            # By bytes: -0.0 equals 0.0 but is not the same.
            assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes(), item.name
        else:
            assert one == other, item.name


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(log=logs())
def test_parquet_gives_back_what_it_was_given(log: LoggedDataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log.save(Path(folder) / "log.parquet")
        assert_same(log, LoggedDataset.load(Path(folder) / "log.parquet"))


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(log=logs(fewest_features=1))
def test_minari_gives_back_what_it_was_given(log: LoggedDataset) -> None:
    pytest.importorskip("minari")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        written = to_minari(log, "coupons/log-v0")
        assert written.total_episodes == log.n_episodes
        assert written.total_steps == log.n_steps
        assert_same(log, from_minari(written))
        assert_same(log, from_minari("coupons/log-v0"))


def three_weeks() -> LoggedDataset:
    return LoggedDataset(
        observation=np.array([[1.0], [2.0], [3.0]], dtype=np.float32),
        action=np.array([0, 1, 0]),
        mask=np.ones((3, 2), dtype=np.bool_),
        propensity=np.full(3, 0.5),
        reward=np.array([4.0, 5.0, 6.0]),
        cost=np.zeros(3),
        next_observation=np.array([[2.0], [3.0], [9.0]], dtype=np.float32),
        terminated=np.array([False, False, True]),
        truncated=np.zeros(3, dtype=np.bool_),
        user=np.zeros(3, dtype=np.int64),
        campaign=np.zeros(3, dtype=np.int64),
        week=np.array([7, 8, 9]),
        dual_price=np.zeros(3),
        observation_names=("recency",),
        propensity_source="logged",
    )


def test_an_episode_of_minari_is_one_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    to_minari(three_weeks(), "coupons/three-v0")
    episode = minari.load_dataset("coupons/three-v0")[0]
    assert episode.observations.ravel().tolist() == [1, 2, 3, 9]
    assert episode.actions.tolist() == [0, 1, 0]
    assert episode.rewards.tolist() == [4, 5, 6]
    assert episode.terminations.tolist() == [False, False, True]
    assert episode.infos["week"].tolist() == [7, 8, 9, 9]
    assert "next_observation" not in episode.infos


def test_minari_data_of_others_and_half_written_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    storage = to_minari(three_weeks(), "coupons/three-v0").storage
    metadata = storage.data_path / "metadata.json"
    metadata.write_text(metadata.read_text().replace("couponlab_logged_dataset", "something_else"))
    with pytest.raises(LoggedDataError, match="not a log that to_minari has written to its end"):
        from_minari(minari.load_dataset("coupons/three-v0"))


def test_minari_needs_observations() -> None:
    pytest.importorskip("minari")
    log = three_weeks()
    empty = np.zeros((3, 0), dtype=np.float32)
    without = {name: getattr(log, name) for name in (item.name for item in fields(log))}
    without |= {"observation": empty, "next_observation": empty, "observation_names": ()}
    with pytest.raises(LoggedDataError, match="without observation columns"):
        to_minari(LoggedDataset(**without), "coupons/none-v0")


def test_without_minari_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(LoggedDataError, match=r"pip install couponlab\[minari\]"):
        to_minari(three_weeks(), "coupons/three-v0")
