"""Sweeps: the cells of one setting moved over its values, as lines with bands for the figures."""

from collections.abc import Mapping, Sequence

from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Bounds, Cells, bounds
from tipmini.lab.statistics import mean_interval, measured
from tipmini.weighting import equal_weight

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
