"""Figures of merges: mean accuracies beside their levels, and accuracy by an update's size."""

from collections.abc import Mapping
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tipmini_lab.book.figures import DASHED, GREY, WIDTH, Line, styled, styles_of
from tipmini_lab.results.statistics import MISSING, Interval

LINES = (DASHED, ":", "-.")  # of levels
LETTERS = 27  # of a name in a line


@styled
def means(methods: Mapping[str, Interval | None], levels: Mapping[str, float]) -> Figure:
    """A dot with its 95% interval a method, in the given order; levels are named lines.

    levels: accuracies that every method is seen beside, e.g. {"Guessing": 0.35, "Base": 0.4}.
    """
    figure = Figure((WIDTH, 1.1 + 0.31 * len(methods)), layout="constrained")
    axes = figure.subplots()
    for y, (found, style) in enumerate(zip(methods.values(), styles_of(methods), strict=True)):
        colour = style[0]
        if found is None:
            across = axes.get_yaxis_transform()
            axes.text(0.04, -y, MISSING, transform=across, va="center", style="italic")
            continue
        axes.plot((found.low, found.high), (-y, -y), color=colour)
        axes.plot(found.value, -y, "o", color=colour, markersize=5)
    _mark(axes, levels)
    axes.set_yticks(-np.arange(len(methods)), [fill(name, LETTERS) for name in methods])
    axes.set(ylim=(0.5 - len(methods), 0.7), xlabel="mean accuracy of the tasks")
    return figure


def _mark(axes: Axes, levels: Mapping[str, float]) -> None:
    """Vertical lines, their names above the axes."""
    above = axes.get_xaxis_transform()
    for (name, value), line in zip(levels.items(), LINES, strict=False):
        axes.axvline(value, color=GREY, linewidth=0.9, linestyle=line)
        axes.text(value, 1, name, transform=above, ha="center", va="bottom", fontsize=9)


@styled
def by_size(series: Mapping[str, Line], levels: Mapping[str, float]) -> Figure:
    """Mean accuracy against the size of a merged update, in norms of a single adapter's.

    Bars are 95% intervals; levels: accuracies that don't depend on it.
    """
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, (sizes, found)), style in zip(series.items(), styles_of(series), strict=True):
        colour, line, marker = style
        value, low, high = np.array(found, dtype=float).T
        axes.errorbar(
            *(sizes, value, (value - low, high - value)),
            **{"fmt": marker, "linestyle": line, "color": colour, "label": name},
            **{"elinewidth": 0.7, "markersize": 4.5},
        )
    for (name, value), line in zip(levels.items(), LINES, strict=False):
        axes.axhline(value, color=GREY, linewidth=0.9, linestyle=line, label=name)
    axes.axvline(1, color=GREY, linewidth=0.9, alpha=0.5)
    axes.set_xscale("log")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel="size of the merged update\n(1: the mean norm of one adapter's)",
        ylabel="mean accuracy of the tasks",
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
