"""Statistics of cells: paired rows drawn again, differences with intervals, corrected tests.

Draws are the same at every run: they depend on the seed and the task's name, and on neither the
order of rows nor that of tasks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeVar

import numpy as np

from tipmini.errors import TipminiError
from tipmini_lab.results.store import Cell, paired_p

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


# What cells say together --------------------------------------------------------------------------
Key = TypeVar("Key")

MISSING = "not measured yet"
LEVEL = 0.05  # of every test, after its correction
COVERED = 1.96  # standard errors to each side of a 95% interval


class Verdict(StrEnum):
    """What a comparison shows, in the words of the book."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "not significant"
    MISSING = MISSING


SIDES = (Verdict.BETTER, Verdict.WORSE)


@dataclass(frozen=True)
class Comparison(Interval):
    """A variant's mean accuracy minus another's, as shares of rows, over the same rows."""

    p: float  # two-sided, by sign-flip permutation
    corrected: float  # the same by Holm's method, over all that is compared at once
    better: tuple[str, ...]  # tasks by the exact sign test, corrected over all pairs and tasks
    worse: tuple[str, ...]

    def verdict(self, level: float = LEVEL) -> Verdict:
        return _judged(self.value, self.corrected, level)


# Means --------------------------------------------------------------------------------------------


def tasks_of(cells: Cells) -> list[str]:
    return list(dict.fromkeys(task for _, task in cells))


def mean_of(cells: Cells, name: str, tasks: Iterable[str]) -> tuple[float, float] | None:
    """Mean over tasks of a variant's accuracies and its standard error; None if a cell is missing.

    Tasks count alike whatever their rows; their errors are independent.
    """
    row = [cells.get((name, task)) for task in tasks]
    if not row or None in row:
        return None
    error = math.sqrt(math.fsum(cell.stderr**2 for cell in row)) / len(row)
    return math.fsum(cell.mean for cell in row) / len(row), error


def mean_interval(cells: Cells, name: str, tasks: Iterable[str]) -> Interval | None:
    """`mean_of` as an interval: 1.96 standard errors to each side."""
    found = mean_of(cells, name, tasks)
    if found is None:
        return None
    mean, error = found
    return Interval(mean, mean - COVERED * error, mean + COVERED * error)


# Two variants on the same rows --------------------------------------------------------------------


