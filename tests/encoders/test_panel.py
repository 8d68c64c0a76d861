from __future__ import annotations

import datetime
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.panel import Panel
from encoders.weeks import LOCKED_WEEKS, MINIMUM_WEEKS, WeekSplit


def content(panel: Panel) -> dict[str, Any]:
    return {f.name: getattr(panel, f.name) for f in fields(Panel)}


def test_split_of_complete_journey() -> None:
    assert WeekSplit.of_log(53) == WeekSplit(train_end=40, tune_end=44, report_end=48)


@given(st.integers(MINIMUM_WEEKS, 600))
def test_no_split_reaches_the_locked_weeks(weeks: int) -> None:
    split = WeekSplit.of_log(weeks)
    assert 0 < split.train_end < split.tune_end < split.report_end == weeks - LOCKED_WEEKS


@pytest.mark.parametrize("weeks", [0, 1, MINIMUM_WEEKS - 1])
def test_a_short_log_is_refused(weeks: int) -> None:
    with pytest.raises(ValueError, match=f"covers {weeks} weeks; at least {MINIMUM_WEEKS}"):
        WeekSplit.of_log(weeks)


@pytest.mark.parametrize("ends", [(0, 1, 2), (5, 5, 6), (5, 8, 7)])
def test_a_split_must_increase(ends: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must increase"):
        WeekSplit(*ends)


def test_save_and_load_give_the_same_panel(panel: Panel, tmp_path: Path) -> None:
    panel = replace(panel, first_day=datetime.date(2018, 7, 2))
    panel.save(tmp_path / "panel.npz")
    loaded = Panel.load(tmp_path / "panel.npz")
    assert (loaded.split, loaded.first_day) == (panel.split, datetime.date(2018, 7, 2))
    assert loaded.first_week_of_year == 27
    for name, value in content(panel).items():
        if name not in ("split", "first_day"):
            np.testing.assert_array_equal(getattr(loaded, name), value)
            assert getattr(loaded, name).dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["panel.npz"]


@pytest.mark.parametrize("weeks_off", [-1, 1])
def test_a_panel_with_a_locked_week_is_refused(panel: Panel, weeks_off: int) -> None:
    split = WeekSplit(panel.split.train_end, panel.split.tune_end, panel.split.report_end + weeks_off)
    with pytest.raises(ValueError, match=f"may hold only the {split.report_end} unlocked"):
        Panel(**{**content(panel), "split": split})


@pytest.mark.parametrize(
    "name", [f.name for f in fields(Panel) if f.name not in ("bought", "split", "first_day")]
)
def test_a_wrong_shape_is_named(panel: Panel, name: str) -> None:
    with pytest.raises(ValueError, match=rf"Panel\.{name} has shape"):
        Panel(**{**content(panel), name: getattr(panel, name)[1:]})
