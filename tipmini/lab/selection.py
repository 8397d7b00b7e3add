"""Choosing among variants by their cells on held-out train rows, never by evaluation rows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini.lab import bundles
from tipmini.lab.catalogue import Catalogue
from tipmini.lab.declarations import Choice
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell, in_one_format
from tipmini.lab.variants import Variant

Cells = Mapping[tuple[str, str], Cell]


def score(cells: Cells, name: str, tasks: Sequence[str]) -> float:
    """Mean over tasks of a variant's accuracy; tasks count alike. KeyError without a cell."""
    return math.fsum(cells[name, task].mean for task in tasks) / len(tasks)


def best(cells: Cells, names: Sequence[str], tasks: Sequence[str], count: int = 1) -> list[str]:
    """The names with the highest scores, of equal ones the first; in the order of `names`."""
    order = sorted(names, key=lambda name: -score(cells, name, tasks))  # stable
    return [name for name in names if name in order[:count]]


def finalists(choice: Choice, known: Catalogue, profile: Profile) -> list[str]:
    """The candidates that are scored again on more rows.

    Raises TipminiError when a candidate has not been measured on held-out rows.
    """
    names = known.candidates(choice)
    cells = _measured(choice, profile.selection_store, names, profile)
    return best(cells, names, profile.tasks, choice.finalists)


def resolved(choice: Choice, known: Catalogue, profile: Profile) -> Variant:
    """The chosen variant, under the choice's name and title; raises as `winner`."""
    found = known.variant(winner(choice, known, profile))
    return found.changed(name=choice.name, title=f"{choice.title}: {found.title}")


def winner(choice: Choice, known: Catalogue, profile: Profile) -> str:
    """The name of the chosen variant.

    Raises TipminiError when a candidate has not been measured on held-out rows.
    """
    names, store = known.candidates(choice), profile.selection_store
    if choice.finalists:
        names, store = finalists(choice, known, profile), profile.finals_store
    cells = _measured(choice, store, names, profile)
    if choice.lowest:
        return min(names, key=lambda name: score(cells, name, profile.tasks))
    return best(cells, names, profile.tasks)[0]


def _measured(choice: Choice, store: Path, names: Sequence[str], profile: Profile) -> Cells:
    cells = in_one_format(bundles.cells(store, names))
    missing = [name for name in names for task in profile.tasks if (name, task) not in cells]
    if missing:
        first = f"{missing[0]} and {len(set(missing)) - 1} more are not measured on held-out rows"
        raise TipminiError(f"choice {choice.name}: {first}; run `tipmini measure` of its group")
    return cells
