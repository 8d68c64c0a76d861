"""Embeddings kept on disk under a hash of what made them: encoder weights, token ids, precision."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from encoders.bert import TextEncoder, bert_shape
from encoders.quantisation import Precision

_KEY_BYTES = 32


class EmbeddingCacheError(ValueError):
    """A file of the cache is not what was written; the message says which."""


class EmbeddingCache:
    """Embeddings by key, in a folder.

    Each `add` writes one safetensors file, named by the hash of its content, in one atomic step: an
    interruption leaves no half-written file, processes may share the folder, and damage is noticed.

    Args:
        folder: made if missing; all embeddings in it are read at once.

    Raises:
        EmbeddingCacheError: a file was changed since it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._embeddings: dict[bytes, npt.NDArray[np.float32]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.safetensors")):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != path.stem:
                raise EmbeddingCacheError(
                    f"{path} is damaged: its content is not what was written; delete it, and its texts "
                    "will be embedded again"
                )
            stored = safetensors.numpy.load(content)
            self._remember([row.tobytes() for row in stored["keys"]], stored["embeddings"])

    def __len__(self) -> int:
        return len(self._embeddings)

    def get(self, key: bytes) -> npt.NDArray[np.float32] | None:
        """Return the embedding [d] under a key, or None."""
        return self._embeddings.get(key)

    def add(self, keys: Sequence[bytes], embeddings: npt.NDArray[np.float32]) -> None:
        """Keep embeddings [len(keys), d], on disk when this returns.

        Args:
            keys: see `embedding_key`.
            embeddings: one row per key.
        """
        if not keys:
            return
        content = safetensors.numpy.save(
            {
                "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), _KEY_BYTES),
                "embeddings": np.ascontiguousarray(embeddings, dtype=np.float32),
            }
        )
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        self._remember(keys, embeddings)

    def _remember(self, keys: Sequence[bytes], embeddings: npt.NDArray[np.float32]) -> None:
        # A copy, so that nobody's later change of the rows reaches what is kept.
        self._embeddings.update(zip(keys, np.array(embeddings, dtype=np.float32), strict=True))


def encoder_hash(encoder: TextEncoder) -> bytes:
    """Return the SHA-256 of all weights and of the shape of BERT, wherever it was loaded from."""
    digest = hashlib.sha256()
    digest.update(json.dumps(bert_shape(encoder), sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def embedding_key(encoder: bytes, tokens: npt.NDArray[np.integer], precision: Precision) -> bytes:
    """Return the key of a text's embedding, 32 bytes.

    Args:
        encoder: see `encoder_hash`.
        tokens: token ids of the text.
        precision: that the encoder runs at.
    """
    content = np.asarray(tokens, dtype="<i4").tobytes()
    return hashlib.sha256(encoder + precision.encode() + b"\0" + content).digest()
