"""Batched embedding of many texts: each distinct text once, in batches of like length, at low precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from encoders.bert import TextEncoder, pad
from encoders.embedding_cache import EmbeddingCache, embedding_key, encoder_hash
from encoders.quantisation import Precision, choose_precision, with_precision

CPU_TOKEN_BUDGET = 4_096
"""``tiny`` embeds a fifth more texts a second than at half of it, MiniLM as many; more gains nothing."""

CUDA_TOKEN_BUDGET = 131_072
"""About a gigabyte of activations in MiniLM; where that is too much, the budget is halved."""


LENGTH_STEP = 16
"""Lengths are padded to multiples of this. Attention prefers them, which pays for the padding, and few
lengths mean few shapes: a shape's first batch on a CPU is up to a third slower, as kernels are generated."""


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[npt.NDArray[np.int64]]:
    """Group sequences of similar length so that rows x longest length stays within ``budget``.

    Args:
        lengths: tokens of each sequence.
        budget: largest number of tokens, padding included, in a batch; a longer sequence goes alone.

    Returns:
        Index arrays that together hold every position once, longest sequences first, so that running
        out of memory happens at the first batch or not at all.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        size = max(1, budget // longest)
        batches.append(order[start : start + size])
        start += size
    return batches


def equal_length_batches(lengths: npt.NDArray[np.int64], rows: int) -> list[npt.NDArray[np.int64]]:
    """Group sequences of one length each, at most ``rows`` of them, longest first.

    Returns:
        Index arrays that together hold every position once.
    """
    order = np.argsort(-lengths, kind="stable")
    starts = np.flatnonzero(np.diff(lengths[order])) + 1
    return [
        alike[first : first + rows]
        for alike in np.split(order, starts)
        for first in range(0, len(alike), rows)
    ]


def embed_tokens(
    encoder: TextEncoder,
    tokens: Sequence[npt.NDArray[np.integer]],
    *,
    padding_id: int,
    device: str | torch.device = "cpu",
    precision: Literal["auto"] | Precision = "auto",
    token_budget: int | None = None,
    rows: int | None = None,
    cache: EmbeddingCache | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Return embeddings [len(tokens), d] float32 on the CPU, in the order of ``tokens``.

    Equal texts are embedded once. The same call gives the same result; batched otherwise, as with half of
    the texts in the cache, embeddings agree to the precision, and with ``rows`` to the last bit.

    Args:
        encoder: on ``device``; put into evaluation mode, its weights are left as they are.
        tokens: token ids of each text.
        padding_id: id of the padding token.
        device: where to run.
        precision: what to compute in; ``auto`` is `choose_precision`.
        token_budget: tokens in a batch at most, padding included; by default what suits the device.
            Out of memory halves it.
        rows: texts in every batch instead, all of one padded length; a batch that is short of them is filled
            up. A text is then always read in an array of the same shape, so that no bit of its embedding
            depends on the others, at the price of up to a batch for each length that occurs.
        cache: where to look up embeddings, and to keep new ones.
        advance: called with the number of texts done: those of the cache first, then after each batch.

    Raises:
        torch.OutOfMemoryError: a single text does not fit into memory, or ``rows`` of them do not.
        ValueError: int8 on another device than a CPU.
    """
    chosen = choose_precision(device) if precision == "auto" else precision
    distinct, position, count = _distinct(tokens)
    out = torch.empty(len(distinct), encoder.project.out_features)
    keys: list[bytes] = []
    missing = np.arange(len(distinct))
    if cache is not None:
        identity = encoder_hash(encoder)
        keys = [embedding_key(identity, sequence, chosen) for sequence in distinct]
        found = [cache.get(key) for key in keys]
        for row, kept in enumerate(found):
            if kept is not None:
                out[row] = torch.from_numpy(kept)
        missing = np.array([row for row, kept in enumerate(found) if kept is None], dtype=np.int64)
        advance(int(count.sum() - count[missing].sum()))
    if missing.size:
        encoder.eval()
        new = _embed_batches(
            with_precision(encoder, chosen, device),
            [distinct[row] for row in missing],
            padding_id,
            device,
            token_budget or (CUDA_TOKEN_BUDGET if torch.device(device).type == "cuda" else CPU_TOKEN_BUDGET),
            rows,
            lambda done: advance(int(count[missing[done]].sum())),
        )
        out[torch.from_numpy(missing)] = new
        if cache is not None:
            cache.add([keys[row] for row in missing], new.numpy())
    return out[torch.from_numpy(position)]


