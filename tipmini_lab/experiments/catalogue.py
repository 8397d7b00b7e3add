"""The declared merges: experiments/PAPER/*.yaml, read into variants, and the choices among them.

A variant is a method of the library with its options, and how the inputs were measured. What it
does not name is as the profile and the library have it: the equations as written, and this
project's reading where they leave something open. A new paper's experiments are a new folder.
"""

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

import tipmini as tm
from tipmini.errors import RULES, TipminiError, is_rule
from tipmini.methods.table import BY_BLOCK, METHODS, preset
from tipmini_lab.declared_files import Declared, read, what_is_wrong
from tipmini_lab.experiments.profiles import Profile, Rows, known_tasks
from tipmini_lab.paths import EXPERIMENTS, NAME, experiment_files
from tipmini_lab.results import store as storage
from tipmini_lab.results.store import Cell, in_one_format

UNMERGED = ("base", "single")  # the model alone, and with each task's own adapter
WEIGHTS_TOLD = {"mean": "1/T", "sqrt": "1/√T"}  # of weights, as a reader knows them
Weights = float | dict[str, float] | str
Option = bool | int | float | str | None


class Inputs(Declared):
    """How the inputs of the adapters' modules are measured, for methods that need it."""

    statistic: Literal["wanda", "mean_l2", "rms", "gram", "gram_sequences"] = "wanda"
    source: Literal["adapter", "base"] = "adapter"  # whose activations
    rows: int | None = Field(None, ge=1)  # train rows a task; null: the profile's
    # Whether the text ends with the right answer; "listed": `tasks.unlabelled`, which tells none.
    answers: Literal["listed"] | bool = True
    seed: int = Field(0, ge=0)  # 0: the first rows of the fixed order; else others


class Distilled(Declared):
    """What is learnt of the adapters' own answers, from a merge on (`distilling`)."""

    learn: Literal["factors", "adapter", "kind", "module"] = "factors"  # or coefficients, by these
    rank: int = Field(56, ge=1)
    fresh: bool = False  # from an adapter that knows nothing, not from the merge
    gold: bool = False  # from the right answers
    # What the merge pruned stays 0. Not in the settings of what is not masked: it was added later.
    masked: Literal[True] | None = Field(None, exclude_if=lambda value: value is None)
    unseen: bool = False  # from rows that the adapters were not trained on
    trained: bool = False  # from all rows that they were trained on, as often as they were
    rows: int = Field(96, ge=1)
    rows_of: Rows | None = Field(None, exclude_if=lambda value: value is None)  # so many of these
    stopping: int = Field(32, ge=1)
    # What the words of listed choices count, beside the choice
    words: float | None = Field(None, gt=0, exclude_if=lambda value: value is None)
    balanced: Literal[True, "capped"] | None = Field(None, exclude_if=lambda value: value is None)
    # Another variant, in place of the merge
    start: str | None = Field(None, exclude_if=lambda value: value is None)
    epochs: int = Field(6, ge=0)
    parts: int = Field(12, ge=1)  # steps an epoch
    learning_rate: float = 5e-4
    floor: float = 0.01
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> "Distilled":
        if self.rows_of is not None and (self.trained or min(self.rows_of.values(), default=1) < 1):
            raise ValueError("rows_of has one row or more of a task, and no place beside trained")
        if self.words and self.gold:
            raise ValueError("words are of what adapters answer; leave out gold")
        if self.start and (self.fresh or self.learn != "factors"):
            raise ValueError("start is of factors that are learnt; leave out fresh and learn")
        if self.masked and (self.fresh or self.learn != "factors"):
            raise ValueError("masked is of the factors of a merge; leave out fresh and learn")
        return self


class Named(Declared):
    name: str = Field(pattern=NAME)
    title: str  # for the reader of a table


