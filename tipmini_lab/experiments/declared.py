"""The declared prunings: experiments/PAPER/*.yaml that have `plans`, read into runs by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from tipmini.errors import TipminiError
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation.documents import KNOWN
from tipmini_lab.experiments.catalogue import Named
from tipmini_lab.experiments.profiles import known_tasks
from tipmini_lab.experiments.pruning import PruningRecipe
from tipmini_lab.paths import EXPERIMENTS

FILE = EXPERIMENTS / "loraprune" / "pruning.yaml"


class Size(Declared):
    """What a profile measures of every run."""

    windows: int = Field(ge=1)  # of each corpus
    length: int = Field(ge=2)  # tokens of a window
    tuned: dict[str, Any]  # of a `PruningRecipe`, pruning while fine-tuning
    one_shot: dict[str, Any]  # of a `PruningRecipe`, pruning at once
    longer: dict[str, Any] = Field({})  # what longer tuning has else than `tuned`

    @field_validator("tuned", "one_shot", "longer")
    @classmethod
    def _are_known_and_none_of_the_plans(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("method", "share", "seed"):
            if name in options:
                raise ValueError(f"{name} is the plans'; leave it out")
        known_tasks(options.get("tasks", ()))
        return options

    def recipe(self, tuned: bool, longer: bool = False, **options: object) -> PruningRecipe:
        given = self.tuned if tuned else self.one_shot
        given = given | (self.longer if longer else {}) | options
        return PruningRecipe(**given | {"tasks": tuple(given["tasks"])})


class Whole(Named):
    """The model that is not pruned."""

    int8: bool = False


class Zeroed(Named):
    """Elements of every matrix set to zero, which leaves its shape."""

    score: str
    pattern: str = "2:4"  # of `pruning.PATTERNS`
    share: float = 0.5
    zero_shot: bool = True


class Method(Named):
    """A criterion, as a `PruningRecipe` names it."""

    options: dict[str, Any]


class Plan(Declared):
    """Every method at every share with every seed."""

    what: str
    methods: tuple[str, ...] = Field(min_length=1)
    shares: tuple[float, ...] = Field(min_length=1)
    tuned: bool
    seeds: tuple[int, ...] = Field(min_length=1)
    longer: bool = False  # whether tuned with the size's `longer`
    zero_shot: bool = True  # whether tasks are scored beside the corpora


@dataclass(frozen=True)
class Planned:
    """One model to be made and scored.

    Without a recipe it is not pruned; with a score, elements are zero in a pattern.
    """

    name: str
    title: str
    method: str
    share: float = 0.0
    tuned: bool = False
    longer: bool = False
    recipe: PruningRecipe | None = None
    score: str | None = None
    pattern: str = "2:4"
    int8: bool = False
    zero_shot: bool = True


class Grid(Declared):
    """The file."""

    description: str
    version: int
    sizes: dict[str, Size]
    tasks: tuple[str, ...]
    apart: tuple[str, ...] = ()  # tasks that means over tasks leave out
    whole: tuple[Whole, ...]
    semi_structured: tuple[Zeroed, ...]
    unstructured: tuple[Zeroed, ...] = ()
    methods: tuple[Method, ...]
    ablations: tuple[Method, ...] = ()  # methods that no table but theirs shows
    variants: tuple[Method, ...] = ()  # a table of their own, too
    plans: tuple[Plan, ...]

    @field_validator("tasks", "apart")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_tasks(names, KNOWN)

    @property
    def averaged(self) -> tuple[str, ...]:
        """The tasks of which means are taken."""
        return tuple(task for task in self.tasks if task not in self.apart)

    @property
    def zeroed(self) -> tuple[Zeroed, ...]:
        return (*self.semi_structured, *self.unstructured)

    @property
    def every_method(self) -> tuple[Method, ...]:
        return (*self.methods, *self.ablations, *self.variants)

    def size(self, profile: str) -> Size:
        if profile not in self.sizes:
            known = ", ".join(self.sizes)
            raise TipminiError(f"group {FILE.stem}: profile {profile!r} is not one of {known}")
        return self.sizes[profile]

    def titles(self) -> dict[str, str]:
        """Of methods and of what is not pruned by group, by name."""
        every = (*self.whole, *self.zeroed, *self.every_method)
        return {m.name: m.title for m in every}

    def runs(self, profile: str) -> dict[str, Planned]:
        """By name, each once: what several plans name is scored as the fullest asks."""
        found: dict[str, Planned] = {}
        for run in self._every(self.size(profile)):
            if run.name not in found or run.zero_shot:
                found[run.name] = run
        return found

    def _every(self, size: Size) -> Iterator[Planned]:
        for whole in self.whole:
            yield Planned(whole.name, whole.title, whole.name, int8=whole.int8)
        for one in self.zeroed:
            recipe = size.recipe(tuned=False, method=one.score, share=one.share)
            how = {"score": one.score, "pattern": one.pattern, "zero_shot": one.zero_shot}
            yield Planned(one.name, one.title, one.name, one.share, recipe=recipe, **how)
        for plan in self.plans:
            for name, share, seed in product(plan.methods, plan.shares, plan.seeds):
                yield self._run(size, plan, name, share, seed)

    def _run(self, size: Size, plan: Plan, name: str, share: float, seed: int) -> Planned:
        method = next((m for m in self.every_method if m.name == name), None)
        if method is None:
            raise TipminiError(f"plan {plan.what!r}: no method {name!r}")
        recipe = size.recipe(plan.tuned, plan.longer, **method.options, share=share, seed=seed)
        how = f"{', fine-tuned' if plan.tuned else ''}{' for longer' if plan.longer else ''}"
        named = run_name(name, share, plan.tuned, seed, plan.longer)
        title = f"{method.title}, {share:.0%}{how}, seed {seed}"
        made = (name, share, plan.tuned, plan.longer, recipe)
        return Planned(named, title, *made, zero_shot=plan.zero_shot)


def run_name(method: str, share: float, tuned: bool, seed: int, longer: bool = False) -> str:
    how = "longer" if longer else "tuned" if tuned else "once"
    return f"{method}-{round(100 * share)}-{how}-s{seed}"


@cache
def grid(file: Path = FILE) -> Grid:
    """Raises TipminiError, one line that names the file, for what is no valid declaration."""
    found = read(Grid, file)
    try:
        for profile in found.sizes:
            found.runs(profile)
    except (TipminiError, TypeError) as error:
        raise TipminiError(f"{file}: {error}") from error
    return found
