"""SVG from matplotlib, the same bytes every time, fit to stand inside a page beside other drawings."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.text import Text

INK, PALE, GRID, GREY = "#1a1a1a", "#d9d9d9", "#e6e6e6", "#767676"
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe & Ito (2008), in the order of use; yellow is kept for areas, too pale for lines."""
AREA_COLOURS = (BLUE, ORANGE, GREEN, SKY, PURPLE, YELLOW, VERMILION)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

HALF, FULL = 6.0, 11.6
"""Widths in inches of a drawing that shares the page with another, and of one that does not."""

_FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine measures text alike
_SETTINGS = {
    "svg.hashsalt": "couponlab",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name may hold dollar signs
    "font.family": _FONT,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our settings alone, whatever the user's matplotlibrc says; restore his afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)  # type: ignore[arg-type]
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def trimmed(text: str, length: int = 30) -> str:
    """Return a label on one line that leaves room for the plot; the table beside it has the full name."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """Return a figure as an ``<svg>`` element. Call within `drawing`.

    Args:
        figure: drawn; not used afterwards.
        name: unique in the page: it keeps this drawing's ids apart from others'.
        label: what it shows, for those who cannot see it.
    """
    # Text is drawn as outlines, which look alike everywhere; where our font lacks a letter (a Chinese
    # offer name), as text, so that the reader's own fonts can show it.
    letters = {ord(c) for text in figure.findobj(Text) for c in text.get_text()}  # type: ignore[attr-defined]
    if letters - {10} - set(get_font(findfont(_FONT)).get_charmap()):
        mpl.rcParams["svg.fonttype"] = "none"
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    opening = svg[: svg.index(">")]
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None
    # A narrow drawing that has the page's width for itself would have letters twice the size of the text.
    room = f"max-width: {1.1 * figure.get_figwidth():.1f}in"
    head = (
        f'<svg {view[0]} role="img" aria-label="{escape(label)}" style="{room}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    )
    return Markup(head + svg[len(opening) :])  # matplotlib and `escape` have escaped all foreign text
