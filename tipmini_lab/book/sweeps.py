"""Sweeps: one setting moved over its values, as lines with bands, as tables and in words."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import pandas as pd

from tipmini.methods.merge import equal_weight
from tipmini_lab.book.comparisons import points
from tipmini_lab.book.tables import EMPTY
from tipmini_lab.experiments.catalogue import WEIGHTS_TOLD
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results.retention import Retention, learnt, retention
from tipmini_lab.results.statistics import (
    MISSING,
    Bounds,
    Cells,
    Comparison,
    Pair,
    Verdict,
    bounds,
    compare,
    mean_interval,
    measured,
)

Line = tuple[list[float], list[Bounds]]  # x, and y with its band


def lines(cells: Cells, sweep, profile: Profile, titles: Mapping[str, str]) -> dict[str, Line]:
    """{title: line} of the mean accuracies of a declared `catalogue.Sweep`.

    A value is left out until all its tasks are measured, a line until it has a value.
    """
    found = {}
    for name, title in named(sweep, titles).items():
        places = {value: sweep.place(name, value) for value in sweep.values}
        groups = {v: (place, at(sweep, v, profile)) for v, place in places.items()}
        found[title] = _line(cells, groups, profile)
    return {title: line for title, line in found.items() if line[0]}


def references(cells: Cells, sweep, profile: Profile, names: Mapping[str, str]) -> dict[str, Line]:
    """Variants that the setting doesn't touch, {name: title}, over the same tasks at each value."""
    found = {
        title: _line(cells, {v: (name, at(sweep, v, profile)) for v in sweep.values}, profile)
        for name, title in names.items()
    }
    return {title: line for title, line in found.items() if line[0]}


def by_task(
    cells: Cells, sweep, profile: Profile, titles: Mapping[str, str]
) -> dict[str, dict[str, Line]]:
    """{task: {title: line}}, for small panels; tasks without a value are left out."""
    found: dict[str, dict[str, Line]] = {}
    for task in profile.tasks:
        for name, title in named(sweep, titles).items():
            groups = {
                v: (sweep.place(name, v), [task])
                for v in sweep.values
                if task in at(sweep, v, profile)
            }
            line = _line(cells, groups, profile)
            if line[0]:
                found.setdefault(titles.get(task, task), {})[title] = line
    return found


def levels(cells: Cells, profile: Profile, names: Mapping[str, str]) -> dict[str, Bounds]:
    """{title: mean accuracy with its interval} of variants, as horizontal lines."""
    found = {title: mean_interval(cells, name, profile.tasks) for name, title in names.items()}
    return {title: bounds(one) for title, one in found.items() if one}


def at(sweep, value: float | str, profile: Profile) -> Sequence[str]:
    """The tasks that are evaluated at a value: all, or those of the adapters merged there."""
    return profile.tasks[: int(value)] if sweep.moves == "adapters" else profile.tasks


def number(value: float | str, count: int) -> float:
    """Where a value stands on the axis; a rule of weights as the weight of each of `count`."""
    return equal_weight(value, count) if isinstance(value, str) else float(value)


def named(sweep, titles: Mapping[str, str]) -> dict[str, str]:
    """{name: title} of the lines; one that is declared with the sweep has a title of its own."""
    names = [line if isinstance(line, str) else line.name for line in sweep.lines]
    own = {line.name: line.title for line in sweep.lines if not isinstance(line, str)}
    return {name: own.get(name, titles.get(name, name)) for name in names}


def _line(
    cells: Cells, groups: Mapping[float | str, tuple[str, Sequence[str]]], profile: Profile
) -> Line:
    """The line through {value: (variant, tasks)}, in the order of x."""
    there = {v: group for v, group in groups.items() if measured(cells, group[:1], group[1])}
    points = [
        (number(value, len(profile.tasks)), bounds(mean_interval(cells, name, tasks)))
        for value, (name, tasks) in there.items()
    ]
    points.sort(key=lambda point: point[0])
    return [x for x, _ in points], [y for _, y in points]


# What a sweep shows in numbers --------------------------------------------------------------------
Value = float | str
Found = Mapping[tuple[str, Value], Comparison | None]
Kept = Mapping[str, Mapping[Value, Retention | None]]

ABSENT = f"The sweep is {MISSING}."

# Every value against one --------------------------------------------------------------------------


def compared(
    cells: Cells,
    sweep,
    profile: Profile,
    titles: Mapping[str, str],
    against: Callable[[str, Value], str],
) -> Found:
    """{(line, value): its mean accuracy minus that of the variant `against(line, value)`}.

    Over the tasks that are evaluated there; tests are corrected for their number. What would be
    held against itself is left out; None where a cell is missing.
    """
    pairs = {
        (title, value): Pair(sweep.place(name, value), against(name, value), tasks)
        for name, title in named(sweep, titles).items()
        for value, tasks in _values(sweep, profile)
    }
    pairs = {place: pair for place, pair in pairs.items() if pair.name != pair.against}
    return dict(zip(pairs, compare(cells, list(pairs.values())), strict=True))


