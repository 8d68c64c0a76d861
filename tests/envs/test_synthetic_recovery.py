"""The heads that are fitted to a synthetic log find the response that is behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from encoders.heads_fit import HeadPriors, fit_heads
from encoders.history import category_features
from encoders.response import PROMOTION_UNIT, TERM_LIMIT, ResponseHeads
from encoders.response_data import ResponseData, UserWeeks
from envs.logs import open_logs
from envs.panel_from_logs import build_panel
from envs.synthetic import SyntheticConfig, SyntheticTruth, generate

CONFIG = SyntheticConfig(n_users=800, n_categories=20, n_campaigns=0, purchase_logit=-2.0)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """A fit beside its truth; ``theta`` is in the panel's order of categories."""

    truth: SyntheticTruth
    theta: Floats
    data: ResponseData
    rows: UserWeeks
    heads: ResponseHeads
    priors: HeadPriors


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    directory = tmp_path_factory.mktemp("market")
    truth = generate(CONFIG, 1, directory)
    return fit(truth, directory)


def fit(truth: SyntheticTruth, directory: Path) -> Fitted:
    with open_logs(directory) as logs:
        panel = build_panel(logs, n_categories=CONFIG.n_categories, pseudonym_key=b"0123456789abcdef")
    data = ResponseData.of_panel(panel)
    base = data.base_rate()
    heads = ResponseHeads(base, 0).requires_grad_(False)
    heads.set_scale(data.feature_scale(base))
    first = 8
    rows = UserWeeks.of_weeks(range(first, panel.split.train_end), [first], torch.zeros(1, panel.n_users, 0))
    priors = fit_heads(heads, data, rows)
    names = truth.categories.tolist()
    order = [names.index(name) for name in panel.categories.tolist()]
    return Fitted(
        truth, truth.theta[order], data, rows.where(data.visited[rows.week, rows.user]), heads, priors
    )


def depth_level_deviation(fitted: Fitted) -> Floats:
    """Posterior standard deviation of each category's depth level, [C], by Laplace's approximation."""
    heads, rows, calendar = fitted.heads, fitted.rows, fitted.data.calendar
    state = fitted.data.tape.before(rows.week, rows.user)
    chance = torch.sigmoid(heads(state, rows.embedding, calendar.weeks(rows.week)).purchase).double()
    phi = torch.stack(category_features(state, heads.base_rate), dim=2)
    phi = (phi - heads.category_mean) / heads.category_std
    g = heads.user_terms(state)
    out = []
    for c in range(heads.n_categories):
        promotion = torch.stack(
            [
                part[rows.week, c] / PROMOTION_UNIT
                for part in (calendar.display, calendar.mailer, calendar.depth)
            ],
            dim=1,
        )
        promotion[:, 2] *= torch.sigmoid(heads.depth_level[c])
        trend = calendar.category_trend[rows.week, c, None]
        with_rate = g[:, : heads.purchase_rate_user.shape[1]].clamp(-TERM_LIMIT, TERM_LIMIT) * phi[:, c, :1]
        month = calendar.month_start[rows.week, None]
        columns = [torch.ones(len(g), 1), phi[:, c], g, with_rate, trend, month, promotion]
        x = torch.cat(columns, dim=1).double()
        weight = chance[:, c] * (1 - chance[:, c])
        hessian = (x * weight[:, None]).T @ x + torch.diag(fitted.priors.purchase.category.precision)
        out.append(float(torch.linalg.inv(hessian)[-1, -1].sqrt()))
    return np.array(out)


def test_depth_elasticities_are_recovered(fitted: Fitted) -> None:
    found = fitted.heads.depth_effect().double().numpy()
    assert found.mean() == pytest.approx(fitted.theta.mean(), abs=0.2)
    assert np.corrcoef(found, fitted.theta)[0, 1] > 0.75
    # Better than one elasticity for all, though this one knows the truth's mean.
    error = np.square(found - fitted.theta).mean()
    assert error < 0.6 * np.square(fitted.theta.mean() - fitted.theta).mean()


def test_depth_elasticities_lie_within_their_intervals(fitted: Fitted) -> None:
    deviation = depth_level_deviation(fitted)
    level = fitted.heads.depth_level.double().numpy()
    low, high = (np.logaddexp(0, level + z * deviation) / PROMOTION_UNIT for z in (-1.96, 1.96))
    inside = (low < fitted.theta) & (fitted.theta < high)
    assert inside.mean() >= 0.85
    # And the intervals say something: they are narrower than the elasticities' own size.
    assert (high - low).mean() < 0.6 * fitted.theta.mean()


def test_display_and_mailer_are_recovered(fitted: Fitted) -> None:
    for effect, truth in (
        (fitted.heads.display_effect, fitted.truth.kappa_display),
        (fitted.heads.mailer_effect, fitted.truth.kappa_mailer),
    ):
        found = effect.double().numpy() / PROMOTION_UNIT
        assert found.mean() == pytest.approx(truth, abs=0.08)
        # One effect for all categories is behind the log, and the fit hardly tells them apart.
        assert found.std() < 0.1


def test_spend_is_recovered(fitted: Fitted) -> None:
    names = fitted.truth.categories.tolist()
    order = [names.index(name) for name in fitted.data.panel.categories.tolist()]
    rows, heads = fitted.rows, fitted.heads
    state = fitted.data.tape.before(rows.week, rows.user)
    calendar = fitted.data.calendar.weeks(rows.week)
    predicted = heads(state, rows.embedding, calendar).log_spend - torch.log1p(-calendar.depth)
    np.testing.assert_allclose(predicted.mean(dim=0), fitted.truth.log_spend_mean[order], atol=0.1)
    assert float(heads.spend_deviation.mean()) == pytest.approx(fitted.truth.log_spend_sd, rel=0.05)
    # Spend is proportional to 1 - depth, whose logarithm falls by 1.1 to 1.7 a unit at these depths.
    assert -1.8 < float(heads.spend_depth) < -0.9


def test_every_visit_is_one_trip(fitted: Fitted) -> None:
    state = fitted.data.tape.before(fitted.rows.week, fitted.rows.user)
    assert float(fitted.heads.mean_further_trips(state).max()) < 0.02
