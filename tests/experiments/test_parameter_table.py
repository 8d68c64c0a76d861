from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.response_data import ResponseData
from envs.assumptions import ASSUMED_RANGES
from experiments.fitted_run import FittedRun
from experiments.parameter_table import assumed_parameters, fitted_parameters

NONE = np.zeros(0, dtype=np.bool_)


def rows_of(run: FittedRun, redeemed: np.ndarray = NONE) -> dict[str, dict[str, Any]]:
    rows = fitted_parameters(run.heads, ResponseData.of_panel(run.panel), redeemed)
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def test_effects_are_calibrated_in_natural_units_with_their_spread(fitted_run: FittedRun) -> None:
    heads, rows = fitted_run.heads, rows_of(fitted_run)
    expected = {
        "depth effect": 1.2 * np.log1p(np.exp(heads.depth_level.double().numpy())) / 0.1,
        "display effect": 1.2 * heads.display_effect.double().numpy() / 0.1,
        "mailer effect": 1.2 * heads.mailer_effect.double().numpy() / 0.1,
        "text match": 1.2 * heads.match_weight.double().numpy(),
        "spend deviation": np.exp(heads.spend_log_deviation.double().numpy()),
    }
    for name, values in expected.items():
        among = rows[name]["by_category"]
        assert rows[name]["value"] == pytest.approx(values.mean(), rel=1e-5)
        assert among["spread"] == pytest.approx(values.std(), rel=1e-4)
        assert among["lowest"] == pytest.approx(values.min(), rel=1e-5)
        assert among["highest"] == pytest.approx(values.max(), rel=1e-5)
        assert among["lowest_category"] == f"food cat {values.argmin()}"
        assert among["highest_category"] == f"food cat {values.argmax()}"


def test_scalars_have_no_spread(fitted_run: FittedRun) -> None:
    rows = rows_of(fitted_run, np.array([True, False, False, False]))
    assert rows["redemption"]["value"] == 0.25
    assert "4 purchases" in rows["redemption"]["source"]
    assert rows["other spend"]["value"] == 0.25
    assert rows["further trips"]["value"] == pytest.approx(float(fitted_run.heads.trips_bias.exp()))
    assert rows["purchase calibration, slope"]["value"] == pytest.approx(1.2)
    for name in ("redemption", "other spend", "further trips", "weekly shock, visit", "visit trend"):
        assert "by_category" not in rows[name]


def test_sources_name_the_weeks(fitted_run: FittedRun) -> None:
    rows = rows_of(fitted_run)
    assert rows["display effect"]["source"] == "fitted on weeks up to 13, calibrated on weeks 14-17"
    assert rows["basket effect"]["source"] == "matched to pairs of purchases in weeks up to 17"
    assert rows["further trips"]["source"] == "fitted on weeks up to 13, level calibrated on weeks 14-17"
    assert all(row["unit"] and row["meaning"] for row in rows.values())


def test_where_the_logs_are_silent_the_source_says_prior(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    display, once = panel.display.copy(), panel.visited.astype(np.uint8)
    display[:, :2] = 0.3
    # Only a week that is not trained on varies.
    depth = np.full_like(panel.promotion_depth, 0.1)
    depth[-1] = 0.2
    silent = replace(
        fitted_run,
        panel=replace(
            panel, mailer=np.zeros_like(panel.mailer), display=display, promotion_depth=depth, trips=once
        ),
    )
    rows = rows_of(silent)
    assert rows["mailer effect"]["source"] == "prior: mailer does not vary in these logs"
    assert rows["depth effect"]["source"] == "prior: shelf discount does not vary in these logs"
    assert rows["depth effect on spend"]["source"] == rows["depth effect"]["source"]
    assert rows["display effect"]["source"].endswith("in 2 of 5, where it does not vary")
    assert rows["further trips"]["source"].startswith("prior: ")
    assert rows["redemption"]["source"] == "prior: these logs hold no redemptions"
    expected = float(torch.sigmoid(fitted_run.heads.redemption_bias))
    assert rows["redemption"]["value"] == pytest.approx(expected)


def test_assumed_ranges_are_all_there() -> None:
    rows = assumed_parameters()
    assert {row["name"] for row in rows} == set(ASSUMED_RANGES)
    assert all(row["low"] <= row["central"] <= row["high"] and row["source"] for row in rows)
