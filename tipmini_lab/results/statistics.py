"""Statistics of rows side by side: means, paired differences with intervals, corrected tests.

`rows` is a frame of `results.frame` everywhere. Draws are the same at every run: they depend on the
task's name, and on neither the order of rows nor that of tasks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

Key = TypeVar("Key")

MISSING = "not measured yet"
LEVEL = 0.05  # of every test, after its correction
COVERED = 1.96  # standard errors to each side of a 95% interval
DRAWS = 10_000  # of bootstraps and permutations: the smallest p is 1 / 10,001


class Interval(NamedTuple):
    """A number and the bounds of its 95% interval."""

    value: float
    low: float
    high: float


class Pair(NamedTuple):
    """What is compared with what, and on which tasks."""

    name: str
    against: str
    tasks: tuple[str, ...]


class Verdict(StrEnum):
    """What a comparison shows, in the words of the book."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "not significant"
    MISSING = MISSING


# Means --------------------------------------------------------------------------------------------


def accuracy(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error: the sample's deviation over the root of the count."""
    count, mean = len(values), math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(spread / max(1, count - 1) / count)


def tasks_of(rows: pd.DataFrame) -> list[str]:
    return list(rows.index.unique("task"))


def measured(rows: pd.DataFrame, names: Iterable[str], tasks: Iterable[str]) -> bool:
    """Whether every one of the variants is measured on every task, and there are any."""
    names, tasks = list(names), list(tasks)
    known = all(n in rows.columns for n in names) and all(t in rows.index for t in tasks)
    if not (names and tasks and known):
        return False
    return not any(np.isnan(rows_of(rows, names, task)).any() for task in tasks)


def rows_of(rows: pd.DataFrame, names: Sequence[str], task: str) -> np.ndarray:
    """(rows, variants) values on a task."""
    own = rows.loc[task]
    return np.array([own[name] for name in names]).T


def mean_of(
    rows: pd.DataFrame, name: str, tasks: Iterable[str] | None = None
) -> tuple[float, float] | None:
    """Mean over tasks of a variant's accuracies and its standard error; None with a hole.

    Tasks count alike whatever their rows; their errors are independent. Default: all tasks.
    """
    tasks = tasks_of(rows) if tasks is None else list(tasks)
    if not measured(rows, [name], tasks):
        return None
    found = [accuracy(rows_of(rows, [name], task)[:, 0]) for task in tasks]
    means, errors = zip(*found, strict=True)
    error = math.sqrt(math.fsum(error**2 for error in errors)) / len(tasks)
    return math.fsum(means) / len(tasks), error


def mean_interval(rows: pd.DataFrame, name: str, tasks: Iterable[str]) -> Interval | None:
    """`mean_of` as an interval: 1.96 standard errors to each side."""
    if (found := mean_of(rows, name, tasks)) is None:
        return None
    mean, error = found
    return Interval(mean, mean - COVERED * error, mean + COVERED * error)


# Rows drawn again ---------------------------------------------------------------------------------


def generator_of(task: str) -> np.random.Generator:
    return np.random.default_rng([0, *task.encode()])


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
    """The value within the percentiles of what was drawn."""
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))


# Two variants on the same rows --------------------------------------------------------------------


def gains_of(
    rows: pd.DataFrame, name: str, against: str, tasks: Iterable[str]
) -> dict[str, np.ndarray]:
    """{task: (rows,) value of `name` minus that of `against`}."""
    return {task: np.subtract(*rows_of(rows, (name, against), task).T) for task in tasks}


def mean_of_tasks(gains: Mapping[str, np.ndarray]) -> float:
    return math.fsum(math.fsum(gain) / len(gain) for gain in gains.values()) / len(gains)


