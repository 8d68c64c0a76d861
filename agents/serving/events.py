"""What a shop knows of a user, as it happened: purchases, offers sent, redemptions."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agents.serving.errors import DecisionInputError

MOST_EVENTS = 20_000
"""Lines of purchases, offers and redemptions of one user; more are a mistake, or an attack."""

MOST_MONEY = 1e9
"""On one line, log's currency."""


def _no_text() -> npt.NDArray[np.str_]:
    return np.zeros(0, dtype="<U1")


def _no_numbers() -> npt.NDArray[np.float64]:
    return np.zeros(0, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Purchases:
    """Lines of baskets, m of them, in any order; columns as in the log schema's ``transactions``.

    Attributes:
        day: [m] datetime64[D].
        basket_id: [m] text; lines of a trip share it.
        item_id: [m] text; empty where the category is given.
        category: [m] text; empty where the item is given.
        spend: [m] what was paid, log's currency.
        coupon_discount: [m] by how much a coupon lowered it.
    """

    day: npt.NDArray[np.datetime64] = field(default_factory=lambda: np.zeros(0, dtype="datetime64[D]"))
    basket_id: npt.NDArray[np.str_] = field(default_factory=_no_text)
    item_id: npt.NDArray[np.str_] = field(default_factory=_no_text)
    category: npt.NDArray[np.str_] = field(default_factory=_no_text)
    spend: npt.NDArray[np.float64] = field(default_factory=_no_numbers)
    coupon_discount: npt.NDArray[np.float64] = field(default_factory=_no_numbers)

    def __post_init__(self) -> None:
        columns = ("basket_id", "item_id", "category", "spend", "coupon_discount")
        for name in columns:
            if getattr(self, name).shape != self.day.shape:
                raise DecisionInputError(
                    f"purchases: {name} has {getattr(self, name).shape}, day {self.day.shape}"
                )
        for name in ("spend", "coupon_discount"):
            values = getattr(self, name)
            bad = ~((values >= 0) & (values <= MOST_MONEY))
            if bad.any():
                raise DecisionInputError(
                    f"transactions: {name} must be in 0..{MOST_MONEY:g}; row {int(bad.argmax())}: "
                    f"{values[bad.argmax()]}"
                )

    def __len__(self) -> int:
        return len(self.day)


@dataclass(frozen=True)
class SentOffer:
    """An offer that a user was sent.

    Attributes:
        day: of sending.
        offer: its name in the catalogue.
        category: that a percent coupon covers; None for other offers.
        template: name of its message text, so that the next is another; None where unknown.
    """

    day: datetime.date
    offer: str
    category: str | None = None
    template: str | None = None


@dataclass(frozen=True, eq=False)
class UserEvents:
    """A user and what is known of him.

    Attributes:
        user_id: unique within a call.
        profile: as text, as the log's ``users`` table is rendered; see :func:`profile_text`.
        opted_in: whether messages may be sent.
        since: first day on which his purchases would have been seen; None if that is the log's first.
        purchases: of any time; those of the week that is decided for, or later, are not looked at.
        sent: offers sent before.
        redeemed: days on which he redeemed the coupon that he held.
    """

    user_id: str
    profile: str = ""
    opted_in: bool = True
    since: datetime.date | None = None
    purchases: Purchases = field(default_factory=Purchases)
    sent: tuple[SentOffer, ...] = ()
    redeemed: tuple[datetime.date, ...] = ()

    @property
    def last_template(self) -> str | None:
        """Template of the last message that is known of."""
        named = [one for one in self.sent if one.template is not None]
        return max(named, key=lambda one: one.day).template if named else None

    def __post_init__(self) -> None:
        count = len(self.purchases) + len(self.sent) + len(self.redeemed)
        if count > MOST_EVENTS:
            raise DecisionInputError(f"user with {count} events; at most {MOST_EVENTS} are read")


def profile_text(columns: dict[str, str | int | float | bool | None]) -> str:
    """Return a profile as user texts have it: ``age 45-54, income 50-74K``; what is not known is left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in columns.items() if value is not None
    )
