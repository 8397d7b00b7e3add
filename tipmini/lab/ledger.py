"""The ambiguity ledger: each open point settled otherwise, alone, and what that does.

Entries come from the declared experiments (`entries`); the rest needs entries and cells alone.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from tipmini.lab.accuracy_tables import SIZE, UNMERGED, Facts, narrow, relative_size
from tipmini.lab.comparison_tables import compared
from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Cells
from tipmini.lab.statistics import MISSING, Comparison, Pair, Verdict, compare


class Entry(NamedTuple):
    """One way to settle an open point, all other points as in the variant it is held against."""

    point: int
    question: str
    option: str
    pair: Pair  # the reading's variant, the one it is held against, and their common tasks

    @property
    def heading(self) -> str:
        return f"{self.point}. {self.question}"


def entries(points: Iterable, variants, profile: Profile) -> list[Entry]:
    """All readings of the declared points, in the order of the points.

    points: `Group.points` of the ledger's file; variants: `Catalogue.variants`.
    """
    return [
        Entry(p.point, p.question, r.option, _pair(r, variants, profile))
        for p in sorted(points, key=lambda point: point.point)
        for r in p.readings
    ]


def _pair(reading, variants, profile: Profile) -> Pair:
    """Where fewer adapters are merged, only their tasks are evaluated."""
    both = [variants[name].tasks(profile.tasks) for name in (reading.name, reading.against)]
    tasks = tuple(task for task in profile.tasks if all(task in tasks for tasks in both))
    return Pair(reading.name, reading.against, tasks)


def settled(points: Iterable) -> pd.DataFrame:
    """How every declared point is settled wherever it is not the one that is varied."""
    noted = lambda p: f" ({p.note.strip()})" if p.note else ""  # noqa: E731
    rows = [
        {"open point": p.question, "settled as": f"{p.printed}{noted(p)}"}
        for p in sorted(points, key=lambda point: point.point)
    ]
    wide = pd.DataFrame(rows, index=sorted(p.point for p in points)).rename_axis("#")
    return wide.map(lambda text: narrow(text, 44))


def table(cells: Cells, listed: Sequence[Entry], facts: Facts | None = None) -> pd.DataFrame:
    """Every reading minus the one it is held against; p is corrected over all entries.

    facts: {variant: `controls.sizes` of its merge}, for a column of the merges' sizes.
    """
    rows = [
        {"open point": narrow(e.question, 17), "reading": narrow(e.option, 17)}
        | _line(found)
        | ({} if facts is None else {SIZE: relative_size(facts.get(e.pair.name))})
        for e, found in zip(listed, _compare(cells, listed), strict=True)
    ]
    return pd.DataFrame(rows, index=[e.point for e in listed]).rename_axis("#")


def _line(found: Comparison | None) -> dict[str, str]:
    """As `compared`, in fewer and narrower columns."""
    value, bounds, p, tasks, word = compared(found).values()
    return {
        "points<br>[95%]": f"{value}<br>{bounds}" if found else value,
        "p, cor-<br>rected": p,
        "tasks<br>better /<br>worse": tasks,
        "it is": narrow(word, 8),
    }


def effects(
    cells: Cells, listed: Sequence[Entry]
) -> dict[str, dict[str, tuple[float, float, float] | None]]:
    """{point: {reading: (difference, low, high) in points}}, as the figure `effects` takes it."""
    grouped: dict[str, dict] = {}
    for entry, one in zip(listed, _compare(cells, listed), strict=True):
        values = one and (100 * one.value, 100 * one.low, 100 * one.high)
        grouped.setdefault(entry.heading, {})[entry.option] = values
    return grouped


def summary(cells: Cells, listed: Sequence[Entry]) -> str:
    """How many readings do better, worse, neither; the largest effect to each side.

    The largest are of the readings of a merge alone; see `_of_merges`.
    """
    found = list(zip(listed, _compare(cells, listed), strict=True))
    there = [(entry, one) for entry, one in found if one]
    if not there:
        return f"The {len(listed)} readings are {MISSING}."
    words = [one.verdict() for _, one in there]
    counts = ", ".join(f"{words.count(w)} {w}" for w in (Verdict.BETTER, Verdict.WORSE))
    first = f"{len(there)} of {len(listed)} readings are measured: {counts}, "
    parts = [f"{first}{words.count(Verdict.OPEN)} {Verdict.OPEN} from what they are held against."]
    order = sorted(_of_merges(there), key=lambda pair: pair[1].value)
    parts += [_extreme("largest gain", *pair) for pair in order[-1:] if pair[1].value > 0]
    parts += [_extreme("largest loss", *pair) for pair in order[:1] if pair[1].value < 0]
    return " ".join(parts)


def _of_merges(found: Sequence[tuple[Entry, Comparison]]) -> list[tuple[Entry, Comparison]]:
    """Without what is held against the base or Single: that reads no merge otherwise."""
    return [(entry, one) for entry, one in found if entry.pair.against not in UNMERGED]


def _extreme(what: str, entry: Entry, found: Comparison) -> str:
    return (
        f"Of the readings of a merge, the {what} is {100 * found.value:+z.1f} points, of point "
        f"{entry.point} read as “{entry.option}” ({found.verdict()})."
    )


def _compare(cells: Cells, listed: Sequence[Entry]) -> list[Comparison | None]:
    return compare(cells, [entry.pair for entry in listed])
