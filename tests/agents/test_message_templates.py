from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from agents.message_files import (
    built_in_templates,
    read_templates,
    templates_from_mapping,
    templates_to_mapping,
)
from agents.message_templates import CHANNELS, KINDS, SEASONS, Template, TemplateError
from encoders.user_text import season_of_week
from envs.offers import Catalogue, Channel, Offer, OfferKind

PERCENT = Offer("p", OfferKind.PERCENT, slot=1, depth=0.125, max_discount=0.6, validity_weeks=1)
THRESHOLD = Offer("t", OfferKind.THRESHOLD, min_spend=40.0, max_discount=2.5, validity_weeks=2)
PUSH = Offer("m", OfferKind.PUSH)
BY_KIND = {"percent": PERCENT, "threshold": THRESHOLD, "push": PUSH}

MOST_CHARACTERS = 150
"""What phones show of a notification before they cut it."""


def smallest() -> dict[str, Any]:
    return {
        "terms": {"percent": "{percent}% off {category}, at most {save}, {weeks}"},
        "audience": {"regulars": {"like": "shops every week", "unlike": "shops seldom"}},
        "template": [
            {"name": "a", "text": "See {category}", "kinds": ["push"], "tone": "plain"},
            {"name": "b", "text": "{percent}% off {category}", "kinds": ["percent"], "tone": "plain"},
            {"name": "c", "text": "{save} off {min_spend}", "kinds": ["threshold"], "tone": "plain"},
        ],
        "names": {"frzn pizza": "frozen pizza"},
    }


def test_kinds_channels_and_seasons_are_those_of_offers_and_user_texts() -> None:
    assert set(KINDS) == {kind.value for kind in OfferKind} - {"none"}
    assert set(CHANNELS) == {channel.value for channel in Channel}
    assert set(SEASONS) == {season_of_week(week) for week in range(1, 53)}


def test_amounts_names_and_capitals_are_filled_in() -> None:
    catalogue = templates_from_mapping(smallest())
    _, percent, threshold = catalogue.templates
    assert catalogue.render(percent, PERCENT, "frzn pizza") == "12.5% off frozen pizza"
    assert catalogue.render(threshold, THRESHOLD, "") == "$2.50 off $40"
    assert catalogue.render_terms(PERCENT, "eggs") == "12.5% off eggs, at most $0.60, 1 week"
    assert catalogue.render_terms(PUSH, "eggs") == ""
    opening = Template("d", "{category}? Yes. {category}!", ("push",), "plain")
    assert catalogue.render(opening, PUSH, "frzn pizza") == "Frozen pizza? Yes. Frozen pizza!"


def test_the_encoder_reads_the_category_in_its_own_words_and_no_amounts() -> None:
    template = Template("b", "Save {percent}% on {category}: {save} at most", ("percent",), "plain")
    assert template.reading("frzn pizza") == "save on frzn pizza: at most"


def test_what_a_text_takes_for_granted_must_be_an_item_of_the_users_text() -> None:
    template = Template("a", "Back?", ("push",), "plain", told=("shops every week", "last week nothing"))
    assert template.holds_for("age 35 . shops every week , two trips . last week nothing")
    assert not template.holds_for("shops every week . last week nothings")
    assert not template.holds_for("shops every week . last week milk")
    assert not template.holds_for("")
    assert Template("b", "Hello", ("push",), "plain").holds_for("")


def test_the_built_in_texts_cover_every_offer_and_fit_on_a_screen() -> None:
    catalogue = built_in_templates()
    assert len(catalogue.templates) >= 40
    longest = max([*catalogue.names.values(), "frozen breakfast foods"], key=len)
    for template in catalogue.templates:
        for kind in template.kinds:
            text = catalogue.render(template, BY_KIND[kind], longest)
            assert "{" not in text
            if template.channels != ("mail",):
                assert len(text) <= MOST_CHARACTERS, template.name
    for offer in Catalogue.built_in().offers[1:]:
        for season in SEASONS:
            fitting = catalogue.fitting(offer.kind, offer.channel, season)
            tones = {catalogue.templates[place].tone for place in fitting}
            assert len(fitting) >= 10, (offer.name, season)
            assert len(tones) >= 4, (offer.name, season)
        assert bool(catalogue.render_terms(offer, "eggs")) == offer.is_coupon


def test_texts_of_a_coupon_always_tell_its_worst_limits() -> None:
    catalogue = built_in_templates()
    assert catalogue.render_terms(PERCENT, "eggs") == "12.5% off eggs, $0.60 at most. Once, within 1 week."
    told = catalogue.render_terms(THRESHOLD, "")
    assert "$2.50" in told
    assert "$40" in told
    assert "2 weeks" in told


