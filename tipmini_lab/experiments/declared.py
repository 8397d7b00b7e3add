"""The declared pruning experiments: experiments/pruning/grid.yaml, read into runs by name."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field, field_validator

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation.documents import KNOWN
from tipmini_lab.experiments.recipe import PruningRecipe
from tipmini_lab.experiments.variants import NAME

FILE = paths.REPOSITORY / "experiments" / "pruning" / "grid.yaml"
GROUP = "pruning"  # its name on the command line


class Size(Declared):
    """What a profile measures of every run."""

    windows: int = Field(ge=1, description="of each corpus")
    length: int = Field(ge=2, description="tokens of a window")
    tuned: dict[str, object] = Field(description="of a `PruningRecipe`, pruning while fine-tuning")
    one_shot: dict[str, object] = Field(description="of a `PruningRecipe`, pruning at once")
    longer: dict[str, object] = Field({}, description="what longer tuning has else than `tuned`")

    @field_validator("tuned", "one_shot", "longer")
    @classmethod
    def _leaves_the_plans_theirs(cls, options: dict[str, object]) -> dict[str, object]:
        for name in ("method", "share", "seed"):
            if name in options:
                raise ValueError(f"{name} is the plans'; leave it out")
        return options

    def recipe(self, tuned: bool, longer: bool = False, **options: object) -> PruningRecipe:
        given = self.tuned if tuned else self.one_shot
        given = given | (self.longer if longer else {}) | options
        return PruningRecipe(**given | {"tasks": tuple(given["tasks"])})


class Whole(Declared):
    """The model that is not pruned."""

    name: str = Field(pattern=NAME)
    title: str
    int8: bool = False


class SemiStructured(Declared):
    """Two of every four weights set to zero."""

    name: str = Field(pattern=NAME)
    title: str
    score: str


class Method(Declared):
    """A criterion, as a `PruningRecipe` names it."""

    name: str = Field(pattern=NAME)
    title: str
    options: dict[str, object]


class Plan(Declared):
    """Every method at every share with every seed."""

    what: str
    methods: tuple[str, ...] = Field(min_length=1)
    shares: tuple[float, ...] = Field(min_length=1)
    tuned: bool
    seeds: tuple[int, ...] = Field(min_length=1)
    longer: bool = Field(False, description="whether tuned with the size's `longer`")
    zero_shot: bool = Field(True, description="whether tasks are scored beside the corpora")


@dataclass(frozen=True)
class Planned:
    """One model to be made and scored. Without a recipe it is not pruned; score: 2:4 by it."""

    name: str
    title: str
    method: str
    share: float = 0.0
    tuned: bool = False
    longer: bool = False
    recipe: PruningRecipe | None = None
    score: str | None = None
    int8: bool = False
    zero_shot: bool = True


class Grid(Declared):
    """The file."""

    description: str
    version: int
    sizes: dict[str, Size]
    tasks: tuple[str, ...]
    apart: tuple[str, ...] = Field((), description="tasks that means over tasks leave out")
    whole: tuple[Whole, ...]
    semi_structured: tuple[SemiStructured, ...]
    methods: tuple[Method, ...]
    ablations: tuple[Method, ...] = Field((), description="methods that no table but theirs shows")
    variants: tuple[Method, ...] = Field((), description="a table of their own, too")
    plans: tuple[Plan, ...]

    @property
    def averaged(self) -> tuple[str, ...]:
        """The tasks of which means are taken."""
        return tuple(task for task in self.tasks if task not in self.apart)

    @property
    def every_method(self) -> tuple[Method, ...]:
        return (*self.methods, *self.ablations, *self.variants)

    def size(self, profile: str) -> Size:
        if profile not in self.sizes:
            known = ", ".join(self.sizes)
            raise TipminiError(f"group {GROUP}: profile {profile!r} is not one of {known}")
        return self.sizes[profile]

    def titles(self) -> dict[str, str]:
        """Of methods and of what is not pruned by group, by name."""
        every = (*self.whole, *self.semi_structured, *self.every_method)
        return {m.name: m.title for m in every}

    def runs(self, profile: str) -> dict[str, Planned]:
        """By name, each once: what several plans name is scored as the fullest asks."""
        size, found = self.size(profile), {}
        for run in (*self._unpruned(size), *self._planned(size)):
            known = found.get(run.name)
            if known is None or run.zero_shot:
                found[run.name] = run
        return found

    def _unpruned(self, size: Size) -> Iterator[Planned]:
        for whole in self.whole:
            yield Planned(whole.name, whole.title, whole.name, int8=whole.int8)
        for semi in self.semi_structured:
            recipe = size.recipe(tuned=False, method=semi.score, share=0.5)
            yield Planned(semi.name, semi.title, semi.name, 0.5, recipe=recipe, score=semi.score)

    def _planned(self, size: Size) -> Iterator[Planned]:
        for plan in self.plans:
            for name in plan.methods:
                for share in plan.shares:
                    for seed in plan.seeds:
                        yield self._run(size, plan, name, share, seed)

    def _run(self, size: Size, plan: Plan, name: str, share: float, seed: int) -> Planned:
        method = next((m for m in self.every_method if m.name == name), None)
        if method is None:
            raise TipminiError(f"plan {plan.what!r}: no method {name!r}")
        recipe = size.recipe(plan.tuned, plan.longer, **method.options, share=share, seed=seed)
        how = f"{', fine-tuned' if plan.tuned else ''}{' for longer' if plan.longer else ''}"
        return Planned(
            run_name(name, share, plan.tuned, seed, plan.longer),
            f"{method.title}, {share:.0%}{how}, seed {seed}",
            name,
            share,
            plan.tuned,
            plan.longer,
            recipe,
            zero_shot=plan.zero_shot,
        )


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
        _check_tasks((*found.tasks, *found.apart))
    except (TipminiError, TypeError) as error:
        raise TipminiError(f"{file}: {error}") from error
    return found


def _check_tasks(names: tuple[str, ...], known: Collection[str] = KNOWN) -> None:
    for name in names:
        if name not in known:
            raise TipminiError(f"tasks: {name!r} is not one of {', '.join(known)}")
