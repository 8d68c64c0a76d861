"""Free-text queries and messages of users: which categories they are about.

A small encoder, trained on the words of logs, reads any other word as noise. A query is therefore first
reduced to the words that categories, or their names in a sentence, are made of; what is left is embedded like
a category and compared with them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], npt.NDArray[np.floating]]
"""Texts to their embeddings [m, d], by the encoder that reads users."""


@dataclass(frozen=True, eq=False)
class QueryReader:
    """Compares queries with C categories.

    Attributes:
        words: [C] the categories in the words of user texts.
        names: by a category's words, what it is called in a sentence; where absent, its words.
        subject: [C, d] unit vectors of the categories, centred.
        subject_mean: [d] what they were centred by.
        embed: the encoder.
    """

    words: tuple[str, ...]
    names: Mapping[str, str]
    subject: FloatArray
    subject_mean: FloatArray
    embed: Embed

    @classmethod
    def build(cls, words: Sequence[str], names: Mapping[str, str], embed: Embed) -> QueryReader:
        """Embed the categories."""
        embedded = np.asarray(embed([as_listed(one) for one in words]), dtype=np.float64)
        mean = embedded.mean(axis=0)
        return cls(tuple(words), names, _unit(embedded - mean), mean, embed)

    def understood(self, query: str) -> str:
        """Return what of a query is looked at, in the words of categories; empty if nothing is."""
        found = (self._vocabulary.get(word, self._vocabulary.get(_stem(word))) for word in _tokens(query))
        return " ".join(dict.fromkeys(words for words in found if words is not None))

    def match(self, query: str) -> FloatArray | None:
        """Return how close each category is to a query, [C]; None if the query says nothing.

        Cosines of centred embeddings, in standard deviations over the categories.
        """
        words = self.understood(query)
        if not words:
            return None
        vector = np.asarray(self.embed([as_listed(words)]), dtype=np.float64)[0]
        cosine: FloatArray = self.subject @ _unit(vector - self.subject_mean)
        spread = float(cosine.std())
        centred: FloatArray = cosine - cosine.mean()
        if spread > 0:
            centred /= spread
        return centred

    @cached_property
    def _vocabulary(self) -> Mapping[str, str]:
        """Each word that a query may use, and its stem, to the words of categories that it stands for.

        A category's own word stands for itself; one that only its name in a sentence has, for its own words.
        """
        own = [word for words in self.words for word in _tokens(words)]
        alias: dict[str, list[str]] = {}
        for words in self.words:
            for word in _tokens(self.names.get(words, words)):
                alias.setdefault(_stem(word), []).append(words)
        found = {stem: " ".join(words) for stem, words in alias.items()}
        found |= {_stem(word): word for word in own} | {word: word for word in own}
        return {word: words for word, words in found.items() if word not in _FUNCTION_WORDS}


_FUNCTION_WORDS = frozenset(
    {"a", "all", "and", "by", "cold", "for", "in", "of", "or", "other", "the", "w", "with"}
)
"""Words of category names that say nothing of what is asked for; much else than cereal is called cold."""


def as_listed(words: str) -> str:
    """Return words as user texts list categories.

    Twice, for in so short a text the special tokens would drown the rest: of single words of the 120
    categories of Complete Journey, 97% then find a category that has the word, 66% if said once.
    """
    return f"{words} , {words}"


def _unit(vectors: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: FloatArray = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit


def _tokens(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _stem(word: str) -> str:
    """A word without its plural ending, as far as English food names need it."""
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith("oes"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