def _values(sweep, profile: Profile) -> Iterator[tuple[Value, tuple[str, ...]]]:
    """The values in the order of the axis, each with its tasks."""
    count = len(profile.tasks)
    for value in sorted(sweep.values, key=lambda value: number(value, count)):
        yield value, tuple(at(sweep, value, profile))


def table(found: Found, moved: str) -> pd.DataFrame:
    """A row a value, a column a line: the difference in points, bold where it is significant."""
    rows: dict[str, dict[str, str]] = {}
    for (title, value), one in found.items():
        rows.setdefault(_name(value), {})[title] = _difference(one)
    return pd.DataFrame(rows).T.fillna(EMPTY).rename_axis(moved)


def _name(value: Value) -> str:
    return WEIGHTS_TOLD.get(str(value), str(value))


def _difference(one: Comparison | None) -> str:
    if one is None:
        return EMPTY
    mark = "**" if _apart(one) else ""
    return f"{mark}{100 * one.value:+z.1f}{mark}<br>{points(one)}"


def _apart(one: Comparison) -> bool:
    return one.verdict() is not Verdict.OPEN


# The same in words --------------------------------------------------------------------------------


def told(found: Found, reference: str) -> str:
    """How many of the differences are significant, and which."""
    there = {place: one for place, one in found.items() if one}
    if not there:
        return ABSENT
    apart = [f"{t} at {_name(v)} ({one.verdict()})" for (t, v), one in there.items() if _apart(one)]
    listed = f": {', '.join(apart)}" if apart else ""
    return f"{len(apart)} of {len(there)} differ significantly from {reference}{listed}."


def ends(found: Found, reference: str) -> str:
    """A list: where each line is highest and lowest, beside the reference."""
    lines: dict[str, dict[Value, Comparison]] = {}
    for (title, value), one in found.items():
        if one:
            lines.setdefault(title, {})[value] = one
    listed = (f"- {title}: {_ends(values, reference)}" for title, values in lines.items())
    return "\n".join(listed) or ABSENT


def _ends(values: Mapping[Value, Comparison], reference: str) -> str:
    high, low = (pick(values, key=lambda v: values[v].value) for pick in (max, min))
    above, below = values[high].value > 0, values[low].value < 0
    highest = f"at {_name(high)}, {_said(values[high])}" if above else f"at {reference} itself"
    lowest = f"at {_name(low)}, {_said(values[low])}" if below else f"at {reference} itself"
    return f"highest {highest}; lowest {lowest}."


def _said(one: Comparison) -> str:
    return f"{100 * one.value:+z.1f} points {points(one)} ({one.verdict()})"


def at_value(found: Found, value: Value, reference: str) -> str:
    """A list of all lines at one value."""
    there = {title: one for (title, at), one in found.items() if at == value and one}
    listed = (
        f"- {title} at {_name(value)} minus {reference}: {_said(one)}."
        for title, one in there.items()
    )
    return "\n".join(listed) or ABSENT


# Retention by the number of adapters --------------------------------------------------------------


def retentions(cells: Cells, sweep, profile: Profile, titles: Mapping[str, str]) -> Kept:
    """{line: {value: retention}} on the tasks evaluated there whose adapter has learnt its task.

    Which these are is told once, on all of the profile's tasks, so that no value has a test of its
    own. None without such a task, or with a hole.
    """
    known = learnt(cells, profile.tasks)
    return {
        title: {
            value: retention(cells, sweep.place(name, value), [t for t in tasks if t in known])
            for value, tasks in _values(sweep, profile)
        }
        for name, title in named(sweep, titles).items()
    }


def retention_lines(kept: Kept) -> dict[str, Line]:
    """As the figures take them; a line without a value is left out."""
    there = {t: {v: one for v, one in row.items() if one} for t, row in kept.items()}
    return {
        title: (list(row), [bounds(one.mean) for one in row.values()])
        for title, row in there.items()
        if row
    }


def retention_table(kept: Kept) -> pd.DataFrame:
    """A row a number of adapters with how many tasks count there, a column a line."""
    rows = {}
    for value in next(iter(kept.values())):
        row = {title: values[value] for title, values in kept.items()}
        count = max(len(one.tasks) if one else 0 for one in row.values())
        rows[value] = {"tasks": str(count)} | {t: _retained(one) for t, one in row.items()}
    return pd.DataFrame(rows).T.rename_axis("adapters")


def _retained(one: Retention | None) -> str:
    if one is None:
        return EMPTY
    return f"{one.mean.value:.0%}<br>[{100 * one.mean.low:.0f}, {100 * one.mean.high:.0f}]"


def retained_tasks(cells: Cells, profile: Profile, titles: Mapping[str, str]) -> str:
    """On which tasks retention is told at all."""
    known = learnt(cells, profile.tasks)
    named = f": {', '.join(titles[task] for task in known)}" if known else ""
    return (
        f"At profile {profile.name}, Single is significantly above Base on {len(known)} of "
        f"{len(profile.tasks)} tasks{named}."
    )
