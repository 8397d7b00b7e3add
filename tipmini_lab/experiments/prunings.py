"""The declared prunings as experiments: a pruned model is made, scored, and then goes.

A pruning that was killed is taken up at its last checkpoint, a pruned model at its next cell.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path

from tipmini.methods import removal
from tipmini.models.base_folder import open_base
from tipmini_lab.evaluation import evaluator, model, objective, perplexity, tasks
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.declared import FILE, Grid, Planned, grid
from tipmini_lab.experiments.experiment import Experiment, Show, run_named
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import evaluation_code
from tipmini_lab.paths import experiment_files
from tipmini_lab.results import checked, digests, store
from tipmini_lab.results.store import Cell

FACTS = ("removed_share", "removed_of_model", "seconds", "rows", "steps", "loss", "gone")
FACTS += ("skipped", "threads")


class Pruned(Experiment):
    """One run of a declared grid, or a model that is not pruned."""

    def __init__(self, lab: Lab, declared: Grid, planned: Planned):
        self.lab, self.profile, self.grid, self.planned = lab, lab.profile, declared, planned
        self.name, self.title, self.store = planned.name, planned.title, lab.profile.pruning_store
        self.size, self.base = declared.size(lab.profile.name), Path(lab.model_path)

    def settings(self, measured: bool = True) -> dict:
        recipe = self.planned.recipe
        told = recipe and (recipe.tasks, recipe.rows, recipe.length)
        found = {
            "version": self.grid.version,
            "model": self.lab.model_hash,
            "recipe": recipe and asdict(recipe),
            "score": self.planned.score,
            "int8": self.planned.int8,
            "rows": told and _rows_digest(*told, self.lab.tokenizer),
        }
        found |= {"pattern": self.planned.pattern} if self.planned.pattern != "2:4" else {}
        return json.loads(json.dumps(found))

    def measures(self) -> Sequence[str]:
        return [*perplexity.CORPORA, *(self.grid.tasks if self.planned.zero_shot else ())]

    def inputs(self, measure: str, folder: Path | None = None) -> dict:
        pruned = {"pruned": digests.digest(self.settings())}
        if measure not in perplexity.CORPORA:
            return self.lab.inputs(None, self.lab.definition(measure)) | pruned
        return pruned | {
            "data": digests.digest(self.windows(measure)),
            "parameters": self.profile.model_dump(include={"device", "tokens"}),
        }

    def windows(self, corpus: str) -> tuple[tuple[int, ...], ...]:
        return perplexity.windows(corpus, self.size.windows, self.size.length, self.lab.tokenizer)

    def code(self, measure: str) -> dict[str, str]:
        return code(measure)

    @property
    def has_masks(self) -> bool:
        """Whether groups are judged, be it that none goes."""
        return self.planned.recipe is not None and not self.planned.score

    @property
    def masks_file(self) -> Path:
        """Which groups are gone is kept, though the pruned model is not."""
        return self.store / "masks" / f"{self.name}.safetensors"

    @property
    def folder(self) -> Path:
        """Where the pruned model is until it is scored."""
        if self.planned.recipe is None and not self.planned.int8:
            return self.base
        made = digests.digest([self.settings(), self.lab.dtype, pruning_code()])
        return self.profile.scratch / "pruned" / f"{self.name}-{made[:12]}"

    def build(self, measure: str = "") -> Path:
        if not self.folder.is_dir():  # it is written whole or not at all
            _make(self.base, self.planned, self.folder, self.lab.dtype, self.profile.device)
        return self.folder

    def facts(self) -> dict[str, float | list[float]]:
        file = self.folder / pruning.STORY
        story = json.loads(file.read_text()) if file.is_file() else {}
        shares = {f"removed_{kind}": share for kind, share in story.get("removed_of", {}).items()}
        return {name: story[name] for name in FACTS if name in story} | shares

    def run(self, only: Sequence[str] = ()) -> Iterator[Cell]:
        lacks_masks = self.has_masks and not checked.is_whole(self.masks_file)
        if (missing := self.missing(only)) or lacks_masks:
            folder = self.build()
            if self.has_masks:
                store.write_bytes(self.masks_file, (folder / pruning.MASKS).read_bytes())
            yield from map(self.cell, missing)
        self.__dict__.pop("lm", None)  # one model at a time
        if self.folder.is_dir() and self.folder != self.base:
            shutil.rmtree(self.folder)

    @cached_property
    def lm(self) -> evaluator.PackedLM:
        plain = (self.folder / "config.json").is_file()  # else masks: layers differ
        load = model.load_base if plain else pruning.load
        loaded = load(self.folder, self.lab.dtype, self.profile.device)
        return evaluator.PackedLM(loaded, tokenizer=self.lab.tokenizer, tokens=self.profile.tokens)

    def measure(self, measure: str, folder: Path | None) -> Cell:
        lm, start = self.lm, time.perf_counter()
        if measure in perplexity.CORPORA:
            metric, values = perplexity.METRIC, perplexity.losses(lm, self.windows(measure))
        else:
            metric = tasks.METRIC[measure]
            values = evaluator.evaluate(lm, self.lab.definition(measure), metric)
        place = {"profile": self.profile.name, "method": self.name, "task": measure}
        told = {"dtype": self.lab.dtype, "values": values, "metric": metric}
        return store.measured(start, self.inputs(measure), code(measure), **told, **place)


def pruning_code() -> str:
    """What any pruned model is made by."""
    return digests.code_digest(pruning.Run, pruning.prune_elements, pruning.load)


def code(measure: str) -> dict[str, str]:
    """What a cell is measured by."""
    if measure not in perplexity.CORPORA:
        return evaluation_code() | {"pruning": pruning_code()}
    own = digests.code_digest(perplexity.losses, evaluator.PackedLM)
    return {"perplexity": own, "pruning": pruning_code()}


@lru_cache(maxsize=8)
def _rows_digest(names: tuple[str, ...], rows: int, length: int, tokenizer) -> str:
    """Of the rows that are read to prune: thousands of cells may ask."""
    found = objective.plain_examples(names, rows, length, tokenizer)
    return digests.digest([list(example.content) for example in found])


def _make(base: Path, planned: Planned, out: Path, dtype: str, device: str) -> None:
    """Write the model of a run; a killed pruning goes on."""
    if planned.recipe is None:
        opened, families = open_base(base), pruning.families_of(open_base(base))
        whole, read = pruning.whole(families), pruning.as_trained(dtype)
        removal.save_pruned(opened, families, whole, out, read=read)
    elif planned.score:
        told = (planned.recipe, out, planned.score, dtype)
        pruning.prune_elements(base, *told, pattern=planned.pattern, device=device)
    else:
        pruning.Run(base, planned.recipe, out, dtype, device=device).run()


def experiments(profile: Profile, declared: Grid | None = None) -> dict[str, Pruned]:
    """The declared runs of a profile by name."""
    declared, lab = declared or grid(), Lab(profile)
    runs = declared.runs(profile.name)
    return {name: Pruned(lab, declared, planned) for name, planned in runs.items()}


def measure(
    profile: Profile,
    group: str = FILE.stem,
    names: Sequence[str] = (),
    show: Show = lambda cell: None,
    declared: Grid | None = None,
) -> None:
    """Measure what is missing of a group's runs, or of those in `names`: `run_named`.

    Raises TipminiError for an unknown name and for a profile that the declaration has no size for.
    """
    known = experiments(profile, declared or grid(experiment_files(prunings=True)[group]))
    run_named(known, profile, group, names, show)
