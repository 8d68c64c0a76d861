from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity
from transformers import BertForPreTraining

from encoders.bert import TextEncoder
from encoders.embedding import embed_tokens, equal_length_batches, token_budget_batches
from encoders.embedding_cache import EmbeddingCache
from encoders.quantisation import Precision

MakeBert = Callable[..., BertForPreTraining]


class CountingEncoder(TextEncoder):
    """Counts the texts that it embeds; memory runs out above ``room`` tokens in a batch."""

    def __init__(self, bert: torch.nn.Module, embedding: int, room: int = 10**9) -> None:
        super().__init__(bert, embedding)
        self.room = room
        self.shapes: list[tuple[int, int]] = []

    def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        if ids.numel() > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.shapes.append((ids.shape[0], ids.shape[1]))
        return super().forward(ids, attention)


def random_tokens(n: int, seed: int = 3, longest: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 40, length).astype(np.int32) for length in rng.integers(1, longest, n)]


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 500))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * length <= budget


@pytest.mark.parametrize("budget", [1, 20, 64, 10_000])
def test_embeddings_do_not_depend_on_the_batching(make_bert: MakeBert, budget: int) -> None:
    encoder = TextEncoder(make_bert().bert, 5)
    encoder.train()
    tokens = random_tokens(30)
    done: list[int] = []
    embeddings = embed_tokens(
        encoder, tokens, padding_id=0, precision="fp32", token_budget=budget, advance=done.append
    )
    assert sum(done) == len(tokens)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    for row in (0, 7, 29):
        ids = torch.from_numpy(tokens[row]).long()[None]
        with torch.no_grad():
            alone = encoder(ids, torch.ones_like(ids))
        torch.testing.assert_close(embeddings[row], alone[0], rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 8))