def difference(
    cells: Cells,
    name: str,
    against: str,
    tasks: Iterable[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Mean accuracy of `name` minus that of `against`, with its paired bootstrap interval.

    Rows are drawn again within each task, and the tasks' means are averaged. The interval is that
    of the percentiles. Raises TipminiError for cells that are not of the same rows.
    """
    first, second = sorted((name, against))  # so that a pair has one interval, either way round
    gains = gains_of(cells, second, first, tasks)
    drawn = [
        resampled(gain[:, None], generator_of(seed, task), draws)[:, 0]
        for task, gain in gains.items()
    ]
    found = interval(mean_of_tasks(gains), np.mean(drawn, axis=0))
    return found if name == second else found.turned()


def flip_p(
    cells: Cells,
    name: str,
    against: str,
    tasks: Iterable[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Two-sided p of the difference of mean accuracies, by permutation.

    Were the two alike, every row's difference could as well have the other sign. p is the share of
    draws of all signs that lie as far from 0 as what was measured, which counts as one draw itself.
    """
    gains = gains_of(cells, name, against, tasks)
    drawn = [flipped(gain, generator_of(seed, task), draws) for task, gain in gains.items()]
    far = abs(mean_of_tasks(gains)) - 1e-12  # sums differ in their last bits
    return float(1 + np.sum(np.abs(np.mean(drawn, axis=0)) >= far)) / (draws + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the same order (Holm 1979, step-down).

    The smallest of m is multiplied by m, the next by m - 1, ...; none may be below one before it.
    """
    ps = np.asarray(ps, dtype=float)
    order = np.argsort(ps)
    steps = np.maximum.accumulate(ps[order] * (len(ps) - np.arange(len(ps))))
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(steps, 1)
    return corrected.tolist()


def holm_of(ps: Mapping[Key, float]) -> dict[Key, float]:
    """`holm` of p-values by name."""
    return dict(zip(ps, holm(list(ps.values())), strict=True))


class Pair(NamedTuple):
    """What is compared with what, and on which tasks."""

    name: str
    against: str
    tasks: tuple[str, ...]


def compare(
    cells: Cells, pairs: Sequence[Pair], *, level: float = LEVEL
) -> list[Comparison | None]:
    """All pairs with their tests corrected together; None where a cell is missing.

    What is missing counts in no correction.
    """
    there = [i for i, p in enumerate(pairs) if measured(cells, p[:2], p.tasks)]
    ps = [flip_p(cells, *pairs[i]) for i in there]
    signs = _sign_tests(cells, [pairs[i] for i in there], level)
    found: list[Comparison | None] = [None] * len(pairs)
    for i, p, corrected, sides in zip(there, ps, holm(ps), signs, strict=True):
        bounds = vars(difference(cells, *pairs[i]))
        found[i] = Comparison(**bounds, p=p, corrected=corrected, **sides)
    return found


def comparisons(
    cells: Cells,
    names: Iterable[str],
    against: str,
    tasks: Iterable[str] | None = None,
    *,
    level: float = LEVEL,
) -> dict[str, Comparison | None]:
    """Every variant against one; see `compare`. tasks: those of the cells by default."""
    names, tasks = list(dict.fromkeys(names)), tuple(tasks or tasks_of(cells))
    found = compare(cells, [Pair(name, against, tasks) for name in names], level=level)
    return dict(zip(names, found, strict=True))


def verdict(
    cells: Cells,
    name: str,
    against: str | Sequence[str],
    tasks: Iterable[str] | None = None,
    *,
    level: float = LEVEL,
) -> Verdict:
    """Whether a variant is better than all of `against`, worse than one of them, or neither.

    Better: its mean accuracy is significantly above each one's. That all hold needs no correction.
    Worse: it is significantly below any of them, corrected for their number.
    """
    others = [against] if isinstance(against, str) else list(against)
    tasks = list(tasks or tasks_of(cells))
    if not measured(cells, (name, *others), tasks):
        return Verdict.MISSING
    values = [mean_of_tasks(gains_of(cells, name, other, tasks)) for other in others]
    ps = [flip_p(cells, name, other, tasks) for other in others]
    plain = [_judged(v, p, level) for v, p in zip(values, ps, strict=True)]
    if all(word is Verdict.BETTER for word in plain):
        return Verdict.BETTER
    corrected = [_judged(v, p, level) for v, p in zip(values, holm(ps), strict=True)]
    return Verdict.WORSE if Verdict.WORSE in corrected else Verdict.OPEN


def measured(cells: Cells, names: Iterable[str], tasks: Iterable[str]) -> bool:
    """Whether every one of the variants has a cell of every task, and there are any."""
    wanted = [(name, task) for task in tasks for name in names]
    return bool(wanted) and all(place in cells for place in wanted)


def _judged(value: float, p: float, level: float) -> Verdict:
    if p >= level or value == 0:
        return Verdict.OPEN
    return Verdict.BETTER if value > 0 else Verdict.WORSE


def _sign_tests(
    cells: Cells, pairs: Sequence[Pair], level: float
) -> list[dict[str, tuple[str, ...]]]:
    """The tasks on which each pair's first is better and worse, corrected over all tests."""
    couples = [[(cells[p.name, t], cells[p.against, t]) for t in p.tasks] for p in pairs]
    ps = iter(holm([paired_p(one, two) for row in couples for one, two in row]))
    found = []
    for pair, row in zip(pairs, couples, strict=True):
        words = [_judged(one.mean - two.mean, next(ps), level) for one, two in row]
        told = list(zip(pair.tasks, words, strict=True))
        found.append({str(w): tuple(t for t, word in told if word is w) for w in SIDES})
    return found
