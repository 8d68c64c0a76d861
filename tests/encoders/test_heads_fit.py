"""The heads end at the optimum of their penalised likelihood, and the optimum is near the truth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch

from encoders.heads_fit import HeadPriors, fit_heads
from encoders.history import HistoryState
from encoders.newton import WIDE_VARIANCE
from encoders.panel import Panel
from encoders.purchase_fit import REFIT_SWEEPS, SWEEPS
from encoders.response import PROMOTION_UNIT, ResponseHeads, taste_weight
from encoders.response_data import ResponseData, UserWeeks
from encoders.weeks import WeekSplit

DISPLAY, MAILER, FURTHER_TRIPS, D = 0.8, 0.5, 0.6, 3
FIRST_WEEK = 4
MakePanel = Callable[..., Panel]


def promoted_panel(n: int, c: int, seed: int, theta: float | np.ndarray = 3.0) -> Panel:
    """Visits at 70%, purchases by a logit with known promotion effects; nothing depends on the past."""
    rng = np.random.default_rng(seed)
    split = WeekSplit.of_log(31)
    weeks = split.report_end
    depth, display, mailer = rng.uniform(0, 0.4, (weeks, c)), rng.random((weeks, c)), rng.random((weeks, c))
    logit = rng.uniform(-3, -1.5, c) + theta * depth + DISPLAY * display + MAILER * mailer
    visited = rng.random((n, weeks)) < 0.7
    trips = (visited * rng.geometric(1 / (1 + FURTHER_TRIPS), visited.shape)).clip(max=255).astype(np.uint8)
    bought = (rng.random((n, weeks, c)) < 1 / (1 + np.exp(-logit))) & visited[:, :, None]
    spend = (bought * rng.lognormal(np.linspace(0.8, 1.6, c), np.linspace(0.4, 0.8, c), bought.shape)).astype(
        np.float32
    )
    return Panel(
        user_ids=np.array([str(i) for i in range(n)]),
        profiles=np.array([""] * n),
        categories=np.array([str(k) for k in range(c)]),
        departments=np.array(["d"] * c),
        bought=bought,
        visited=visited,
        trips=trips,
        coupon_used=np.zeros_like(visited),
        basket_spend=spend.sum(axis=2),
        category_spend=spend,
        promotion_depth=depth.astype(np.float32),
        display=display.astype(np.float32),
        mailer=mailer.astype(np.float32),
        split=split,
    )


def new_heads(data: ResponseData, embedding: int = 0) -> ResponseHeads:
    base = data.base_rate()
    heads = ResponseHeads(base, embedding)
    heads.set_scale(data.feature_scale(base))
    heads.category_match.copy_(
        torch.randn(data.panel.n_categories, embedding, generator=torch.Generator().manual_seed(8))
    )
    return heads.requires_grad_(False)


def train_weeks(data: ResponseData, embedding: int = 0, user_weight: torch.Tensor | None = None) -> UserWeeks:
    """All training weeks; users are embedded by noise, anew at two weeks."""
    embeddings = torch.randn(2, data.panel.n_users, embedding, generator=torch.Generator().manual_seed(9))
    weeks = range(FIRST_WEEK, data.panel.split.train_end)
    return UserWeeks.of_weeks(weeks, [FIRST_WEEK, FIRST_WEEK + 5], embeddings, user_weight)


def largest_difference(one: ResponseHeads, other: ResponseHeads) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel())


@cache
def promoted() -> tuple[ResponseData, ResponseHeads, HeadPriors]:
    data = ResponseData.of_panel(promoted_panel(n=700, c=8, seed=1))
    heads = new_heads(data)
    return data, heads, fit_heads(heads, data, train_weeks(data))


def test_promotion_effects_are_recovered() -> None:
    _, heads, _ = promoted()
    theta = heads.depth_effect()
    # Standard error of the mean is about 0.1.
    assert float(theta.mean()) == pytest.approx(3.0, abs=0.2)
    # All categories have the same θ, and the prior finds that out.
    assert float(theta.std()) < 0.25
    for effect, truth in ((heads.display_effect, DISPLAY), (heads.mailer_effect, MAILER)):
        assert float(effect.mean()) / PROMOTION_UNIT == pytest.approx(truth, abs=0.1)
        assert float(effect.std()) / PROMOTION_UNIT < 0.1


def test_visits_trips_and_spend_are_recovered() -> None:
    data, heads, _ = promoted()
    rows = train_weeks(data)
    state = data.tape.before(rows.week, rows.user)
    visit = torch.sigmoid(heads.visit_logit(state, data.calendar.weeks(rows.week)))
    visited = data.visited[rows.week, rows.user]
    # With an intercept the fit reproduces the mean; and nothing depends on the past.
    assert float(visit.mean()) == pytest.approx(float(visited.float().mean()), abs=1e-4)
    # Ninety coefficients on ten thousand rows leave a spread of sqrt(90 / 10,000 · 0.7 · 0.3).
    assert float(visit.std()) < 0.06
    further = heads.mean_further_trips(state)
    assert float(further.mean()) == pytest.approx(FURTHER_TRIPS, abs=0.03)
    assert float(further.std()) < 0.05
    utilities = heads(state, rows.embedding, data.calendar.weeks(rows.week))
    np.testing.assert_allclose(utilities.log_spend.mean(dim=0), np.linspace(0.8, 1.6, 8), atol=0.06)
    np.testing.assert_allclose(heads.spend_deviation, np.linspace(0.4, 0.8, 8), atol=0.04)
    assert float(heads.spend_depth) == pytest.approx(0.0, abs=0.15)


def test_categories_of_different_response_are_told_apart() -> None:
    theta = np.linspace(0.5, 6.0, 12)
    data = ResponseData.of_panel(promoted_panel(n=700, c=12, seed=2, theta=theta))
    heads = new_heads(data)
    fit_heads(heads, data, train_weeks(data))
    found = heads.depth_effect().numpy()
    assert np.corrcoef(found, theta)[0, 1] > 0.9
    assert np.abs(found - theta).mean() < 0.6


def double(state: HistoryState) -> HistoryState:
    kept = {f.name: getattr(state, f.name) for f in fields(HistoryState)}
    return HistoryState(**{k: v if k == "recent" else v.double() for k, v in kept.items()})


@cache
def small(embedding: int) -> tuple[ResponseData, UserWeeks, ResponseHeads, HeadPriors]:
    data = ResponseData.of_panel(promoted_panel(n=250, c=5, seed=3))
    heads, rows = new_heads(data, embedding), train_weeks(data, embedding)
    return data, rows, heads, fit_heads(heads, data, rows)


def trend_place(heads: ResponseHeads) -> int:
    """Where in a category's coefficients, and so in the prior, the trend stands."""
    before = (heads.purchase_features, heads.purchase_user, heads.purchase_rate_user)
    return 1 + sum(part.shape[1] for part in before)


