"""Stored results as one tidy frame, a line an evaluated row; tables and figures are its pivots."""

from collections.abc import Mapping

import pandas as pd

from tipmini_lab.results.store import Cell, Place, in_one_format

COLUMNS = ("variant", "task", "row", "value")


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


def wide(frame: pd.DataFrame) -> pd.DataFrame:
    """(task and row, variant) values, so that what answered the same rows stands side by side."""
    return frame.pivot(index=["task", "row"], columns="variant", values="value")
