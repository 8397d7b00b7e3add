"""Retention: how much of what the tasks' own adapters add is left after merging them into one."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from tipmini_lab.results.statistics import (
    DRAWS,
    LEVEL,
    Interval,
    accuracy,
    generator_of,
    holm,
    interval,
    measured,
    resampled,
    rows_of,
    sign_p,
)

OWN = ("base", "single")
MEAN = "mean"  # of the tasks' ratios
WITHOUT = "without"  # that of all but the highest, which one task can't carry alone


def single_gains(rows: pd.DataFrame, tasks: Iterable[str]) -> pd.DataFrame:
    """What the tasks' own adapters add: Single - Base, a line a task that has both.

    corrected: p of the exact sign test, by Holm's method over the tasks. learnt: whether Single is
    significantly above Base. Only there can retention be told: elsewhere the ratio divides by a
    number that may well be 0.
    """
    pairs = {t: rows_of(rows, OWN, t).T for t in tasks if measured(rows, OWN, [t])}
    found = pd.DataFrame(index=list(pairs))
    found["value"] = [accuracy(single)[0] - accuracy(base)[0] for base, single in pairs.values()]
    found["corrected"] = holm([sign_p(single - base) for base, single in pairs.values()])
    found["learnt"] = (found.value > 0) & (found.corrected < LEVEL)
    return found


def learnt(rows: pd.DataFrame, tasks: Iterable[str]) -> list[str]:
    """The tasks that retention is told of: see `single_gains`."""
    return [gain.Index for gain in single_gains(rows, tasks).itertuples() if gain.learnt]


def retention(rows: pd.DataFrame, name: str, tasks: Iterable[str]) -> dict[str, Interval]:
    """{task: (merged - Base) / (Single - Base)} of the `learnt` tasks, of MEAN, and of WITHOUT.

    1 keeps all of what the adapters add, 0 nothing. Empty where no task is learnt, or with a hole.
    The mean is that of the ratios, so every task counts alike however much its adapter adds. Rows
    are drawn again within each task, the same of all three. A draw in which Single isn't above Base
    has no ratio and is left out; the rule for `learnt` keeps such draws few.
    """
    kept, names = learnt(rows, tasks), (*OWN, name)
    if not measured(rows, names, kept):
        return {}
    ratios, drawn = {}, {}
    for task in kept:
        own = rows_of(rows, names, task)
        ratios[task] = float(_ratio(own.mean(0)[None])[0])
        drawn[task] = _ratio(resampled(own, generator_of(task), DRAWS))
    found = {task: interval(ratios[task], drawn[task]) for task in kept}
    others = sorted(kept, key=ratios.get)[:-1]
    for name, tasks in {MEAN: kept, **({WITHOUT: others} if others else {})}.items():
        mean = math.fsum(ratios[task] for task in tasks) / len(tasks)
        found[name] = interval(mean, np.mean([drawn[task] for task in tasks], axis=0))
    return found


def _ratio(means: np.ndarray) -> np.ndarray:
    """(n, 3) means of Base, Single and merged to (n,) ratios; nan where Single isn't above Base."""
    base, single, merged = means.T
    room = np.where(single > base, single - base, np.nan)
    return (merged - base) / room
