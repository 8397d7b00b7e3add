"""Variants beside one another: their names, choices, seeds, what each task adds."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from tipmini.errors import TipminiError
from tipmini_lab.book.tables import EMPTY, TITLES, Titles, estimate, head, narrow, points
from tipmini_lab.experiments import catalogue
from tipmini_lab.experiments.catalogue import WEIGHTS_TOLD, Catalogue, Choice
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.results import statistics, store
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import MISSING, Interval, Pair, mean_of, measured

WIDE = 22  # letters of a title in a line


# Choices ------------------------------------------------------------------------------------------


def titles(known: Catalogue, folder: Path) -> dict[str, str]:
    """{variant: its one name in the book}; of a choice that is stored, with what it chose.

    Several choices may come to the same merge, and a preset be one of them: they are named alike.
    """
    named = TITLES | {name: variant.title for name, variant in known.variants.items()}
    for bundle in store.bundles(folder, known.choices):
        title, won = known.choices[bundle.name].title, bundle.title.split(": ", 1)[-1]
        won = won.removesuffix(" (as it is)")
        weighted = title.endswith(", tuned")  # such as Linear, which chose "Linear, weight 0.05"
        named[bundle.name] = f"{title} ({won.rpartition(', ')[2]})" if weighted else won
    named |= {name: c.title for name, c in known.choices.items() if name not in named}
    tuned, alone = named.get("linear-tuned", ""), named.get("better-alone", "")
    if alone and tuned.endswith(f"({alone.rpartition(', ')[2]})"):  # of the same weight
        named |= dict.fromkeys({"better-alone", "recommended"} & {*named}, tuned)
    return named


def rounds(name: str, known: Catalogue, profile: Profile, count: int = 12) -> pd.DataFrame:
    """The best candidates of a choice in its first round and, of its finalists, in the second.

    Means over tasks with their standard errors. Where a candidate is not measured yet, no row.
    """
    choice = known.choices[name]
    names = known.candidates(choice)
    first = wide(store.cells(profile.selection_store, names))
    if not measured(first, names, profile.tasks):
        return pd.DataFrame({"first round": [MISSING]}, index=["candidates"])
    finalists = catalogue.finalists(choice, known, profile)
    second = wide(store.cells(profile.finals_store, finalists))
    order = sorted(names, key=lambda n: -mean_of(first, n, profile.tasks)[0])
    lines = {
        narrow(known.variant(n).title, 40): {
            "first round": estimate(mean_of(first, n, profile.tasks)),
            "finalists": estimate(mean_of(second, n, profile.tasks), EMPTY),
        }
        for n in order[:count]
    }
    return pd.DataFrame(lines).T.rename_axis(f"the first {count} of {len(names)} candidates")


def chosen(name: str, known: Catalogue, profile: Profile) -> str:
    """The title of what a choice came to; MISSING where not all candidates are scored."""
    with suppress(TipminiError):
        return known.variant(catalogue.winner(known.choices[name], known, profile)).title
    return MISSING


def weights(names: Sequence[str], known: Catalogue, profile: Profile) -> pd.DataFrame:
    """Choices of one weight each: scores of the first round, and below them of the finalists.

    A row is a weight, of several methods with the method's title before it; what was chosen is
    bold.
    """
    columns = {known.choices[n].title: _by_weight(known.choices[n], known, profile) for n in names}
    return pd.DataFrame(columns).fillna(EMPTY).rename_axis("weight")


def finalists_apart(names: Sequence[str], known: Catalogue, profile: Profile) -> list[float]:
    """How far the two finalists of each choice lie apart, in standard errors of an unpaired
    difference; of choices that are measured."""
    found = []
    for choice in (known.choices[name] for name in names):
        with suppress(TipminiError):
            finalists = catalogue.finalists(choice, known, profile)
            tasks = catalogue.scored_on(choice, known, profile)
            cells = wide(store.cells(profile.finals_store, finalists))
            ends = [mean_of(cells, name, tasks) for name in finalists]
            if None not in ends:
                (one, error), (two, other) = ends
                found.append(abs(one - two) / math.hypot(error, other))
    return found


def _by_weight(choice: Choice, known: Catalogue, profile: Profile) -> dict[str, str]:
    names = known.candidates(choice)
    told = _scores(profile.selection_store, names, known, profile)
    if len(told) == len(names) and choice.finalists:
        finalists = catalogue.finalists(choice, known, profile)
        last = _scores(profile.finals_store, finalists, known, profile)
        told |= {name: f"{told[name]}<br>{score}" for name, score in last.items()}
    with suppress(TipminiError):  # not all are measured: nothing is chosen yet
        chosen = catalogue.winner(choice, known, profile)
        told[chosen] = f"**{told[chosen]}**"
    variants = [known.variant(name) for name in names]
    several = len({variant.method for variant in variants}) > 1
    rows = {}
    for variant in variants:
        of = f"{known.variant(variant.method).title}, " if several else ""
        weight = WEIGHTS_TOLD.get(variant.weights, variant.weights)
        rows[f"{of}{weight}"] = told.get(variant.name, MISSING)
    return rows


def _scores(
    folder: Path, names: Sequence[str], known: Catalogue, profile: Profile
) -> dict[str, str]:
    """Of those that are measured on all tasks whose adapters they merge."""
    rows = wide(store.cells(folder, names))
    tasks = {name: known.variant(name).tasks(profile.tasks) for name in names}
    found = {name: mean_of(rows, name, tasks[name]) for name in names}
    return {name: f"{one[0]:.3f}" for name, one in found.items() if one}


# One method under several seeds -------------------------------------------------------------------


def seeds_of(rows: pd.DataFrame, name: str) -> list[str]:
    """A method and its variants that differ in the seed alone: "dare", "dare-s1", "dare-s2", ..."""
    pattern = re.compile(rf"{re.escape(name)}(?:-s(\d+))?")
    found = filter(None, map(pattern.fullmatch, rows.columns))
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or -1))]


SPREADS = (
    "mean",
    "spread of seeds (sd)",
    "standard error of examples",
    "lowest seed",
    "highest seed",
)


def seeds(rows: pd.DataFrame, names: Sequence[str], tasks: Sequence[str]) -> dict[str, float]:
    """Mean accuracy under several seeds (a variant each); empty below two seeds or with a hole.

    The two spreads are kept apart: the standard deviation of the seeds' accuracies is what the seed
    alone does, the standard error of one seed's accuracy what the rows do. More seeds make only the
    first one surer, more rows the second.
    """
    found = [mean_of(rows, name, tasks) for name in names]
    if len(found) < 2 or None in found:
        return {}
    means, errors = np.array(found).T
    spreads = means.std(ddof=1), np.sqrt(np.mean(errors**2))
    return dict(zip(SPREADS, (means.mean(), *spreads, means.min(), means.max()), strict=True))


def seed_table(rows: pd.DataFrame, profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """`seeds` on every task and in the mean over them."""
    groups = {head(task, profile): [task] for task in profile.tasks}
    groups[f"mean of {len(profile.tasks)}"] = profile.tasks
    lines = {title: seeds(rows, names, tasks) for title, tasks in groups.items()}
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=SPREADS).map("{:.3f}".format)
    return frame.replace("nan", MISSING).rename_axis(f"{profile.name}, {len(names)} seeds")


# Differences by task ----------------------------------------------------------------------------


def by_task(
    rows: pd.DataFrame, profile: Profile, pairs: Sequence[Pair], titles: Titles = TITLES
) -> pd.DataFrame:
    """Each pair's difference on every task, in points; its mean; the mean without its largest."""
    lines = {}
    for pair in pairs:
        gains = _gains(rows, pair)
        mean = {"mean": sum(gains.values()) / len(gains)} if gains else {}
        told = {task: f"{100 * gain:+z.1f}" for task, gain in (gains | mean).items()}
        line = {head(task, profile): told.get(task, EMPTY) for task in pair.tasks}
        line[f"mean of {len(pair.tasks)}"] = told.get("mean", EMPTY)
        line["without the<br>largest"] = without(rows, pair)
        lines[minus(pair, titles)] = line
    return pd.DataFrame(lines).T.rename_axis(f"measured, {profile.name}")


