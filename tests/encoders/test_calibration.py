from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import norm

from encoders.basket import set_basket_loadings
from encoders.calibration import (
    LEAST_SLOPE,
    REDEMPTION_RIDGE,
    calibrate,
    calibrate_amounts,
    category_shifts,
    fit_redemption,
    linear_predictors,
    platt_scaling,
)
from encoders.panel import Panel
from encoders.predicted_visits import PredictedVisits
from encoders.response import ResponseHeads, taste_weight
from encoders.response_data import ResponseData, UserWeeks

C = 20
MakePanel = Callable[..., Panel]


def truth(depth: torch.Tensor) -> torch.Tensor:
    """Marginal purchase logits [..., C] at shelf depths [..., C]."""
    return torch.linspace(-2.5, -0.5, C) + 2.0 * depth


def true_heads() -> ResponseHeads:
    """Heads that predict exactly :func:`truth`, and a visit logit of 0.6."""
    heads = ResponseHeads(torch.full((C,), 0.2), 0)
    with torch.no_grad():
        heads.visit_bias.fill_(0.6)
        heads.purchase_bias.copy_(truth(torch.zeros(C)))
        heads.depth_level.fill_(float(np.log(np.expm1(0.2))))
    return heads


def simulated(make_panel: MakePanel, n: int, correlation: float, seed: int) -> ResponseData:
    """Visits and baskets drawn from the model; a Gaussian copula ties the purchases of a visit together."""
    panel = make_panel(n_users=n, n_categories=C)
    rng = np.random.default_rng(seed)
    visited = rng.random(panel.visited.shape) < 1 / (1 + np.exp(-0.6))
    probability = 1 / (1 + np.exp(-truth(torch.from_numpy(panel.promotion_depth)).numpy()))
    shared = np.sqrt(correlation) * rng.standard_normal((*visited.shape, 1))
    own = np.sqrt(1 - correlation) * rng.standard_normal((*visited.shape, C))
    bought = (norm.cdf(shared + own) < probability) & visited[:, :, None]
    spend = (2.0 * bought).astype(np.float32)
    return ResponseData.of_panel(
        replace(
            panel,
            visited=visited,
            trips=visited.astype(np.uint8),
            bought=bought,
            category_spend=spend,
            basket_spend=1.3 * spend.sum(axis=2),
        )
    )


def all_weeks(data: ResponseData, user_weight: torch.Tensor | None = None) -> UserWeeks:
    embeddings = torch.zeros(1, data.panel.n_users, 0)
    return UserWeeks.of_weeks(range(4, data.panel.n_weeks), [4], embeddings, user_weight)


def test_linear_predictors_are_those_of_each_row(make_panel: MakePanel) -> None:
    data = simulated(make_panel, 300, 0.0, 0)
    rows = all_weeks(data)
    assert len(rows) > 2048  # more than one chunk
    visit, purchase = linear_predictors(true_heads(), data, rows)
    assert visit.shape == (len(rows),)
    np.testing.assert_allclose(visit, 0.6, rtol=1e-5)
    np.testing.assert_allclose(purchase, truth(data.calendar.depth[rows.week]).numpy(), rtol=1e-4, atol=1e-4)


