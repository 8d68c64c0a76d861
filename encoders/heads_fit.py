"""Fits the response heads on fixed embeddings, each to its optimum, by Newton's method.

Fast and exact where the embedding is given: no learning rate, no seed, no early stopping. How much of a
category's own estimate may stand is learnt with it (:mod:`encoders.newton`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from encoders.newton import Posterior, Prior, centred_variance, flat_then_centred, halved, newton_step
from encoders.purchase_fit import PurchasePriors, fit_purchase
from encoders.response import MOST_FURTHER_TRIPS_LOG, ResponseHeads
from encoders.response_data import ResponseData, UserWeeks

VISIT_STEPS = 12
SPEND_STEPS = 5
MOST_ROWS = 1_000_000
"""User-weeks that the visit head is fitted on at most, drawn evenly from a larger log."""

MOST_VISITS = 200_000
"""User-weeks with a visit that the purchase heads are fitted on at most, drawn evenly from a larger log."""


@dataclass(frozen=True)
class HeadPriors:
    """Priors that were fitted along; a refit on a bootstrap of the users may keep them.

    Attributes:
        purchase: of the purchase head.
        spend_embedding: variance of the spend's weights on the embedding.
    """

    purchase: PurchasePriors
    spend_embedding: float


@torch.no_grad()
def fit_heads(
    heads: ResponseHeads,
    data: ResponseData,
    rows: UserWeeks,
    *,
    priors: HeadPriors | None = None,
    advance: Callable[[], None] = lambda: None,
) -> HeadPriors:
    """Fit everything but calibration, what goes together, and redemption, in place.

    Args:
        heads: on the CPU, with its scale and its category embeddings set; fitting starts from its values.
        data: states and labels.
        rows: user-weeks to fit on.
        priors: keep these, and take fewer steps; fitted along if None.
        advance: called after each sweep over the categories.
    """
    rows = _at_most(rows.where(rows.weight > 0), MOST_ROWS)
    visited = data.visited[rows.week, rows.user]
    shopping = _at_most(rows.where(visited), MOST_VISITS)
    _fit_visit(heads, data, rows, visited)
    _fit_trips(heads, data, shopping)
    spend_variance = _fit_spend(heads, data, shopping, priors)
    own = priors.purchase if priors is not None else None
    purchase = fit_purchase(heads, data, shopping, own, advance)
    return HeadPriors(purchase, spend_variance)


def _at_most(rows: UserWeeks, count: int) -> UserWeeks:
    if len(rows) <= count:
        return rows
    return rows.where(torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).long())


def _user_columns(heads: ResponseHeads, data: ResponseData, rows: UserWeeks) -> torch.Tensor:
    """Standardised user features with squares and products, [Q, r]."""
    return heads.user_terms(data.tape.before(rows.week, rows.user)).T.contiguous()


def _fit_visit(
    heads: ResponseHeads,
    data: ResponseData,
    rows: UserWeeks,
    visited: torch.Tensor,
) -> None:
    """Logistic regression of the visit."""
    g = _user_columns(heads, data, rows)
    of_week = torch.stack([data.calendar.visit_trend, data.calendar.month_start])[:, rows.week]
    design = torch.cat([torch.ones(1, len(rows)), g, of_week])
    start = [heads.visit_bias[None], heads.visit_user, heads.visit_trend[None], heads.visit_month_start[None]]
    coefficients = torch.cat(start).double()
    prior = flat_then_centred(len(design), 0, 1.0)
    y = visited.float()
    for _ in range(VISIT_STEPS):
        p = torch.sigmoid(coefficients.float() @ design)
        full = newton_step(design, rows.weight * (y - p), rows.weight * p * (1 - p), coefficients, prior)

        def loss(at: torch.Tensor) -> float:
            logit = at.float() @ design
            surprise = rows.weight * (torch.nn.functional.softplus(logit) - y * logit)
            return float(surprise.double().sum() + 0.5 * (prior.precision * at.square()).sum())

        coefficients = halved(full, coefficients, loss).mean
    heads.visit_bias.copy_(coefficients[0])
    heads.visit_user.copy_(coefficients[1:-2])
    heads.visit_trend.copy_(coefficients[-2])
    heads.visit_month_start.copy_(coefficients[-1])


def _fit_trips(heads: ResponseHeads, data: ResponseData, rows: UserWeeks) -> None:
    """Geometric regression of the trips after the first, by Fisher scoring."""
    g = heads.standard_user_features(data.tape.before(rows.week, rows.user)).T
    design = torch.cat([torch.ones(1, len(rows.user)), g])
    further = torch.from_numpy(data.panel.trips).float()[rows.user, rows.week] - 1.0
    coefficients = torch.cat([heads.trips_bias[None], heads.trips_features]).double()
    prior = Prior(torch.zeros(len(design)).double(), torch.ones(len(design)).double())
    for _ in range(VISIT_STEPS):
        mean = (coefficients.float() @ design).clamp(-6.0, MOST_FURTHER_TRIPS_LOG).exp()
        share = mean / (1.0 + mean)
        score = further - (further + 1.0) * share
        coefficients = newton_step(design, rows.weight * score, rows.weight * share, coefficients, prior).mean
    heads.trips_bias.copy_(coefficients[0])
    heads.trips_features.copy_(coefficients[1:])


def _fit_spend(heads: ResponseHeads, data: ResponseData, rows: UserWeeks, priors: HeadPriors | None) -> float:
    """Least squares of the log of spend: one level a category, everything else shared."""
    g = _user_columns(heads, data, rows)
    n_categories, fixed = heads.n_categories, len(g) + 2
    size = fixed + heads.embedding
    bought = data.paid[rows.week, rows.user]
    log_spend = data.log_spend[rows.week, rows.user]
    deviation = torch.ones(n_categories)
    level = heads.spend_level.clone()
    variance = priors.spend_embedding if priors is not None else 0.01
    coefficients = torch.zeros(size, dtype=torch.float64)
    for _ in range(SPEND_STEPS):
        hessian, gradient = torch.zeros(size, size).double(), torch.zeros(size).double()
        centres: list[tuple[torch.Tensor, float, float]] = []
        residual_square = torch.zeros(n_categories)
        for c in range(n_categories):
            chosen = bought[:, c].nonzero()[:, 0]
            weight = rows.weight[chosen]
            total = float(weight.sum())
            if total == 0:
                centres.append((torch.zeros(size), float(level[c]), 0.0))
                continue
            week = rows.week[chosen]
            depth = data.calendar.depth[week, c]
            of_week = torch.stack([depth, data.calendar.month_start[week]])
            x = torch.cat([g[:, chosen], of_week, rows.embedding[chosen].T])
            y = log_spend[chosen, c].float()
            x_mean, y_mean = (x * weight).sum(dim=1) / total, float((y * weight).sum() / total)
            centred, y_centred = x - x_mean[:, None], y - y_mean
            scaled = weight / deviation[c] ** 2
            hessian += ((centred * scaled) @ centred.T).double()
            gradient += (centred @ (scaled * y_centred)).double()
            residual = y_centred - coefficients.float() @ centred
            residual_square[c] = (weight * residual.square()).sum() / total
            centres.append((x_mean, y_mean, total))
        prior = flat_then_centred(fixed, heads.embedding, variance)
        hessian += torch.diag(prior.precision)
        coefficients = torch.linalg.solve(hessian, gradient)
        if priors is None:
            inverse = torch.linalg.inv(hessian).diagonal()
            variance = centred_variance(Posterior(coefficients, inverse), fixed, 0.01)
        for c, (x_mean, y_mean, total) in enumerate(centres):
            if total:
                level[c] = y_mean - float(coefficients.float() @ x_mean)
                # One imagined purchase of spread 0.7, so that a category bought once has a spread.
                deviation[c] = ((residual_square[c] * total + 0.5) / (total + 1.0)).sqrt()
    heads.spend_level.copy_(level)
    heads.spend_user.copy_(coefficients[: fixed - 2])
    heads.spend_depth.copy_(coefficients[fixed - 2])
    heads.spend_month_start.copy_(coefficients[fixed - 1])
    heads.spend_embedding.copy_(coefficients[fixed:])
    heads.spend_log_deviation.copy_(deviation.log())
    return variance
