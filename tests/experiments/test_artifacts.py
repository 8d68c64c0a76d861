from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.bert import (
    EnsembleEncoder,
    TextEncoder,
    new_pretraining_model,
    special_token_id,
    train_wordpiece,
)
from encoders.embedding import embed_tokens
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.response_data import anchor_texts
from encoders.user_encoder import UserEncoder
from encoders.user_text import UserTextStyle, UserTextWriter, user_texts
from envs.assumptions import AssumedResponse
from envs.campaign import UNLIMITED_BUDGET, Campaign
from experiments.artifacts import (
    EMBEDDINGS_FILE,
    HEADS_FILE,
    PANEL_FILE,
    USER_ENCODER_FILE,
    SimulatorRecord,
    load_market,
    load_user_encoder,
    save_arrays,
    save_module,
    save_simulators,
    save_user_encoder,
)
from experiments.config import ConfigError, MarketConfig
from experiments.fitted_run import FittedRun

MAX_TOKENS, MEMBERS = 70, 2
STYLE = UserTextStyle(max_items=9, recent_items=3, season=False)


def user_encoder(panel: Panel, width: int) -> UserEncoder:
    tokenizer = train_wordpiece(user_texts(panel, 12, STYLE), 200)
    torch.manual_seed(0)
    members = [
        TextEncoder(
            new_pretraining_model(tokenizer.get_vocab_size(), 1, 16, 2, 0.1, MAX_TOKENS).bert,
            width // MEMBERS,
        )
        for _ in range(MEMBERS)
    ]
    writer = UserTextWriter.of_panel(panel, STYLE)
    return UserEncoder(writer, tokenizer, EnsembleEncoder(members), MAX_TOKENS)


@pytest.fixture
def folders(fitted_run: FittedRun, tmp_path: Path) -> tuple[Path, Path]:
    """Outputs of the stages ``prepare`` and ``finetune``, as far as a market is built from them."""
    prepared, response = tmp_path / "prepared", tmp_path / "response"
    prepared.mkdir()
    response.mkdir()
    panel, heads, table = fitted_run.panel, fitted_run.heads, fitted_run.embeddings
    panel.save(prepared / PANEL_FILE)
    save_module(heads, response / HEADS_FILE)
    save_arrays(response / EMBEDDINGS_FILE, start_week=table.start_week, embedding=table.embedding.numpy())
    save_simulators(
        response,
        [SimulatorRecord(role, HEADS_FILE, AssumedResponse.central()) for role in ("train", "judge")],
        np.arange(4),
        np.arange(4, panel.n_users),
    )
    save_user_encoder(response, user_encoder(panel, heads.embedding))
    return prepared, response


def test_a_user_encoder_is_stored_whole(fitted_run: FittedRun, folders: tuple[Path, Path]) -> None:
    panel = fitted_run.panel
    saved = user_encoder(panel, fitted_run.heads.embedding)
    before = torch.random.get_rng_state()
    loaded = load_user_encoder(folders[1], panel, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (loaded.writer, loaded.max_tokens, loaded.precision) == (saved.writer, MAX_TOKENS, "fp32")
    state, everyone = HistoryTape.of_panel(panel).week(13), range(panel.n_users)
    assert torch.equal(loaded.embed(state, everyone, 14), saved.embed(state, everyone, 14))
    # Where it was made is nobody's business.
    assert str(folders[1].parent) not in (folders[1] / USER_ENCODER_FILE).read_text("utf-8")


def test_the_market_encodes_as_training_did(fitted_run: FittedRun, folders: tuple[Path, Path]) -> None:
    panel = fitted_run.panel
    loaded = load_user_encoder(folders[1], panel, "cpu")
    texts = anchor_texts(
        panel, loaded.tokenizer, [9, 17], 20, every=4, style=STYLE, max_tokens=loaded.max_tokens
    )
    padding_id = special_token_id(loaded.tokenizer, "[PAD]")
    trained = torch.cat(
        [embed_tokens(m, texts.tokens, padding_id=padding_id, precision="fp32") for m in loaded.encoder],
        dim=1,
    ).reshape(2, panel.n_users, -1)
    tape = HistoryTape.of_panel(panel)
    for k, anchor in enumerate((9, 17)):
        found = loaded.embed(tape.week(anchor - 1), range(panel.n_users), anchor)
        torch.testing.assert_close(found, trained[k], rtol=0, atol=1e-5)


def test_a_market_that_encodes_is_built_from_the_run(folders: tuple[Path, Path]) -> None:
    config = MarketConfig(horizon_weeks=4)
    plain = load_market(*folders, config, "cpu").market
    assert (plain.user_encoder, plain.re_encode_weeks) == (None, None)
    market = load_market(*folders, replace(config, re_encode_weeks=3), "cpu").market
    assert market.re_encode_weeks == 3
    users = torch.arange(market.population.n_users)
    campaign = Campaign(market, market.predictor, start=0, users=users, budget=UNLIMITED_BUDGET, seed=0)
    start = campaign.state.embedding
    for _ in range(3):
        assert torch.equal(campaign.state.embedding, start)
        campaign.step()
    assert not torch.equal(campaign.state.embedding, start)


def test_a_folder_without_a_user_encoder_says_what_to_do(folders: tuple[Path, Path]) -> None:
    (folders[1] / USER_ENCODER_FILE).unlink()
    with pytest.raises(ConfigError, match=r"holds no user_encoder\.json.*run the stage finetune again"):
        load_market(*folders, MarketConfig(horizon_weeks=4, re_encode_weeks=4), "cpu")
    assert load_market(*folders, MarketConfig(horizon_weeks=4), "cpu").market.user_encoder is None


def test_the_stored_shape_is_plain_json(folders: tuple[Path, Path]) -> None:
    content = json.loads((folders[1] / USER_ENCODER_FILE).read_text("utf-8"))
    assert content["style"] == {"max_items": 9, "recent_items": 3, "season": False}
    assert content["bert"]["hidden_size"] == 16
    assert "_name_or_path" not in content["bert"]
