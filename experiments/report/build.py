"""Put the report together: summary, limits, sections, one self-contained file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.manifest import write_text
from experiments.report.backtest_section import fidelity_finding, fidelity_section
from experiments.report.campaign_sections import offers_section, pacing_section
from experiments.report.frontier_section import frontier_section
from experiments.report.judged import judged
from experiments.report.model_sections import (
    data_section,
    encoder_section,
    export_section,
    response_section,
    timing_section,
    training_section,
)
from experiments.report.ope_section import ope_section
from experiments.report.page import Plot, Section, Table, Tile, Words
from experiments.report.policy_sections import (
    headline,
    policies_section,
)
from experiments.report.reach_sections import exposure_section, who_section
from experiments.report.standing import standing_of
from experiments.report.targeting_section import targeting_section
from experiments.report.wording import (
    ABSENT,
    Currency,
    number_in,
    part_of,
    percent,
    plain,
    readable,
    rows_in,
    short,
    text_in,
)

Results = Mapping[str, Any]

SECTIONS: tuple[tuple[str, str, Callable[[Results], Section | None]], ...] = (
    ("policies", "What the policies earn", policies_section),
    ("frontier", "What more budget buys", frontier_section),
    ("pacing", "Spend and commitment against plan", pacing_section),
    ("who", "Who gets what", who_section),
    ("exposure", "Exposure by age, income and household", exposure_section),
    ("offers", "What was sent", offers_section),
    ("ope", "Offline evaluation", ope_section),
    ("targeting", "Past campaigns: what targeting hides", targeting_section),
    ("fidelity", "How well the model predicts", fidelity_section),
    ("response", "What is fitted and what is assumed", response_section),
    ("training", "Training the policy (PPO)", training_section),
    ("encoder", "Training the encoder", encoder_section),
    ("data", "The data", data_section),
    ("export", "The exported policy", export_section),
    ("timing", "Time", timing_section),
)
"""What the reader decides on comes first, what it rests on after."""

_NEWER = {"frontier", "who", "exposure"}
"""What an evaluation may lack: it judged one budget, or is of an earlier version."""


def build_report(results: Results, folder: Path, *, title: str) -> Path:
    """Write the report of a run as one HTML file without scripts or network; equal results, equal bytes.

    Args:
        results: the merged ``results.json``; parts that are absent are named as not run.
        folder: created if absent. ``index.html`` in it is replaced as a whole, or not at all.
        title: of the page.

    Returns:
        Path of the file.
    """
    results = judged(results)
    sections, absent = [], []
    for key, heading, build in SECTIONS:
        section = build(results)
        if section is None:
            sentence = _absence(key, results)
            section = Section(key, heading, sentence, [])
            absent.append(heading)
        sections.append(section)
    environment = Environment(
        loader=PackageLoader("experiments.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["table"] = lambda item: isinstance(item, Table)
    environment.tests["plot"] = lambda item: isinstance(item, Plot)
    environment.tests["words"] = lambda item: isinstance(item, Words)
    page = environment.get_template("index.html.jinja").render(
        title=title,
        headline=_headline(results),
        tiles=_tiles(results),
        limits=_limits(results),
        sections=sections,
        absent=absent,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_text(path, page)
    return path


def _absence(key: str, results: Results) -> str:
    """Say why a section is empty."""
    holds = f"results.json holds no “{_part_of(key)}”."
    if "targeting_example" in results and key == "targeting":
        return "The logs tell of no campaign with eight weeks before it and who was sent it."
    if key in _NEWER and rows_in(results, "policies"):
        return f"This run did not record it: {holds}"
    return f"The stage that gives this has not run: {holds}"


def _part_of(key: str) -> str:
    return {"encoder": "pretraining” or “fine_tuning", "targeting": "targeting_example"}.get(key, key)


def _headline(results: Results) -> str:
    standing = standing_of(results)
    return f"{headline(standing)}." if standing else "No policy has been judged yet."


def _tiles(results: Results) -> list[Tile]:
    """The numbers that decide whether to read on."""
    tiles = []
    standing = standing_of(results)
    if standing:
        money, focus, rival = standing.currency, standing.focus, standing.rival
        interval = (
            f"interval {money.interval(focus.low, focus.high)}" if focus.low is not None else "no interval"
        )
        interval += f"; {money.amount(focus.net, 3, sign=True)} less spend"
        value = money.amount(focus.margin, 3, sign=True)
        tiles.append(Tile(value, f"{focus.name}: incremental margin per user and campaign", interval))
        paired = standing.against_rival(standing.multiple)
        if paired and rival:
            interval = f"interval {money.interval(paired.low, paired.high)}" if paired.low is not None else ""
            value = money.amount(paired.value, 3, sign=True)
            tiles.append(Tile(value, f"per user against {rival.name}, the best other policy", interval))
        value = percent(number_in(focus.row, "utilisation"))
        amount = f"{money.amount(focus.spend, 3)} of {money.amount(focus.budget, 3)} per user"
        tiles.append(Tile(value, f"of the budget spent by {focus.name}", amount))
    fidelity = part_of(results, "fidelity")
    if number_in(fidelity, "log_loss") is not None:
        detail = fidelity_finding(fidelity).partition(": ")[2]
        value = plain(number_in(fidelity, "log_loss"), 4)
        tiles.append(Tile(value, f"log loss of purchase, weeks {text_in(fidelity, 'split')}", detail))
    if found := rows_in(results, "ope"):
        trusted = sum(text_in(row, "verdict") == "trust" for row in found)
        banned = sum(text_in(row, "verdict") == "do not use" for row in found)
        detail = f"{banned} must not be used" if banned else ""
        tiles.append(Tile(f"{trusted} of {len(found)}", "offline estimates marked trust", detail))
    export = part_of(results, "export")
    if (gap := number_in(export, "parity_max_abs_diff")) is not None:
        label = "largest difference in probability, exported against trained"
        tiles.append(Tile(short(gap), label))
    return tiles


def _limits(results: Results) -> list[tuple[str, str]]:
    """What the numbers do not say. It stands before them."""
    response = part_of(results, "response")
    assumed = [readable(text_in(row, "name")) for row in rows_in(response, "assumed")]
    fitted = [readable(text_in(row, "name")) for row in rows_in(response, "fitted")]
    limits = [
        (
            "Margins are simulated.",
            "They come from a market fitted to the logs. Only an A/B test shows what customers do.",
        ),
        (
            "Campaign uplift is not identified in these logs.",
            "Who was sent a coupon was not left to chance, so no effect of past campaigns is claimed. The "
            "lift of coupons and messages on visits is assumed instead.",
        ),
        (
            "Part of the response is assumed.",
            (f"Fitted: {', '.join(fitted)}. " if fitted else "")
            + (f"Assumed, as ranges with a source: {', '.join(assumed)}." if assumed else "")
            or "The stage that lists fitted and assumed parameters has not run.",
        ),
        (
            "Offline evaluation holds at a fixed path of λ.",
            "A shared budget couples users: what one is sent, another is not. A given λ each week separates "
            "them; whether the budget then holds must be checked with the estimated cost.",
        ),
        (
            "The interval of DM is too narrow.",
            "The direct method trusts its value model, and the model's error is in no interval.",
        ),
    ]
    limits[2:2] = [("With an assumption switched off.", words) for words in _sensitivity(results)]
    return limits


def _sensitivity(results: Results) -> list[str]:
    """Say, for each assumption that was switched off, what is left of the margin."""
    money = Currency.of_results(results)
    sentences = []
    for row in rows_in(results, "sensitivity"):
        left, whole = number_in(row, "incremental_margin"), number_in(row, "baseline_margin")
        users, assumption = number_in(row, "n_users"), text_in(row, "assumption")
        if left is None or whole is None or not users or assumption == ABSENT:
            continue
        sentence = (
            f"If {assumption}, {readable(text_in(row, 'policy'))} earns {money.headline(left / users)} "
            f"instead of {money.headline(whole / users)} per user"
        )
        sentences.append(f"{sentence}{_verdict(left / whole) if whole > 0 else ''}.")
    return sentences


def _verdict(share: float) -> str:
    """Say how much of a margin rests on an assumption, given the share left without it."""
    assumed = percent(1 - share, 0)
    if share < 0:
        return ": all of the margin is assumed, and without it the policy loses"
    if share <= 0.1:
        return ": nearly all of the margin is assumed"
    if share <= 0.5:
        return f": most of the margin ({assumed}) is assumed"
    if share < 0.95:
        return f": {assumed} of the margin is assumed"
    return ": the margin does not rest on it"
