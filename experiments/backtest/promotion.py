"""Does the model respond to mass promotion as purchases in the logs do?

The logs' answer is a two-way fixed-effects Poisson regression of purchases per category and week. The model's
is its replay of the same weeks: expected purchases at the observed promotion, and with a little more of it.
Both are log points of purchases given a visit, per unit of depth or share.

The two do not estimate quite the same thing. The regression has one slope for all categories, so it weighs
them by how much their promotion varies, lays some of depth's unequal slopes to display and mailer, and counts
in what promotion did to histories; the replay holds histories and weighs categories by expected purchases.
Hence two further comparisons: the same regression run on the model's own replayed purchases, and a regression
with slopes of each category's own, averaged like the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encoders.response import ResponseHeads
from encoders.response_data import ResponseData
from experiments.backtest.fixed_effects import average_own_slopes, fit_two_way_poisson
from experiments.backtest.predictions import EmbeddingTable

DoubleArray = npt.NDArray[np.float64]

PROMOTIONS = ("depth", "display", "mailer")
STEP = 0.01
"""What is added to a promotion in the replay. Both curvature and rounding are then below 1% of an effect."""


@torch.no_grad()
def replay_purchases(
    heads: ResponseHeads,
    data: ResponseData,
    embeddings: EmbeddingTable,
    weeks: Sequence[int],
    *,
    more: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> DoubleArray:
    """Return expected purchases of each category among those who did visit, [C, W].

    Args:
        heads: the calibrated model, on the CPU.
        data: states, visits and calendar.
        embeddings: as wide as the heads want them.
        weeks: W of them, 0-based; histories are those observed.
        more: which of PROMOTIONS to raise by STEP; None replays the weeks as they were.
        advance: called after each week.
    """
    out = np.empty((data.panel.n_categories, len(weeks)))
    for k, week in enumerate(weeks):
        visitor = data.visited[week].nonzero()[:, 0]
        calendar = data.calendar.weeks(torch.full_like(visitor, week))
        if more is not None:
            calendar = replace(calendar, **{more: getattr(calendar, more) + STEP})
        utilities = heads(
            data.tape.before(torch.full_like(visitor, week), visitor), embeddings.at(week)[visitor], calendar
        )
        out[:, k] = torch.sigmoid(utilities.purchase.double()).sum(dim=0).numpy()
        advance()
    return out


def promotion_response(
    heads: ResponseHeads,
    data: ResponseData,
    embeddings: EmbeddingTable,
    weeks: Sequence[int],
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Return the response to each of PROMOTIONS, of the logs and of the model.

    Args:
        heads: the calibrated model, on the CPU.
        data: the panel.
        embeddings: as wide as the heads want them.
        weeks: W training weeks, 0-based.
        advance: called 4 W times.

    Returns:
        One entry a promotion: the ``estimate`` from the logs with its standard error and 95% interval, the
        ``model``'s semi-elasticity, and whether it is ``inside``; ``model_fixed_effects``, the regression run
        on the model's replay; and ``own_slopes``: estimate, interval and the model's figure over the
        categories whose promotion varies, and whether it is inside. NaN, and ``inside`` None, where the
        logs' promotion does not vary. Intervals are of the logs' estimates; the model is taken as it is.
    """
    index = torch.tensor(list(weeks))
    count = data.bought[index].sum(dim=1).T.double().numpy()
    calendar = data.calendar.weeks(index)
    regressors = torch.stack([getattr(calendar, name).T for name in PROMOTIONS], dim=2).double().numpy()
    observed, own = fit_two_way_poisson(count, regressors), average_own_slopes(count, regressors)
    base = replay_purchases(heads, data, embeddings, weeks, advance=advance)
    replayed = fit_two_way_poisson(base, regressors)
    (low, high), (own_low, own_high) = observed.interval(), own.interval()
    rows = []
    for k, name in enumerate(PROMOTIONS):
        raised = replay_purchases(heads, data, embeddings, weeks, more=name, advance=advance)
        slope = np.log(raised / base) / STEP
        model = float(np.average(slope, weights=observed.expected))
        by_category = (observed.expected * slope).sum(axis=1) / np.maximum(
            observed.expected.sum(axis=1), 1e-9
        )
        model_own = float(own.weight[:, k] @ by_category)
        rows.append(
            {
                "name": name,
                "estimate": float(observed.coefficient[k]),
                "standard_error": float(observed.standard_error[k]),
                "ci_low": float(low[k]),
                "ci_high": float(high[k]),
                "model": model,
                "inside": _inside(low[k], model, high[k]),
                "model_fixed_effects": float(replayed.coefficient[k]),
                "own_slopes": {
                    "estimate": float(own.mean[k]),
                    "ci_low": float(own_low[k]),
                    "ci_high": float(own_high[k]),
                    "model": model_own,
                    "inside": _inside(own_low[k], model_own, own_high[k]),
                },
            }
        )
    return rows


def _inside(low: float, value: float, high: float) -> bool | None:
    return None if np.isnan(low) else bool(low <= value <= high)
