from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from envs.offers import Catalogue, CatalogueError, Channel, FrequencyCap, Offer, OfferKind

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
THRESHOLD: dict[str, Any] = {
    "name": "t",
    "kind": "threshold",
    "min_spend": 40.0,
    "max_discount": 2.0,
    "validity_weeks": 2,
}
PUSH: dict[str, Any] = {"name": "p", "kind": "push", "delivery_cost": 0.05}


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
    (COUPON | {"kind": "gift"}, "offer 'c': kind must be one of none, push, percent, threshold, got 'gift'"),
    (without(COUPON, "name"), "offer 'number 2': name is missing"),
    (without(COUPON, "kind"), "offer 'c': kind is missing"),
    (COUPON | {"channel": "fax"}, "offer 'c': channel must be one of push, mail, got 'fax'"),
    (COUPON | {"channel": 1}, "offer 'c': channel has the wrong type: 1"),
    (COUPON | {"min_spend": 10.0}, "offer 'c': only a threshold coupon has min_spend"),
    (PUSH | {"depth": 0.1}, "offer 'p': only a percent coupon has slot or depth"),
    (PUSH | {"validity_weeks": 1}, "offer 'p': only a coupon has max_discount or validity_weeks"),
    (PUSH | {"max_discount": 5.0}, "offer 'p': only a coupon has max_discount or validity_weeks"),
    (PUSH | {"min_spend": 5.0}, "offer 'p': only a threshold coupon has min_spend"),
    (PUSH | {"channel": "mail"}, "offer 'p': only a coupon can come by mail"),
    (
        without(THRESHOLD, "min_spend"),
        "offer 't': min_spend must be finite and at least max_discount, got 0.0",
    ),
    (
        THRESHOLD | {"min_spend": 1.99},
        "offer 't': min_spend must be finite and at least max_discount, got 1.99",
    ),
    (THRESHOLD | {"min_spend": float("inf")}, "offer 't': min_spend must be finite"),
    (THRESHOLD | {"min_spend": float("nan")}, "offer 't': min_spend must be finite"),
    (THRESHOLD | {"min_spend": "40"}, "offer 't': min_spend has the wrong type: '40'"),
    (THRESHOLD | {"slot": 1}, "offer 't': only a percent coupon has slot or depth"),
    (THRESHOLD | {"depth": 0.1}, "offer 't': only a percent coupon has slot or depth"),
    (without(THRESHOLD, "max_discount"), "offer 't': max_discount must be"),
    (without(THRESHOLD, "validity_weeks"), "offer 't': validity_weeks must be >= 1, got 0"),
    ({"name": "again", "kind": "none"}, "only one offer of a catalogue may be of kind 'none'"),
    ("c", "offer number 2 must be a table, got 'c'"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_gets_one_clear_message(row: Any, message: str) -> None:
    with pytest.raises(CatalogueError, match=re.escape(message)):
        Catalogue.from_mapping({"offer": [NOTHING, row]})


def capped(**cap: Any) -> dict[str, Any]:
    return {"offer": [NOTHING], "frequency_cap": cap}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"offer": []}, "the first offer of a catalogue must be of kind 'none'"),
        ({"offer": [COUPON, NOTHING]}, "the first offer of a catalogue must be of kind 'none'"),
        ({"offer": [NOTHING | {"delivery_cost": 0.1}]}, "sending nothing cannot cost anything"),
        ({"offer": NOTHING}, "expected [[offer]] tables, perhaps a [frequency_cap], and nothing else"),
        ({"offer": [NOTHING], "title": "x"}, "expected [[offer]] tables"),
        ({}, "expected [[offer]] tables"),
        ({"frequency_cap": {"messages": 2, "weeks": 4}}, "expected [[offer]] tables"),
        ({"offer": [NOTHING | {"channel": "mail"}]}, "only a coupon can come by mail"),
        ({"offer": [NOTHING], "frequency_cap": 3}, "frequency_cap must have messages and weeks"),
        ({"offer": [NOTHING], "frequency_cap": [2, 4]}, "frequency_cap must have messages and weeks"),
        (capped(), "frequency_cap must have messages and weeks and nothing else, got {}"),
        (capped(messages=2), "frequency_cap must have messages and weeks and nothing else"),
        (capped(messages=2, weeks=4, days=1), "frequency_cap must have messages and weeks"),
        (capped(messages=2.5, weeks=4), "frequency_cap: messages must be a whole number, got 2.5"),
        (capped(messages=True, weeks=4), "frequency_cap: messages must be a whole number, got True"),
        (capped(messages=2, weeks="4"), "frequency_cap: weeks must be a whole number, got '4'"),
        (capped(messages=0, weeks=4), "messages must be >= 1 and weeks in 1..30, got 0 in 4"),
        (capped(messages=1, weeks=0), "messages must be >= 1 and weeks in 1..30, got 1 in 0"),
        (capped(messages=1, weeks=31), "messages must be >= 1 and weeks in 1..30, got 1 in 31"),
    ],
)
def test_a_bad_catalogue_gets_one_clear_message(content: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=re.escape(message)):
        Catalogue.from_mapping(content)


