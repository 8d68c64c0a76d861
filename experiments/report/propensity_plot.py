"""How the estimated propensities of two groups overlap: a panel per type of campaign, groups back to back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.report.canvas import BLUE, FULL, GREY, HALF, INK, ORANGE, drawing, new_figure, to_svg
from experiments.report.wording import percent

MOST_COLUMNS = 3
"""Panels beside each other; with more of them none could be read."""


@dataclass(frozen=True)
class OverlapPanel:
    """Propensities of those who were sent something, and of those who were not.

    Attributes:
        title: what is special about this panel.
        edges: of B bins, B + 1 values from 0 to 1.
        sent: [B] share of those who were sent it.
        not_sent: [B] share of those who were not.
        limits: range outside which there is hardly any overlap.
    """

    title: str
    edges: Sequence[float]
    sent: Sequence[float]
    not_sent: Sequence[float]
    limits: tuple[float, float]


def overlap_panels(name: str, label: str, panels: Sequence[OverlapPanel]) -> Markup:
    """Draw the shares of those sent upwards and of the others downwards, on one scale.

    Args:
        name: of the drawing.
        label: what it shows.
        panels: from left to right, then below.
    """
    highest = max((share for panel in panels for share in (*panel.sent, *panel.not_sent)), default=1.0)
    columns = min(len(panels), MOST_COLUMNS)
    rows = math.ceil(len(panels) / columns)
    with drawing():
        figure = new_figure(FULL if columns > 1 else HALF, 2.8 * rows + 0.4)
        for place, axes in enumerate(figure.subplots(rows, columns, sharey=True, squeeze=False).flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            _draw(axes, panels[place], highest)
            if place % columns == 0:
                axes.set_ylabel("share of the group")
        figure.legend(
            handles=[
                Patch(facecolor=BLUE, label="sent the campaign (upwards)"),
                Patch(facecolor=ORANGE, hatch="///", edgecolor="white", label="not sent it (downwards)"),
            ],
            loc="outside lower center",
            ncols=2,
        )
        return to_svg(figure, name, label)


def _draw(axes: Axes, panel: OverlapPanel, highest: float) -> None:
    edges = np.asarray(panel.edges)
    width = np.diff(edges)
    axes.bar(edges[:-1], panel.sent, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.4)
    axes.bar(
        edges[:-1],
        [-share for share in panel.not_sent],
        width,
        align="edge",
        color=ORANGE,
        edgecolor="white",
        linewidth=0.4,
        hatch="///",
    )
    axes.axhline(0, color=INK, linewidth=0.9)
    for limit in panel.limits:
        axes.axvline(limit, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xlim(0, 1)
    axes.set_ylim(-1.08 * highest, 1.08 * highest)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(abs(share), 0)))
    axes.set_xlabel("estimated propensity of being sent it")
    axes.set_title(panel.title)
