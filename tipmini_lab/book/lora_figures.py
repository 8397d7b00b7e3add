"""The figures of the chapters on LoRA; style and colours are those of `figures`."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from tipmini_lab.book.figures import GREY, SERIES, SIGNED, SIZES, WIDTH, colour_of, styled
from tipmini_lab.results.statistics import MISSING

SLOWEST = 1.6  # times the base's, where the axis ends
DASHED = {"color": GREY, "linestyle": (0, (5, 4)), "linewidth": 0.9}


def _empty(figure: Figure) -> Figure:
    figure.set_figheight(0.6)
    figure.text(0.5, 0.5, MISSING, ha="center")
    return figure


@styled
def reparametrised(weight: ArrayLike, b: ArrayLike, a: ArrayLike, delta: ArrayLike) -> Figure:
    """LoRA's Figure 1 of real tensors: W_0 (d, k), B (d, r), A (r, k), s B A (d, k).

    Each has a scale of its own; the factors are drawn wider than they are.
    """
    figure = Figure((WIDTH, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(5, 1, 5), height_ratios=(5, 1))
    places = {"W₀, frozen": (0, 0), "B": (0, 1), "s B A": (0, 2), "A": (1, 2)}
    for (title, place), values in zip(places.items(), (weight, b, delta, a), strict=True):
        values = np.asarray(values)
        reach = np.quantile(np.abs(values), 0.99) or 1.0
        axes = figure.add_subplot(grid[place])
        axes.imshow(values, aspect="auto", cmap=SIGNED, vmin=-reach, vmax=reach)
        axes.set(title=f"{title}\n{values.shape[0]} × {values.shape[1]}", xticks=[], yticks=[])
    return figure


@styled
def by_size(means: pd.DataFrame, untuned: float | None) -> Figure:
    """LoRA's Figure 2: accuracy against numbers trained, on a logarithmic axis; bars are 95%.

    means: `lora_tables.trained_means`.
    """
    figure = Figure((WIDTH, 3.8), layout="constrained")
    if means.empty:
        return _empty(figure)
    axes = figure.subplots()
    for title, one in means.iterrows():
        colour = colour_of(title) or GREY
        axes.errorbar(one.trained, one.value, yerr=one.reach, color=colour, marker="o", capsize=2)
    if untuned is not None:
        axes.axhline(untuned, **DASHED)
    axes.set(xscale="log", xlabel="numbers trained", ylabel="accuracy, mean of tasks")
    low, high = axes.get_ylim()
    for title, height in _apart(means, 0.045 * (high - low)).items():
        right = means.trained[title] > 0.5 * means.trained.max()
        told = {"xytext": (-6 if right else 6, 0), "ha": "right" if right else "left"}
        place = means.trained[title], height
        axes.annotate(title, place, textcoords="offset points", va="center", fontsize=9, **told)
    return figure


def _apart(means: pd.DataFrame, gap: float) -> dict[str, float]:
    """{title: height of its name}: that of its point, but `gap` above a name that stands there."""
    found: dict[str, float] = {}
    for title, one in means.sort_values("value").iterrows():
        near = [y for other, y in found.items() if 1 / 6 < means.trained[other] / one.trained < 6]
        found[title] = max([one.value, *(y + gap for y in near)])
    return found


@styled
def subspaces(found: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """LoRA's Figures 3 and 4: {title: {projection: (r1, r2) phi}}, as pictures from 0 to 1."""
    figure = Figure((WIDTH, 2.3 * max(1, len(found))), layout="constrained")
    drawn = {title: own for title, own in found.items() if own}
    if not drawn:
        return _empty(figure)
    grid = figure.subplots(len(drawn), max(map(len, drawn.values())), squeeze=False)
    for line, (title, own) in zip(grid, drawn.items(), strict=True):
        for axes, (projection, phi) in zip(line, own.items(), strict=False):
            image = axes.imshow(
                phi, cmap=SIZES, vmin=0, vmax=1, aspect="auto", extent=_extent(phi.shape)
            )
            axes.set(title=f"{title}\n{projection[0]}", xlabel="j", ylabel="i")
    figure.colorbar(image, ax=grid, shrink=0.7)
    return figure


def _extent(shape: tuple[int, int]) -> tuple[float, float, float, float]:
    return 0.5, shape[1] + 0.5, shape[0] + 0.5, 0.5


@styled
def lines(
    found: Mapping[str, pd.Series],
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A line a name over a logarithmic axis: {name: values by x}, of several at one x their mean,
    with a bar from the least to the most; dashed levels have names too."""
    figure = Figure((WIDTH, 3.4), layout="constrained")
    drawn = {name: values for name, values in found.items() if len(values)}
    if not drawn:
        return _empty(figure)
    axes = figure.subplots()
    for number, (name, values) in enumerate(drawn.items()):
        each = values.groupby(level=0).agg(["mean", "min", "max"])
        reach = [each["mean"] - each["min"], each["max"] - each["mean"]]
        told = {"color": SERIES[number % 4][0], "marker": "os^DvPX"[number % 7], "label": name}
        told["linestyle"] = SERIES[(number + number // 4) % 4][1]  # a colour's second line differs
        axes.errorbar(
            each.index,
            each["mean"],
            reach if (each["max"] > each["min"]).any() else None,
            capsize=2,
            **told,
        )
    for name, level in (levels or {}).items():
        axes.axhline(level, **DASHED)
        axes.annotate(name, (0.01, level), xycoords=("axes fraction", "data"), fontsize=9)
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    marked = sorted({x for values in drawn.values() for x in values.index})
    if len(marked) <= 9:
        axes.set_xticks(marked, [f"{x:g}" for x in marked])
        axes.minorticks_off()
    axes.legend(fontsize=9)
    return figure


@styled
def latencies(ratios: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Time over the base's by way, a panel a length, one mark a batch size, bars least to most.

    What is beyond the axis has its number at the edge.
    """
    figure = Figure((WIDTH, 6.0), layout="constrained")
    if ratios.empty:
        return _empty(figure)
    lengths = list(ratios.index.unique("length"))
    ways = [way for way in titles if way in ratios.index.unique("way")]
    panels = figure.subplots(len(lengths), 1, sharex=True, squeeze=False)[:, 0]
    for axes, length in zip(panels, lengths, strict=True):
        own = ratios.xs(length, level="length")
        batches = list(own.index.unique("batch"))
        for number, batch in enumerate(batches):
            colour, _, marker = SERIES[number % len(SERIES)]
            one = own.loc[batch].loc[ways]
            places = -np.arange(len(ways)) + 0.28 * (number - (len(batches) - 1) / 2)
            reach = np.abs(one[["min", "max"]].sub(one["median"], axis=0)).T.to_numpy()
            style = {"color": colour, "marker": marker, "linestyle": "none"}
            axes.errorbar(one["median"], places, xerr=reach, label=f"batch {batch}", **style)
        for number, way in enumerate(ways):
            over = own.xs(way, level="way")["median"]
            if told := ", ".join(f"{ratio:.1f}" for ratio in over[over > SLOWEST]):
                axes.text(SLOWEST, -number, f"× {told}", ha="right", va="center", fontsize=9)
        axes.axvline(1, **DASHED)
        axes.set_yticks(-np.arange(len(ways)), [titles[way] for way in ways], fontsize=9)
        axes.set_title(f"{length} token{'s' * (length > 1)}")
        axes.set_xlim(0.9, SLOWEST)
    axes.set_xlabel("time over the base model's")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[0]), fontsize=9)
    return figure
