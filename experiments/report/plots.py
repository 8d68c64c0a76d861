"""The kinds of plot in a report. They draw what they are given; findings are computed elsewhere."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, Formatter, MaxNLocator, NullLocator

from experiments.report.canvas import (
    AREA_COLOURS,
    BLUE,
    FULL,
    GREY,
    HALF,
    INK,
    PALE,
    drawing,
    new_figure,
    to_svg,
    trimmed,
)
from experiments.report.wording import duration, percent, plain, short

Tick = Callable[[float, int], str]
"""Writes a value at an axis, given the decimals that tell the ticks apart."""


@dataclass(frozen=True)
class Mark:
    """One estimate: a point, its interval if any, a wider range behind it, and the words to its right."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    words: str = ""
    colour: str = BLUE
    marker: str = "o"
    filled: bool = True
    outer: tuple[float, float] | None = None


@dataclass(frozen=True)
class DotPanel:
    """Estimates on one axis.

    Attributes:
        title: what is special about this panel.
        axis: quantity and unit.
        marks: from top to bottom.
        reference: value at which a line is drawn.
        reference_label: what that value is.
        limits: of the axis; what lies beyond is shown as an arrow at the edge.
        tick: writes a value at the axis.
    """

    title: str
    axis: str
    marks: Sequence[Mark]
    reference: float | None = None
    reference_label: str = ""
    limits: tuple[float, float] | None = None
    tick: Tick = plain


@dataclass(frozen=True)
class Line:
    """A curve; gaps are None."""

    label: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    colour: str = BLUE
    marker: str = ""
    dashed: bool = False
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True)
class LinePanel:
    """Curves on common axes.

    Attributes:
        title: what is special about this panel.
        x_axis: quantity and unit.
        y_axis: quantity and unit.
        lines: curves.
        x_tick: writes a value at the axis.
        y_tick: writes a value at the axis.
        whole_x: ticks at whole numbers only.
        from_zero: the upright axis starts at 0.
        log_x: where the ticks of a logarithmic x axis stand; empty for a linear axis.
        log_y: the upright axis is logarithmic; all values are positive.
        references: heights at which a line is drawn, and what they are.
    """

    title: str
    x_axis: str
    y_axis: str
    lines: Sequence[Line]
    x_tick: Tick = plain
    y_tick: Tick = plain
    whole_x: bool = False
    from_zero: bool = False
    log_x: Sequence[float] = ()
    log_y: bool = False
    references: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class DotSeries:
    """One policy's values in the order of a panel's groups; hollow where they rest on little."""

    label: str
    values: Sequence[float | None]
    colour: str = BLUE
    marker: str = "o"
    hollow: Sequence[bool] = ()


@dataclass(frozen=True)
class GroupPanel:
    """Values of groups, several series beside each other.

    Attributes:
        title: how users are divided.
        axis: quantity and unit.
        groups: from top to bottom.
        series: each with a value for every group.
        reference: value at which a line is drawn.
        reference_label: what that value is.
        tick: writes a value at the axis.
    """

    title: str
    axis: str
    groups: Sequence[str]
    series: Sequence[DotSeries]
    reference: float | None = None
    reference_label: str = ""
    tick: Tick = plain


@dataclass(frozen=True)
class RankedDot:
    """A value, what chance alone would give in its place, and words beside it; no words, no label."""

    label: str
    value: float
    expected: float | None = None


