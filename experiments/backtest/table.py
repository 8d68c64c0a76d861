"""The table of the backtest: each measure beside its peer, its interval and its bar.

A bar is met only if the figure reaches it and, for a difference from a peer, the 95% interval excludes 0.
A row without a peer gives the interval of its value, and its bar is one for the value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.backtest.scores import Scores, percentile_interval

Row = dict[str, Any]

LOG_LOSS_BAR = -0.01
"""Log loss at least 1% below LightGBM's, as a share of LightGBM's."""
AUC_BAR = 0.003
"""AUC at least this much above LightGBM's."""
CALIBRATION_BAR = 0.004
"""Most calibration error over all rows."""
CELL_CALIBRATION_BAR = 0.02
"""Most calibration error in any cell."""
REDEMPTION_BAR = 0.82
"""Least AUC of redemption among targeted households."""

_LOWER_IS_BETTER = ("log_loss", "ece")


def comparison_row(
    subject: str,
    measure: str,
    ours: Scores,
    peer: str,
    peers: Scores,
    *,
    bar: float | None,
    relative: bool = False,
) -> Row:
    """Return a measure of the model, of a peer, and their difference with its paired interval.

    Args:
        subject: what is predicted.
        measure: log loss and ECE are better lower, the others higher.
        ours: the model's scores.
        peer: name of the peer.
        peers: its scores on the same rows and draws.
        bar: the difference to reach; None where nothing is asked.
        relative: give the difference as a share of the peer's value.
    """
    a, b = ours.values[measure], peers.values[measure]
    difference = (a - b) / b if relative else a - b
    low, high = percentile_interval(difference[1:])
    met: bool | None = None
    if bar is not None:
        lower = measure in _LOWER_IS_BETTER
        met = bool(difference[0] <= bar and high < 0) if lower else bool(difference[0] >= bar and low > 0)
    name = f"{subject}: {measure.replace('_', ' ')}" + (", relative" if relative else "")
    return _row(name, float(a[0]), peer, float(b[0]), float(difference[0]), low, high, bar, met)


def purchase_table(scores: dict[str, Scores]) -> list[Row]:
    """Return the rows of purchases in the week, from scores of "model" and its peers.

    The bars are against LightGBM calibrated on the tuning weeks as the model is; as fitted it stands beside.
    """
    ours, rows = scores["model"], []
    bars: dict[str, dict[str, float | None]] = {
        "lightgbm": {"log_loss": LOG_LOSS_BAR, "auc": AUC_BAR, "average_precision": 0.0},
        "lightgbm_uncalibrated": {"log_loss": None, "auc": None, "average_precision": None},
        "no_text": {"log_loss": 0.0, "auc": None, "average_precision": None},
    }
    for peer, asked in bars.items():
        for measure, bar in asked.items():
            relative = measure == "log_loss"
            rows.append(
                comparison_row("purchase", measure, ours, peer, scores[peer], bar=bar, relative=relative)
            )
    return rows


def visit_table(scores: dict[str, Scores]) -> list[Row]:
    """Return the rows of visits, from scores of "model", "rfm" and "lightgbm"."""
    return [
        comparison_row("visit", measure, scores["model"], peer, scores[peer], bar=0.0)
        for peer in ("rfm", "lightgbm")
        for measure in ("auc", "log_loss")
    ]


def calibration_table(ours: Scores, cells: list[Row]) -> list[Row]:
    """Return the rows of calibration error: over all rows, and in the worst cell if there are cells.

    The interval is of the error itself. It leans upwards: noise of resampling mostly adds to an error.
    """
    value = ours.point()["ece"]
    low, high = ours.interval("ece")
    met = value <= CALIBRATION_BAR
    rows = [_row("calibration error (ECE)", value, None, None, None, low, high, CALIBRATION_BAR, met)]
    if cells:
        worst = max(cells, key=lambda cell: float(cell["ece"]))
        name = f"calibration error, worst of {len(cells)} cells: {worst['cell']}"
        value, met = worst["ece"], worst["ece"] <= CELL_CALIBRATION_BAR
        rows.append(_row(name, value, None, None, None, None, None, CELL_CALIBRATION_BAR, met))
    return rows


def promotion_table(responses: list[Row]) -> list[Row]:
    """Return the rows of the response to promotion; met if the model lies in the logs' 95% interval.

    The interval is that of the difference: the logs' estimate with its standard error, the model as it is.
    Own slopes stand beside it without a bar.
    """
    rows = []
    for response in responses:
        name = f"{response['name']} semi-elasticity"
        rows.append(_response_row(name, "two-way fixed effects", response, 0.0, response["inside"]))
        rows.append(_response_row(name, "own slopes of categories", response["own_slopes"], None, None))
    return rows


def redemption_table(redemption: Row) -> list[Row]:
    """Return the row of redemption by targeted households, if it could be fitted and judged.

    The interval is of the AUC itself. A few hundred redemptions leave it wide, so the point alone decides;
    where the interval spans the bar, the measure says so.
    """
    if "model" not in redemption:
        return []
    model, name = redemption["model"], "redemption by targeted households: AUC"
    low, high = model["auc_low"], model["auc_high"]
    if low < REDEMPTION_BAR < high:
        name += " (interval spans the bar)"
    met = model["auc"] >= REDEMPTION_BAR
    return [_row(name, model["auc"], None, None, None, low, high, REDEMPTION_BAR, met)]


def _response_row(name: str, peer: str, figures: Row, bar: float | None, met: bool | None) -> Row:
    model, estimate = figures["model"], figures["estimate"]
    low, high = model - figures["ci_high"], model - figures["ci_low"]
    return _row(name, model, peer, estimate, model - estimate, low, high, bar, met)


def _row(
    measure: str,
    value: float,
    peer: str | None,
    peer_value: float | None,
    difference: float | None,
    low: float | None,
    high: float | None,
    bar: float | None,
    met: bool | None,
) -> Row:
    row = {
        "measure": measure,
        "value": value,
        "peer": peer,
        "peer_value": peer_value,
        "difference": difference,
        "ci_low": low,
        "ci_high": high,
        "bar": bar,
        "met": met,
    }
    # JSON has no NaN: what is not defined (one class only, promotion that does not vary) is absent.
    return {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in row.items()}