class Variant(Named):
    """One merge, or the model without one."""

    method: str = "tip"  # base, single, or a method or preset of the library
    options: dict[str, Option] = Field({})  # of the method; rank may be 'whole'
    weights: Weights = "sum"  # a rule of tm.merge, a number for each, one a task, or learnt
    seed: int | None = None  # of random methods; null: the profile's
    adapters: int | tuple[str, ...] | None = None  # tasks, or how many of the profile's; null: all
    inputs: Inputs = Inputs()
    distill: Distilled | None = None  # what is done with the merge
    norm_of: str | None = None  # scaled to the size of this variant's merge
    norm_by: Literal["model", "block"] = "model"  # as a whole, or each block
    metrics: dict[str, str] = Field({})  # task -> another metric than the usual one
    full: bool = False  # whether the profile `full` measures it as well

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, given: object) -> object:
        """A preset's own weights where none are named."""
        method = given.get("method") if isinstance(given, dict) else None
        own = tm.PRESETS.get(method) if isinstance(method, str) else None
        return {"weights": own.weights} | given if own else given

    @field_validator("options", mode="before")
    @classmethod
    def _named(cls, options: dict) -> dict:
        """YAML 1.1 reads the bare word on as true, also where it is a key."""
        return {"on" if key is True else key: value for key, value in dict(options).items()}

    @field_validator("adapters", "metrics")
    @classmethod
    def _known(cls, given: object) -> object:
        return known_tasks(given) if isinstance(given, tuple | dict) else given

    @field_validator("weights")
    @classmethod
    def _rule(cls, weights: Weights) -> Weights:
        if isinstance(weights, str) and weights != "learnt" and not is_rule(weights):
            raise ValueError(f"weights must be numbers, {RULES}, or learnt, got {weights!r}")
        return weights

    @model_validator(mode="after")
    def _possible(self) -> "Variant":
        if isinstance(self.adapters, int) and self.adapters < 1:
            raise ValueError("adapters must be 1 or more")
        merges = self.method not in UNMERGED
        if not merges and (self.options or self.norm_of):
            raise ValueError(f"{self.method} merges nothing and has no options")
        by_block = BY_BLOCK.get(self.method)
        known = by_block.options if by_block else tm.method_options(self.method) if merges else {}
        for option in self.options:
            if option not in known:
                raise ValueError(f"method {self.method} has no option {option!r}")
        return self

    @property
    def base_method(self) -> str:
        """The method of a preset; else the method itself."""
        return preset(self.method).method

    @property
    def needs(self) -> str | None:
        """What the method needs of the inputs: "norms" or "grams" of them, "rows" themselves."""
        return None if self.method in UNMERGED else (METHODS | BY_BLOCK)[self.base_method].needs

    @property
    def measured(self) -> Inputs:
        """How the inputs are measured; for Gram matrices, where it needs those.

        Where nothing is said, they are means over sequences, as what is stored was measured; the
        authors' are over tokens, "gram".
        """
        of_norms = self.needs == "grams" and not self.inputs.statistic.startswith("gram")
        return self.inputs.model_copy(update={"statistic": "gram_sequences"} if of_norms else {})

    def tasks(self, every: Sequence[str]) -> tuple[str, ...]:
        """Those whose adapters are merged, in the order of `every`; they alone are evaluated.

        Raises TipminiError for an adapter that is not among them.
        """
        if not isinstance(self.adapters, tuple):
            return tuple(every)[: self.adapters]
        for task in self.adapters:
            if task not in every:
                raise TipminiError(f"variant {self.name}: {task} is not a task of the profile")
        return tuple(task for task in every if task in self.adapters)

    def metric(self, task: str) -> str:
        from tipmini_lab.evaluation.tasks import METRIC  # and lm-eval with it

        return self.metrics.get(task, METRIC[task])

    def shares(self, tasks: Sequence[str]) -> str | dict[str, float]:
        """The weights as `merge` takes them."""
        number = isinstance(self.weights, float)
        return dict.fromkeys(tasks, self.weights) if number else self.weights

    @model_validator(mode="after")
    def _starts_once(self) -> "Variant":
        merged = self.method != "cat" or self.weights != "sum" or self.options
        if self.distill and self.distill.start and merged:
            raise ValueError("start takes the place of a merge: method cat, and nothing of it set")
        return self

    def settings(self) -> dict:
        """All that the merge follows from, names and titles left out."""
        unset = set() if self.distill else {"distill"}
        return self.model_dump(exclude={"name", "title", "metrics", "full"} | unset)

    def changed(self, **changes: object) -> "Variant":
        """A copy with other fields, checked like any."""
        return Variant(**self.model_dump(exclude_unset=True) | changes)


class Alternative(Declared):
    """One way to settle an open point, compared with this project's reading."""

    option: str  # what is done otherwise, for the reader
    variant: Variant | str  # a new variant, or the name of one
    against: str = "tip"  # the variant that settles the point by our reading
    full: bool = False  # whether the profile `full` measures it as well

    @property
    def name(self) -> str:
        return self.variant if isinstance(self.variant, str) else self.variant.name