def test_batches_of_equal_length_hold_every_text_once(lengths: list[int], rows: int) -> None:
    batches = equal_length_batches(np.array(lengths, dtype=np.int64), rows)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    alike = [[lengths[i] for i in batch] for batch in batches]
    assert all(len(set(batch)) <= 1 for batch in alike)
    assert sorted((batch[0] for batch in alike if batch), reverse=True) == [b[0] for b in alike if b]
    # As few batches as can be.
    assert sum(map(bool, alike)) == sum(-(-lengths.count(length) // rows) for length in set(lengths))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_batches_of_one_shape_a_text_s_company_changes_no_bit(
    make_bert: MakeBert, precision: Precision
) -> None:
    encoder = CountingEncoder(make_bert().bert, 5)
    tokens = random_tokens(45)

    def embed(chosen: list[int]) -> torch.Tensor:
        return embed_tokens(encoder, [tokens[k] for k in chosen], padding_id=0, precision=precision, rows=16)

    everyone = embed(list(range(45)))
    if precision == "fp32":
        short = sum(len(sequence) < 16 for sequence in tokens)
        assert encoder.shapes == [(16, 32)] * -(-(45 - short) // 16) + [(16, 16)] * -(-short // 16)
    for chosen in ([0], [44, 7, 7, 30], list(range(0, 45, 2)), list(range(44, -1, -1))):
        assert torch.equal(embed(chosen), everyone[chosen])
    torch.testing.assert_close(
        everyone, embed_tokens(encoder, tokens, padding_id=0, precision="fp32"), rtol=0, atol=3e-2
    )


def test_a_batch_of_one_shape_that_does_not_fit_is_not_halved(make_bert: MakeBert) -> None:
    encoder = CountingEncoder(make_bert().bert, 5, room=100)
    with pytest.raises(torch.OutOfMemoryError):
        embed_tokens(encoder, random_tokens(9), padding_id=0, precision="fp32", rows=8)


def test_padding_reaches_a_multiple_of_sixteen_but_no_position_that_the_encoder_lacks(
    make_bert: MakeBert,
) -> None:
    encoder = CountingEncoder(make_bert().bert, 5)
    last = int(encoder.bert.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    tokens = [np.full(length, 7) for length in (3, 17, last - 1)]
    embed_tokens(encoder, tokens, padding_id=0, precision="fp32", token_budget=1)
    assert encoder.shapes == [(1, min(last, -(-(last - 1) // 16) * 16)), (1, 32), (1, 16)]


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "int8"])
def test_equal_texts_are_embedded_once_and_the_same_call_gives_the_same_bits(
    make_bert: MakeBert, precision: Precision
) -> None:
    encoder = CountingEncoder(make_bert().bert, 5)
    distinct = random_tokens(4)
    tokens = [distinct[k] for k in (2, 0, 2, 3, 1, 0, 2)]
    done: list[int] = []
    embeddings = embed_tokens(encoder, tokens, padding_id=0, precision=precision, advance=done.append)
    assert sum(done) == 7
    assert torch.equal(embeddings[0], embeddings[2])
    assert torch.equal(embeddings[1], embeddings[5])
    assert torch.equal(embeddings, embed_tokens(encoder, tokens, padding_id=0, precision=precision))
    if precision == "fp32":  # the others run on a copy
        assert sum(rows for rows, _ in encoder.shapes) == 8


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("int8", 0.99)])
def test_low_precision_agrees_with_fp32_and_leaves_the_weights(
    make_bert: MakeBert, precision: Precision, least: float
) -> None:
    encoder = TextEncoder(make_bert().bert, 16)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    tokens = random_tokens(40)
    exact = embed_tokens(encoder, tokens, padding_id=0, precision="fp32")
    lowered = embed_tokens(encoder, tokens, padding_id=0, precision=precision)
    assert lowered.dtype == torch.float32
    assert not torch.equal(lowered, exact)
    assert cosine_similarity(lowered, exact).min() > least
    after = encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("room", [32, 33, 100, 500])
def test_out_of_memory_halves_the_batches_and_keeps_the_result(make_bert: MakeBert, room: int) -> None:
    bert = make_bert().bert
    tokens = random_tokens(40)
    done: list[int] = []
    small = CountingEncoder(bert, 5, room)
    embeddings = embed_tokens(
        small, tokens, padding_id=0, precision="fp32", token_budget=10_000, advance=done.append
    )
    assert sum(done) == sum(rows for rows, _ in small.shapes) == 40
    assert all(rows * length <= room for rows, length in small.shapes)
    roomy = CountingEncoder(bert, 5)
    roomy.load_state_dict(small.state_dict())
    expected = embed_tokens(roomy, tokens, padding_id=0, precision="fp32")
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)


def test_a_single_text_that_does_not_fit_is_an_error(make_bert: MakeBert) -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        embed_tokens(
            CountingEncoder(make_bert().bert, 5, room=8), random_tokens(3), padding_id=0, precision="fp32"
        )


def test_with_a_cache_only_new_texts_are_embedded(make_bert: MakeBert, tmp_path: Path) -> None:
    encoder = CountingEncoder(make_bert().bert, 5)
    tokens = random_tokens(12)

    def embed(part: list[np.ndarray], precision: Precision = "fp32") -> tuple[torch.Tensor, int, list[int]]:
        encoder.shapes.clear()
        done: list[int] = []
        cache = EmbeddingCache(tmp_path / "cache")
        out = embed_tokens(encoder, part, padding_id=0, precision=precision, cache=cache, advance=done.append)
        return out, sum(rows for rows, _ in encoder.shapes), done

    plain = embed_tokens(encoder, tokens, padding_id=0, precision="fp32")
    first, embedded, _ = embed(tokens[:8])
    assert embedded == 8
    second, embedded, done = embed([*tokens, tokens[0]])
    assert embedded == 4
    assert done[0] == 9
    assert sum(done) == 13
    assert torch.equal(second[:8], first)
    assert torch.equal(second[12], first[0])
    torch.testing.assert_close(second[:12], plain, rtol=0, atol=1e-5)
    again, embedded, _ = embed(tokens)
    assert embedded == 0
    assert torch.equal(again, second[:12])
    # Another precision and other weights are other embeddings.
    assert not torch.equal(embed(tokens, "bf16")[0], again)
    with torch.no_grad():
        encoder.project.bias.add_(1.0)
    changed, embedded, _ = embed(tokens)
    assert embedded == 12
    assert not torch.equal(changed, again)


def test_no_text_gives_no_embedding(make_bert: MakeBert) -> None:
    assert embed_tokens(TextEncoder(make_bert().bert, 5), [], padding_id=0).shape == (0, 5)
