"""What goes with a full basket: trips, and spend outside the modelled categories.

Both are tied to the factors z of the visit (:mod:`encoders.basket`) by loadings of their own:

    trips         u = Φ(Λ_T·z + √(1 - |Λ_T|²)·ε), by inversion of their geometric distribution
    other spend   none, unless Φ(Λ_o·z + √(1 - |Λ_o|²)·ε) < q or no modelled category was bought; some / q
                  times a lognormal of mean one

so that the distribution of each alone stays as it was fitted. Who came and bought nothing that is modelled
bought something else: every visit has a spend.
"""

from __future__ import annotations

import math

import torch

from encoders.basket import MOST_COMMUNALITY
from encoders.history import MOST_TRIPS
from encoders.predicted_visits import PredictedVisits
from encoders.response import ResponseHeads

LEAST_OTHER_SPEND = 0.01
"""Currency below which there is none: the difference of two sums of prices."""

TIE_RIDGE = 0.02
"""Weight with which a loading is drawn to nought, in units of a mean category."""

_LEAST_PROBABILITY = 1e-9
_LEAST_SHARE = 0.01


def set_basket_ties(heads: ResponseHeads, visits: PredictedVisits) -> None:
    """Fit loadings of trips and other spend, the share and spread of other spend, and that of all spend.

    Two normal scores that correlate by ρ give, to first order (tetrachoric series, Pearson 1900),
    covariances ρ·φ·φ of what they decide; so there is a correlation with each category,

        trips         Cov(b_c, further trips) = -ρ_c·φ(t_c)·Σ_j φ(Φ⁻¹(P(further ≥ j)))
        other spend   Cov(b_c, any)           =  ρ_c·φ(t_c)·φ(Φ⁻¹(q))

    with t = Φ⁻¹(p), and the loadings are the weighted ridge regression of ρ_c on Λ_c.

    Args:
        heads: calibrated, with basket loadings; changed in place.
        visits: weeks up to the last tuning week.
    """
    weight = visits.weight.double()
    total = weight.sum()
    for buffer in (heads.trips_loadings, heads.other_spend_loadings, heads.other_spend_deviation):
        buffer.zero_()
    heads.other_spend_share.fill_(1.0)
    if not float(total):
        return
    p = visits.probability.double().clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    density = _density(torch.special.ndtri(p))
    residual = visits.bought.double() - p
    information = weight @ (density.square() / (p * (1 - p)))

    mean = visits.further_trips.double()
    at_least = [(mean / (1 + mean)) ** j for j in range(1, int(MOST_TRIPS))]
    further = (visits.trips.double().clamp(max=MOST_TRIPS) - 1.0) - torch.stack(at_least).sum(dim=0)
    further = further - (weight @ further) / total
    slope = torch.stack([_density(torch.special.ndtri(share)) for share in at_least]).sum(dim=0)
    of_trips = -((weight * further) @ residual) / ((weight * slope) @ density)
    heads.trips_loadings.copy_(_loadings(heads, of_trips, information))

    heads.basket_spend_deviation.copy_(_total_deviation(heads, visits))
    some = visits.other_spend > LEAST_OTHER_SPEND
    heads.other_spend_deviation.copy_(_log_deviation(visits, some))
    # Visits without a modelled purchase have other spend for certain, and say nothing.
    full = weight * visits.bought.any(dim=1)
    share = float(full @ some.double() / full.sum()) if float(full.sum()) else 1.0
    heads.other_spend_share.fill_(max(share, _LEAST_SHARE))
    if _LEAST_SHARE < share < 1.0:
        covariance = (full * (some.double() - share)) @ residual
        steepness = _density(torch.special.ndtri(torch.tensor(share).double()))
        of_other = covariance / (steepness * (full @ density))
        heads.other_spend_loadings.copy_(_loadings(heads, of_other, information))


def _loadings(heads: ResponseHeads, correlation: torch.Tensor, information: torch.Tensor) -> torch.Tensor:
    """Weighted ridge regression of correlations with each category, [C], on the basket loadings; [k]."""
    basket = heads.basket_loadings.double()
    weighted = basket * information[:, None]
    ridge = TIE_RIDGE * information.mean() * torch.eye(basket.shape[1]).double()
    found: torch.Tensor = torch.linalg.solve(weighted.T @ basket + ridge, weighted.T @ correlation)
    return found * min(1.0, math.sqrt(MOST_COMMUNALITY) / max(float(found.norm()), 1e-9))


def _log_deviation(visits: PredictedVisits, some: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the log of other spend over the expected basket, where there is any."""
    weight = visits.weight[some].double()
    if not float(weight.sum()):
        return torch.zeros(())
    log_ratio = (visits.other_spend[some] / visits.expected_basket[some]).double().log()
    mean = weight @ log_ratio / weight.sum()
    return (weight @ (log_ratio - mean).square() / weight.sum()).sqrt().float()


def _total_deviation(heads: ResponseHeads, visits: PredictedVisits) -> torch.Tensor:
    """Maximum likelihood of the deviation s of a lognormal whose mean is the expected spend of the visit.

    With r = log(spend / expected) ~ N(-s²/2, s²) the score vanishes at s² = 2·(√(1 + E r²) - 1).
    """
    weight = visits.weight.double()
    spend = (visits.modelled_spend + visits.other_spend).clamp(min=LEAST_OTHER_SPEND)
    expected = (1.0 + heads.other_spend_ratio) * visits.expected_basket
    square = weight @ (spend / expected).double().log().square() / weight.sum()
    return (2.0 * (torch.sqrt(1.0 + square) - 1.0)).sqrt().float()


def _density(threshold: torch.Tensor) -> torch.Tensor:
    """Standard normal density."""
    return torch.exp(-0.5 * threshold**2) / math.sqrt(2 * math.pi)
