from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.history_tape import HistoryTape
from encoders.user_text import category_words
from experiments.backtest.predictions import EmbeddingTable
from experiments.fitted_run import FittedRun
from experiments.profile.drift import find_neighbours, measure_drift
from experiments.profile.habits import PurchaseRates, segments


def test_steps_tell_of_the_weeks_between_start_weeks(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    words = category_words(panel)
    drift = measure_drift(panel, words, fitted_run.embeddings, 2, 17)
    assert [step.week for step in drift.steps] == [5, 9, 13, 17]
    step = drift.steps[2]
    visits = panel.visited[2, 8:12]
    assert step.visit_rate == visits.mean()
    assert step.basket_size == pytest.approx(panel.bought[2, 8:12].sum() / visits.sum())
    assert step.basket_spend == pytest.approx(panel.basket_spend[2, 8:12].sum() / visits.sum(), rel=1e-5)
    counts = panel.bought[2, 8:12].sum(axis=0)
    assert words.index(step.top_categories[0]) == counts.argmax()
    assert [step.week for step in measure_drift(panel, words, fitted_run.embeddings, 2, 14).steps] == [
        5,
        9,
        13,
    ]


def test_cosine_is_of_centred_embeddings(fitted_run: FittedRun) -> None:
    """What all users share is taken off: a common shift changes nothing, a turn of one's own does."""
    base = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    base = base - base.mean(dim=0)
    turned = base.clone()
    # Users 0 and 1 trade places, which leaves the mean as it is.
    turned[[0, 1]] = base[[1, 0]]
    table = EmbeddingTable(np.array([4, 8, 12]), torch.stack([base, base + 5.0, turned - 3.0]))
    words = category_words(fitted_run.panel)
    steps = measure_drift(fitted_run.panel, words, table, 0, 17).steps
    assert steps[0].cosine is None
    assert steps[1].cosine == pytest.approx(1.0, abs=1e-5)
    expected = float(base[0] @ base[1] / base[0].norm() / base[1].norm())
    assert steps[2].cosine == pytest.approx(expected, abs=1e-5)
    assert steps[2].population_cosine == pytest.approx(1.0, abs=1e-5)


def test_weeks_without_a_visit_have_no_basket(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    bought, visited = panel.bought.copy(), panel.visited.copy()
    bought[2, 4:8], visited[2, 4:8] = False, False
    panel = replace(panel, bought=bought, visited=visited)
    step = measure_drift(panel, category_words(panel), fitted_run.embeddings, 2, 17).steps[1]
    assert (step.visit_rate, step.basket_size, step.basket_spend) == (0.0, None, None)
    assert step.top_categories == []


def test_rising_and_falling_beyond_the_population(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    bought = panel.bought.copy()
    visited = panel.visited
    # Category 0 goes up for everyone; 1 up and 2 down for user 3 alone.
    bought[:, :8, 0], bought[:, 8:16, 0] = False, visited[:, 8:16]
    bought[3, :8, 1], bought[3, 8:16, 1] = False, visited[3, 8:16]
    bought[3, :8, 2], bought[3, 8:16, 2] = visited[3, :8], False
    drift = measure_drift(replace(panel, bought=bought), category_words(panel), fitted_run.embeddings, 3, 17)
    assert drift.half == 8
    assert drift.rising[0].category == "food cat 1"
    assert drift.falling[0].category == "food cat 2"
    everyone = bought[:, :8, 2].sum() / visited[:, :8].sum()
    visits = visited[3, :8].sum()
    assert drift.falling[0].before == pytest.approx((visits + 2 * everyone) / (visits + 2))
    assert "food cat 0" not in [change.category for change in drift.rising[:1]]


def test_nearest_is_the_user_with_the_same_embedding(fitted_run: FittedRun) -> None:
    panel = fitted_run.panel
    embedding = fitted_run.embeddings.embedding[-1].clone()
    embedding[6] = embedding[1]
    words = category_words(panel)
    base_rate = fitted_run.heads.base_rate.double().numpy()
    rates = PurchaseRates.of_history(HistoryTape.of_panel(panel).week(16), base_rate)
    found = find_neighbours(panel, words, embedding, rates, segments(panel, 17), 1, 5)
    assert len(found.nearest) == 5
    assert found.nearest[0].user == panel.user_ids[6]
    assert found.nearest[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert panel.user_ids[1] not in [one.user for one in found.nearest]
    cosines = [one.cosine for one in found.nearest]
    assert cosines == sorted(cosines, reverse=True)
    assert found.population_cosine <= cosines[0]
    for one in found.nearest:
        other = int(np.flatnonzero(panel.user_ids == one.user)[0])
        for name in one.in_common:
            c = words.index(name)
            assert min(rates.own[1, c], rates.own[other, c]) > rates.population[c]
    assert len(find_neighbours(panel, words, embedding, rates, segments(panel, 17), 1, 50).nearest) == 8
