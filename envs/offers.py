"""The offer catalogue: what may be sent to a user in a week."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from envs.money import TICKS_PER_UNIT, to_ticks

MOST_REMEMBERED_WEEKS = 30
"""Weeks of messages that the market remembers; a frequency cap cannot look back further."""


class CatalogueError(ValueError):
    """The offer catalogue contradicts itself or cannot be read."""


class OfferKind(StrEnum):
    """What an offer is."""

    NONE = "none"
    PUSH = "push"
    PERCENT = "percent"
    THRESHOLD = "threshold"


class Channel(StrEnum):
    """How an offer reaches the user.

    A push message interrupts: it may bring a visit, tires, can make the user opt out, and needs his consent.
    Mail (a letter, a till receipt, the wallet of an app) waits until he looks: it does none of these.
    """

    PUSH = "push"
    MAIL = "mail"


@dataclass(frozen=True)
class Offer:
    """One row of the catalogue.

    Attributes:
        name: unique, for people.
        kind: nothing, a push message alone, a percent coupon on a recommended category, or a threshold coupon
            on the whole basket: spend ``min_spend``, save ``max_discount``.
        channel: how it arrives.
        slot: 1-based place in the user's recommended categories that a percent coupon covers; else 0.
        depth: discount of a percent coupon as a fraction of the category's spend.
        min_spend: spend of a week from which a threshold coupon pays, log's currency.
        max_discount: most that the coupon can cost, log's currency; the liability that issuing reserves.
        validity_weeks: weeks, that of issue included, in which the coupon can be redeemed.
        delivery_cost: charged at once when the offer is sent, log's currency.
    """

    name: str
    kind: OfferKind
    channel: Channel = Channel.PUSH
    slot: int = 0
    depth: float = 0.0
    min_spend: float = 0.0
    max_discount: float = 0.0
    validity_weeks: int = 0
    delivery_cost: float = 0.0

    def __post_init__(self) -> None:
        where = f"offer {self.name!r}"
        if not self.name:
            raise CatalogueError("an offer has an empty name")
        if not 0 <= self.delivery_cost < math.inf:
            raise CatalogueError(f"{where}: delivery_cost must be finite and >= 0, got {self.delivery_cost}")
        if self.is_coupon:
            if not 1 / TICKS_PER_UNIT <= self.max_discount < math.inf:
                raise CatalogueError(
                    f"{where}: max_discount must be finite and at least {1 / TICKS_PER_UNIT}, "
                    f"got {self.max_discount}"
                )
            if self.validity_weeks < 1:
                raise CatalogueError(f"{where}: validity_weeks must be >= 1, got {self.validity_weeks}")
        elif (self.max_discount, self.validity_weeks) != (0.0, 0):
            raise CatalogueError(f"{where}: only a coupon has max_discount or validity_weeks")
        if self.kind is OfferKind.PERCENT:
            if not 0 < self.depth <= 1:
                raise CatalogueError(f"{where}: depth must be in (0, 1], got {self.depth}")
            if self.slot < 1:
                raise CatalogueError(f"{where}: slot must be >= 1, got {self.slot}")
        elif (self.slot, self.depth) != (0, 0.0):
            raise CatalogueError(f"{where}: only a percent coupon has slot or depth")
        if self.kind is OfferKind.THRESHOLD:
            if not self.max_discount <= self.min_spend < math.inf:
                raise CatalogueError(
                    f"{where}: min_spend must be finite and at least max_discount, got {self.min_spend}"
                )
        elif self.min_spend != 0.0:
            raise CatalogueError(f"{where}: only a threshold coupon has min_spend")
        if self.kind is OfferKind.NONE and self.delivery_cost:
            raise CatalogueError(f"{where}: sending nothing cannot cost anything")
        if self.channel is not Channel.PUSH and not self.is_coupon:
            raise CatalogueError(f"{where}: only a coupon can come by {self.channel.value}")

    @property
    def is_coupon(self) -> bool:
        """Whether a coupon is issued."""
        return self.kind in (OfferKind.PERCENT, OfferKind.THRESHOLD)

    @property
    def is_message(self) -> bool:
        """Whether a push message is sent."""
        return self.kind is not OfferKind.NONE and self.channel is Channel.PUSH


@dataclass(frozen=True)
class FrequencyCap:
    """At most so many push messages to a user within so many weeks, the coming one included.

    Attributes:
        messages: most messages.
        weeks: length of the window.
    """

    messages: int
    weeks: int

    def __post_init__(self) -> None:
        if self.messages < 1 or not 1 <= self.weeks <= MOST_REMEMBERED_WEEKS:
            raise CatalogueError(
                f"frequency_cap: messages must be >= 1 and weeks in 1..{MOST_REMEMBERED_WEEKS}, got "
                f"{self.messages} in {self.weeks}"
            )


@dataclass(frozen=True)
class OfferTensors:
    """The catalogue as columns; K offers.

    Attributes:
        message: [K] bool, whether the offer is announced by a push message.
        coupon: [K] bool, whether a coupon is issued.
        slot: [K] int64, 0-based slot of a percent coupon; -1 where there is none.
        depth: [K] float32, of a threshold coupon ``max_discount / min_spend``.
        min_spend: [K] float32, currency; 0 for other than threshold coupons.
        max_discount: [K] float32, currency.
        liability: [K] int64 ticks, worst-case cost of the coupon.
        validity_weeks: [K] int64.
        delivery_cost: [K] int64 ticks.
        cap: of push messages; None if there is none.
        has_threshold: whether any offer is a threshold coupon.
    """

    message: torch.Tensor
    coupon: torch.Tensor
    slot: torch.Tensor
    depth: torch.Tensor
    min_spend: torch.Tensor
    max_discount: torch.Tensor
    liability: torch.Tensor
    validity_weeks: torch.Tensor
    delivery_cost: torch.Tensor
    cap: FrequencyCap | None
    has_threshold: bool


@dataclass(frozen=True)
class Catalogue:
    """K offers; the first is always to send nothing.

    Attributes:
        offers: the rows, in action order.
        cap: on push messages to a user; None for no cap.
    """

    offers: tuple[Offer, ...]
    cap: FrequencyCap | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.offers or self.offers[0].kind is not OfferKind.NONE:
            raise CatalogueError("the first offer of a catalogue must be of kind 'none'")
        if sum(offer.kind is OfferKind.NONE for offer in self.offers) > 1:
            raise CatalogueError("only one offer of a catalogue may be of kind 'none'")
        names = [offer.name for offer in self.offers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise CatalogueError(f"duplicate offer name {twice[0]!r}")

    def __len__(self) -> int:
        return len(self.offers)

    @property
    def n_slots(self) -> int:
        """Number of recommended slots M that the coupons refer to; at least 1."""
        return max(1, *(offer.slot for offer in self.offers))

    def tensors(self, device: str | torch.device = "cpu") -> OfferTensors:
        """Return the catalogue as columns on a device."""
        rows = self.offers

        def column(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        def depth(offer: Offer) -> float:
            return offer.max_discount / offer.min_spend if offer.min_spend else offer.depth

        return OfferTensors(
            message=column([o.is_message for o in rows], torch.bool),
            coupon=column([o.is_coupon for o in rows], torch.bool),
            slot=column([o.slot - 1 for o in rows], torch.int64),
            depth=column([depth(o) for o in rows], torch.float32),
            min_spend=column([o.min_spend for o in rows], torch.float32),
            max_discount=column([o.max_discount for o in rows], torch.float32),
            liability=column([to_ticks(o.max_discount) for o in rows], torch.int64),
            validity_weeks=column([o.validity_weeks for o in rows], torch.int64),
            delivery_cost=column([to_ticks(o.delivery_cost) for o in rows], torch.int64),
            cap=self.cap,
            has_threshold=any(o.kind is OfferKind.THRESHOLD for o in rows),
        )

    @classmethod
    def from_toml(cls, path: Path) -> Catalogue:
        """Read a catalogue from a TOML file: one ``[[offer]]`` table per row, perhaps a ``[frequency_cap]``.

        Raises:
            CatalogueError: naming the file, the offer and what is wrong with it.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CatalogueError(f"catalogue {path}: {error}") from error
        try:
            return cls.from_mapping(content)
        except CatalogueError as error:
            raise CatalogueError(f"catalogue {path}: {error}") from error

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Catalogue:
        """Build a catalogue from parsed TOML or JSON: ``{"offer": [{...}, ...], "frequency_cap": {...}}``."""
        if not {"offer"} <= set(content) <= {"offer", "frequency_cap"} or not isinstance(
            content["offer"], list
        ):
            raise CatalogueError("expected [[offer]] tables, perhaps a [frequency_cap], and nothing else")
        cap = _cap(content["frequency_cap"]) if "frequency_cap" in content else None
        return cls(tuple(_offer(row, place) for place, row in enumerate(content["offer"], start=1)), cap)

    @classmethod
    def built_in(cls) -> Catalogue:
        """Return the catalogue that comes with the package."""
        text = resources.files("envs").joinpath("catalogue.toml").read_text(encoding="utf-8")
        return cls.from_mapping(tomllib.loads(text))


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "channel": (str,),
    "slot": (int,),
    "depth": (float, int),
    "min_spend": (float, int),
    "max_discount": (float, int),
    "validity_weeks": (int,),
    "delivery_cost": (float, int),
}


