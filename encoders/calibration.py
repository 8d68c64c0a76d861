"""What is set after fitting, in closed form or by a small convex problem, on the weeks meant for it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import nn

from encoders.history import MOST_TRIPS
from encoders.predicted_visits import PredictedVisits
from encoders.response import ResponseHeads
from encoders.response_data import ResponseData, UserWeeks

DoubleArray = npt.NDArray[np.float64]

REDEMPTION_RIDGE = 30.0
"""Penalty on squared redemption weights, in log-likelihood units: a few hundred redemptions must not be
spread over a whole embedding."""

LEAST_SLOPE = 0.05
"""Of a calibrated logit."""

_PLATT_RIDGE = 0.01
_PLATT_STEPS = 50
_HALVINGS = 40
_STRETCH = 500_000

_FIRST_SHIFT = 0.1
"""First guess at the standard deviation of categories' shifts; it counts as one category more."""

_SHIFT_STEPS = 12
_MOST_STEP = 0.5

_MOST_TRIPS_SHIFT = 1.0
_BISECTIONS = 40


@torch.no_grad()
def linear_predictors(
    heads: ResponseHeads, data: ResponseData, rows: UserWeeks
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return visit logits [r] and purchase logits [r, C] of user-weeks.

    Args:
        heads: the model, on the CPU.
        data: states and calendar.
        rows: r user-weeks.
    """
    visit, purchase = [], []
    for chunk in rows.chunks(2048):
        utilities = heads(
            data.tape.before(chunk.week, chunk.user), chunk.embedding, data.calendar.weeks(chunk.week)
        )
        visit.append(utilities.visit.numpy())
        purchase.append(utilities.purchase.numpy())
    return np.concatenate(visit), np.concatenate(purchase)


def calibrate(heads: ResponseHeads, data: ResponseData, rows: UserWeeks) -> None:
    """Set slope and intercept of the visit and purchase logits, and each category's shift, on tuning weeks.

    Platt scaling (Platt 1999) of each head as a whole, then :func:`category_shifts`.
    """
    visit, purchase = linear_predictors(heads, data, rows)
    visited = data.visited[rows.week, rows.user].numpy()
    bought = data.bought[rows.week, rows.user].numpy()[visited]
    weight = rows.weight.numpy()
    shopping = weight[visited]
    purchase = purchase[visited]
    of_visit = platt_scaling(visit, visited, weight)
    of_purchase = platt_scaling(purchase.ravel(), bought.ravel(), shopping.repeat(bought.shape[1]))
    before = heads.calibration.clone()
    # Compose with what is already there: slope·(a·u + b) + intercept.
    for head, (slope, intercept) in enumerate((of_visit, of_purchase)):
        heads.calibration[head, 0] = slope * before[head, 0]
        heads.calibration[head, 1] = slope * before[head, 1] + intercept
    slope, intercept = of_purchase
    shift = category_shifts(slope * purchase + intercept, bought, shopping)
    heads.category_shift.copy_(slope * heads.category_shift + torch.from_numpy(shift))


def platt_scaling(
    logit: npt.NDArray[np.float32], label: npt.NDArray[np.bool_], count: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """Return slope and intercept of the two-parameter logistic regression of labels on logits.

    By Newton's method with halved steps, and a ridge that only tells where labels are all alike. The slope is
    at least LEAST_SLOPE: a head that carries no signal must not be turned upside down.

    Args:
        logit: [r].
        label: [r].
        count: [r] how often each row counts.
    """
    found = _platt_newton(logit, label, count, np.array([1.0, 0.0]), np.array([True, True]))
    if found[0] < LEAST_SLOPE:
        start = np.array([LEAST_SLOPE, 0.0])
        found = _platt_newton(logit, label, count, start, np.array([False, True]))
    return float(found[0]), float(found[1])


def _platt_newton(
    logit: npt.NDArray[np.float32],
    label: npt.NDArray[np.bool_],
    count: npt.NDArray[np.float32],
    start: DoubleArray,
    free: npt.NDArray[np.bool_],
) -> DoubleArray:
    """Maximise over the free ones of slope and intercept; the ridge draws them to (1, 0)."""

    def at(parameters: DoubleArray) -> tuple[float, DoubleArray, DoubleArray]:
        away = parameters - np.array([1.0, 0.0])
        loss, gradient = 0.5 * _PLATT_RIDGE * float(away @ away), -_PLATT_RIDGE * away
        hessian = _PLATT_RIDGE * np.eye(2)
        for first in range(0, len(logit), _STRETCH):
            rows = slice(first, first + _STRETCH)
            u, y, n = logit[rows].astype(np.float64), label[rows], count[rows].astype(np.float64)
            z = parameters[0] * u + parameters[1]
            p = expit(z)
            loss += float(n @ (np.logaddexp(0.0, z) - y * z))
            x = np.stack([u, np.ones_like(u)])
            gradient = gradient + x @ (n * (y - p))
            hessian = hessian + (x * (n * p * (1 - p))) @ x.T
        return loss, gradient, hessian

    parameters, (loss, gradient, hessian) = start, at(start)
    for _ in range(_PLATT_STEPS):
        step = np.zeros(2)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        for _ in range(_HALVINGS):
            found = at(parameters + step)
            if found[0] <= loss:
                break
            step = step / 2
        else:
            break  # no shorter step helps: a rounding error from the optimum
        parameters, (loss, gradient, hessian) = parameters + step, found
        if float(np.abs(step).max()) < 1e-8:
            break
    return parameters


def category_shifts(
    logit: npt.NDArray[np.float32], label: npt.NDArray[np.bool_], count: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return what to add to the logit of each category, [C]: tastes and shelves move on after training.

    Each shift is Normal(0, τ²), and τ is fitted along by EM (as in :mod:`encoders.newton`): a category that
    is hardly bought in these weeks stays where training left it.

    Args:
        logit: [r, C].
        label: [r, C].
        count: [r] how often each row counts.
    """
    n_categories = logit.shape[1]
    shift, variance = np.zeros(n_categories), _FIRST_SHIFT**2
    for _ in range(_SHIFT_STEPS):
        score, information = np.zeros(n_categories), np.zeros(n_categories)
        # A category at a time, so that no copy of all rows in double precision is made.
        for c in range(n_categories):
            p = expit(logit[:, c].astype(np.float64) + shift[c])
            score[c] = count @ (label[:, c] - p)
            information[c] = count @ (p * (1 - p))
        precision = information + 1 / variance
        # Where predictions are far off the full step overshoots, and from there on diverges.
        shift = shift + np.clip((score - shift / variance) / precision, -_MOST_STEP, _MOST_STEP)
        variance = float((shift**2 + 1 / precision).sum() + _FIRST_SHIFT**2) / (n_categories + 1)
    return shift.astype(np.float32)


@torch.no_grad()
def calibrate_amounts(heads: ResponseHeads, visits: PredictedVisits) -> None:
    """Set the levels of trips and spend, and the ratio of other spend, so that sums over visits come true.

    The geometric regression of trips need not reproduce their mean, nor the log regression of spend its sum;
    and levels move on. The level of trips is the one at which expected trips, counted up to MOST_TRIPS as a
    history counts them, sum up to those that were made.

    Args:
        heads: calibrated otherwise, on the CPU; changed in place.
        visits: as these heads predict them, of the tuning weeks.
    """
    weight = visits.weight.double()
    modelled = float(weight @ visits.modelled_spend.double())
    if modelled <= 0:
        return
    counted = float(weight @ (visits.trips.double().clamp(max=MOST_TRIPS) - 1.0))
    mean = visits.further_trips.double()
    low, high = -_MOST_TRIPS_SHIFT, _MOST_TRIPS_SHIFT
    for _ in range(_BISECTIONS):
        shift = (low + high) / 2
        share = mean * math.exp(shift) / (1.0 + mean * math.exp(shift))
        # E min(G, m) = Σ_j P(G ≥ j) for j = 1, ..., m.
        expected = float(weight @ torch.stack([share**j for j in range(1, int(MOST_TRIPS))]).sum(dim=0))
        low, high = (shift, high) if expected < counted else (low, shift)
    heads.trips_bias.add_((low + high) / 2)
    heads.spend_level.add_(math.log(modelled / float(weight @ visits.expected_spend.double())))
    heads.other_spend_ratio.fill_(float(weight @ visits.other_spend.double()) / modelled)


def fit_redemption(
    heads: ResponseHeads,
    data: ResponseData,
    user: npt.NDArray[np.int64],
    week_index: npt.NDArray[np.int64],
    redeemed: npt.NDArray[np.bool_],
    embedding: torch.Tensor,
) -> None:
    """Fit the redemption head by ridge-penalised logistic regression; convex, so LBFGS ends at the optimum.

    Args:
        heads: changed in place; left at its prior where there are no rows.
        data: states before each week.
        user: [m] user index.
        week_index: [m] 0-based week.
        redeemed: [m] whether a purchase of a covered category used the coupon.
        embedding: [m, d] embedding of the user at that week.
    """
    if len(user) == 0:
        return
    g = heads.standard_user_features(
        data.tape.before(torch.from_numpy(week_index), torch.from_numpy(user))
    ).detach()
    y = torch.from_numpy(redeemed).float()
    parameters = [heads.redemption_bias, heads.redemption_features, heads.redemption_embedding]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logit = heads.redemption_bias + g @ heads.redemption_features
        logit = logit + embedding @ heads.redemption_embedding
        loss = nn.functional.binary_cross_entropy_with_logits(logit, y, reduction="sum")
        ridge = heads.redemption_features.square().sum() + heads.redemption_embedding.square().sum()
        loss = loss + REDEMPTION_RIDGE * ridge
        loss.backward()
        return loss

    optimizer.step(closure)
