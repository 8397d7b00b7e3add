"""Variants beside one another: choices, seeds, differences in points, what each task adds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab.book.tables import EMPTY, HEADS, TITLES, Titles, mark, narrow, p_text, relation
from tipmini_lab.experiments import catalogue, formats
from tipmini_lab.experiments.catalogue import WEIGHTS_TOLD, Catalogue, Choice
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import (
    MISSING,
    Cells,
    Comparison,
    Interval,
    Pair,
    Verdict,
    compare,
    comparisons,
    difference,
    mean_of,
    measured,
    rows_of,
    verdict,
)
from tipmini_lab.results.store import Cell


def titles(known: Catalogue, store: Path) -> dict[str, str]:
    """{choice: its title, and where its winner is stored, that of what it chose}."""
    stored = storage.titles(store, known.choices)
    winners = {name: f": {title.split(': ', 1)[-1]}" for name, title in stored.items()}
    return {n: f"{choice.title}{winners.get(n, '')}" for n, choice in known.choices.items()}


def rounds(name: str, known: Catalogue, profile: Profile, count: int = 12) -> pd.DataFrame:
    """The best candidates of a choice in its first round and, of its finalists, in the second.

    Means over tasks with their standard errors. Where a candidate is not measured yet, no row.
    """
    choice = known.choices[name]
    names = known.candidates(choice)
    first = storage.cells(profile.selection_store, names)
    if not measured(first, names, profile.tasks):
        return pd.DataFrame({"first round": [MISSING]}, index=["candidates"])
    last = catalogue.finalists(choice, known, profile)
    second = storage.cells(profile.finals_store, last)
    order = sorted(names, key=lambda n: -catalogue.score(first, n, profile.tasks))
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
        finalists = catalogue.finalists(choice, known, profile)
        last = _scores(profile.finals_store, finalists, profile)
        told |= {name: f"{told[name]}<br>{score:.3f}" for name, score in last.items()}
    with suppress(TipminiError):  # not all are measured: nothing is chosen yet
        chosen = catalogue.winner(choice, known, profile)
        told[chosen] = f"**{told[chosen]}**"
    shown = {name: known.variant(name).weights for name in names}
    return {str(WEIGHTS_TOLD.get(shown[n], shown[n])): told.get(n, MISSING) for n in names}


def _scores(store: Path, names: Sequence[str], profile: Profile) -> dict[str, float]:
    """Of those that are measured on all tasks."""
    cells = storage.cells(store, names)
    there = [name for name in names if measured(cells, [name], profile.tasks)]
    return {name: catalogue.score(cells, name, profile.tasks) for name in there}


def _told(cells: dict, name: str, profile: Profile) -> str:
    found = mean_of(cells, name, profile.tasks)
    return f"{found[0]:.3f} ± {found[1]:.3f}" if found else "–"


# One method under several seeds -------------------------------------------------------------------
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


# Tables and sentences of what variants are apart, in points ---------------------------------------
WIDE = 22  # letters of a title in a line

# Each method against one --------------------------------------------------------------------------


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
    rows = {narrow(titles.get(name, name), WIDE): compared(found[name]) for name in others}
    return pd.DataFrame(rows).T.rename_axis(f"against {titles.get(reference, reference)}")


def compared(found: Comparison | None) -> dict[str, str]:
    """One line of a table of differences, in points."""
    heads = ("difference, points", "95% interval", "p, corrected", "tasks better / worse", "it is")
    if found is None:
        return dict.fromkeys(heads, EMPTY) | {heads[-1]: MISSING}
    values = (
        f"{100 * found.value:+z.1f}",
        points(found),
        p_text(found.corrected),
        f"{len(found.better)} / {len(found.worse)}",
        str(found.verdict()),
    )
    return dict(zip(heads, values, strict=True))


def points(interval: Interval) -> str:
    """The bounds of a difference in points: "[-1.2, +0.4]"."""
    return f"[{100 * interval.low:+z.1f}, {100 * interval.high:+z.1f}]"


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
        f"{one} minus {two} is {100 * found.value:+z.1f} points in the mean of "
        f"{len(pair.tasks)} tasks ({sure}): "
        f"{_WORDS[found.verdict()].format(one=one, two=two)}.{_smallness(found.value)}"
    )


def _smallness(difference: float) -> str:
    """A sentence where a difference is of a size that needs no method to explain it."""
    most = formats.most_points()
    if 100 * abs(difference) > most:
        return ""
    moved = f"moved a difference of two methods by up to {most:.2f} points"
    return f" At `mini`, another number format, processor or both {moved}."


_WORDS = {
    Verdict.BETTER: "{one} is **better** than {two} here",
    Verdict.WORSE: "{one} is **worse** than {two} here",
    Verdict.OPEN: "the two are **not significant**",
}


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
        heads = [narrow(f"minus {titles.get(one, one)}", WIDE) for one in references]
        texts = [f"{100 * one.value:+z.1f}<br>{points(one)}" if one else EMPTY for one in found]
        word = str(verdict(cells, name, references, profile.tasks))
        rows[narrow(titles.get(name, name), WIDE)] = dict(zip(heads, texts, strict=True)) | {
            "it is": word
        }
    return pd.DataFrame(rows).T.rename_axis(f"measured, {profile.name}")


# What each task adds to a difference of means -----------------------------------------------------
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
