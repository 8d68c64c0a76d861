from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from encoders.basket import (
    MOST_COMMUNALITY,
    PairCorrelations,
    PairMoments,
    factor_loadings,
    identified_rank,
    pair_correlations,
    set_basket_loadings,
)
from encoders.basket_ties import set_basket_ties
from encoders.predicted_visits import PredictedVisits
from encoders.response import BASKET_RANK, ResponseHeads

C, R = 20, 30_000


def planted(seed: int, rank: int = 3, most: float = 0.6) -> torch.Tensor:
    """Loadings of three kinds of baskets; communalities up to ``most``."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(0.2, 0.4, (C, rank))
    size = np.sqrt((loadings**2).sum(axis=1, keepdims=True) / most)
    return torch.from_numpy(loadings / np.maximum(size, 1.0))


def drawn(loadings: torch.Tensor, seed: int, weight: torch.Tensor | None = None) -> PredictedVisits:
    """Visits drawn from the model: probabilities differ by user and category, trips and spend go along."""
    rng = np.random.default_rng(seed)
    loadings_ = loadings.numpy()
    logit = rng.normal(0, 0.8, (R, 1)) + rng.normal(0, 0.8, (R, C)) - np.linspace(0.3, 2.5, C)
    p = 1 / (1 + np.exp(-logit))
    z = rng.standard_normal((R, loadings_.shape[1]))
    own = np.sqrt(1 - (loadings_**2).sum(axis=1)) * rng.standard_normal((R, C))
    bought = norm.cdf(z @ loadings_.T + own) < p
    # Trips and other spend: correlations of -0.5 and 0.4 with the first factor.
    mean = rng.uniform(0.3, 1.5, R)
    u = norm.cdf(-0.5 * z[:, 0] + np.sqrt(0.75) * rng.standard_normal(R))
    further = np.floor(np.log1p(-u) / np.log(mean / (1 + mean)))
    some = norm.cdf(0.4 * z[:, 0] + np.sqrt(0.84) * rng.standard_normal(R)) < 0.7
    basket = rng.uniform(20, 60, R)
    noise = np.exp(0.9 * rng.standard_normal(R) - 0.405)
    other = 0.25 * basket * np.where(bought.any(axis=1), some / 0.7, 1.0) * noise
    return PredictedVisits(
        week=torch.from_numpy(rng.integers(0, 20, R)),
        weight=torch.ones(R) if weight is None else weight,
        probability=torch.from_numpy(p).float(),
        bought=torch.from_numpy(bought),
        further_trips=torch.from_numpy(mean).float(),
        trips=torch.from_numpy(1 + further).float(),
        expected_basket=torch.from_numpy(basket).float(),
        expected_spend=torch.ones(R),
        modelled_spend=torch.ones(R),
        other_spend=torch.from_numpy(other).float(),
    )


def off_diagonal(matrix: torch.Tensor) -> np.ndarray:
    return matrix.numpy()[~np.eye(len(matrix), dtype=bool)]


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.3, 0.7])
def test_the_series_is_the_bivariate_normal_probability(correlation: float) -> None:
    """One row of known thresholds: Φ₂(t_a, t_k; ρ) - p_a·p_k, integrated numerically."""
    p = torch.tensor([[0.3, 0.08]])
    none = torch.zeros(1)
    row = PredictedVisits(
        none.long(), torch.ones(1), p, torch.tensor([[True, False]]), none, none, none, none, none, none
    )
    series = PairMoments.of_visits(row).series[:, 0, 1].numpy()
    found = sum(term * correlation**j for j, term in enumerate(series, start=1))
    joint = multivariate_normal(cov=[[1, correlation], [correlation, 1]]).cdf(norm.ppf(p[0].double().numpy()))
    assert found == pytest.approx(joint - 0.3 * 0.08, abs=2e-4)


def test_pair_correlations_are_recovered_one_by_one() -> None:
    loadings = planted(0)
    found = pair_correlations(PairMoments.of_visits(drawn(loadings, 1)))
    truth = off_diagonal(loadings @ loadings.T)
    error = off_diagonal(found.correlation) - truth
    # Within the standard errors that come along, but for a curvature that they do not know of.
    scaled = error * np.sqrt(off_diagonal(found.information))
    assert np.abs(error).mean() < 0.02
    assert 0.7 < scaled.std() < 1.4


def test_planted_loadings_are_recovered_and_probabilities_kept() -> None:
    loadings = planted(2)
    visits = drawn(loadings, 3)
    heads = ResponseHeads(torch.full((C,), 0.2), 0)
    set_basket_loadings(heads, visits)
    found = heads.basket_loadings
    assert found.shape == (C, BASKET_RANK)
    truth = off_diagonal(loadings @ loadings.T)
    # Loadings are known up to a rotation: compare what they say of each pair.
    assert np.abs(off_diagonal(found @ found.T) - truth).mean() < 0.025
    assert np.corrcoef(off_diagonal(found @ found.T), truth)[0, 1] > 0.99
    assert float(found.square().sum(dim=1).max()) <= MOST_COMMUNALITY + 1e-6
    # Each purchase keeps its probability when it is drawn with the fitted loadings.
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(R, BASKET_RANK, generator=generator)
    x = z @ found.T + heads.basket_residual * torch.randn(R, C, generator=generator)
    share = (torch.special.ndtr(x) < visits.probability).float().mean(dim=0)
    np.testing.assert_allclose(share, visits.probability.mean(dim=0), atol=4 * 0.5 / np.sqrt(R))


def test_independent_purchases_have_next_to_no_loadings() -> None:
    heads = ResponseHeads(torch.full((C,), 0.2), 0)
    set_basket_loadings(heads, drawn(torch.zeros(C, 1).double(), 4))
    assert float((heads.basket_loadings @ heads.basket_loadings.T).triu(1).abs().max()) < 0.08


def test_a_pair_of_which_nothing_is_known_is_left_to_the_others() -> None:
    loadings = planted(5, rank=1)
    correlation = (loadings @ loadings.T).fill_diagonal_(0.0)
    information = torch.full((C, C), 1e4).double().fill_diagonal_(0.0)
    wrong = correlation.clone()
    wrong[0, 1] = wrong[1, 0] = -0.9
    information[0, 1] = information[1, 0] = 0.0
    found = factor_loadings(PairCorrelations(wrong, information), 1)
    np.testing.assert_allclose(off_diagonal(found @ found.T), off_diagonal(correlation), atol=0.03)


def test_a_row_of_weight_two_counts_as_one_user_drawn_twice() -> None:
    loadings = planted(6)
    count = torch.randint(0, 3, (R,), generator=torch.Generator().manual_seed(0)).float()
    weighted = PairMoments.of_visits(drawn(loadings, 7, count))
    once = PairMoments.of_visits(drawn(loadings, 7))
    found, plain = pair_correlations(weighted), pair_correlations(once)
    np.testing.assert_allclose(found.correlation, plain.correlation, atol=0.12)
    # A bootstrap knows no more than the sample: E[w²] / E[w]² = 5/3 rows stand for one.
    ratio = off_diagonal(plain.information).sum() / off_diagonal(found.information).sum()
    assert ratio == pytest.approx(5 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("n_categories", "rank"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (120, BASKET_RANK)]
)
def test_few_categories_identify_few_factors(n_categories: int, rank: int) -> None:
    assert identified_rank(n_categories) == rank


def test_trips_and_other_spend_are_tied_to_the_baskets() -> None:
    loadings = planted(8)
    heads = ResponseHeads(torch.full((C,), 0.2), 0)
    heads.basket_loadings[:, :3] = loadings.float()
    visits = drawn(loadings, 9)
    set_basket_ties(heads, visits)
    np.testing.assert_allclose(heads.trips_loadings[:3], [-0.5, 0.0, 0.0], atol=0.08)
    np.testing.assert_allclose(heads.other_spend_loadings[:3], [0.4, 0.0, 0.0], atol=0.08)
    assert heads.trips_loadings[3:].abs().max() == 0
    assert float(heads.other_spend_share) == pytest.approx(0.7, abs=0.02)
    assert float(heads.other_spend_deviation) == pytest.approx(0.9, abs=0.1)
    assert float(heads.trips_residual) == pytest.approx(np.sqrt(0.75), abs=0.05)


def test_the_spread_of_all_spend_is_that_of_a_lognormal_with_the_right_mean() -> None:
    visits = drawn(planted(8), 9)
    noise = torch.exp(0.6 * torch.randn(R, generator=torch.Generator().manual_seed(0)) - 0.18)
    heads = ResponseHeads(torch.full((C,), 0.2), 0)
    heads.other_spend_ratio.fill_(0.25)
    total = 1.25 * visits.expected_basket * noise
    visits = replace(visits, modelled_spend=0.8 * total, other_spend=0.2 * total)
    set_basket_ties(heads, visits)
    assert float(heads.basket_spend_deviation) == pytest.approx(0.6, abs=0.01)


def test_where_all_spend_is_modelled_there_is_no_other() -> None:
    visits = drawn(planted(8), 9)
    visits.other_spend.zero_()
    heads = ResponseHeads(torch.full((C,), 0.2), 0)
    set_basket_ties(heads, visits)
    assert float(heads.other_spend_deviation) == 0.0
    assert 0.0 < float(heads.other_spend_share) <= 1.0
    assert torch.isfinite(heads.other_spend_loadings).all()
