from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from encoders.panel import Panel
from encoders.predicted_visits import PredictedVisits
from encoders.response import ResponseHeads
from encoders.response_data import ResponseData, UserWeeks
from encoders.week_shocks import (
    LEVEL_WEEKS,
    MOST_DEVIATION,
    forecast_variance,
    set_week_deviations,
    shrunken,
)

WEEKS, N, C = 60, 1500, 12


def drawn(deviation: np.ndarray, seed: int, weeks: int = WEEKS) -> tuple[torch.Tensor, ...]:
    """Probabilities, what happened, and week of each row; shocks of a week and category by copula."""
    rng = np.random.default_rng(seed)
    week = np.repeat(np.arange(weeks), N) + 5
    p = 1 / (1 + np.exp(-rng.normal(-1.5, 0.8, (len(week), len(deviation)))))
    shock = deviation * rng.standard_normal((weeks, len(deviation)))
    x = shock[week - 5] + np.sqrt(1 - deviation**2) * rng.standard_normal(p.shape)
    # Averaged over weeks the probabilities are kept; within one they are not.
    return torch.from_numpy(p).float(), torch.from_numpy(norm.cdf(x) < p), torch.from_numpy(week)


@pytest.mark.parametrize("deviation", [0.0, 0.05, 0.15])
def test_the_deviation_of_shared_shocks_is_recovered(deviation: float) -> None:
    p, happened, week = drawn(np.full(C, deviation), 0)
    variance, error = forecast_variance(p, happened, week, torch.ones(len(week)))
    # A level of four weeks adds a quarter of the shocks' variance and of the noise to a forecast's error.
    noise = float((p * (1 - p)).mean()) / (N * float(np.mean(norm.pdf(norm.ppf(p)))) ** 2)
    expected = (1 + 1 / LEVEL_WEEKS) * deviation**2 + noise / LEVEL_WEEKS
    assert float(variance.mean()) == pytest.approx(expected, rel=0.15, abs=3e-4)
    assert float((variance - expected).std()) == pytest.approx(float(error.mean().sqrt()), rel=0.6)


def test_without_four_weeks_before_it_no_week_is_forecast() -> None:
    p, happened, week = drawn(np.full(C, 0.1), 1, weeks=LEVEL_WEEKS)
    variance, error = forecast_variance(p, happened, week, torch.ones(len(week)))
    assert variance.abs().max() == 0
    assert error.abs().max() == 0


def test_estimates_are_drawn_to_their_mean_as_far_as_they_are_noise() -> None:
    truth = torch.linspace(0.001, 0.02, 40)
    error = torch.full((40,), 0.004**2)
    noisy = truth + 0.004 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    found = shrunken(noisy, error)
    assert float((found - truth).square().mean()) < float((noisy - truth).square().mean())
    assert (found > 0).all()
    # Where there is nothing but noise all are alike.
    same = shrunken(0.01 + 0.001 * torch.randn(40), error)
    torch.testing.assert_close(same, same.mean().expand(40))


def test_nothing_that_varies_less_than_chance_becomes_negative() -> None:
    found = shrunken(torch.full((5,), -0.001), torch.full((5,), 1e-6))
    assert found.tolist() == [0.0] * 5


def test_deviations_of_visits_and_categories_are_set(make_panel: Callable[..., Panel]) -> None:
    panel = make_panel(n_users=3000, n_categories=6, log_weeks=48)
    rng = np.random.default_rng(3)
    weeks = panel.n_weeks
    heads = ResponseHeads(torch.full((6,), 0.2), 0)
    with torch.no_grad():
        heads.visit_bias.fill_(0.3)
        heads.purchase_bias.copy_(torch.linspace(-2.0, -0.5, 6))
        for effect in (heads.depth_level, heads.display_effect, heads.mailer_effect):
            effect.fill_(-30.0 if effect is heads.depth_level else 0.0)
    deviation = np.array([0.03, 0.05, 0.08, 0.1, 0.12, 0.5])

    def happened(p: np.ndarray, spread: np.ndarray | float, shape: tuple[int, ...]) -> np.ndarray:
        shock = spread * rng.standard_normal(shape[1:])
        x = shock + np.sqrt(1 - np.square(spread)) * rng.standard_normal(shape)
        return np.asarray(norm.cdf(x) < p)

    visited = happened(np.array(1 / (1 + np.exp(-0.3))), 0.08, (3000, weeks))
    p = 1 / (1 + np.exp(-np.linspace(-2.0, -0.5, 6)))
    bought = happened(p, deviation, (3000, weeks, 6)) & visited[:, :, None]
    data = ResponseData.of_panel(
        replace(panel, visited=visited, bought=bought, trips=visited.astype(np.uint8))
    )
    rows = UserWeeks.of_weeks(range(4, weeks), [4], torch.zeros(1, 3000, 0))
    set_week_deviations(heads, data, rows, PredictedVisits.of_rows(heads, data, rows))
    assert float(heads.visit_week_deviation) == pytest.approx(0.08 * np.sqrt(1.25), rel=0.3)
    found = heads.category_week_deviation.numpy()
    assert np.corrcoef(found[:5], deviation[:5])[0, 1] > 0.8
    # A category that jumps about is cut: the copula must leave room for the baskets.
    assert found[5] == pytest.approx(MOST_DEVIATION)
    rest = heads.basket_residual.square() + heads.category_week_deviation.square()
    torch.testing.assert_close(rest, torch.ones(6))
