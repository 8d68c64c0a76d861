"""Fine-tuning of the encoder together with the weights that its embeddings meet in the response heads.

The heads come fitted on the embeddings as they are before (:mod:`encoders.heads_fit`) and keep most of their
coefficients: from heads that know nothing of the embedding the first steps would tear down what pretraining
built (Kumar et al. 2022, linear probing then fine-tuning). Afterwards all heads are fitted anew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from encoders.augmentation import drop_items
from encoders.bert import TextEncoder
from encoders.checkpoint import load_checkpoint, save_checkpoint
from encoders.embedding import embed_tokens
from encoders.embedding_cache import EmbeddingCache
from encoders.habits import HabitRates, HabitReader, habit_loss
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData
from encoders.schedule import warmup_cosine
from encoders.text_batches import TextBatches, encode, shuffled_batches

TRAINED_HEADS = ("match_weight", "purchase_bias", "spend_embedding")
"""Parameters of the heads that are trained along; everything else waits for the fit on the embeddings."""

LORA_MODULES = ("query", "value")
"""Where LoRA adds its low-rank weights (Hu et al. 2021, section 4.2)."""


@dataclass(frozen=True)
class FineTuningConfig:
    """How the encoder is trained.

    Attributes:
        epochs: passes over the texts at most.
        batch_size: texts in a step; each brings the weeks that it serves.
        accumulate: batches whose gradients are added up before the weights move.
        learning_rate: peak for the encoder.
        head_learning_rate: peak for the heads.
        weight_decay: AdamW's decoupled weight decay, of the encoder.
        patience: epochs without improvement on the tuning weeks before stopping.
        item_dropout: share of the items of a text left out at random.
        lora_rank: rank of LoRA's weights; 0 trains all of BERT.
        habit_weight: weight of reconstructing the user's habits from the embedding.
        max_texts: texts of an epoch at most, drawn anew for each.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    patience: int
    accumulate: int = 1
    item_dropout: float = 0.0
    lora_rank: int = 0
    habit_weight: float = 0.0
    max_texts: int | None = None

    def texts_in_epoch(self, n_texts: int) -> int:
        """Return how many of ``n_texts`` an epoch goes over."""
        return n_texts if self.max_texts is None else min(n_texts, self.max_texts)


@dataclass(frozen=True)
class FineTuningReport:
    """One epoch.

    Attributes:
        epoch: counted from 1; 0 is the start.
        loss: mean training loss, nats per user-week; None at the start.
        tune_loss: the same over the tuning weeks, dropout off.
    """

    epoch: int
    loss: float | None
    tune_loss: float


def response_loss(
    heads: ResponseHeads,
    data: ResponseData,
    texts: AnchorTexts,
    rows: torch.Tensor,
    embedding: torch.Tensor,
    category_match: torch.Tensor,
) -> torch.Tensor:
    """Mean negative log likelihood of a user-week: basket + spend, in nats; none where nobody visits.

    Args:
        heads: the model.
        data: states and labels.
        texts: which weeks the texts serve.
        rows: [b] text indices.
        embedding: [b, d] their embeddings.
        category_match: [C, d] embeddings of the categories.
    """
    device = embedding.device
    position, user, week = texts.rows(rows)
    visited = data.visited[week, user]
    state = data.tape.before(week, user).to(device)
    loss = 0.0 * embedding.sum()
    shopping = visited.nonzero()[:, 0]
    if len(shopping):
        utilities = heads(
            state.rows(shopping.to(device)),
            embedding[position[shopping]],
            data.calendar.weeks(week[shopping]).to(device),
            category_match,
        )
        bought = data.bought[week[shopping], user[shopping]].to(device)
        log_spend = data.log_spend[week[shopping], user[shopping]].float().to(device)
        loss = loss + nn.functional.binary_cross_entropy_with_logits(
            utilities.purchase, bought.float(), reduction="sum"
        )
        standard = (log_spend - utilities.log_spend) / heads.spend_deviation
        spend_nll = 0.5 * standard**2 + heads.spend_log_deviation
        loss = loss + (spend_nll * data.paid[week[shopping], user[shopping]].to(device)).sum()
    return loss / len(user)


