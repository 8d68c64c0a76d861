"""What is set after fitting, in closed form or by a small convex problem, on the weeks meant for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import nn

from encoders.response import ResponseHeads
from encoders.response_data import ResponseData, UserWeeks

REDEMPTION_RIDGE = 30.0
"""Penalty on squared redemption weights, in log-likelihood units: a few hundred redemptions must not be
spread over a whole embedding."""


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
    """Set the slope and intercept of the visit and purchase logits on the given (tuning) weeks.

    Platt scaling (Platt 1999) of each head as a whole; it keeps the order of users and categories.
    """
    visit, purchase = linear_predictors(heads, data, rows)
    visited = data.visited[rows.week, rows.user].numpy()
    bought = data.bought[rows.week, rows.user].numpy()[visited]
    weight = rows.weight.numpy()
    fitted = torch.stack(
        [
            _platt(visit, visited, weight),
            _platt(purchase[visited].ravel(), bought.ravel(), weight[visited].repeat(bought.shape[1])),
        ]
    )
    before = heads.calibration.clone()
    # Compose with what is already there: slope·(a·u + b) + intercept.
    heads.calibration[:, 0] = fitted[:, 0] * before[:, 0]
    heads.calibration[:, 1] = fitted[:, 0] * before[:, 1] + fitted[:, 1]


def _platt(
    logit: npt.NDArray[np.float32], label: npt.NDArray[np.bool_], count: npt.NDArray[np.float32]
) -> torch.Tensor:
    """Slope and intercept by Newton's method on the two-parameter logistic likelihood of weighted rows."""
    u = torch.from_numpy(logit).double()
    y = torch.from_numpy(label).double()
    n = torch.from_numpy(count).double()
    parameters = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(25):
        p = torch.sigmoid(parameters[0] * u + parameters[1])
        residual, weight = n * (y - p), n * p * (1 - p)
        gradient = torch.stack([(residual * u).sum(), residual.sum()])
        cross = (weight * u).sum()
        hessian = torch.stack(
            [torch.stack([(weight * u * u).sum(), cross]), torch.stack([cross, weight.sum()])]
        )
        step = torch.linalg.solve(hessian + 1e-6 * torch.eye(2, dtype=torch.float64), gradient)
        parameters = parameters + step
        if float(step.abs().max()) < 1e-8:
            break
    # A head that carries no signal must not be turned upside down.
    parameters[0] = parameters[0].clamp(min=0.05)
    return parameters.float()


def set_basket_correlation(heads: ResponseHeads, data: ResponseData, rows: UserWeeks) -> None:
    """Set the within-visit correlation ρ² by matching the variance of basket size.

    Under the Gaussian copula of :mod:`encoders.response` two purchases have, to first order in ρ²
    (tetrachoric series, Pearson 1900), covariance ρ²·φ(t_c)·φ(t_k) with t = Φ⁻¹(p); hence
    ρ² = (observed - independent variance of basket size) / Σ_{c≠k} φ(t_c)·φ(t_k).
    Whatever the heads miss of users and weeks is in it too, so it is an upper bound of true basket effects.

    Set too the ratio of spend outside the modelled categories to spend inside.
    """
    _, purchase = linear_predictors(heads, data, rows)
    visited = data.visited[rows.week, rows.user].numpy()
    p = 1.0 / (1.0 + np.exp(-purchase[visited].astype(np.float64)))
    size = data.bought[rows.week, rows.user].numpy()[visited].sum(axis=1)
    density = norm.pdf(norm.ppf(np.clip(p, 1e-12, 1 - 1e-12)))
    weight = rows.weight.numpy()[visited].astype(np.float64)
    excess = weight @ ((size - p.sum(axis=1)) ** 2 - (p * (1 - p)).sum(axis=1))
    coupling = weight @ (density.sum(axis=1) ** 2 - (density**2).sum(axis=1))
    heads.basket_correlation.fill_(float(np.clip(excess / coupling, 0.0, 0.95)))
    end = data.panel.split.train_end
    inside = float(data.panel.category_spend[:, :end].sum(dtype=np.float64))
    total = float(data.panel.basket_spend[:, :end].sum(dtype=np.float64))
    heads.other_spend_ratio.fill_(total / inside - 1.0)


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
