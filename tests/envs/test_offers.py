from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from envs.offers import Catalogue, CatalogueError, Offer, OfferKind

NOTHING: dict[str, Any] = {"name": "no offer", "kind": "none"}
COUPON: dict[str, Any] = {
    "name": "c",
    "kind": "percent",
    "slot": 2,
    "depth": 0.2,
    "max_discount": 0.6,
    "validity_weeks": 2,
    "delivery_cost": 0.02,
}


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != key}


BAD_ROWS: list[tuple[Any, str]] = [
    (COUPON | {"depth": 1.01}, "offer 'c': depth must be in (0, 1], got 1.01"),
    (COUPON | {"depth": 0}, "offer 'c': depth must be in (0, 1], got 0"),
    (COUPON | {"depth": -0.2}, "offer 'c': depth must be in (0, 1]"),
    (COUPON | {"depth": float("nan")}, "offer 'c': depth must be in (0, 1], got nan"),
    (without(COUPON, "depth"), "offer 'c': depth must be in (0, 1], got 0.0"),
    (COUPON | {"max_discount": 0.0}, "offer 'c': max_discount must be"),
    (COUPON | {"max_discount": float("inf")}, "offer 'c': max_discount must be"),
    (COUPON | {"max_discount": 0.00001}, "offer 'c': max_discount must be"),
    (COUPON | {"validity_weeks": 0}, "offer 'c': validity_weeks must be >= 1, got 0"),
    (COUPON | {"slot": 0}, "offer 'c': slot must be >= 1, got 0"),
    (COUPON | {"delivery_cost": -0.01}, "offer 'c': delivery_cost must be"),
    (COUPON | {"delivery_cost": float("nan")}, "offer 'c': delivery_cost must be"),
    (COUPON | {"delivery_cost": float("inf")}, "offer 'c': delivery_cost must be"),
    (COUPON | {"name": "no offer"}, "duplicate offer name 'no offer'"),
    (COUPON | {"name": ""}, "an offer has an empty name"),
    (COUPON | {"colour": "red"}, "offer 'c': unknown key 'colour'"),
    (COUPON | {"slot": 1.5}, "offer 'c': slot has the wrong type: 1.5"),
    (COUPON | {"slot": True}, "offer 'c': slot has the wrong type: True"),
    (COUPON | {"depth": "20%"}, "offer 'c': depth has the wrong type: '20%'"),
    (COUPON | {"name": 3}, "offer 3: name has the wrong type: 3"),
    (COUPON | {"kind": "gift"}, "offer 'c': kind must be one of none, push, percent, got 'gift'"),
    (without(COUPON, "name"), "offer 'number 2': name is missing"),
    (without(COUPON, "kind"), "offer 'c': kind is missing"),
    ({"name": "p", "kind": "push", "depth": 0.1}, "offer 'p': only a percent coupon has slot, depth"),
    ({"name": "p", "kind": "push", "validity_weeks": 1}, "offer 'p': only a percent coupon has"),
    ({"name": "again", "kind": "none"}, "only one offer of a catalogue may be of kind 'none'"),
    ("c", "offer number 2 must be a table, got 'c'"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_gets_one_clear_message(row: Any, message: str) -> None:
    with pytest.raises(CatalogueError, match=re.escape(message)):
        Catalogue.from_mapping({"offer": [NOTHING, row]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"offer": []}, "the first offer of a catalogue must be of kind 'none'"),
        ({"offer": [COUPON, NOTHING]}, "the first offer of a catalogue must be of kind 'none'"),
        ({"offer": [NOTHING | {"delivery_cost": 0.1}]}, "sending nothing cannot cost anything"),
        ({"offer": NOTHING}, "expected [[offer]] tables and nothing else"),
        ({"offer": [NOTHING], "title": "x"}, "expected [[offer]] tables and nothing else"),
        ({}, "expected [[offer]] tables and nothing else"),
    ],
)
def test_a_bad_catalogue_gets_one_clear_message(content: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=re.escape(message)):
        Catalogue.from_mapping(content)


@pytest.mark.parametrize(
    "text", ["[[offer]\n", '[[offer]]\nname = "a"\nkind = "gift"\n', b"\xff\xfe", None], ids=repr
)
def test_an_error_in_a_file_names_the_file(tmp_path: Path, text: str | bytes | None) -> None:
    path = tmp_path / "shop.toml"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(CatalogueError, match=r"catalogue .*shop\.toml: "):
        Catalogue.from_toml(path)


def test_a_file_gives_what_a_mapping_gives(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        '[[offer]]\nname = "no offer"\nkind = "none"\n[[offer]]\nname = "c"\nkind = "percent"\nslot = 2\n'
        "depth = 0.2\nmax_discount = 0.6\nvalidity_weeks = 2\ndelivery_cost = 0.02\n"
    )
    assert Catalogue.from_toml(path) == Catalogue.from_mapping({"offer": [NOTHING, COUPON]})


def test_columns() -> None:
    push = {"name": "p", "kind": "push", "delivery_cost": 0.05}
    catalogue = Catalogue.from_mapping({"offer": [NOTHING, push, COUPON]})
    offers = catalogue.tensors()
    assert (len(catalogue), catalogue.n_slots) == (3, 2)
    assert offers.message.tolist() == [False, True, True]
    assert offers.coupon.tolist() == [False, False, True]
    assert offers.slot.tolist() == [0, 0, 1]
    assert offers.depth.tolist() == pytest.approx([0, 0, 0.2])
    assert offers.liability.tolist() == [0, 0, 6000]
    assert offers.validity_weeks.tolist() == [0, 0, 2]
    assert offers.delivery_cost.tolist() == [0, 500, 200]


def test_built_in_catalogue() -> None:
    catalogue = Catalogue.built_in()
    assert catalogue.offers[0] == Offer("no offer", OfferKind.NONE)
    assert catalogue.offers[1].kind is OfferKind.PUSH
    coupons = {(o.slot, o.depth) for o in catalogue.offers[2:]}
    assert coupons == {(slot, depth) for slot in (1, 2, 3) for depth in (0.2, 0.4)}


def test_a_catalogue_of_nothing_has_one_slot() -> None:
    assert Catalogue.from_mapping({"offer": [NOTHING]}).n_slots == 1
