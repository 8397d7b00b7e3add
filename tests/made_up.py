"""Cells with made-up values, for tests of what is computed from cells."""

from collections.abc import Iterable

from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.results.store import Cell


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
