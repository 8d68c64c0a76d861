"""Message texts as data: templates, whom they speak to, and how they are filled in for an offer.

A template's text is what the user reads. What the encoder reads is the same text with the category in the
words of user texts and without amounts, for these are alike for all who get the offer. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from types import MappingProxyType
from typing import Final, Protocol

SEASONS: Final = ("winter", "spring", "summer", "autumn")
"""As user texts call them."""

CHANNELS: Final = ("push", "mail")

TONES: Final = ("plain", "warm", "playful", "thanks", "savings")

SUBJECT: Final = "category"

_PLACEHOLDERS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = MappingProxyType(
    {
        "push": (frozenset(), frozenset({SUBJECT})),
        "percent": (frozenset({SUBJECT, "percent"}), frozenset({SUBJECT, "percent", "save", "weeks"})),
        "threshold": (
            frozenset({"min_spend", "save"}),
            frozenset({SUBJECT, "min_spend", "save", "weeks"}),
        ),
    }
)
"""Of each kind of offer, what its texts must and may mention: a coupon's text says what it is worth."""

KINDS: Final = tuple(_PLACEHOLDERS)
"""The kinds of offers that have texts: all but sending nothing."""

_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_AMOUNT = re.compile(r"\S*\{(?!category\})\w*\}\S*")


class TemplateError(ValueError):
    """The message texts contradict themselves or cannot be read."""


class Announced(Protocol):
    """What a text needs to know of an offer; the rows of offer catalogues have it."""

    @property
    def kind(self) -> str:
        """``none``, ``push``, ``percent`` or ``threshold``."""

    @property
    def channel(self) -> str:
        """``push`` or ``mail``."""

    @property
    def depth(self) -> float:
        """Discount of a percent coupon as a fraction; else 0."""

    @property
    def min_spend(self) -> float:
        """Spend from which a threshold coupon pays, log's currency; else 0."""

    @property
    def max_discount(self) -> float:
        """Most that the coupon takes off, log's currency; else 0."""

    @property
    def validity_weeks(self) -> int:
        """Weeks in which it can be used; 0 without a coupon."""


@dataclass(frozen=True)
class Audience:
    """Whom a text speaks to, by example, in the words of user texts.

    Attributes:
        name: unique.
        like: text of such a user.
        unlike: text of a user who differs from him in just that.
    """

    name: str
    like: str
    unlike: str

    def __post_init__(self) -> None:
        if not self.like.strip() or not self.unlike.strip() or self.like == self.unlike:
            raise TemplateError(f"audience {self.name!r}: like and unlike must be two different texts")


@dataclass(frozen=True)
class Template:
    """A text with placeholders.

    Attributes:
        name: unique, for logs and people.
        text: what is sent, with ``{category}``, ``{percent}``, ``{save}``, ``{min_spend}``, ``{weeks}``.
        kinds: the kinds of offers that it fits.
        tone: one of :data:`TONES`.
        audience: name of the audience that it speaks to; None for everyone.
        told: what it takes for granted of its reader ("we have missed you"), as items of user texts; it is
            sent only where the reader's own text says all of it.
        seasons: in which it may be sent.
        channels: by which it may be sent.
    """

    name: str
    text: str
    kinds: tuple[str, ...]
    tone: str
    audience: str | None = None
    told: tuple[str, ...] = ()
    seasons: tuple[str, ...] = SEASONS
    channels: tuple[str, ...] = CHANNELS

    def __post_init__(self) -> None:
        where = f"template {self.name!r}"
        if not self.name or not self.text.strip():
            raise TemplateError(f"{where}: name and text must not be empty")
        for key, values, allowed in (
            ("kinds", self.kinds, KINDS),
            ("tone", (self.tone,), TONES),
            ("seasons", self.seasons, SEASONS),
            ("channels", self.channels, CHANNELS),
        ):
            strange = [value for value in values if value not in allowed]
            if not values or strange:
                raise TemplateError(
                    f"{where}: {key} must be among {', '.join(allowed)}, got {(strange or [''])[0]!r}"
                )
        if not all(item.strip() for item in self.told):
            raise TemplateError(f"{where}: told must not hold an empty text")
        used = frozenset(_PLACEHOLDER.findall(self.text))
        if re.search(r"[{}]", _PLACEHOLDER.sub("", self.text)):
            raise TemplateError(f"{where}: a brace in {self.text!r} belongs to no placeholder")
        for kind in self.kinds:
            required, possible = _PLACEHOLDERS[kind]
            if required - used:
                missing = min(required - used)
                raise TemplateError(f"{where}: a text for {kind} offers must mention {{{missing}}}")
            if used - possible:
                raise TemplateError(f"{where}: {kind} offers have no {{{min(used - possible)}}}")

    @property
    def names_category(self) -> bool:
        """Whether the text names a category."""
        return f"{{{SUBJECT}}}" in self.text

    def fits(self, kind: str, channel: str, season: str) -> bool:
        """Whether it may announce such an offer in a season."""
        return kind in self.kinds and channel in self.channels and season in self.seasons

    def holds_for(self, user_text: str) -> bool:
        """Whether what it takes for granted is what a user's text says; of an empty text, only nothing is."""
        # Most texts fail this; the items of the others are looked at.
        if not all(claim in user_text for claim in self.told):
            return False
        items = [f"{item} " for item in user_text.split(" . ")]
        return all(any(item.startswith(f"{claim} ") for item in items) for claim in self.told)

    def reading(self, words: str) -> str:
        """Return what the encoder reads: the text on a category told in ``words``, without amounts."""
        plain = _AMOUNT.sub("", self.text).replace(f"{{{SUBJECT}}}", words)
        return " ".join(plain.lower().split())


