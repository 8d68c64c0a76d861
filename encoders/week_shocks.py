"""What a week does to everyone: shocks that all users share, and that nobody can foresee.

Weather, assortment and feasts move a category's purchases, or all visits, in a whole week. Where users are
independent given the heads, totals over thousands of users would hardly vary; real ones do. The shock w ~
N(0, 1) of a week enters the copula of :mod:`encoders.response` with weight δ, so that each probability stays
as it was fitted, averaged over weeks.

How large δ is follows from forecasts as the market makes them: the level of the last four weeks, held for the
next four. What the errors vary beyond the chance of independent users is δ², which so holds the error of the
level too.
"""

from __future__ import annotations

import math

import torch

from encoders.predicted_visits import PredictedVisits
from encoders.response import ResponseHeads
from encoders.response_data import ResponseData, UserWeeks

LEVEL_WEEKS = 4
"""Weeks from which a level is taken: as many as the heads are calibrated on."""

AHEAD_WEEKS = 4
"""Weeks ahead over which it is held."""

MOST_DEVIATION = 0.2
"""Of a shock on the probit scale; squared it leaves room for the basket loadings below one."""

LEAST_SHARE = 0.1
"""Least variance of a category's shocks, in units of the mean category's."""

_LEAST_PROBABILITY = 1e-9


@torch.no_grad()
def set_week_deviations(
    heads: ResponseHeads, data: ResponseData, rows: UserWeeks, visits: PredictedVisits
) -> None:
    """Fit the deviations of the shocks of visits and of each category, in place.

    Args:
        heads: calibrated.
        data: states, calendar and visits.
        rows: user-weeks of successive weeks, up to the last tuning week.
        visits: those of them with a visit.
    """
    chance = torch.cat(
        [
            torch.sigmoid(
                heads.visit_logit(data.tape.before(chunk.week, chunk.user), data.calendar.weeks(chunk.week))
            )
            for chunk in rows.chunks(16_384)
        ]
    )
    visited = data.visited[rows.week, rows.user]
    of_visits = forecast_variance(chance[:, None], visited[:, None], rows.week, rows.weight)[0]
    heads.visit_week_deviation.fill_(min(math.sqrt(max(float(of_visits), 0.0)), MOST_DEVIATION))
    variance, error = forecast_variance(visits.probability, visits.bought, visits.week, visits.weight)
    heads.category_week_deviation.copy_(shrunken(variance, error).sqrt().clamp(max=MOST_DEVIATION))


def forecast_variance(
    probability: torch.Tensor, happened: torch.Tensor, week: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the variance δ² of shared shocks by method of moments, and its squared standard error.

    In week t the residuals of all users sum up to about S·(shock) with S = Σ φ(Φ⁻¹(p)), so that
    x = Σ(y - p)/S is the shock with noise of variance Σ p(1 - p)/S². Both results are [C]; where the log is
    too short for a forecast, they are zero.

    Args:
        probability: [r, C].
        happened: [r, C] bool.
        week: [r] 0-based week index.
        weight: [r] how often each row counts.
    """
    n_categories = probability.shape[1]
    first, count = int(week.min()), int(week.max() - week.min()) + 1
    p = probability.double().clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    density = torch.exp(-0.5 * torch.special.ndtri(p).square()) / math.sqrt(2 * math.pi)
    heavy = weight.double()[:, None]

    def of_week(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(count, n_categories).double().index_add(0, week - first, values)

    scale = of_week(heavy * density).clamp(min=_LEAST_PROBABILITY)
    shock = of_week(heavy * (happened.double() - p)) / scale
    noise = of_week(heavy**2 * p * (1 - p)) / scale**2
    excess = [
        (shock[origin + ahead] - shock[origin - LEVEL_WEEKS : origin].mean(dim=0)).square()
        - noise[origin + ahead]
        for origin in range(LEVEL_WEEKS, count)
        for ahead in range(min(AHEAD_WEEKS, count - origin))
    ]
    if not excess:
        nothing = torch.zeros(n_categories)
        return nothing, nothing
    variance = torch.stack(excess).mean(dim=0)
    # As of a variance estimated from so many independent weeks, noise included.
    error = 2.0 / count * (variance.clamp(min=0.0) + noise.mean(dim=0)).square()
    return variance.float(), error.float()


def shrunken(variance: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Return the variances drawn to their mean, [C]: empirical Bayes with normal errors (Efron, Morris 1973).

    Args:
        variance: [C] estimates, possibly negative.
        error: [C] their squared standard errors.
    """
    mean = variance.mean().clamp(min=0.0)
    between = (variance.var(correction=0) - error.mean()).clamp(min=0.0)
    reliability = between / (between + error).clamp(min=1e-12)
    return (mean + reliability * (variance - mean)).clamp(min=LEAST_SHARE * float(mean))
