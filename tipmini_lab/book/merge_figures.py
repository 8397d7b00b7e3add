"""Figures of merges: mean accuracies beside their levels, and accuracy by an update's size."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from tipmini_lab.book.figures import (
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    STYLES,
    WIDTH,
    Line,
    styled,
    styles_of,
)
from tipmini_lab.results.statistics import MISSING, Interval

LINES = (DASHED, ":", "-.")  # of levels
LETTERS = 27  # of a name in a line

LIGHT = LinearSegmentedColormap.from_list("light", [ORANGE, "white", BLUE])  # under black


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


def in_words(methods: Mapping[str, Interval | None], levels: Mapping[str, float]) -> str:
    """What `means` shows, from the highest on: "Single 0.497, ...; Base 0.400"."""
    known = {name: found.value for name, found in methods.items() if found}
    order = sorted(known, key=known.__getitem__, reverse=True)
    own = ", ".join(f"{name} {known[name]:.3f}" for name in order) or MISSING
    return f"{own}; lines: {', '.join(f'{name} {x:.3f}' for name, x in levels.items())}."


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


COSTS = {"seconds": "time of one core", "rank": "rank of the merge"}  # axes of `frontier`
CLOSE = 0.06  # of retention, and of time: points whose signs would lie on each other
TIMES = {0.01: "10 ms", 1: "1 s", 60: "1 min", 3600: "1 h", 86400: "1 day"}


@styled
def frontier(
    sets: Mapping[str, pd.DataFrame], kinds: Sequence[str], marked: Mapping[str, str]
) -> Figure:
    """Retention against each of COSTS, a marker for what a merge needs; a column a set of adapters.

    sets: by title a line a merge with kind, kept (an Interval), value, seconds and rank
    (`frontier.points` of what is measured); what is of no kind is a level. marked: {a line's name:
    the sign beside its point}. At 100% is Single.
    """
    figure = Figure((WIDTH, 6.4), layout="constrained")
    panels = figure.subplots(len(COSTS), len(sets), sharey=True, squeeze=False)
    for column, (title, found) in zip(panels.T, sets.items(), strict=True):
        column[0].set_title(title)
        for axes, (by, label) in zip(column, COSTS.items(), strict=True):
            for n, (of, (colour, _, marker)) in enumerate(zip(kinds, STYLES, strict=False)):
                aside = 2 ** (0.08 * (n - 1.5) if by == "rank" else 0)  # kinds are side by side
                own = found[found.kind == of].dropna(subset=[by, "value"])
                told = {"fmt": marker, "color": colour, "label": of}
                if len(own):
                    _kept(axes, own.assign(at=own[by] * aside), marked, **told)
            axes.axhline(1, color=GREY, linewidth=0.9, linestyle=DASHED)
            for level in found[~found.kind.isin(kinds)].itertuples():
                axes.axhline(
                    level.value, color=GREY, linewidth=0.9, linestyle=":", label=level.title
                )
            costs = sorted(found[by].dropna().unique())
            told = {rank: f"{rank:.0f}" for rank in costs} if by == "rank" else _around(costs)
            if costs:
                axes.set_xscale("log")
            else:
                axes.text(0.04, 0.5, MISSING, transform=axes.transAxes, style="italic")
            axes.set_xticks([*told], [*told.values()])
            axes.set_xticks([], minor=True)
            axes.set_xlabel(label)
            axes.margins(x=0.15)
    for axes in panels[:, 0]:
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.set_ylabel("retention")
    signs: dict[str, object] = {}
    for axes in panels.flat:
        signs |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(signs.values(), signs.keys(), loc="outside upper center", ncols=2)
    return figure


def _around(seconds: Sequence[float]) -> dict[float, str]:
    """Those of TIMES from the last below all to the first above."""
    if not seconds:
        return {}
    low = max((time for time in TIMES if time <= seconds[0]), default=0)
    high = min((time for time in TIMES if time >= seconds[-1]), default=math.inf)
    return {time: told for time, told in TIMES.items() if low <= time <= high}


def _kept(axes: Axes, own: pd.DataFrame, marked: Mapping[str, str], **style: str) -> None:
    """Points with intervals at `at`."""
    low, high = np.array([(k.low, k.high) for k in own.kept]).reshape(-1, 2).T
    bars = (own.value - low, high - own.value)
    axes.errorbar(own["at"], own.value, bars, elinewidth=0.6, markersize=5, **style)
    signed = own[own.index.isin(marked)].sort_values("value")
    for name, above in zip(signed.index, [*signed.index[1:], None], strict=False):
        x, y = own["at"][name], own.value[name]
        close = above and own.value[above] - y < CLOSE and abs(own["at"][above] / x - 1) < CLOSE
        aside = -11 if close else 4  # below the point, where another is just above it
        axes.annotate(marked[name], (x, y), (4, aside), textcoords="offset points")


@styled
def kept_by_task(found: Mapping[str, Mapping[str, Interval]], sizes: Mapping[str, float]) -> Figure:
    """{merge: {task: retention}}, the tasks from the smallest update on, its norm below its name.

    sizes: {task: norm of its own update}.
    """
    order = sorted(sizes, key=sizes.__getitem__)
    figure = Figure((WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    for n, (merge, (colour, _, marker)) in enumerate(zip(found, styles_of(found), strict=True)):
        own = [found[merge][task] for task in order]
        value, low, high = np.array([(k.value, k.low, k.high) for k in own]).T
        place = np.arange(len(order)) + 0.1 * (n - (len(found) - 1) / 2)
        bars = (value - low, high - value)
        axes.errorbar(
            *(place, value, bars),
            fmt=marker,
            color=colour,
            label=merge,
            elinewidth=0.7,
            markersize=5,
        )
    for level in (0, 1):
        axes.axhline(level, color=GREY, linewidth=0.9, linestyle=DASHED)
    axes.set_xticks(range(len(order)), [f"{task}\n{sizes[task]:.1f}" for task in order])
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel="task, and the norm of its adapter's update", ylabel="retention")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def interference(found: Mapping[str, Mapping[str, float]], other: str) -> Figure:
    """{task: {other: value}} as a map, numbers in its cells; other: what the columns are."""
    names = list(found)
    values = np.array([[found[task].get(name, np.nan) for name in names] for task in names])
    figure = Figure((WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    # 1 is in the middle: as far as the base. A few pairs are far above all others.
    axes.imshow(np.minimum(values, 2.0), cmap=LIGHT, norm=TwoSlopeNorm(1.0, 0.0, 2.0))
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            told = f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
            axes.text(x, y, told, ha="center", va="center", fontsize=9, color="black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(other)
    return figure
