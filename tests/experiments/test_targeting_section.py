"""The section on past campaigns says what its numbers say, and nothing more."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from experiments.ope.campaign_example import (
    CampaignExample,
    Difference,
    Support,
    TypeExample,
    propensity_bins,
)
from experiments.report.page import Plot, Section, Table, Words
from experiments.report.targeting_section import (
    placebo_finding,
    targeting_finding,
    targeting_section,
    what_can_be_said,
)
from experiments.report.wording import Currency

DOLLARS = Currency("$")


def make_type(name: str, *, placebo: tuple[float, float, float], verdict: str = "caution") -> TypeExample:
    rng = np.random.default_rng(0)
    propensity = rng.random(200)
    return TypeExample(
        campaign_type=name,
        campaigns=("7", "9"),
        n_users=1931,
        n_rows=7191 if name == "Type A" else 713,
        sent_share=0.4567,
        model="logistic",
        auc=0.9216 if name == "Type A" else 0.8369,
        log_loss=0.3497,
        marginal_log_loss=0.6901,
        calibration_error=0.0136,
        outside_share=0.2639,
        bins=propensity_bins(propensity, propensity > 0.4),
        supports=(
            Support("send to all", 327.4, 249.9, verdict, "its reason"),  # type: ignore[arg-type]
            Support("send to none", 1408.2, 21.8, "caution", "estimated"),
        ),
        differences=(
            Difference("campaign", "naive", 131.91, 122.4, 141.4),
            Difference("campaign", "weighted", 4.1, -18.2, 26.4),
            Difference("campaign", "doubly robust", 1.69, -7.06, 10.44),
            Difference("placebo", "naive", 130.25, 121.1, 139.4),
            Difference("placebo", "weighted", 11.6, -7.4, 30.6),
            Difference("placebo", "doubly robust", *placebo),
        ),
    )


def make_results(verdict: str = "do not use") -> dict[str, Any]:
    types = (
        make_type("Type A", placebo=(8.11, 0.15, 16.08), verdict=verdict),
        make_type("Type B", placebo=(1.76, -11.07, 14.59)),
    )
    example = CampaignExample(window_weeks=4, types=types)
    return {"targeting_example": example.to_dict(), "data": {"currency": "$"}}


def types_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    types: list[dict[str, Any]] = results["targeting_example"]["types"]
    return types


def section_of(results: dict[str, Any]) -> Section:
    section = targeting_section(results)
    assert section is not None
    return section


def test_without_an_example_there_is_no_section() -> None:
    assert targeting_section({}) is None
    assert targeting_section({"targeting_example": None}) is None
    assert targeting_section({"targeting_example": {"types": []}}) is None


def test_findings_carry_the_numbers() -> None:
    types = types_of(make_results())
    assert targeting_finding(types) == (
        "Targeting was not random: shopping before a campaign tells who is sent it, AUC 0.92 (Type A) and "
        "0.84 (Type B)"
    )
    assert placebo_finding(types, "4", DOLLARS) == (
        "Users sent a campaign of Type A spend $132 more than others in its 4 weeks, and $130 more in the 4 "
        "weeks before it: most of the difference was there before"
    )


def test_findings_do_not_say_more_than_is_there() -> None:
    types = types_of(make_results())
    for row in types:
        row["auc"] = 0.52
        for part in row["differences"]:
            if part["window"] == "placebo":
                part |= {"value": -2.0, "ci_low": -9.0, "ci_high": 5.0}
    assert "not random" not in targeting_finding(types)
    finding = placebo_finding(types, "4", DOLLARS)
    assert finding.endswith("and $2 less in the 4 weeks before it")
    said = what_can_be_said(types, DOLLARS)
    assert "which it cannot have changed" not in said
    assert "For Type A and Type B the placebo cannot be told from 0; that is no proof" in said


def test_words_tell_a_biased_placebo_from_one_that_shows_nothing() -> None:
    said = what_can_be_said(types_of(make_results()), DOLLARS)
    assert "the difference is +$1.7 (−$7.1 to $10.4) for Type A and" in said
    assert "which it cannot have changed, is +$8.1 ($0.1 to $16.1) for Type A: the features do not" in said
    assert "For Type B the placebo cannot be told from 0" in said
    assert "From weights alone the check-up of the log allows no number for: send to all (Type A)." in said
    assert "is not identified" in said
    assert "weights alone" not in what_can_be_said(types_of(make_results("caution")), DOLLARS)


def test_blocks_hold_plots_words_and_tables() -> None:
    section = section_of(make_results())
    blocks = [item for block in section.blocks for item in block]
    assert [type(item) for item in blocks] == [Plot, Plot, Words, Table, Table]
    overlap, differences = blocks[3], blocks[4]
    assert isinstance(overlap, Table)
    assert isinstance(differences, Table)
    first = overlap.rows[0]
    assert first[:9] == ["Type A", "2", "7,191", "45.7%", "logistic", "0.922", "0.350", "0.690", "26.4%"]
    assert "send to all: 327, largest weight 250, do not use" in first[9]
    assert len(differences.rows) == 12
    assert differences.rows[0] == [
        "Type A",
        "naive",
        "in the campaign",
        "+$131.9",
        "$122.4 to $141.4",
    ]


def test_drawings_name_their_finding_and_repeat() -> None:
    one, other = section_of(make_results()), section_of(make_results())
    for first, second in zip(one.blocks, other.blocks, strict=True):
        for drawn, again in zip(first, second, strict=True):
            if isinstance(drawn, Plot):
                assert isinstance(again, Plot)
                assert drawn.svg == again.svg
                assert f'aria-label="{drawn.finding}"' in drawn.svg


@pytest.mark.parametrize("missing", ["auc", "bins", "supports", "differences", "sent_share"])
def test_what_is_absent_is_a_dash_and_no_error(missing: str) -> None:
    results = copy.deepcopy(make_results())
    for row in types_of(results):
        row[missing] = [] if isinstance(row[missing], list | tuple) else None
    section = section_of(results)
    cells = [cell for block in section.blocks for item in block for cell in _cells(item)]
    assert "nan" not in " ".join(cells).lower()


def _cells(item: object) -> list[str]:
    return [cell for row in item.rows for cell in row] if isinstance(item, Table) else []


def test_names_from_the_log_are_escaped() -> None:
    results = make_results()
    hostile = '<script>alert("x")</script>'
    types_of(results)[0]["campaign_type"] = hostile
    for block in section_of(results).blocks:
        for item in block:
            if isinstance(item, Plot):
                assert "<script>" not in item.svg
