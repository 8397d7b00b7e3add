"""One method under several seeds: what the seed does apart from what the rows do."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Cells, rows_of
from tipmini.lab.results import Cell
from tipmini.lab.statistics import MISSING, mean_of
from tipmini.lab.tables import TITLES, mark


@dataclass(frozen=True)
class Seeds:
    """The accuracies of one method under several seeds, on the same rows."""

    count: int
    mean: float
    between: float  # standard deviation of the seeds' accuracies: what the seed alone does
    error: float  # standard error of one seed's accuracy, from its rows: what the rows do
    lowest: float
    highest: float


def seeds(cells: Cells, names: Sequence[str], tasks: Iterable[str]) -> Seeds | None:
    """Mean over `tasks` under every seed (a variant each); None below two seeds or with a hole.

    The two spreads are kept apart: more seeds make only the first one surer, more rows the second.
    """
    tasks = list(tasks)
    found = [mean_of(cells, name, tasks) for name in names]
    if len(found) < 2 or None in found:
        return None
    means, errors = np.array(found).T
    return Seeds(
        count=len(found),
        mean=float(means.mean()),
        between=float(means.std(ddof=1)),
        error=float(np.sqrt(np.mean(errors**2))),
        lowest=float(means.min()),
        highest=float(means.max()),
    )


def seed_table(cells: Cells, profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """One method under several seeds (a variant each): the seeds' spread apart from the rows'."""
    tasks = profile.tasks
    groups = {TITLES[task] + mark(task, profile): [task] for task in tasks}
    groups[f"mean of {len(tasks)}"] = list(tasks)
    rows = {title: _spread(cells, names, group) for title, group in groups.items()}
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def told(cells: Cells, profile: Profile, names: Sequence[str]) -> str:
    """How the seeds' spread stands to the rows', and which place the first seed has."""
    found = seeds(cells, names, profile.tasks)
    if found is None:
        return f"More than one seed of {names[0] if names else 'it'}: {MISSING}."
    first, _ = mean_of(cells, names[0], profile.tasks)
    above = sum(mean_of(cells, name, profile.tasks)[0] > first for name in names)
    return (
        f"Profile `{profile.name}`: the mean accuracies of {found.count} seeds spread by "
        f"{found.between:.3f}, the rows alone let one seed's be off by {found.error:.3f}. The "
        "first seed, which the other tables of variants have, is number "
        f"{above + 1} of {found.count} "
        f"({first:.3f}; mean of all {found.mean:.3f})."
    )


def seeds_of(cells: Cells, name: str) -> list[str]:
    """A method and its variants that differ in the seed alone: "dare", "dare-s1", "dare-s2", ..."""
    pattern = re.compile(rf"{re.escape(name)}(?:-s(\d+))?")
    found = {pattern.fullmatch(variant) for variant in dict.fromkeys(v for v, _ in cells)} - {None}
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or -1))]


def averaged(cells: Cells, names: Sequence[str], name: str) -> dict[tuple[str, str], Cell]:
    """Cells of `name`, whose rows have the means over several seeds: what a draw gets on average.

    Of the tasks that every seed has. Raises TipminiError for cells that are not of the same rows.
    """
    tasks = [t for seed, t in cells if seed == names[0] and all((n, t) in cells for n in names)]
    rows = {task: rows_of(cells, names, task).mean(axis=1).tolist() for task in tasks}
    return {
        (name, t): cells[names[0], t].model_copy(update={"method": name, "values": means})
        for t, means in rows.items()
    }


def _spread(cells: Cells, names: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    heads = (
        *("seeds", "mean", "spread of seeds (sd)", "standard error of rows"),
        *("lowest seed", "highest seed"),
    )
    found = seeds(cells, names, tasks)
    if found is None:
        return dict.fromkeys(heads, MISSING)
    values = (found.mean, found.between, found.error, found.lowest, found.highest)
    return dict(zip(heads, [str(found.count), *map("{:.3f}".format, values)], strict=True))
