"""Tokenised texts as training takes them: in shuffled batches of similar length, embedded with gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from encoders.bert import TextEncoder, pad, special_token_id
from encoders.response_data import AnchorTexts


@dataclass(frozen=True)
class TextBatches:
    """Texts as the encoder takes them.

    Attributes:
        texts: user texts of the training weeks.
        tune: user texts of the tuning weeks.
        category_tokens: token ids of the category texts.
        padding_id: id of [PAD].
        separators: ids of the tokens that end an item of a text.
    """

    texts: AnchorTexts
    tune: AnchorTexts
    category_tokens: list[np.ndarray]
    padding_id: int
    separators: np.ndarray

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, texts: AnchorTexts, tune: AnchorTexts, category_tokens: list[np.ndarray]
    ) -> TextBatches:
        """Look up the special tokens."""
        found = [tokenizer.token_to_id(mark) for mark in (",", ".")]
        separators = np.array([number for number in found if number is not None], dtype=np.int32)
        return cls(texts, tune, category_tokens, special_token_id(tokenizer, "[PAD]"), separators)


def encode(encoder: TextEncoder, tokens: list[np.ndarray], padding_id: int, device: str) -> torch.Tensor:
    """Return embeddings of token sequences with gradient, [b, d] float32; bfloat16 within on CUDA."""
    batch = pad(tokens, padding_id).to(device)
    with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
        out: torch.Tensor = encoder(batch.ids, batch.attention)
    return out.float()


def shuffled_batches(
    texts: AnchorTexts, batch_size: int, rng: np.random.Generator, count: int | None = None
) -> list[torch.Tensor]:
    """Shuffle texts into batches of similar length within stretches of sixteen batches.

    Args:
        texts: m of them.
        batch_size: texts in a batch; the last may be smaller.
        rng: shuffles.
        count: draw so many of the texts; all if None.

    Returns:
        Indices of each batch.
    """
    order = torch.from_numpy(rng.permutation(len(texts))[:count])
    batches: list[torch.Tensor] = []
    for stretch in order.split(16 * batch_size):
        lengths = np.array([len(texts.tokens[int(row)]) for row in stretch])
        batches += stretch[torch.from_numpy(np.argsort(lengths, kind="stable"))].split(batch_size)
    return [batches[k] for k in rng.permutation(len(batches))]
