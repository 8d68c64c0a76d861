"""Batched embedding of many texts: sorted by length, batched by tokens, progress reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from encoders.bert import TextEncoder, pad

DEFAULT_TOKEN_BUDGET = 16_384


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[np.ndarray]:
    """Group sequences of similar length so that rows x longest length stays within ``budget``.

    Args:
        lengths: tokens of each sequence.
        budget: largest number of tokens, padding included, in a batch; a longer sequence goes alone.

    Returns:
        Index arrays that together hold every position once, longest sequences first, so that running
        out of memory happens at the first batch or not at all.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches: list[np.ndarray] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, budget // longest)
        batches.append(order[start : start + size])
        start += size
    return batches


@torch.no_grad()
def embed_tokens(
    encoder: TextEncoder,
    tokens: Sequence[np.ndarray],
    *,
    padding_id: int,
    device: str | torch.device = "cpu",
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    advance: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Return embeddings [len(tokens), d] float32 on the CPU, in the order of ``tokens``.

    Args:
        encoder: put into evaluation mode; dropout is off.
        tokens: token ids of each text.
        padding_id: id of the padding token.
        device: where to run.
        token_budget: tokens in a batch, padding included.
        advance: called with the number of texts done after each batch.
    """
    encoder.eval()
    out = torch.empty(len(tokens), encoder.project.out_features)
    for rows in token_budget_batches([len(sequence) for sequence in tokens], token_budget):
        batch = pad([tokens[row] for row in rows], padding_id).to(device)
        out[torch.from_numpy(rows)] = encoder(batch.ids, batch.attention).float().cpu()
        advance(len(rows))
    return out
