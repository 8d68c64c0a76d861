"""How well the model predicts weeks that it has not seen, beside its peers and its bars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.canvas import BLUE, GREY
from experiments.report.page import Block, Column, Plot, Section, Table
from experiments.report.plots import DotPanel, Mark, RankedDot, calibration, dot_panels, ranked_dots
from experiments.report.response_blocks import promotion_blocks, redemption_blocks
from experiments.report.wording import (
    ABSENT,
    Row,
    listed,
    number_in,
    part_of,
    percent,
    plain,
    rows_in,
    several,
    short,
    text_in,
)

Results = Mapping[str, Any]
MODELS = {
    "": "this model (BERT)",
    "lightgbm": "LightGBM",
    "lightgbm_uncalibrated": "LightGBM, uncalibrated",
    "no_text": "this model, no text",
    "frequency": "own frequency",
}
PEERS = {**MODELS, "model": MODELS[""], "rfm": "RFM logistic regression"}
VISIT_MODELS = ("model", "rfm", "lightgbm", "lightgbm_uncalibrated")
MEASURES = {
    "log_loss": "log loss",
    "auc": "AUC",
    "average_precision": "average precision",
    "ece": "calibration error (ECE)",
}
_LABELLED_CELLS = 3


def _models(fidelity: Row) -> dict[str, Row]:
    found = {"": fidelity, **{key: fidelity.get(key) for key in MODELS if key}}
    return {
        key: row
        for key, row in found.items()
        if isinstance(row, Mapping) and any(number_in(row, measure) is not None for measure in MEASURES)
    }


def fidelity_finding(fidelity: Row) -> str:
    """Say how the model compares with LightGBM, each household's own frequency, and itself without text."""
    models = _models(fidelity)
    ours = number_in(fidelity, "log_loss")
    if ours is None:
        return "How well the model predicts purchases"
    text = f"Log loss {plain(ours, 4)}"
    changes = {
        key: (ours - peer) / peer
        for key, row in models.items()
        if key and (peer := number_in(row, "log_loss"))
    }
    parts = []
    if gaps := [_gap(changes[key], MODELS[key]) for key in ("lightgbm", "frequency") if key in changes]:
        parts.append(", ".join(gaps))
    if "no_text" in changes:
        change = changes["no_text"]
        beside = _gap(change, "the same model without text")
        helps = change < 0 and not _is_level(change)
        parts.append(f"text helps: {beside}" if helps else f"text adds nothing ({beside})")
    return f"{text}: {'; '.join(parts)}" if parts else text


def _is_level(change: float) -> bool:
    """Whether a relative change is nothing at the digits that a title shows."""
    return percent(abs(change)) == percent(0.0)


def _gap(change: float, peer: str) -> str:
    if _is_level(change):
        return f"level with {peer}"
    return f"{percent(abs(change))} {'below' if change < 0 else 'above'} {peer}"


def fidelity_section(results: Results) -> Section | None:
    """The back-test: peers and bars, calibration, visits, and the responses to promotion and campaigns."""
    fidelity, backtest = part_of(results, "fidelity"), part_of(results, "backtest")
    models = _models(fidelity)
    if not models:
        return None
    split = text_in(fidelity, "split")
    compared = rows_in(backtest, "table")
    blocks = [
        _comparison_block(fidelity, models, split),
        *_bar_blocks(compared),
        *_calibration_blocks(fidelity),
        *_cell_blocks(rows_in(backtest, "cells"), compared),
        *_visit_blocks(part_of(backtest, "visit"), compared),
        *promotion_blocks(rows_in(backtest, "promotion")),
        *redemption_blocks(part_of(backtest, "redemption"), compared),
    ]
    lead = (
        f"Weeks {split} were not used to train or tune, though models were compared on them while this "
        "one was developed. Purchases are rare, so every score looks good by default: read each only against "
        "the baselines. Intervals resample households; the shocks that a week brings to all are not in them."
    )
    return Section("fidelity", "How well the model predicts", lead, blocks)


def _comparison_block(fidelity: Row, models: Mapping[str, Row], split: str) -> Block:
    panels = []
    for measure, better in (("log_loss", "lower is better"), ("auc", "higher is better")):
        marks = []
        for key, row in models.items():
            value = number_in(row, measure)
            colour, shape = (BLUE, "o") if key == "" else (GREY, "s")
            marks.append(Mark(MODELS[key], value, words=plain(value, 4), colour=colour, marker=shape))
        axis = f"{MEASURES[measure]} ({better})"
        panels.append(DotPanel(MEASURES[measure], axis, marks, tick=plain))
    finding = fidelity_finding(fidelity)
    note = "The axes do not start at zero. All models see the same rows."
    visit = part_of(fidelity, "visit")
    if visit:
        scores = (f"{MEASURES[key]} {plain(number_in(visit, key), 4)}" for key in ("auc", "log_loss"))
        note += f" Whether a user visits at all: {', '.join(scores)}."
    rows = [
        [MODELS[key], *(plain(number_in(row, measure), 4) for measure in MEASURES)]
        for key, row in models.items()
    ]
    columns = [Column("model", words=True), *(Column(title) for title in MEASURES.values())]
    caption = f"Predicting who buys which category, weeks {split}, {plain(number_in(fidelity, 'rows'))} rows"
    table = Table("fidelity", caption, columns, rows, strong=frozenset({0}))
    return [Plot(finding, dot_panels("fidelity", finding, panels), note), table]


