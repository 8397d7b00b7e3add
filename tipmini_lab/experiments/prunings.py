"""Measuring the declared prunings: prune, score, store; several processes share the work.

A cell is stored as soon as it is measured. What a kill leaves is taken up: a pruning at its last
checkpoint, a pruned model at its next cell.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from tqdm import tqdm

from tipmini.errors import TipminiError
from tipmini.methods import removal
from tipmini.models.base_folder import open_base
from tipmini_lab.evaluation import evaluator, model, objective, perplexity, tasks
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.declared import Grid, Planned, grid
from tipmini_lab.experiments.experiment import Lab, evaluation_code
from tipmini_lab.experiments.measuring import Show, one_bar
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.locks import in_turn
from tipmini_lab.results import digests, store
from tipmini_lab.results.store import Bundle, Cell

FACTS = ("removed_share", "removed_of_model", "seconds", "rows", "steps", "loss", "gone")
FACTS += ("skipped", "threads")


class Prunings:
    """The declared runs of one profile. What is stored of the same things is not measured again."""

    def __init__(self, profile: Profile, declared: Grid | None = None):
        self.grid, self.profile = declared or grid(), profile
        self.size, self.lab = self.grid.size(profile.name), Lab(profile)
        self.runs = self.grid.runs(profile.name)

    @property
    def store(self) -> Path:
        return self.profile.pruning_store

    @cached_property
    def base(self) -> Path:
        return Path(self.lab.model_path)

    # What goes in ---------------------------------------------------------------------------

    def measures(self, planned: Planned) -> list[str]:
        """The corpora and tasks that a run is scored on."""
        return [*perplexity.CORPORA, *(self.grid.tasks if planned.zero_shot else ())]

    def settings(self, planned: Planned) -> dict:
        """All that a pruned model follows from, as JSON holds it."""
        recipe = planned.recipe and asdict(planned.recipe)
        found = {
            "version": self.grid.version,
            "model": self.lab.model_hash,
            "recipe": recipe,
            "score": planned.score,
            "int8": planned.int8,
            "rows": planned.recipe and self._rows_digest(planned),
        }
        return json.loads(json.dumps(found))

    def _rows_digest(self, planned: Planned) -> str:
        recipe = planned.recipe
        return _rows_digest(recipe.tasks, recipe.rows, recipe.length, self.lab.tokenizer)

    def inputs(self, planned: Planned, measure: str) -> dict:
        """Everything a cell's values follow from."""
        pruned = {"pruned": digests.digest(self.settings(planned))}
        if measure not in perplexity.CORPORA:
            return self.lab.inputs(None, self.lab.definition(measure)) | pruned
        return pruned | {
            "data": digests.digest(self.windows(measure)),
            "parameters": self.profile.model_dump(include={"device", "tokens"}),
        }

    def windows(self, corpus: str) -> tuple[tuple[int, ...], ...]:
        return perplexity.windows(corpus, self.size.windows, self.size.length, self.lab.tokenizer)

    def missing(self, planned: Planned) -> list[str]:
        """What has to be measured of a run, or measured again, since it was of other things."""
        stored = {m: store.cell_of(self.store, planned.name, m) for m in self.measures(planned)}
        return [
            measure
            for measure, cell in stored.items()
            if cell is None
            or cell.key != digests.digest(self.inputs(planned, measure))
            or not digests.is_same_code(cell.code, code(measure))
        ]

    # Make, score, keep ----------------------------------------------------------------------

    def measure(self, planned: Planned, show: Show = lambda cell: None) -> None:
        """Whatever is missing of a run, each cell stored at once; the pruned model then goes."""
        wanted = self.missing(planned)
        if wanted or (self.prunes(planned) and not self.masks_file(planned).is_file()):
            folder, facts = self.made(planned)
            told = {"name": planned.name, "title": planned.title, "facts": facts}
            bundle = partial(Bundle, settings=self.settings(planned), **told)
            store.keep(self.store, bundle(cells=[]))  # those of another model go
            if self.prunes(planned):
                store.write_bytes(self.masks_file(planned), (folder / pruning.MASKS).read_bytes())
            for cell in self._cells(planned, folder, wanted) if wanted else ():
                store.keep(self.store, bundle(cells=[cell]))
                show(cell)
        if (left := self.folder(planned)).is_dir() and left != self.base:
            shutil.rmtree(left)

    @staticmethod
    def prunes(planned: Planned) -> bool:
        """Whether groups are judged, be it that none goes, so that there are masks."""
        return planned.recipe is not None and not planned.score

    def masks_file(self, planned: Planned) -> Path:
        """Which groups are gone is kept, though the pruned model is not."""
        return self.store / "masks" / f"{planned.name}.safetensors"

    def folder(self, planned: Planned) -> Path:
        """Where the pruned model is until it is scored."""
        if planned.recipe is None and not planned.int8:
            return self.base
        made = [self.settings(planned), self.lab.dtype, pruning_code()]
        name = f"{planned.name}-{digests.digest(made)[:12]}"
        return self.profile.scratch / "pruned" / name

    def made(self, planned: Planned) -> tuple[Path, dict]:
        """The folder of the pruned model, and what there is to tell of its making."""
        out = self.folder(planned)
        if not out.is_dir():  # it is written whole or not at all
            _make(self.base, planned, out, self.lab.dtype)
        return out, {} if out == self.base else _facts(out)

    def _cells(self, planned: Planned, folder: Path, wanted: Sequence[str]) -> Iterator[Cell]:
        plain = (folder / "config.json").is_file()  # else masks: layers differ
        load = model.load_base if plain else pruning.load
        loaded = load(folder, self.lab.dtype, self.profile.device)
        lm = evaluator.PackedLM(loaded, tokenizer=self.lab.tokenizer, tokens=self.profile.tokens)
        for measure in wanted:
            start = time.perf_counter()
            metric, values = self._score(lm, measure)
            inputs = self.inputs(planned, measure)
            place = {"profile": self.profile.name, "method": planned.name, "task": measure}
            told = {"dtype": self.lab.dtype, "values": values, "metric": metric}
            yield store.measured(start, inputs, code(measure), **told, **place)

    def _score(self, lm: evaluator.PackedLM, measure: str) -> tuple[str, list[float]]:
        if measure in perplexity.CORPORA:
            return perplexity.METRIC, perplexity.losses(lm, self.windows(measure))
        metric = tasks.METRIC[measure]
        return metric, evaluator.evaluate(lm, self.lab.definition(measure), metric)