def _distinct(
    tokens: Sequence[npt.NDArray[np.integer]],
) -> tuple[list[npt.NDArray[np.integer]], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct sequences, where each of ``tokens`` is among them, and how often each occurs."""
    index: dict[bytes, int] = {}
    distinct: list[npt.NDArray[np.integer]] = []
    position = np.empty(len(tokens), dtype=np.int64)
    for row, sequence in enumerate(tokens):
        key = np.asarray(sequence, dtype=np.int64).tobytes()
        if key not in index:
            index[key] = len(distinct)
            distinct.append(sequence)
        position[row] = index[key]
    return distinct, position, np.bincount(position, minlength=len(distinct))


@torch.no_grad()
def _embed_batches(
    encoder: TextEncoder,
    tokens: list[npt.NDArray[np.integer]],
    padding_id: int,
    device: str | torch.device,
    token_budget: int,
    fixed_rows: int | None,
    on_batch: Callable[[npt.NDArray[np.int64]], None],
) -> torch.Tensor:
    """Return embeddings [len(tokens), d] float32 on the CPU; ``on_batch`` gets the rows of each batch."""
    # A batch without any padding would do without a mask, and attention without a mask is another kernel.
    lengths = _padded_lengths(encoder, tokens, spare=0 if fixed_rows is None else 1)
    # Results stay on the device until the end: fetching each batch would stall the device.
    out = torch.empty(len(tokens), encoder.project.out_features, device=device)
    if fixed_rows is None:
        waiting = token_budget_batches(lengths.tolist(), token_budget)
    else:
        waiting = equal_length_batches(lengths, fixed_rows)
    while waiting:
        rows = waiting[0]
        try:
            repeats = 0 if fixed_rows is None else fixed_rows - len(rows)
            batch = pad([tokens[row] for row in (*rows, *[rows[-1]] * repeats)], padding_id)
            missing = int(lengths[rows[0]]) - batch.ids.shape[1]
            ids = nn.functional.pad(batch.ids, (0, missing), value=padding_id).to(device)
            attention = nn.functional.pad(batch.attention, (0, missing)).to(device)
            out[torch.from_numpy(rows).to(device)] = encoder(ids, attention)[: len(rows)].float()
        except torch.OutOfMemoryError:
            if fixed_rows is not None or len(rows) == 1:
                raise
        else:
            del waiting[0]
            on_batch(rows)
            continue
        # Here, outside the handler, the exception and with it the tensors of the attempt are gone.
        torch.cuda.empty_cache()
        left = np.concatenate(waiting)
        half = len(rows) * int(lengths[rows[0]]) // 2
        waiting = [left[batch] for batch in token_budget_batches(lengths[left].tolist(), half)]
    return out.cpu()


def _padded_lengths(
    encoder: TextEncoder, tokens: list[npt.NDArray[np.integer]], spare: int
) -> npt.NDArray[np.int64]:
    """Lengths and ``spare`` rounded up to `LENGTH_STEP`, but not past the last position of the encoder."""
    lengths = np.array([len(sequence) for sequence in tokens], dtype=np.int64)
    last = int(encoder.bert.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    return np.maximum(lengths, np.minimum(-(-(lengths + spare) // LENGTH_STEP) * LENGTH_STEP, last))
