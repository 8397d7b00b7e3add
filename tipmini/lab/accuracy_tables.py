"""Tables of many variants: accuracies of all tasks, retention, and the points of their figure.

A variant's title is looked up in `titles`; one without a title goes by its name.
"""

from collections.abc import Iterable, Mapping
from textwrap import wrap

import pandas as pd

from tipmini.lab import retention as kept
from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Bounds, Cells, Interval, bounds
from tipmini.lab.results import Cell
from tipmini.lab.statistics import LEVEL, MISSING, mean_interval, mean_of
from tipmini.lab.tables import TITLES, mark, relation
from tipmini.methods import METHODS, PRESETS

Titles = Mapping[str, str]
Facts = Mapping[str, Mapping[str, float]]
SIZE = "size"  # of a merge, over that of the exact sum

# Heads of narrow columns: nine of them stand beside each other.
HEADS = {
    **{"arc_challenge": "ARC-C", "hellaswag": "Hella-<br>Swag"},
    **{"openbookqa": "Open-<br>Book-<br>QA"},
}
NARROW = MISSING.replace(" ", "<br>")
UNMERGED = ("base", "single")
EMPTY = "–"  # in narrow columns; the row's last cell says that it isn't measured


def narrow(text: str, letters: int = 20) -> str:
    """In lines of so many letters: cells of tables don't wrap."""
    return "<br>".join(wrap(text, letters, break_long_words=False))


# All methods --------------------------------------------------------------------------------


def every_method() -> list[str]:
    """Base, Single, and every method and preset of the library."""
    return [*UNMERGED, *METHODS, *PRESETS]


def complete(
    cells: Cells,
    profile: Profile,
    names: Iterable[str],
    titles: Titles = TITLES,
    facts: Facts | None = None,
) -> pd.DataFrame:
    """Accuracy and standard error of every variant, a row each, with mean and retention.

    facts: {name: `controls.sizes` of its merge}, for a column of the merges' sizes.
    """
    names = list(names)
    rows = {_side(name, titles): _accuracies(cells, profile, name) for name in names}
    if facts is not None:
        for name, row in zip(names, rows.values(), strict=True):
            row[SIZE] = relative_size(facts.get(name))
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def relative_size(facts: Mapping[str, float] | None) -> str:
    """The norm of a merge over that of the plain, exact sum of its adapters."""
    return f"{facts['norm'] / facts['sum']:.2f}" if facts else EMPTY


def sizes(names: Iterable[str], facts: Facts, titles: Titles = TITLES) -> pd.DataFrame:
    """`relative_size` of every merge, a row each."""
    rows = {titles.get(name, name): {SIZE: relative_size(facts.get(name))} for name in names}
    return pd.DataFrame(rows).T.rename_axis("merge")


def _accuracies(cells: Cells, profile: Profile, name: str) -> dict[str, str]:
    tasks = profile.tasks
    row = {_head(task, profile): _accuracy(cells.get((name, task))) for task in tasks}
    mean = mean_of(cells, name, tasks)
    row[f"mean of {len(tasks)}"] = _with_error(*mean) if mean else NARROW
    known = len(kept.learnt(cells, tasks))
    row[f"retention,<br>{known} task{'s' * (known != 1)}"] = (
        _retention(cells, profile, name) if mean else EMPTY
    )
    return row


def _accuracy(cell: Cell | None) -> str:
    return _with_error(cell.mean, cell.stderr) if cell else EMPTY


def _with_error(mean: float, error: float) -> str:
    return f"{mean:.3f}<br>±{error:.3f}"


def _retention(cells: Cells, profile: Profile, name: str) -> str:
    if name in UNMERGED:
        return "0%" if name == "base" else "100%"  # by definition
    found = kept.retention(cells, name, profile.tasks)
    return _share(found.mean) if found else EMPTY


def _share(interval: Interval) -> str:
    low, high = (f"{100 * bound:.0f}" for bound in (interval.low, interval.high))
    return f"{interval.value:.0%}<br>[{low}, {high}]"


def _side(name: str, titles: Titles) -> str:
    return narrow(titles.get(name, name), 10)


def _head(task: str, profile: Profile) -> str:
    return HEADS.get(task, TITLES[task]) + mark(task, profile)


def dots(
    cells: Cells, profile: Profile, names: Iterable[str], titles: Titles = TITLES
) -> tuple[dict[str, Bounds | None], dict[str, Bounds | None], dict[str, float]]:
    """The arguments of the figure `methods_by_retention`: accuracies, retentions and levels."""
    merged = [name for name in names if name not in UNMERGED]
    means = {name: mean_interval(cells, name, profile.tasks) for name in (*UNMERGED, *merged)}
    found = {name: kept.retention(cells, name, profile.tasks) for name in merged}
    return (
        {titles.get(name, name): means[name] and bounds(means[name]) for name in merged},
        {titles.get(name, name): one and bounds(one.mean) for name, one in found.items()},
        {titles.get(name, name): means[name].value for name in UNMERGED if means[name]},
    )


# Retention ----------------------------------------------------------------------------------


def retention_table(
    cells: Cells, profile: Profile, names: Iterable[str], titles: Titles = TITLES
) -> pd.DataFrame:
    """Retention of every variant on each task whose adapter knows it, and in the mean."""
    tasks = kept.learnt(cells, profile.tasks)
    rows = {}
    for name in names:
        found = kept.retention(cells, name, profile.tasks)
        shares = [*(found.tasks[t] for t in tasks), found.mean] if found else None
        heads = [*(_head(t, profile) for t in tasks), f"mean of {len(tasks)}"]
        texts = map(_share, shares) if shares else [*[EMPTY] * len(tasks), NARROW]
        rows[_side(name, titles)] = dict(zip(heads, texts, strict=True))
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def learnt_note(cells: Cells, profile: Profile) -> str:
    """Which tasks retention is told on, and of the others how far Single is from Base."""
    gains = kept.single_gains(cells, profile.tasks)
    left = {task: gain for task, gain in gains.items() if not gain.learnt()}
    total = f"{len(gains) - len(left)} of {len(gains)} tasks"
    told = f"Retention is told on the {total} whose Single is significantly above Base"
    rule = f" (exact sign test, corrected p < {LEVEL:g})."
    return told + rule + (f" Left out: {_gains_text(left)}." if left else "")


def _gains_text(gains: Mapping[str, kept.Gain]) -> str:
    texts = [
        f"{TITLES[task]} (Single − Base {100 * gain.value:+.1f} points, "
        f"p {relation(gain.corrected)})"
        for task, gain in gains.items()
    ]
    return ", ".join(texts)