def penalised_likelihood(
    heads: ResponseHeads, data: ResponseData, rows: UserWeeks, priors: HeadPriors
) -> torch.Tensor:
    """Minus the log posterior of the parameters, written down anew from the model's formulas."""
    rows = rows.where(data.visited[rows.week, rows.user])
    calendar = data.calendar.weeks(rows.week)
    calendar = type(calendar)(**{f.name: getattr(calendar, f.name).double() for f in fields(calendar)})
    utilities = heads(double(data.tape.before(rows.week, rows.user)), rows.embedding.double(), calendar)
    bought = data.bought[rows.week, rows.user].double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(utilities.purchase, bought, reduction="sum")
    stacked = torch.cat(
        [
            heads.purchase_bias[:, None],
            heads.purchase_features,
            heads.purchase_user,
            heads.purchase_rate_user,
            heads.purchase_trend[:, None],
            heads.purchase_month_start[:, None],
            heads.display_effect[:, None],
            heads.mailer_effect[:, None],
            heads.depth_level[:, None],
            *([heads.match_weight[:, None]] if heads.embedding else []),
            heads.purchase_embedding,
        ],
        dim=1,
    )
    loss = (
        loss
        + 0.5 * ((stacked - priors.purchase.category.mean) ** 2 / priors.purchase.category.variance).sum()
    )
    return loss + 0.5 * (heads.depth_embedding**2).sum() / priors.purchase.depth_embedding


