"""What checks of claims look at, how a number is judged, and the checks of every paper."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import yaml

from tipmini.errors import TipminiError
from tipmini.models.files import one_line
from tipmini_lab import paths
from tipmini_lab.book import pruning_costs, pruning_mmlu, pruning_tables, questions, tables
from tipmini_lab.book.claims import Check, Claim, Verdict
from tipmini_lab.book.claims.choices import DECLARED, choice, left_out, readings
from tipmini_lab.book.pruning_costs import Found
from tipmini_lab.book.pruning_tables import Outcomes
from tipmini_lab.experiments.catalogue import catalogue
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import store
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import (
    LEVEL,
    Pair,
    flip_p,
    gains_of,
    holm_of,
    mean_of_tasks,
)
from tipmini_lab.results.store import Cell, paired_p

NEAR = 0.02  # of an accuracy: an interval that ends nearer below is as good
WORDS = {"mean": "the mean of the tasks", **tables.TITLES}
Names = Sequence[str]


@dataclass(eq=False)
class Evidence:
    """What a check may look at: what is printed and recorded, and what this book has measured."""

    printed: dict  # book/printed.yaml
    records: dict  # book/records.yaml
    profile: Profile  # of the cells
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    prunings: Outcomes = field(default_factory=dict)  # this book's pruned models
    benched: Found = field(default_factory=dict)  # what the bench measured of pruning
    sizes: dict[str, float] = field(default_factory=dict)  # norm of a merge over the exact sum's
    few_shot: dict[str, Cell] = field(default_factory=dict)  # MMLU of pruned models
    answers: Mapping[Pair, dict] = field(default_factory=dict)  # of the chapters, `questions`

    def cell(self, name: str, task: str) -> Cell | None:
        """The stored cell; of a name that stands for several seeds the mean of theirs, row by row.

        Seeds of one contender are no comparisons of their own.
        """
        if (name, task) in self.cells:
            return self.cells[name, task]
        seeds = [self.cells[n, t] for n, t in self.cells if t == task and _seed_of(name, n)]
        rows = zip(*(cell.values for cell in seeds), strict=True)
        mean = [sum(row) / len(seeds) for row in rows]
        return seeds[0].model_copy(update={"method": name, "values": mean}) if seeds else None

    def size(self, name: str) -> float | None:
        """The norm of a merge over the exact sum's; where `cell` is the mean of seeds, theirs."""
        if name in self.sizes:
            return self.sizes[name]
        own = [size for n, size in self.sizes.items() if _seed_of(name, n)]
        return float(np.mean(own)) if own else None


def _seed_of(name: str, other: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}-s\d+", other) is not None


def gathered() -> Evidence:
    """What is printed, recorded and stored now; nothing is measured."""
    printed, records = (yaml.safe_load(f.read_text()) for f in (paths.PRINTED, paths.RECORDS))
    prunings = pruning_tables.read(load_profile("mini").pruning_store)
    few_shot = pruning_mmlu.read(load_profile("mini"))
    full, benched = load_profile("full"), pruning_costs.read()
    merges = load_profile("mini").variant_store
    facts = {
        name: bundle.facts for name in store.names(merges) if (bundle := store.read(merges, name))
    }
    sizes = {name: own["norm"] / own["sum"] for name, own in facts.items() if own}
    cells = tables.variant_cells(full)
    answers = questions.answers(full)
    return Evidence(printed, records, full, cells, prunings, benched, sizes, few_shot, answers)


class Finding(NamedTuple):
    """What a check came to: the recomputed value and the words of the page.

    compared: (higher, lower, where), all that the sentence sets above another. readings: the
    verdict of every admissible choice by its words, `DECLARED` first; empty where there is none.
    """

    verdict: Verdict
    recomputed: str
    words: str
    compared: tuple[tuple, ...] = ()
    readings: Mapping[str, Verdict] = {}

    @property
    def between(self) -> tuple[Verdict, ...]:
        """The verdicts that it depends between, that of the declared choice first."""
        every = tuple(dict.fromkeys(self.readings.values()))
        return every if self.verdict is Verdict.DEPENDS else ()