class Point(Declared):
    """A point that the text of a paper leaves open."""

    point: int = Field(ge=1)
    question: str
    ours: str  # how our reading settles it
    readings: tuple[Alternative, ...] = Field(min_length=1)
    note: str = ""


class Sweep(Declared):
    """One setting moved over its values, in several variants."""

    name: str = Field(pattern=NAME)
    label: str  # of the axis; {value} is replaced
    moves: Literal["sparsity", "rows", "adapters", "weights"]
    values: tuple[float | int | str, ...] = Field(min_length=2)
    lines: tuple[Variant | str, ...] = Field(min_length=1)
    full: dict[str, tuple[float | int | str, ...]] = Field({})  # line -> values `full` measures too

    @model_validator(mode="after")
    def _has_what_is_measured_twice(self) -> "Sweep":
        names = [line if isinstance(line, str) else line.name for line in self.lines]
        for line, values in self.full.items():
            if line not in names or not set(values) <= set(self.values):
                raise ValueError(f"full has {line}, {values}, which are not among the sweep's own")
        return self

    def place(self, line: str, value: object) -> str:
        """The name of the variant of a line at a value."""
        return f"{line}-{self.name}-{value}"

    def at(self, line: Variant, value: object) -> Variant:
        changes: dict[str, object] = {
            "sparsity": {"options": line.options | {"sparsity": value}},
            "rows": {"inputs": line.inputs.model_dump() | {"rows": value}},
        }.get(self.moves, {self.moves: value})
        title = (
            f"{line.title}, {self.label.replace('{value}', str(WEIGHTS_TOLD.get(value, value)))}"
        )
        return line.changed(name=self.place(line.name, value), title=title, full=False, **changes)


class AxisValue(Declared):
    """What one place of a grid's axis changes."""

    title: str = ""  # for the reader; empty where it is the variant's own
    options: dict[str, Option] = Field({})
    weights: Weights | None = None
    adapters: int | None = None  # how many of the profile's
    seed: int | None = Field(None, ge=0)  # of random methods


class Grid(Declared):
    """Several settings of one variant or of several, each with each."""

    name: str = Field(pattern=NAME)
    of: str | tuple[str, ...]  # what is changed; of several, each has its name in its places'
    axes: tuple[dict[str, AxisValue], ...] = Field(min_length=1)  # name of a place -> it

    def every(self, known: Mapping[str, Variant]) -> Iterator[Variant]:
        """Raises KeyError for a variant that is not known."""
        if isinstance(self.of, str):
            yield from self.places(known[self.of], self.name)
            return
        for name in self.of:
            yield from self.places(known[name], f"{self.name}-{name}")

    def places(self, variant: Variant, name: str) -> Iterator[Variant]:
        for chosen in product(*(axis.items() for axis in self.axes)):
            changes = [change for _, change in chosen]
            told = ", ".join(change.title for change in changes if change.title)
            last = {
                field: given[-1]
                for field in ("weights", "adapters", "seed")
                if (given := [v for each in changes if (v := getattr(each, field)) is not None])
            }
            yield variant.changed(
                name="-".join([name, *(word for word, _ in chosen)]),
                title=f"{variant.title} ({told or 'as it is'})",
                full=False,
                options=variant.options | dict(ChainMap(*(each.options for each in changes))),
                **last,
            )


class Control(Named):
    """What stands beside a pruned merge, to tell what its pruning does from what scale does.

    In its title, {title} is the pruned merge's.
    """

    unpruned: bool = False  # the plain sum, scaled to the pruned merge's size
    by: Literal["model", "block"] = "model"
    options: dict[str, Option] = Field({})  # over the pruned merge's
    seeds: int = Field(0, ge=0)  # how many draws; 0: nothing is drawn
    full_of: tuple[str, ...] = ()  # beside which the profile `full` measures it

    def beside(self, pruned: Variant) -> Iterator[Variant]:
        name, title = f"{pruned.name}.{self.name}", self.title.replace("{title}", pruned.title)
        told = {"name": name, "title": title, "full": pruned.name in self.full_of}
        if self.unpruned:
            summed = str(pruned.options.get("summation", "linear"))
            yield Variant(**told, method=summed, norm_of=pruned.name, norm_by=self.by)
            return
        one = pruned.changed(**told, options=pruned.options | self.options)
        if not self.seeds:
            yield one
        for seed in range(self.seeds):
            yield one.changed(name=f"{name}-s{seed}", title=f"{title}, seed {seed}", seed=seed)


