from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForPreTraining

from encoders.bert import TextEncoder
from encoders.embedding_cache import EmbeddingCache, EmbeddingCacheError, embedding_key, encoder_hash


def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    keys = [hashlib.sha256(bytes([k])).digest() for k in range(5)]
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    cache = EmbeddingCache(tmp_path)
    cache.add(keys[:3], values[:3])
    cache.add(keys[3:], values[3:])
    cache.add([], values[:0])
    for opened in (cache, EmbeddingCache(tmp_path)):
        assert len(opened) == 5
        for key, value in zip(keys, values, strict=True):
            found = opened.get(key)
            assert found is not None
            np.testing.assert_array_equal(found, value)
        assert opened.get(hashlib.sha256(b"other").digest()) is None
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    EmbeddingCache(tmp_path).add([b"k" * 32], np.ones((1, 3), dtype=np.float32))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-1] ^= 1
    path.write_bytes({"cut": content[:-4], "bit": content, "empty": bytearray()}[damage])
    with pytest.raises(EmbeddingCacheError, match=f"{path.name} is damaged"):
        EmbeddingCache(tmp_path)
    path.unlink()
    assert len(EmbeddingCache(tmp_path)) == 0


def test_an_interrupted_write_leaves_the_cache_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.add([b"a" * 32], np.ones((1, 3), dtype=np.float32))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.add([b"b" * 32], np.ones((1, 3), dtype=np.float32))
    assert len(EmbeddingCache(tmp_path)) == 1


def test_kept_embeddings_do_not_change_with_the_array_that_they_came_from(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    values = np.ones((1, 3), dtype=np.float32)
    cache.add([b"a" * 32], values)
    values[:] = 7
    found = cache.get(b"a" * 32)
    assert found is not None
    np.testing.assert_array_equal(found, np.ones(3))


@given(st.lists(st.integers(0, 30_000), max_size=8), st.lists(st.integers(0, 30_000), max_size=8))
def test_keys_are_equal_exactly_for_equal_content(first: list[int], second: list[int]) -> None:
    def key(tokens: list[int], dtype: type = np.int32) -> bytes:
        return embedding_key(b"e" * 32, np.array(tokens, dtype=dtype), "fp32")

    assert (key(first) == key(second)) == (first == second)
    assert key(first) == key(first, np.int64)
    assert key(first) != embedding_key(b"e" * 32, np.array(first, dtype=np.int32), "bf16")


def test_the_encoder_hash_follows_weights_and_shape(make_bert: Callable[..., BertForPreTraining]) -> None:
    encoder = TextEncoder(make_bert().bert, 5)
    same = copy.deepcopy(encoder)
    same.bert.config._name_or_path = "elsewhere"  # type: ignore[union-attr]
    assert encoder_hash(encoder) == encoder_hash(same)
    heads = copy.deepcopy(encoder)
    heads.bert.config.num_attention_heads = 4  # type: ignore[union-attr]
    weights = copy.deepcopy(encoder)
    with torch.no_grad():
        weights.norm.bias[0] += 1e-6
    assert len({encoder_hash(e) for e in (encoder, heads, weights)}) == 3
