"""The figures of the chapters on LoRAPrune; style and colours are those of `figures`."""

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from torch import Tensor

from tipmini.masks import semi_structured_mask
from tipmini_lab.book.figures import (
    BLUE,
    GREY,
    ORANGE,
    SERIES,
    SIGNED,
    SIZES,
    WIDTH,
    styled,
    styles_of,
)
from tipmini_lab.results.statistics import MISSING

DASHED = {"color": GREY, "linestyle": (0, (5, 4)), "linewidth": 0.9}


# Figures 1, 2, 5: schemes, drawn from real tensors ------------------------------------------------


@styled
def merged_sparsities(
    weight: Tensor, product: Tensor, kept: Tensor, window: tuple[slice, slice]
) -> Figure:
    """LoRAPrune's Figure 1: a window of W, pruned 2:4 and by groups, of sBA, and of their sum.

    kept: (count,) bool, the groups of rows that stay. Every picture has a scale of its own, and
    says how much of it is exactly 0.
    """
    rows = kept.repeat_interleave(len(weight) // len(kept))[:, None]
    sparse = weight * semi_structured_mask(weight.abs())
    ways = {"2:4 zeros": (sparse, product), "a group of heads": (weight * rows, product * rows)}
    figure = Figure((WIDTH, 4.3), layout="constrained")
    for line, (way, (w, ba)) in zip(figure.subplots(2, 3), ways.items(), strict=True):
        pictures = {"W pruned": w[window], "sBA": ba[window], "merged": (w + ba)[window]}
        for axes, (what, values) in zip(line, pictures.items(), strict=True):
            _map(axes, values, f"{what}\n{(values == 0).float().mean():.0%} zeros")
        line[0].set_ylabel(way)
    return figure


def _map(axes: Axes, values: ArrayLike, title: str, signed: bool = True) -> None:
    """A heat map around 0, or from 0 on; its colours end at the 99% quantile of the sizes."""
    values = np.asarray(values)
    reach = np.quantile(np.abs(values), 0.99) or 1.0
    low, colours = (-reach, SIGNED) if signed else (0, SIZES)
    axes.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=reach)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


@styled
def criteria(
    weight: ArrayLike,
    gradient: ArrayLike,
    grad_a: ArrayLike,
    grad_b: ArrayLike,
    estimate: ArrayLike,
    groups: Mapping[str, ArrayLike],
) -> Figure:
    """LoRAPrune's Figure 2: what either criterion reads, and the importances of the groups.

    weight, gradient, estimate: the same window of W + sBA, dL/dW and G; grad_b (rows, r) and
    grad_a (r, columns) of that window. groups: {criterion: (count,) shares of the importance}.
    """
    weight, gradient, estimate = map(np.asarray, (weight, gradient, estimate))
    figure = Figure((WIDTH, 5.4), layout="constrained")
    maps, bars = figure.subfigures(2, 1, height_ratios=(3.6, 1.9))
    grid = maps.add_gridspec(2, 3)
    inner = grid[1, 0].subgridspec(1, 2, width_ratios=(1, 2))
    _map(maps.add_subplot(grid[0, 0]), weight, "W + sBA")
    _map(maps.add_subplot(grid[0, 1]), gradient, "gradient of W")
    _map(maps.add_subplot(grid[0, 2]), np.square(gradient * weight), "vanilla", signed=False)
    _map(maps.add_subplot(inner[0]), grad_b, "of B")
    _map(maps.add_subplot(inner[1]), grad_a, "of A")
    _map(maps.add_subplot(grid[1, 1]), estimate, "estimated")
    _map(maps.add_subplot(grid[1, 2]), np.square(estimate * weight), "LoRA-guided", signed=False)
    axes = bars.subplots()
    width, styles = 0.8 / len(groups), styles_of(groups)
    for number, (name, values) in enumerate(groups.items()):
        places = np.arange(len(values)) + (number - (len(groups) - 1) / 2) * width
        axes.bar(places, np.asarray(values), width, color=styles[number][0], label=name)
    axes.set(xlabel="query head", ylabel="importance", xticks=np.arange(len(values)))
    axes.legend(fontsize=9)
    return figure


