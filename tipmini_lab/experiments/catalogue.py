"""What experiments/*.yaml declares, read into variants by name, and the choices among them."""

import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.declared_files import Declared, read, what_is_wrong
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import NAME, Option, Variant, Weights
from tipmini_lab.results import store as storage
from tipmini_lab.results.store import Cell, in_one_format


class Alternative(Declared):
    """One way to settle an open point, compared with what stands printed."""

    option: str = Field(description="what is done otherwise, for the reader")
    variant: Variant | str = Field(description="a new variant, or the name of one")
    against: str = Field("tip", description="the variant that settles the point as printed")
    full: bool = Field(False, description="whether the profile `full` measures it as well")

    @property
    def name(self) -> str:
        return self.variant if isinstance(self.variant, str) else self.variant.name


class Point(Declared):
    """A point that the paper leaves open."""

    point: int = Field(ge=1)
    question: str
    printed: str = Field(description="how the printed reading settles it")
    readings: tuple[Alternative, ...] = Field(min_length=1)
    note: str = ""


WEIGHTS_TOLD = {"mean": "1/T", "sqrt": "1/√T"}  # of weights, as a reader knows them


class Sweep(Declared):
    """One setting moved over its values, in several variants."""

    name: str = Field(pattern=NAME)
    label: str = Field(description="of the axis; {value} is replaced")
    moves: Literal["sparsity", "rows", "adapters", "weights"]
    values: tuple[float | int | str, ...] = Field(min_length=2)
    lines: tuple[Variant | str, ...] = Field(min_length=1)

    def place(self, line: str, value: object) -> str:
        """The name of the variant of a line at a value."""
        return f"{line}-{self.name}-{value}"

    def at(self, line: Variant, value: object) -> Variant:
        changes: dict[str, object] = {self.moves: value}
        if self.moves == "sparsity":
            changes = {"options": line.options | {"sparsity": value}}
        if self.moves == "rows":
            changes = {"inputs": line.inputs.model_dump() | {"rows": value}}
        title = f"{line.title}, {self.label.format(value=WEIGHTS_TOLD.get(value, value))}"
        return line.changed(name=self.place(line.name, value), title=title, full=False, **changes)


class AxisValue(Declared):
    """What one place of a grid's axis changes."""

    title: str = Field("", description="for the reader; empty where it is the variant's own")
    options: dict[str, Option] = Field({})
    weights: Weights | None = None
    adapters: int | None = Field(None, description="how many of the profile's")


class Grid(Declared):
    """Several settings of one variant, each with each."""

    name: str = Field(pattern=NAME)
    of: str = Field(description="the variant that is changed")
    axes: tuple[dict[str, AxisValue], ...] = Field(
        min_length=1, description="name of a place -> it"
    )

    def places(self, variant: Variant) -> Iterator[Variant]:
        for chosen in product(*(axis.items() for axis in self.axes)):
            words = [word for word, _ in chosen]
            options = dict(ChainMap(*(change.options for _, change in chosen)))
            weights = [change.weights for _, change in chosen if change.weights is not None]
            named = {"name": "-".join([self.name, *words]), "full": False}
            told = ", ".join(change.title for _, change in chosen if change.title)
            named |= {"title": f"{variant.title} ({told or 'as it is'})"}
            if weights:
                named["weights"] = weights[-1]
            if counts := [change.adapters for _, change in chosen if change.adapters]:
                named["adapters"] = counts[-1]
            yield variant.changed(options=variant.options | options, **named)


class Control(Declared):
    """What stands beside a pruned merge, to tell what its pruning does from what scale does."""

    name: str = Field(pattern=NAME)
    title: str = Field(description="{title} is the pruned merge's")
    unpruned: bool = Field(False, description="the plain sum, scaled to the pruned merge's size")
    by: Literal["model", "block"] = "model"
    options: dict[str, Option] = Field({}, description="over the pruned merge's")
    seeds: int = Field(0, ge=0, description="how many draws; 0: nothing is drawn")
    full_of: tuple[str, ...] = Field((), description="beside which the profile `full` measures it")

    def beside(self, pruned: Variant) -> Iterator[Variant]:
        named = {"name": f"{pruned.name}.{self.name}", "title": self.title}
        full = {"full": pruned.name in self.full_of}
        named = full | {k: v.format(title=pruned.title) for k, v in named.items()}
        if self.unpruned:
            summed = str(pruned.options.get("summation", "linear"))
            yield Variant(**named, method=summed, norm_of=pruned.name, norm_by=self.by)
            return
        one = pruned.changed(**named, options=pruned.options | self.options)
        yield from [one.changed(**_drawn(one, s)) for s in range(self.seeds)] or [one]


