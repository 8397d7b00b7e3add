"""Experiments: each is made once, measured on tasks or corpora, and kept as soon as it is measured.

A merge (`variants.Merge`), a pruned model (`prunings.Pruned`), a tuned one (`tunings.Tuned`) and a
super-network (`elastic.Elastic`) are kinds of it. Several processes may measure side by side: each
takes what no other is at, and a killed one goes on where it stopped.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tipmini.errors import TipminiError
from tipmini_lab.evaluation import model
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.locks import in_turn
from tipmini_lab.results import digests, store
from tipmini_lab.results.store import Cell

if TYPE_CHECKING:
    from tipmini_lab.experiments.lab import Lab

Show = Callable[[Cell], None]


class Experiment:
    """One thing that is made and measured; its cells stand in a bundle below `store`.

    A kind of it says:

    - settings(measured=True): everything that it follows from besides the code, as JSON holds it;
      measured=False leaves out what takes reading the rows of its calibration
    - measures(): the tasks and corpora that it is measured on
    - build(measure): the folder that a measure is taken of, made where it is not there; None: the
      base model as it is
    - facts(): what there is to tell of its making
    - inputs(measure, folder=None): everything that a cell's values follow from; without a folder
      what is known before it is made
    - code(measure): what a cell is measured by
    - measure(measure, folder): a new cell, which is not stored
    """

    lab: "Lab"
    name: str
    title: str
    store: Path

    def stored(self, measure: str) -> Cell | None:
        """What was measured before, of whatever; None where nothing was."""
        return store.cell_of(self.store, self.name, measure)

    def same(self, key: str) -> Cell | None:
        """The same measurement under another name; None where there is none."""
        return None

    def keep(self, cell: Cell) -> None:
        made = {"name": self.name, "title": self.title, "settings": self.settings()}
        store.keep(self.store, store.Bundle(**made, facts=self.facts(), cells=[cell]))

    def cell(self, measure: str) -> Cell:
        """The measured cell; read from the store where it was measured from the same things."""
        folder = self.build(measure)
        key, found = digests.digest(self.inputs(measure, folder)), self.stored(measure)
        if found is None or found.key != key or not self.is_of_today(found):
            found = self.same(key) or self.measure(measure, folder)
            self.lab.require_same_model()
            self.keep(found)
        return found

    def is_of_today(self, cell: Cell) -> bool:
        """Whether a cell is of the number format that is asked for, and of code that gives the same
        as today's."""
        asked = self.lab.profile.dtype in ("auto", cell.dtype)
        return asked and digests.is_same_code(cell.code, self.code(cell.task))

    def is_stale(self, measure: str, measured: bool = False) -> bool:
        """Whether a stored cell is of other code, model, rows or settings than now.

        Told without making anything, so that another machine, which rounds otherwise, finds a cell
        as good as its own; `cell` compares the made factors themselves. measured: also whether the
        rows of its calibration are others, which takes reading them.
        """
        bundle = store.read(self.store, self.name)
        cell = next((c for c in bundle.cells if c.task == measure), None) if bundle else None
        if cell is None:
            return False
        then = bundle.settings if measured else without_measured(bundle.settings)
        now = [self.settings(measured), self.inputs(measure) | {"adapter": None}]
        return now != [then, cell.inputs | {"adapter": None}] or not self.is_of_today(cell)

    def missing(self, only: Sequence[str] = ()) -> list[str]:
        """Its measures, or those of them that are in `only`, that have to be taken."""
        asked = [measure for measure in self.measures() if not only or measure in only]
        return [m for m in asked if self.stored(m) is None or self.is_stale(m, measured=True)]

    def run(self, only: Sequence[str] = ()) -> Iterator[Cell]:
        """Take what is missing; the cells that had to be measured."""
        yield from map(self.cell, self.missing(only))


def without_measured(settings: dict) -> dict:
    """A merge's settings but for the hashes of what its inputs and weights were measured on."""
    kept = {key: value for key, value in settings.items() if key not in ("measured", "learnt")}
    inner = {key: kept[key] for key in ("norm_of", "started") if isinstance(kept.get(key), dict)}
    return kept | {key: without_measured(own) for key, own in inner.items()}


def run(
    experiments: Sequence[Experiment],
    claims: Path,
    only: Sequence[str] = (),
    show: Show = lambda cell: None,
) -> None:
    """Take all that is missing of experiments.

    One that another process is at is passed over, and waited for at the end, so that afterwards
    all is stored whoever measured it. claims: the folder in which processes tell so.
    """
    named = {each.name: each for each in experiments}
    missing = sum(len(each.missing(only)) for each in experiments)
    with one_bar(), tqdm(total=missing, unit="cell", smoothing=0) as bar:
        for name in in_turn(named, claims):
            for cell in named[name].run(only):
                show(cell)
                bar.update()


def run_named(
    known: Mapping[str, Experiment],
    profile: Profile,
    group: str,
    names: Sequence[str] = (),
    show: Show = lambda cell: None,
) -> None:
    """Take what is missing of a group's experiments, or of those in `names`: `run`.

    Raises TipminiError for a name that the group has not.
    """
    for name in names:
        if name not in known:
            raise TipminiError(f"group {group}: no run {name!r} at profile {profile.name}")
    model.keep_memory()
    wanted = [each for name, each in known.items() if not names or name in names]
    run(wanted, profile.scratch / "claims" / group, show=show)


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