# Bars ---------------------------------------------------------------------------------------------


def _bar_blocks(compared: Sequence[Row]) -> list[Block]:
    """Each measure beside its peer, with the interval of the difference and whether the bar is met."""
    if not compared:
        return []
    columns = [
        Column("measure", words=True),
        Column("model"),
        Column("peer", words=True),
        Column("peer's value"),
        Column("difference"),
        Column("95% interval"),
        Column("bar"),
        Column("met", words=True),
    ]
    return [[Table("backtest", _bar_caption(compared), columns, [_bar_cells(row) for row in compared])]]


def _bar_caption(compared: Sequence[Row]) -> str:
    asked = [row for row in compared if isinstance(row.get("met"), bool)]
    missed = [row for row in asked if not row["met"]]
    text = f"{len(asked) - len(missed)} of {several(len(asked), 'bar')} met. "
    if missed:
        text += f"Missed: {'; '.join(_missed(row) for row in missed)}. "
    return (
        f"{text}The interval is of the difference, from resampled households, the same for model and peer; "
        "where there is no peer, of the model's own value. A bar against a peer is met if the difference "
        "reaches it and the interval excludes 0; a response to promotion, if the interval includes 0."
    )


def _missed(row: Row) -> str:
    peer = text_in(row, "peer")
    return _measure(row) if peer == ABSENT else f"{_measure(row)} against {PEERS.get(peer, peer)}"


def _measure(row: Row) -> str:
    return re.sub(r"\bauc\b", "AUC", text_in(row, "measure").removesuffix(", relative"))


def _bar_cells(row: Row) -> list[str]:
    relative = text_in(row, "measure").endswith(", relative")
    against_peer = number_in(row, "difference") is not None

    def change(value: float | None) -> str:
        if relative:
            return percent(value, 2, sign=True)
        return plain(value, 4, sign=against_peer)

    low, high, peer = number_in(row, "ci_low"), number_in(row, "ci_high"), text_in(row, "peer")
    interval = ABSENT if low is None or high is None else f"{change(low)} to {change(high)}"
    met = row.get("met")
    return [
        _measure(row),
        plain(number_in(row, "value"), 4),
        PEERS.get(peer, peer),
        plain(number_in(row, "peer_value"), 4),
        change(number_in(row, "difference")),
        interval,
        _bar_words(row, relative=relative),
        ("yes" if met else "no") if isinstance(met, bool) else ABSENT,
    ]


def _bar_words(row: Row, *, relative: bool) -> str:
    bar, measure = number_in(row, "bar"), text_in(row, "measure")
    if bar is None:
        return ABSENT
    if "semi-elasticity" in measure:
        return "in the interval"
    lower = "log loss" in measure or "error" in measure
    if bar == 0:
        return "below 0" if lower else "above 0"
    return f"{'≤' if lower else '≥'} {percent(bar) if relative else short(bar)}"


def _bar_of(compared: Sequence[Row], start: str) -> float | None:
    """Return the bar of the first row whose measure starts so."""
    found = [number_in(row, "bar") for row in compared if text_in(row, "measure").startswith(start)]
    return found[0] if found else None


# Calibration --------------------------------------------------------------------------------------


def _calibration_blocks(fidelity: Row) -> list[Block]:
    found = [
        (number_in(row, "predicted"), number_in(row, "observed"), number_in(row, "rows"))
        for row in rows_in(fidelity, "calibration")
    ]
    bins = sorted((p, o, n) for p, o, n in found if p is not None and o is not None and n)
    if not bins:
        return []
    total = sum(n for _, _, n in bins)
    gap = sum(n * abs(p - o) for p, o, n in bins) / total
    predicted = sum(n * p for p, _, n in bins) / total
    observed = sum(n * o for _, o, n in bins) / total
    finding = (
        f"Predicted {percent(predicted, 2)}, bought {percent(observed, 2)}; the bins miss by "
        f"{percent(gap, 2)} on average"
    )
    worst = max(bins, key=lambda b: abs(b[0] - b[1]))
    note = (
        f"Average weighted by rows. Farthest off: the bin at {percent(worst[0])} predicted, where "
        f"{percent(worst[1])} bought."
    )
    columns = [Column(title) for title in ("predicted", "observed", "observed − predicted", "rows")]
    cells = [[percent(p, 2), percent(o, 2), percent(o - p, 2, sign=True), plain(n)] for p, o, n in bins]
    table = Table("calibration", "Calibration by bin", columns, cells)
    return [[Plot(finding, calibration("calibration", finding, bins), note), table]]


