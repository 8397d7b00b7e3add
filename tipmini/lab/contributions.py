"""What each task adds to a difference of means: a single task may carry all of it."""

from collections.abc import Mapping, Sequence

import pandas as pd

from tipmini.lab.accuracy_tables import EMPTY, HEADS, Titles, narrow
from tipmini.lab.comparison_tables import WIDE, points
from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Cells, Interval
from tipmini.lab.statistics import Pair, difference, measured
from tipmini.lab.tables import TITLES, mark


def table(
    cells: Cells, profile: Profile, pairs: Sequence[Pair], titles: Titles = TITLES
) -> pd.DataFrame:
    """Each pair's difference on every task, in points; its mean; the mean without its largest."""
    rows = {}
    for name, against, tasks in pairs:
        one, two = (titles.get(variant, variant) for variant in (name, against))
        place = narrow(f"{one} minus {two}", WIDE)
        rows[place] = _row(cells, profile, Pair(name, against, tasks))
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def _row(cells: Cells, profile: Profile, pair: Pair) -> dict[str, str]:
    heads = [HEADS.get(task, TITLES[task]) + mark(task, profile) for task in pair.tasks]
    heads += [f"mean of {len(pair.tasks)}", "without the<br>largest"]
    gains = by_task(cells, pair)
    if not gains:
        return dict.fromkeys(heads, EMPTY)
    _, rest = without_largest(cells, pair)
    texts = [f"{100 * gain:+z.1f}" for gain in gains.values()]
    texts += [f"{100 * sum(gains.values()) / len(gains):+z.1f}"]
    texts += [f"{100 * rest.value:+z.1f}<br>{points(rest)}"]
    return dict(zip(heads, texts, strict=True))


def by_task(cells: Cells, pair: Pair) -> dict[str, float]:
    """{task: accuracy of the first minus that of the second}; empty where a cell is missing."""
    if not measured(cells, pair[:2], pair.tasks):
        return {}
    return {t: cells[pair.name, t].mean - cells[pair.against, t].mean for t in pair.tasks}


def without_largest(cells: Cells, pair: Pair) -> tuple[str, Interval]:
    """The task on which the two differ most, and their difference on all others."""
    left = largest(by_task(cells, pair))
    return left, difference(cells, *pair[:2], [task for task in pair.tasks if task != left])


def rest(cells: Cells, pair: Pair) -> str:
    """A sentence on what is left without that task, to follow another; empty where not measured."""
    if not by_task(cells, pair):
        return ""
    left, found = without_largest(cells, pair)
    return f" Without {TITLES[left]} it is {100 * found.value:+z.1f} {points(found)}."


def largest(gains: Mapping[str, float]) -> str:
    """The task on which the two differ most, to whichever side."""
    return max(gains, key=lambda task: abs(gains[task]))
