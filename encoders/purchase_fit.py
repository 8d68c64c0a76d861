"""Fits the purchase head on fixed embeddings: a logistic regression a category, with priors over categories.

Newton's method over the categories in turn, the prior by empirical Bayes after each sweep
(:mod:`encoders.newton`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from encoders.history import category_features
from encoders.newton import (
    FLAT,
    FLAT_VARIANCE,
    Grouping,
    Posterior,
    Prior,
    centred_variance,
    flat_then_centred,
    halved,
    newton_step,
    update_prior,
)
from encoders.response import PROMOTION_UNIT, TERM_LIMIT, ResponseHeads, taste_weight
from encoders.response_data import ResponseData, UserWeeks

SWEEPS = 10
"""Newton steps over all categories, each of which moves the prior too; with 700 users ten reach the loss to
2e-5."""

REFIT_SWEEPS = 6
"""The same where the prior is given."""

_STEP_LIMIT = 1.0
"""Most that the level of log θ may move in a step: its likelihood is not concave far from the optimum."""

_USER_STEP_LIMIT = 5.0
"""The same for what any user's embedding adds to it."""

_OVERSHOOT = 0.05
"""Relative rise of a category's loss that a step may cost: the prior moves with every sweep and mends it.
What rises more runs away."""


@dataclass(frozen=True)
class PurchasePriors:
    """Priors of the purchase head.

    Attributes:
        category: over a category's coefficients, in the order of :func:`_purchase_layout`.
        depth_embedding: variance of the weights by which an embedding moves the depth effect.
    """

    category: Prior
    depth_embedding: float


@dataclass(frozen=True)
class _Layout:
    """Where the coefficients of a category lie."""

    bias: int
    features: slice
    user: slice
    rate_user: slice
    trend: int
    month_start: int
    display: int
    mailer: int
    depth: int
    match: slice
    embedding: slice
    size: int


def _purchase_layout(heads: ResponseHeads) -> _Layout:
    n_features, n_user = heads.purchase_features.shape[1], heads.purchase_user.shape[1]
    user = 1 + n_features
    rate_user = user + n_user
    trend = rate_user + heads.purchase_rate_user.shape[1]
    match = trend + 5
    embedding = match + (1 if heads.embedding else 0)
    return _Layout(
        bias=0,
        features=slice(1, user),
        user=slice(user, rate_user),
        rate_user=slice(rate_user, trend),
        trend=trend,
        month_start=trend + 1,
        display=trend + 2,
        mailer=trend + 3,
        depth=trend + 4,
        match=slice(match, embedding),
        embedding=slice(embedding, embedding + heads.embedding),
        size=embedding + heads.embedding,
    )


def _first_prior(heads: ResponseHeads, at: _Layout) -> tuple[Prior, Grouping]:
    """The guess from which the prior is fitted, and what shares a variance."""
    mean = torch.zeros(at.size).double()
    variance = torch.full((at.size,), 0.04).double()
    group = torch.arange(at.size)
    centred = torch.zeros(at.size, dtype=torch.bool)
    variance[at.bias], group[at.bias] = FLAT_VARIANCE, FLAT
    mean[at.features] = heads.purchase_features.mean(dim=0).double()
    mean[at.trend] = 0.5
    # All of a week at the start of a month moves the log odds by some hundredths.
    mean[at.month_start], variance[at.month_start] = 0.0, 0.05**2
    # In tenths: a tenth of the sales on display moves the log odds by a few hundredths.
    variance[[at.display, at.mailer]] = 0.02**2
    mean[at.depth], variance[at.depth] = -1.5, 0.25
    mean[at.match] = 0.2
    variance[at.embedding], centred[at.embedding] = 1e-3, True
    group[at.embedding] = at.embedding.start
    return Prior(mean, variance), Grouping(group, centred)


