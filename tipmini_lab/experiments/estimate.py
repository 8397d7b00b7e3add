"""What is still to be measured, and about how long this machine takes for it.

A cell's time is that of stored cells on the same task, by the row; how fast this machine is, is
told by the first rows of one of them, evaluated here. What is made before it is measured counts:
prunings as long as the store has of others, what is learnt by how often it reads its rows.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median

from tipmini.errors import TipminiError
from tipmini.models.peft_folder import WEIGHTS
from tipmini_lab.evaluation import perplexity, tasks
from tipmini_lab.experiments import distilling, groups, prunings, variants
from tipmini_lab.experiments.declared import grid
from tipmini_lab.experiments.experiment import Experiment, one_bar
from tipmini_lab.experiments.lab import Lab, stages
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.variants import TABLE_1
from tipmini_lab.paths import experiment_files
from tipmini_lab.results import checked, store
from tipmini_lab.results.runs import duration
from tipmini_lab.results.store import Cell

PROBED = 6  # rows by which the speed is measured
BACKWARD = 4  # a row that is learnt of takes as long as so many that are evaluated, or so


@dataclass
class Estimate:
    """Of what a command would measure."""

    stored: int = 0  # cells
    missing: int = 0
    untimed: int = 0  # missing ones of a task that no stored cell is of
    seconds: float = 0.0  # that the timed ones of them take here, one after the other
    learnt: set[str] = field(default_factory=set)  # merges that are learnt first
    learning: float = 0.0  # seconds of these; they are part of `seconds`
    unknown: int = 0  # experiments that follow from what is not measured yet

    @property
    def line(self) -> str:
        told = f"{self.stored:,} cells stored, {self.missing:,} to measure"
        if self.seconds:
            told += f", about {duration(self.seconds)} on this machine"
        if self.untimed:
            told += f"; {self.untimed:,} of them of tasks that no stored result times"
        if self.learnt:
            told += f"; merges to be learnt first: {len(self.learnt):,}"
        if self.learning:
            told += f", {duration(self.learning)} of the time"
        if self.unknown:
            told += f"; {self.unknown:,} more follow from what is measured first"
        return told


def estimate(
    profile: Profile, group: str | None, names: Sequence[str] = (), only: Sequence[str] = ()
) -> Estimate:
    """Of a group, or without one of TIP's Table 1; or of those of it that are in `names`.

    Raises TipminiError for an unknown group, and for one that is measured by a module of its own.
    """
    found, missing = Estimate(), []
    for each in planned(profile, group, names):
        if isinstance(each, TipminiError):
            found.unknown += 1
            continue
        asked = [measure for measure in each.measures() if not only or measure in only]
        lacking = lacks(each, only)
        found.stored += len(asked) - len(lacking)
        missing += [(each, lacking)] if lacking else []
    taught = {n.name: n for each, _ in missing for n in _from_start(each) if is_to_be_learnt(n)}
    found.learnt = set(taught)
    found.missing = sum(len(lacking) for _, lacking in missing)
    if missing:
        _time(found, profile, missing, taught.values())
    return found


def _from_start(each: Experiment) -> Iterator[Experiment]:
    """What it starts from, where that is a variant too, and itself."""
    if isinstance(each, variants.Merge) and each.variant.distill and each.variant.distill.start:
        yield from _from_start(each.lab.experiment(each.variant.distill.start))
    yield each


def planned(
    profile: Profile, group: str | None, names: Sequence[str]
) -> Iterator[Experiment | TipminiError]:
    """What is measured; instead of what can't be known before something else is, its error."""
    if group is None:
        lab = Lab(profile)
        yield from (lab.experiment(name) for name in names or TABLE_1)
        return
    known = groups.names(profile, group)
    for name in names:
        if name not in known:
            raise TipminiError(f"group {group}: no {name!r} at profile {profile.name}")
    if groups.module_of(group) == groups.PRUNINGS:
        declared = grid(experiment_files(prunings=True)[group])
        runs = prunings.experiments(profile, declared)
        yield from (runs[name] for name in known if not names or name in names)
        return
    try:
        for lab, stage in stages(profile, group, names):
            for name in dict.fromkeys(stage):
                try:
                    yield lab.experiment(name)
                except TipminiError as error:  # a choice among candidates that are not measured
                    yield error
    except TipminiError as error:  # finalists among such
        yield error


