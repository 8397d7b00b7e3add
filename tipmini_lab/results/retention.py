"""Retention: how much of what the tasks' own adapters add is left after merging them into one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tipmini_lab.results.statistics import (
    DRAWS,
    LEVEL,
    Cells,
    Interval,
    generator_of,
    holm,
    interval,
    measured,
    resampled,
    rows_of,
    tasks_of,
)
from tipmini_lab.results.store import paired_p


@dataclass(frozen=True)
class Gain:
    """Single - Base on a task: what the task's own adapter adds."""

    value: float
    corrected: float  # p of the exact sign test, by Holm's method over the tasks

    def learnt(self, level: float = LEVEL) -> bool:
        return self.value > 0 and self.corrected < level


@dataclass(frozen=True)
class Retention:
    """(merged - Base) / (Single - Base): 1 keeps all of what the adapters add, 0 nothing."""

    tasks: dict[str, Interval]
    mean: Interval  # of the tasks' ratios


def single_gains(cells: Cells, tasks: Iterable[str] | None = None) -> dict[str, Gain]:
    """Single against Base on every task that has both."""
    tasks = [
        t
        for t in (tasks_of(cells) if tasks is None else tasks)
        if measured(cells, ("base", "single"), [t])
    ]
    pairs = [(cells["single", task], cells["base", task]) for task in tasks]
    ps = holm([paired_p(*pair) for pair in pairs])
    values = [single.mean - base.mean for single, base in pairs]
    return {task: Gain(v, p) for task, v, p in zip(tasks, values, ps, strict=True)}


def learnt(cells: Cells, tasks: Iterable[str] | None = None, *, level: float = LEVEL) -> list[str]:
    """Tasks whose Single is significantly above Base: only there can retention be told.

    Elsewhere the ratio divides by a number that may well be 0.
    """
    return [task for task, gain in single_gains(cells, tasks).items() if gain.learnt(level)]


def retention(
    cells: Cells,
    name: str,
    tasks: Iterable[str] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Retention | None:
    """A variant's retention on the `learnt` of the tasks; None where there is none, or a hole.

    The mean is that of the ratios, so every task counts alike however much its adapter adds. Rows
    are drawn again within each task, the same of all three. A draw in which Single isn't above Base
    has no ratio and is left out; the rule for `learnt` keeps such draws few.
    """
    kept = learnt(cells, tasks, level=level)
    names = ("base", "single", name)
    if not measured(cells, names, kept):
        return None
    rows = {task: rows_of(cells, names, task) for task in kept}
    ratios = {task: float(_ratio(found.mean(0)[None])[0]) for task, found in rows.items()}
    drawn = {
        task: _ratio(resampled(found, generator_of(seed, task), draws))
        for task, found in rows.items()
    }
    return Retention(
        {task: interval(ratios[task], drawn[task]) for task in kept},
        interval(math.fsum(ratios.values()) / len(kept), np.mean(list(drawn.values()), axis=0)),
    )


def _ratio(means: np.ndarray) -> np.ndarray:
    """(n, 3) means of Base, Single and merged to (n,) ratios; nan where Single isn't above Base."""
    base, single, merged = means.T
    room = np.where(single > base, single - base, np.nan)
    return (merged - base) / room