def _drawn(variant: Variant, seed: int) -> dict[str, object]:
    title = f"{variant.title}, seed {seed}"
    return {"name": f"{variant.name}-s{seed}", "title": title, "seed": seed}


class Controls(Declared):
    of: tuple[str, ...] = Field(min_length=1, description="names of pruned merges")
    each: tuple[Control, ...] = Field(min_length=1)


class Choice(Declared):
    """The best of several variants on held-out train rows."""

    name: str = Field(pattern=NAME)
    title: str
    among: tuple[str, ...] = Field(
        min_length=1, description="names, * for any text; the simpler first, which wins a tie"
    )
    finalists: int = Field(
        0, ge=0, description="so many are scored again on more held-out rows, and chosen from"
    )
    lowest: bool = Field(False, description="the worst of them instead")
    full: bool = True


class Group(Declared):
    """One file."""

    description: str
    variants: tuple[Variant, ...] = ()
    points: tuple[Point, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    controls: Controls | None = None
    grids: tuple[Grid, ...] = ()
    choices: tuple[Choice, ...] = ()


# The declared experiments -------------------------------------------------------------------------
FOLDER = paths.REPOSITORY / "experiments"
ORDER = (
    "methods",
    "sweeps",
    "ledger",
    "controls",
    "combined",
    "tuned",
)  # a file may name the former's


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
        every = self.members[group]
        if profile.important_only:
            return [name for name in every if name in self.important]
        choices = self.groups[group].choices
        apart = {name for choice in choices for name in self.candidates(choice)} - self.important
        return [name for name in every if name not in apart]

    def variant(self, name: str) -> Variant:
        """Raises TipminiError for a name that is not declared."""
        if name not in self.variants:
            raise TipminiError(f"variant {name!r}: not declared in {FOLDER.name}/*.yaml")
        return self.variants[name]

    def candidates(self, choice: Choice) -> list[str]:
        """The variants that a choice is among, in its order, each once."""
        return _called(choice, self.variants)


@cache
def catalogue(folder: Path = FOLDER) -> Catalogue:
    """Everything declared in a folder's files.

    Raises
    ------
    TipminiError
        A file that is no valid YAML, an unknown key, a wrong value, or a name that is unknown or
        stands there twice; one line that names the file.
    """
    groups = {name: read(Group, folder / f"{name}.yaml") for name in group_names(folder)}
    variants: dict[str, Variant] = {}
    members, important = {}, set()
    for name, group in groups.items():
        try:
            members[name] = tuple(_add(group, variants, important))
        except (KeyError, ValidationError, TipminiError) as error:
            raise TipminiError(f"{folder / name}.yaml: {_one_line(error)}") from None
    important |= {c.name for group in groups.values() for c in group.choices if c.full}
    important |= {name for name, variant in variants.items() if variant.full}
    return Catalogue(groups, members, variants, frozenset(important))


def group_names(folder: Path = FOLDER) -> list[str]:
    """The files' names, in an order in which each names but variants of those before it."""
    return sorted((file.stem for file in folder.glob("*.yaml")), key=_rank)


def _rank(group: str) -> tuple[int, str]:
    return (ORDER.index(group) if group in ORDER else len(ORDER), group)


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return what_is_wrong(error)
    return f"no variant {error}" if isinstance(error, KeyError) else str(error)


def _add(group: Group, variants: dict[str, Variant], important: set[str]) -> list[str]:
    """The names of a group's members, their variants added; KeyError for an unknown name."""

    def new(variant: Variant) -> str:
        if variant.name in variants:
            raise TipminiError(f"variant {variant.name!r} is declared twice")
        if variant.norm_of and variant.norm_of not in variants:
            raise KeyError(variant.norm_of)
        variants[variant.name] = variant
        return variant.name

    def known(given: Variant | str) -> Variant:
        return variants[given] if isinstance(given, str) else given

    names = [new(variant) for variant in group.variants]
    for reading in (r for point in group.points for r in point.readings):
        known(reading.variant) if isinstance(reading.variant, str) else new(reading.variant)
        known(reading.against)
        names += [reading.name, reading.against]
        important |= {reading.name, reading.against} if reading.full else set()
    for sweep in group.sweeps:
        names += [new(sweep.at(known(line), v)) for line in sweep.lines for v in sweep.values]
    if group.controls:
        pruned = [variants[name] for name in group.controls.of]
        names += [p.name for p in pruned]
        names += [new(v) for p in pruned for c in group.controls.each for v in c.beside(p)]
    names += [new(v) for grid in group.grids for v in grid.places(variants[grid.of])]
    names += [choice.name for choice in group.choices if _called(choice, variants)]
    return list(dict.fromkeys(names))


def _called(choice: Choice, names: Iterable[str]) -> list[str]:
    """Those of the names that a choice is among; TipminiError where a pattern fits none."""
    found: list[str] = []
    for pattern in choice.among:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise TipminiError(f"choice {choice.name}: no variant is called {pattern!r}")
        found += fitting
    return list(dict.fromkeys(found))


# Choosing among variants by their cells on held-out train rows ------------------------------------
Cells = Mapping[tuple[str, str], Cell]


def score(cells: Cells, name: str, tasks: Sequence[str]) -> float:
    """Mean over tasks of a variant's accuracy; tasks count alike. KeyError without a cell."""
    return math.fsum(cells[name, task].mean for task in tasks) / len(tasks)


def best(cells: Cells, names: Sequence[str], tasks: Sequence[str], count: int = 1) -> list[str]:
    """The names with the highest scores, of equal ones the first; in the order of `names`."""
    order = sorted(names, key=lambda name: -score(cells, name, tasks))  # stable
    return [name for name in names if name in order[:count]]


def finalists(choice: Choice, known: Catalogue, profile: Profile) -> list[str]:
    """The candidates that are scored again on more rows.

    Raises TipminiError when a candidate has not been measured on held-out rows.
    """
    names = known.candidates(choice)
    tasks = scored_on(choice, known, profile)
    return best(
        _measured(choice, profile.selection_store, names, tasks), names, tasks, choice.finalists
    )


def scored_on(choice: Choice, known: Catalogue, profile: Profile) -> tuple[str, ...]:
    """The tasks that all candidates are evaluated on."""
    own = [set(known.variant(name).tasks(profile.tasks)) for name in known.candidates(choice)]
    return tuple(task for task in profile.tasks if all(task in tasks for tasks in own))


def resolved(choice: Choice, known: Catalogue, profile: Profile) -> Variant:
    """The chosen variant, under the choice's name and title; raises as `winner`."""
    found = known.variant(winner(choice, known, profile))
    return found.changed(name=choice.name, title=f"{choice.title}: {found.title}")


def winner(choice: Choice, known: Catalogue, profile: Profile) -> str:
    """The name of the chosen variant.

    Raises TipminiError when a candidate has not been measured on held-out rows.
    """
    names, store = known.candidates(choice), profile.selection_store
    if choice.finalists:
        names, store = finalists(choice, known, profile), profile.finals_store
    tasks = scored_on(choice, known, profile)
    cells = _measured(choice, store, names, tasks)
    if choice.lowest:
        return min(names, key=lambda name: score(cells, name, tasks))
    return best(cells, names, tasks)[0]


def _measured(choice: Choice, store: Path, names: Sequence[str], tasks: Sequence[str]) -> Cells:
    cells = in_one_format(storage.cells(store, names))
    missing = [name for name in names for task in tasks if (name, task) not in cells]
    if missing:
        first = f"{missing[0]} and {len(set(missing)) - 1} more are not measured on held-out rows"
        raise TipminiError(f"choice {choice.name}: {first}; run `tipmini measure` of its group")
    return cells