def lacks(each: Experiment, only: Sequence[str] = ()) -> list[str]:
    """The measures that have to be taken. What a cell of Table 1 was measured of is compared here,
    but for the merge, which is made only when it is measured."""
    if not (isinstance(each, variants.Merge) and each.apart):
        return each.missing(only)
    asked = [measure for measure in each.measures() if not only or measure in only]

    def is_current(measure: str) -> bool:
        cell = each.stored(measure)
        return (
            cell is not None
            and cell.inputs | {"adapter": None} == each.inputs(measure) | {"adapter": None}
            and each.is_of_today(cell)
        )

    return [measure for measure in asked if not is_current(measure)]


def is_to_be_learnt(each: Experiment) -> bool:
    """Whether it is distilled, and no folder has one of its recipe; adapters and rows are not
    compared here."""
    if not (isinstance(each, variants.Merge) and each.variant.distill):
        return False
    recipe = json.loads(json.dumps(asdict(each.lab.distill_recipe(each))))
    for place in each.lab.distilled_places(each.name):
        story = json.loads(checked.text(place / distilling.STORY) or "{}")
        if story.get("recipe") == recipe and checked.is_whole(place / WEIGHTS):
            return False
    return True


# How long it takes --------------------------------------------------------------------------------


def _time(
    found: Estimate,
    profile: Profile,
    missing: list[tuple[Experiment, list[str]]],
    taught: Iterable[variants.Merge],
) -> None:
    like = next((p for p in (profile, load_profile("mini")) if _table(p)), None)
    if like is None or like.model != profile.model:
        found.untimed = found.missing
        return
    prunings_of = store.bundles(like.pruning_store)
    bundles = [*store.bundles(like.variant_store), *prunings_of]
    cells = [*_table(like), *(cell for bundle in bundles for cell in bundle.cells)]
    rows = {}  # measure -> seconds of a row
    for cell in cells:
        rows.setdefault(cell.task, []).append(cell.seconds / cell.count)
    made = [bundle.facts["seconds"] for bundle in prunings_of if "seconds" in bundle.facts]
    row = {measure: median(own) for measure, own in rows.items()}
    seconds = 0.0
    for each, measures in missing:
        timed = [measure for measure in measures if measure in row]
        found.untimed += len(measures) - len(timed)
        seconds += sum(row[m] * _count(each, m) for m in timed)
        if isinstance(each, prunings.Pruned) and each.planned.recipe and made:
            seconds += median(made)
    learning = sum(row[t] * n for each in taught for t, n in _rows_read(each).items() if t in row)
    slow = slowness(like, profile, row)
    found.seconds, found.learning = slow * (seconds + learning), slow * learning


def _rows_read(each: variants.Merge) -> dict[str, float]:
    """Of each task, to learn a merge; one that is learnt of counts BACKWARD."""
    recipe, found = each.lab.distill_recipe(each), {}
    for task in each.tasks:
        learnt, read = recipe.reads(task)
        if each.variant.distill.learn != "factors":  # with the adapter of every other task
            read += (len(each.tasks) - 1) * recipe.split(task, task)[2]
        found[task] = BACKWARD * learnt + read
    return found


def _table(profile: Profile) -> list[Cell]:
    """The stored cells of the model without an adapter."""
    found = [variants.stored(profile, "base", task) for task in profile.tasks]
    return [cell for cell in found if cell]


def _count(each: Experiment, measure: str) -> int:
    """The windows of a corpus, the rows of a task."""
    windows = measure in perplexity.CORPORA
    return each.size.windows if windows else len(each.lab.definition(measure).eval_docs)


def slowness(like: Profile, profile: Profile, row: Mapping[str, float]) -> float:
    """How many times as long as stored a cell takes here, in the profile's number format.

    row: {task: seconds of a row, as stored}.
    """
    cell = _table(like)[0]
    lab = Lab(profile)
    few = tasks.load(cell.task, PROBED, data=profile.data)
    every = tasks.load(cell.task, cell.count, data=profile.data).eval_docs
    first = partial(lab.measure, "base", None, few)
    with one_bar():
        first()  # the model is loaded
        return seconds_of_all(first, every, PROBED) / (row[cell.task] * cell.count)


def seconds_of_all(first: Callable[[], object], every: Iterable[object], done: int) -> float:
    """Of all, by the time that the first ones take; what one takes goes by its letters."""
    letters = [len(str(one)) for one in every]
    start = time.perf_counter()
    first()
    return (time.perf_counter() - start) * sum(letters) / sum(letters[:done])
