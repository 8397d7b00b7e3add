"""Measuring many variants: what is missing, one variant after the other, several processes at once.

A cell is stored as soon as it is measured, so that a killed run goes on where it stopped.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import tasks
from tipmini_lab.evaluation.documents import ADAPTED
from tipmini_lab.experiments import catalogue
from tipmini_lab.experiments.catalogue import Catalogue, Choice
from tipmini_lab.experiments.experiment import Lab
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.training import RECIPES
from tipmini_lab.locks import in_turn
from tipmini_lab.results.store import Cell

FINAL = 192  # rows a task to choose among finalists by, where there are so many

Show = Callable[[Cell], None]


class Bundled(Lab):
    """Keeps all cells in bundles, those of the paper's methods as well: a whole set to compare."""

    apart = ()

    @property
    def kept(self) -> Path:
        """What is committed, so that a variant is the same merge on every machine."""
        return load_profile("full").store


class HeldOut(Bundled):
    """Scores train rows that no adapter was trained on; they chose between checkpoints.

    final: more of them, for finalists. Only adapters of this project are known to leave them out:
    raises TipminiError for others.
    """

    def __init__(self, profile: Profile, final: bool = False):
        if profile.data != "embedded":
            raise TipminiError(f"profile {profile.name}: its adapters' held-out rows aren't known")
        store = profile.finals_store if final else profile.selection_store
        super().__init__(profile.model_copy(update={"variants": str(store)}))
        self.final = final

    def task(self, name: str, train: int = 0):
        return super().task(name, train) if train else tasks.held_out(name, *self.rows(name))

    def rows(self, task: str) -> tuple[int, int]:
        """How many train rows are passed over, and how many of the next are scored."""
        recipe = RECIPES[task]
        asked = ADAPTED[task].choosing
        if self.final:
            asked = FINAL
        elif self.profile.rows(task):
            asked = min(asked, self.profile.rows(task))
        return recipe.rows, min(asked, recipe.held_out)


def run(
    lab: Lab, names: Sequence[str], only: Sequence[str] = (), show: Show = lambda cell: None
) -> None:
    """Measure the variants on the tasks they merge, or on those of them that are in `only`.

    A variant that another process is at is passed over, and waited for at the end, so that
    afterwards all is stored whoever measured it.
    """
    missing = len(list(_missing(lab, names, only)))
    with one_bar(), tqdm(total=missing, unit="cell", smoothing=0) as bar:
        folder = lab.profile.scratch / "claims" / lab.profile.variant_store.name
        for name in in_turn(names, folder):
            for cell in _cells(lab, name, only):
                show(cell)
                bar.update()


@contextmanager
def one_bar() -> Iterator[None]:
    """The evaluation's own bars off for the while, unless they are asked for."""
    given = os.environ.get("TIPMINI_PROGRESS")
    os.environ.setdefault("TIPMINI_PROGRESS", "")
    try:
        yield
    finally:
        if given is None:
            del os.environ["TIPMINI_PROGRESS"]


def stale(lab: Lab, names: Sequence[str]) -> list[tuple[str, str]]:
    """The stored cells, as (variant, task), that `run` would measure again: `Lab.is_stale`."""
    places = ((name, task) for name in names for task in asked(lab, name, ()))
    return [(name, task) for name, task in places if lab.is_stale(name, task)]


def _missing(lab: Lab, names: Sequence[str], only: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        yield from ((name, task) for task in asked(lab, name, only) if _is_missing(lab, name, task))


def _is_missing(lab: Lab, name: str, task: str) -> bool:
    cell = lab.stored(name, task)
    return cell is None or not lab.takes(cell) or lab.is_stale(name, task, measured=True)


def asked(lab: Lab, name: str, only: Sequence[str]) -> list[str]:
    """The tasks to measure a variant on."""
    every = lab.variant(name).tasks(lab.profile.tasks)
    return [task for task in every if not only or task in only]


def _cells(lab: Lab, name: str, only: Sequence[str]) -> Iterator[Cell]:
    """The cells that had to be measured."""
    for task in asked(lab, name, only):
        if _is_missing(lab, name, task):  # another process may have measured it meanwhile
            yield lab.cell(name, task)
    lab.lm.resident.forget()


def measure(
    profile: Profile,
    group: str,
    names: Sequence[str] = (),
    only: Sequence[str] = (),
    show: Show = lambda cell: None,
) -> None:
    """Measure a group of declared variants, or those of it that are in `names`.

    For its choices all candidates are first scored on held-out rows; where a profile measures but
    the important variants, the choice is read from the store. Raises TipminiError for an unknown
    group or name.
    """
    known = catalogue.catalogue()
    members = known.names(group, profile)
    for name in names:
        if name not in members:
            raise TipminiError(f"group {group}: no variant {name!r} at profile {profile.name}")
    wanted = [name for name in members if not names or name in names]
    choices = [known.choices[name] for name in wanted if name in known.choices]
    candidates = [name for choice in choices for name in known.candidates(choice)]
    if candidates and not profile.important_only:
        run(HeldOut(profile), list(dict.fromkeys(candidates)), only, show)
        finals = [c for choice in choices for c in _finalists(choice, known, profile)]
        run(HeldOut(profile, final=True), list(dict.fromkeys(finals)), only, show)
    run(Bundled(profile), wanted, only, show)


def _finalists(choice: Choice, known: Catalogue, profile: Profile) -> list[str]:
    return catalogue.finalists(choice, known, profile) if choice.finalists else []
