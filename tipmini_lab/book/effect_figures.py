"""Figures over many variants: effects in one forest plot, methods by accuracy, sweeps with bands.

Numbers come as (value, low, high) of a 95% interval. Style and colours are those of `figures`.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill, wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import blended_transform_factory

from tipmini_lab.book.figures import BLUE, GREY, ORANGE, SERIES, WIDTH, _panels, styled
from tipmini_lab.results.statistics import MISSING, Bounds

Line = tuple[Sequence[float], Sequence[Bounds]]  # x, and y with its band

ROW = 0.19  # inches of a line of text
LABELS, LETTERS = 0.5, 29  # labels get this share of the width, and these letters a line
ACROSS = 52  # letters of a heading, which has the whole width
DASHED = (0, (5, 4))
STYLES = (*SERIES, (GREY, "--", "v"), (GREY, ":", "P"))


@styled
def effects(groups: Mapping[str, Mapping[str, Bounds | None]], xlabel: str) -> Figure:
    """A forest plot: {point: {reading: (difference, low, high)}}, a heading a point, 0 marked.

    Where the interval is on one side of 0 the point is a filled triangle towards that side, else an
    open circle. None: not measured yet, and written so.
    """
    placed, lines = _places(groups)
    height = 0.85 + ROW * lines
    figure = Figure((WIDTH, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=LABELS, right=0.98, top=1 - 0.05 / height, bottom=0.7 / height)
    for title, readings in groups.items():
        _label(axes, placed[title, None], fill(title, ACROSS), fontweight="bold")
        ys = [placed[title, reading] for reading in readings]
        axes.plot((0, 0), (ys[0] + 0.6, ys[-1] - 0.6), color=GREY, linewidth=0.9)
        for y, (reading, bounds) in zip(ys, readings.items(), strict=True):
            _label(axes, y, fill(reading, LETTERS), indent=0.03)
            _effect(axes, y, bounds)
    axes.set(ylim=(0.2 - lines, 0.8), xlabel=fill(xlabel, LETTERS), yticks=[])
    axes.spines["left"].set_visible(False)
    return figure


def _places(groups: Mapping[str, Mapping]) -> tuple[dict[tuple[str, str | None], float], int]:
    """{(point, reading): y}, of a heading with None, and how many lines of text there are."""
    placed, line = {}, 0
    for title, readings in groups.items():
        texts = {None: wrap(title, ACROSS)} | {r: wrap(r, LETTERS) for r in readings}
        for reading, text in texts.items():
            placed[title, reading] = -(line + (len(text) - 1) / 2)
            line += len(text)
    return placed, line


def _label(axes: Axes, y: float, text: str, indent: float = 0.0, **options: object) -> None:
    """Text from the figure's left edge, at y of the axes."""
    mixed = blended_transform_factory(axes.figure.transFigure, axes.transData)
    axes.text(0.01 + indent, y, text, transform=mixed, va="center", fontsize=9, **options)


def _effect(axes: Axes, y: float, bounds: Bounds | None) -> None:
    if bounds is None:
        axes.text(0, y, f" {MISSING}", va="center", fontsize=8, style="italic")
        return
    value, low, high = bounds
    colour, marker = GREY, "o"
    if low > 0 or high < 0:
        colour, marker = (BLUE, ">") if value > 0 else (ORANGE, "<")
    axes.plot((low, high), (y, y), color=colour)
    face = "none" if marker == "o" else colour
    axes.plot(value, y, marker, color=colour, markerfacecolor=face, markersize=5)


@styled
def sweep(
    series: Mapping[str, Line],
    xlabel: str,
    ylabel: str = "accuracy (mean over tasks)",
    levels: Mapping[str, Bounds] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Lines with bands over a number that was varied; levels: what doesn't depend on it."""
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    _draw_sweep(axes, series, levels or {})
    if logarithmic:
        _double(axes, series)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def sweep_panels(
    tasks: Mapping[str, Mapping[str, Line]],
    xlabel: str,
    ylabel: str = "accuracy",
    logarithmic: bool = False,
) -> Figure:
    """`sweep` in small, a panel a task, each with a scale of its own: {task: {series: line}}."""
    tasks = tasks or {"": {}}
    figure, panels = _panels(list(tasks), sharey=False)
    for axes, series in zip(panels, tasks.values(), strict=True):
        _draw_sweep(axes, series, {})
        if logarithmic:
            _double(axes, series)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _draw_sweep(axes: Axes, series: Mapping[str, Line], levels: Mapping[str, Bounds]) -> None:
    if len(series) > len(STYLES):
        raise ValueError(f"{len(series)} lines; there are styles for {len(STYLES)}")
    if not series:
        axes.text(0.5, 0.5, MISSING, transform=axes.transAxes, ha="center", style="italic")
    for (name, (x, bounds)), (colour, line, marker) in zip(series.items(), STYLES, strict=False):
        value, low, high = np.array(bounds, dtype=float).T
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, value, line, color=colour, marker=marker, label=name)
    for (name, (value, low, high)), style in zip(levels.items(), (DASHED, ":"), strict=False):
        axes.axhspan(low, high, color=GREY, alpha=0.14, linewidth=0)
        axes.axhline(value, color=GREY, linestyle=style, linewidth=0.9, label=name)


def _double(axes: Axes, series: Mapping[str, Line]) -> None:
    """A scale on which every doubling is as wide, with a tick at each number that was taken."""
    axes.set_xscale("log", base=2)
    ticks = sorted({x for numbers, _ in series.values() for x in numbers})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


@styled
def methods_by_retention(
    accuracies: Mapping[str, Bounds | None],
    retentions: Mapping[str, Bounds | None],
    levels: Mapping[str, float],
) -> Figure:
    """Methods ordered by mean accuracy (left), with their retention (right).

    levels: accuracies that are marked by lines, e.g. {"Base": 0.39, "Single": 0.48}. Methods that
    aren't measured stand last and are named so.
    """
    known = sorted((m for m, b in accuracies.items() if b), key=lambda m: -accuracies[m][0])
    order = known + [m for m in accuracies if m not in known]
    figure = Figure((WIDTH, 1.1 + 0.22 * len(order)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for y, method in enumerate(order):
        _dot(left, -y, accuracies[method], missing=MISSING)
        _dot(right, -y, retentions.get(method))
    _mark_levels(left, levels)
    left.set_yticks(-np.arange(len(order)), order, fontsize=9)
    left.set(ylim=(0.5 - len(order), 0.6), xlabel="mean accuracy")
    _mark_levels(right, {"Base": 0, "Single": 1}, named=False)
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right.set(xlabel="retention")
    return figure


def _dot(axes: Axes, y: float, bounds: Bounds | None, missing: str = "") -> None:
    if bounds is None:
        across = axes.get_yaxis_transform()
        axes.text(0.04, y, missing, transform=across, va="center", fontsize=8, style="italic")
        return
    value, low, high = bounds
    axes.plot((low, high), (y, y), color=BLUE)
    axes.plot(value, y, "o", color=BLUE, markersize=4.5)


def _mark_levels(axes: Axes, levels: Mapping[str, float], named: bool = True) -> None:
    """Lines, their names above the axes and away from each other."""
    above = axes.get_xaxis_transform()
    for (name, value), style, side in zip(
        levels.items(), (DASHED, ":"), ("right", "left"), strict=False
    ):
        axes.axvline(value, color=GREY, linewidth=0.9, linestyle=style)
        if named:
            axes.text(value, 1, name, transform=above, ha=side, va="bottom", fontsize=9)
