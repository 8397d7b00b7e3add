"""What files of experiments declare: points with readings, sweeps, grids, controls and choices."""

from collections import ChainMap
from collections.abc import Iterator
from itertools import product
from typing import Literal

from pydantic import Field

from tipmini.lab.variants import NAME, Declared, Option, Variant, Weights


class Reading(Declared):
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
    readings: tuple[Reading, ...] = Field(min_length=1)
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


class Change(Declared):
    """What one place of a grid's axis changes."""

    title: str = Field("", description="for the reader; empty where it is the variant's own")
    options: dict[str, Option] = Field({})
    weights: Weights | None = None


class Grid(Declared):
    """Several settings of one variant, each with each."""

    name: str = Field(pattern=NAME)
    of: str = Field(description="the variant that is changed")
    axes: tuple[dict[str, Change], ...] = Field(min_length=1, description="name of a place -> it")

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
