"""Rows of cells drawn again: what a number would be, had other rows of the same kind been asked.

Draws are the same at every run: they depend on the seed and the task's name, and on neither the
order of rows nor that of tasks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tipmini.errors import TipminiError
from tipmini.lab.results import Cell

Cells = Mapping[tuple[str, str], Cell]  # (variant, task) -> cell

Bounds = tuple[float, float, float]  # an interval as figures take it: value, low, high

DRAWS = 10_000  # of bootstraps and permutations: the smallest p is 1 / 10,001


@dataclass(frozen=True)
class Interval:
    """A number and the bounds of its 95% interval."""

    value: float
    low: float
    high: float

    def turned(self) -> "Interval":
        """Of the same difference, taken the other way round."""
        return Interval(-self.value, -self.high, -self.low)


def bounds(interval: Interval) -> Bounds:
    return interval.value, interval.low, interval.high


def rows_of(cells: Cells, names: Sequence[str], task: str) -> np.ndarray:
    """(rows, variants) values on a task; TipminiError unless all are of the same rows and format.

    The metrics may differ: that, too, is an effect.
    """
    found = [cells[name, task] for name in names]
    if len({(cell.count, cell.inputs.get("data")) for cell in found}) > 1:
        raise TipminiError(f"{', '.join(names)} on {task}: not measured on the same rows")
    if len({cell.dtype for cell in found}) > 1:
        raise TipminiError(f"{', '.join(names)} on {task}: not measured in one number format")
    return np.array([cell.values for cell in found]).T


def gains_of(cells: Cells, name: str, against: str, tasks: Iterable[str]) -> dict[str, np.ndarray]:
    """{task: (rows,) value of `name` minus that of `against`}."""
    pairs = {task: rows_of(cells, (against, name), task) for task in tasks}
    return {task: rows[:, 1] - rows[:, 0] for task, rows in pairs.items()}


def mean_of_tasks(gains: Mapping[str, np.ndarray]) -> float:
    return math.fsum(math.fsum(gain) / len(gain) for gain in gains.values()) / len(gains)


def generator_of(seed: int, task: str) -> np.random.Generator:
    return np.random.default_rng([seed, *task.encode()])


def resampled(rows: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Means when rows are drawn again with replacement: (rows, k) to (draws, k).

    Rows that are alike are counted, and how often each kind is drawn is multinomial. That is fast,
    and the order of the rows has no say.
    """
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    drawn = generator.multinomial(len(rows), counts / len(rows), size=draws)
    return drawn @ kinds / len(rows)


def flipped(gain: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    """Means when every row's difference gets a random sign: (rows,) to (draws,)."""
    sizes, counts = np.unique(np.abs(gain), return_counts=True)
    kept = generator.binomial(counts, 0.5, size=(draws, len(counts)))
    return (2 * kept - counts) @ sizes / len(gain)


def interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))
