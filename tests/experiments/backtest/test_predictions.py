from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.response import ResponseHeads, taste_weight
from encoders.response_data import ResponseData
from experiments.artifacts import save_arrays
from experiments.backtest.predictions import EmbeddingTable, own_frequency, predict_weeks


def test_the_latest_embedding_holds(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.npz"
    values = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    save_arrays(path, start_week=np.array([4, 8, 12]), embedding=values)
    table = EmbeddingTable.load(path)
    for week, expected in ((4, 0), (7, 0), (8, 1), (11, 1), (12, 2), (40, 2)):
        assert table.at(week).tolist() == values[expected].tolist()
    with pytest.raises(ValueError, match="no embedding holds in week 4; the first is of 5"):
        table.at(3)
    assert table.without_text().at(9).shape == (2, 0)


def test_purchases_of_the_week_need_a_visit(
    heads: ResponseHeads, data: ResponseData, embeddings: EmbeddingTable
) -> None:
    weeks = range(data.panel.split.tune_end, data.panel.split.report_end)
    predicted = predict_weeks(heads, data, embeddings, weeks)
    visit = 1 / (1 + np.exp(-0.4))
    np.testing.assert_allclose(predicted.visit, visit, rtol=1e-6)
    promotion = 2.0 * data.calendar.depth + 0.8 * data.calendar.display + 0.5 * data.calendar.mailer
    logit = torch.linspace(-2.5, -0.5, data.panel.n_categories) + promotion[list(weeks)]
    expected = visit * torch.sigmoid(logit.double()).numpy()[:, None, :]
    np.testing.assert_allclose(predicted.purchase, np.broadcast_to(expected, predicted.purchase.shape), 1e-5)


def test_embeddings_reach_the_heads(data: ResponseData) -> None:
    heads = ResponseHeads(torch.full((data.panel.n_categories,), 0.2), 1)
    with torch.no_grad():
        heads.purchase_embedding.fill_(1.0)
    level = torch.linspace(-1, 1, data.panel.n_users)[:, None]
    table = EmbeddingTable(np.array([4, 8]), torch.stack([0 * level, level]))
    predicted = predict_weeks(heads, data, table, [5, 9])
    given_visit = predicted.purchase / predicted.visit[..., None]
    logit = np.log(given_visit / (1 - given_visit))
    plain = predict_weeks(heads, data, EmbeddingTable(table.start_week, 0 * table.embedding), [5, 9])
    before = plain.purchase / plain.visit[..., None]
    moved = logit - np.log(before / (1 - before))
    np.testing.assert_allclose(moved[0], 0.0, atol=1e-6)
    weight = taste_weight(data.tape.week(9), heads.base_rate).numpy()
    np.testing.assert_allclose(moved[1], weight * level.numpy(), atol=1e-4)


def test_own_frequency_starts_at_the_category_and_ends_at_the_user(data: ResponseData) -> None:
    end = data.panel.split.train_end
    category = data.bought[:end].float().mean(dim=(0, 1)).numpy()
    frequency = own_frequency(data, [0, data.panel.n_weeks - 1])
    np.testing.assert_allclose(frequency[0], np.broadcast_to(category, frequency[0].shape), rtol=1e-5)
    own = data.bought.float().mean(dim=0).numpy()
    assert np.corrcoef(frequency[1].ravel(), own.ravel())[0, 1] > 0.9
    assert ((frequency > 0) & (frequency < 1)).all()