def _gains(rows: pd.DataFrame, pair: Pair) -> dict[str, float]:
    """{task: accuracy of the first minus that of the second}; empty with a hole."""
    if not measured(rows, pair[:2], pair.tasks):
        return {}
    means = {t: [mean_of(rows, name, [t])[0] for name in pair[:2]] for t in pair.tasks}
    return {task: first - second for task, (first, second) in means.items()}


def without_largest(rows: pd.DataFrame, pair: Pair) -> tuple[str, Interval]:
    """The task on which the two differ most, to whichever side, and their difference elsewhere."""
    gains = _gains(rows, pair)
    left = max(gains, key=lambda task: abs(gains[task]))
    return left, statistics.difference(
        rows, *pair[:2], [task for task in pair.tasks if task != left]
    )


def without(rows: pd.DataFrame, pair: Pair) -> str:
    """`without_largest` as a cell of a table."""
    if len(pair.tasks) < 2 or not measured(rows, pair[:2], pair.tasks):
        return EMPTY
    left, rest = without_largest(rows, pair)
    return f"{TITLES[left]}:<br>{points(rest)}"


def without_in_line(rows: pd.DataFrame, pair: Pair) -> str:
    """`without` in a sentence: "BoolQ, +0.2 [-0.8, +1.3]"."""
    return without(rows, pair).replace(":<br>", ", ").replace("<br>", " ")


def minus(pair: Pair, titles: Titles) -> str:
    """The head of a line that compares two."""
    return narrow(" minus ".join(titles.get(name, name) for name in pair[:2]), WIDE)
