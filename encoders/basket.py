"""Which purchases go together in a basket: a low-rank Gaussian copula, fitted to pairs of categories.

A category is bought on a visit where Φ(x_c) < p_c, with x_c = Λ_c·z + √(1 - |Λ_c|²)·ε_c, z ~ N(0, I_k) shared
by the visit and ε_c its own. Each x_c is standard normal, so every purchase keeps exactly the probability p_c
that the head gives it, and two categories correlate by ρ_ck = Λ_c·Λ_k on the probit scale.

The loadings hold too what the heads miss of users. They are fitted in two steps, in the manner of a factor
analysis of tetrachoric correlations (Pearson 1900; Muthén 1978), but with a probability of its own for each
row: a correlation for each pair, from the covariance of its residuals, then k factors for all pairs by
weighted least squares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from encoders.predicted_visits import PredictedVisits
from encoders.response import BASKET_RANK, ResponseHeads

SERIES_ORDER = 8
"""Terms of the tetrachoric series; at ρ = 0.8 the rest is below a per cent."""

MOST_CORRELATION = 0.95
MOST_COMMUNALITY = 0.95
"""Most that the shared part may have of a category's variance."""

LEAST_MISFIT = 0.05
"""Standard deviation by which any pair's correlation may miss k factors, beside its own standard error.
Without it the pairs of the most frequent categories, known to a hundredth, would take all factors."""

LOADING_RIDGE = 0.03
"""Weight with which each loading is drawn to nought, in units of a mean row of pairs."""

_ROWS = 8192
_LEAST_PROBABILITY = 1e-9
_SOLVE_STEPS = 30
_FACTOR_STEPS = 60
_FACTOR_TOLERANCE = 1e-4
_PRINCIPAL_STEPS = 20
_LEAST_INFORMATION = 1e-9


@dataclass(frozen=True)
class PairMoments:
    """What visits say of each pair of categories; sums over rows, so that moments add up.

    Attributes:
        excess: [C, C] Σ (b_a - p_a)(b_k - p_k).
        series: [SERIES_ORDER, C, C] coefficients of ρ^j in its expectation, j = 1, 2, ...
        variance: [C, C] of the excess where purchases are independent, Σ p_a(1 - p_a) p_k(1 - p_k).
    """

    excess: torch.Tensor
    series: torch.Tensor
    variance: torch.Tensor

    @classmethod
    def of_visits(cls, visits: PredictedVisits) -> PairMoments:
        """Sum up visits.

        The expectation of an excess is the tetrachoric series Σ_j ρ^j/j!·(φ He_{j-1})(t_a)·(φ He_{j-1})(t_k)
        with t = Φ⁻¹(p), summed over the rows: one matrix product an order.
        """
        n_categories = visits.bought.shape[1]
        excess, variance = (torch.zeros(n_categories, n_categories).double() for _ in range(2))
        series = torch.zeros(SERIES_ORDER, n_categories, n_categories).double()
        for rows in torch.arange(len(visits.week)).split(_ROWS):
            p = visits.probability[rows].double().clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
            weight = visits.weight[rows].double()[:, None]
            residual, spread = visits.bought[rows].double() - p, p * (1 - p)
            excess += (weight * residual).T @ residual
            # A row of weight two is one user drawn twice: the same purchases, not two independent draws.
            variance += (weight**2 * spread).T @ spread
            for order, term in enumerate(_hermite_terms(torch.special.ndtri(p)), start=1):
                series[order - 1] += (weight * term).T @ term / math.factorial(order)
        return cls(excess, series, variance)


def _hermite_terms(threshold: torch.Tensor) -> Iterator[torch.Tensor]:
    """φ(t)·He_{j-1}(t) for j = 1, 2, ..., SERIES_ORDER."""
    density = torch.exp(-0.5 * threshold**2) / math.sqrt(2 * math.pi)
    before, now = torch.zeros_like(density), density
    for j in range(SERIES_ORDER):
        yield now
        before, now = now, threshold * now - j * before


@dataclass(frozen=True)
class PairCorrelations:
    """Correlation of each pair on the probit scale, one by one.

    Attributes:
        correlation: [C, C] symmetric, diagonal zero.
        information: [C, C] inverse of its variance; zero on the diagonal and where nothing was seen.
    """

    correlation: torch.Tensor
    information: torch.Tensor


