"""Choosing among variants by their cells on held-out train rows, never by evaluation rows."""

import math
from collections.abc import Mapping, Sequence

from tipmini.errors import TipminiError
from tipmini.lab import bundles
from tipmini.lab.catalogue import Catalogue, Choice
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell
from tipmini.lab.variants import Variant

Cells = Mapping[tuple[str, str], Cell]


def score(cells: Cells, name: str, tasks: Sequence[str]) -> float:
    """Mean over tasks of a variant's accuracy; tasks count alike. KeyError without a cell."""
    return math.fsum(cells[name, task].mean for task in tasks) / len(tasks)


def best(cells: Cells, names: Sequence[str], tasks: Sequence[str]) -> str:
    """The name with the highest score; of equal ones the first."""
    return max(names, key=lambda name: score(cells, name, tasks))


def resolved(choice: Choice, known: Catalogue, profile: Profile) -> Variant:
    """The chosen variant, under the choice's name and title.

    Raises TipminiError when a candidate has not been measured on held-out rows.
    """
    names = known.candidates(choice)
    cells = bundles.cells(profile.selection_store, names)
    missing = [name for name in names for task in profile.tasks if (name, task) not in cells]
    if missing:
        first = f"{missing[0]} and {len(set(missing)) - 1} more are not measured on held-out rows"
        raise TipminiError(f"choice {choice.name}: {first}; run `tipmini measure` of its group")
    winner = known.variant(best(cells, names, profile.tasks))
    return winner.changed(name=choice.name, title=f"{choice.title}: {winner.title}")