def _offer(row: object, place: int) -> Offer:
    if not isinstance(row, Mapping):
        raise CatalogueError(f"offer number {place} must be a table, got {row!r}")
    name = row.get("name", f"number {place}")
    unknown = sorted(set(row) - {f.name for f in fields(Offer)})
    if unknown:
        raise CatalogueError(f"offer {name!r}: unknown key {unknown[0]!r}")
    for key, value in row.items():
        if not isinstance(value, _FIELD_TYPES[key]) or isinstance(value, bool):
            raise CatalogueError(f"offer {name!r}: {key} has the wrong type: {value!r}")
    for key in ("name", "kind"):
        if key not in row:
            raise CatalogueError(f"offer {name!r}: {key} is missing")
    named: dict[str, Any] = {"kind": OfferKind, "channel": Channel}
    for key in named.keys() & row.keys():
        allowed = [member.value for member in named[key]]
        if row[key] not in allowed:
            raise CatalogueError(
                f"offer {name!r}: {key} must be one of {', '.join(allowed)}, got {row[key]!r}"
            )
    return Offer(**{key: named[key](value) if key in named else value for key, value in row.items()})


def _cap(table: object) -> FrequencyCap:
    if not isinstance(table, Mapping) or set(table) != {"messages", "weeks"}:
        raise CatalogueError(f"frequency_cap must have messages and weeks and nothing else, got {table!r}")
    for key, value in table.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise CatalogueError(f"frequency_cap: {key} must be a whole number, got {value!r}")
    return FrequencyCap(**table)
