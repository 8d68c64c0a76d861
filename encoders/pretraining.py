"""Pretraining on the logs' own texts: masked language model plus next-basket prediction.

The next-sentence task of BERT (Devlin et al. 2019, section 3.1) with baskets for sentences: the first
sentence is a user text, the second the user's next basket or, half of the time, someone else's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertForPreTraining

from encoders.bert import NEXT_BASKET_TOKENS, TokenBatch, pad
from encoders.checkpoint import load_checkpoint, save_checkpoint
from encoders.schedule import warmup_cosine

IGNORED = -100


@dataclass(frozen=True)
class PretrainingConfig:
    """How BERT is pretrained.

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs in a step.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's decoupled weight decay.
        mask_probability: share of tokens to predict.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    mask_probability: float


@dataclass(frozen=True)
class PretrainingPairs:
    """Tokenised pairs; position k of both lists belongs together.

    Attributes:
        histories: user texts with their special tokens.
        baskets: the user's next basket, with special tokens, of which the leading one is dropped.
    """

    histories: list[np.ndarray]
    baskets: list[np.ndarray]

    def __post_init__(self) -> None:
        if len(self.histories) != len(self.baskets):
            raise ValueError(f"{len(self.histories)} histories but {len(self.baskets)} baskets")
        if len(self.histories) < 2:
            raise ValueError("next-basket prediction needs at least two pairs")


@dataclass(frozen=True)
class EpochReport:
    """Means over one epoch.

    Attributes:
        epoch: counted from 1.
        masked_loss: cross-entropy of the masked tokens, nats.
        next_basket_loss: cross-entropy of the next-basket task, nats; log 2 is guessing.
        next_basket_accuracy: share of pairs told right; 0.5 is guessing.
    """

    epoch: int
    masked_loss: float
    next_basket_loss: float
    next_basket_accuracy: float


def mask_tokens(
    batch: TokenBatch,
    probability: float,
    vocabulary: int,
    mask_id: int,
    n_special: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens to predict: 80% become [MASK], 10% a random token, 10% stay (Devlin et al. 2019, A.1).

    Args:
        batch: tokens [B, L].
        probability: share of ordinary tokens that are chosen.
        vocabulary: number of token ids.
        mask_id: id of [MASK].
        n_special: ids below this are special and never chosen.
        rng: source of randomness.

    Returns:
        Masked ids [B, L] and labels [B, L], IGNORED where nothing is predicted.
    """
    ids = batch.ids.numpy()
    ordinary = (ids >= n_special) & (batch.attention.numpy() == 1)
    chosen = ordinary & (rng.random(ids.shape) < probability)
    labels = np.where(chosen, ids, IGNORED)
    fate = rng.random(ids.shape)
    masked = np.where(chosen & (fate < 0.8), mask_id, ids)
    random_ids = rng.integers(n_special, vocabulary, ids.shape)
    masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, masked)
    return torch.from_numpy(masked), torch.from_numpy(labels)


def pair_batch(
    pairs: PretrainingPairs, rows: np.ndarray, padding_id: int, rng: np.random.Generator
) -> tuple[TokenBatch, torch.Tensor]:
    """Join histories with baskets; half of the rows get the basket of another pair.

    Returns:
        The batch, and labels [B]: 0 where the basket is the user's own, 1 where it is not, as BERT has it.
    """
    n = len(pairs.histories)
    foreign = rng.random(len(rows)) < 0.5
    other = (rows + rng.integers(1, n, len(rows))) % n
    sequences, starts = [], []
    for row, swap, substitute in zip(rows, foreign, other, strict=True):
        history = pairs.histories[row]
        basket = pairs.baskets[substitute if swap else row][1 : NEXT_BASKET_TOKENS + 1]
        sequences.append(np.concatenate([history, basket]))
        starts.append(len(history))
    batch = pad(sequences, padding_id)
    position = torch.arange(batch.ids.shape[1])
    segments = (position[None, :] >= torch.tensor(starts)[:, None]).long() * batch.attention
    return TokenBatch(batch.ids, batch.attention, segments), torch.from_numpy(foreign.astype(np.int64))


def pretrain(
    model: BertForPreTraining,
    pairs: PretrainingPairs,
    config: PretrainingConfig,
    *,
    mask_id: int,
    padding_id: int,
    n_special: int,
    seed: int,
    device: str,
    checkpoint: Path,
    on_step: Callable[[float], None] = lambda _: None,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
) -> list[EpochReport]:
    """Pretrain ``model`` in place and return a report per epoch.

    Every epoch is seeded by its number, so that a run resumed from ``checkpoint`` ends exactly where an
    uninterrupted one would.

    Args:
        model: BERT with its two pretraining heads.
        pairs: what to train on.
        config: how to train.
        mask_id: id of [MASK].
        padding_id: id of [PAD].
        n_special: ids below this are never masked.
        seed: of shuffling, masking and dropout.
        device: where to run.
        checkpoint: file to resume from and to write after each epoch.
        on_step: called with the loss after each optimiser step; also for the steps that a resumed run skips.
        on_epoch: called with each report.
    """
    nn.Module.to(model, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    n = len(pairs.histories)
    steps_per_epoch = -(-n // config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    reports: list[EpochReport] = []
    stored = load_checkpoint(checkpoint)
    if stored is not None:
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        reports = [EpochReport(**report) for report in stored["reports"]]
        for report in reports:
            for _ in range(steps_per_epoch):
                on_step(report.masked_loss)
    vocabulary = int(model.config.vocab_size)
    for epoch in range(len(reports), config.epochs):
        rng = np.random.default_rng([seed, epoch])
        torch.manual_seed(int(rng.integers(2**62)))
        model.train()
        order = rng.permutation(n)
        totals = np.zeros(3)
        for step, start in enumerate(range(0, n, config.batch_size)):
            rows = order[start : start + config.batch_size]
            batch, foreign = pair_batch(pairs, rows, padding_id, rng)
            masked, labels = mask_tokens(batch, config.mask_probability, vocabulary, mask_id, n_special, rng)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * warmup_cosine(
                    epoch * steps_per_epoch + step, total_steps
                )
            masked_loss, basket_loss, accuracy = _losses(
                model, masked.to(device), batch.to(device), labels.to(device), foreign.to(device)
            )
            optimizer.zero_grad(set_to_none=True)
            (masked_loss + basket_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            totals += [masked_loss.item(), basket_loss.item(), accuracy]
            on_step(masked_loss.item())
        means = totals / steps_per_epoch
        report = EpochReport(epoch + 1, *(float(value) for value in means))
        reports.append(report)
        on_epoch(report)
        save_checkpoint(
            checkpoint,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "reports": [vars(report) for report in reports],
            },
        )
    return reports


def _losses(
    model: BertForPreTraining,
    ids: torch.Tensor,
    batch: TokenBatch,
    labels: torch.Tensor,
    foreign: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Both losses and the next-basket accuracy; the vocabulary is scored at masked positions only."""
    output = model.bert(input_ids=ids, attention_mask=batch.attention, token_type_ids=batch.segments)
    chosen = labels != IGNORED
    scores = model.cls.predictions(output.last_hidden_state[chosen])
    # A batch so short that nothing was chosen contributes nothing to this loss.
    masked_loss = nn.functional.cross_entropy(scores, labels[chosen], reduction="sum") / chosen.sum().clamp(
        min=1
    )
    relation = model.cls.seq_relationship(output.pooler_output)
    basket_loss = nn.functional.cross_entropy(relation, foreign)
    accuracy = float((relation.argmax(dim=1) == foreign).float().mean())
    return masked_loss, basket_loss, accuracy
