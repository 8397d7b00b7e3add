"""Cells with made-up values, for tests of what is computed from cells."""

from collections.abc import Iterable

import pandas as pd

from tipmini_lab.book import serving
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results.frame import wide
from tipmini_lab.results.store import Bundle, Cell, keep


def cell(method: str, task: str, values: Iterable[float], data: str = "d") -> Cell:
    numbers = [float(value) for value in values]
    return Cell(
        **{"key": "k", "inputs": {"model": "m", "data": data}, "code": {}, "profile": "smoke"},
        **{
            "method": method,
            "task": task,
            "metric": METRIC[task],
            "values": numbers,
            "dtype": "float32",
        },
        **{"seconds": 1.5, "date": "2026-01-31", "machine": {}, "versions": {}},
    )


def cells(rows: dict[str, dict[str, Iterable[float]]]) -> dict[tuple[str, str], Cell]:
    """{(variant, task): cell} of {variant: {task: values}}."""
    return {
        (name, task): cell(name, task, values)
        for name, tasks in rows.items()
        for task, values in tasks.items()
    }


def rows(values: dict[str, dict[str, Iterable[float]]]) -> pd.DataFrame:
    """The same cells side by side."""
    return wide(cells(values))


# Candidates of a choice, on held-out rows of two tasks -------------------------------------------

CHOOSING = ("boolq", "rte")


def scored(**rows: tuple[list, list]) -> dict[tuple[str, str], Cell]:
    """{name: values on the two tasks} as cells."""
    return cells({name: dict(zip(CHOOSING, pair, strict=True)) for name, pair in rows.items()})


def keep_scored(profile: Profile, found: dict, final: bool = False) -> None:
    place = profile.finals_store if final else profile.selection_store
    for (name, _), one in found.items():
        keep(place, Bundle(name=name, title=name, settings={}, facts={}, cells=[one]))


# Five variants of which one is not measured everywhere, of 40 rows a task ------------------------

SMOKE = load_profile("smoke")
TITLES = {"base": "Base", "single": "Single", "tip": "TIP", "ties": "TIES", "good": "Good"}


def right(count: int) -> list[int]:
    return [1] * count + [0] * (40 - count)


ROWS = rows(
    {
        "base": {"openbookqa": right(10), "rte": right(20)},
        "single": {"openbookqa": right(30), "rte": right(21)},
        "tip": {"openbookqa": right(20), "rte": right(20)},
        "good": {"openbookqa": right(40), "rte": right(20)},
        "ties": {"rte": right(20)},
    }
)

# Counts of the tiny LLaMA and its adapter of rank 4, by hand: a block has 16 x 16 (q, o), 8 x 16
# (k, v) and three of 16 x 24; A and B have 4 (16 + 16) elements on q and 4 (16 + 8) on v.
BLOCK = 2 * 256 + 2 * 128 + 3 * 384
SIZES = serving.Sizes(
    linear=2 * BLOCK,
    modules=2 * 7,
    head=64 * 16,
    adapter=2 * (128 + 96),
    adapted=2 * 2,
    attention=2 * 2 * 8,
    cache=2 * 2 * 8,
    width=4,
)
