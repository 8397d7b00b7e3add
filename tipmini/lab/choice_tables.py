"""How a merge was chosen: its candidates' accuracies on held-out train rows."""

import pandas as pd

from tipmini.lab import bundles, selection
from tipmini.lab.accuracy_tables import narrow
from tipmini.lab.catalogue import Catalogue
from tipmini.lab.profiles import Profile
from tipmini.lab.statistics import MISSING, mean_of, measured


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


def _told(cells: dict, name: str, profile: Profile) -> str:
    found = mean_of(cells, name, profile.tasks)
    return f"{found[0]:.3f} ± {found[1]:.3f}" if found else "–"
