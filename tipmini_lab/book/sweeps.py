"""Sweeps: one setting moved over its values, as lines with bands and as tables."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from tipmini.methods.table import equal_weight
from tipmini_lab.book.tables import EMPTY, TITLES, Titles, narrow, points, share
from tipmini_lab.experiments.catalogue import WEIGHTS_TOLD
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results.retention import MEAN, learnt, retention
from tipmini_lab.results.statistics import MISSING, Interval, Pair, Verdict, compare, mean_interval

Line = tuple[list[float], list[Interval]]  # x, and y with its band


class Place(NamedTuple):
    """A value of a line of a declared `catalogue.Sweep`."""

    line: str  # as the figures call it
    value: float | str
    x: float  # where the value stands on the axis
    variant: str  # that is stored
    tasks: tuple[str, ...]  # that are evaluated there


def places(sweep, profile: Profile, titles: Titles = TITLES) -> list[Place]:
    """All values of all lines; one that is declared with the sweep has a title of its own."""
    titled = [
        (o, titles.get(o, o)) if isinstance(o, str) else (o.name, o.title) for o in sweep.lines
    ]
    return [
        Place(title, value, x, sweep.place(name, value), tasks)
        for name, title in titled
        for value, x, tasks in _axis(sweep, profile)
    ]


def beside(sweep, profile: Profile, names: Titles) -> list[Place]:
    """Variants that the setting doesn't touch, {name: title}, over the same tasks at each value."""
    return [Place(names[n], v, x, n, t) for n in names for v, x, t in _axis(sweep, profile)]


def _axis(sweep, profile: Profile) -> list[tuple[float | str, float, tuple[str, ...]]]:
    """The values in order, each with its x, a rule of weights as each adapter's, and its tasks.

    These are all, or those of the adapters that are merged there.
    """
    count = len(profile.tasks)
    points = [(v, equal_weight(v, count) if isinstance(v, str) else float(v)) for v in sweep.values]
    merged = lambda value: int(value) if sweep.moves == "adapters" else count  # noqa: E731
    return [(v, x, profile.tasks[: merged(v)]) for v, x in sorted(points, key=lambda p: p[1])]


def lines(rows: pd.DataFrame, swept: Iterable[Place]) -> dict[str, Line]:
    """{title: line} of the mean accuracies.

    A value is left out until all its tasks are measured, a line until it has a value.
    """
    found: dict[str, Line] = {}
    for place in swept:
        if band := mean_interval(rows, place.variant, place.tasks):
            x, y = found.setdefault(place.line, ([], []))
            x.append(place.x)
            y.append(band)
    return found


def in_words(lines: dict[str, Line]) -> str:
    """Of each line its ends, and its highest value if it lies between: "TIP 0.401 at 1, ..."."""
    parts = []
    for title, (xs, found) in lines.items():
        values = [one.value for one in found]
        top, last = values.index(max(values)), len(values) - 1
        told = {i: f"{values[i]:.3f} at {xs[i]:.3g}" for i in sorted({0, top, last})}
        if top not in (0, last):
            told[top] = f"highest {told[top]}"
        parts.append(f"{title} {', '.join(told.values())}")
    return "; ".join(parts) or MISSING


def by_task(
    rows: pd.DataFrame, swept: Sequence[Place], tasks: Titles
) -> dict[str, dict[str, Line]]:
    """{task: {title: line}} of {task: its title}, for small panels.

    A task without a value is left out.
    """
    found = {
        title: lines(rows, [p._replace(tasks=(task,)) for p in swept if task in p.tasks])
        for task, title in tasks.items()
    }
    return {title: own for title, own in found.items() if own}


def compared(rows: pd.DataFrame, swept: Sequence[Place], reference: float | str) -> pd.DataFrame:
    """`compare` of every place with one variant, its line and value before; corrected together.

    reference: the variant's name, or a value at which each line is held against itself. What would
    be compared with itself is left out.
    """
    own = {place.line: place.variant for place in swept if place.value == reference}
    pairs = {p: Pair(p.variant, own.get(p.line, reference), p.tasks) for p in swept}
    kept = [place for place, pair in pairs.items() if pair.name != pair.against]
    found = compare(rows, [pairs[place] for place in kept])
    found.insert(0, "line", [place.line for place in kept])
    found.insert(1, "at", [WEIGHTS_TOLD.get(str(place.value), str(place.value)) for place in kept])
    return found


def table(found: pd.DataFrame, moved: str) -> pd.DataFrame:
    """A row a value, a column a line: the difference in points, bold where it is significant."""
    texts = [_bold(one) for one in found.itertuples()]
    wide = _pivot(found.assign(text=texts)).rename_axis(moved)
    return wide.rename(columns=lambda line: narrow(line, 12))


def _bold(one) -> str:
    value, line, band = points(one).partition("<br>")
    clear = one.verdict in (Verdict.BETTER, Verdict.WORSE)
    return f"**{value}**{line}{band}" if clear else points(one)


def _pivot(found: pd.DataFrame) -> pd.DataFrame:
    """Lines as columns and values as rows, both in the order they come in."""
    wide = found.pivot(index="at", columns="line", values="text").fillna(EMPTY)
    return wide.loc[found["at"].unique(), found["line"].unique()].rename_axis(columns=None)


# Retention by the number of adapters --------------------------------------------------------------


def retained(rows: pd.DataFrame, swept: Iterable[Place], profile: Profile) -> pd.DataFrame:
    """line, at, x, tasks (how many) and kept (the mean's interval or None) of every place.

    On the tasks evaluated there whose adapter has learnt its task. Which these are is told once, on
    all of the profile's tasks, so that no value has a test of its own.
    """
    known, lines = learnt(rows, profile.tasks), []
    for place in swept:
        own = [task for task in place.tasks if task in known]
        found = retention(rows, place.variant, own)
        count = sum(task in found for task in own)
        lines.append((place.line, place.value, place.x, count, found.get(MEAN)))
    return pd.DataFrame(lines, columns=["line", "at", "x", "tasks", "kept"])


def retention_lines(found: pd.DataFrame) -> dict[str, Line]:
    """As the figures take them; a line without a value is left out."""
    there = found[found.kept.notna()]
    return {line: (list(own.x), list(own.kept)) for line, own in there.groupby("line", sort=False)}


def retention_table(found: pd.DataFrame) -> pd.DataFrame:
    """A row a number of adapters with how many tasks count there, a column a line."""
    wide = _pivot(found.assign(text=[share(one) for one in found.kept])).rename_axis("adapters")
    wide.insert(0, "tasks", found.groupby("at").tasks.max().astype(str))
    return wide