def difference(
    rows: pd.DataFrame, name: str, against: str, tasks: Iterable[str], draws: int = DRAWS
) -> Interval:
    """Mean accuracy of `name` minus that of `against`, with its paired bootstrap interval.

    Rows are drawn again within each task, and the tasks' means are averaged. The interval is that
    of the percentiles.
    """
    first, second = sorted((name, against))  # so that a pair has one interval, either way round
    gains = gains_of(rows, second, first, tasks)
    drawn = [
        resampled(gain[:, None], generator_of(task), draws)[:, 0] for task, gain in gains.items()
    ]
    found = interval(mean_of_tasks(gains), np.mean(drawn, axis=0))
    return found if name == second else Interval(-found.value, -found.high, -found.low)


def flip_p(
    rows: pd.DataFrame, name: str, against: str, tasks: Iterable[str], draws: int = DRAWS
) -> float:
    """Two-sided p of the difference of mean accuracies, by permutation.

    Were the two alike, every row's difference could as well have the other sign. p is the share of
    draws of all signs that lie as far from 0 as what was measured, which counts as one draw itself.
    """
    gains = gains_of(rows, name, against, tasks)
    drawn = [flipped(gain, generator_of(task), draws) for task, gain in gains.items()]
    far = abs(mean_of_tasks(gains)) - 1e-12  # sums differ in their last bits
    return float(1 + np.sum(np.abs(np.mean(drawn, axis=0)) >= far)) / (draws + 1)


def sign_p(gains: Iterable[float]) -> float:
    """Two-sided exact sign test on the examples that differ (McNemar's, for scores of 0 and 1)."""
    from scipy.stats import binomtest

    gains = np.asarray(gains)
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


# Many comparisons ---------------------------------------------------------------------------------


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


COMPARED = (*Pair._fields, *Interval._fields, "p", "corrected", "better", "worse", "verdict")


def compare(rows: pd.DataFrame, pairs: Sequence[Pair], draws: int = DRAWS) -> pd.DataFrame:
    """A line a pair, with all tests corrected together; NaN and MISSING where it isn't measured.

    value, low, high: of the `difference`. p, corrected: `flip_p`, and by Holm over all pairs; the
    more pairs, the more draws are needed for a p that survives its correction.
    better, worse: on how many tasks by the sign test, corrected over all pairs and tasks.
    verdict: of the difference at the corrected p. What is missing counts in no correction.
    """
    there = {i: p for i, p in enumerate(pairs) if measured(rows, p[:2], p.tasks)}
    gains = {(i, task): g for i, p in there.items() for task, g in gains_of(rows, *p).items()}
    signs = holm_of({place: sign_p(gain) for place, gain in gains.items()})
    ps = {i: flip_p(rows, *pair, draws=draws) for i, pair in there.items()}
    corrected = holm_of(ps)
    lines = [pair._asdict() | {"verdict": Verdict.MISSING} for pair in pairs]
    for i, pair in there.items():
        won = [_judged(math.fsum(gains[i, t]), signs[i, t]) for t in pair.tasks]
        found = difference(rows, *pair)
        lines[i] |= found._asdict() | {"p": ps[i], "corrected": corrected[i]}
        lines[i] |= {str(side): won.count(side) for side in (Verdict.BETTER, Verdict.WORSE)}
        lines[i]["verdict"] = _judged(found.value, corrected[i])
    return pd.DataFrame(lines, columns=COMPARED)


def verdict(found: pd.DataFrame) -> Verdict:
    """Whether a variant is better than all that `compare` held it against, worse than one of them.

    Better: its mean accuracy is significantly above each one's. That all hold needs no correction.
    Worse: it is significantly below any of them, corrected for their number.
    """
    if found.p.isna().any():
        return Verdict.MISSING
    if {_judged(one.value, one.p) for one in found.itertuples()} == {Verdict.BETTER}:
        return Verdict.BETTER
    return Verdict.WORSE if Verdict.WORSE in list(found.verdict) else Verdict.OPEN


def _judged(value: float, p: float) -> Verdict:
    if p >= LEVEL or value == 0:
        return Verdict.OPEN
    return Verdict.BETTER if value > 0 else Verdict.WORSE