def test_mapping_and_file_round_trips(tmp_path: Path) -> None:
    catalogue = built_in_templates()
    assert templates_from_mapping(templates_to_mapping(catalogue)) == catalogue
    path = tmp_path / "mine.toml"
    path.write_text('[[template]]\nname = "a"\n', encoding="utf-8")
    with pytest.raises(TemplateError, match=r"mine\.toml: template 'a': kinds is missing"):
        read_templates(path)
    with pytest.raises(TemplateError, match="No such file"):
        read_templates(tmp_path / "absent.toml")
    path.write_text("[[template\n", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"message texts .*mine\.toml"):
        read_templates(path)


def test_a_file_is_read_as_its_mapping(tmp_path: Path) -> None:
    text = """
    currency = "€"
    [[template]]
    name = "a"
    text = "See {category}"
    kinds = ["push"]
    tone = "plain"
    [[template]]
    name = "b"
    text = "{percent}% off {category}, {save}"
    kinds = ["percent"]
    tone = "warm"
    [[template]]
    name = "c"
    text = "{save} off {min_spend}"
    kinds = ["threshold"]
    tone = "plain"
    """
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    catalogue = read_templates(path)
    assert catalogue == templates_from_mapping(tomllib.loads(text))
    assert catalogue.render(catalogue.templates[2], THRESHOLD, "") == "€2.50 off €40"


def with_template(**changes: object) -> dict[str, Any]:
    content = smallest()
    content["template"][1] |= changes
    return content


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no templates": ({}, "the file: template is missing"),
    "not a list": (smallest() | {"template": {}}, r"expected \[\[template\]\] tables"),
    "unknown top key": (smallest() | {"tempalte": []}, "the file: unknown key 'tempalte'"),
    "row is no table": (smallest() | {"template": [3]}, "template number 1 must be a table, got 3"),
    "unknown key": (with_template(colour="red"), "template 'b': unknown key 'colour'"),
    "wrong type": (with_template(text=3), "template 'b': text must be a text, got 3"),
    "list wanted": (with_template(seasons="summer"), "template 'b': seasons must be a list, got 'summer'"),
    "strange season": (with_template(seasons=["monsoon"]), "template 'b': seasons must be among .*'monsoon'"),
    "no season": (with_template(seasons=[]), "template 'b': seasons must be among"),
    "strange kind": (with_template(kinds=["none"]), "template 'b': kinds must be among .* got 'none'"),
    "strange tone": (with_template(tone="rude"), "template 'b': tone must be among .* got 'rude'"),
    "empty text": (with_template(text=" "), "template 'b': name and text must not be empty"),
    "empty claim": (with_template(told=[" "]), "template 'b': told must not hold an empty text"),
    "coupon without worth": (
        with_template(text="{category}!"),
        r"for percent offers must mention \{percent\}",
    ),
    "foreign placeholder": (
        with_template(text="{percent}% off {category} from {min_spend}"),
        r"percent offers have no \{min_spend\}",
    ),
    "stray brace": (
        with_template(text="{percent}% off {category} {"),
        "a brace in .* belongs to no placeholder",
    ),
    "format code": (with_template(text="{percent!r}% off {category}"), "a brace in"),
    "unknown audience": (with_template(audience="aliens"), "template 'b': no audience 'aliens'"),
    "twice": (with_template(name="a"), "duplicate template name 'a'"),
    "season left out": (
        with_template(seasons=["winter"]),
        "no template fits percent offers by push in spring",
    ),
    "claim on everyone": (with_template(told=["new customer"]), "percent offers by push in winter for every"),
    "bad terms": (smallest() | {"terms": {"percent": "{category}"}}, "terms of percent offers.*percent"),
    "audience of one side": (
        smallest() | {"audience": {"x": {"like": "a", "unlike": "a"}}},
        "audience 'x': like and unlike must be two different texts",
    ),
    "audience without unlike": (
        smallest() | {"audience": {"x": {"like": "a"}}},
        "audience 'x': unlike is missing",
    ),
    "name of a name": (smallest() | {"names": {"x": 3}}, "names.x must be a text, got 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_texts_are_refused_by_place(case: str) -> None:
    content, message = BAD[case]
    with pytest.raises(TemplateError, match=message):
        templates_from_mapping(content)


def test_an_unknown_season_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"season must be one of winter, .* got 'fall'"):
        built_in_templates().fitting("push", "push", "fall")
