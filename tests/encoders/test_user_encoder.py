from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.bert import EnsembleEncoder, TextEncoder, new_pretraining_model, tokenize, train_wordpiece
from encoders.embedding_cache import EmbeddingCache
from encoders.history import HistoryState
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.user_encoder import CPU_ROWS, UserEncoder
from encoders.user_text import UserTextStyle, UserTextWriter, user_texts

WIDTH, MAX_TOKENS, WEEK = 5, 60, 14
MakePanel = Callable[..., Panel]


@pytest.fixture
def panel(make_panel: MakePanel) -> Panel:
    return make_panel(n_users=40, n_categories=12, seed=2)


@pytest.fixture
def state(panel: Panel) -> HistoryState:
    return HistoryTape.of_panel(panel).week(WEEK - 1)


def user_encoder(panel: Panel, members: int = 1) -> UserEncoder:
    style = UserTextStyle()
    tokenizer = train_wordpiece(user_texts(panel, WEEK, style), 200)

    def member(seed: int) -> TextEncoder:
        torch.manual_seed(seed)
        bert = new_pretraining_model(tokenizer.get_vocab_size(), 2, 32, 2, 0.1, MAX_TOKENS).bert
        return TextEncoder(bert, WIDTH)

    encoder = EnsembleEncoder([member(seed) for seed in range(members)])
    return UserEncoder(UserTextWriter.of_panel(panel, style), tokenizer, encoder, MAX_TOKENS)


def test_it_is_the_encoder_s_reading_of_each_user_s_text(panel: Panel, state: HistoryState) -> None:
    encoder = user_encoder(panel, members=2)
    embedding = encoder.embed(state, torch.arange(panel.n_users), WEEK)
    assert (embedding.shape, embedding.dtype) == ((panel.n_users, 2 * WIDTH), torch.float32)
    assert encoder.width == 2 * WIDTH
    tokens = tokenize(encoder.tokenizer, user_texts(panel, WEEK, UserTextStyle()), MAX_TOKENS)
    assert max(map(len, tokens)) == MAX_TOKENS
    for user in (0, 7, 39):
        ids = torch.from_numpy(tokens[user]).long()[None]
        with torch.no_grad():
            alone = encoder.encoder.eval()(ids, torch.ones_like(ids))[0]
        torch.testing.assert_close(embedding[user], alone, rtol=0, atol=1e-5)


def test_no_bit_depends_on_who_else_is_encoded(panel: Panel, state: HistoryState) -> None:
    encoder = user_encoder(panel)
    everyone = encoder.embed(state, range(panel.n_users), WEEK)
    assert torch.equal(encoder.embed(state, range(panel.n_users), WEEK), everyone)
    for some in ([3], [39, 3, 3, 11], list(range(CPU_ROWS + 1))[::-1]):
        users = torch.tensor(some)
        assert torch.equal(encoder.embed(state.rows(users), users, WEEK), everyone[users])


def test_profile_and_season_are_read(panel: Panel, state: HistoryState) -> None:
    encoder = user_encoder(panel)
    own = encoder.embed(state.rows(slice(0, 2)), [0, 1], WEEK)
    swapped = encoder.embed(state.rows(slice(0, 2)), [1, 0], WEEK)
    assert not torch.equal(own, swapped)
    assert torch.equal(own, encoder.embed(state.rows(slice(0, 2)), [0, 1], WEEK + 1))
    assert not torch.equal(own, encoder.embed(state.rows(slice(0, 2)), [0, 1], WEEK + 13))
    silent = replace(encoder, writer=replace(encoder.writer, style=UserTextStyle(season=False)))
    assert torch.equal(*(silent.embed(state.rows(slice(0, 2)), [0, 1], WEEK + k) for k in (0, 13)))


def test_what_the_cache_holds_is_not_read_again(
    panel: Panel, state: HistoryState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = user_encoder(panel)
    encoder = replace(plain, cache=EmbeddingCache(tmp_path))
    everyone = plain.embed(state, range(panel.n_users), WEEK)
    encoder.embed(state.rows(slice(0, 20)), range(20), WEEK)
    # Half of them kept, half read, and no bit is different.
    assert torch.equal(encoder.embed(state, range(panel.n_users), WEEK), everyone)

    def refuse(*_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a text was read")

    monkeypatch.setattr(TextEncoder, "forward", refuse)
    assert torch.equal(encoder.embed(state, range(panel.n_users), WEEK), everyone)
    with pytest.raises(AssertionError, match="a text was read"):
        plain.embed(state, range(panel.n_users), WEEK)


@pytest.mark.gpu
def test_on_a_gpu_too_no_bit_depends_on_who_else_is_encoded(panel: Panel, state: HistoryState) -> None:
    encoder = user_encoder(panel)
    here = encoder.embed(state, range(panel.n_users), WEEK)
    there = encoder.to("cuda")
    on_gpu = state.to("cuda")
    everyone = there.embed(on_gpu, range(panel.n_users), WEEK)
    assert there.device.type == everyone.device.type == "cuda"
    torch.testing.assert_close(everyone.cpu(), here, rtol=0, atol=1e-3)
    users = torch.tensor([39, 3, 3, 11], device="cuda")
    assert torch.equal(there.embed(on_gpu.rows(users), users, WEEK), everyone[users])