@dataclass(frozen=True)
class TemplateCatalogue:
    """All texts.

    Attributes:
        templates: in the order in which ties are broken.
        audiences: that templates refer to.
        terms: by kind of coupon, the small print told below the text.
        names: by a category's words, what to call it in a sentence; others go by their words.
        currency: put before amounts.
    """

    templates: tuple[Template, ...]
    audiences: tuple[Audience, ...] = ()
    terms: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    currency: str = "$"

    def __post_init__(self) -> None:
        for what, rows in (("template", self.templates), ("audience", self.audiences)):
            names = [row.name for row in rows]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise TemplateError(f"duplicate {what} name {twice[0]!r}")
        known = {audience.name for audience in self.audiences}
        for template in self.templates:
            if template.audience is not None and template.audience not in known:
                raise TemplateError(f"template {template.name!r}: no audience {template.audience!r}")
        for kind, text in self.terms.items():
            # Checked like a text for that kind.
            Template(f"terms of {kind} offers", text, (kind,), "plain")
        for kind, channel, season in product(KINDS, CHANNELS, SEASONS):
            # Without a coupon nothing comes by mail.
            if (kind, channel) == ("push", "mail"):
                continue
            if all(self.templates[place].told for place in self.fitting(kind, channel, season)):
                raise TemplateError(f"no template fits {kind} offers by {channel} in {season} for every user")

    def fitting(self, kind: str, channel: str, season: str) -> list[int]:
        """Return the places of the templates that may announce such an offer in a season."""
        if season not in SEASONS:
            raise TemplateError(f"season must be one of {', '.join(SEASONS)}, got {season!r}")
        return [k for k, template in enumerate(self.templates) if template.fits(kind, channel, season)]

    def name_of(self, words: str) -> str:
        """Return what a category is called in a sentence."""
        return self.names.get(words, words)

    def render(self, template: Template, offer: Announced, words: str) -> str:
        """Return the text that is sent; ``words`` are a category's, or empty where the text names none."""
        return self._fill(template.text, offer, words)

    def render_terms(self, offer: Announced, words: str) -> str:
        """Return the small print, empty where the catalogue has none for the kind."""
        return self._fill(self.terms.get(offer.kind, ""), offer, words)

    def _fill(self, text: str, offer: Announced, words: str) -> str:
        name = self.name_of(words)
        amounts = _amounts(
            self.currency, offer.depth, offer.max_discount, offer.min_spend, offer.validity_weeks
        )
        return _opened(text).format(category=name, Category=name[:1].upper() + name[1:], **amounts)


@lru_cache(maxsize=1024)
def _opened(text: str) -> str:
    """Return the text with a capital where a category opens a sentence."""
    return re.sub(r"(?:^|(?<=[.?!] ))\{category\}", "{Category}", text)


@lru_cache(maxsize=1024)
def _amounts(
    currency: str, depth: float, max_discount: float, min_spend: float, validity_weeks: int
) -> dict[str, str]:
    def money(amount: float) -> str:
        return f"{currency}{amount:.0f}" if amount == round(amount) else f"{currency}{amount:.2f}"

    return {
        "percent": f"{100 * depth:.4g}",
        "save": money(max_discount),
        "min_spend": money(min_spend),
        "weeks": f"{validity_weeks} week" if validity_weeks == 1 else f"{validity_weeks} weeks",
    }
