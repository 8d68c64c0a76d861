from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from encoders.bert import TextEncoder, pad
from encoders.habits import HabitConfig, HabitRates, HabitReader, HabitReport, habit_loss, learn_habits
from encoders.history import category_features
from encoders.panel import Panel
from encoders.response_data import AnchorTexts, ResponseData
from encoders.text_batches import TextBatches

D = 4
CONFIG = HabitConfig(epochs=3, batch_size=16, learning_rate=3e-3, weight_decay=0.01)
MakePanel = Callable[..., Panel]
MakeBert = Callable[..., BertForPreTraining]


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def telling_texts(panel: Panel, first: int, last: int) -> AnchorTexts:
    """Texts whose one word is the user's kind."""
    starts = np.repeat(np.arange(first, last + 1, 2), panel.n_users)
    user = np.tile(np.arange(panel.n_users), len(starts) // panel.n_users)
    return AnchorTexts(
        tokens=[np.array([2, 10 + u % 2, 3], dtype=np.int32) for u in user],
        user=torch.from_numpy(user),
        first_week=torch.from_numpy(starts),
        last_week=torch.from_numpy(starts + 1).clamp(max=last),
    )


def two_kinds(make_panel: MakePanel) -> tuple[ResponseData, TextBatches]:
    """Even users buy the first category on every visit, odd ones the second; the third is chance."""
    panel = make_panel(n_users=40, n_categories=3)
    kind = np.arange(40) % 2
    panel.bought[:, :, :2] = np.eye(2, dtype=bool)[kind][:, None, :] & panel.visited[:, :, None]
    panel.category_spend[:] = panel.bought
    end = panel.split.train_end
    batches = TextBatches(
        texts=telling_texts(panel, 4, end - 1),
        tune=telling_texts(panel, end, panel.split.tune_end - 1),
        category_tokens=[np.array([2, 20 + c, 3], dtype=np.int32) for c in range(3)],
        padding_id=0,
        separators=np.array([5], dtype=np.int32),
    )
    return ResponseData.of_panel(panel), batches


def new_encoder(make_bert: MakeBert) -> TextEncoder:
    bert = make_bert(dropout=0.1)
    torch.manual_seed(1)
    return TextEncoder(bert.bert, D)


def learnt(
    make_panel: MakePanel,
    make_bert: MakeBert,
    path: Path,
    config: HabitConfig = CONFIG,
    on_step: Callable[[float], None] = lambda _: None,
) -> tuple[TextEncoder, HabitReader, list[HabitReport]]:
    data, batches = two_kinds(make_panel)
    encoder = new_encoder(make_bert)
    torch.manual_seed(2)
    reader = HabitReader(D, 3)
    reports = learn_habits(
        encoder,
        reader,
        HabitRates.of(data),
        batches,
        config,
        device="cpu",
        seed=3,
        checkpoint=path,
        on_step=on_step,
    )
    return encoder, reader, reports


def test_the_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, match, rates = (torch.randn(shape, generator=generator) for shape in ((2, D), (3, D), (2, 3)))
    torch.manual_seed(0)
    reader = HabitReader(D, 3)
    with torch.no_grad():
        reader.match_bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
        reader.match_log_scale.copy_(torch.tensor([0.0, -1.0, 0.5]))
        total = 0.0
        for i in range(2):
            for c in range(3):
                own = float(reader.linear.weight[c] @ embedding[i] + reader.linear.bias[c])
                scale = np.exp(float(reader.match_log_scale[c])) / 2.0
                matched = float(embedding[i] @ match[c]) * scale + float(reader.match_bias[c])
                total += 0.5 * ((own - float(rates[i, c])) ** 2 + (matched - float(rates[i, c])) ** 2)
        assert float(habit_loss(reader, embedding, match, rates)) == pytest.approx(total / 2, rel=1e-5)


def test_the_match_teaches_the_category_texts_alone() -> None:
    embedding = torch.randn(5, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    match = torch.randn(3, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    reader = HabitReader(D, 3)
    with torch.no_grad():
        reader.linear.weight.zero_()
    habit_loss(reader, embedding, match, torch.ones(5, 3)).backward()
    assert embedding.grad is not None
    assert match.grad is not None
    assert float(embedding.grad.abs().max()) == 0.0
    assert float(match.grad.abs().max()) > 0.0


def test_rates_are_those_before_the_week_of_the_text(make_panel: MakePanel) -> None:
    data, batches = two_kinds(make_panel)
    rates = HabitRates.of(data)
    rows = torch.tensor([1, 45])
    found = rates.at(batches.texts, rows)
    base_rate = data.base_rate()
    scale = data.feature_scale(base_rate)
    for place, row in enumerate(rows):
        week, user = batches.texts.first_week[row : row + 1], batches.texts.user[row : row + 1]
        logit = category_features(data.tape.before(week, user), base_rate)[0][0]
        torch.testing.assert_close(found[place], (logit - scale.category_mean[0]) / scale.category_std[0])
    # What happens from the text's week on changes nothing.
    later = data.panel.bought.copy()
    later[:, int(batches.texts.first_week[rows].max()) :] = False
    changed = ResponseData.of_panel(replace(data.panel, bought=later))
    again = replace(rates, data=changed).at(batches.texts, rows)
    torch.testing.assert_close(again, found)


def test_texts_that_tell_the_habit_are_learnt_to_tell_it(
    make_panel: MakePanel, make_bert: MakeBert, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=20)
    encoder, reader, reports = learnt(make_panel, make_bert, tmp_path / "habits.pt", config)
    assert [report.epoch for report in reports] == list(range(1, 21))
    assert reports[-1].loss < 0.5 * reports[0].loss
    # The third category is chance, and how often someone visited is not told: not everything can be read.
    assert reports[-1].explained > 0.6
    assert reports[-1].matched > 0.3
    assert not encoder.training
    batch = pad([np.array([2, 10, 3]), np.array([2, 11, 3])], 0)
    with torch.no_grad():
        read = reader(encoder(batch.ids, batch.attention))
    assert float(read[0, 0] - read[1, 0]) > 0.5
    assert float(read[1, 1] - read[0, 1]) > 0.5


@pytest.mark.parametrize("steps", [1, 20, 35])
def test_a_resumed_run_ends_at_the_same_weights(
    make_panel: MakePanel, make_bert: MakeBert, tmp_path: Path, steps: int
) -> None:
    seen: list[float] = []

    def interrupt(loss: float) -> None:
        seen.append(loss)
        if len(seen) == steps:
            # Elsewhere in the process chance goes on before the run is taken up again.
            torch.rand(7)
            raise Interrupted

    losses: list[float] = []
    encoder, reader, reports = learnt(
        make_panel, make_bert, tmp_path / "whole.pt", on_step=lambda loss: losses.append(loss)
    )
    with pytest.raises(Interrupted):
        learnt(make_panel, make_bert, tmp_path / "part.pt", on_step=interrupt)
    again: list[float] = []
    encoder_again, reader_again, reports_again = learnt(
        make_panel, make_bert, tmp_path / "part.pt", on_step=lambda loss: again.append(loss)
    )
    assert reports_again == reports
    assert len(again) == len(losses)
    for one, other in ((encoder, encoder_again), (reader, reader_again)):
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_no_epochs_leave_the_encoder_as_it_is(
    make_panel: MakePanel, make_bert: MakeBert, tmp_path: Path
) -> None:
    encoder, _, reports = learnt(make_panel, make_bert, tmp_path / "habits.pt", replace(CONFIG, epochs=0))
    assert reports == []
    for a, b in zip(encoder.parameters(), new_encoder(make_bert).parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(
    make_panel: MakePanel, make_bert: MakeBert, tmp_path: Path
) -> None:
    path = tmp_path / "habits.pt"
    with pytest.raises(FloatingPointError, match=r"in epoch 1; lower the learning rate \(1e\+30\)"):
        learnt(make_panel, make_bert, path, replace(CONFIG, learning_rate=1e30))
    assert not path.exists()