@pytest.mark.parametrize(
    "text",
    ["[[offer]\n", '[[offer]]\nname = "a"\nkind = "gift"\n', "[frequency_cap]\n", b"\xff\xfe", None],
    ids=repr,
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
        '[[offer]]\nname = "t"\nkind = "threshold"\nmin_spend = 40\nmax_discount = 2\nvalidity_weeks = 2\n'
        'channel = "mail"\n[frequency_cap]\nmessages = 2\nweeks = 4\n'
    )
    content = {
        "offer": [NOTHING, COUPON, THRESHOLD | {"channel": "mail"}],
        "frequency_cap": {"messages": 2, "weeks": 4},
    }
    assert Catalogue.from_toml(path) == Catalogue.from_mapping(content)


def test_columns() -> None:
    by_mail = COUPON | {"name": "m", "channel": "mail", "slot": 1}
    offers = [NOTHING, PUSH, COUPON, by_mail, THRESHOLD]
    catalogue = Catalogue.from_mapping({"offer": offers, "frequency_cap": {"messages": 3, "weeks": 30}})
    columns = catalogue.tensors()
    assert (len(catalogue), catalogue.n_slots) == (5, 2)
    assert columns.message.tolist() == [False, True, True, False, True]
    assert columns.coupon.tolist() == [False, False, True, True, True]
    assert columns.slot.tolist() == [-1, -1, 1, 0, -1]
    # Of a threshold coupon, what it saves over what it asks for.
    assert columns.depth.tolist() == pytest.approx([0, 0, 0.2, 0.2, 0.05])
    assert columns.min_spend.tolist() == pytest.approx([0, 0, 0, 0, 40])
    assert columns.max_discount.tolist() == pytest.approx([0, 0, 0.6, 0.6, 2.0])
    assert columns.liability.tolist() == [0, 0, 6000, 6000, 20_000]
    assert columns.validity_weeks.tolist() == [0, 0, 2, 2, 2]
    assert columns.delivery_cost.tolist() == [0, 500, 200, 200, 0]
    assert columns.cap == FrequencyCap(3, 30)
    assert columns.has_threshold
    fewer = Catalogue.from_mapping({"offer": offers[:4]}).tensors()
    assert (fewer.cap, fewer.has_threshold) == (None, False)


def test_a_threshold_may_save_all_that_it_asks_for() -> None:
    (_, offer) = Catalogue.from_mapping({"offer": [NOTHING, THRESHOLD | {"min_spend": 2.0}]}).offers
    assert offer.min_spend == offer.max_discount == 2.0


def test_built_in_catalogue() -> None:
    catalogue = Catalogue.built_in()
    assert catalogue.offers[0] == Offer("no offer", OfferKind.NONE)
    assert catalogue.offers[1].kind is OfferKind.PUSH
    by_push = {
        (o.slot, o.depth)
        for o in catalogue.offers
        if o.kind is OfferKind.PERCENT and o.channel is Channel.PUSH
    }
    assert by_push == {(slot, depth) for slot in (1, 2, 3) for depth in (0.2, 0.4)}
    by_mail = [o for o in catalogue.offers if o.channel is Channel.MAIL]
    assert [(o.kind, o.slot) for o in by_mail] == [(OfferKind.PERCENT, 1)]
    thresholds = [o for o in catalogue.offers if o.kind is OfferKind.THRESHOLD]
    assert [(o.min_spend, o.max_discount) for o in thresholds] == [(40.0, 2.0), (80.0, 5.0)]
    assert catalogue.cap == FrequencyCap(6, 8)


def test_a_catalogue_of_nothing_has_one_slot() -> None:
    assert Catalogue.from_mapping({"offer": [NOTHING]}).n_slots == 1
    assert Catalogue.from_mapping({"offer": [NOTHING, THRESHOLD]}).n_slots == 1
