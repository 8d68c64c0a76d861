"""From a history to an embedding in one step: the text is written, tokenised and read by BERT.

What the response heads were fitted on is made the same way, so that users who are encoded again in the market
stand where training put users of such a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from tokenizers import Tokenizer

from encoders.bert import EnsembleEncoder, special_token_id, tokenize
from encoders.embedding import embed_tokens
from encoders.embedding_cache import EmbeddingCache
from encoders.history import HistoryState
from encoders.quantisation import Precision
from encoders.user_text import UserTextWriter

CPU_ROWS, CUDA_ROWS = 16, 128
"""Texts in a batch: as many a second as with more, and few to fill up where users are few."""


@dataclass(frozen=True, eq=False)
class UserEncoder:
    """Encodes users by what their histories say.

    Attributes:
        writer: writes the texts; knows the users' profiles.
        tokenizer: of the encoder.
        encoder: where it is, there texts are read.
        max_tokens: cut of a text.
        precision: what to compute in; ``auto`` is `encoders.quantisation.choose_precision`.
        cache: where to look up embeddings, and to keep new ones.
    """

    writer: UserTextWriter
    tokenizer: Tokenizer
    encoder: EnsembleEncoder
    max_tokens: int
    precision: Literal["auto"] | Precision = "fp32"
    cache: EmbeddingCache | None = None

    @property
    def width(self) -> int:
        """Width d of the embeddings."""
        return sum(member.project.out_features for member in self.encoder)

    @property
    def device(self) -> torch.device:
        """Where BERT runs."""
        return next(self.encoder.parameters()).device

    def to(self, device: str | torch.device) -> UserEncoder:
        """Return an encoder whose BERT, moved in place, runs on another device."""
        return replace(self, encoder=self.encoder.to(device))

    def embed(self, state: HistoryState, users: torch.Tensor | Sequence[int], week: int) -> torch.Tensor:
        """Return the embeddings of some users at the start of a week, [m, d] float32, where the state is.

        A user's embedding is the same to the last bit, whoever else is encoded.

        Args:
            state: histories of the m users before the week.
            users: [m] whose they are, as positions in the population.
            week: 1-based week of the log, or after its end; it gives the season.
        """
        whose = users.tolist() if isinstance(users, torch.Tensor) else users
        tokens = tokenize(self.tokenizer, self.writer.write(state, whose, week), self.max_tokens)
        padding_id = special_token_id(self.tokenizer, "[PAD]")
        parts = [
            embed_tokens(
                member,
                tokens,
                padding_id=padding_id,
                device=self.device,
                precision=self.precision,
                rows=CUDA_ROWS if self.device.type == "cuda" else CPU_ROWS,
                cache=self.cache,
            )
            for member in self.encoder
        ]
        return torch.cat(parts, dim=1).to(state.visits_slow.device)
