"""How a merge was chosen: its candidates' accuracies on held-out train rows."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from tipmini.errors import TipminiError
from tipmini.lab import bundles, selection
from tipmini.lab.accuracy_tables import narrow
from tipmini.lab.catalogue import Catalogue
from tipmini.lab.declarations import WEIGHTS_TOLD, Choice
from tipmini.lab.profiles import Profile
from tipmini.lab.statistics import MISSING, mean_of, measured


def titles(known: Catalogue, store: Path) -> dict[str, str]:
    """{choice: its title, and where its winner is stored, that of what it chose}."""
    stored = bundles.titles(store, known.choices)
    winners = {name: f": {title.split(': ', 1)[-1]}" for name, title in stored.items()}
    return {n: f"{choice.title}{winners.get(n, '')}" for n, choice in known.choices.items()}


def rounds(name: str, known: Catalogue, profile: Profile, count: int = 12) -> pd.DataFrame:
    """The best candidates of a choice in its first round and, of its finalists, in the second.

    Means over tasks with their standard errors. Where a candidate is not measured yet, no row.
    """
    choice = known.choices[name]
    names = known.candidates(choice)
    first = bundles.cells(profile.selection_store, names)
    if not measured(first, names, profile.tasks):
        return pd.DataFrame({"first round": [MISSING]}, index=["candidates"])
    last = selection.finalists(choice, known, profile)
    second = bundles.cells(profile.finals_store, last)
    order = sorted(names, key=lambda n: -selection.score(first, n, profile.tasks))
    rows = {
        narrow(known.variant(n).title, 40): {
            "first round": _told(first, n, profile),
            "finalists": _told(second, n, profile),
        }
        for n in order[:count]
    }
    return pd.DataFrame(rows).T.rename_axis(f"the first {count} of {len(names)} candidates")


def weights(names: Sequence[str], known: Catalogue, profile: Profile) -> pd.DataFrame:
    """Choices of one weight each, {weight: score}: the first round's, and the finalists' below it.

    What was chosen is bold.
    """
    columns = {name: _by_weight(known.choices[name], known, profile) for name in names}
    titles = {name: known.choices[name].title for name in names}
    return pd.DataFrame(columns).fillna("–").rename(columns=titles).rename_axis("weight")


def _by_weight(choice: Choice, known: Catalogue, profile: Profile) -> dict[str, str]:
    names = known.candidates(choice)
    first = _scores(profile.selection_store, names, profile)
    told = {name: f"{score:.3f}" for name, score in first.items()}
    if len(first) == len(names) and choice.finalists:
        finalists = selection.finalists(choice, known, profile)
        last = _scores(profile.finals_store, finalists, profile)
        told |= {name: f"{told[name]}<br>{score:.3f}" for name, score in last.items()}
    with suppress(TipminiError):  # not all are measured: nothing is chosen yet
        chosen = selection.winner(choice, known, profile)
        told[chosen] = f"**{told[chosen]}**"
    shown = {name: known.variant(name).weights for name in names}
    return {str(WEIGHTS_TOLD.get(shown[n], shown[n])): told.get(n, MISSING) for n in names}


def _scores(store: Path, names: Sequence[str], profile: Profile) -> dict[str, float]:
    """Of those that are measured on all tasks."""
    cells = bundles.cells(store, names)
    there = [name for name in names if measured(cells, [name], profile.tasks)]
    return {name: selection.score(cells, name, profile.tasks) for name in there}


def _told(cells: dict, name: str, profile: Profile) -> str:
    found = mean_of(cells, name, profile.tasks)
    return f"{found[0]:.3f} ± {found[1]:.3f}" if found else "–"
