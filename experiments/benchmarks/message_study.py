"""What the benchmark of message texts looks at: a run's users before reported weeks, and built-in texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agents.message_book import MessageBook
from agents.message_files import built_in_templates
from agents.message_templates import TemplateCatalogue
from encoders.bert import special_token_id, tokenize
from encoders.embedding import embed_tokens
from encoders.history_tape import HistoryTape
from encoders.panel import Panel
from encoders.response_data import ResponseData
from encoders.user_encoder import UserEncoder
from encoders.user_text import category_words
from experiments.artifacts import load_user_encoder
from experiments.backtest.predictions import predict_weeks
from experiments.benchmarks import Request, describe_machine
from experiments.fitted_run import FittedRun
from experiments.stages import finetune

FloatArray = npt.NDArray[np.float64]

SLOTS = 3


def text_embedder(encoder: UserEncoder) -> Callable[[Sequence[str]], FloatArray]:
    """Return a function from texts to embeddings [m, d], by the encoder that reads users."""
    padding_id = special_token_id(encoder.tokenizer, "[PAD]")

    def embed(texts: Sequence[str]) -> FloatArray:
        tokens = tokenize(encoder.tokenizer, texts, encoder.max_tokens)
        parts = [
            embed_tokens(
                member, tokens, padding_id=padding_id, device=encoder.device, precision=encoder.precision
            )
            for member in encoder.encoder
        ]
        embedded: FloatArray = torch.cat(parts, dim=1).double().numpy()
        return embedded

    return embed


@dataclass(frozen=True)
class MessageStudy:
    """n users at the start of the reported weeks, and all texts.

    Attributes:
        panel: the logs; its last weeks are the reported ones.
        first: 0-based first reported week.
        users: [n, d] embeddings.
        user_texts: [n] what they were embedded from.
        slots: [n, M] categories most likely bought in the first reported week.
        book: all texts.
        raw: [T, C, d] plain embeddings of all texts; 0 where a template names no category.
        hardware: the machine.
    """

    panel: Panel
    first: int
    users: FloatArray
    user_texts: list[str]
    slots: npt.NDArray[np.int64]
    book: MessageBook
    raw: FloatArray
    hardware: str

    @classmethod
    def load(cls, request: Request) -> MessageStudy:
        """Read a run folder, write its users' texts and embed everything."""
        fitted = FittedRun.load(request.run)
        encoder = load_user_encoder(request.run / finetune.STAGE.folder, fitted.panel, "cpu")
        panel, first = fitted.panel, fitted.panel.split.tune_end
        embed, words, catalogue = text_embedder(encoder), category_words(panel), built_in_templates()
        state = HistoryTape.of_panel(panel).week(first)
        texts = encoder.writer.write(state, range(panel.n_users), first + 1)
        users = embed(texts)
        predicted = predict_weeks(fitted.heads, ResponseData.of_panel(panel), fitted.embeddings, [first])
        return cls(
            panel,
            first,
            users,
            texts,
            np.argsort(-predicted.purchase[0], axis=1, kind="stable")[:, :SLOTS],
            MessageBook.build(catalogue, words, users, embed),
            _raw_texts(catalogue, words, embed),
            describe_machine(),
        )

    @property
    def naming(self) -> npt.NDArray[np.int64]:
        """Templates that name a category."""
        templates = self.book.catalogue.templates
        return np.array([k for k, template in enumerate(templates) if template.names_category])

    def mean_match(self) -> FloatArray:
        """Match of each user with each category, mean over templates, [n, C]."""
        vectors = self.book.vectors
        matched: FloatArray = self.users @ vectors.copy[self.naming].mean(axis=0).T - vectors.copy_mean[
            self.naming
        ].mean(axis=0)
        return matched

    def raw_match(self) -> FloatArray:
        """The same by the plain dot product."""
        matched: FloatArray = self.users @ self.raw[self.naming].mean(axis=0).T
        return matched


def _raw_texts(
    catalogue: TemplateCatalogue, words: Sequence[str], embed: Callable[[Sequence[str]], FloatArray]
) -> FloatArray:
    width = embed(words[:1]).shape[1]
    raw = np.zeros((len(catalogue.templates), len(words), width))
    for place, template in enumerate(catalogue.templates):
        if template.names_category:
            raw[place] = embed([template.reading(one) for one in words])
    return raw
