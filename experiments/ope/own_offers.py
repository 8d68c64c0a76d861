"""What a table of one's own says about offers: sent, allowed, and with which probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.ope.log_checks import BoolArray, FloatArray, IntArray, LoggedDataError, refuse
from experiments.ope.log_mapping import (
    MASK_PREFIXES,
    PROBABILITY_PREFIXES,
    LogMapping,
    columns_with_prefix,
    required,
)
from experiments.ope.own_columns import (
    natural_order,
    read_flags,
    read_labels,
    read_numbers,
    read_offer_lists,
)

_NOTHING_SENT: Final = frozenset({"no offer", "no_offer", "none", "nothing", "control"})


@dataclass(frozen=True, eq=False)
class SentOffers:
    """The decisions of N rows over K offers, and what the table said of them.

    Attributes:
        names: [K] offers.
        no_offer: index of the one that means that nothing was sent, None where it is not known.
        action: [N] index of the offer sent.
        mask: [N, K] bool, the offers that were allowed.
        probabilities: [N, K] the behaviour policy's distribution, if the table has it.
        notes: what was taken where the table says nothing.
    """

    names: tuple[str, ...]
    no_offer: int | None
    action: IntArray
    mask: BoolArray
    probabilities: FloatArray | None
    notes: tuple[str, ...]


def read_offers(frame: pd.DataFrame, columns: dict[str, str], mapping: LogMapping) -> SentOffers:
    """Read the offers of each row.

    Args:
        frame: one row per decision.
        columns: of each field, see :meth:`LogMapping.find`.
        mapping: may list the offers and name the one that sends nothing.

    Raises:
        LoggedDataError: an offer is not in the mapping's list, or there is only one.
    """
    sent = read_labels(frame, required(columns, "action", frame))
    lists = read_offer_lists(frame, columns["allowed"]) if "allowed" in columns else None
    flags = columns_with_prefix(frame, MASK_PREFIXES)
    shares = columns_with_prefix(frame, PROBABILITY_PREFIXES)
    occurring = {*sent.tolist(), *flags, *shares}.union(*(lists or ()))
    names, no_offer = _name_offers(occurring, mapping)
    place = {name: index for index, name in enumerate(names)}
    unknown = np.array([name not in place for name in sent.tolist()], dtype=np.bool_)
    refuse(columns["action"], unknown, sent, "is not among the offers that were listed")
    if len(names) < 2:
        raise LoggedDataError(f"{columns['action']}: every row is {names[0]!r}: nothing can be compared")
    mask = np.ones((len(frame), len(names)), dtype=np.bool_)
    notes = []
    if lists is not None:
        mask = np.array([[name in allowed for name in names] for allowed in lists], dtype=np.bool_)
    elif flags:
        for name, index in place.items():
            if name in flags:
                mask[:, index] = read_flags(frame, flags[name])
    else:
        notes.append("no column says which offers were allowed: all are taken as allowed in every row")
    if no_offer is None:
        notes.append("no offer is known to mean that nothing was sent; name it, if there is one")
    return SentOffers(
        names=names,
        no_offer=no_offer,
        action=np.array([place[name] for name in sent.tolist()], dtype=np.int64),
        mask=mask,
        probabilities=_read_probabilities(frame, shares, names),
        notes=tuple(notes),
    )


def _name_offers(occurring: set[str], mapping: LogMapping) -> tuple[tuple[str, ...], int | None]:
    """Return the offers in order, the one that sends nothing first unless the mapping lists them."""
    usual = sorted(name for name in occurring if name.lower() in _NOTHING_SENT)
    nothing = mapping.no_offer if mapping.no_offer is not None else (usual[0] if len(usual) == 1 else None)
    if mapping.no_offer is not None and mapping.no_offer not in {*occurring, *(mapping.offers or ())}:
        held = ", ".join(natural_order(list(occurring)))
        raise LoggedDataError(f"no_offer: {mapping.no_offer!r} is none of the offers {held}")
    if mapping.offers is not None:
        names = mapping.offers
        if len(set(names)) != len(names):
            raise LoggedDataError(f"offers: a name is listed twice: {', '.join(names)}")
    else:
        names = natural_order(list(occurring))
        if nothing is not None:
            names = (nothing, *(name for name in names if name != nothing))
    return names, names.index(nothing) if nothing in names and nothing is not None else None


def _read_probabilities(
    frame: pd.DataFrame, shares: dict[str, str], names: tuple[str, ...]
) -> FloatArray | None:
    """[N, K] from one column per offer; an offer without a column has probability 0."""
    if not shares:
        return None
    columns: list[npt.NDArray[np.float64]] = [
        read_numbers(frame, shares[name]) if name in shares else np.zeros(len(frame)) for name in names
    ]
    return np.stack(columns, axis=1)
