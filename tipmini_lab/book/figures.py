"""The figures of the book: from arrays to matplotlib Figures, without pyplot and its state.

Colours and greys are of middle lightness, so that one transparent image reads on white and on
near-black, and stay apart for colour-blind readers; markers and line styles tell the same.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from textwrap import fill, wrap

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.transforms import blended_transform_factory
from numpy.typing import ArrayLike

from tipmini.methods.merge import block_of
from tipmini_lab.results.statistics import MISSING, Interval, Verdict

GREY = "#757575"
BLUE, ORANGE, GREEN, PINK = "#2F86C1", "#D17A12", "#1B9A78", "#BC6A9C"
VIOLET = "#8B74C9"
# A method's colour in every figure, by how its name begins; those of one figure are told apart.
COLOURS = {
    **{"Base": GREY, "Single": GREEN, "Linear": ORANGE, "DARE": PINK, "TIP": BLUE},
    **{"Linear, tuned": VIOLET, "task arithmetic": GREY, "TIES": GREY, "KnOTS": GREY},
    **{"unpruned": GREY, "random": GREY, "LoRAPrune": BLUE, "LLM-Pruner": ORANGE},
    **{"vanilla": VIOLET, "Wanda": GREEN, "magnitude": PINK},
    **{"LoRA-guided": BLUE, "Adapter": PINK, "prefix": VIOLET},
    **{"LoRA": GREEN, "LoNAS": VIOLET, "Shears": ORANGE, "SQFT": PINK, "full tuning": ORANGE},
}
SERIES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^"), (PINK, "-.", "D"))
STYLES = (*SERIES, (VIOLET, "--", "v"), (GREY, ":", "P"))
# From see-through to full colour: what is small fades into any page, light or dark.
SIZES = LinearSegmentedColormap.from_list("sizes", [f"{BLUE}14", BLUE])
SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, f"{GREY}10", BLUE])
KEPT = ListedColormap([f"{GREY}28", BLUE])
DASHED = (0, (5, 4))
LAYER, SHARE = "layer (transformer block)", "sparsity"
WIDTH = 4.6  # inches; drawn for the width of a telephone, where 10 pt stay legible

STYLE = {
    "font.size": 10,
    "figure.labelsize": 10,
    "axes.titlesize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "image.interpolation": "nearest",
}
styled = matplotlib.rc_context(STYLE)  # as a decorator: every artist is made in this style


Style = tuple[str, object, str]  # colour, line and marker


def styles_of(names: Collection[str]) -> list[Style]:
    """A style a name: lines and markers by place, colours by `COLOURS`, else those still free."""
    known = [colour_of(name) for name in names]
    free = [style[0] for style in STYLES if style[0] not in known] or [GREY]
    others = cycle(free)
    own = [colour or next(others) for colour in known]
    return [(colour, *STYLES[n % len(STYLES)][1:]) for n, colour in enumerate(own)]


def colour_of(name: str) -> str | None:
    """Of the longest name in `COLOURS` that this one begins with."""
    begins = [begin for begin in COLOURS if name.startswith(begin)]
    return COLOURS[max(begins, key=len)] if begins else None


@styled
def score_maps(weight: ArrayLike, norm: ArrayLike, score: ArrayLike) -> Figure:
    """A score and its parts as pictures: |W| (d, k), input norm (k,), their product (d, k)."""
    figure = Figure((WIDTH, 4.6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    _map(figure, top, np.abs(weight), "|W|", "output row")
    middle.plot(np.asarray(norm), color=BLUE, linewidth=0.8)
    middle.set(title="input norm of each channel", ylabel="norm", ylim=(0, None))
    _map(figure, bottom, score, "score = |W| · norm", "output row")
    bottom.set_xlabel("input channel")
    return figure


def _map(figure: Figure, axes: Axes, values: ArrayLike, title: str, ylabel: str) -> None:
    """A heat map with a colour bar; the scale ends at the 99.5% quantile, or few cells show."""
    values = np.asarray(values)
    top = np.quantile(values, 0.995)
    image = axes.imshow(values, aspect="auto", cmap=SIZES, vmin=0, vmax=top)
    axes.set(title=title, ylabel=ylabel)
    _bar(figure, image, axes, extend="max", format="%.2g", pad=0.02)


def _bar(figure: Figure, image: AxesImage, axes: Axes, **options: object) -> None:
    bar = figure.colorbar(image, ax=axes, **options)
    bar.solids.set_rasterized(True)  # as vectors, see-through cells show seams


@styled
def layers_by_task(values: Mapping[str, ArrayLike], ylabel: str) -> Figure:
    """(L,) values of every layer, one small panel a task, all on one scale."""
    figure, panels = _panels(values, LAYER, ylabel, sharey=True)
    for axes, line in zip(panels, values.values(), strict=True):
        axes.plot(np.asarray(line), color=BLUE, marker="o", markersize=2)
    panels[0].set_ylim(0, None)  # last: it ends the scaling of all panels
    return figure


def _panels(
    titles: Collection[str], x: str, y: str = "", sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Panels in two columns, the unused last one left out, between common labels."""
    rows = -(-len(titles) // 2)
    figure = Figure((WIDTH, 0.6 + 1.45 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=sharey, sharey=sharey, squeeze=False).ravel()
    for axes in grid[len(titles) :]:
        axes.remove()
        grid[len(titles) - 2].tick_params(labelbottom=True)  # it is the last of its column now
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title)
    figure.supxlabel(x)
    if y:
        figure.supylabel(y)
    return figure, list(grid[: len(titles)])


@styled
def sparsity_lines(unbounded: Mapping[str, ArrayLike], base_sparsity: float) -> Figure:
    """TIP's Figure 2: S_l by layer, a line a task; values outside [0, 1] are shown too."""
    figure = Figure((WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for (task, values), (colour, line, marker) in zip(unbounded.items(), SERIES, strict=False):
        axes.plot(np.asarray(values), line, color=colour, marker=marker, label=task)
    _mark_bounds(axes, base_sparsity)
    axes.set(xlabel=LAYER, ylabel=SHARE)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _mark_bounds(axes: Axes, base_sparsity: float) -> None:
    """Where a share can't be, and the mean that was asked for."""
    low, high = axes.get_ylim()
    low, high = min(low, -0.02), max(high, 1.04)
    for bottom, top in ((1, high), (low, 0)):
        axes.axhspan(bottom, top, color=GREY, alpha=0.22, linewidth=0)
    axes.axhline(base_sparsity, color=GREY, linewidth=0.9, linestyle=DASHED)
    axes.set_ylim(low, high)


@styled
def sparsity_panels(unbounded: Mapping[str, ArrayLike], base_sparsity: float) -> Figure:
    """S_l by layer before (open) and after (filled) clipping to [0, 1], one panel a task."""
    figure, panels = _panels(unbounded, LAYER, SHARE, sharey=True)
    for axes, values in zip(panels, map(np.asarray, unbounded.values()), strict=True):
        axes.plot(values, "o", color=ORANGE, markerfacecolor="none", markersize=4)
        axes.plot(values.clip(0, 1), color=BLUE, marker="o", markersize=2)
    for axes in panels:  # the scale is shared: it is known once all panels are drawn
        _mark_bounds(axes, base_sparsity)
    return figure


@styled
def merging_steps(
    weights: Mapping[str, ArrayLike],
    scores: Mapping[str, ArrayLike],
    masks: Mapping[str, ArrayLike],
    merged: ArrayLike,
) -> Figure:
    """TIP's Figure 3: factor, score and mask of every task, all (d, k), above their sum (d, k)."""
    figure = Figure((WIDTH, 5.4), layout="constrained")
    grid = figure.add_gridspec(4, len(weights))
    reach = max(np.abs(np.asarray(w)).max() for w in (*weights.values(), merged))
    signed = {"cmap": SIGNED, "vmin": -reach, "vmax": reach}
    kept = {"cmap": KEPT, "vmin": 0, "vmax": 1}
    for column, task in enumerate(weights):
        steps = (
            (weights[task], signed, f"{task}\nfactor W"),
            (scores[task], {"cmap": SIZES, "vmin": 0}, "score |W| · norm"),
            (masks[task], kept, "kept (blue)"),
        )
        for row, (values, options, title) in enumerate(steps):
            _step(figure.add_subplot(grid[row, column]), values, title, **options)
    bottom = figure.add_subplot(grid[3, :])
    image = _step(bottom, merged, "sum of what is kept", **signed)
    bottom.set_xlabel("input channel")
    _bar(figure, image, bottom, orientation="horizontal", label="value of an element")
    return figure


def _step(axes: Axes, values: ArrayLike, title: str, **options: object) -> AxesImage:
    image = axes.imshow(np.asarray(values), aspect="auto", **options)
    axes.set_title(title)
    axes.set_yticks([])
    return image


@styled
def growth(lines: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Figure:
    """Seconds against how many, a panel for what grows: {what: {method: (numbers, seconds)}}.

    Grey lines pass through the origin and a method's last point: where time is proportional to
    the number, the points lie on them.
    """
    figure = Figure((WIDTH, 5.2), layout="constrained")
    for axes, (what, methods) in zip(figure.subplots(len(lines), 1), lines.items(), strict=True):
        drawn = zip(methods.items(), styles_of(methods), strict=True)
        for (method, (numbers, taken)), style in drawn:
            colour, _, marker = style
            axes.plot((0, numbers[-1]), (0, taken[-1]), color=GREY, linewidth=0.9)
            label = method if axes is figure.axes[0] else None
            axes.plot(numbers, taken, marker, color=colour, markersize=5, label=label)
        axes.set(xlabel=what, ylabel="seconds", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


# Learnt weights as pictures -----------------------------------------------------------------------
@styled
def weight_maps(weights: Mapping[str, Mapping[str, float]]) -> Figure:
    """{task: {module: weight}}: a panel a kind of module, tasks by transformer blocks."""
    kinds: dict[str, list[str]] = {}  # such as "self_attn.q_proj", in the order of the blocks
    for module in next(iter(weights.values())):
        kind = module.removeprefix(block_of(module)).strip(".") or module
        kinds.setdefault(kind, []).append(module)
    figure = Figure((WIDTH, 1.0 + 1.9 * len(kinds)), layout="constrained")
    reach = max(abs(w) for own in weights.values() for w in own.values())
    panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False).ravel()
    for axes, (kind, modules) in zip(panels, kinds.items(), strict=True):
        values = np.array([[own[module] for module in modules] for own in weights.values()])
        image = axes.imshow(values, aspect="auto", cmap=SIGNED, vmin=-reach, vmax=reach)
        axes.set(title=kind)
        axes.set_yticks(range(len(weights)), list(weights))
    panels[-1].set_xlabel(LAYER)
    _bar(figure, image, list(panels), label="weight", orientation="horizontal")
    return figure


# The figure of the chapter on serving -------------------------------------------------------------
Ratio = tuple[float, float, float]  # median, least, most


@styled
def serving(
    times: Mapping[str, Mapping[str, Mapping[str, Ratio]]],
    ticks: Sequence[str],
    memory: Mapping[str, tuple[Sequence[int], Sequence[float]]],
) -> Figure:
    """TIP's Figure 1: a panel a batch size, {panel: {step: {tick: ratio}}}, and memory in MB.

    Bars reach from the least to the most of a ratio; the line is the ratio 1.
    """
    rows = -(-len(times) // 2)
    figure = Figure((WIDTH, 2.9 + 1.4 * rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(0.9 + 1.4 * rows, 2.2))
    panels = top.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (title, steps) in zip(panels, times.items(), strict=False):
        axes.set_title(title)
        _ratios(axes, steps, ticks)
    for axes in panels[len(times) :]:
        axes.remove()
    top.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    top.supxlabel("unmerged adapters in the batch;\nA: one merged adapter, W: in the weights")
    top.supylabel("time / base model's time")
    _memory(bottom.subplots(), memory)
    return figure


def _ratios(axes: Axes, steps: Mapping[str, Mapping[str, Ratio]], ticks: Sequence[str]) -> None:
    axes.axhline(1, color=GREY, linewidth=0.9, linestyle=DASHED)
    for number, (step, ratios) in enumerate(steps.items()):
        colour, _, marker = SERIES[number]
        places = [ticks.index(tick) + 0.16 * (2 * number - 1) for tick in ratios]
        middle, low, high = np.array(list(ratios.values())).T
        around = (middle - low, high - middle)
        axes.errorbar(places, middle, around, fmt=marker, color=colour, label=step, linewidth=1)
    axes.set_xticks(range(len(ticks)), ticks)


def _memory(axes: Axes, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    for (name, (batches, megabytes)), style in zip(lines.items(), SERIES, strict=False):
        colour, line, marker = style
        axes.plot(batches, megabytes, line, color=colour, marker=marker, label=name)
    _double(axes, {batch for batches, _ in lines.values() for batch in batches})
    axes.set(xlabel="batch size", ylabel="memory of a pass, MB", ylim=(0, None))
    if lines:
        axes.legend(fontsize=9)


# Many variants ------------------------------------------------------------------------------------
Line = tuple[Sequence[float], Sequence[Interval]]  # x, and y with its band

ROW = 0.19  # inches of a line of text
LABELS, LETTERS = 0.5, 29  # labels get this share of the width, and these letters a line
ACROSS = 52  # letters of a heading, which has the whole width


@styled
def effects(found: pd.DataFrame, xlabel: str) -> Figure:
    """A forest plot of a ledger: a line a reading, in points, a heading a point, 0 marked.

    Where the verdict is better or worse the mark is a filled triangle towards that side, else an
    open circle. NaN: not measured yet, and written so.
    """
    groups = {
        f"{point}. {question}": {one.reading: one for one in own.itertuples()}
        for (point, question), own in found.groupby(["point", "question"], sort=False)
    }
    placed, lines = _places(groups)
    height = 0.85 + ROW * lines
    figure = Figure((WIDTH, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=LABELS, right=0.98, top=1 - 0.05 / height, bottom=0.7 / height)
    for title, readings in groups.items():
        _label(axes, placed[title, None], fill(title, ACROSS), fontweight="bold")
        ys = [placed[title, reading] for reading in readings]
        axes.plot((0, 0), (ys[0] + 0.6, ys[-1] - 0.6), color=GREY, linewidth=0.9)
        for y, (reading, one) in zip(ys, readings.items(), strict=True):
            _label(axes, y, fill(reading, LETTERS), indent=0.03)
            clear = one.verdict in (Verdict.BETTER, Verdict.WORSE)
            _effect(axes, y, *(100 * n for n in (one.value, one.low, one.high)), clear)
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


def _effect(axes: Axes, y: float, value: float, low: float, high: float, clear: bool) -> None:
    if np.isnan(value):
        axes.text(0, y, f" {MISSING}", va="center", fontsize=8, style="italic")
        return
    colour, marker = GREY, "o"
    if clear:
        colour, marker = (BLUE, ">") if value > 0 else (ORANGE, "<")
    axes.plot((low, high), (y, y), color=colour)
    face = "none" if marker == "o" else colour
    axes.plot(value, y, marker, color=colour, markerfacecolor=face, markersize=5)


@styled
def sweep(
    series: Mapping[str, Line],
    xlabel: str,
    ylabel: str = "accuracy (mean over tasks)",
    levels: Mapping[str, Interval] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Lines with bands over a number that was varied; levels: what doesn't depend on it."""
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    _draw_sweep(axes, series, levels or {})
    if logarithmic:
        _double(axes, {x for numbers, _ in series.values() for x in numbers})
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@styled
def sweep_panels(tasks: Mapping[str, Mapping[str, Line]], xlabel: str) -> Figure:
    """`sweep` in small, a panel a task, each with a scale of its own: {task: {series: line}}."""
    tasks = tasks or {"": {}}
    figure, panels = _panels(tasks, xlabel, "accuracy")
    for axes, series in zip(panels, tasks.values(), strict=True):
        _draw_sweep(axes, series, {})
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _draw_sweep(axes: Axes, series: Mapping[str, Line], levels: Mapping[str, Interval]) -> None:
    if len(series) > len(STYLES):
        raise ValueError(f"{len(series)} lines; there are styles for {len(STYLES)}")
    if not series:
        axes.text(0.5, 0.5, MISSING, transform=axes.transAxes, ha="center", style="italic")
    styles = styles_of(series)
    for (name, (x, bounds)), (colour, line, marker) in zip(series.items(), styles, strict=True):
        value, low, high = np.array(bounds, dtype=float).T
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, value, line, color=colour, marker=marker, label=name)
    for (name, (value, low, high)), style in zip(levels.items(), (DASHED, ":"), strict=False):
        axes.axhspan(low, high, color=GREY, alpha=0.14, linewidth=0)
        axes.axhline(value, color=GREY, linestyle=style, linewidth=0.9, label=name)


def _double(axes: Axes, numbers: set[float]) -> None:
    """A scale on which every doubling is as wide, with a tick at each of the numbers."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(numbers), [f"{number:g}" for number in sorted(numbers)])


def mark_levels(axes: Axes, levels: Mapping[str, float], named: bool = True) -> None:
    """Lines, their names above the axes and away from each other."""
    above = axes.get_xaxis_transform()
    styles = ((DASHED, "right"), (":", "left"))
    for (name, value), (style, side) in zip(levels.items(), styles, strict=False):
        axes.axvline(value, color=GREY, linewidth=0.9, linestyle=style)
        if named:
            axes.text(value, 1, name, transform=above, ha=side, va="bottom", fontsize=9)