def fit_purchase(
    heads: ResponseHeads,
    data: ResponseData,
    rows: UserWeeks,
    priors: PurchasePriors | None,
    advance: Callable[[], None],
) -> PurchasePriors:
    """Fit all coefficients of the purchase logits, in place.

    Args:
        heads: on the CPU; fitting starts from its values.
        data: states and labels.
        rows: user-weeks with a visit.
        priors: keep these, and take fewer steps; fitted along if None.
        advance: called after each sweep over the categories.

    Returns:
        The priors that were kept or fitted.
    """
    at = _purchase_layout(heads)
    first, grouping = _first_prior(heads, at)
    prior = priors.category if priors is not None else first
    depth_variance = priors.depth_embedding if priors is not None else 1e-3
    n_rows, n_categories = len(rows.user), heads.n_categories
    state = data.tape.before(rows.week, rows.user)
    taste = taste_weight(state, heads.base_rate).T.contiguous()
    features = torch.stack(
        [
            ((feature - heads.category_mean[k]) / heads.category_std[k]).T
            for k, feature in enumerate(category_features(state, heads.base_rate))
        ]
    )
    bought = data.bought[rows.week, rows.user].T.float()
    calendar = data.calendar
    design = torch.empty(at.size, n_rows)
    design[at.bias] = 1.0
    design[at.user] = heads.user_terms(state).T
    plain = design[at.user][: heads.purchase_rate_user.shape[1]].clamp(-TERM_LIMIT, TERM_LIMIT)
    embedding = rows.embedding.T.contiguous()
    match = (heads.category_match @ rows.embedding.T) / max(heads.embedding, 1) ** 0.5
    coefficients = _stacked(heads, at)
    variance = torch.zeros_like(coefficients)
    depth_embedding = heads.depth_embedding.double()
    linear = torch.ones(at.size, 1)
    linear[at.depth] = 0.0
    for _ in range(SWEEPS if priors is None else REFIT_SWEEPS):
        user_level = rows.embedding @ depth_embedding.float()
        depth_score, depth_weight = torch.zeros(n_rows), torch.zeros(n_rows)
        for c in range(n_categories):
            depth = calendar.depth[rows.week, c] / PROMOTION_UNIT
            design[at.features] = features[:, c]
            torch.mul(plain, features[0, c], out=design[at.rate_user])
            design[at.trend] = calendar.category_trend[rows.week, c]
            design[at.month_start] = calendar.month_start[rows.week]
            design[at.display] = calendar.display[rows.week, c] / PROMOTION_UNIT
            design[at.mailer] = calendar.mailer[rows.week, c] / PROMOTION_UNIT
            level = coefficients[c, at.depth].float() + user_level
            design[at.depth] = torch.sigmoid(level) * depth
            if heads.embedding:
                design[at.match] = match[c] * taste[c]
                torch.mul(embedding, taste[c], out=design[at.embedding])
            logit = (coefficients[c].float() * linear[:, 0]) @ design
            logit = logit + torch.nn.functional.softplus(level) * depth
            p = torch.sigmoid(logit)
            score, weight = rows.weight * (bought[c] - p), rows.weight * p * (1 - p)
            depth_score += score * design[at.depth]
            depth_weight += weight * design[at.depth] ** 2
            found = newton_step(design, score, weight, coefficients[c], prior)
            step = (found.mean[at.depth] - coefficients[c, at.depth]).clamp(-_STEP_LIMIT, _STEP_LIMIT)
            found.mean[at.depth] = coefficients[c, at.depth] + step
            loss = partial(
                _purchase_loss,
                design=design,
                linear=linear[:, 0],
                at=at,
                user_level=user_level,
                depth=depth,
                bought=bought[c],
                count=rows.weight,
                prior=prior,
            )
            found = halved(found, coefficients[c], loss, tolerance=_OVERSHOOT)
            coefficients[c], variance[c] = found.mean, found.variance
        if heads.embedding:
            spread = flat_then_centred(0, heads.embedding, depth_variance)
            moved = newton_step(embedding, depth_score, depth_weight, depth_embedding, spread)
            step = moved.mean - depth_embedding
            farthest = float((step.float() @ embedding).abs().max())
            if farthest > _USER_STEP_LIMIT:
                step = step * (_USER_STEP_LIMIT / farthest)
            depth_embedding = depth_embedding + step
            if priors is None:
                depth_variance = centred_variance(moved, 0, 1e-3)
        if priors is None:
            prior = update_prior(Posterior(coefficients, variance), prior, first, grouping)
        advance()
    _unstack(heads, at, coefficients)
    heads.depth_embedding.copy_(depth_embedding)
    return PurchasePriors(prior, depth_variance)


def _purchase_loss(
    coefficients: torch.Tensor,
    *,
    design: torch.Tensor,
    linear: torch.Tensor,
    at: _Layout,
    user_level: torch.Tensor,
    depth: torch.Tensor,
    bought: torch.Tensor,
    count: torch.Tensor,
    prior: Prior,
) -> float:
    """Minus the log posterior of one category's coefficients, [P], but for a constant."""
    logit = (coefficients.float() * linear) @ design
    softplus = torch.nn.functional.softplus
    logit = logit + softplus(coefficients[at.depth].float() + user_level) * depth
    surprise = (count * (softplus(logit) - bought * logit)).double().sum()
    return float(surprise + 0.5 * (prior.precision * (coefficients - prior.mean).square()).sum())


def _stacked(heads: ResponseHeads, at: _Layout) -> torch.Tensor:
    """The heads' purchase coefficients, [C, P] float64."""
    out = torch.zeros(heads.n_categories, at.size, dtype=torch.float64)
    out[:, at.bias] = heads.purchase_bias.double()
    out[:, at.features] = heads.purchase_features.double()
    out[:, at.user] = heads.purchase_user.double()
    out[:, at.rate_user] = heads.purchase_rate_user.double()
    out[:, at.trend] = heads.purchase_trend.double()
    out[:, at.month_start] = heads.purchase_month_start.double()
    out[:, at.display] = heads.display_effect.double()
    out[:, at.mailer] = heads.mailer_effect.double()
    out[:, at.depth] = heads.depth_level.double()
    if heads.embedding:
        out[:, at.match] = heads.match_weight.double()[:, None]
    out[:, at.embedding] = heads.purchase_embedding.double()
    return out


def _unstack(heads: ResponseHeads, at: _Layout, coefficients: torch.Tensor) -> None:
    heads.purchase_bias.copy_(coefficients[:, at.bias])
    heads.purchase_features.copy_(coefficients[:, at.features])
    heads.purchase_user.copy_(coefficients[:, at.user])
    heads.purchase_rate_user.copy_(coefficients[:, at.rate_user])
    heads.purchase_trend.copy_(coefficients[:, at.trend])
    heads.purchase_month_start.copy_(coefficients[:, at.month_start])
    heads.display_effect.copy_(coefficients[:, at.display])
    heads.mailer_effect.copy_(coefficients[:, at.mailer])
    heads.depth_level.copy_(coefficients[:, at.depth])
    if heads.embedding:
        heads.match_weight.copy_(coefficients[:, at.match][:, 0])
    heads.purchase_embedding.copy_(coefficients[:, at.embedding])