def dot_panels(name: str, label: str, panels: Sequence[DotPanel], columns: int = 1) -> Markup:
    """Draw points with intervals, one panel beside or below another."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    heights = [
        0.95 + 0.27 * max(len(p.marks) for p in panels[r * columns : (r + 1) * columns]) for r in range(rows)
    ]
    with drawing():
        figure = new_figure(FULL if columns > 1 else HALF, sum(heights))
        grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            left = panels[place - 1] if place % columns else None
            _draw_dots(
                axes, panels[place], repeats=left is not None and _labels(left) == _labels(panels[place])
            )
        return to_svg(figure, name, label)


def _labels(panel: DotPanel) -> list[str]:
    return [mark.label for mark in panel.marks]


def _draw_dots(axes: Axes, panel: DotPanel, *, repeats: bool) -> None:
    low, high = panel.limits or (-math.inf, math.inf)
    for y, mark in enumerate(panel.marks):
        if mark.outer is not None:
            ends = max(mark.outer[0], low), min(mark.outer[1], high)
            if ends[0] < ends[1]:
                axes.plot(ends, (y, y), color=GREY, linewidth=0.8, solid_capstyle="butt", zorder=1.5)
        if mark.low is not None and mark.high is not None:
            ends = max(mark.low, low), min(mark.high, high)
            if ends[0] < ends[1]:
                axes.plot(ends, (y, y), color=mark.colour, linewidth=1.8, solid_capstyle="butt")
        beyond = [v for v in (mark.low, mark.value, mark.high) if v is not None]
        for edge, arrow, cut in (
            (low, "<", any(v < low for v in beyond)),
            (high, ">", any(v > high for v in beyond)),
        ):
            if cut:
                axes.plot(edge, y, arrow, color=mark.colour, markersize=5, clip_on=False)
        if mark.value is not None and low <= mark.value <= high:
            face = mark.colour if mark.filled else "white"
            axes.plot(
                mark.value, y, mark.marker, color=mark.colour, markerfacecolor=face, markersize=6.5, zorder=3
            )
        axes.annotate(
            mark.words,
            (1, y),
            (6, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
        )
    if panel.reference is not None:
        axes.axvline(panel.reference, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        if panel.reference_label:
            # Beneath the title and above the first row, so that it covers no mark.
            axes.annotate(
                panel.reference_label,
                (panel.reference, -0.8),
                va="center",
                ha="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )
    axes.set_ylim(len(panel.marks) - 0.5, -1.1 if panel.reference_label else -0.6)
    if panel.limits:
        axes.set_xlim(low, high)
    else:
        axes.margins(x=0.08)
    axes.set_yticks(range(len(panel.marks)), ["" if repeats else trimmed(mark.label) for mark in panel.marks])
    axes.tick_params(axis="y", length=0, pad=9)
    axes.grid(axis="y", linestyle=":")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_Ticks(panel.tick))
    axes.set_xlabel(_folded(panel.axis, axes, across=True))
    axes.set_title(panel.title)


def line_panels(
    name: str, label: str, panels: Sequence[LinePanel], columns: int = 1, height: float = 2.7
) -> Markup:
    """Draw curves; one legend serves all panels and stands below them."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    with drawing():
        figure = new_figure(FULL if columns > 2 else HALF, rows * height + 0.3)
        for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            if place < len(panels):
                _draw_lines(axes, panels[place])
            else:
                axes.set_visible(False)
        _legend(figure)
        return to_svg(figure, name, label)


