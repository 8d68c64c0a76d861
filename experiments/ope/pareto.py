"""How heavy is the upper tail of importance weights? The Pareto shape k̂ of the largest of them.

A mean of weights has a finite variance only for k < 1/2 and exists only for k < 1; in practice averages of n
terms behave up to min(1 - 1/log10(n), 0.7) (Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25, §3.2). What
the effective sample size says depends on the largest weights that happened to be drawn; k̂ also tells of
larger ones that were not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.ope.logged_dataset import FloatArray

MINIMUM_TAIL = 5
"""Fewest exceedances to which a shape is fitted, as in the reference implementation (R package loo)."""
_PRIOR_SHAPE, _PRIOR_ROWS = 0.5, 10.0
"""Weak prior that steadies k̂ of short tails: as if ten exceedances more had shape 0.5."""
_GRID_ROWS, _GRID_SCALE = 30, 3.0
"""Zhang & Stephens (2009), §3: m = 30 + √n points of the profile, and the scale of their prior."""


@dataclass(frozen=True)
class GeneralisedPareto:
    """P(X > x) = (1 + k x / σ)^(-1/k) for x > 0; the exponential law at k = 0, bounded for k < 0.

    Attributes:
        shape: k.
        scale: σ > 0.
    """

    shape: float
    scale: float


def fit_generalised_pareto(excess: FloatArray) -> GeneralisedPareto:
    """Fit a generalised Pareto law to values over a threshold, the threshold taken off.

    Empirical Bayes: the profile likelihood of b = -k / σ is averaged over a grid of quantiles of a prior.
    Zhang & Stephens (2009), Technometrics 51(3), with the weak prior on k of Vehtari et al. (2024).

    Args:
        excess: [n] positive values, n >= 5.

    Raises:
        ValueError: there are fewer than 5 values, or one is not positive and finite.
    """
    n = excess.size
    if n < MINIMUM_TAIL:
        raise ValueError(f"a tail needs at least {MINIMUM_TAIL} values, not {n}")
    if not (np.isfinite(excess) & (excess > 0)).all():
        raise ValueError(f"excesses must be positive and finite, not {excess.min()} to {excess.max()}")
    ordered = np.sort(excess)
    grid = np.arange(1, _GRID_ROWS + int(np.sqrt(n)) + 1)
    quartile = ordered[int(n / 4 + 0.5) - 1]
    slope = 1 / ordered[-1] + (1 - np.sqrt(grid.size / (grid - 0.5))) / (_GRID_SCALE * quartile)
    slope[slope == 0] = 1e-12 / ordered[-1]  # exponential, where k and b are 0 together
    shape = np.log1p(-slope[:, None] * ordered).mean(axis=1)
    log_likelihood = n * (np.log(-slope / shape) - shape - 1)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    mean_slope = float(slope @ posterior / posterior.sum())
    fitted = float(np.log1p(-mean_slope * ordered).mean())
    steadied = (n * fitted + _PRIOR_ROWS * _PRIOR_SHAPE) / (n + _PRIOR_ROWS)
    return GeneralisedPareto(shape=steadied, scale=-fitted / mean_slope)


def pareto_shape(weight: FloatArray) -> float:
    """Return k̂ of the largest min(n/5, 3√n) of n weights: -inf where they have no tail, inf where n < 21.

    The tail is that of Vehtari et al. (2024), appendix H. Weights that come from finitely many propensities
    repeat: where the largest weight is as common as the whole tail, nothing lies beyond it. Where fewer than
    5 exceed the tail's threshold, it goes down to the next smaller weight, so that a few huge ones count.

    Args:
        weight: [n] not negative, finite, n >= 1.

    Raises:
        ValueError: a weight is negative or not finite.
    """
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError(f"weights must be finite and not negative, not {weight.min()} to {weight.max()}")
    if not weight.max() > 0:
        return -np.inf
    n_tail = int(np.ceil(min(weight.size / 5, 3 * np.sqrt(weight.size))))
    ordered = np.sort(weight / weight.max())
    tail, rest = ordered[-n_tail:], ordered[:-n_tail]
    threshold = rest[-1] if rest.size else 0.0
    if tail[-1] <= threshold:
        return -np.inf
    if (tail > threshold).sum() < MINIMUM_TAIL:
        threshold = rest[rest < threshold].max(initial=0.0)
    excess = tail[tail > threshold] - threshold
    return fit_generalised_pareto(excess).shape if excess.size >= MINIMUM_TAIL else np.inf


def highest_reliable_shape(n: int) -> float:
    """Return the k̂ up to which a mean of n weighted terms can be relied on, min(1 - 1/log10(n), 0.7).

    Vehtari et al. (2024), §3.2.4.
    """
    return min(1 - 1 / np.log10(n), 0.7) if n > 10 else 0.0
