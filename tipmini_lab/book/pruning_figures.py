"""The figures of the chapters on LoRAPrune; style and colours are those of `figures`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)
from numpy.typing import ArrayLike

from tipmini_lab.book.figures import BLUE, GREY, ORANGE, SERIES, SIGNED, SIZES, WIDTH, styled
from tipmini_lab.results.statistics import MISSING

Line = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]  # x, y, low, high
STYLES = (*SERIES, (GREY, "--", "v"), (GREY, ":", "P"))
DASHED = (0, (5, 4))


# Figures 1, 2, 5: schemes, drawn from real tensors ------------------------------------------------


@styled
def merged_sparsities(rows: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """LoRAPrune's Figure 1: {way to prune: {what: (d, k)}}, a row of pictures for each way.

    Every picture has a scale of its own, and says how much of it is exactly 0.
    """
    figure = Figure((WIDTH, 0.5 + 1.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for line, (way, pictures) in zip(grid, rows.items(), strict=True):
        for axes, (what, values) in zip(line, pictures.items(), strict=True):
            values = np.asarray(values)
            _signed(axes, values, f"{what}\n{np.mean(values == 0):.0%} zeros")
        line[0].set_ylabel(way)
    return figure


def _signed(axes: Axes, values: ArrayLike, title: str) -> AxesImage:
    """A heat map around 0; its colours end at the 99% quantile of the sizes."""
    values = np.asarray(values)
    reach = np.quantile(np.abs(values), 0.99) or 1.0
    return _map(axes, values, title, cmap=SIGNED, vmin=-reach, vmax=reach)


def _sized(axes: Axes, values: ArrayLike, title: str) -> AxesImage:
    values = np.asarray(values)
    return _map(axes, values, title, cmap=SIZES, vmin=0, vmax=np.quantile(values, 0.99) or 1.0)


def _map(axes: Axes, values: np.ndarray, title: str, **colours: object) -> AxesImage:
    image = axes.imshow(values, aspect="auto", **colours)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


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
    _signed(maps.add_subplot(grid[0, 0]), weight, "W + sBA")
    _signed(maps.add_subplot(grid[0, 1]), gradient, "gradient of W")
    _sized(maps.add_subplot(grid[0, 2]), np.square(gradient * weight), "vanilla")
    inner = grid[1, 0].subgridspec(1, 2, width_ratios=(1, 2))
    _signed(maps.add_subplot(inner[0]), grad_b, "of B")
    _signed(maps.add_subplot(inner[1]), grad_a, "of A")
    _signed(maps.add_subplot(grid[1, 1]), estimate, "G, estimated")
    _sized(maps.add_subplot(grid[1, 2]), np.square(estimate * weight), "LoRA-guided")
    _bars(bars.subplots(), groups)
    return figure


def _bars(axes: Axes, groups: Mapping[str, ArrayLike]) -> None:
    width = 0.8 / len(groups)
    for number, ((name, values), (colour, *_)) in enumerate(
        zip(groups.items(), SERIES, strict=False)
    ):
        places = np.arange(len(values)) + (number - (len(groups) - 1) / 2) * width
        axes.bar(places, np.asarray(values), width, color=colour, label=name)
    axes.set(xlabel="query head", ylabel="importance", xticks=np.arange(len(values)))
    axes.legend(fontsize=9)


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
            _sized(axes, values, module)
            axes.set_aspect("equal", anchor="N")
            _band(axes, np.shape(values), dim, first / block, stop / block)
    return figure


def _band(axes: Axes, shape: tuple[int, int], dim: int, first: float, stop: float) -> None:
    """A frame around rows or columns, wide enough to be seen."""
    size = max(stop - first, 0.012 * max(shape))
    place, sides = (-0.5, first - 0.5), (shape[1], size)
    if dim == 1:
        place, sides = place[::-1], (size, shape[0])
    axes.add_patch(Rectangle(place, *sides, facecolor=ORANGE, alpha=0.75, linewidth=0))


@styled
def schedules(lines: Mapping[str, Sequence[float]]) -> Figure:
    """The share removed after every step, a line a schedule."""
    figure = Figure((WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for (name, shares), (colour, line, _) in zip(lines.items(), SERIES, strict=False):
        axes.step(range(1, len(shares) + 1), shares, line, color=colour, where="post", label=name)
    axes.set(xlabel="step", ylabel="share removed", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, axes)  # beside the lines: one of them rises where every corner is taken
    return figure


# Figures 3 and 4, and a run: what was measured ----------------------------------------------------


@styled
def perplexities(
    corpora: Mapping[str, Mapping[str, Line]], marks: Mapping[str, Mapping[str, tuple]]
) -> Figure:
    """LoRAPrune's Figure 3: a panel a corpus, {corpus: {line: (x, y, low, high)}}.

    marks: {corpus: {name: (x, y)}}, single points. Perplexity grows fast: the scale is logarithmic.
    """
    figure = Figure((WIDTH, 5.6), layout="constrained")
    grid = figure.subplots(len(corpora), 1, sharex=True)
    for axes, (corpus, lines) in zip(grid, corpora.items(), strict=True):
        _banded(axes, lines)
        for (name, (x, y)), sign in zip(marks.get(corpus, {}).items(), "*X", strict=False):
            axes.plot(x, y, sign, color=GREY, markersize=7, label=name, linestyle="none")
        if lines:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            few = high / low > 1000  # from there on a tick at every power of ten is enough
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if few else (1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(title=corpus, ylabel="perplexity")
    grid[-1].set_xlabel("share of weights removed")
    grid[-1].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, grid[0])
    return figure


@styled
def agreements(
    kinds: Mapping[str, Mapping[str, Line]], chance: Mapping[str, tuple[Sequence, Sequence]]
) -> Figure:
    """LoRAPrune's Figure 4: a panel a kind of group; chance: {kind: (x, y)}, of random masks."""
    figure = Figure((WIDTH, 5.0), layout="constrained")
    grid = figure.subplots(max(1, len(kinds)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (kind, lines) in zip(grid, (kinds or {"": {}}).items(), strict=True):
        _banded(axes, lines)
        if kind in chance:
            style = {"color": GREY, "linestyle": DASHED, "linewidth": 0.9, "label": "by chance"}
            axes.plot(*chance[kind], marker=_marker(chance[kind][0]), markersize=14, **style)
        axes.set(title=kind, ylabel="groups judged alike")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    grid[-1].set_xlabel("share of groups removed")
    grid[-1].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, grid[0])
    return figure


@styled
def progress(losses: Mapping[str, Sequence[float]], gone: Sequence[float]) -> Figure:
    """The training loss of every step, and below it the share that is gone."""
    figure = Figure((WIDTH, 4.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    if not losses:
        _missing(top)
    for (name, values), (colour, line, _) in zip(losses.items(), STYLES, strict=False):
        top.plot(range(1, len(values) + 1), values, line, color=colour, label=name)
    bottom.step(range(1, len(gone) + 1), gone, color=BLUE, where="post")
    bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    top.set_ylabel("loss of the batch")
    bottom.set(xlabel="step", ylabel="removed", ylim=(0, None))
    _legend(figure, top)
    return figure


def _banded(axes: Axes, lines: Mapping[str, Line]) -> None:
    if not lines:
        _missing(axes)
    for (name, (x, y, low, high)), (colour, line, marker) in zip(
        lines.items(), STYLES, strict=False
    ):
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        if len(x) == 1:  # too narrow for a band
            axes.vlines(x, low, high, color=colour, alpha=0.5)
        axes.plot(x, y, line, color=colour, marker=marker, label=name)


def _marker(x: Sequence[float]) -> str:
    """Of a dashed line without markers: a dash where it has one point and would not be seen."""
    return "_" if len(x) == 1 else ""


def _missing(axes: Axes) -> None:
    axes.text(0.5, 0.5, MISSING, transform=axes.transAxes, ha="center", style="italic")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
