from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.bert import tokenize, train_wordpiece
from encoders.history import category_features, user_features
from encoders.panel import Panel
from encoders.response_data import (
    FIRST_TEXT_WEEK,
    AnchorTexts,
    ResponseData,
    anchor_texts,
    training_anchors,
)
from encoders.user_text import UserTextStyle, user_texts


@given(st.integers(10, 60), st.integers(1, 6))
def test_training_anchors_serve_each_week_once_up_to_the_end(train_end: int, every: int) -> None:
    served = [week + k for week in training_anchors(train_end, every) for k in range(every)]
    assert served == list(range(served[0], train_end + 1))
    assert FIRST_TEXT_WEEK <= served[0] < FIRST_TEXT_WEEK + every


def test_rows_expand_texts_into_their_weeks() -> None:
    texts = AnchorTexts(
        tokens=[np.array([1], dtype=np.int32)] * 3,
        user=torch.tensor([7, 8, 9]),
        first_week=torch.tensor([4, 6, 8]),
        last_week=torch.tensor([5, 6, 7]),  # the third serves nothing
    )
    position, user, week = texts.rows(torch.tensor([1, 0, 2, 0]))
    assert position.tolist() == [0, 1, 1, 3, 3]
    assert user.tolist() == [8, 7, 7, 7, 7]
    assert week.tolist() == [6, 4, 5, 4, 5]


@pytest.mark.parametrize("users", [None, np.array([3, 1])])
def test_anchor_texts_are_those_of_user_and_week(panel: Panel, users: np.ndarray | None) -> None:
    style = UserTextStyle()
    tokenizer = train_wordpiece(user_texts(panel, 9, style), 120)
    texts = anchor_texts(panel, tokenizer, [6, 8], 8, every=2, style=style, max_tokens=40, users=users)
    chosen = np.arange(panel.n_users) if users is None else users
    assert texts.user.tolist() == [*chosen, *chosen]
    assert texts.first_week.tolist() == [5] * len(chosen) + [7] * len(chosen)
    assert texts.last_week.tolist() == [6] * len(chosen) + [7] * len(chosen)  # cut at week 8
    for k, user in enumerate(chosen):
        for offset, week in ((0, 6), (len(chosen), 8)):
            expected = tokenize(tokenizer, [user_texts(panel, week, style)[user]], 40)[0]
            np.testing.assert_array_equal(texts.tokens[offset + k], expected)


def test_labels_are_laid_out_week_first(panel: Panel) -> None:
    data = ResponseData.of_panel(panel)
    np.testing.assert_array_equal(data.bought.numpy(), panel.bought.swapaxes(0, 1))
    np.testing.assert_array_equal(data.visited.numpy(), panel.visited.T)
    spend = panel.category_spend.swapaxes(0, 1)
    expected = np.where(spend > 0, np.log(np.maximum(spend, 0.05)), 0.0)
    np.testing.assert_allclose(data.log_spend.float().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_base_rate_and_scale_read_the_training_weeks_only(panel: Panel) -> None:
    data = ResponseData.of_panel(panel)
    end = panel.split.train_end
    visits = panel.visited[:, :end].sum()
    rate = (panel.bought[:, :end].sum(axis=(0, 1)) + 1) / (visits + 2)
    base = data.base_rate()
    np.testing.assert_allclose(base.numpy(), rate, rtol=1e-6)
    scale = data.feature_scale(base)
    states = [data.tape.week(week) for week in (end // 2, 3 * end // 4, end - 1)]
    phi = torch.cat([torch.stack(category_features(s, base)).flatten(1) for s in states], dim=1)
    g = torch.cat([user_features(s) for s in states])
    torch.testing.assert_close(scale.category_mean, phi.mean(dim=1))
    torch.testing.assert_close(scale.user_std, g.std(dim=0).clamp(min=1e-3))
