"""Calibration where it matters to a coupon policy: by shelf depth, display, and how often the user buys.

A model can be calibrated on average and wrong just where promotion is deep or the user is rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encoders.response_data import ResponseData
from experiments.backtest.predictions import own_frequency
from experiments.backtest.scores import N_BINS, expected_calibration_error, reliability_bins

DoubleArray = npt.NDArray[np.float64]

LEAST_ROWS = 2_000
"""Rows of the smallest cell, and of the smallest bin in one. In fewer, chance alone would take a perfectly
calibrated model beyond any useful bar: at a rate of 0.3, bins of 180 rows miss by 0.027 on average."""

_QUANTILES = {"depth": (1 / 3, 2 / 3), "display": (0.5,), "own rate": (0.5, 0.8, 0.95)}
"""Cuts of each band: thirds of shelf depth, halves of display; half of all rows are of categories that the
user hardly ever buys, so own rates are cut where purchases are."""


def calibration_cells(
    probability: DoubleArray, data: ResponseData, weeks: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the calibration error in each depth × display × own-rate cell of at least LEAST_ROWS rows.

    Args:
        probability: [W, n, C] purchase in the week.
        data: labels, states and calendar.
        weeks: W of them, 0-based.

    Returns:
        One entry a cell: its name (the bands in words), rows, mean prediction, observed rate, ``ece`` over
        bins of equal mass (at most N_BINS, of at least LEAST_ROWS rows each), and ``ece_by_chance``, what a
        perfectly calibrated model would show on average.
    """
    index = torch.tensor(list(weeks))
    calendar = data.calendar.weeks(index)
    shape = probability.shape
    values = {
        "depth": np.broadcast_to(calendar.depth.numpy()[:, None], shape),
        "display": np.broadcast_to(calendar.display.numpy()[:, None], shape),
        "own rate": own_frequency(data, weeks),
    }
    label = data.bought[index].numpy()
    bands = {name: _bands(value, _QUANTILES[name]) for name, value in values.items()}
    cells = []
    for chosen in product(*(range(len(names)) for _, names in bands.values())):
        inside = np.ones(shape, dtype=bool)
        for (band, _), k in zip(bands.values(), chosen, strict=True):
            inside &= band == k
        if np.count_nonzero(inside) < LEAST_ROWS:
            continue
        p, y = probability[inside], label[inside]
        bins = reliability_bins(p, y, min(N_BINS, len(p) // LEAST_ROWS))
        words = [f"{name} {names[k]}" for (name, (_, names)), k in zip(bands.items(), chosen, strict=True)]
        cells.append(
            {
                "cell": ", ".join(words),
                "rows": int(p.size),
                "predicted": float(p.mean()),
                "observed": float(y.mean()),
                "ece": expected_calibration_error(bins),
                "ece_by_chance": _error_by_chance(p, len(bins)),
            }
        )
    return cells


def _error_by_chance(probability: DoubleArray, n_bins: int) -> float:
    """Expected calibration error if every row is an independent draw of its own prediction.

    The gap of a bin is then near normal, and E|gap| = √(2/π)·sd.
    """
    parts = np.array_split(np.sort(probability), n_bins)
    deviation = sum(float(np.sqrt((part * (1 - part)).sum())) for part in parts)
    return float(np.sqrt(2 / np.pi) * deviation / probability.size)


def _bands(
    value: npt.NDArray[np.floating], quantiles: tuple[float, ...]
) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return the band of each value, and the bands' names; bands that would be empty are left out."""
    cuts = np.unique(np.quantile(value, quantiles))
    cuts = cuts[(cuts > value.min()) & (cuts <= value.max())]
    names = [f"below {cuts[0]:.1%}"] if len(cuts) else ["all"]
    names += [f"{low:.1%} to {high:.1%}" for low, high in pairwise(cuts)]
    names += [f"{cuts[-1]:.1%} or more"] if len(cuts) else []
    return np.searchsorted(cuts, value, side="right"), names
