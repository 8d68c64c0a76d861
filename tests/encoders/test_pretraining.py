from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from encoders.bert import NEXT_BASKET_TOKENS, TokenBatch, pad
from encoders.pretraining import (
    IGNORED,
    EpochReport,
    PretrainingConfig,
    PretrainingPairs,
    mask_tokens,
    pair_batch,
    pretrain,
)

CLS, SEP, MASK, N_SPECIAL, VOCABULARY = 2, 3, 4, 5, 40
MakeBert = Callable[..., BertForPreTraining]


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def learnable_pairs(n: int = 64) -> PretrainingPairs:
    """A history repeats one of four words; the next basket is that word's partner."""
    words = [N_SPECIAL + k % 4 for k in range(n)]
    return PretrainingPairs(
        histories=[np.array([CLS, *[word] * 6, SEP]) for word in words],
        baskets=[np.array([CLS, word + 10, word + 10, SEP]) for word in words],
    )


def wide_batch(rows: int = 400, length: int = 50) -> TokenBatch:
    rng = np.random.default_rng(1)
    sequences = [
        np.array([CLS, *rng.integers(N_SPECIAL, VOCABULARY, rng.integers(5, length)), SEP])
        for _ in range(rows)
    ]
    return pad(sequences, 0)


def test_masking_follows_the_recipe_of_bert() -> None:
    batch = wide_batch()
    masked, labels = mask_tokens(batch, 0.15, VOCABULARY, MASK, N_SPECIAL, np.random.default_rng(0))
    ordinary = batch.ids >= N_SPECIAL
    chosen = labels != IGNORED
    assert not chosen[~ordinary].any()
    torch.testing.assert_close(masked[~chosen], batch.ids[~chosen])
    torch.testing.assert_close(labels[chosen], batch.ids[chosen])
    n = int(chosen.sum())
    assert n / int(ordinary.sum()) == pytest.approx(0.15, abs=0.015)
    became_mask = float((masked[chosen] == MASK).float().mean())
    unchanged = float((masked[chosen] == batch.ids[chosen]).float().mean())
    # A random token is the old one by luck in 1 of 35 cases.
    assert became_mask == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    assert unchanged == pytest.approx(0.1 + 0.1 / 35, abs=4 * (0.09 / n) ** 0.5)
    assert int(masked[chosen].min()) >= MASK
    assert int(masked.max()) < VOCABULARY


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_masking_none_or_all(probability: float) -> None:
    batch = wide_batch(20)
    _, labels = mask_tokens(batch, probability, VOCABULARY, MASK, N_SPECIAL, np.random.default_rng(0))
    assert torch.equal(labels != IGNORED, (batch.ids >= N_SPECIAL) & bool(probability))


def test_pairs_and_their_labels() -> None:
    n = 50
    # Basket k holds the word 100 + k, so that each row tells whose basket it got.
    pairs = PretrainingPairs(
        histories=[np.array([CLS] + [10] * (k % 3 + 1) + [SEP]) for k in range(n)],
        baskets=[np.array([CLS, 100 + k, SEP]) for k in range(n)],
    )
    rows = np.tile(np.arange(n), 40)
    batch, labels = pair_batch(pairs, rows, 0, np.random.default_rng(0))
    first = batch.segments.argmax(dim=1)
    owner = batch.ids.gather(1, first[:, None])[:, 0] - 100
    torch.testing.assert_close(labels, (owner != torch.from_numpy(rows)).long())
    assert float(labels.float().mean()) == pytest.approx(0.5, abs=4 * (0.25 / len(rows)) ** 0.5)
    for row in (0, 1, 2, 77):
        history = pairs.histories[rows[row]]
        used = int(batch.attention[row].sum())
        assert batch.ids[row, : len(history)].tolist() == history.tolist()
        assert batch.ids[row, len(history) : used].tolist() == [100 + int(owner[row]), SEP]
        assert batch.segments[row].tolist() == [0] * len(history) + [1] * 2 + [0] * (
            batch.ids.shape[1] - used
        )


