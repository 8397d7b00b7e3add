"""Every path of the project once, at a size that is chosen: what a rehearsal counts, and what a
machine with a GPU is checked with.

A step prepares what a path works on, and its `Work` walks it once. Another path is another function
in STEPS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import tipmini as tm
from tipmini.methods.pruner import masked
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.experiments import pruning, training
from tipmini_lab.experiments.agreeing import DistillRecipe
from tipmini_lab.experiments.distilling import Distilling
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.pruning import PruningRecipe
from tipmini_lab.experiments.training import TrainingRecipe
from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe
from tipmini_lab.results.store import Cell

TASK, STORY = "arc_challenge", "coqa"
ANSWER = 8  # tokens of a generated answer: CoQA's end with their first line


@dataclass(frozen=True)
class Place:
    """Where a walk takes place. profile: its model is a folder, as its adapters are; work: a folder
    for what is written; rows: how many examples each path reads."""

    profile: Profile
    work: Path
    rows: int = 2

    def lab(self, **changes: object) -> Lab:
        return Lab(self.profile.model_copy(update=changes))

    @property
    def dtype(self) -> str:
        return self.profile.dtype

    @property
    def base(self) -> Path:
        return Path(self.profile.model)


@dataclass(frozen=True)
class Work:
    """One path, ready to be walked, again and again.

    model: all that lies in memory before; tokens: how many a walk has read, once it is done; full:
    how many one pass reads at the profile's own size.
    """

    run: Callable[[], object]
    model: nn.Module
    tokens: Callable[[], int]
    full: int


def calibrate(place: Place) -> Work:
    """Input norms of an adapter's modules on its own text."""
    lab = place.lab(calibration_rows=place.rows)
    _activate(lab, TASK)
    tokens = sum(map(len, lab.tokenizer(lab.norms.texts(TASK))["input_ids"]))
    run, passed = lambda: lab.norms.measure(TASK), lab.profile.tokens // 2
    return Work(run, lab.base, lambda: tokens, passed)


def evaluate(place: Place) -> Work:
    """Questions with their choices, with an adapter."""
    return _measured(place.lab(evaluation_rows=place.rows), TASK, place.profile.tokens)


def generate(place: Place) -> Work:
    """Answers about a story, with an adapter."""
    lab = place.lab(evaluation_rows=max(1, place.rows // 2), answer_tokens=ANSWER)
    return _measured(lab, STORY, 4 * place.profile.tokens)


def _activate(lab: Lab, task: str) -> None:
    """The task's adapter is in memory; it is read once, not with every pass."""
    with lab.lm.resident.active(lab.adapter_path(task)):
        pass


def _measured(lab: Lab, task: str, full: int) -> Work:
    definition, folder = lab.definition(task), lab.adapter_path(task)
    _activate(lab, task)

    def run() -> Cell:
        lab.lm.needed = 0
        return lab.measure("single", folder, definition)

    return Work(run, lab.base, lambda: lab.lm.needed, full)


def weigh(place: Place) -> Work:
    """One step towards a merge's weights, of two adapters."""
    lab, tasks = place.lab(), place.profile.tasks[:2]
    adapters = {task: lab.adapters[task] for task in tasks}
    recipe = WeighingRecipe(rows=place.rows, stories=1, epochs=1, parts=1)
    files = [place.work / "weights.json"]
    weighing = Weighing(lab.trainable, lab.tokenizer, adapters, recipe, files)
    weighing.log |= {name: dict.fromkeys(tasks, 1.0) for name in ("temperature", "base")}
    every = [example for rows in weighing.rows.values() for example in rows]
    return Work(lambda: weighing.step(0), weighing.model, _read(every), recipe.tokens)


def distill(place: Place) -> Work:
    """One step towards an adapter that answers as two do."""
    lab, tasks = place.lab(), place.profile.tasks[:2]
    adapters = {task: lab.adapters[task] for task in tasks}
    start = tm.merge(adapters, "cat", weights="chosen")
    recipe = DistillRecipe(rows=place.rows, stopping=1, epochs=1, parts=1)
    told = adapters, start, recipe, place.work / "distilled.safetensors"
    run = Distilling(lab.trainable, lab.tokenizer, *told)
    run.ask()
    every = [example for task in tasks for example in run.learnt(task)]
    return Work(lambda: run.step(0), run.model, _read(every), recipe.tokens)


def prune(place: Place) -> Work:
    """One step of LoRAPrune: gradients, importances, an update, removal."""
    recipe = PruningRecipe(tasks=(TASK,), rows=place.rows, batch=place.rows, steps=1, every=1)
    device = place.profile.device
    run = pruning.Run(place.base, recipe, place.work / "pruned", place.dtype, device=device)

    def step() -> float:
        with masked(run.model, run.pruner.masks):
            return run.step(0)

    return Work(step, run.model, _read(run.rows), recipe.tokens)


def train(place: Place) -> Work:
    """One step of an adapter's training."""
    recipe = TrainingRecipe(rows=place.rows, batch=place.rows, held_out=1)
    told = {"base": place.base, "dtype": place.dtype, "device": place.profile.device}
    run = training.Run(TASK, recipe, place.work / "trained", **told)
    return Work(lambda: run.step(0), run.model, _read(run.train), recipe.tokens)


def _read(every: Sequence[Example]) -> Callable[[], int]:
    return lambda: sum(len(example.row) for example in every)


STEPS: dict[str, Callable[[Place], Work]] = {
    step.__name__: step for step in (calibrate, evaluate, generate, weigh, distill, prune, train)
}
