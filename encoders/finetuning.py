"""Fitting of the response heads, with the encoder (fine-tuning) or on fixed embeddings (refitting)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from encoders.bert import TextEncoder, pad
from encoders.checkpoint import load_checkpoint, save_checkpoint
from encoders.embedding import embed_tokens
from encoders.response import ResponseHeads
from encoders.response_data import AnchorTexts, ResponseData
from encoders.schedule import warmup_cosine


@dataclass(frozen=True)
class FittingConfig:
    """How the heads, and the encoder where it is trained, are fitted.

    Attributes:
        epochs: passes over the texts at most.
        batch_size: texts in a step; each brings the weeks that it serves.
        learning_rate: peak for the encoder.
        head_learning_rate: peak for the heads.
        weight_decay: AdamW's decoupled weight decay.
        patience: epochs without improvement on the tuning weeks before stopping.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    patience: int


@dataclass(frozen=True)
class FittingReport:
    """One epoch of fitting.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss.
        tune_loss: the same loss over the tuning weeks, dropout off.
    """

    epoch: int
    loss: float
    tune_loss: float


class Embedder:
    """Embeddings of texts and categories: by the encoder, or from a table.

    Args:
        encoder: trained along, or None for fixed embeddings.
        texts: what ``rows`` count.
        category_tokens: token ids of the category texts.
        padding_id: id of [PAD].
        table: [len(texts), d] fixed embeddings where there is no encoder.
        device: where the encoder runs.
    """

    def __init__(
        self,
        texts: AnchorTexts,
        *,
        encoder: TextEncoder | None = None,
        category_tokens: list[np.ndarray] | None = None,
        padding_id: int = 0,
        table: torch.Tensor | None = None,
        device: str = "cpu",
    ) -> None:
        if (encoder is None) == (table is None):
            raise ValueError("give either an encoder or a table of fixed embeddings")
        if encoder is not None and category_tokens is None:
            raise ValueError("an encoder needs the category texts")
        self.texts = texts
        self.encoder = encoder
        self.category_tokens = category_tokens or []
        self.padding_id = padding_id
        self.table = table
        self.device = device

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return text embeddings [b, d] and, where trained, category embeddings [C, d]."""
        if self.table is not None:
            return self.table[rows], None
        assert self.encoder is not None
        tokens = pad([self.texts.tokens[int(row)] for row in rows], self.padding_id).to(self.device)
        return self.encoder(tokens.ids, tokens.attention).float(), self.categories()

    def categories(self) -> torch.Tensor:
        """Return the category embeddings by the encoder, [C, d]."""
        assert self.encoder is not None
        tokens = pad(self.category_tokens, self.padding_id).to(self.device)
        out: torch.Tensor = self.encoder(tokens.ids, tokens.attention).float()
        return out

    def all(self) -> torch.Tensor:
        """Return the embeddings of all texts without gradient, [len(texts), d]."""
        if self.table is not None:
            return self.table
        assert self.encoder is not None
        return embed_tokens(
            self.encoder, self.texts.tokens, padding_id=self.padding_id, device=self.device
        ).to(self.device)


def response_loss(
    heads: ResponseHeads,
    data: ResponseData,
    texts: AnchorTexts,
    rows: torch.Tensor,
    embedding: torch.Tensor,
    category_match: torch.Tensor | None,
    n_rows: int,
) -> torch.Tensor:
    """Mean negative log posterior of a user-week: visit + basket + spend, in nats.

    Args:
        heads: the model.
        data: states and labels.
        texts: which weeks the texts serve.
        rows: [b] text indices.
        embedding: [b, d] their embeddings.
        category_match: [C, d] where categories are being trained.
        n_rows: user-weeks in the whole data, among which the prior on depth effects is shared.
    """
    device = embedding.device
    position, user, week = texts.rows(rows)
    visited = data.visited[week, user]
    state = data.tape.before(week, user).to(device)
    visit_logit = heads.visit_logit(state, embedding[position], data.calendar.visit_trend[week].to(device))
    loss = nn.functional.binary_cross_entropy_with_logits(
        visit_logit, visited.float().to(device), reduction="sum"
    )
    shopping = visited.nonzero()[:, 0]
    if len(shopping):
        utilities = heads(
            state.rows(shopping),
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
        loss = loss + (spend_nll * bought).sum()
    # The prior counts once for all rows, so each row carries its share of it.
    return loss / len(user) + heads.depth_penalty() / n_rows


def fit_response(
    heads: ResponseHeads,
    data: ResponseData,
    train: Embedder,
    tune: Embedder | None,
    config: FittingConfig,
    *,
    seed: int,
    text_rows: torch.Tensor | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[float], None] = lambda _: None,
    on_epoch: Callable[[FittingReport], None] = lambda _: None,
) -> list[FittingReport]:
    """Fit ``heads`` in place, and the encoder of ``train`` if it has one; keep the best epoch.

    Every epoch is seeded by its number, so that a resumed run ends where an uninterrupted one would.

    Args:
        heads: moved to the embedder's device.
        data: states and labels.
        train: texts of the training weeks.
        tune: texts of the tuning weeks for early stopping; None trains all epochs.
        config: how to fit.
        seed: of shuffling and dropout.
        text_rows: [m] text indices to train on, repeated ones count twice (bootstrap); all if None.
        checkpoint: file to resume from and to write after each epoch.
        on_step: called with the loss after each step; also for steps that a resumed run skips.
        on_epoch: called with each report.
    """
    encoder = train.encoder
    heads.to(train.device)
    # Without weight decay: biases, levels and scales have no reason to be near zero.
    groups = [{"params": list(heads.parameters()), "lr": config.head_learning_rate, "weight_decay": 0.0}]
    if encoder is not None:
        encoder.to(train.device)
        groups.append(
            {
                "params": list(encoder.parameters()),
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
            }
        )
    peaks = [float(group["lr"]) for group in groups]  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(groups)
    module = nn.ModuleDict({"heads": heads} | ({"encoder": encoder} if encoder is not None else {}))
    pool = torch.arange(len(train.texts)) if text_rows is None else text_rows
    steps_per_epoch = -(-len(pool) // config.batch_size)
    n_rows = len(train.texts.rows(pool)[0])
    reports: list[FittingReport] = []
    best = copy.deepcopy(module.state_dict())
    stored = load_checkpoint(checkpoint) if checkpoint is not None else None
    if stored is not None:
        module.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        best = stored["best"]
        reports = [FittingReport(**report) for report in stored["reports"]]
        for report in reports:
            for _ in range(steps_per_epoch):
                on_step(report.loss)
    for epoch in range(len(reports), config.epochs):
        if tune is not None and _stalled(reports, config.patience):
            break
        rng = np.random.default_rng([seed, epoch])
        torch.manual_seed(int(rng.integers(2**62)))
        module.train()
        total = 0.0
        for step, rows in enumerate(_batches(pool, train, config.batch_size, rng)):
            factor = warmup_cosine(epoch * steps_per_epoch + step, steps_per_epoch * config.epochs)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            embedding, match = train.batch(rows)
            loss = response_loss(heads, data, train.texts, rows, embedding, match, n_rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 10.0)
            optimizer.step()
            total += loss.item()
            on_step(loss.item())
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss became {total} in epoch {epoch + 1}; lower the learning rates "
                f"({config.learning_rate:g} encoder, {config.head_learning_rate:g} heads)"
            )
        tune_loss = _evaluate(heads, data, tune) if tune is not None else float("nan")
        improved = tune is None or not reports or tune_loss < min(r.tune_loss for r in reports)
        if improved:
            best = copy.deepcopy(module.state_dict())
        reports.append(FittingReport(epoch + 1, total / steps_per_epoch, tune_loss))
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
    module.eval()
    if encoder is not None:
        with torch.no_grad():
            heads.category_match.copy_(train.categories())
    return reports


def _batches(
    pool: torch.Tensor, train: Embedder, batch_size: int, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Shuffle texts into batches; for an encoder, of similar length within stretches of sixteen batches."""
    order = pool[torch.from_numpy(rng.permutation(len(pool)))]
    if train.encoder is None:
        return list(order.split(batch_size))
    batches: list[torch.Tensor] = []
    for stretch in order.split(16 * batch_size):
        lengths = np.array([len(train.texts.tokens[int(row)]) for row in stretch])
        batches += stretch[torch.from_numpy(np.argsort(lengths, kind="stable"))].split(batch_size)
    return [batches[k] for k in rng.permutation(len(batches))]


def _stalled(reports: list[FittingReport], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought nothing."""
    if len(reports) <= patience:
        return False
    losses = [report.tune_loss for report in reports]
    return min(losses[-patience:]) >= min(losses[:-patience])


@torch.no_grad()
def _evaluate(heads: ResponseHeads, data: ResponseData, tune: Embedder) -> float:
    """Mean loss per user-week over all texts of the tuning weeks."""
    heads.eval()
    embeddings = tune.all()
    match = tune.categories() if tune.encoder is not None else None
    total, count = 0.0, 0
    n_rows = len(tune.texts.rows(torch.arange(len(tune.texts)))[0])
    for rows in torch.arange(len(tune.texts)).split(512):
        size = len(tune.texts.rows(rows)[0])
        loss = response_loss(heads, data, tune.texts, rows, embeddings[rows], match, n_rows)
        total += float(loss) * size
        count += size
    return total / count