def pair_correlations(moments: PairMoments) -> PairCorrelations:
    """Solve Σ_j series_j·ρ^j = excess for each pair, by Newton's method within ±MOST_CORRELATION."""
    correlation = torch.zeros_like(moments.excess)
    for _ in range(_SOLVE_STEPS):
        value, slope = _polynomial(moments.series, correlation)
        step = (moments.excess - value) / slope.clamp(min=_LEAST_INFORMATION)
        # The series is monotone in ρ but steep near the ends: short steps keep it inside.
        correlation = (correlation + step.clamp(-0.3, 0.3)).clamp(-MOST_CORRELATION, MOST_CORRELATION)
    _, slope = _polynomial(moments.series, torch.zeros_like(correlation))
    information = slope**2 / moments.variance.clamp(min=_LEAST_INFORMATION)
    information.fill_diagonal_(0.0)
    correlation.fill_diagonal_(0.0)
    return PairCorrelations(correlation, information)


def _polynomial(series: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_j series_j·ρ^j and its derivative by ρ."""
    value, slope = torch.zeros_like(at), torch.zeros_like(at)
    for j in range(len(series), 0, -1):
        slope = slope * at + j * series[j - 1]
        value = (value + series[j - 1]) * at
    return value, slope


def factor_loadings(pairs: PairCorrelations, rank: int) -> torch.Tensor:
    """Return loadings Λ, [C, rank], that minimise Σ_{a<k} weight_ak·(ρ_ak - Λ_a·Λ_k)² and a ridge.

    From a principal factor solution (Harman 1976) by alternating least squares: given all other rows, a row
    is a weighted ridge regression. A row is cut where it passes MOST_COMMUNALITY (a Heywood case).

    Args:
        pairs: of C categories.
        rank: at most C.
    """
    target = pairs.correlation
    known = pairs.information > 0
    error = 1.0 / pairs.information.clamp(min=_LEAST_INFORMATION) + LEAST_MISFIT**2
    weight = torch.where(known, 1.0 / error, 0.0)
    weight = weight / weight.mean().clamp(min=_LEAST_INFORMATION)
    loadings = _principal_factors(target, rank)
    ridge = LOADING_RIDGE * torch.eye(rank).double()
    for _ in range(_FACTOR_STEPS):
        before = loadings.clone()
        for c in range(len(target)):
            weighted = loadings * weight[c][:, None]
            normal = weighted.T @ loadings + ridge * weight[c].mean() + _LEAST_INFORMATION * torch.eye(rank)
            row = torch.linalg.solve(normal, weighted.T @ target[c])
            loadings[c] = row * min(1.0, math.sqrt(MOST_COMMUNALITY) / max(float(row.norm()), 1e-9))
        if float((loadings - before).abs().max()) < _FACTOR_TOLERANCE:
            break
    return loadings


def _principal_factors(correlation: torch.Tensor, rank: int) -> torch.Tensor:
    """Leading eigenvectors with communalities on the diagonal, iterated a few times."""
    communality = torch.full((len(correlation),), 0.5).double()
    loadings = torch.zeros(len(correlation), rank).double()
    for _ in range(_PRINCIPAL_STEPS):
        value, vector = torch.linalg.eigh(correlation + torch.diag(communality))
        loadings = vector[:, -rank:] * value[-rank:].clamp(min=1e-6).sqrt()
        communality = loadings.square().sum(dim=1).clamp(max=MOST_COMMUNALITY)
    return loadings


def identified_rank(n_categories: int) -> int:
    """Return how many factors the pairs of C categories can tell apart, at most BASKET_RANK.

    C(C - 1)/2 correlations must be no fewer than the Ck - k(k - 1)/2 free loadings (Lawley and Maxwell 1971).
    """
    pairs = n_categories * (n_categories - 1) // 2
    ranks = range(1, min(BASKET_RANK, n_categories) + 1)
    return max((k for k in ranks if n_categories * k - k * (k - 1) // 2 <= pairs), default=0)


def set_basket_loadings(heads: ResponseHeads, visits: PredictedVisits) -> None:
    """Fit the loadings of the purchases; columns that the pairs cannot tell stay nought.

    Args:
        heads: calibrated; changed in place.
        visits: weeks up to the last tuning week.
    """
    rank = identified_rank(heads.n_categories)
    heads.basket_loadings.zero_()
    if rank and len(visits.week):
        found = factor_loadings(pair_correlations(PairMoments.of_visits(visits)), rank)
        heads.basket_loadings[:, :rank] = found.float()
