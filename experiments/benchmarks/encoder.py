"""Speed of batched embedding on real user texts, beside sentence-transformers on the same weights.

Both sides get texts and return L2-normalised mean-pooled embeddings; tokenisation counts. The peer runs as
it comes: batches of 32 sorted by length, fp32. Where sentence-transformers is not installed
(``pip install 'couponlab[bench]'``), plain transformers does the same in its stead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final, get_args

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from encoders.bert import (
    TextEncoder,
    TokenBatch,
    load_pretraining_model,
    packaged_model,
    pad,
    special_token_id,
    tokenize,
)
from encoders.embedding import CUDA_TOKEN_BUDGET, embed_tokens
from encoders.quantisation import Precision, choose_precision, with_precision
from encoders.user_text import UserTextStyle, user_texts
from envs.logs import open_logs
from envs.panel_from_logs import build_panel
from experiments.benchmarks import Row, describe_machine
from experiments.config import ConfigError

MAX_TOKENS = 128
ROUND_TEXTS: Final = {"cpu": 512, "cuda": 4096}
"""Texts in a round: three rounds on two CPU cores take about two minutes, loading apart."""
WEEKS_BETWEEN_TEXTS = 4
ROUNDS = 3
PEER_BATCH = 32
SPEED_BAR = 3.0
COSINE_BAR: Final[dict[Precision, float]] = {"fp32": 0.999, "bf16": 0.999, "int8": 0.99}
MATMUL_SHARE_BAR = 0.40
"""Of the measured bf16 matmul rate, on CUDA at `MAX_TOKENS` tokens."""
MATMUL_SIZE = 8192

Embed = Callable[[list[str]], torch.Tensor]
"""Texts to normalised embeddings [n, d] float32 on the CPU."""


def benchmark_texts(n: int, seed: int = 0) -> list[str]:
    """Return n distinct user texts of Complete Journey, shuffled: of the latest training weeks that it takes.

    Raises:
        ConfigError: there are fewer.
    """
    with open_logs("complete-journey", threads=torch.get_num_threads()) as logs:
        panel = build_panel(logs, n_categories=120, pseudonym_key=b"benchmark of the encoder")
    texts: dict[str, None] = {}
    for week in range(panel.split.train_end + 1, 1, -WEEKS_BETWEEN_TEXTS):
        texts |= dict.fromkeys(user_texts(panel, week, UserTextStyle()))
        if len(texts) >= n:
            chosen = list(texts)
            return [chosen[k] for k in np.random.default_rng(seed).permutation(len(chosen))[:n]]
    raise ConfigError(f"the log gives {len(texts)} distinct user texts; the benchmark wants {n}")


def sentence_encoder(folder: Path) -> TextEncoder:
    """Return BERT with mean pooling alone: the projection is the identity."""
    bert = load_pretraining_model(folder).bert
    encoder = TextEncoder(bert, bert.config.hidden_size)
    nn.init.eye_(encoder.project.weight)
    nn.init.zeros_(encoder.project.bias)
    encoder.register_module("norm", nn.Identity())
    return encoder


def our_embedding(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    precision: Precision,
    device: str,
    max_tokens: int = MAX_TOKENS,
) -> Embed:
    """Return our way from texts to embeddings."""
    padding_id = special_token_id(tokenizer, "[PAD]")

    def embed(texts: list[str]) -> torch.Tensor:
        tokens = tokenize(tokenizer, texts, max_tokens)
        embeddings = embed_tokens(encoder, tokens, padding_id=padding_id, device=device, precision=precision)
        return normalize(embeddings, dim=-1)

    return embed


def transformers_embedding(
    encoder: TextEncoder, tokenizer: Tokenizer, device: str, max_tokens: int = MAX_TOKENS
) -> Embed:
    """Return what sentence-transformers does by default, written with plain transformers."""
    padding_id = special_token_id(tokenizer, "[PAD]")
    bert = encoder.bert.eval()

    @torch.inference_mode()
    def embed(texts: list[str]) -> torch.Tensor:
        out = torch.empty(len(texts), int(bert.config.hidden_size))  # type: ignore[union-attr, arg-type]
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for start in range(0, len(order), PEER_BATCH):
            rows = order[start : start + PEER_BATCH]
            batch = pad(tokenize(tokenizer, [texts[k] for k in rows], max_tokens), padding_id).to(device)
            hidden = bert(input_ids=batch.ids, attention_mask=batch.attention).last_hidden_state
            mask = batch.attention[..., None].to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            out[torch.from_numpy(rows)] = normalize(pooled, dim=-1).cpu()
        return out

    return embed


def sentence_transformers_embedding(folder: Path, device: str) -> Embed:
    """Return sentence-transformers' own way, with its defaults but for the same `MAX_TOKENS`."""
    # Imported by name: the package is optional, and is typed only where it is installed.
    model: Any = import_module("sentence_transformers").SentenceTransformer(str(folder), device=device)
    model.max_seq_length = MAX_TOKENS

    def embed(texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(model.encode(texts, show_progress_bar=False))

    return embed


def interleaved_rates(
    contenders: dict[str, Embed], rounds: list[list[str]]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Let all embed each round's texts in turn.

    Args:
        contenders: by name.
        rounds: texts of each round; the first round's first texts also warm up, uncounted.

    Returns:
        Median texts a second of each contender, and its embeddings of all rounds, [n, d].
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    embeddings: dict[str, list[torch.Tensor]] = {name: [] for name in contenders}
    for embed in contenders.values():
        embed(rounds[0][:PEER_BATCH])
    for texts in rounds:
        for name, embed in contenders.items():
            start = time.perf_counter()
            embedded = embed(texts)
            rates[name].append(len(texts) / (time.perf_counter() - start))
            embeddings[name].append(embedded)
    return (
        {name: median(values) for name, values in rates.items()},
        {name: torch.cat(parts) for name, parts in embeddings.items()},
    )


def bert_flops(layers: int, width: int, intermediate: int, tokens: int) -> int:
    """Return floating-point operations of all matrix products of BERT for one text, two per multiply-add.

    Projections of queries, keys, values and output: 8 L h²; feed-forward: 4 L h f; attention: 4 L² h.
    """
    return layers * tokens * (8 * width**2 + 4 * width * intermediate + 4 * tokens * width)


def _cuda_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Median seconds of a piece of work on the GPU, after warming up."""
    for _ in range(3):
        work()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


@torch.inference_mode()
def _cuda_rows(encoder: TextEncoder, hardware: str) -> list[Row]:
    """Our share of the GPU's matmul rate on full batches of `MAX_TOKENS` tokens."""
    square = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16)
    matmul_rate = 2 * MATMUL_SIZE**3 / _cuda_seconds(lambda: square @ square)
    shape: Any = encoder.bert.config
    n = CUDA_TOKEN_BUDGET // MAX_TOKENS
    ids = torch.randint(1000, shape.vocab_size, (n, MAX_TOKENS), device="cuda")
    batch = TokenBatch(ids, torch.ones_like(ids), torch.zeros_like(ids))
    lowered = with_precision(encoder, "bf16", "cuda").eval()
    rate = n / _cuda_seconds(lambda: lowered(batch.ids, batch.attention))
    flops = bert_flops(shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, MAX_TOKENS)
    return [
        Row.compare(
            f"bf16 matmul, {MATMUL_SIZE} x {MATMUL_SIZE}", matmul_rate / 1e12, "TFLOP/s", hardware=hardware
        ),
        Row.compare(f"bf16, texts of {MAX_TOKENS} tokens, on the GPU", rate, "texts/s", hardware=hardware),
        Row.compare(
            "bf16, share of the matmul rate",
            rate * flops / matmul_rate,
            "fraction",
            bar=MATMUL_SHARE_BAR,
            hardware=hardware,
        ),
    ]


def run() -> list[Row]:
    """Measure every precision against the peer, and how far embeddings are from the peer's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hardware = f"{describe_machine(device)}, {torch.get_num_threads()} threads"
    try:
        folder = packaged_model("minilm")
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    assert folder is not None
    # The pretraining heads, which embedding does not use, are missing from these weights; no need to say so.
    transformers.utils.logging.set_verbosity_error()
    n = ROUND_TEXTS[device]
    texts = benchmark_texts(n * ROUNDS)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = sentence_encoder(folder).to(device)
    if find_spec("sentence_transformers") is not None:
        peer = f"sentence-transformers {metadata.version('sentence-transformers')}"
        peer_embedding = sentence_transformers_embedding(folder, device)
    else:
        peer = f"transformers {metadata.version('transformers')}, sentence-transformers' defaults"
        peer_embedding = transformers_embedding(encoder, tokenizer, device)
    precisions = [p for p in get_args(Precision) if device == "cpu" or p != "int8"]
    contenders = {p: our_embedding(encoder, tokenizer, p, device) for p in precisions}
    rounds = [texts[k * n : (k + 1) * n] for k in range(ROUNDS)]
    rates, embeddings = interleaved_rates({peer: peer_embedding, **contenders}, rounds)
    default = choose_precision(device)
    rows = [
        Row.compare(
            f"MiniLM {p}{' (default)' if p == default else ''}, user texts of <= {MAX_TOKENS} tokens, "
            f"median of {ROUNDS} x {n:,}",
            rates[p],
            "texts/s",
            peer=peer,
            peer_value=rates[peer],
            bar=SPEED_BAR if p == default else None,
            hardware=hardware,
        )
        for p in precisions
    ]
    for p in precisions:
        cosine = cosine_similarity(embeddings[p], embeddings[peer])
        for name, value in (("least", cosine.min()), ("mean", cosine.mean())):
            measure = f"{p}, {name} cosine to {peer}, {len(texts):,} texts"
            rows.append(Row.compare(measure, float(value), "cosine", bar=COSINE_BAR[p], hardware=hardware))
    if device == "cuda":
        rows += _cuda_rows(encoder, hardware)
    return rows
