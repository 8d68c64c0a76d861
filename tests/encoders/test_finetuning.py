from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from encoders.bert import TextEncoder, pad, train_wordpiece
from encoders.embedding import embed_tokens
from encoders.finetuning import (
    TRAINED_HEADS,
    FineTuningConfig,
    FineTuningReport,
    fine_tune,
    response_loss,
)
from encoders.habits import HabitReader
from encoders.panel import Panel
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData
from encoders.text_batches import TextBatches

D = 3
COMMA = 5
CONFIG = FineTuningConfig(
    epochs=3, batch_size=16, learning_rate=1e-3, head_learning_rate=0.02, weight_decay=0.01, patience=9
)
MakePanel = Callable[..., Panel]
MakeBert = Callable[..., BertForPreTraining]


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def texts_of(panel: Panel, first: int, last: int, every: int = 2) -> AnchorTexts:
    """Texts of a few random tokens for all users at 0-based weeks ``first``..``last``."""
    rng = np.random.default_rng(0)
    starts = np.repeat(np.arange(first, last + 1, every), panel.n_users)
    return AnchorTexts(
        tokens=[
            np.array([2, *rng.integers(COMMA, 40, rng.integers(3, 9)), 3], dtype=np.int32) for _ in starts
        ],
        user=torch.arange(panel.n_users).repeat(len(starts) // panel.n_users),
        first_week=torch.from_numpy(starts),
        last_week=torch.from_numpy(starts + every - 1).clamp(max=last),
    )


def batches_of(panel: Panel, first: int = 4) -> TextBatches:
    end = panel.split.train_end
    return TextBatches(
        texts=texts_of(panel, first, end - 1),
        tune=texts_of(panel, end, panel.split.tune_end - 1),
        category_tokens=[np.array([2, 6 + c, 3], dtype=np.int32) for c in range(panel.n_categories)],
        padding_id=0,
        separators=np.array([COMMA], dtype=np.int32),
    )


def new_heads(data: ResponseData) -> ResponseHeads:
    base = data.base_rate()
    heads = ResponseHeads(base, D)
    heads.set_scale(data.feature_scale(base))
    return heads


def new_encoder(make_bert: MakeBert, dropout: float = 0.1) -> TextEncoder:
    bert = make_bert(dropout=dropout)
    torch.manual_seed(1)
    return TextEncoder(bert.bert, D)


def new_reader(data: ResponseData) -> HabitReader:
    torch.manual_seed(2)
    return HabitReader(D, data.panel.n_categories)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def embed(encoder: TextEncoder, tokens: list[np.ndarray]) -> torch.Tensor:
    batch = pad(tokens, 0)
    with torch.no_grad():
        out: torch.Tensor = encoder.eval()(batch.ids, batch.attention)
    return out


def test_the_loss_by_hand(make_panel: MakePanel) -> None:
    panel = make_panel(n_users=3, n_categories=2)
    data = ResponseData.of_panel(panel)
    heads, texts = new_heads(data), texts_of(panel, 6, 9)
    generator = torch.Generator().manual_seed(0)
    embedding, match = torch.randn(2, D, generator=generator), torch.randn(2, D, generator=generator)
    rows = torch.tensor([0, 4])
    total, count = 0.0, 0
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for position, text in enumerate(rows):
            user = int(texts.user[text])
            for week in range(int(texts.first_week[text]), int(texts.last_week[text]) + 1):
                state = data.tape.before(torch.tensor([week]), torch.tensor([user]))
                own = embedding[position : position + 1]
                u = heads(state, own, data.calendar.weeks(torch.tensor([week])), match)
                count += 1
                if not panel.visited[user, week]:
                    continue
                for c in range(2):
                    p = float(torch.sigmoid(u.purchase[0, c]))
                    bought = bool(panel.bought[user, week, c])
                    total -= np.log(p if bought else 1 - p)
                    if bought:
                        s = float(heads.spend_deviation[c])
                        residual = np.log(panel.category_spend[user, week, c]) - float(u.log_spend[0, c])
                        total += 0.5 * (residual / s) ** 2 + np.log(s)
        loss = response_loss(heads, data, texts, rows, embedding, match)
    assert count == 4
    assert float(loss) == pytest.approx(total / count, rel=1e-3)


def test_a_batch_in_which_nobody_shops_has_a_loss_and_a_gradient(make_panel: MakePanel) -> None:
    panel = make_panel(n_users=3, n_categories=2)
    panel.visited[:, 6:8] = False
    panel.bought[:, 6:8] = False
    data = ResponseData.of_panel(panel)
    heads, texts = new_heads(data), texts_of(panel, 6, 7)
    embedding = torch.zeros(3, D, requires_grad=True)
    loss = response_loss(heads, data, texts, torch.arange(3), embedding, torch.zeros(2, D))
    loss.backward()
    assert embedding.grad is not None
    assert float(loss.detach()) == 0.0
    assert heads.purchase_bias.grad is None


@pytest.mark.parametrize("stop_at_epoch", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "extras", [{}, {"accumulate": 3, "item_dropout": 0.4, "habit_weight": 0.5}, {"lora_rank": 2}]
)
def test_a_resumed_run_ends_at_the_same_weights(
    make_panel: MakePanel, make_bert: MakeBert, tmp_path: Path, stop_at_epoch: int, extras: dict[str, Any]
) -> None:
    if "lora_rank" in extras:
        pytest.importorskip("peft")
    panel = make_panel(n_users=12, n_categories=3)
    data = ResponseData.of_panel(panel)
    config = replace(CONFIG, **extras)

    def fit(
        path: Path, on_epoch: Callable[[FineTuningReport], None] = lambda _: None
    ) -> tuple[ResponseHeads, TextEncoder, list[FineTuningReport], int]:
        heads, encoder = new_heads(data), new_encoder(make_bert)
        steps: list[float] = []
        reports = fine_tune(
            encoder,
            heads,
            new_reader(data),
            data,
            batches_of(panel),
            config,
            device="cpu",
            seed=3,
            checkpoint=path,
            on_step=steps.append,
            on_epoch=on_epoch,
        )
        return heads, encoder, reports, len(steps)

    def interrupt(report: FineTuningReport) -> None:
        # Elsewhere in the process chance has gone on before the run is taken up again.
        torch.rand(7)
        if report.epoch == stop_at_epoch:
            raise Interrupted

    heads, encoder, reports, steps = fit(tmp_path / "whole.pt")
    with pytest.raises(Interrupted):
        fit(tmp_path / "part.pt", interrupt)
    again, encoder_again, reports_again, steps_again = fit(tmp_path / "part.pt")
    assert [report.epoch for report in reports] == [0, 1, 2, 3]
    assert reports_again == reports
    assert steps_again == steps
    assert same(heads, again)
    assert same(encoder, encoder_again)
    # The category embeddings that are kept are those of the encoder that is kept.
    torch.testing.assert_close(heads.category_match, embed(encoder, batches_of(panel).category_tokens))


def poor_start(data: ResponseData) -> ResponseHeads:
    """Heads that any training improves on, so that the start is not what is kept."""
    heads = new_heads(data)
    with torch.no_grad():
        heads.purchase_bias.add_(2.0)
    return heads


def trained(
    panel: Panel,
    encoder: TextEncoder,
    config: FineTuningConfig,
    batches: TextBatches | None = None,
    seed: int = 0,
) -> tuple[ResponseHeads, list[FineTuningReport]]:
    data = ResponseData.of_panel(panel)
    heads = poor_start(data)
    reports = fine_tune(
        encoder, heads, new_reader(data), data, batches or batches_of(panel), config, device="cpu", seed=seed
    )
    return heads, reports


def test_only_the_weights_that_read_the_embedding_move(make_panel: MakePanel, make_bert: MakeBert) -> None:
    panel = make_panel(n_users=12, n_categories=3)
    encoder = new_encoder(make_bert)
    before = copy.deepcopy(encoder)
    heads, _ = trained(panel, encoder, CONFIG)
    start = poor_start(ResponseData.of_panel(panel))
    moved = {n for n, p in heads.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert moved == set(TRAINED_HEADS)
    # All of BERT that has a part in the embedding moves with them; its pooler has none.
    still = {n for n, p in encoder.named_parameters() if torch.equal(p, before.get_parameter(n))}
    assert all("pooler" in name for name in still)
    # Afterwards everything may be trained again.
    assert all(p.requires_grad for p in [*heads.parameters(), *encoder.parameters()])
    for name, buffer in heads.named_buffers():
        if name != "category_match":
            assert torch.equal(buffer, start.get_buffer(name)), name


def test_lora_moves_the_attention_alone_and_leaves_a_plain_bert(
    make_panel: MakePanel, make_bert: MakeBert
) -> None:
    pytest.importorskip("peft")
    panel = make_panel(n_users=12, n_categories=3)
    encoder = new_encoder(make_bert)
    before = copy.deepcopy(encoder)
    trained(panel, encoder, replace(CONFIG, lora_rank=2))
    assert list(encoder.state_dict()) == list(before.state_dict())
    moved = {n for n, p in encoder.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    attention = {n for n in moved if n.startswith("bert.")}
    assert attention
    assert all(("query" in n or "value" in n) and n.endswith("weight") for n in attention)
    assert moved - attention == {"project.weight", "project.bias", "norm.weight", "norm.bias"}
    for name in attention:
        difference = encoder.get_parameter(name) - before.get_parameter(name)
        assert torch.linalg.matrix_rank(difference.detach(), rtol=1e-3) <= 2
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_seed_decides(make_panel: MakePanel, make_bert: MakeBert, lora_rank: int) -> None:
    if lora_rank:
        pytest.importorskip("peft")
    panel = make_panel(n_users=8, n_categories=3)
    config = replace(CONFIG, epochs=1, item_dropout=0.3, lora_rank=lora_rank)
    results: list[TextEncoder] = []
    for seed in (0, 0, 1):
        encoder = new_encoder(make_bert)
        # Whatever chance was drawn before.
        torch.rand(len(results))
        trained(panel, encoder, config, seed=seed)
        results.append(encoder)
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_accumulated_batches_are_one_large_batch(make_panel: MakePanel, make_bert: MakeBert) -> None:
    # Twelve texts of the same number of weeks: two batches of six have the gradient of one of twelve.
    panel = make_panel(n_users=6, n_categories=3)
    batches = replace(batches_of(panel), texts=texts_of(panel, 4, 7))
    config = replace(CONFIG, epochs=2, weight_decay=0.0)
    encoders = []
    for size, accumulate in ((12, 1), (6, 2), (6, 1)):
        encoder = new_encoder(make_bert, dropout=0.0)
        trained(panel, encoder, replace(config, batch_size=size, accumulate=accumulate), batches)
        encoders.append(encoder)

    def distance(one: TextEncoder, other: TextEncoder) -> float:
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)

    # Adam divides by the gradient's size: where it is zero but for rounding, the sign is a matter of luck.
    assert distance(encoders[0], encoders[1]) < 0.3 * distance(encoders[0], encoders[2])
    tokens = batches.tune.tokens
    torch.testing.assert_close(embed(encoders[0], tokens), embed(encoders[1], tokens), rtol=0, atol=2e-3)


def test_items_are_dropped_in_training_alone(make_panel: MakePanel, make_bert: MakeBert) -> None:
    """Dropping all is training on texts without their inner items; the tuning weeks keep theirs."""
    panel = make_panel(n_users=6, n_categories=3)
    whole = replace(batches_of(panel), texts=texts_of(panel, 4, 5))
    tokens = [np.array([2, 7 + k, COMMA, 20, COMMA, 30 + k % 3, 3], dtype=np.int32) for k in range(6)]
    stripped = [np.delete(one, [3, 4]) for one in tokens]
    config = replace(CONFIG, epochs=3)
    results = []
    for texts, dropout in ((tokens, 1.0), (stripped, 0.0), (tokens, 0.0)):
        encoder = new_encoder(make_bert, dropout=0.0)
        batches = replace(whole, texts=replace(whole.texts, tokens=texts))
        _, reports = trained(panel, encoder, replace(config, item_dropout=dropout), batches)
        results.append((encoder, reports))
    for k in range(1, 4):
        for name in ("loss", "tune_loss"):
            assert getattr(results[0][1][k], name) == pytest.approx(getattr(results[1][1][k], name), rel=1e-4)
    assert results[0][1][-1].loss != pytest.approx(results[2][1][-1].loss, rel=1e-4)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(make_panel: MakePanel, make_bert: MakeBert) -> None:
    panel = make_panel(n_users=20, n_categories=3)
    data = ResponseData.of_panel(panel)
    batches = batches_of(panel)
    heads, encoder = poor_start(data), new_encoder(make_bert)
    # A learning rate that overfits twenty users at once.
    config = FineTuningConfig(30, 16, 2e-3, 0.1, 0.0, patience=2)
    reports = fine_tune(encoder, heads, new_reader(data), data, batches, config, device="cpu", seed=0)
    best = min(range(len(reports)), key=lambda k: reports[k].tune_loss)
    assert len(reports) == best + 1 + config.patience < 30
    assert [report.epoch for report in reports] == list(range(len(reports)))
    tune = batches.tune
    with torch.no_grad():
        embeddings = embed_tokens(encoder, tune.tokens, padding_id=0, precision="fp32")
        loss = response_loss(heads, data, tune, torch.arange(len(tune)), embeddings, heads.category_match)
    assert float(loss) == pytest.approx(reports[best].tune_loss, rel=1e-5)


def test_a_start_that_training_only_worsens_is_kept(make_panel: MakePanel, make_bert: MakeBert) -> None:
    panel = make_panel(n_users=12, n_categories=3)
    data = ResponseData.of_panel(panel)
    heads, encoder = new_heads(data), new_encoder(make_bert)
    before = copy.deepcopy(encoder)
    config = replace(CONFIG, learning_rate=0.5, head_learning_rate=5.0, epochs=2)
    reports = fine_tune(
        encoder, heads, new_reader(data), data, batches_of(panel), config, device="cpu", seed=0
    )
    assert reports[0].loss is None
    assert min(reports[1:], key=lambda one: one.tune_loss).tune_loss > reports[0].tune_loss
    assert same(encoder, before)
    start = new_heads(data)
    assert all(torch.equal(p, start.get_parameter(name)) for name, p in heads.named_parameters())


def test_the_encoder_learns_what_the_texts_alone_know(make_panel: MakePanel, make_bert: MakeBert) -> None:
    """A word of the text says which category the user buys from now on; the history says nothing of it."""
    panel = make_panel(n_users=60, n_categories=2)
    kind = np.arange(60) % 2
    panel.bought[:, 4:] = (np.eye(2, dtype=bool)[kind][:, None, :]) & panel.visited[:, 4:, None]
    panel.bought[:, :4] = False
    panel.category_spend[:] = panel.bought
    data = ResponseData.of_panel(panel)
    # Nothing is remembered: the state before each week is that of a new user.
    empty = {name: value[:1].expand_as(value) for name, value in data.tape.stored.items()}
    data = replace(data, tape=type(data.tape)(empty))
    batches = batches_of(panel)
    tell = [
        replace(part, tokens=[np.array([2, 10 + kind[u], 3], dtype=np.int32) for u in part.user.tolist()])
        for part in (batches.texts, batches.tune)
    ]
    batches = replace(batches, texts=tell[0], tune=tell[1])
    heads, encoder = new_heads(data), new_encoder(make_bert)
    config = replace(CONFIG, epochs=12, learning_rate=5e-3)
    reports = fine_tune(encoder, heads, new_reader(data), data, batches, config, device="cpu", seed=0)
    # Of two coins to be told on each visit, most of the surprise is gone.
    assert reports[-1].tune_loss < reports[1].tune_loss - 0.3
    embedding = embed(encoder, batches.tune.tokens[:2])
    logit = embedding @ heads.category_vectors().detach().T
    assert float(logit[0, 0] - logit[1, 0]) > 1.0
    assert float(logit[1, 1] - logit[0, 1]) > 1.0


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(
    make_panel: MakePanel, make_bert: MakeBert, tmp_path: Path
) -> None:
    panel = make_panel(n_users=6, n_categories=3)
    data = ResponseData.of_panel(panel)
    heads = new_heads(data)
    with torch.no_grad():
        heads.spend_level[1] = float("inf")
    path = tmp_path / "fit.pt"
    with pytest.raises(FloatingPointError, match=r"in epoch 1; lower the learning rates .*0\.02 heads"):
        fine_tune(
            new_encoder(make_bert),
            heads,
            new_reader(data),
            data,
            batches_of(panel),
            CONFIG,
            device="cpu",
            seed=0,
            checkpoint=path,
        )
    # Nothing broken is kept to resume from.
    assert not path.exists()


def test_batches_know_the_tokens_that_end_an_item(make_panel: MakePanel) -> None:
    panel = make_panel(n_users=2, n_categories=2)
    tokenizer = train_wordpiece(["often milk , bread . rarely wine"] * 5, 60)
    texts = texts_of(panel, 4, 5)
    batches = TextBatches.of(tokenizer, texts, texts, [])
    assert batches.padding_id == tokenizer.token_to_id("[PAD]")
    assert [tokenizer.id_to_token(int(k)) for k in batches.separators] == [",", "."]
    without = TextBatches.of(train_wordpiece(["milk bread"] * 5, 60), texts, texts, [])
    assert without.separators.shape == (0,)