class NotMeasured(Exception):
    """What a check takes is not stored; says which."""


Checking = Callable[..., Finding | dict]
# {level: {name: (check, (verdict where a number is another one, verdict where it is as asked))}}
CHECKS: dict[str, dict[str, tuple[Checking, tuple]]] = {"in_print": {}, "here": {}}


def _registering(level: str, *verdicts: Verdict) -> Callable[[Checking], Checking]:
    def register(check: Checking) -> Checking:
        if CHECKS[level].setdefault(check.__name__, (check, verdicts))[0] is not check:
            raise ValueError(f"two checks are called {check.__name__}")
        return check

    return register


# A check's first argument is the evidence, its others are those of the YAML. It returns a Finding,
# or numbers by name, of which one is judged and all may be named in `shown` and `words`.
in_print = _registering("in_print", Verdict.DOES_NOT_HOLD, Verdict.HOLDS)
here = _registering("here", Verdict.NOT_SUPPORTED, Verdict.HOLDS)
setting = _registering("here", Verdict.OTHER_SETTING, Verdict.SAME_SETTING)


def modules() -> dict[str, ModuleType]:
    """{paper: its own checks and tables}: every checks_*.py beside this file."""
    files = sorted(Path(__file__).parent.glob("checks_*.py"))
    return {f.stem.partition("_")[2]: import_module(f"{__package__}.{f.stem}") for f in files}


# Choices of every paper ---------------------------------------------------------------------------
choice("tasks")(lambda own, known: left_out(own or [*known.records["splits"]], WORDS.get))
choice("corrected")(lambda own, known: {"p values not corrected": False})
choice("mean")(lambda own, known: {"task by task": False} if own else {})


@choice("within", "greatly", "beyond", "unlike", "times")
def _thresholds(own: float, evidence: Evidence) -> dict:
    if not own:
        return {}
    return {"half the threshold": own / 2, "one and a half times the threshold": 1.5 * own}


# A check is called --------------------------------------------------------------------------------
def run(
    claim: Claim,
    level: str,
    evidence: Evidence,
    forms: Mapping[str, Mapping[str, str]] = {},
) -> Finding:
    """What a claim's check of a level finds, by the declared choices and by all others.

    It depends on the reading where another one, if it is measured, comes to another verdict.
    Raises TipminiError, one line, for a check, an argument or a number that there is not.
    """
    modules()
    asked = getattr(claim, level)
    printed = claim.printed if level == "in_print" else None  # here it may be of another kind
    if asked.check is None:
        return Finding(asked.verdict, "-", asked.words)
    try:
        found = _found(asked, asked.arguments, level, evidence, printed)
        check, renamed = CHECKS[level][asked.check][0], forms if level == "here" else {}
        others = {
            words: _found(asked, arguments, level, evidence, printed).verdict
            for words, arguments in readings(check, asked.arguments, evidence, renamed)
        }
    except TipminiError as error:
        raise TipminiError(f"claim {claim.id}, {level}: {error}") from None
    others = {words: verdict for words, verdict in others.items() if verdict != Verdict.NOT_RUN}
    if found.verdict is Verdict.NOT_RUN or not others:
        return found
    alike = set(others.values()) == {found.verdict}
    own = found.verdict if alike else Verdict.DEPENDS
    return found._replace(verdict=own, readings={DECLARED: found.verdict} | others)


def _found(
    asked: Check, arguments: dict, level: str, evidence: Evidence, printed: object
) -> Finding:
    if asked.check not in CHECKS[level]:
        raise TipminiError(f"check {asked.check!r} is not one of {', '.join(CHECKS[level])}")
    check, verdicts = CHECKS[level][asked.check]
    takes = inspect.signature(check)
    given = {"printed": printed} if "printed" in takes.parameters else {}
    given |= arguments
    try:
        takes.bind(evidence, **given)
    except TypeError as error:
        raise TipminiError(f"{asked.check}: {one_line(error)}") from None
    try:
        found = check(evidence, **given)
    except NotMeasured as note:
        return Finding(Verdict.NOT_RUN, "-", str(note))
    if not isinstance(found, Finding):
        return _judged(asked, found, printed, verdicts)
    if unused := asked.model_fields_set - {"check", "arguments", "words", "verdict", "between"}:
        raise TipminiError(f"{asked.check} judges by itself, and takes no {min(unused)!r}")
    return found._replace(words=asked.words.replace("{words}", found.words))


