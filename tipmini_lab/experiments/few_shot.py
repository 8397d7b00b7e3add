"""MMLU of pruned models, made again of what is stored of them: their masks, or how zeros are set.

A measurement of its own, beside what every pruned model is scored on: a task there would have each
of them pruned again.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from tipmini.errors import TipminiError
from tipmini.methods.pruner import load_masks
from tipmini.methods.removal import save_pruned
from tipmini.models.base_folder import open_base
from tipmini_lab.declared_files import Declared, read
from tipmini_lab.evaluation import evaluator, mmlu
from tipmini_lab.experiments import declared as prunings_declared
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.experiment import Show, run_named
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.prunings import Pruned
from tipmini_lab.paths import EXPERIMENTS
from tipmini_lab.results import checked, digests, store
from tipmini_lab.results.store import Cell

FILE = EXPERIMENTS / "loraprune" / "mmlu.yaml"
TOKENS = 8192  # of one forward pass: the shots of the longest subjects are read once


class Group(Declared):
    """The file."""

    module: str  # what measures it: this one
    description: str
    rows: int = Field(ge=1)  # of each subject
    runs: tuple[str, ...] = Field(min_length=1)


def group(file: Path = FILE) -> Group:
    """Raises TipminiError, one line that names the file, for what is no valid declaration."""
    return read(Group, file)


def store_of(profile: Profile) -> Path:
    return profile.pruning_store / mmlu.NAME


class FewShot(Pruned):
    """MMLU of one declared run of prunings."""

    def __init__(
        self,
        lab: Lab,
        declared: prunings_declared.Grid,
        planned: prunings_declared.Planned,
        rows: int,
    ):
        super().__init__(lab, declared, planned)
        self.rows, self.store = rows, store_of(lab.profile)

    @property
    def masks_file(self) -> Path:
        return self.profile.pruning_store / "masks" / f"{self.name}.safetensors"

    def settings(self, measured: bool = True) -> dict:
        if self.has_masks and not checked.is_whole(self.masks_file):
            raise TipminiError(
                f"group {FILE.stem}: {self.name} has no stored masks; "
                "run `tipmini measure --group pruning` first"
            )
        masks = digests.file_digest(self.masks_file) if self.has_masks else None
        return super().settings(measured) | {"masks": masks}

    def measures(self) -> Sequence[str]:
        return [mmlu.NAME]

    def inputs(self, measure: str, folder: Path | None = None) -> dict:
        return {
            "pruned": digests.digest(self.settings()),
            "data": digests.digest(mmlu.asked(self.rows)),
            "parameters": self.profile.model_dump(include={"device", "tokens"}),
        }

    def build(self, measure: str = "") -> Path:
        if self.has_masks and not self.folder.is_dir():
            base, masks = open_base(self.base), self.masks_file.read_bytes()
            kept = base, pruning.families_of(base), load_masks(self.masks_file)
            save_pruned(*kept, self.folder, beside={pruning.MASKS: masks})
        return super().build(measure)

    def measure(self, measure: str, folder: Path | None) -> Cell:
        lm, start = self.lm, time.perf_counter()
        every = mmlu.definitions(self.rows)
        values = [v for task in every for v in evaluator.evaluate(lm, task, mmlu.METRIC)]
        place = {"profile": self.profile.name, "method": self.name, "task": measure}
        told = {"dtype": self.lab.dtype, "values": values, "metric": mmlu.METRIC}
        return store.measured(start, self.inputs(measure), self.code(measure), **told, **place)


def experiments(
    profile: Profile,
    asked: Group | None = None,
    declared: prunings_declared.Grid | None = None,
) -> dict[str, FewShot]:
    """The declared runs of a profile, by name.

    Raises TipminiError for one that no pruning declares, and for one whose weights are not to be
    had from masks alone.
    """
    asked, declared = asked or group(), declared or prunings_declared.grid()
    lab, found = Lab(profile.model_copy(update={"tokens": TOKENS})), {}
    known = declared.runs(profile.name)
    for name in asked.runs:
        if name not in known:
            raise TipminiError(f"group {FILE.stem}: no pruning {name!r}")
        recipe = known[name].recipe
        if known[name].int8 or (recipe and not known[name].score and (recipe.tune or recipe.int8)):
            raise TipminiError(
                f"group {FILE.stem}: {name} is fine-tuned or in 8 bits; its weights are not stored"
            )
        found[name] = FewShot(lab, declared, known[name], asked.rows)
    return found


def measure(
    profile: Profile,
    name: str = FILE.stem,
    names: Sequence[str] = (),
    show: Show = lambda cell: None,
) -> None:
    """Measure what is missing of the declared runs, or of those in `names`: `run_named`."""
    run_named(experiments(profile), profile, name, names, show)