@pytest.mark.parametrize("embedding", [0, D])
def test_the_gradient_of_the_penalised_likelihood_vanishes(embedding: int) -> None:
    data, rows, heads, priors = small(embedding)
    heads = copy.deepcopy(heads)
    for _ in range(3):
        fit_heads(heads, data, rows, priors=priors)
    heads = heads.double().requires_grad_(True)
    loss = penalised_likelihood(heads, data, rows, priors)
    loss.backward()
    names = [
        *("purchase_bias", "purchase_features", "purchase_user", "purchase_trend", "purchase_month_start"),
        "purchase_rate_user",
        *("display_effect", "mailer_effect", "depth_level"),
        *(["match_weight", "purchase_embedding", "depth_embedding"] if embedding else []),
    ]
    for name in names:
        # Of a sum over three thousand rows, in single precision.
        assert float(getattr(heads, name).grad.abs().max()) < 5e-3, name


@pytest.mark.parametrize("embedding", [0, D])
def test_visit_and_trips_are_at_their_optima(embedding: int) -> None:
    data, rows, heads, priors = small(embedding)
    heads = copy.deepcopy(heads)
    fit_heads(heads, data, rows, priors=priors)
    heads = heads.double().requires_grad_(True)
    state = double(data.tape.before(rows.week, rows.user))
    visited = data.visited[rows.week, rows.user]
    visit = heads.visit_logit(state, data.calendar.weeks(rows.week))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(visit, visited.double(), reduction="sum")
    wide = torch.cat(
        [heads.visit_bias[None], heads.visit_user, heads.visit_trend[None], heads.visit_month_start[None]]
    )
    loss = loss + 0.5 * (wide**2).sum() / WIDE_VARIANCE
    # A geometric likelihood of the further trips, with a standard normal prior.
    mean = heads.mean_further_trips(state)[visited]
    trips = torch.from_numpy(data.panel.trips)[rows.user, rows.week][visited].double()
    loss = loss - ((trips - 1) * torch.log(mean / (1 + mean)) - torch.log1p(mean)).sum()
    loss = loss + 0.5 * (heads.trips_bias**2 + (heads.trips_features**2).sum())
    loss.backward()
    names = ["visit_bias", "visit_user", "visit_trend", "visit_month_start", "trips_bias", "trips_features"]
    for name in names:
        assert float(getattr(heads, name).grad.abs().max()) < 5e-3, name


@pytest.mark.parametrize("embedding", [0, D])
def test_spend_is_the_weighted_least_squares_solution(embedding: int) -> None:
    data, rows, heads, priors = small(embedding)
    state = data.tape.before(rows.week, rows.user)
    row, category = data.bought[rows.week, rows.user].nonzero(as_tuple=True)
    q, e = heads.user_terms(state)[row], rows.embedding[row]
    depth = data.calendar.depth[rows.week[row], category]
    dummies = torch.nn.functional.one_hot(category, heads.n_categories)
    month = data.calendar.month_start[rows.week[row]]
    x = torch.cat([dummies, q, depth[:, None], month[:, None], e], dim=1).double()
    weight = 1 / heads.spend_deviation[category].double() ** 2
    precision = torch.zeros(x.shape[1]).double()
    precision[heads.n_categories :] = 1 / WIDE_VARIANCE
    precision[x.shape[1] - embedding :] = 1 / priors.spend_embedding
    y = data.log_spend[rows.week[row], rows.user[row], category].double()
    solution = torch.linalg.solve((x.T * weight) @ x + torch.diag(precision), (x.T * weight) @ y)
    predicted = heads(state, rows.embedding, data.calendar.weeks(rows.week)).log_spend[row, category]
    # Coefficients and spreads are found in turns, of which the last one is the spreads'.
    torch.testing.assert_close(predicted.double(), x @ solution, rtol=0, atol=0.02)
    # And the spreads are those of the residuals, with one imagined purchase each.
    for c in range(heads.n_categories):
        own = category == c
        residual = (y - predicted)[own]
        square = (float((residual**2).sum()) + 0.5) / (int(own.sum()) + 1)
        assert float(heads.spend_deviation[c]) == pytest.approx(square**0.5, rel=2e-3)