def pruning_code() -> str:
    """What any pruned model is made by."""
    made = (pruning.Run, pruning.prune_semi_structured, pruning.load)
    return digests.code_digest(*made)


def code(measure: str) -> dict[str, str]:
    """What a cell is measured by."""
    pruning = {"pruning": pruning_code()}
    if measure not in perplexity.CORPORA:
        return evaluation_code() | pruning
    return {"perplexity": digests.code_digest(perplexity.losses, evaluator.PackedLM)} | pruning


@lru_cache(maxsize=8)
def _rows_digest(names: tuple[str, ...], rows: int, length: int, tokenizer) -> str:
    """Of the rows that are read to prune: thousands of cells may ask."""
    found = objective.plain_examples(names, rows, length, tokenizer)
    return digests.digest([list(example.content) for example in found])


def _make(base: Path, planned: Planned, out: Path, dtype: str) -> None:
    """Write the model of a run; a killed pruning goes on."""
    if planned.recipe is None:
        opened, families = open_base(base), pruning.families_of(open_base(base))
        whole = {family.name: torch.ones(family.count, dtype=torch.bool) for family in families}
        removal.save_pruned(opened, families, whole, out, read=pruning.as_trained(dtype))
    elif planned.score:
        pruning.prune_semi_structured(base, planned.recipe, out, planned.score, dtype)
    else:
        pruning.Run(base, planned.recipe, out, dtype).run()


def _facts(folder: Path) -> dict[str, float | list[float]]:
    file = folder / pruning.STORY
    story = json.loads(file.read_text()) if file.is_file() else {}
    shares = {f"removed_{kind}": share for kind, share in story.get("removed_of", {}).items()}
    return {name: story[name] for name in FACTS if name in story} | shares


def measure(
    profile: Profile,
    names: Sequence[str] = (),
    show: Show = lambda cell: None,
    make: Callable[[Profile], Prunings] = Prunings,
) -> None:
    """Measure what is missing of the declared runs, or of those in `names`.

    A run that another process is at is passed over, and waited for at the end. Raises TipminiError
    for an unknown name and for a profile that the declaration has no size for.
    """
    prunings = make(profile)
    for name in names:
        if name not in prunings.runs:
            raise TipminiError(f"group pruning: no run {name!r} at profile {profile.name}")
    wanted = [name for name in prunings.runs if not names or name in names]
    model.keep_memory()
    with one_bar(), tqdm(total=len(wanted), unit="run", smoothing=0) as bar:
        for turn, name in enumerate(in_turn(wanted, profile.scratch / "claims" / "pruning")):
            prunings.measure(prunings.runs[name], show)
            bar.update(turn < len(wanted))
