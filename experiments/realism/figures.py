"""Drawings of real beside simulated weeks, as SVG files that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

from experiments.realism.bands import category_counts, prediction_band
from experiments.realism.distributions import DISTRIBUTIONS, ks_complement
from experiments.realism.lifts import Pairs, pair_lifts
from experiments.realism.replay import ShoppingWeeks
from experiments.report.canvas import BLUE, FULL, GREY, INK, VERMILION, drawing, new_figure, to_svg

_AXES = {
    "visits per household": "weeks with a visit",
    "categories per visit": "categories",
    "spend per visit": "spend, currency (log scale)",
    "weeks between visits": "weeks (log scale)",
}
_MOST_LINES = 5


def save_figures(
    folder: Path,
    real: ShoppingWeeks,
    simulated: Sequence[ShoppingWeeks],
    pairs: Pairs,
    first_week: int,
) -> list[Path]:
    """Draw everything into a folder, which is created.

    Args:
        folder: where to.
        real: the weeks as they were.
        simulated: the same, simulated.
        pairs: of categories whose lifts are drawn.
        first_week: number of the first week, 1-based.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "distributions.svg": _distributions(real, simulated),
        "lifts.svg": _lifts(real, simulated, pairs),
        "bands.svg": _bands(real, simulated, first_week),
    }
    for name, svg in drawings.items():
        (folder / name).write_text(str(svg), encoding="utf-8")
    return [folder / name for name in drawings]


def _distributions(real: ShoppingWeeks, simulated: Sequence[ShoppingWeeks]) -> Markup:
    with drawing():
        figure = new_figure(FULL, 6.0)
        for axes, (name, label) in zip(figure.subplots(2, 2).flat, _AXES.items(), strict=True):
            samples = DISTRIBUTIONS[name]
            truth = samples(real)
            for each in simulated[:_MOST_LINES]:
                _steps(axes, samples(each), VERMILION, 0.8, "simulated")
            _steps(axes, truth, INK, 1.6, "real")
            gap = 1.0 - np.mean([ks_complement(truth, samples(each)) for each in simulated])
            axes.set_title(f"{name.capitalize()}: distributions at most {gap:.3f} apart")
            axes.set_xlabel(label)
            axes.set_ylabel("share up to here")
            if "log" in label:
                axes.set_xscale("log")
                _in_plain_numbers(axes.xaxis)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        found = dict(zip(labels, handles, strict=True))
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=2)
        return to_svg(figure, "realism-distributions", "Cumulative distributions, real and simulated")


def _in_plain_numbers(axis: Axis) -> None:
    """Label a log scale 1, 10, 100 rather than by powers."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _steps(axes: Axes, sample: npt.NDArray[np.float64], colour: str, width: float, label: str) -> None:
    values, counts = np.unique(sample[sample > 0] if label else sample, return_counts=True)
    share = 1.0 - (counts.sum() - np.cumsum(counts)) / len(sample)
    axes.step(values, share, where="post", color=colour, linewidth=width, label=label)


def _lifts(real: ShoppingWeeks, simulated: Sequence[ShoppingWeeks], pairs: Pairs) -> Markup:
    truth = pair_lifts(real.baskets, pairs)
    draws = np.stack([pair_lifts(each.baskets, pairs) for each in simulated])
    mean = draws.mean(axis=0)
    with drawing():
        figure = new_figure(6.0, 5.2)
        axes = figure.subplots()
        # A pair that was never bought together has lift 0, which no log scale shows.
        ends = [max(0.8 * min(truth.min(), mean.min()), 0.5), 1.2 * max(truth.max(), mean.max())]
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
        axes.scatter(truth, mean, s=12, color=BLUE, alpha=0.6, linewidths=0)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        for axis in (axes.xaxis, axes.yaxis):
            _in_plain_numbers(axis)
            axis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50]))
        axes.set_xlabel("real lift, log scale")
        axes.set_ylabel("simulated lift, mean over seeds, log scale")
        share = float(np.corrcoef(np.log(np.maximum(truth, 0.1)), np.log(np.maximum(mean, 0.1)))[0, 1])
        axes.set_title(f"Lifts of {len(truth)} pairs: mean {truth.mean():.2f}, simulated {mean.mean():.2f}")
        axes.annotate(f"correlation of logs {share:.2f}", (0.03, 0.95), xycoords="axes fraction")
        return to_svg(figure, "realism-lifts", "Pair lifts within baskets, real against simulated")


def _bands(real: ShoppingWeeks, simulated: Sequence[ShoppingWeeks], first_week: int) -> Markup:
    counts = np.stack([category_counts(each) for each in simulated])
    low, high = prediction_band(counts)
    count, centre = category_counts(real), np.median(counts, axis=0)
    with drawing():
        figure = new_figure(FULL, 3.2)
        for week, axes in enumerate(np.atleast_1d(figure.subplots(1, len(count), sharey=True))):
            order = np.argsort(centre[week])
            place, scale = np.arange(len(order)), np.maximum(centre[week][order], 1.0)
            axes.fill_between(
                place, low[week][order] / scale, high[week][order] / scale, color=GREY, alpha=0.3, linewidth=0
            )
            ratio = count[week][order] / scale
            inside = (count[week] >= low[week])[order] & (count[week] <= high[week])[order]
            axes.scatter(place[inside], ratio[inside], s=8, color=BLUE, linewidths=0, label="inside")
            axes.scatter(
                place[~inside],
                ratio[~inside],
                s=16,
                color=VERMILION,
                marker="x",
                linewidths=1,
                label="outside",
            )
            axes.set(yscale="log", ylim=(0.3, 3.3))
            axes.set_yticks([0.5, 1.0, 2.0], ["0.5", "1", "2"])
            axes.set_yticks([], minor=True)
            axes.set_title(f"Week {first_week + week}: {inside.mean():.0%} in the band")
            axes.set_xlabel("categories, rare to frequent")
        figure.axes[0].set_ylabel("purchases / simulated median")
        return to_svg(figure, "realism-bands", "Category-week counts against 90% bands of the simulations")