def test_the_fitted_prior_is_near_the_spread_of_the_categories() -> None:
    _, heads, priors = promoted()
    # The depth's place is the fourth after the trend's; all categories are alike here.
    place = trend_place(heads) + 4
    mean = float(torch.nn.functional.softplus(priors.purchase.category.mean[place])) / PROMOTION_UNIT
    assert mean == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize("embedding", [0, D])
def test_a_row_of_weight_two_is_the_row_given_twice(embedding: int) -> None:
    data = ResponseData.of_panel(promoted_panel(n=60, c=3, seed=4))
    count = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(0))
    weighted = train_weeks(data, embedding, count)
    assert set(weighted.weight.tolist()) == {1.0, 2.0}
    everyone = train_weeks(data, embedding)
    repeated = everyone.where(torch.arange(len(everyone)).repeat_interleave(count[everyone.user]))
    with_zeros = replace(everyone, weight=count[everyone.user].float())
    results = []
    for rows in (weighted, repeated, with_zeros):
        heads = new_heads(data, embedding)
        priors = fit_heads(heads, data, rows)
        results.append((heads, priors))
    # Sums over rows in another order, in single precision.
    assert largest_difference(results[0][0], results[1][0]) < 0.03
    torch.testing.assert_close(
        results[0][1].purchase.category.variance,
        results[1][1].purchase.category.variance,
        rtol=1e-2,
        atol=1e-5,
    )
    assert largest_difference(results[0][0], results[2][0]) == 0.0


def test_a_category_that_nobody_buys_stays_finite_and_at_the_prior() -> None:
    panel = promoted_panel(n=150, c=4, seed=5)
    panel.bought[:, :, 1] = False
    panel.category_spend[:, :, 1] = 0.0
    data = ResponseData.of_panel(panel)
    heads, rows = new_heads(data), train_weeks(data)
    priors = fit_heads(heads, data, rows)
    for name, parameter in heads.named_parameters():
        assert torch.isfinite(parameter).all(), name
    state = data.tape.before(rows.week, rows.user)
    chance = torch.sigmoid(heads(state, rows.embedding, data.calendar.weeks(rows.week)).purchase)
    assert float(chance[:, 1].mean()) < 2e-3
    assert float(chance[:, 1].max()) < 0.15
    trend = trend_place(heads)
    places = (trend + 2, trend + 3, trend + 4)
    found = (heads.display_effect[1], heads.mailer_effect[1], heads.depth_level[1])
    for value, place in zip(found, places, strict=True):
        mean, variance = priors.purchase.category.mean[place], priors.purchase.category.variance[place]
        assert abs(float(value - mean)) < 0.5 * float(variance.sqrt())


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_a_promotion_that_does_not_vary_stays_at_the_prior(constant: float) -> None:
    panel = promoted_panel(n=150, c=4, seed=6)
    for name in ("promotion_depth", "display", "mailer"):
        getattr(panel, name)[:, 2] = constant
    data = ResponseData.of_panel(panel)
    heads = new_heads(data)
    priors = fit_heads(heads, data, train_weeks(data))
    trend = trend_place(heads)
    found = (heads.display_effect[2], heads.mailer_effect[2], heads.depth_level[2])
    for place, value in zip((trend + 2, trend + 3, trend + 4), found, strict=True):
        mean, variance = priors.purchase.category.mean[place], priors.purchase.category.variance[place]
        assert abs(float(value - mean)) < 0.1 * float(variance.sqrt())


def test_a_market_without_promotion_is_fitted_to_the_first_guess(make_panel: MakePanel) -> None:
    panel = make_panel(n_users=40, n_categories=3)
    for name in ("promotion_depth", "display", "mailer"):
        getattr(panel, name)[:] = 0.0
    data = ResponseData.of_panel(panel)
    heads = new_heads(data)
    fit_heads(heads, data, train_weeks(data))
    assert heads.depth_level.tolist() == pytest.approx([-1.5] * 3, abs=1e-5)
    assert heads.display_effect.abs().max() < 1e-6
    assert heads.mailer_effect.abs().max() < 1e-6


