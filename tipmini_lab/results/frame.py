"""Stored results as one frame, a line an evaluated row; tables and figures are its pivots."""

from collections.abc import Mapping

import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab.results.store import Cell, Place, in_one_format

COLUMNS = ("variant", "task", "row", "value")
LEVELS = ("task", "row")  # of rows side by side


def tidy(cells: Mapping[Place, Cell]) -> pd.DataFrame:
    """(rows of all cells, 4) variant, task, row (from 0), value, in the cells' order.

    Of a corpus a row is a window and its value the mean loss of a token. Raises TipminiError for
    cells of several number formats, which can't be compared.
    """
    parts = [
        pd.DataFrame({"variant": name, "task": task, "row": range(c.count), "value": c.values})
        for (name, task), c in in_one_format(cells).items()
    ]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    return frame.astype({"variant": "category", "task": "category", "value": float})


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """By (variant, task): mean, standard error (sample), rows, and the sum of the values."""
    by = frame.groupby(["variant", "task"], sort=False, observed=True)["value"]
    found = by.agg(mean="mean", sem="sem", rows="count", right="sum")
    return found.fillna({"sem": 0.0})  # of one row


def wide(cells: Mapping[Place, Cell]) -> pd.DataFrame:
    """(task, row) by variants: rows side by side, NaN on tasks that a variant has no cell of.

    Raises TipminiError unless all cells of a task are of the same rows, and all of one number
    format. The metrics may differ: that, too, is an effect.
    """
    tasks: dict[str, dict[str, Cell]] = {}
    for (name, task), cell in in_one_format(cells).items():
        tasks.setdefault(task, {})[name] = cell
    for task, own in tasks.items():
        kinds = {(cell.count, cell.inputs.get("data")): name for name, cell in own.items()}
        if len(kinds) > 1:
            told = ", ".join(kinds.values())
            raise TipminiError(f"{told} on {task}: not measured on the same rows")
    parts = {
        t: pd.DataFrame({name: c.values for name, c in own.items()}) for t, own in tasks.items()
    }
    empty = pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=LEVELS))
    return pd.concat(parts, names=LEVELS) if parts else empty