def test_a_long_basket_fits_the_room_kept_for_it() -> None:
    pairs = PretrainingPairs([np.array([CLS, 9, SEP])] * 2, [np.array([CLS] + [9] * 90 + [SEP])] * 2)
    batch, _ = pair_batch(pairs, np.array([0, 1]), 0, np.random.default_rng(0))
    assert batch.ids.shape[1] == 3 + NEXT_BASKET_TOKENS


def test_bad_pairs_are_refused() -> None:
    one = [np.array([CLS, SEP])]
    with pytest.raises(ValueError, match="1 histories but 2 baskets"):
        PretrainingPairs(one, one * 2)
    with pytest.raises(ValueError, match="at least two pairs"):
        PretrainingPairs(one, one)


def run(
    model: BertForPreTraining,
    checkpoint: Path,
    *,
    epochs: int = 3,
    learning_rate: float = 3e-3,
    on_step: Callable[[float], None] = lambda _: None,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
) -> list[EpochReport]:
    return pretrain(
        model,
        learnable_pairs(),
        PretrainingConfig(epochs, 16, learning_rate, 0.01, 0.3),
        mask_id=MASK,
        padding_id=0,
        n_special=N_SPECIAL,
        seed=7,
        device="cpu",
        checkpoint=checkpoint,
        on_step=on_step,
        on_epoch=on_epoch,
    )


@pytest.mark.parametrize("stop_at_step", [2, 4, 6, 9])
def test_a_resumed_run_ends_at_the_same_weights(
    make_bert: MakeBert, tmp_path: Path, stop_at_step: int
) -> None:
    whole = make_bert()
    steps: list[float] = []
    expected = run(whole, tmp_path / "whole.pt", on_step=steps.append)
    assert len(steps) == 3 * 4

    seen: list[float] = []

    def interrupt(loss: float) -> None:
        seen.append(loss)
        if len(seen) == stop_at_step:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(make_bert(), tmp_path / "part.pt", on_step=interrupt)
    resumed = make_bert(seed=99)  # the weights must come from the checkpoint or the first epoch
    if stop_at_step <= 4:
        resumed = make_bert()
    again: list[float] = []
    reports = run(resumed, tmp_path / "part.pt", on_step=again.append)
    assert reports == expected
    assert len(again) == len(steps)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.pt", "whole.pt"]


def test_the_masked_words_are_learnt(make_bert: MakeBert, tmp_path: Path) -> None:
    reports = run(make_bert(dropout=0.0), tmp_path / "c.pt", epochs=30, learning_rate=1e-2)
    assert [report.epoch for report in reports] == list(range(1, 31))
    assert reports[0].masked_loss > 2.0
    assert reports[-1].masked_loss < 0.7


def test_the_first_loss_is_that_of_transformers(make_bert: MakeBert, tmp_path: Path) -> None:
    # One step of one batch, repeated with the library's own loss over all positions.
    pairs, seed = learnable_pairs(16), 3
    (report,) = pretrain(
        make_bert(dropout=0.0),
        pairs,
        PretrainingConfig(1, 16, 1e-3, 0.0, 0.3),
        mask_id=MASK,
        padding_id=0,
        n_special=N_SPECIAL,
        seed=seed,
        device="cpu",
        checkpoint=tmp_path / "c.pt",
    )
    rng = np.random.default_rng([seed, 0])
    rng.integers(2**62)
    batch, foreign = pair_batch(pairs, rng.permutation(16), 0, rng)
    masked, labels = mask_tokens(batch, 0.3, VOCABULARY, MASK, N_SPECIAL, rng)
    with torch.no_grad():
        output = make_bert(dropout=0.0)(
            input_ids=masked,
            attention_mask=batch.attention,
            token_type_ids=batch.segments,
            labels=labels,
            next_sentence_label=foreign,
        )
    right = (output.seq_relationship_logits.argmax(dim=1) == foreign).float().mean()
    assert report.masked_loss + report.next_basket_loss == pytest.approx(float(output.loss), rel=1e-5)
    assert report.next_basket_accuracy == pytest.approx(float(right))