def test_a_refit_with_given_priors_repeats_itself_and_ends_near_the_full_fit() -> None:
    data, rows, full, priors = small(D)
    again = []
    for _ in range(2):
        heads, sweeps = new_heads(data, D), []
        kept = fit_heads(heads, data, rows, priors=priors, advance=lambda: sweeps.append(1))  # noqa: B023
        assert len(sweeps) == REFIT_SWEEPS < SWEEPS
        assert kept == priors
        again.append(heads)
    assert largest_difference(*again) == 0.0
    state, calendar = data.tape.before(rows.week, rows.user), data.calendar.weeks(rows.week)
    one, other = (heads(state, rows.embedding, calendar) for heads in (full, again[0]))
    difference = (torch.sigmoid(one.purchase) - torch.sigmoid(other.purchase)).abs()
    assert float(difference.mean()) < 0.006
    assert float(difference.max()) < 0.04
    torch.testing.assert_close(torch.sigmoid(one.visit), torch.sigmoid(other.visit), rtol=0, atol=0.002)
    torch.testing.assert_close(one.log_spend, other.log_spend, rtol=0, atol=0.02)


def test_calibration_and_redemption_are_left_alone() -> None:
    _, _, heads, _ = small(D)
    start = new_heads(small(D)[0], D)
    for name in ("calibration", "basket_loadings", "other_spend_ratio", "category_match", "base_rate"):
        assert torch.equal(getattr(heads, name), getattr(start, name))
    for name, parameter in heads.named_parameters():
        if name.startswith("redemption"):
            assert torch.equal(parameter, start.get_parameter(name))


def test_embeddings_that_are_all_alike_let_nothing_diverge() -> None:
    """As of an untrained encoder: columns that are nearly multiples of the intercept, and few users."""
    data = ResponseData.of_panel(promoted_panel(n=40, c=6, seed=9))
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(64, generator=generator)
    embeddings = (centre + 0.05 * torch.randn(40, 64, generator=generator))[None]
    heads = new_heads(data, 64)
    weeks = range(FIRST_WEEK, data.panel.split.train_end)
    rows = UserWeeks.of_weeks(weeks, [FIRST_WEEK], embeddings)
    fit_heads(heads, data, rows)
    for name, parameter in heads.named_parameters():
        assert torch.isfinite(parameter).all(), name
    level = heads.depth_level + (rows.embedding @ heads.depth_embedding)[:, None]
    assert float(level.abs().max()) < 20


def test_an_embedding_that_matters_is_found_and_noise_is_shrunk() -> None:
    panel = promoted_panel(n=500, c=6, seed=7)
    rng = np.random.default_rng(8)
    taste = rng.standard_normal((500, 2)).astype(np.float32)
    # Half of the categories go with the first number; the second number is noise.
    lift = np.where(np.arange(6) < 3, 1.0, 0.0)
    chance = 1 / (1 + np.exp(2.0 - lift * taste[:, :1]))[:, None, :]
    panel.bought[:] = (rng.random(panel.bought.shape) < chance) & panel.visited[:, :, None]
    panel.category_spend[:] = panel.bought
    data = ResponseData.of_panel(panel)
    heads = new_heads(data, 2)
    heads.category_match.zero_()
    embeddings = torch.from_numpy(taste)[None]
    # History would tell the same in time; here the text has the word alone.
    weeks = range(FIRST_WEEK, panel.split.train_end)
    fit_heads(heads, data, UserWeeks.of_weeks(weeks, [FIRST_WEEK], embeddings))
    # At the weight that the users' own purchases leave them.
    state = data.tape.week(panel.split.train_end)
    vectors = heads.category_vectors() * taste_weight(state, heads.base_rate).mean(dim=0)[:, None]
    assert (vectors[:3, 0] > 0.3).all()
    assert vectors[3:].abs().max() < 0.12
    assert vectors[:, 1].abs().max() < 0.12