def _cell_blocks(cells: Sequence[Row], compared: Sequence[Row]) -> list[Block]:
    """Calibration error of each cell of depth, display and own rate, from the worst to the best."""
    known = [row for row in cells if number_in(row, "ece") is not None]
    if not known:
        return []
    known.sort(key=lambda row: -(number_in(row, "ece") or 0.0))
    bar = _bar_of(compared, "calibration error, worst")
    dots = [
        RankedDot(
            text_in(row, "cell") if place < _LABELLED_CELLS else "",
            number_in(row, "ece") or 0.0,
            number_in(row, "ece_by_chance"),
        )
        for place, row in enumerate(known)
    ]
    finding = _cell_finding(dots, bar)
    note = (
        "A cell is a band of shelf depth, one of display, and one of how often the user bought the category "
        "before; cells with too few rows are left out. Grey: what a perfectly calibrated model would show on "
        "average, from the noise of as many rows."
    )
    svg = ranked_dots(
        "cells",
        finding,
        dots,
        axis="calibration error (ECE) in the cell, percentage points of the purchase rate",
        expected_label="by chance alone",
        reference=bar,
        reference_label="" if bar is None else f"bar {percent(bar)}",
    )
    columns = [
        Column("cell", words=True),
        *(Column(title) for title in ("rows", "predicted", "observed", "ECE", "ECE by chance alone")),
    ]
    rows = [
        [
            text_in(row, "cell"),
            plain(number_in(row, "rows")),
            *(percent(number_in(row, key), 2) for key in ("predicted", "observed", "ece", "ece_by_chance")),
        ]
        for row in known
    ]
    caption = f"Calibration in {several(len(known), 'cell')}, worst first"
    return [[Plot(finding, svg, note)], [Table("cells", caption, columns, rows, folded=True)]]


def _cell_finding(dots: Sequence[RankedDot], bar: float | None) -> str:
    worst, count = dots[0], several(len(dots), "cell")
    text = f"Worst of {count}: calibration error {percent(worst.value, 2)}"
    if bar is not None:
        beyond = sum(dot.value > bar for dot in dots)
        misses = f"{beyond or 'None'} of {count} {'misses' if beyond < 2 else 'miss'}"
        text = f"{misses} by more than {percent(bar)}: the worst by {percent(worst.value, 2)}"
    if worst.expected is not None:
        text += f", where chance alone would give {percent(worst.expected, 2)}"
    return text


# Visits -------------------------------------------------------------------------------------------


def _visit_blocks(visit: Row, compared: Sequence[Row]) -> list[Block]:
    """Differences from the peers in predicting who visits, with their intervals, and all scores."""
    models = {key: row for key in VISIT_MODELS if (row := part_of(visit, key))}
    if not models:
        return []
    rows = [
        [PEERS[key], *(plain(number_in(row, measure), 4) for measure in ("auc", "log_loss"))]
        for key, row in models.items()
    ]
    columns = [Column("model", words=True), Column("AUC"), Column("log loss")]
    strong = frozenset({0}) if "model" in models else frozenset()
    table = Table("visit", "Predicting who visits in the week", columns, rows, strong=strong)
    panels, auc = [], []
    for measure, better in (("auc", "above 0: better than the peer"), ("log loss", "below 0: better")):
        marks = []
        for row in compared:
            difference, peer = number_in(row, "difference"), text_in(row, "peer")
            if text_in(row, "measure") != f"visit: {measure}" or difference is None:
                continue
            name, low, high = PEERS.get(peer, peer), number_in(row, "ci_low"), number_in(row, "ci_high")
            marks.append(Mark(name, difference, low, high, plain(difference, 4, sign=True)))
            if measure == "auc":
                auc.append(f"{plain(difference, 3, sign=True)} against {name}{_verdict(low, high)}")
        if marks:
            title = "AUC" if measure == "auc" else measure
            panels.append(DotPanel(title, f"{title}, model − peer ({better})", marks, reference=0.0))
    if not panels:
        return [[table]]
    value = plain(number_in(part_of(visit, "model"), "auc"), 3)
    finding = f"Visits: AUC {value}, {listed(auc)}" if auc else "Visits: the model against its peers"
    note = "95% intervals of the differences, from resampled households."
    return [[Plot(finding, dot_panels("visit", finding, panels), note), table]]


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" (interval {'includes' if low <= 0 <= high else 'excludes'} 0)"