def test_linear_predictors_read_the_rows_embedding(make_panel: MakePanel) -> None:
    data = simulated(make_panel, 30, 0.0, 0)
    heads = ResponseHeads(torch.full((C,), 0.2), 2)
    with torch.no_grad():
        heads.purchase_embedding.copy_(torch.tensor([1.0, -0.5]))
    embeddings = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(0))
    rows = UserWeeks.of_weeks([4, 9], [4, 8], embeddings)
    plain = linear_predictors(heads, data, replace(rows, embedding=0 * rows.embedding))[1]
    _, purchase = linear_predictors(heads, data, rows)
    weight = taste_weight(data.tape.before(rows.week, rows.user), heads.base_rate)
    tastes = torch.cat([embeddings[0], embeddings[1]]) @ heads.purchase_embedding.detach().T
    expected = weight * tastes
    np.testing.assert_allclose(purchase - plain, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_calibration_undoes_a_distorted_head(make_panel: MakePanel) -> None:
    data = simulated(make_panel, 600, 0.0, 1)
    rows, heads = all_weeks(data), true_heads()
    # The head says 0.5·u + 1 where u is true; slope 2 and intercept -2 set it right.
    heads.calibration[1] = torch.tensor([0.5, 1.0])
    calibrate(heads, data, rows)
    # Composed with what was there: 2·(0.5·u + 1) - 2 = u.
    assert heads.calibration[1].tolist() == pytest.approx([1.0, 0.0], abs=0.06)
    visit, purchase = linear_predictors(heads, data, rows)
    np.testing.assert_allclose(purchase, truth(data.calendar.depth[rows.week]).numpy(), atol=0.08)
    p = 1 / (1 + np.exp(-0.6))
    assert 1 / (1 + np.exp(-visit.mean())) == pytest.approx(p, abs=0.01)


@pytest.mark.parametrize(("slope", "shift"), [(3.0, 0.0), (2.0, 0.0), (1.0, -4.0), (1.0, 4.0), (0.3, 0.0)])
def test_platt_scaling_finds_the_optimum_from_far_off(slope: float, shift: float) -> None:
    """Too sure by a factor, or off by a shift: rare labels, as of purchases."""
    rng = np.random.default_rng(0)
    true = rng.normal(-3.2, 1.3, 80_000)
    label = rng.random(len(true)) < 1 / (1 + np.exp(-true))
    given = (slope * true + shift).astype(np.float32)
    found = platt_scaling(given, label, np.ones(len(true), dtype=np.float32))
    assert found[0] == pytest.approx(1 / slope, rel=0.05)
    assert found[1] == pytest.approx(-shift / slope, abs=0.15)


def test_platt_scaling_where_labels_are_all_alike_is_finite() -> None:
    logit = np.random.default_rng(1).normal(-3.0, 1.0, 500).astype(np.float32)
    for label in (np.ones(500, dtype=bool), np.zeros(500, dtype=bool)):
        found = platt_scaling(logit, label, np.ones(500, dtype=np.float32))
        assert np.abs(found).max() < 20
        p = 1 / (1 + np.exp(-(found[0] * logit + found[1])))
        assert np.abs(p - label).max() < 0.05


def test_a_head_that_is_upside_down_is_flattened_and_right_on_average() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(-1.7, 1.0, 20_000)
    label = rng.random(len(true)) < 1 / (1 + np.exp(-true))
    slope, intercept = platt_scaling((-true).astype(np.float32), label, np.ones(len(true), dtype=np.float32))
    assert slope == LEAST_SLOPE
    assert (1 / (1 + np.exp(-(slope * -true + intercept)))).mean() == pytest.approx(label.mean(), abs=1e-4)


def shifted(n: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels drawn at logits that a category's shift has moved, and the shifts."""
    rng = np.random.default_rng(seed)
    true = spread * rng.standard_normal(40)
    logit = (rng.standard_normal((n, 40)) - np.linspace(0.5, 4.0, 40)).astype(np.float32)
    label = rng.random((n, 40)) < 1 / (1 + np.exp(-(logit + true)))
    return logit, label, true


def test_shifts_of_categories_are_found_and_shrunk_where_little_is_seen() -> None:
    logit, label, true = shifted(8000, 0.2, 0)
    found = category_shifts(logit, label, np.ones(8000, dtype=np.float32))
    assert np.corrcoef(found, true)[0, 1] > 0.95
    frequent, rare = slice(0, 10), slice(30, 40)
    np.testing.assert_allclose(found[frequent], true[frequent], atol=0.08)
    assert np.abs(found[rare]).mean() < np.abs(true[rare]).mean()
    # At the optimum of the penalised likelihood: the score equals the penalty, at one and the same τ.
    p = 1 / (1 + np.exp(-(logit + found)))
    variance = found / (label - p).sum(axis=0)
    np.testing.assert_allclose(variance[np.abs(found) > 0.02], np.median(variance), rtol=0.05)


def test_where_nothing_shifted_hardly_anything_is_added() -> None:
    logit, label, _ = shifted(8000, 0.0, 1)
    assert np.abs(category_shifts(logit, label, np.ones(8000, dtype=np.float32))).max() < 0.06


def test_predictions_that_are_far_off_do_not_let_the_shifts_diverge() -> None:
    label = np.array([[True, False]] * 30)
    logit = np.array([[-40.0, 40.0]] * 30, dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = category_shifts(logit, label, np.ones(30, dtype=np.float32))
    assert np.isfinite(found).all()
    assert found[0] > 0 > found[1]


def test_a_row_that_counts_twice_is_two_rows_to_the_shifts() -> None:
    logit, label, _ = shifted(500, 0.2, 2)
    count = np.random.default_rng(3).integers(0, 3, 500)
    repeated = np.arange(500).repeat(count)
    np.testing.assert_allclose(
        category_shifts(logit, label, count.astype(np.float32)),
        category_shifts(logit[repeated], label[repeated], np.ones(len(repeated), dtype=np.float32)),
        atol=1e-5,
    )


def test_calibration_moves_a_category_that_has_moved(make_panel: MakePanel) -> None:
    data = simulated(make_panel, 600, 0.0, 1)
    heads = true_heads()
    with torch.no_grad():
        heads.purchase_bias[3] -= 0.5
    calibrate(heads, data, all_weeks(data))
    # What the intercept of all has not already taken up.
    assert float(heads.category_shift[3] + heads.calibration[1, 1]) == pytest.approx(0.45, abs=0.1)
    others = torch.cat([heads.category_shift[:3], heads.category_shift[4:]])
    assert float(others.abs().max()) < 0.15
    _, purchase = linear_predictors(heads, data, all_weeks(data))
    rows = all_weeks(data)
    np.testing.assert_allclose(purchase, truth(data.calendar.depth[rows.week]).numpy(), atol=0.2)


def test_calibration_twice_changes_nothing(make_panel: MakePanel) -> None:
    data = simulated(make_panel, 200, 0.0, 2)
    rows, heads = all_weeks(data), true_heads()
    heads.calibration[1] = torch.tensor([0.7, 0.4])
    calibrate(heads, data, rows)
    once = heads.calibration.clone()
    calibrate(heads, data, rows)
    # Shrunken shifts leave a little for the next time.
    torch.testing.assert_close(heads.calibration[1], once[1], rtol=0, atol=2e-3)


def amounts(make_panel: MakePanel, seed: int) -> tuple[ResponseData, ResponseHeads]:
    """1 + Geometric(mean 0.9) trips, lognormal spend, and half as much again outside the categories."""
    data = simulated(make_panel, 900, 0.1, seed)
    rng, panel = np.random.default_rng(seed + 100), data.panel
    further = rng.geometric(1 / 1.9, panel.visited.shape) - 1
    spend = panel.bought * rng.lognormal(1.2, 0.5, panel.bought.shape)
    panel = replace(
        panel,
        trips=(panel.visited * (1 + further)).clip(max=255).astype(np.uint8),
        category_spend=spend.astype(np.float32),
        basket_spend=(1.5 * spend.sum(axis=2)).astype(np.float32),
    )
    heads = true_heads()
    with torch.no_grad():
        heads.spend_log_deviation.fill_(float(np.log(0.5)))
    return ResponseData.of_panel(panel), heads


def test_levels_of_trips_and_spend_that_are_off_are_set_right(make_panel: MakePanel) -> None:
    data, heads = amounts(make_panel, 7)
    rows = all_weeks(data)
    with torch.no_grad():
        heads.trips_bias.fill_(float(np.log(0.6)))
        heads.spend_level.fill_(0.9)
    calibrate_amounts(heads, PredictedVisits.of_rows(heads, data, rows))
    # The cap at seven trips takes nothing from the level: it is allowed for on both sides.
    assert float(heads.trips_bias.detach().exp()) == pytest.approx(0.9, rel=0.03)
    np.testing.assert_allclose(heads.spend_level.detach(), 1.2, atol=0.01)
    assert float(heads.other_spend_ratio) == pytest.approx(0.5, abs=1e-5)
    visits = PredictedVisits.of_rows(heads, data, rows)
    assert float(visits.expected_spend.sum()) == pytest.approx(float(visits.modelled_spend.sum()), rel=1e-4)
    once = heads.trips_bias.clone(), heads.spend_level.clone()
    calibrate_amounts(heads, visits)
    torch.testing.assert_close((heads.trips_bias, heads.spend_level), once, rtol=0, atol=1e-4)


def test_amounts_of_no_visits_stay_where_they_are(make_panel: MakePanel) -> None:
    data, heads = amounts(make_panel, 7)
    rows = all_weeks(data)
    start = heads.trips_bias.clone(), heads.spend_level.clone()
    none = rows.where(torch.arange(0))
    calibrate_amounts(heads, PredictedVisits.of_rows(heads, data, none))
    torch.testing.assert_close((heads.trips_bias, heads.spend_level), start, rtol=0, atol=0)


def test_a_row_of_weight_two_is_the_row_given_twice(make_panel: MakePanel) -> None:
    data = simulated(make_panel, 80, 0.2, 5)
    count = torch.randint(0, 3, (80,), generator=torch.Generator().manual_seed(0))
    weighted = all_weeks(data, count)
    once = all_weeks(data)
    repeated = once.where(torch.arange(len(once)).repeat_interleave(count[once.user]))
    results = []
    for rows in (weighted, repeated, once):
        heads = true_heads()
        heads.calibration[1] = torch.tensor([0.7, 0.4])
        calibrate(heads, data, rows)
        visits = PredictedVisits.of_rows(heads, data, rows)
        calibrate_amounts(heads, visits)
        set_basket_loadings(heads, visits)
        correlation = (heads.basket_loadings @ heads.basket_loadings.T).flatten()
        levels = torch.stack([heads.trips_bias, heads.other_spend_ratio])
        results.append(torch.cat([heads.calibration.flatten(), levels, correlation]))
    n_levels = len(heads.calibration.flatten()) + 2
    torch.testing.assert_close(results[0][:n_levels], results[1][:n_levels], rtol=1e-4, atol=1e-5)
    # A user drawn twice tells no more of a pair than once: only the pairs' weights differ.
    torch.testing.assert_close(results[0][n_levels:], results[1][n_levels:], rtol=0, atol=0.01)
    assert float((results[0] - results[2]).detach().abs().max()) > 1e-3


def test_redemption_is_the_ridge_optimum(make_panel: MakePanel) -> None:
    data = ResponseData.of_panel(make_panel(n_users=60, n_categories=3))
    rng = np.random.default_rng(4)
    m, d = 1500, 2
    user, week = rng.integers(0, 60, m), rng.integers(5, 15, m)
    embedding = torch.from_numpy(rng.standard_normal((m, d)).astype(np.float32))
    redeemed = rng.random(m) < 1 / (1 + np.exp(1.0 - 1.5 * embedding[:, 0].numpy()))
    heads = ResponseHeads(torch.full((3,), 0.2), d)
    fit_redemption(heads, data, user, week, redeemed, embedding)

    with torch.no_grad():
        state = data.tape.before(torch.from_numpy(week), torch.from_numpy(user))
        x = torch.cat([heads.standard_user_features(state), embedding], dim=1).double().numpy()

    def objective(w: np.ndarray) -> float:
        logit = w[0] + x @ w[1:]
        return float(
            (np.logaddexp(0, logit) - redeemed * logit).sum() + REDEMPTION_RIDGE * (w[1:] ** 2).sum()
        )

    best = minimize(objective, np.zeros(1 + x.shape[1]), method="BFGS")
    fitted = torch.cat([heads.redemption_bias[None], heads.redemption_features, heads.redemption_embedding])
    assert objective(fitted.detach().double().numpy()) == pytest.approx(best.fun, rel=1e-5)
    np.testing.assert_allclose(fitted.detach().numpy()[-d:], best.x[-d:], atol=0.01)
    # Shrunken, but of the right sign and size.
    assert 1.0 < float(heads.redemption_embedding[0].detach()) < 1.6


def test_without_redemptions_the_prior_stays(make_panel: MakePanel) -> None:
    heads = ResponseHeads(torch.full((3,), 0.2), 0)
    none = np.zeros(0, dtype=np.int64)
    data = ResponseData.of_panel(make_panel(n_users=2, n_categories=3))
    fit_redemption(heads, data, none, none, np.zeros(0, dtype=np.bool_), torch.zeros(0, 0))
    assert float(heads.redemption_bias.detach()) == pytest.approx(-2.3)