class Controls(Declared):
    of: tuple[str, ...] = Field(min_length=1)  # names of pruned merges
    each: tuple[Control, ...] = Field(min_length=1)


class Choice(Named):
    """The best of several variants on held-out train rows."""

    among: tuple[str, ...] = Field(min_length=1)  # names, * for any text; the first wins a tie
    finalists: int = Field(0, ge=0)  # so many are scored again on more rows, and chosen from
    lowest: bool = False  # the worst of them instead
    both: bool = False  # scored with the second set of adapters too, which counts alike
    full: bool = True


class Group(Declared):
    """One file of merges."""

    description: str
    order: int = 1  # a file may name variants of those before it
    variants: tuple[Variant, ...] = ()
    points: tuple[Point, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    controls: Controls | None = None
    grids: tuple[Grid, ...] = ()
    choices: tuple[Choice, ...] = ()


# The declared experiments -------------------------------------------------------------------------
@dataclass(frozen=True)
class Catalogue:
    """All that is declared: the groups, and every variant by its name."""

    groups: Mapping[str, Group]
    members: Mapping[str, tuple[str, ...]]  # group -> names, of choices as well
    variants: Mapping[str, Variant]
    important: frozenset[str] = field(default_factory=frozenset)  # measured at `full` as well

    @property
    def choices(self) -> dict[str, Choice]:
        return {c.name: c for group in self.groups.values() for c in group.choices}

    def names(self, group: str, profile: Profile) -> list[str]:
        """The variants of a group that a profile measures; TipminiError for an unknown group.

        What is declared there to be chosen from alone is scored on held-out rows and no others.
        """
        if group not in self.members:
            raise TipminiError(f"group {group!r}: not one of {', '.join(self.members)}")
        every, choices = self.members[group], self.groups[group].choices
        if profile.important_only:
            return [name for name in every if name in self.important]
        apart = {name for choice in choices for name in self.candidates(choice)} - self.important
        return [name for name in every if name not in apart]

    def variant(self, name: str) -> Variant:
        """Raises TipminiError for a name that is not declared."""
        if name not in self.variants:
            raise TipminiError(f"variant {name!r}: not declared in {EXPERIMENTS.name}/*/*.yaml")
        return self.variants[name]

    def candidates(self, choice: Choice) -> list[str]:
        """The variants that a choice is among, in its order, each once."""
        return _called(choice, self.variants)


@cache
def catalogue(folder: Path = EXPERIMENTS) -> Catalogue:
    """Every group of merges declared in the folders of a folder.

    Raises
    ------
    TipminiError
        A file that is no valid YAML, an unknown key, a wrong value, or a name that is unknown or
        stands there twice; one line that names the file.
    """
    files = experiment_files(False, folder)
    groups = {name: read(Group, file) for name, file in files.items()}
    groups = dict(sorted(groups.items(), key=lambda item: item[1].order))
    variants: dict[str, Variant] = {}
    members, important = {}, set()
    for name, group in groups.items():
        try:
            members[name] = tuple(_add(group, variants, important))
        except KeyError as error:
            raise TipminiError(f"{files[name]}: no variant {error}") from None
        except (ValidationError, TipminiError) as error:
            invalid = isinstance(error, ValidationError)
            told = what_is_wrong(error) if invalid else error
            raise TipminiError(f"{files[name]}: {told}") from None
    important |= {c.name for group in groups.values() for c in group.choices if c.full}
    important |= {name for name, variant in variants.items() if variant.full}
    return Catalogue(groups, members, variants, frozenset(important))


def _add(group: Group, variants: dict[str, Variant], important: set[str]) -> list[str]:
    """The names of a group's members, their variants added; KeyError for an unknown name."""

    def new(variant: Variant) -> str:
        if variant.name in variants:
            raise TipminiError(f"variant {variant.name!r} is declared twice")
        start = variant.distill and variant.distill.start
        for other in (variant.norm_of, start):
            if other and other not in variants:
                raise KeyError(other)
        if start and ((own := variants[start].distill) is None or own.gold):
            told = f"variant {variant.name!r}: start has to name one that is learnt without labels"
            raise TipminiError(told)
        variants[variant.name] = variant
        return variant.name

    def known(given: Variant | str) -> Variant:
        return variants[given] if isinstance(given, str) else given

    names = [new(variant) for variant in group.variants]
    for reading in (r for point in group.points for r in point.readings):
        if not isinstance(reading.variant, str):
            new(reading.variant)
        both = [variants[reading.name].name, variants[reading.against].name]
        names += both
        important |= set(both) if reading.full else set()
    for sweep in group.sweeps:
        names += [new(sweep.at(known(line), v)) for line in sweep.lines for v in sweep.values]
        important |= {sweep.place(line, v) for line, own in sweep.full.items() for v in own}
    if group.controls:
        pruned = [variants[name] for name in group.controls.of]
        names += [p.name for p in pruned]
        names += [new(v) for p in pruned for c in group.controls.each for v in c.beside(p)]
    names += [new(v) for grid in group.grids for v in grid.every(variants)]
    names += [choice.name for choice in group.choices if _called(choice, variants)]
    return list(dict.fromkeys(names))


def _called(choice: Choice, variants: Mapping[str, Variant]) -> list[str]:
    """The variants that a choice is among; TipminiError where a pattern fits none, or one that
    learns of the rows that it would be scored on."""
    found: list[str] = []
    for pattern in choice.among:
        fitting = [name for name in variants if fnmatchcase(name, pattern)]
        if not fitting:
            raise TipminiError(f"choice {choice.name}: no variant is called {pattern!r}")
        found += fitting
    for name in found:
        if (distill := variants[name].distill) and (distill.unseen or distill.trained):
            raise TipminiError(f"choice {choice.name}: {name} learns of held-out rows")
    return list(dict.fromkeys(found))


# Choosing among variants by their cells on held-out train rows ------------------------------------
Cells = Mapping[tuple[str, str], Cell]


def score(cells: Cells, name: str, tasks: Sequence[str]) -> float:
    """Mean over tasks of a variant's accuracy; tasks count alike. KeyError without a cell."""
    return math.fsum(cells[name, task].mean for task in tasks) / len(tasks)


def best(scores: Mapping[str, float], count: int = 1) -> list[str]:
    """The names with the highest scores, of equal ones the first; in the order that is given."""
    order = sorted(scores, key=lambda name: -scores[name])  # stable
    return [name for name in scores if name in order[:count]]


def sets(choice: Choice, profile: Profile) -> list[Profile]:
    """A profile for each set of adapters that a choice is made with."""
    return [profile, profile.second()] if choice.both else [profile]


def finalists(choice: Choice, known: Catalogue, profile: Profile) -> list[str]:
    """The candidates that are scored again on more rows; raises as `winner`."""
    names = known.candidates(choice)
    return best(_scores(choice, known, profile, names), choice.finalists)


def scored_on(choice: Choice, known: Catalogue, profile: Profile) -> tuple[str, ...]:
    """The tasks that all candidates are evaluated on."""
    own = [set(known.variant(name).tasks(profile.tasks)) for name in known.candidates(choice)]
    return tuple(task for task in profile.tasks if all(task in tasks for tasks in own))


def winner(choice: Choice, known: Catalogue, profile: Profile) -> str:
    """The name of the chosen variant.

    Raises TipminiError when a candidate has not been measured on held-out rows.
    """
    names, final = known.candidates(choice), bool(choice.finalists)
    if final:
        names = finalists(choice, known, profile)
    scores = _scores(choice, known, profile, names, final)
    return min(scores, key=scores.get) if choice.lowest else best(scores)[0]


def resolved(choice: Choice, known: Catalogue, profile: Profile) -> Variant:
    """The chosen variant, under the choice's name and title; raises as `winner`."""
    found = known.variant(winner(choice, known, profile))
    return found.changed(name=choice.name, title=f"{choice.title}: {found.title}")


def _scores(
    choice: Choice, known: Catalogue, profile: Profile, names: Sequence[str], final: bool = False
) -> dict[str, float]:
    """The mean of each name's `score` over the sets of adapters; raises as `winner`."""
    tasks = scored_on(choice, known, profile)
    stores = [p.finals_store if final else p.selection_store for p in sets(choice, profile)]
    cells = [_measured(choice, store, names, tasks) for store in stores]
    return {name: fmean(score(own, name, tasks) for own in cells) for name in names}


def _measured(choice: Choice, store: Path, names: Sequence[str], tasks: Sequence[str]) -> Cells:
    cells = in_one_format(storage.cells(store, names))
    missing = {name for name in names for task in tasks if (name, task) not in cells}
    if missing:
        first = next(name for name in names if name in missing)
        more = f"{first} and {len(missing) - 1} more are not measured on held-out rows"
        raise TipminiError(f"choice {choice.name}: {more}; run `tipmini measure` of its group")
    return cells
