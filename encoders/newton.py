"""Newton's method for logistic regressions that share a prior, and the prior itself by empirical Bayes.

C categories have one coefficient vector each, β_c ~ Normal(μ, diag τ²). Given μ and τ each β_c is found by
Newton's method (iteratively reweighted least squares); given the β_c, μ and τ follow from their posterior
means and variances (EM with Laplace's approximation, as in Gelman and Hill 2007, chapter 18). One
category's promotions over forty weeks say little about its own response; how much it may keep of that
little is decided by how much the categories truly differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

FLAT_VARIANCE = 1e4
"""Prior variance of a coefficient that is not to be shrunk."""

WIDE_VARIANCE = 10.0
"""Prior variance of what is not to be shrunk; features that are functions of each other stay apart by it."""

VARIANCE_PRIOR_WEIGHT = 1.0
"""Weight, in categories, of the first guess at a variance; keeps it positive where categories are few."""

_JITTERS = (1e-8, 1e-6, 1e-4)
"""Added in turn to the diagonal of a scaled Hessian until it is positive definite: features may be functions
of each other, such as a count that is only ever nought or one, and its square."""

_STRETCH = 65_536
_LEAST_RELIABILITY = 0.01


@dataclass(frozen=True)
class Prior:
    """Normal prior of P coefficients, the same for all categories.

    Attributes:
        mean: [P] float64.
        variance: [P] float64, positive.
    """

    mean: torch.Tensor
    variance: torch.Tensor

    @property
    def precision(self) -> torch.Tensor:
        """[P] inverse variance."""
        return 1.0 / self.variance


@dataclass(frozen=True)
class Posterior:
    """What Laplace's approximation leaves of one vector of coefficients.

    Attributes:
        mean: [P] float64.
        variance: [P] float64 diagonal of the inverse Hessian.
    """

    mean: torch.Tensor
    variance: torch.Tensor


def newton_step(
    design: torch.Tensor,
    score: torch.Tensor,
    weight: torch.Tensor,
    coefficients: torch.Tensor,
    prior: Prior,
) -> Posterior:
    """Take one Newton step of a penalised likelihood.

    Args:
        design: [P, r] derivative of the linear predictor by each coefficient.
        score: [r] derivative of the log likelihood by the linear predictor.
        weight: [r] minus its second derivative, non-negative.
        coefficients: [P] float64, where the step starts.
        prior: of the coefficients.

    Returns:
        Where the step ends, with the variance there.
    """
    hessian = torch.diag(prior.precision)
    # Summed in double precision over stretches: over millions of rows float32 loses what a prior adds.
    for start in range(0, design.shape[1], _STRETCH):
        part = design[:, start : start + _STRETCH]
        hessian += ((part * weight[start : start + _STRETCH]) @ part.T).double()
    gradient = (design @ score).double() - prior.precision * (coefficients - prior.mean)
    scale = hessian.diagonal().sqrt()
    standard = hessian / scale[:, None] / scale[None, :]
    factor = _cholesky(standard)
    step = torch.cholesky_solve((gradient / scale)[:, None], factor)[:, 0] / scale
    variance = torch.cholesky_inverse(factor).diagonal() / scale**2
    return Posterior(coefficients + step, variance)


def halved(
    found: Posterior,
    start: torch.Tensor,
    loss: Callable[[torch.Tensor], float],
    halvings: int = 10,
    tolerance: float = 0.0,
) -> Posterior:
    """Return a step shortened by halves until it does not raise the loss.

    Newton's full step overshoots where the start is far away and the design nearly collinear; from there on
    it may diverge (Boyd and Vandenberghe 2004, section 9.5).

    Args:
        found: the full step.
        start: [P] float64, where it starts.
        loss: minus the penalised log likelihood at given coefficients.
        tolerance: relative rise of the loss that is let pass.
        halvings: most of them; the step is then taken as it is, a rounding error of the loss in length.
    """
    before, step = loss(start), found.mean - start
    most = before + tolerance * abs(before)
    for _ in range(halvings):
        # Not `>`: a loss that is not a number is no descent either.
        if loss(start + step) <= most:
            break
        step = step / 2
    return Posterior(start + step, found.variance)


def _cholesky(standard: torch.Tensor) -> torch.Tensor:
    """Cholesky factor of a matrix with unit diagonal."""
    unit = torch.eye(len(standard), dtype=torch.float64)
    factor: torch.Tensor
    for jitter in _JITTERS[:-1]:
        factor, failed = torch.linalg.cholesky_ex(standard + jitter * unit)
        if not int(failed):
            return factor
    factor = torch.linalg.cholesky(standard + _JITTERS[-1] * unit)
    return factor


@dataclass(frozen=True)
class Grouping:
    """How coefficients share a prior.

    Attributes:
        group: [P] int64, coefficients of one group have one variance; FLAT ones keep their prior.
        centred: [P] bool, whether the prior's mean is zero rather than fitted.
    """

    group: torch.Tensor
    centred: torch.Tensor


FLAT = -1


def update_prior(posterior: Posterior, prior: Prior, first: Prior, grouping: Grouping) -> Prior:
    """Return the prior that fits the coefficients of all categories best.

    The variance is EM's. The mean is the maximum of the marginal likelihood given the variance, where EM
    would creep: with reliability k_c = 1 - v_c/τ² it is μ + Σ(m_c - μ) / Σk_c.

    Args:
        posterior: means and variances, each [C, P].
        prior: under which they were found.
        first: the first guess, which counts as VARIANCE_PRIOR_WEIGHT categories.
        grouping: of the coefficients.
    """
    n_categories = len(posterior.mean)
    reliability = (1.0 - posterior.variance / prior.variance).clamp(min=_LEAST_RELIABILITY)
    moved = prior.mean + (posterior.mean - prior.mean).sum(dim=0) / reliability.sum(dim=0)
    # Where the data say next to nothing the quotient is noise.
    silent = reliability.mean(dim=0) <= 2 * _LEAST_RELIABILITY
    mean = torch.where(silent, prior.mean, moved)
    mean = torch.where(grouping.centred, 0.0, mean)
    variance = prior.variance.clone()
    square = (posterior.mean - mean).square() + posterior.variance
    for group in grouping.group.unique():
        members = grouping.group == group
        size = int(members.sum())
        total = square[:, members].sum() + VARIANCE_PRIOR_WEIGHT * first.variance[members].sum()
        variance[members] = total / (size * (n_categories + VARIANCE_PRIOR_WEIGHT))
    flat = grouping.group == FLAT
    return Prior(torch.where(flat, prior.mean, mean), torch.where(flat, prior.variance, variance))


def flat_then_centred(n_flat: int, n_centred: int, variance: float) -> Prior:
    """A prior that leaves the first coefficients all but free and draws the others to zero."""
    spread = torch.cat([torch.full((n_flat,), WIDE_VARIANCE), torch.full((n_centred,), variance)])
    return Prior(torch.zeros(n_flat + n_centred).double(), spread.double())


def centred_variance(found: Posterior, start: int, first: float) -> float:
    """EM's variance of the coefficients from ``start`` on, the first guess counted as one more of them."""
    square = found.mean[start:].square() + found.variance[start:]
    return float((square.sum() + first) / (len(square) + 1))
