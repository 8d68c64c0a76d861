from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.backtest.scores import Scores
from experiments.backtest.table import (
    CALIBRATION_BAR,
    calibration_table,
    comparison_row,
    promotion_table,
    purchase_table,
    redemption_table,
    visit_table,
)

NOISE = np.linspace(-1, 1, 201)


def scores(value: float, spread: float = 0.0, **others: float) -> Scores:
    """All measures at ``value``, resampled evenly within ``spread`` around it."""
    names = ("log_loss", "auc", "average_precision", "ece")
    resampled = {name: others.get(name, value) + spread * NOISE for name in names}
    return Scores({name: np.concatenate([[others.get(name, value)], v]) for name, v in resampled.items()})


@pytest.mark.parametrize(
    ("measure", "ours", "spread", "bar", "met"),
    [
        ("auc", 0.810, 0.001, 0.003, True),
        ("auc", 0.802, 0.001, 0.003, False),  # sure, but too little
        ("auc", 0.810, 0.020, 0.003, False),  # enough, but not sure
        ("auc", 0.790, 0.001, 0.0, False),
        ("log_loss", 0.790, 0.001, -0.003, True),
        ("log_loss", 0.799, 0.0005, -0.003, False),
        ("log_loss", 0.790, 0.020, -0.003, False),
        ("log_loss", 0.810, 0.001, 0.0, False),
        ("auc", 0.810, 0.001, None, None),
    ],
)
def test_a_bar_needs_the_point_and_the_interval(
    measure: str, ours: float, spread: float, bar: float | None, met: bool | None
) -> None:
    row = comparison_row("visit", measure, scores(ours, spread), "peer", scores(0.8), bar=bar)
    assert row["met"] is met
    assert row["difference"] == pytest.approx(ours - 0.8)
    assert row["ci_low"] == pytest.approx(ours - 0.8 - 0.95 * spread)
    assert row["ci_high"] == pytest.approx(ours - 0.8 + 0.95 * spread)


def test_a_relative_difference_is_a_share_of_the_peer() -> None:
    row = comparison_row("x", "log_loss", scores(0.9), "peer", scores(1.2), bar=-0.01, relative=True)
    assert row["difference"] == pytest.approx(-0.25)
    assert row["measure"] == "x: log loss, relative"


def test_noise_that_both_share_cancels() -> None:
    row = comparison_row("x", "auc", scores(0.81, 0.1), "peer", scores(0.80, 0.1), bar=0.0)
    assert row["ci_low"] == pytest.approx(row["ci_high"]) == pytest.approx(0.01)
    assert row["met"] is True


def test_purchases_and_visits_are_set_beside_each_peer() -> None:
    names = ("model", "lightgbm", "lightgbm_uncalibrated", "no_text")
    table = purchase_table({name: scores(0.5) for name in names})
    assert [(row["peer"], row["bar"]) for row in table] == [
        ("lightgbm", -0.01),
        ("lightgbm", 0.003),
        ("lightgbm", 0.0),
        *[("lightgbm_uncalibrated", None)] * 3,
        ("no_text", 0.0),
        ("no_text", None),
        ("no_text", None),
    ]
    assert not any(row["met"] for row in table)
    visits = visit_table({"model": scores(0.5), "rfm": scores(0.4), "lightgbm": scores(0.6)})
    assert [row["met"] for row in visits] == [True, False, False, True]


def test_the_worst_cell_is_named() -> None:
    cells = [{"cell": "a", "ece": 0.01}, {"cell": "b", "ece": 0.03}]
    overall, worst = calibration_table(scores(0.5, ece=CALIBRATION_BAR), cells)
    assert overall["met"] is True
    assert worst["measure"].endswith("worst of 2 cells: b")
    assert worst["met"] is False
    assert len(calibration_table(scores(0.5), [])) == 1


def test_promotion_is_met_inside_the_interval_and_absent_where_it_does_not_vary() -> None:
    nan = float("nan")
    known = {"estimate": 2.0, "ci_low": 1.5, "ci_high": 2.5, "model": 2.2, "inside": True}
    unknown = {"estimate": nan, "ci_low": nan, "ci_high": nan, "model": 0.1, "inside": None}
    rows = promotion_table(
        [
            {"name": "depth", **known, "own_slopes": known},
            {"name": "mailer", **unknown, "own_slopes": unknown},
        ]
    )
    assert [row["measure"].split()[0] for row in rows] == ["depth", "depth", "mailer", "mailer"]
    assert (rows[0]["difference"], rows[0]["ci_low"], rows[0]["ci_high"]) == pytest.approx((0.2, -0.3, 0.7))
    assert [row["met"] for row in rows] == [True, None, None, None]
    assert rows[2]["peer_value"] is None
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(
    ("auc", "low", "high", "met", "spans"),
    [
        (0.85, 0.83, 0.87, True, False),
        (0.83, 0.80, 0.86, True, True),  # the point decides; the name says how sure it is
        (0.81, 0.79, 0.84, False, True),
        (0.70, 0.65, 0.75, False, False),
    ],
)
def test_redemption_is_met_by_its_point(auc: float, low: float, high: float, met: bool, spans: bool) -> None:
    (row,) = redemption_table({"rows": 9, "model": {"auc": auc, "auc_low": low, "auc_high": high}})
    assert row["measure"].startswith("redemption by targeted households: AUC")
    assert ("interval spans the bar" in row["measure"]) == spans
    assert (row["value"], row["ci_low"], row["ci_high"], row["bar"]) == (auc, low, high, 0.82)
    assert row["met"] is met
    assert row["peer"] is None


def test_redemption_that_was_not_judged_has_no_row() -> None:
    assert redemption_table({"rows": 0}) == []
    assert redemption_table({"rows": 5, "note": "fewer than two training campaigns"}) == []