@styled
def dependencies(
    parts: Mapping[str, Sequence[tuple[str, ArrayLike, int, tuple[int, int]]]], block: int
) -> Figure:
    """LoRAPrune's Figure 5: the rows and columns that go together.

    parts: {kind: [(module, |W| (d, k) averaged over blocks, 0 rows or 1 columns, (first, stop))]},
    first and stop in rows or columns of the module itself; block: weights a side of an average.
    """
    figure = Figure((WIDTH, 4.3), layout="constrained")
    halves = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    for part, (kind, modules) in zip(halves, parts.items(), strict=True):
        part.suptitle(kind, fontsize=10)
        widths = [np.shape(values)[1] for _, values, *_ in modules]
        grid = part.subplots(1, len(modules), width_ratios=widths, squeeze=False)[0]
        for axes, (module, values, dim, (first, stop)) in zip(grid, modules, strict=True):
            _map(axes, values, module, signed=False)
            axes.set_aspect("equal", anchor="N")
            shape = np.shape(values)
            size = max((stop - first) / block, 0.012 * max(shape))  # wide enough to be seen
            place, sides = (-0.5, first / block - 0.5), (shape[1], size)
            if dim == 1:
                place, sides = place[::-1], (size, shape[0])
            axes.add_patch(Rectangle(place, *sides, facecolor=ORANGE, alpha=0.75, linewidth=0))
    return figure