def _judged(asked: Check, found: dict, printed: object, verdicts: Sequence[Verdict]) -> Finding:
    try:
        own, told = found[asked.number], [t.format_map(found) for t in (asked.shown, asked.words)]
    except KeyError as error:
        numbers = ", ".join(found)
        raise TipminiError(f"{asked.check}: {error} is not one of its numbers: {numbers}") from None
    wanted = printed if asked.equals is None else asked.equals
    if isinstance(own, bool | np.bool_):
        agrees = bool(own)
    elif asked.above is not None or asked.below is not None:
        agrees = own > asked.above if asked.below is None else own < asked.below
    elif wanted is None:
        raise TipminiError(f"{asked.check}: give equals, above or below for {asked.number!r}")
    else:
        agrees = _near(own, wanted, asked.tolerance)
    also, verdict = found.get("instead", ([], None))  # what else may have been printed
    if not agrees and _near(also, wanted, asked.tolerance):
        return Finding(verdict, *told)
    declared = asked.agreed if agrees else asked.otherwise
    return Finding(declared or verdicts[agrees], *told)


def _near(own: object, wanted: object, tolerance: float | None) -> bool:
    """Whether a value, or of a list one at least, is the wanted one."""
    if isinstance(own, list):
        return any(_near(one, wanted, tolerance) for one in own)
    return own == wanted if tolerance is None else abs(own - wanted) <= tolerance + 1e-9


def verdict_of(better: int, worse: int, asked: int, some: bool = False) -> Verdict:
    """All (`some`: one) are clear for a sentence; most are against it; more for it; or neither."""
    if better == asked or (some and better):
        return Verdict.HOLDS
    if 2 * worse > asked:
        return Verdict.CONTRARY
    return Verdict.IN_PART if better > worse else Verdict.NOT_SUPPORTED


# Cells of merges ----------------------------------------------------------------------------------


