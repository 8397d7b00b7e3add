"""The figure of the chapter on serving; style and colours are those of `figures`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tipmini.lab.figures import GREY, SERIES, WIDTH, styled

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
    for label in (top._supxlabel, top._supylabel):
        label.set_fontsize(10)
    return figure


def _ratios(axes: Axes, steps: Mapping[str, Mapping[str, Ratio]], ticks: Sequence[str]) -> None:
    axes.axhline(1, color=GREY, linewidth=0.9, linestyle=(0, (5, 4)))
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
    every = sorted({batch for batches, _ in lines.values() for batch in batches})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(batch) for batch in every])
    axes.set(xlabel="batch size", ylabel="memory of a pass, MB", ylim=(0, None))
    if lines:
        axes.legend(fontsize=9)
