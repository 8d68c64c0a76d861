"""Habits as a pretraining task: the encoder learns to keep what a user buys how often.

The text names habits in words; the task asks for the purchase rates of all categories back, read off the
embedding. It needs no label of a later week, so that it cannot take what happened in the training weeks for
what will happen. The category texts learn along: e·p_c, the match of a user with a category, is fitted to the
same rate, with e held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from encoders.bert import TextEncoder
from encoders.checkpoint import load_checkpoint, save_checkpoint
from encoders.embedding import embed_tokens
from encoders.history import slow_rate_logit
from encoders.response_data import AnchorTexts, ResponseData
from encoders.schedule import warmup_cosine
from encoders.text_batches import TextBatches, encode, shuffled_batches

_START_TEXTS = 4096
"""Texts of which the mean rates are the reader's start."""

_MATCH_EVERY = 4
"""Steps from one on which the category texts learn to the next."""


class HabitReader(nn.Module):
    """Reads C purchase rates off an embedding of width d, by weights of its own and by the match of texts.

    Args:
        embedding: d.
        n_categories: C.
    """

    def __init__(self, embedding: int, n_categories: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, n_categories)
        # Small at the start: untrained embeddings are all alike, and their products large.
        self.match_log_scale = nn.Parameter(torch.full((n_categories,), -2.0))
        self.match_bias = nn.Parameter(torch.zeros(n_categories))

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return rates read by the reader's own weights, [b, C], of embeddings [b, d]."""
        rates: torch.Tensor = self.linear(embedding)
        return rates

    def matched(self, embedding: torch.Tensor, category_match: torch.Tensor) -> torch.Tensor:
        """Return rates read by the match, [b, C], of embeddings [b, d] and [C, d]."""
        match: torch.Tensor = embedding @ category_match.T / embedding.shape[1] ** 0.5
        return match * self.match_log_scale.exp() + self.match_bias

    @torch.no_grad()
    def start_at(self, rates: torch.Tensor) -> None:
        """Start from the mean of the given rates, [m, C]."""
        self.linear.bias.copy_(rates.mean(dim=0))
        self.match_bias.copy_(rates.mean(dim=0))


@dataclass(frozen=True)
class HabitRates:
    """The rates that texts are to tell: standardised logits of the slow purchase rate before the text's week.

    Attributes:
        data: states.
        base_rate: [C] prior of the rates.
        mean: over users and categories.
        std: the same.
    """

    data: ResponseData
    base_rate: torch.Tensor
    mean: float
    std: float

    @classmethod
    def of(cls, data: ResponseData) -> HabitRates:
        """Take prior and scale from the training weeks."""
        base_rate = data.base_rate()
        scale = data.feature_scale(base_rate)
        return cls(data, base_rate, float(scale.category_mean[0]), float(scale.category_std[0]))

    def at(self, texts: AnchorTexts, rows: torch.Tensor) -> torch.Tensor:
        """Return the rates of the texts ``rows``, [b, C]."""
        state = self.data.tape.before(texts.first_week[rows], texts.user[rows])
        return (slow_rate_logit(state, self.base_rate) - self.mean) / self.std


def habit_loss(
    reader: HabitReader, embedding: torch.Tensor, category_match: torch.Tensor | None, rates: torch.Tensor
) -> torch.Tensor:
    """Half the squared error of both readings, summed over categories, mean over users.

    The match learns from embeddings held fixed: two sides that start as noise and must find each other learn
    far slower than one that follows (a fifth of the variance explained after 300 steps).

    Args:
        reader: reads.
        embedding: [b, d] of user texts.
        category_match: [C, d] of category texts; None leaves the match out.
        rates: [b, C] as they are.
    """
    error = (reader(embedding) - rates).square()
    if category_match is not None:
        error = error + (reader.matched(embedding.detach(), category_match) - rates).square()
    loss: torch.Tensor = 0.5 * error.sum(dim=1).mean()
    return loss