def fine_tune(
    encoder: TextEncoder,
    heads: ResponseHeads,
    reader: HabitReader,
    data: ResponseData,
    batches: TextBatches,
    config: FineTuningConfig,
    *,
    device: str,
    seed: int,
    checkpoint: Path | None = None,
    cache: EmbeddingCache | None = None,
    on_step: Callable[[float], None] = lambda _: None,
    on_epoch: Callable[[FineTuningReport], None] = lambda _: None,
) -> list[FineTuningReport]:
    """Train ``encoder`` and, of ``heads``, TRAINED_HEADS in place; keep the best epoch on the tuning weeks.

    The start counts as epoch 0: where no epoch is better, the encoder stays as it came.

    Every epoch is seeded by its number, so that a resumed run ends where an uninterrupted one would. Both end
    on the CPU.

    Args:
        encoder: to train.
        heads: fitted on the encoder's embeddings.
        reader: reads habits off an embedding, as pretraining left it; trained along.
        data: states and labels.
        batches: texts.
        config: how to train.
        device: where; on CUDA the encoder runs in bfloat16 (on a CPU that gains 10% on two layers of 128).
        seed: of shuffling, dropout, augmentation and where LoRA starts.
        checkpoint: file to resume from and to write after each epoch.
        cache: keeps the embeddings of the tuning weeks and of the categories.
        on_step: called with the loss after each batch; also for batches that a resumed run skips.
        on_epoch: called with each report.

    Raises:
        FloatingPointError: the loss became infinite or not a number.
    """
    if config.lora_rank:
        torch.manual_seed(seed)
        _add_lora(encoder, config.lora_rank)
    torch.manual_seed(seed)
    module = nn.ModuleDict({"heads": heads, "encoder": encoder, "reader": reader}).to(device)
    with _only_trained(heads):
        reports = _train(module, data, batches, config, device, seed, checkpoint, cache, on_step, on_epoch)
    if config.lora_rank:
        encoder.bert = encoder.bert.merge_and_unload()  # type: ignore[operator]
        for parameter in encoder.parameters():
            parameter.requires_grad_(True)
    module.eval()
    match = embed_tokens(
        encoder,
        batches.category_tokens,
        padding_id=batches.padding_id,
        device=device,
        precision="fp32",
        cache=cache,
    )
    with torch.no_grad():
        heads.category_match.copy_(match)
    module.cpu()
    return reports


