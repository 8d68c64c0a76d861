"""Which text announces an offer: the one whose BERT embedding matches the user best, in this week's context.

The score of template t on category c for a user u is a sum of matches in standard deviations,

    z(u, p_tc - p̄_t) + z(u, like_a - unlike_a) + QUERY_WEIGHT · z(q, c):

what the text says of the category; whether the user is of the template's audience a, told by example (0 for
everyone); and how close the category is to a free-text query, if there is one. See `agents.message_vectors`
and `agents.message_query`. The context (season, habits, the last two weeks) comes in through the user's
embedding, the season also through the seasons that a template is for. A match is a matter of degree: what a
text takes for granted of its reader must be said in the reader's own text besides.

All vectors are made once, at export. Choosing needs numpy alone, a query the encoder besides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from agents.message_files import templates_from_mapping, templates_to_mapping
from agents.message_query import Embed, FloatArray, QueryReader
from agents.message_templates import KINDS, Announced, Template, TemplateCatalogue, TemplateError
from agents.message_vectors import MessageVectors

IntArray = npt.NDArray[np.int64]

TEXTS_FILE = "messages.json"
VECTORS_FILE = "messages.npz"

QUERY_WEIGHT = 2.0
"""The category asked for lies three to four standard deviations above the others, a user's favourites one to
two: whoever asks is told of what he asked for."""

TIE = 1e-6
"""Scores closer than this are equal but for the order of additions; the earlier template, then slot, wins."""

_ROWS = 1024
_QUERY_VECTORS = ("subject", "subject_mean")


@dataclass(frozen=True)
class Message:
    """A text for one user.

    Attributes:
        template: name of the template.
        text: what is sent.
        terms: the coupon's small print; empty without a coupon.
        category: index of the category that the text names; None where it names none.
        score: see the module.
    """

    template: str
    text: str
    terms: str
    category: int | None
    score: float


@dataclass(frozen=True, eq=False)
class MessageBook:
    """Texts, ready to be chosen among.

    Attributes:
        catalogue: T templates.
        vectors: of all templates on all categories.
        queries: knows the C categories.
    """

    catalogue: TemplateCatalogue
    vectors: MessageVectors
    queries: QueryReader

    def __post_init__(self) -> None:
        templates, categories, width = self.vectors.copy.shape
        expected = (len(self.catalogue.templates), *self.queries.subject.shape)
        if (templates, categories, width) != expected or len(self.queries.words) != categories:
            raise TemplateError(
                f"vectors are of (templates, categories, width) {(templates, categories, width)}, "
                f"the texts of {expected}"
            )

    @classmethod
    def build(
        cls,
        catalogue: TemplateCatalogue,
        words: Sequence[str],
        users: npt.NDArray[np.floating],
        embed: Embed,
    ) -> MessageBook:
        """Embed all texts and scale them to a population.

        Args:
            catalogue: the texts.
            words: [C] categories as `encoders.user_text.category_words` tells them.
            users: [m, d] embeddings of the users among whom a text is more or less fitting.
            embed: the encoder that reads users.

        Raises:
            TemplateError: no categories, or fewer than two users.
        """
        vectors = MessageVectors.build(catalogue, words, users, embed)
        return cls(catalogue, vectors, QueryReader.build(words, catalogue.names, embed))

    def best(
        self,
        offers: Sequence[Announced],
        covered: npt.NDArray[np.integer],
        slots: npt.NDArray[np.integer],
        embedding: npt.NDArray[np.floating],
        *,
        season: str,
        user_texts: Sequence[str] | None = None,
        query: str | None = None,
        last_template: Sequence[str | None] | None = None,
    ) -> list[Message | None]:
        """Choose a text for each of n users; None where nothing is sent.

        Args:
            offers: [n] the offer that each gets.
            covered: [n] category of a percent coupon, -1 for other offers.
            slots: [n, M] categories recommended to each, which texts of other offers may name; -1 for none.
            embedding: [n, d] of the users in the context of the week.
            season: as user texts call it.
            user_texts: [n] what the encoder read of each; where absent, texts that take something for granted
                of their readers are left out.
            query: what was asked or written, if anything. Its best category joins the slots.
            last_template: [n] name of the template that each got last; not used twice in a row while
                another fits.

        Raises:
            TemplateError: shapes that do not agree, a category out of range, an unknown season or kind.
        """
        n = len(offers)
        whole, named = np.asarray(covered, dtype=np.int64), np.asarray(slots, dtype=np.int64)
        users = np.asarray(embedding, dtype=np.float64)
        texts = [""] * n if user_texts is None else list(user_texts)
        last = [None] * n if last_template is None else list(last_template)
        self._check(n, whole, named, users, {"user_texts": texts, "last_template": last})
        asked = self.queries.match(query) if query else None
        first = -1 if asked is None else int(asked.argmax())
        if asked is not None or not named.shape[1]:
            named = np.column_stack([np.full(n, first), named])
        groups: dict[tuple[str, str], list[int]] = {}
        for row, offer in enumerate(offers):
            if offer.kind != "none":
                groups.setdefault((str(offer.kind), str(offer.channel)), []).append(row)
        out: list[Message | None] = [None] * n
        for (kind, channel), members in groups.items():
            fitting = self.catalogue.fitting(kind, channel, season)
            if kind not in KINDS or not fitting:
                raise TemplateError(f"row {members[0]}: no template fits {kind!r} offers by {channel!r}")
            for start in range(0, len(members), _ROWS):
                rows = np.array(members[start : start + _ROWS])
                subjects = whole[rows, None] if kind == "percent" else named[rows]
                scores = self._scores(fitting, subjects, users[rows], asked)
                self._exclude(scores, fitting, [texts[row] for row in rows], [last[row] for row in rows])
                best = scores.max(axis=(1, 2))
                if not np.isfinite(best).all():
                    missing = rows[~np.isfinite(best)][0]
                    raise TemplateError(f"row {missing}: the texts for {kind} offers need a category")
                chosen = (scores >= best[:, None, None] - TIE).reshape(len(rows), -1).argmax(axis=1)
                for row, place, found, score in zip(rows, chosen, subjects, best, strict=True):
                    template, slot = divmod(int(place), subjects.shape[1])
                    out[row] = self._message(
                        self.catalogue.templates[fitting[template]],
                        offers[row],
                        int(found[slot]),
                        float(score),
                    )
        return out

    def save(self, folder: Path) -> None:
        """Write texts as JSON and vectors as ``.npz`` without pickled objects, each atomically."""
        content = {"words": list(self.queries.words), **templates_to_mapping(self.catalogue)}
        temporary = folder / (TEXTS_FILE + ".tmp")
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / TEXTS_FILE)
        arrays = self.vectors.arrays()
        arrays |= {name: getattr(self.queries, name).astype(np.float32) for name in _QUERY_VECTORS}
        temporary = folder / (VECTORS_FILE + ".tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, folder / VECTORS_FILE)

    @classmethod
    def load(cls, folder: Path, embed: Embed) -> MessageBook:
        """Read what :meth:`save` wrote.

        Args:
            folder: where it was saved; loading checks shapes, not hashes, which are the bundle's.
            embed: the encoder that the book was built with.

        Raises:
            TemplateError: a file is missing or does not hold a message book.
        """
        try:
            content = json.loads((folder / TEXTS_FILE).read_text(encoding="utf-8"))
            words = tuple(str(one) for one in content.pop("words"))
            with np.load(folder / VECTORS_FILE, allow_pickle=False) as stored:
                arrays = {name: stored[name].astype(np.float64) for name in stored.files}
            subject, subject_mean = (arrays.pop(name) for name in _QUERY_VECTORS)
            vectors = MessageVectors(**arrays)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, BadZipFile) as error:
            raise TemplateError(f"{folder}: no message texts can be read here: {error}") from error
        catalogue = templates_from_mapping(content)
        return cls(catalogue, vectors, QueryReader(words, catalogue.names, subject, subject_mean, embed))

    def _check(
        self,
        n: int,
        covered: IntArray,
        slots: IntArray,
        users: FloatArray,
        lists: Mapping[str, Sequence[str | None]],
    ) -> None:
        recommended = slots.shape[1] if slots.ndim == 2 else 0
        for name, found, shape in (
            ("covered", covered.shape, (n,)),
            ("slots", slots.shape, (n, recommended)),
            ("embedding", users.shape, (n, self.vectors.copy.shape[2])),
            *((name, (len(values),), (n,)) for name, values in lists.items()),
        ):
            if found != shape:
                raise TemplateError(f"{name} has shape {found}, expected {shape}")
        n_categories = len(self.queries.words)
        for name, values in (("covered", covered), ("slots", slots)):
            wrong = values[(values < -1) | (values >= n_categories)]
            if wrong.size:
                raise TemplateError(f"{name} must hold categories in -1..{n_categories - 1}, got {wrong[0]}")

    def _scores(
        self, fitting: list[int], subjects: IntArray, users: FloatArray, asked: FloatArray | None
    ) -> FloatArray:
        """Score of F fitting templates on each user's S subjects, [b, F, S]; -inf where they do not fit."""
        templates, whom = np.array(fitting), subjects[:, None, :]
        scores = self.vectors.copy_match(users, templates, subjects)
        if asked is not None:
            scores += QUERY_WEIGHT * asked[whom]
        named = np.array([self.catalogue.templates[k].names_category for k in fitting])[None, :, None]
        # A text that names no category is one text, not one for each subject.
        unnamed = np.where(np.arange(subjects.shape[1]) == 0, 0.0, -np.inf)
        scores = np.where(named, np.where(whom >= 0, scores, -np.inf), unnamed)
        return scores + self.vectors.audience_match(users, templates)[:, :, None]

    def _exclude(
        self, scores: FloatArray, fitting: list[int], user_texts: Sequence[str], last: Sequence[str | None]
    ) -> None:
        """Take out what does not hold for a user, and the template that he got last if there is another."""
        templates = [self.catalogue.templates[k] for k in fitting]
        untrue: dict[tuple[str, ...], list[bool]] = {}
        for place, template in enumerate(templates):
            if template.told:
                if template.told not in untrue:
                    untrue[template.told] = [not template.holds_for(text) for text in user_texts]
                scores[untrue[template.told], place] = -np.inf
        places = {template.name: place for place, template in enumerate(templates)}
        for row, name in enumerate(last):
            if name in places:
                rest = np.delete(scores[row], places[name], axis=0)
                if np.isfinite(rest).any():
                    scores[row, places[name]] = -np.inf

    def _message(self, template: Template, offer: Announced, subject: int, score: float) -> Message:
        words = self.queries.words[subject] if subject >= 0 else ""
        return Message(
            template=template.name,
            text=self.catalogue.render(template, offer, words),
            terms=self.catalogue.render_terms(offer, words),
            category=subject if template.names_category else None,
            score=score,
        )
