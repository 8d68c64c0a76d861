"""BERT as exported: texts to embeddings with onnxruntime and tokenizers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from agents.serving.errors import BundleError

ROWS = 16
"""Texts in a batch at most."""

KEPT_TEXTS = 65_536
"""Embeddings remembered; a user's text changes with what he does, not with every question."""


class OnnxTextEncoder:
    """Embeds texts; a text once, as long as it is remembered. Safe to use by several threads.

    Args:
        session: of ``encoder.onnx``, or of its int8 twin.
        tokenizer: of the encoder.
        max_tokens: cut of a text.
        width: d of the embeddings.

    Raises:
        BundleError: the tokenizer is none of BERT's.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer, max_tokens: int, width: int
    ) -> None:
        padding = tokenizer.token_to_id("[PAD]")
        if padding is None:
            raise BundleError("tokenizer.json has no [PAD] token; is it a BERT tokenizer?")
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._session = session
        self._tokenizer = tokenizer
        self._padding = int(padding)
        self._known: OrderedDict[str, npt.NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()
        self.width = width

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embeddings of texts, [m, d]."""
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
            for text in found:
                self._known.move_to_end(text)
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found |= self._read(missing)
            with self._lock:
                self._known |= {text: found[text] for text in missing}
                while len(self._known) > KEPT_TEXTS:
                    self._known.popitem(last=False)
        out = np.empty((len(texts), self.width), dtype=np.float32)
        for row, text in enumerate(texts):
            out[row] = found[text]
        return out

    def _read(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = np.argsort([-len(one) for one in tokens], kind="stable")
        found: dict[str, npt.NDArray[np.float32]] = {}
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            length = len(tokens[rows[0]])
            ids = np.full((len(rows), length), self._padding, dtype=np.int64)
            attention = np.zeros((len(rows), length), dtype=np.int64)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = tokens[row]
                attention[place, : len(tokens[row])] = 1
            embedded = self._session.run(None, {"ids": ids, "attention": attention})[0]
            found |= {texts[row]: embedded[place] for place, row in enumerate(rows)}
        return found