@dataclass(frozen=True)
class HabitConfig:
    """How habits are learnt.

    Attributes:
        epochs: passes over the texts.
        batch_size: texts in a step.
        learning_rate: peak of AdamW's learning rate.
        weight_decay: AdamW's decoupled weight decay, of the encoder.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class HabitReport:
    """One epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean of :func:`habit_loss` over the epoch.
        explained: share of the variance of the rates over users that the embedding tells, on the tuning
            weeks' texts; of the same users, so it tells how well texts are read, not how new users fare.
        matched: the same told by the match with the category's text.
    """

    epoch: int
    loss: float
    explained: float
    matched: float


def learn_habits(
    encoder: TextEncoder,
    reader: HabitReader,
    rates: HabitRates,
    batches: TextBatches,
    config: HabitConfig,
    *,
    device: str,
    seed: int,
    checkpoint: Path,
    on_step: Callable[[float], None] = lambda _: None,
) -> list[HabitReport]:
    """Train ``encoder`` and ``reader`` in place, and return a report per epoch. Both end on the CPU.

    Every epoch is seeded by its number, so that a resumed run ends where an uninterrupted one would.

    Args:
        encoder: to train.
        reader: to train.
        rates: what to read.
        batches: texts; the tuning ones are only reported on.
        config: how to train.
        device: where.
        seed: of shuffling and dropout.
        checkpoint: file to resume from and to write after each epoch.
        on_step: called with the loss after each batch; also for batches that a resumed run skips.

    Raises:
        FloatingPointError: the loss became infinite or not a number.
    """
    texts = batches.texts
    some = torch.linspace(0, len(texts) - 1, min(len(texts), _START_TEXTS)).long()
    reader.start_at(rates.at(texts, some))
    module = nn.ModuleDict({"encoder": encoder, "reader": reader}).to(device)
    optimizer = torch.optim.AdamW(
        [
            # Without weight decay: its weights have no reason to be near zero.
            {"params": list(reader.parameters()), "weight_decay": 0.0},
            {"params": list(encoder.parameters()), "weight_decay": config.weight_decay},
        ],
        lr=config.learning_rate,
    )
    n_steps = -(-len(texts) // config.batch_size)
    reports: list[HabitReport] = []
    stored = load_checkpoint(checkpoint)
    if stored is not None:
        module.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        reports = [HabitReport(**report) for report in stored["reports"]]
        for report in reports:
            for _ in range(n_steps):
                on_step(report.loss)
    for epoch in range(len(reports), config.epochs):
        rng = np.random.default_rng([seed, epoch])
        torch.manual_seed(int(rng.integers(2**62)))
        module.train()
        total = 0.0
        for step, rows in enumerate(shuffled_batches(texts, config.batch_size, rng)):
            embedding = encode(encoder, [texts.tokens[int(k)] for k in rows], batches.padding_id, device)
            # The category texts are the same in all steps, and a quarter of the work.
            match = (
                encode(encoder, batches.category_tokens, batches.padding_id, device)
                if step % _MATCH_EVERY == 0
                else None
            )
            loss = habit_loss(reader, embedding, match, rates.at(texts, rows).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 10.0)
            factor = warmup_cosine(epoch * n_steps + step, n_steps * config.epochs)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            optimizer.step()
            total += loss.item()
            on_step(loss.item())
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss of the habits became {total} in epoch {epoch + 1}; "
                f"lower the learning rate ({config.learning_rate:g})"
            )
        explained = explained_variance(encoder, reader, rates, batches, device)
        reports.append(HabitReport(epoch + 1, total / n_steps, *explained))
        save_checkpoint(
            checkpoint,
            {
                "model": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "reports": [vars(report) for report in reports],
            },
        )
    module.eval()
    module.cpu()
    return reports


@torch.no_grad()
def explained_variance(
    encoder: TextEncoder, reader: HabitReader, rates: HabitRates, batches: TextBatches, device: str
) -> tuple[float, float]:
    """Share of the variance over users, all categories together, that each reading tells; tuning texts."""
    encoder.eval()
    tokens, padding_id = batches.tune.tokens, batches.padding_id
    embedding = embed_tokens(encoder, tokens, padding_id=padding_id, device=device, precision="fp32").cpu()
    match = encode(encoder, batches.category_tokens, padding_id, device).cpu()
    on_cpu = reader.cpu()
    true = rates.at(batches.tune, torch.arange(len(tokens)))
    variance = float((true - true.mean(dim=0)).square().sum())
    shares = [
        1.0 - float((read - true).square().sum()) / variance if variance > 0 else math.nan
        for read in (on_cpu(embedding), on_cpu.matched(embedding, match))
    ]
    reader.to(device)
    return shares[0], shares[1]
