"""Tables and sentences over many variants: accuracies, differences, seeds, retention.

Differences are in points: hundredths of a share of rows. A variant's title is looked up in
`titles`; one without a title goes by its name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

import pandas as pd

from tipmini.lab import retention as kept
from tipmini.lab.profiles import Profile
from tipmini.lab.resampling import Bounds, Cells, Interval, bounds
from tipmini.lab.results import Cell
from tipmini.lab.statistics import (
    LEVEL,
    MISSING,
    Comparison,
    Pair,
    Verdict,
    compare,
    comparisons,
    mean_interval,
    mean_of,
    seeds,
    verdict,
)
from tipmini.lab.tables import TITLES, mark, p_text
from tipmini.merge import METHODS, PRESETS

Titles = Mapping[str, str]

# Heads of narrow columns: nine of them stand beside each other.
HEADS = {
    **{"arc_challenge": "ARC-C", "hellaswag": "Hella-<br>Swag"},
    **{"openbookqa": "Open-<br>Book-<br>QA"},
}
NARROW = MISSING.replace(" ", "<br>")
UNMERGED = ("base", "single")
EMPTY = "–"  # in narrow columns; the row's last cell says that it isn't measured


# All methods --------------------------------------------------------------------------------


def every_method() -> list[str]:
    """Base, Single, and every method and preset of the library."""
    return [*UNMERGED, *METHODS, *PRESETS]


def complete(
    cells: Cells, profile: Profile, names: Iterable[str], titles: Titles = TITLES
) -> pd.DataFrame:
    """Accuracy and standard error of every variant, a row each, with mean and retention."""
    rows = {_side(name, titles): _accuracies(cells, profile, name) for name in names}
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def _accuracies(cells: Cells, profile: Profile, name: str) -> dict[str, str]:
    tasks = profile.tasks
    row = {_head(task, profile): _accuracy(cells.get((name, task))) for task in tasks}
    mean = mean_of(cells, name, tasks)
    row[f"mean of {len(tasks)}"] = _with_error(*mean) if mean else NARROW
    row["retention"] = _retention(cells, profile, name) if mean else EMPTY
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


def narrow(text: str, letters: int = 20) -> str:
    """In lines of so many letters: cells of tables don't wrap."""
    return "<br>".join(wrap(text, letters))


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


# Each method against one --------------------------------------------------------------------


def against(
    cells: Cells,
    profile: Profile,
    names: Iterable[str],
    reference: str,
    titles: Titles = TITLES,
) -> pd.DataFrame:
    """Every variant minus `reference`, in the mean over tasks and by tasks, tests corrected."""
    others = [name for name in names if name != reference]
    found = comparisons(cells, others, reference, profile.tasks)
    rows = {titles.get(name, name): compared(found[name]) for name in others}
    return pd.DataFrame(rows).T.rename_axis(f"against {titles.get(reference, reference)}")


def compared(found: Comparison | None) -> dict[str, str]:
    """One line of a table of differences, in points."""
    heads = ("difference, points", "95% interval", "p, corrected", "tasks better / worse", "it is")
    if found is None:
        return dict.fromkeys(heads, EMPTY) | {heads[-1]: MISSING}
    values = (
        f"{100 * found.value:+.1f}",
        points(found),
        p_text(found.corrected),
        f"{len(found.better)} / {len(found.worse)}",
        str(found.verdict()),
    )
    return dict(zip(heads, values, strict=True))


def points(interval: Interval) -> str:
    """The bounds of a difference in points: "[-1.2, +0.4]"."""
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def sentence(
    cells: Cells, profile: Profile, name: str, reference: str, titles: Titles = TITLES
) -> str:
    """One comparison in words, all numbers and the verdict from the cells."""
    return sentences(cells, [Pair(name, reference, profile.tasks)], titles)[0]


def sentences(cells: Cells, pairs: Sequence[Pair], titles: Titles = TITLES) -> list[str]:
    """A sentence a comparison; p and verdict are corrected for their number."""
    found = compare(cells, pairs)
    what = "corrected p" if len(pairs) > 1 else "p"
    return [_said(one, pair, titles, what) for pair, one in zip(pairs, found, strict=True)]


def _said(found: Comparison | None, pair: Pair, titles: Titles, what: str) -> str:
    one, two = (f"*{titles.get(name, name)}*" for name in pair[:2])
    if found is None:
        return f"{one} against {two}: {MISSING}."
    sure = f"95% interval {points(found)}, {what} {relation(found.corrected)}"
    return (
        f"{one} minus {two} is {100 * found.value:+.1f} points in the mean of "
        f"{len(pair.tasks)} tasks ({sure}): "
        f"{_WORDS[found.verdict()].format(one=one, two=two)}."
    )


_WORDS = {
    Verdict.BETTER: "{one} is **better** than {two} here",
    Verdict.WORSE: "{one} is **worse** than {two} here",
    Verdict.OPEN: "the two are **not told apart**",
}


def relation(p: float) -> str:
    return p_text(p) if p < 0.001 else f"= {p_text(p)}"


def verdicts(
    cells: Cells,
    profile: Profile,
    names: Iterable[str],
    references: Sequence[str],
    titles: Titles = TITLES,
) -> pd.DataFrame:
    """Whether each variant beats every one of several, e.g. Linear as printed and as tuned.

    A cell is the difference in points; the last column is `statistics.verdict` over all of them.
    """
    rows = {}
    for name in names:
        pairs = [Pair(name, reference, profile.tasks) for reference in references]
        found = compare(cells, pairs)
        heads = [f"minus {titles.get(reference, reference)}" for reference in references]
        texts = [f"{100 * one.value:+.1f}<br>{points(one)}" if one else EMPTY for one in found]
        word = str(verdict(cells, name, references, profile.tasks))
        rows[titles.get(name, name)] = dict(zip(heads, texts, strict=True)) | {"it is": word}
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


# Several seeds ------------------------------------------------------------------------------


def seed_table(cells: Cells, profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """One method under several seeds (a variant each): the seeds' spread apart from the rows'."""
    tasks = profile.tasks
    groups = {TITLES[task] + mark(task, profile): [task] for task in tasks}
    groups[f"mean of {len(tasks)}"] = list(tasks)
    rows = {title: _spread(cells, names, group) for title, group in groups.items()}
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


def seeds_of(cells: Cells, name: str) -> list[str]:
    """A method and its variants that differ in the seed alone: "dare", "dare-s1", "dare-s2", ..."""
    pattern = re.compile(rf"{re.escape(name)}(?:-s(\d+))?")
    found = {pattern.fullmatch(variant) for variant in dict.fromkeys(v for v, _ in cells)} - {None}
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or -1))]


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
