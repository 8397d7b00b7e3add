"""What a figure shows, as numbers: the CSV that is offered below it."""

import csv
import io
from collections.abc import Iterator

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

CELLS = 20_000  # of a picture; larger ones are weights, which the adapters hold


def plotted(figure: Figure) -> str:
    """A line a point: its panel, its series and kind, x, y, and of a cell of a picture its value.

    Intervals are lines of two points. Where an axis is labelled by names, the name stands for the
    position.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["panel", "series", "kind", "x", "y", "value"])
    for number, axes in enumerate(figure.get_axes(), 1):
        panel = axes.get_title() or axes.get_ylabel() or f"panel {number}"
        writer.writerows([" ".join(panel.split()), *row] for row in _points(axes))
    return out.getvalue()


def _points(axes: Axes) -> Iterator[list]:
    labels = {id(part): own.get_label() for own in axes.containers for part in _parts(own)}

    def point(artist: Artist, kind: str, x: float, y: float, value: str = "") -> list:
        told = str(labels.get(id(artist), artist.get_label()))
        series = "" if told.startswith("_") else " ".join(told.split())
        return [series, kind, _named(axes.xaxis, x), _named(axes.yaxis, y), value]

    for line in axes.lines:
        yield from (point(line, "point", *place) for place in line.get_xydata())
    for drawn in axes.collections:
        if isinstance(drawn, LineCollection):
            for segment in drawn.get_segments():
                yield from (point(drawn, "interval", *place) for place in segment)
        elif isinstance(drawn, PathCollection):
            yield from (point(drawn, "point", *place) for place in drawn.get_offsets())
    for bar in (patch for patch in axes.patches if isinstance(patch, Rectangle)):
        ends = bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height()
        yield point(bar, "bar", *ends)
    for image in axes.images:
        values = np.ma.asarray(image.get_array())
        for (row, column), value in np.ndenumerate(values) if values.size <= CELLS else ():
            yield point(image, "cell", column, row, _number(value))


def _parts(container: Container) -> Iterator[Artist]:
    """The artists of a container; of error bars, lines within tuples."""
    for part in container:
        yield from part if isinstance(part, tuple) else [part]


def _named(axis: Axis, value: float) -> str:
    formatter = axis.get_major_formatter()  # a function, where ticks have names of their own
    return (isinstance(formatter, FuncFormatter) and formatter(value)) or _number(value)


def _number(value: float) -> str:
    return f"{float(value):.6g}"