def names(keys: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c' of the names that tables use."""
    *others, last = (WORDS[key] for key in keys)
    return f"{', '.join(others)} and {last}" if others else last


@here
def paired(
    evidence: Evidence,
    *,
    higher: Names,
    lower: Names,
    tasks: Names = (),
    some: bool = False,
    mean: bool = False,
    corrected: bool = True,
) -> Finding:
    """Whether cells of `higher` lie above those of `lower`, by tests on the same rows.

    On every task by the sign test; or, of the `mean` of the tasks, by the test that the chapters
    have, `statistics.flip_p`. A question that the chapters ask too has their p, corrected there;
    the others are corrected (Holm) for the number of comparisons of this claim. It holds where all
    are clear, or with `some` one at least; see `verdict_of`. A missing cell makes it not run.
    """
    tasks = tuple(tasks or evidence.profile.tasks)
    every = tuple(product(higher, lower, tasks))
    if missing := {m for *pair, t in every for m in pair if not evidence.cell(m, t)}:
        told = ", ".join(map(title, sorted(missing)))
        raise NotMeasured(f"No cells, or not of every task, are stored for: {told}.")
    if mean:
        tests = {(*p, "mean"): _mean_test(evidence, *p, tasks) for p in product(higher, lower)}
    else:
        tests = {place: _test(evidence, *place) for place in every}
    places = tuple(tests)
    gaps, ps = ({place: test[i] for place, test in tests.items()} for i in (0, 1))
    if corrected:
        known = {p: evidence.answers.get(Pair(*p[:2], tasks)) for p in places} if mean else {}
        answered = {place: one["corrected"] for place, one in known.items() if one}
        ps = holm_of({p: ps[p] for p in places if p not in answered}) | answered
    clear = {place: gap for place, gap in gaps.items() if ps[place] < LEVEL}
    better = sum(gap > 0 for gap in clear.values())
    worse = len(clear) - better
    counted = f"significantly for it {better}, against it {worse}, neither {len(gaps) - len(clear)}"
    told = "; ".join(_told(evidence, *pair, gaps, clear) for pair in product(higher, lower))
    verdict = verdict_of(better, worse, len(places), some)
    return Finding(verdict, counted, f"{told}.", () if some else places)


@cache
def _test(evidence: Evidence, higher: str, lower: str, task: str) -> tuple[float, float]:
    """Points by which a cell lies above another, and p."""
    one, two = (evidence.cell(name, task) for name in (higher, lower))
    return 100 * (one.mean - two.mean), paired_p(one, two)


@cache
def _mean_test(evidence: Evidence, higher: str, lower: str, tasks: Names) -> tuple[float, float]:
    """Points by which the mean of tasks lies above another's, and p."""
    pair = higher, lower
    rows = wide({(name, task): evidence.cell(name, task) for name in pair for task in tasks})
    gain = mean_of_tasks(gains_of(rows, *pair, tasks))
    return 100 * gain, flip_p(rows, *pair, tasks)


def _told(evidence: Evidence, h: str, low: str, gaps: Mapping, clear: Mapping) -> str:
    """A part of a sentence: the mean difference of two methods, where it is clear, their norms."""
    own = [gap for place, gap in gaps.items() if place[:2] == (h, low)]
    mean = f"{sum(own) / len(own):+.1f} points{' on average' if own[1:] else ''}"
    told = [f"{title(h)} − {title(low)} is {mean}"]
    for word, sign in (("for", 1), ("against", -1)):
        tasks = [t for (*pair, t), gap in clear.items() if pair == [h, low] and sign * gap > 0]
        told += [f"significantly {word} the sentence on {names(tasks)}"] if tasks else []
    sizes = [evidence.size(name) for name in (h, low)]
    if all(sizes):
        seeds = ["" if name in evidence.sizes else " (mean of seeds)" for name in (h, low)]
        one, two = (f"{size:.2f}{of}" for size, of in zip(sizes, seeds, strict=True))
        told.append(f"norm {one} and {two} times that of the exact sum")
    return ", ".join(told)


def title(name: str) -> str:
    """As tables call a method or a declared variant."""
    variants = catalogue().variants
    if name not in variants and f"{name}-s0" in variants:
        return variants[f"{name}-s0"].title.removesuffix(", seed 0")
    return variants[name].title if name in variants else tables.TITLES.get(name, name)


# Settings and what is cited -----------------------------------------------------------------------
def setting_of(name: str, own: object, read_in: str) -> dict:
    """A setting in words, and where it was read."""
    plain = ", ".join(own) if isinstance(own, tuple) else own
    plain = f"{plain:g}" if isinstance(plain, float) else plain
    shown = f"{name.replace('_', ' ').replace('rows', 'examples')}: {plain}"
    return {"value": own, "shown": shown, "words": f"Read from {read_in}."}


@setting
def profile_has(evidence: Evidence, *, setting: str) -> dict:
    """A setting of the profile; of its tasks the number."""
    own = getattr(evidence.profile, setting)
    return setting_of(setting, len(own) if setting == "tasks" else own, "the profile")


@setting
def rows_are_official(evidence: Evidence) -> dict:
    """Whether the cells stand on every row of the official splits."""
    official = {task: split["rows"] for task, split in evidence.records["splits"].items()}
    counts = {task: cell.count for (_, task), cell in evidence.cells.items()}
    fewer = [task for task, count in counts.items() if count != official[task]]
    told = ", ".join(f"{WORDS[t]} {counts[t]:,} of {official[t]:,}" for t in fewer)
    words = f"{'The other' if fewer else 'All'} tasks have all examples."
    return {"value": not fewer, "shown": f"examples: {told or 'all'}", "words": words}


@in_print
def as_cited(evidence: Evidence, *, work: str) -> dict:
    """A number that another work gives."""
    record = evidence.records["cited"][work]
    shown = f"{record['value']}{record['unit']}"
    return record | {"shown": shown, "words": f"By {record['source']}."}