def _draw_lines(axes: Axes, panel: LinePanel) -> None:
    for line in panel.lines:
        x, y = _gaps(line.x), _gaps(line.y)
        if line.low and line.high:
            axes.vlines(x, _gaps(line.low), _gaps(line.high), color=line.colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            x,
            y,
            color=line.colour,
            linestyle=(0, (4, 2)) if line.dashed else "-",
            marker=line.marker,
            markersize=5,
            linewidth=1.6,
            label=trimmed(line.label, 40),
        )
    axes.margins(0.06)
    if panel.log_x:
        axes.set_xscale("log")
        axes.set_xlim(min(panel.log_x) / 1.25, max(panel.log_x) * 1.25)  # the same for panels with gaps
        axes.xaxis.set_major_locator(FixedLocator(_spread(panel.log_x)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=panel.whole_x))
    heights = [height for height, _ in panel.references]
    known = [y for line in panel.lines for y in line.y if y is not None] + heights
    if panel.log_y and known:
        ends = min(known) / 1.3, max(known) * 1.3
        axes.set_yscale("log")
        axes.set_ylim(*ends)
        axes.yaxis.set_major_locator(FixedLocator(_round_steps(*ends)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        if panel.from_zero:
            axes.set_ylim(
                bottom=0, top=1.15 * max(heights) if heights and max(heights) >= 0.99 * max(known) else None
            )
        axes.yaxis.set_major_locator(MaxNLocator(5))
    for height, words in panel.references:
        axes.axhline(height, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            words,
            (0.01, height),
            (0, 1.5),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="bottom",
            fontsize=7.5,
        )
    axes.xaxis.set_major_formatter(_Ticks(panel.x_tick))
    axes.yaxis.set_major_formatter(_Ticks(panel.y_tick))
    axes.set_xlabel(_folded(panel.x_axis, axes, across=True))
    axes.set_ylabel(_folded(panel.y_axis, axes, across=False))
    axes.set_title(panel.title)


def _spread(ticks: Sequence[float]) -> list[float]:
    """Drop ticks of a logarithmic axis that would run into the one before; seven or so remain."""
    kept: list[float] = []
    least = (max(ticks) / min(ticks)) ** 0.13
    for tick in sorted(ticks):
        if not kept or tick / kept[-1] >= least:
            kept.append(tick)
    return kept


def _round_steps(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: 1, 2 and 5 of each power of ten, fewer where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    leads = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [m * 10.0**e for e in powers for m in leads if low <= m * 10.0**e <= high]


def _folded(text: str, axes: Axes, *, across: bool) -> str:
    """Break an axis label that would run into the next panel's."""
    spec = axes.get_subplotspec()
    assert spec is not None
    rows, columns = spec.get_gridspec().get_geometry()
    width, height = axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    return textwrap.fill(text, max(16, int(12 * (width / columns if across else height / rows))))


def group_dots(name: str, label: str, panels: Sequence[GroupPanel], columns: int = 1) -> Markup:
    """Draw for each group of users the values of several series, beside each other on one line."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    heights = [
        0.95 + 0.25 * max(len(p.groups) for p in panels[r * columns : (r + 1) * columns]) for r in range(rows)
    ]
    with drawing():
        figure = new_figure(FULL if columns > 1 else HALF, sum(heights) + 0.3)
        grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            left = panels[place - 1] if place % columns else None
            _draw_groups(
                axes, panels[place], repeats=left is not None and left.groups == panels[place].groups
            )
        _legend(figure)
        return to_svg(figure, name, label)


def _draw_groups(axes: Axes, panel: GroupPanel, *, repeats: bool) -> None:
    for y, across in enumerate(zip(*(series.values for series in panel.series), strict=True)):
        known = [value for value in across if value is not None]
        if len(known) > 1:
            axes.plot((min(known), max(known)), (y, y), color=PALE, linewidth=2.5, zorder=1)
    for place, series in enumerate(panel.series):
        # A little above and below the line, so that equal values do not hide each other.
        offset = 0.16 * (place - (len(panel.series) - 1) / 2)
        look = {"marker": series.marker, "markersize": 6.5, "linestyle": "none", "color": series.colour}
        axes.plot([], [], label=trimmed(series.label), **look)  # type: ignore[arg-type]
        for y, value in enumerate(series.values):
            if value is not None:
                hollow = bool(series.hollow) and series.hollow[y]
                face = "white" if hollow else series.colour
                axes.plot(value, y + offset, markerfacecolor=face, zorder=3, **look)  # type: ignore[arg-type]
    if panel.reference is not None:
        axes.axvline(panel.reference, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.annotate(
            panel.reference_label,
            (panel.reference, -0.75),
            va="center",
            ha="center",
            fontsize=8,
            bbox=box,
        )
    axes.set_ylim(len(panel.groups) - 0.5, -1.1 if panel.reference_label else -0.6)
    values = [value for series in panel.series for value in series.values if value is not None]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    room = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - (room if low < 0 else 0.0), high + room)
    axes.set_yticks(range(len(panel.groups)), ["" if repeats else trimmed(group) for group in panel.groups])
    axes.tick_params(axis="y", length=0, pad=9)
    axes.grid(axis="y", linestyle=":")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_Ticks(panel.tick))
    axes.set_xlabel(_folded(panel.axis, axes, across=True))
    axes.set_title(panel.title)


def _legend(figure: Figure) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    if len(handles) > 1:
        longest = max(len(text) for text in handles)
        across = max(1, int(figure.get_figwidth() * 11 / (longest + 6)))
        figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(handles) / across))
        figure.legend(
            handles=list(handles.values()),
            labels=list(handles),
            loc="outside lower center",
            ncols=min(across, len(handles)),
        )


def share_bars(
    name: str, label: str, shares: Mapping[str, Mapping[str, float]], offers: Sequence[str], nothing: set[str]
) -> Markup:
    """Draw for each policy how its decisions divide among offers.

    Args:
        name: of the drawing.
        label: what it shows.
        shares: of each offer, by policy.
        offers: in the order of the bars.
        nothing: offers that send nothing, drawn pale.
    """
    with drawing():
        figure = new_figure(FULL, 1.5 + 0.36 * len(shares) + 0.2 * math.ceil(len(offers) / 5))
        axes = figure.subplots()
        start = np.zeros(len(shares))
        handles = []
        sent = [offer for offer in offers if offer not in nothing]
        for offer in offers:
            place = sent.index(offer) if offer in sent else 0
            colour = AREA_COLOURS[place % len(AREA_COLOURS)] if offer in sent else PALE
            hatch = ("", "///", "...", "xxx")[place // len(AREA_COLOURS) % 4]
            width = np.array([policy.get(offer, 0.0) for policy in shares.values()])
            style = {"facecolor": colour, "edgecolor": "white", "hatch": hatch, "linewidth": 0.6}
            axes.barh(range(len(shares)), width, left=start, height=0.74, **style)  # type: ignore[arg-type]
            handles.append(Patch(label=trimmed(offer), **style))  # type: ignore[arg-type]
            for y, (x, w) in enumerate(zip(start, width, strict=True)):
                if w >= 0.045:
                    dark = colour == BLUE
                    box = {"facecolor": colour, "edgecolor": "none", "pad": 1.0} if hatch else None
                    ink = "white" if dark else INK
                    axes.text(
                        x + w / 2, y, percent(w, 0), ha="center", va="center", color=ink, fontsize=8, bbox=box
                    )
            start = start + width
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.set_xlim(0, max(1.0, float(start.max(initial=0.0))))
        axes.set_yticks(range(len(shares)), [trimmed(policy) for policy in shares])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(_Ticks(share_tick))
        axes.set_xlabel("share of user-weeks")
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
        return to_svg(figure, name, label)


def calibration(name: str, label: str, bins: Sequence[tuple[float, float, float]]) -> Markup:
    """Draw predicted against observed rates, and how many rows each bin holds.

    Args:
        name: of the drawing.
        label: what it shows.
        bins: predicted rate, observed rate, rows; predicted increases.
    """
    predicted, observed, rows = (np.array(column, dtype=float) for column in zip(*bins, strict=True))
    rates = np.concatenate([predicted, observed])
    logarithmic = bool((rates > 0).all()) and rates.max() / rates.min() > 20
    with drawing():
        figure = new_figure(HALF, 5.0)
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        if logarithmic:
            ends = rates.min() / 1.3, rates.max() * 1.3
            steps = [m * 10.0**e for e in range(-6, 1) for m in (1, 2, 5)]
            ticks = [s for s in steps if ends[0] <= s <= ends[1]]
            upper.set_xscale("log")
            upper.set_yscale("log")
            for axis in (upper.xaxis, upper.yaxis):
                axis.set_major_locator(FixedLocator(ticks))
                axis.set_minor_locator(NullLocator())
            half = 1.12
            widths = predicted * (half - 1 / half)
            left = predicted / half
        else:
            ends = 0.0, float(rates.max() * 1.06) or 1.0
            gap = np.diff(predicted).min() if len(predicted) > 1 else ends[1]
            widths = np.full(len(predicted), 0.7 * max(gap, ends[1] / 200))
            left = predicted - widths / 2
        for axis in (upper.xaxis, upper.yaxis):
            axis.set_major_formatter(_Ticks(lambda rate, _: f"{100 * rate:g}%"))
        upper.plot(
            ends, ends, color=GREY, linestyle=(0, (4, 2)), linewidth=1, label="perfect: observed = predicted"
        )
        upper.plot(
            predicted, observed, "o-", color=BLUE, markersize=5.5, linewidth=1.2, label="model, per bin"
        )
        upper.set_xlim(*ends)
        upper.set_ylim(*ends)
        upper.set_ylabel("observed purchase rate")
        upper.legend(loc="upper left")
        lower.bar(left, rows, width=widths, align="edge", color=BLUE, alpha=0.55)
        lower.yaxis.set_major_locator(MaxNLocator(3))
        lower.yaxis.set_major_formatter(_Ticks(compact))
        lower.set_ylabel("rows in bin")
        lower.set_xlabel("predicted purchase rate" + (" (both axes logarithmic)" if logarithmic else ""))
        return to_svg(figure, name, label)


def ranked_dots(
    name: str,
    label: str,
    dots: Sequence[RankedDot],
    *,
    axis: str,
    expected_label: str,
    reference: float | None = None,
    reference_label: str = "",
) -> Markup:
    """Draw many shares from the largest down, each beside what chance would give; label those with words.

    Args:
        name: of the drawing.
        label: what it shows.
        dots: from top to bottom.
        axis: quantity and unit.
        expected_label: what the grey marks are.
        reference: value at which a line is drawn.
        reference_label: what that value is.
    """
    with drawing():
        figure = new_figure(FULL, 1.2 + 0.17 * max(len(dots), 4))
        axes = figure.subplots()
        largest = max([dot.value for dot in dots] + [reference or 0.0]) or 1.0
        for y, dot in enumerate(dots):
            if dot.expected is not None:
                axes.plot((dot.expected, dot.value), (y, y), color=PALE, linewidth=1.2, zorder=1)
            if dot.label:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                words = f"{percent(dot.value, 2)}: {dot.label}"
                place = (dot.value, y)
                axes.annotate(words, place, (8, 0), textcoords="offset points", va="center", bbox=box)
        known = [(dot.expected, y) for y, dot in enumerate(dots) if dot.expected is not None]
        axes.plot([dot.value for dot in dots], range(len(dots)), "o", color=BLUE, markersize=6, label="model")
        if known:
            axes.plot(*zip(*known, strict=True), "|", color=GREY, markersize=8, label=expected_label)
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            axes.annotate(reference_label, (reference, -1.2), ha="center", va="center", fontsize=8, bbox=box)
        axes.set_xlim(0, 1.75 * largest)  # room for the words
        axes.set_ylim(max(len(dots), 4) - 0.4, -1.8)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(_Ticks(share_tick))
        axes.set_ylabel("cells, worst first")
        axes.set_xlabel(axis)
        axes.legend(loc="lower right")
        return to_svg(figure, name, label)


def time_bars(name: str, label: str, seconds: Mapping[str, float]) -> Markup:
    """Draw how long each stage took."""
    with drawing():
        figure = new_figure(HALF, 0.75 + 0.28 * len(seconds))
        axes = figure.subplots()
        scale, unit = (60.0, "minutes") if max(seconds.values()) >= 120 else (1.0, "seconds")
        longest = max(seconds.values()) / scale
        for y, value in enumerate(seconds.values()):
            axes.barh(y, value / scale, height=0.65, color=BLUE)
            axes.text(value / scale + 0.01 * longest, y, duration(value), va="center")
        axes.set_ylim(len(seconds) - 0.5, -0.5)
        axes.set_xlim(0, (longest or 1.0) * 1.2)
        axes.set_yticks(range(len(seconds)), [trimmed(stage) for stage in seconds])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"working time, {unit}")
        return to_svg(figure, name, label)


def share_tick(value: float, digits: int) -> str:
    """Write a fraction as a percentage at an axis."""
    return percent(value, max(0, digits - 2))


def short_tick(value: float, _: int) -> str:
    """Write a value at a logarithmic axis, whose ticks need not have equally many decimals."""
    return short(value)


def compact(value: float, digits: int = 0) -> str:
    """Write a large number in thousands or millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


class _Ticks(Formatter):
    """Writes all ticks of an axis with equally many decimals."""

    def __init__(self, tick: Tick) -> None:
        self.tick, self.digits = tick, 0

    def set_locs(self, locs: Any) -> None:
        super().set_locs(locs)
        decimals = [f"{float(value):.8f}".rstrip("0").partition(".")[2] for value in locs]
        self.digits = max((len(text) for text in decimals), default=0)

    def __call__(self, value: float, pos: int | None = None) -> str:
        return self.tick(float(value), self.digits)


def _gaps(values: Sequence[float | None]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