@styled
def schedules(lines: Mapping[str, Sequence[float]]) -> Figure:
    """The share removed after every step, a line a schedule."""
    figure = Figure((WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for (name, shares), (colour, line, _) in zip(lines.items(), SERIES, strict=False):
        axes.step(range(1, len(shares) + 1), shares, line, color=colour, where="post", label=name)
    axes.set(xlabel="step", ylabel="fraction removed", ylim=(0, None))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    _percent(axes.yaxis)
    return _with_legend(figure)  # beside the lines: one rises where every corner is taken


# Figures 3 and 4, and a run: what was measured ----------------------------------------------------


@styled
def few_and_many(points: pd.DataFrame, levels: Mapping[str, float]) -> Figure:
    """A line a method, the lowest perplexity after few steps first, and below it after many.

    points: `pruning_tables.few_and_many`, by title. levels: of the unpruned model, tuned alike.
    """
    few = points[~points.longer].sort_values("y") if len(points) else points
    figure = Figure((WIDTH, 1.3 + 0.36 * max(4, len(few))), layout="constrained")
    axes = figure.subplots()
    if few.empty:
        _missing(axes)
        return figure
    titles = few.index.to_list()
    for y, (title, (colour, *_)) in enumerate(zip(titles, styles_of(titles), strict=True)):
        own = points.loc[[title]].sort_values("longer")
        axes.plot(own.y, [y] * len(own), color=GREY, linewidth=0.8, linestyle=":")
        for one in own.itertuples():
            marker, face = ("D", colour) if one.longer else ("o", "none")
            axes.plot((one.low, one.high), (y, y), color=colour)
            axes.plot(one.y, y, marker, color=colour, markerfacecolor=face, markersize=6)
    for marker, face, words in (("o", "none", "few steps"), ("D", GREY, "many steps")):
        axes.plot([], [], marker, color=GREY, markerfacecolor=face, markersize=6, label=words)
    for (name, level), dash in zip(levels.items(), ((0, (5, 4)), ":"), strict=False):
        axes.axvline(level, color=GREY, linestyle=dash, linewidth=0.9, label=name)
    axes.set_yticks(range(len(titles)), [fill(title, 18) for title in titles])
    axes.set(ylim=(len(titles) - 0.4, -0.6), xlabel="perplexity, lower is better")
    _logarithmic(axes.set_xscale, axes.get_xlim, axes.xaxis, most=4)
    return _with_legend(figure)


@styled
def perplexities(
    corpora: Mapping[str, pd.DataFrame], marks: Mapping[str, Mapping[str, float]]
) -> Figure:
    """LoRAPrune's Figure 3: a panel a corpus, {corpus: line, x, y, low, high}.

    marks: {corpus: {name: y}}, at one half. Perplexity grows fast: the scale is logarithmic.
    """
    figure, panels = _panels(corpora, 5.6, "perplexity", "pruning ratio")
    for corpus, axes in panels.items():
        for (name, y), sign in zip(marks.get(corpus, {}).items(), "*XPd", strict=False):
            axes.plot(0.5, y, sign, color=GREY, markersize=7, label=name, linestyle="none")
        if len(corpora[corpus]):
            _logarithmic(axes.set_yscale, axes.get_ylim, axes.yaxis)
    return _with_legend(figure)


def _logarithmic(
    set_scale: Callable[[str], None],
    limits: Callable[[], tuple[float, float]],
    axis: Axis,
    most: int = 9,
) -> None:
    """With ticks at 1, 2 and 5 of every power of ten, at `most` powers alone where there are many.

    Numbers side by side need more room than below one another.
    """
    set_scale("log")
    low, high = limits()
    few = high / low > 1000
    axis.set_major_locator(ticker.LogLocator(subs=(1,) if few else (1, 2, 5), numticks=most))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_formatter(ticker.NullFormatter())


@styled
def agreements(lines: pd.DataFrame) -> Figure:
    """LoRAPrune's Figure 4: a panel a kind of group; see `pruning_costs.alike`."""
    kinds = dict([*lines.groupby("kind")]) or {"": lines}
    figure, panels = _panels(kinds, 5.0, "agreement on groups", "fraction of groups removed")
    for kind, axes in panels.items():
        chance = kinds[kind].groupby("x")["chance"].first()
        dash = "_" if len(chance) == 1 else ""  # one point of a line would not be seen
        if len(chance):
            axes.plot(chance, marker=dash, markersize=14, label="expected at random", **DASHED)
        _percent(axes.yaxis)
    return _with_legend(figure)


def _panels(
    panels: Mapping[str, pd.DataFrame], height: float, ylabel: str, xlabel: str
) -> tuple[Figure, dict[str, Axes]]:
    """Below one another, {title: line, x, y, low, high}: lines with their bands."""
    figure = Figure((WIDTH, height), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        if lines.empty:
            _missing(axes)
        named = dict([*lines.groupby("line", sort=False)])
        for (name, own), style in zip(named.items(), styles_of(named), strict=True):
            colour, line, marker = style
            axes.fill_between(own.x, own.low, own.high, color=colour, alpha=0.18, linewidth=0)
            if len(own) == 1:  # too narrow for a band
                axes.vlines(own.x, own.low, own.high, color=colour, alpha=0.5)
            axes.plot(own.x, own.y, line, color=colour, marker=marker, label=name)
        axes.set(title=title, ylabel=ylabel)
    axes.set_xlabel(xlabel)
    _percent(axes.xaxis)
    return figure, dict(zip(panels, grid, strict=True))


@styled
def progress(losses: Mapping[str, Sequence[float]], gone: Sequence[float]) -> Figure:
    """The training loss of every step, and below it the share that is gone."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    if not losses:
        _missing(top)
    for (name, values), (colour, line, _) in zip(losses.items(), styles_of(losses), strict=True):
        top.plot(range(1, len(values) + 1), values, line, color=colour, label=name)
    bottom.step(range(1, len(gone) + 1), gone, color=BLUE, where="post")
    _percent(bottom.yaxis)
    bottom.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    top.set_ylabel("loss of the batch")
    bottom.set(xlabel="step", ylabel="removed", ylim=(0, None))
    return _with_legend(figure)


def _percent(axis: Axis) -> None:
    axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))


def _missing(axes: Axes) -> None:
    axes.text(0.5, 0.5, MISSING, transform=axes.transAxes, ha="center", style="italic")


def _with_legend(figure: Figure) -> Figure:
    """Of the first panel, above all of them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure
