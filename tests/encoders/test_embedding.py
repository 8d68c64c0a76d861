from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForPreTraining

from encoders.bert import TextEncoder
from encoders.embedding import embed_tokens, token_budget_batches


@given(st.lists(st.integers(0, 100), max_size=60), st.integers(1, 500))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * length <= budget


@pytest.mark.parametrize("budget", [1, 20, 64, 10_000])
def test_embeddings_do_not_depend_on_the_batching(
    make_bert: Callable[..., BertForPreTraining], budget: int
) -> None:
    encoder = TextEncoder(make_bert().bert, 5)
    encoder.train()
    rng = np.random.default_rng(3)
    tokens = [rng.integers(5, 40, length).astype(np.int32) for length in rng.integers(1, 25, 30)]
    done: list[int] = []
    embeddings = embed_tokens(encoder, tokens, padding_id=0, token_budget=budget, advance=done.append)
    assert sum(done) == len(tokens)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    for row in (0, 7, 29):
        alone = embed_tokens(encoder, [tokens[row]], padding_id=0)
        torch.testing.assert_close(embeddings[row], alone[0], rtol=0, atol=1e-5)


def test_no_text_gives_no_embedding(make_bert: Callable[..., BertForPreTraining]) -> None:
    assert embed_tokens(TextEncoder(make_bert().bert, 5), [], padding_id=0).shape == (0, 5)
