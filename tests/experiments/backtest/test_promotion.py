from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.response import ResponseHeads
from encoders.response_data import ResponseData
from experiments.backtest.predictions import EmbeddingTable
from experiments.backtest.promotion import PROMOTIONS, promotion_response, replay_purchases

EFFECTS = {"depth": 2.0, "display": 0.8, "mailer": 0.5}


def purchase_probability(data: ResponseData, weeks: range) -> np.ndarray:
    """[W, C] of a purchase given a visit, by the formula that the panel was drawn from."""
    logit = torch.linspace(-2.5, -0.5, data.panel.n_categories).double()
    for name, effect in EFFECTS.items():
        logit = logit + effect * getattr(data.calendar, name)[list(weeks)].double()
    return torch.sigmoid(logit).numpy()


def test_a_replay_expects_purchases_of_visitors_only(
    heads: ResponseHeads, data: ResponseData, embeddings: EmbeddingTable
) -> None:
    weeks = range(6, 20)
    visits = data.visited[list(weeks)].sum(dim=1).numpy()
    expected = purchase_probability(data, weeks).T * visits
    replayed = replay_purchases(heads, data, embeddings, weeks)
    np.testing.assert_allclose(replayed, expected, rtol=1e-5)


@pytest.mark.parametrize("name", PROMOTIONS)
def test_more_promotion_adds_the_logit_effect_less_saturation(
    name: str, heads: ResponseHeads, data: ResponseData, embeddings: EmbeddingTable
) -> None:
    weeks = range(6, 20)
    base = replay_purchases(heads, data, embeddings, weeks)
    more = replay_purchases(heads, data, embeddings, weeks, more=name)
    expected = EFFECTS[name] * (1 - purchase_probability(data, weeks).T)
    np.testing.assert_allclose(np.log(more / base) / 0.01, expected, rtol=0.02)


def test_the_true_model_responds_as_its_own_logs_do(
    make_data: Callable[..., ResponseData], heads: ResponseHeads
) -> None:
    data = make_data(n_users=1500, seed=3)
    starts = EmbeddingTable(np.array([4]), torch.zeros(1, 1500, 0))
    weeks = range(4, data.panel.split.train_end)
    steps = []
    rows = promotion_response(heads, data, starts, weeks, lambda: steps.append(1))
    assert [row["name"] for row in rows] == list(PROMOTIONS)
    assert len(steps) == 4 * len(weeks)
    for row in rows:
        assert row["ci_low"] < row["estimate"] < row["ci_high"]
        # The regression sees the model's replay almost as it sees the draws from it.
        assert row["model_fixed_effects"] == pytest.approx(row["estimate"], abs=4 * row["standard_error"])
        assert row["model"] == pytest.approx(row["estimate"], abs=0.25 * EFFECTS[row["name"]])
        assert row["own_slopes"]["model"] == pytest.approx(row["model"], rel=0.05)
        assert row["own_slopes"]["estimate"] == pytest.approx(row["model"], abs=0.4 * EFFECTS[row["name"]])


def test_a_model_that_overstates_depth_is_outside(
    make_data: Callable[..., ResponseData], heads: ResponseHeads
) -> None:
    data = make_data(n_users=1500, seed=3)
    starts = EmbeddingTable(np.array([4]), torch.zeros(1, 1500, 0))
    with torch.no_grad():
        heads.depth_level.fill_(float(np.log(np.expm1(0.6))))
    depth, display, _ = promotion_response(heads, data, starts, range(4, data.panel.split.train_end))
    assert depth["inside"] is False
    assert depth["model"] > depth["ci_high"]
    assert depth["model_fixed_effects"] == pytest.approx(depth["model"], rel=0.2)
    assert display["name"] == "display"


def test_promotion_that_never_varies_has_no_verdict(
    heads: ResponseHeads, data: ResponseData, embeddings: EmbeddingTable
) -> None:
    flat = replace(data.calendar, mailer=torch.zeros_like(data.calendar.mailer))
    rows = promotion_response(heads, replace(data, calendar=flat), embeddings, range(4, 20))
    assert rows[2]["inside"] is None
    assert rows[2]["own_slopes"]["inside"] is None
    assert np.isnan(rows[2]["estimate"])
    assert rows[0]["inside"] is not None