def _train(
    module: nn.ModuleDict,
    data: ResponseData,
    batches: TextBatches,
    config: FineTuningConfig,
    device: str,
    seed: int,
    checkpoint: Path | None,
    cache: EmbeddingCache | None,
    on_step: Callable[[float], None],
    on_epoch: Callable[[FineTuningReport], None],
) -> list[FineTuningReport]:
    heads, encoder, reader = module["heads"], module["encoder"], module["reader"]
    assert isinstance(heads, ResponseHeads)
    assert isinstance(reader, HabitReader)
    assert isinstance(encoder, TextEncoder)

    def trained(part: nn.Module) -> list[nn.Parameter]:
        return [parameter for parameter in part.parameters() if parameter.requires_grad]

    peaks = [config.head_learning_rate, config.learning_rate]
    optimizer = torch.optim.AdamW(
        [
            # Without weight decay: intercepts and weights have no reason to be near zero.
            {"params": [*trained(heads), *trained(reader)], "lr": peaks[0], "weight_decay": 0.0},
            {"params": trained(encoder), "lr": peaks[1], "weight_decay": config.weight_decay},
        ]
    )
    n_texts = config.texts_in_epoch(len(batches.texts))
    n_batches = -(-n_texts // config.batch_size)
    n_steps = -(-n_batches // config.accumulate)
    reports: list[FineTuningReport] = []
    best = copy.deepcopy(module.state_dict())
    stored: dict[str, Any] | None = load_checkpoint(checkpoint) if checkpoint is not None else None
    if stored is not None:
        module.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        best = stored["best"]
        reports = [FineTuningReport(**report) for report in stored["reports"]]
        for report in reports:
            if report.loss is not None:
                for _ in range(n_batches):
                    on_step(report.loss)
    rates = HabitRates.of(data)
    if not reports:
        reports.append(FineTuningReport(0, None, _evaluate(heads, encoder, data, batches, device, cache)))
        on_epoch(reports[-1])
    for epoch in range(len(reports) - 1, config.epochs):
        if _stalled(reports, config.patience):
            break
        rng = np.random.default_rng([seed, epoch])
        torch.manual_seed(int(rng.integers(2**62)))
        module.train()
        total = 0.0
        for number, rows in enumerate(shuffled_batches(batches.texts, config.batch_size, rng, n_texts)):
            tokens = [batches.texts.tokens[int(row)] for row in rows]
            if config.item_dropout:
                tokens = [drop_items(one, batches.separators, config.item_dropout, rng) for one in tokens]
            embedding = encode(encoder, tokens, batches.padding_id, device)
            match = encode(encoder, batches.category_tokens, batches.padding_id, device)
            loss = response_loss(heads, data, batches.texts, rows, embedding, match)
            habits = habit_loss(reader, embedding, match, rates.at(batches.texts, rows).to(device))
            ((loss + config.habit_weight * habits) / config.accumulate).backward()
            if (number + 1) % config.accumulate == 0 or number + 1 == n_batches:
                step = epoch * n_steps + number // config.accumulate
                factor = warmup_cosine(step, n_steps * config.epochs)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                nn.utils.clip_grad_norm_(module.parameters(), 10.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.item()
            on_step(loss.item())
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss became {total} in epoch {epoch + 1}; lower the learning rates "
                f"({config.learning_rate:g} encoder, {config.head_learning_rate:g} heads)"
            )
        tune_loss = _evaluate(heads, encoder, data, batches, device, cache)
        if tune_loss < min(report.tune_loss for report in reports):
            best = copy.deepcopy(module.state_dict())
        reports.append(FineTuningReport(epoch + 1, total / n_batches, tune_loss))
        on_epoch(reports[-1])
        if checkpoint is not None:
            save_checkpoint(
                checkpoint,
                {
                    "model": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "best": best,
                    "reports": [vars(report) for report in reports],
                },
            )
    module.load_state_dict(best)
    return reports


def _stalled(reports: list[FineTuningReport], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought nothing."""
    if len(reports) <= patience:
        return False
    losses = [report.tune_loss for report in reports]
    return min(losses[-patience:]) >= min(losses[:-patience])


@contextmanager
def _only_trained(heads: ResponseHeads) -> Iterator[None]:
    """Let gradients flow to TRAINED_HEADS alone."""
    for name, parameter in heads.named_parameters():
        parameter.requires_grad_(name in TRAINED_HEADS)
    try:
        yield
    finally:
        for parameter in heads.parameters():
            parameter.requires_grad_(True)


def _add_lora(encoder: TextEncoder, rank: int) -> None:
    """Freeze BERT and put trainable low-rank weights beside its attention (PEFT)."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ModuleNotFoundError("LoRA needs the package peft: pip install 'couponlab[lora]'") from error
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(LORA_MODULES))
    encoder.bert = get_peft_model(encoder.bert, settings)  # type: ignore[arg-type]


@torch.no_grad()
def _evaluate(
    heads: ResponseHeads,
    encoder: TextEncoder,
    data: ResponseData,
    batches: TextBatches,
    device: str,
    cache: EmbeddingCache | None,
) -> float:
    """Mean loss per user-week over all texts of the tuning weeks."""
    heads.eval()
    encoder.eval()
    tune = batches.tune
    # In full precision on a CPU: which epoch is best must not hang on what the processor offers.
    embeddings = embed_tokens(
        encoder,
        tune.tokens,
        padding_id=batches.padding_id,
        device=device,
        precision="auto" if device.startswith("cuda") else "fp32",
        cache=cache,
    ).to(device)
    match = encode(encoder, batches.category_tokens, batches.padding_id, device)
    total, count = 0.0, 0
    for rows in torch.arange(len(tune)).split(512):
        size = len(tune.rows(rows)[0])
        loss = response_loss(heads, data, tune, rows, embeddings[rows.to(device)], match)
        total += float(loss) * size
        count += size
    return total / count
