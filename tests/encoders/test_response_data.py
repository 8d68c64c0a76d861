from __future__ import annotations

from dataclasses import replace

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
    UserWeeks,
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


def labelled_embeddings(starts: int, n_users: int) -> torch.Tensor:
    """[starts, n, 2] of which the first number names the start week and the second the user."""
    return torch.stack(
        torch.meshgrid(torch.arange(starts), torch.arange(n_users), indexing="ij"), dim=2
    ).float()


def test_user_weeks_take_the_latest_embedding_made_by_then() -> None:
    rows = UserWeeks.of_weeks([4, 5, 8, 7], [4, 7, 8], labelled_embeddings(3, 2))
    assert rows.week.tolist() == [4, 4, 5, 5, 8, 8, 7, 7]
    assert rows.user.tolist() == [0, 1] * 4
    assert rows.embedding[:, 0].tolist() == [0, 0, 0, 0, 2, 2, 1, 1]
    assert rows.embedding[:, 1].tolist() == rows.user.tolist()
    assert rows.weight.tolist() == [1.0] * 8
    assert len(rows) == 8


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
    st.lists(st.integers(0, 20), min_size=1, max_size=6),
)
def test_user_weeks_against_a_loop(starts: list[int], weights: list[int], later: list[int]) -> None:
    starts = sorted(starts)
    weeks = [starts[0] + offset for offset in later]
    rows = UserWeeks.of_weeks(
        weeks, starts, labelled_embeddings(len(starts), 3), torch.tensor(weights, dtype=torch.int64)
    )
    expected = [
        (user, week, max(k for k, start in enumerate(starts) if start <= week), user, weights[user])
        for week in weeks
        for user in range(3)
        if weights[user]
    ]
    columns = (rows.user, rows.week, rows.embedding[:, 0], rows.embedding[:, 1], rows.weight)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_a_week_before_the_first_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="week index 3 lies before the first embedding, at 4"):
        UserWeeks.of_weeks([5, 3], [4], labelled_embeddings(1, 2))


def test_rows_are_chosen_by_mask_or_index_and_chunks_are_all_of_them() -> None:
    rows = UserWeeks.of_weeks(
        [4, 5, 6], [4, 5], labelled_embeddings(2, 4), torch.tensor([1.0, 2.0, 0.0, 0.5])
    )
    mask = rows.user == 3
    by_mask, by_index = rows.where(mask), rows.where(mask.nonzero()[:, 0])
    chunks = rows.chunks(4)
    assert [len(chunk) for chunk in chunks] == [4, 4, 1]
    for name in ("user", "week", "embedding", "weight"):
        whole = getattr(rows, name)
        assert torch.equal(getattr(by_mask, name), whole[mask])
        assert torch.equal(getattr(by_index, name), whole[mask])
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), whole)
    assert len(rows.where(torch.zeros(9, dtype=torch.bool))) == 0


def test_what_was_given_away_has_no_spend_to_fit(panel: Panel) -> None:
    spend = panel.category_spend.copy()
    user, week, category = np.argwhere(panel.bought)[0]
    spend[user, week, category] = 0.0
    data = ResponseData.of_panel(replace(panel, category_spend=spend))
    assert data.bought[week, user, category]
    assert not data.paid[week, user, category]
    assert int((data.bought & ~data.paid).sum()) == 1
