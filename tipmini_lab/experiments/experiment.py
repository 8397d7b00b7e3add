"""Experiments: each is made once, measured on tasks or corpora, and kept as soon as it is measured.

A `Lab` holds what a profile's experiments are made of. Here is the merge of its adapters; a pruned
model (`prunings.Pruned`) is the other kind. Several processes may measure side by side: each
takes what no other is at, and a killed one goes on where it stopped.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from lm_eval.api.task import ConfigurableTask
from torch import Tensor, nn
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods import merge
from tipmini.methods.blockwise import merge_blockwise
from tipmini.methods.table import BY_BLOCK, plain_rule
from tipmini.models.sealed import sealed
from tipmini_lab import paths
from tipmini_lab.evaluation import assets, evaluator, model, tasks
from tipmini_lab.evaluation.documents import ADAPTED
from tipmini_lab.experiments import catalogue, distilling, training
from tipmini_lab.experiments.catalogue import UNMERGED, Inputs, Variant
from tipmini_lab.experiments.distilling import Coefficients, Distilling, DistillRecipe
from tipmini_lab.experiments.merging import (
    DEFAULT,
    InputNorms,
    adapter_hash,
    save_merge,
    scaled_to,
    sizes,
)
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.training import RECIPES
from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe
from tipmini_lab.locks import alone, in_turn
from tipmini_lab.results import checked, digests, store
from tipmini_lab.results.store import Cell

PAPER = ("linear", "dare", "tip")  # the merges of the paper's Table 1
TABLE_1 = (*UNMERGED, *PAPER)
FINAL = 192  # rows a task to choose among finalists by, where there are so many
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
    inner = kept.get("norm_of")
    return kept | ({"norm_of": without_measured(inner)} if isinstance(inner, dict) else {})


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


# Merges -------------------------------------------------------------------------------------------
class Merge(Experiment):
    """A variant of a profile's merges, or its base or single adapters without one."""

    def __init__(self, lab: "Lab", variant: Variant):
        self.lab, self.profile, self.variant = lab, lab.profile, variant
        self.name, self.title, self.store = variant.name, variant.title, lab.profile.variant_store
        self.tasks = variant.tasks(lab.profile.tasks)
        if isinstance(variant.weights, str):
            rule = plain_rule(variant.weights, len(self.tasks))
            self.variant = variant.changed(weights=rule)
        self.apart = variant.name in lab.apart

    def settings(self, measured: bool = True) -> dict:
        variant, norms = self.variant, self.lab.norms
        own = variant.settings() | {"seed": self.seed}
        if variant.method in UNMERGED:
            return own
        own["options"] = self.options()
        own["adapters"] = {t: adapter_hash(self.lab.adapter_path(t)) for t in self.tasks}
        if variant.needs and measured:
            chosen = variant.measured
            own["measured"] = {t: digests.digest(norms.inputs(t, chosen)) for t in self.tasks}
        if variant.weights == "learnt" and measured:
            own["learnt"] = self.lab.weighing.identity()
        if variant.norm_of:
            own["norm_of"] = self.lab.experiment(variant.norm_of).settings(measured)
        return own

    @property
    def seed(self) -> int:
        return self.profile.seed if self.variant.seed is None else self.variant.seed

    def options(self) -> dict:
        """The profile's and the variant's own; rank "whole" is one that cuts nothing."""
        options = self.lab.options(self.variant.method) | self.variant.options
        if options.get("rank") == "whole":
            every = self.lab.adapters.values()
            shapes = [pair.shape for adapter in every for pair in adapter.factors.values()]
            options["rank"] = max(min(shape) for shape in shapes)
        return options

    def measures(self) -> Sequence[str]:
        return self.tasks  # whose adapters are merged

    def build(self, measure: str) -> Path | None:
        if self.variant.method == "base":
            return None
        single = self.variant.method == "single"
        return self.lab.adapter_path(measure) if single else self.folder

    @cached_property
    def folder(self) -> Path:
        """The merged adapter's; the paper's are kept with the profile's results.

        Others are merged again only where something that they are made of has changed.
        """
        if self.name in PAPER:
            return save_merge(self.profile.store / "merged" / self.name, self.merge())
        folder, made_by = self._note.with_suffix(""), (merge.merge, merge_blockwise, scaled_to)
        recipe = digests.digest([digests.code_digest(*made_by), self.settings()])
        known = json.loads(checked.text(self._note) or "{}")
        made = known.get("recipe") == recipe and "rank" in known["facts"]
        made = made and (folder / "adapter_model.safetensors").is_file()
        if not made or known.get("adapter") != adapter_hash(folder):
            start = time.perf_counter()
            merged = self.merge()
            note = {"recipe": recipe, "facts": self._told(merged, time.perf_counter() - start)}
            save_merge(folder, merged)
            store.write(self._note, sealed(json.dumps(note | {"adapter": adapter_hash(folder)})))
        return folder

    def _told(self, merged: tm.LoraAdapter, seconds: float) -> distilling.Facts:
        """Its sizes and rank, how it was learnt, and how long it took where the model is run: of
        other methods the inputs may have been measured before."""
        facts = sizes(merged, self.exact()) | {"rank": max(merged.ranks.values())}
        if self.variant.distill:
            return facts | self.taught[1]
        if self.variant.needs == "rows":
            facts |= {"seconds": round(seconds, 1), "threads": torch.get_num_threads()}
        return facts

    @property
    def _note(self) -> Path:
        return self.profile.scratch / "merged" / f"{self.name}.json"

    def merge(self) -> tm.LoraAdapter:
        """The merged adapter itself."""
        variant = self.variant
        merged = self.taught[0] if variant.distill else self._merged_at_once()
        like = variant.norm_of and tm.load_adapter(self.lab.merged(variant.norm_of))
        return scaled_to(merged, like, variant.norm_by) if like else merged

    @cached_property
    def taught(self) -> tuple[tm.LoraAdapter, distilling.Facts]:
        """What is learnt from the merge on, and what there is to tell of it."""
        return self.lab.distilled(self, self._merged_at_once())

    def _merged_at_once(self) -> tm.LoraAdapter:
        variant = self.variant
        weights: object = variant.shares(self.tasks)
        if variant.weights == "learnt":
            with alone(self.lab.claims / "weights"):
                learnt = self.lab.weighing.weights()
            weights = {task: learnt[task] for task in self.tasks}
        given = {"weights": weights, "seed": self.seed}
        if variant.needs in ("norms", "grams"):
            norms = self.lab.norms
            given[variant.needs] = {task: norms.of(task, variant.measured) for task in self.tasks}
        if variant.needs == "rows":
            return self._merged_by_block(weights)
        return tm.merge(self._adapters(), variant.method, **given, **self.options())

    def _merged_by_block(self, weights: object) -> tm.LoraAdapter:
        """By a method that runs the base model, without the adapters that evaluation puts on it."""
        lab, chosen = self.lab, self.variant.measured
        texts = {task: lab.norms.texts(task, chosen) for task in self.tasks}
        rows = {t: lab.norms.padded(lab.tokenizer(own)["input_ids"]) for t, own in texts.items()}
        return merge_blockwise(
            model.load_base(lab.model_path, lab.dtype, lab.profile.device),
            self._adapters(),
            rows,
            self.variant.method,
            weights=weights,
            progress=partial(tqdm, desc=self.name, unit="block", disable=None, leave=False),
            **self.options(),
        )

    def exact(self) -> tm.LoraAdapter:
        """The plain sum of the updates that are merged."""
        return tm.merge(self._adapters(), "cat")

    def _adapters(self) -> dict[str, tm.LoraAdapter]:
        return {task: self.lab.adapters[task] for task in self.tasks}

    def facts(self) -> distilling.Facts:
        """What there is to tell of the merge; nothing of what isn't merged."""
        if self.variant.method in UNMERGED:
            return {}
        folder = self.folder
        if self.name in PAPER:
            return sizes(tm.load_adapter(folder), self.exact())
        return json.loads(self._note.read_text())["facts"]

    def inputs(self, measure: str, folder: Path | None = None) -> dict:
        return self.lab.inputs(folder, self.lab.definition(measure), self.variant.metric(measure))

    def code(self, measure: str) -> dict[str, str]:
        return evaluation_code()

    def measure(self, measure: str, folder: Path | None) -> Cell:
        definition = self.lab.definition(measure)
        return self.lab.measure(self.name, folder, definition, self.variant.metric(measure))

    def stored(self, measure: str) -> Cell | None:
        own = self.apart
        return stored(self.profile, self.name, measure) if own else super().stored(measure)

    def keep(self, cell: Cell) -> None:
        """Store a cell: in a file of its own where it is of the paper's table."""
        if self.apart:
            store.save(cell_file(self.profile, self.name, cell.task), cell)
        else:
            super().keep(cell)

    def same(self, key: str) -> Cell | None:
        if self.apart or not self.lab.shares:
            return None
        found = store.find((self.store, self.profile.store / "cells"), key)
        if found is None or found.dtype != self.lab.dtype or not is_current(found):
            return None
        return found.model_copy(update={"method": self.name})

    def run(self, only: Sequence[str] = ()) -> Iterator[Cell]:
        yield from super().run(only)
        self.lab.lm.resident.forget()


# What a profile's experiments are made of ---------------------------------------------------------
class Lab:
    """A profile's model, adapters, tasks and experiments; nothing is read before it is asked for.

    A name is one of TABLE_1, whose cells have files of their own, or a declared variant's
    (`catalogue`), whose cells are in bundles.
    """

    apart: tuple[str, ...] = TABLE_1
    shares = True  # whether a cell is taken over that was measured under another name
    kept: Path | None = None  # folder of norms and learnt weights that were made before

    def __init__(self, profile: Profile):
        self.profile = profile
        self._definitions: dict[str, ConfigurableTask] = {}
        self._experiments: dict[str, Merge] = {}
        self.norms = InputNorms(self, self.kept and self.kept / "norms")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    @property
    def claims(self) -> Path:
        """Folders that a process holds while it makes what they are called by."""
        return self.profile.scratch / "claims"

    @cached_property
    def model_path(self) -> Path | str:
        embedded = self.profile.model == "embedded"
        return assets.embedded() / "model" if embedded else self.profile.model

    @cached_property
    def model_hash(self) -> str:
        """Of the weights' file; of a hub model its id."""
        if self.profile.model != "embedded":
            return self.profile.model
        return self.weights.sha256

    @cached_property
    def weights(self) -> assets.Weights:
        """The embedded model's, hashed before they are loaded."""
        return assets.Weights()

    def require_same_model(self) -> None:
        """Raise TipminiError where `model_hash` may not be of the bytes that were computed with."""
        if self.profile.model == "embedded":
            self.weights.require_same()

    @cached_property
    def tokenizer(self):
        return model.load_tokenizer(self.model_path)

    @cached_property
    def dtype(self) -> str:
        """The number format that this machine computes in."""
        return model.number_format(self.model_path, self.profile.dtype, self.profile.device)

    @cached_property
    def base(self) -> nn.Module:
        """The base model, loaded once."""
        model.keep_memory()
        return model.load_base(self.model_path, self.dtype, self.profile.device)

    @property
    def trainable(self) -> nn.Module:
        """Another copy of the base model, with the attention that gradients pass through."""
        model.keep_memory()
        device = self.profile.device
        return model.load_base(self.model_path, self.dtype, device, attention="eager")

    @cached_property
    def lm(self) -> evaluator.PackedLM:
        """The base model as lm-eval sees it; adapters come and go on it."""
        chosen = {"tokens": self.profile.tokens, "answer_tokens": self.profile.answer_tokens}
        return evaluator.PackedLM(self.base, tokenizer=self.tokenizer, first_line=True, **chosen)

    def adapter_path(self, task: str) -> Path:
        """The folder of a task's own adapter; fetched first where it is on the hub."""
        name = self.profile.adapter_names.get(task, task)
        place = self.profile.adapters.format(task=name)
        return model.download(place) if self.profile.data == "hub" else paths.REPOSITORY / place

    @cached_property
    def adapters(self) -> dict[str, tm.LoraAdapter]:
        """The adapters to be merged, by task."""
        return {task: tm.load_adapter(self.adapter_path(task)) for task in self.profile.tasks}

    def task(self, name: str, train: int = 0) -> ConfigurableTask:
        return tasks.load(name, self.profile.rows(name), train, self.profile.data)

    def definition(self, task: str) -> ConfigurableTask:
        """lm-eval's task over the profile's rows, made once."""
        if task not in self._definitions:
            self._definitions[task] = self.task(task)
        return self._definitions[task]

    def input_norms(self, task: str, chosen: Inputs = DEFAULT) -> dict[str, Tensor]:
        """See `InputNorms.of`."""
        return self.norms.of(task, chosen)

    @cached_property
    def weighing(self) -> Weighing:
        """Weights learnt of the adapters."""
        files = [place / "weights.json" for place in (self.kept, self.profile.store) if place]
        return Weighing(self.trainable, self.tokenizer, self.adapters, WeighingRecipe(), files)

    def distilled(
        self, merge: Merge, start: tm.LoraAdapter
    ) -> tuple[tm.LoraAdapter, distilling.Facts]:
        """What is learnt from a merge on, as its variant says, and what there is to tell of it."""
        chosen, own = merge.variant.distill, {task: self.adapters[task] for task in merge.tasks}
        settled = chosen.model_dump(exclude={"learn", "fresh", "unseen", "trained"})
        if chosen.unseen:
            settled["passed"] = {task: RECIPES[task].rows for task in own}
        if chosen.trained:
            settled["counts"] = {t: (RECIPES[t].rows, RECIPES[t].held_out) for t in own}
        scratch = self.profile.scratch / "distilled" / merge.name
        given = {
            "recipe": DistillRecipe(**settled),
            "saved": scratch.with_name(f"{scratch.name}.checkpoint.safetensors"),
            "temperatures": training.temperatures({t: self.adapter_path(t) for t in own}),
        }
        model = self.trainable, self.tokenizer, own
        if chosen.learn == "factors":
            run = Distilling(*model, None if chosen.fresh else start, **given)
        else:
            run = Coefficients(*model, chosen.learn, 0.3, **given)
        kept = [place / "distilled" / merge.name for place in (self.kept,) if place]
        with alone(self.claims / "distilled" / merge.name):  # of its checkpoint
            folder = distilling.kept(run, [*kept, scratch])
        return tm.load_adapter(folder), distilling.facts(folder)

    def variant(self, name: str) -> Variant:
        """The variant of a name; raises TipminiError for an unknown one."""
        if name in TABLE_1:
            return Variant(name=name, title=name, method=name)
        known = catalogue.catalogue()
        if name in known.choices:
            return catalogue.resolved(known.choices[name], known, self.profile)
        return known.variant(name)

    def experiment(self, name: str) -> Merge:
        if name not in self._experiments:
            self._experiments[name] = Merge(self, self.variant(name))
        return self._experiments[name]

    def options(self, method: str) -> dict:
        """The profile's settings of a merge; everything else is the library's default."""
        settings = {"drop_rate": self.profile.drop_rate, "sparsity": self.profile.base_sparsity}
        known = {} if method in (*UNMERGED, *BY_BLOCK) else tm.method_options(method)
        return {name: value for name, value in settings.items() if name in known}

    def merged(self, name: str) -> Path:
        """The PEFT folder of the adapters merged as a variant says."""
        return self.experiment(name).folder

    def sparsities(self, task: str) -> Tensor:
        """(L,) sparsity of every layer of a task's adapter, TIP Eq. 5."""
        return tm.tip_sparsities(
            self.adapters[task], self.input_norms(task), self.profile.base_sparsity
        )

    def cell(self, name: str, task: str) -> Cell:
        """The measured cell; read from the store where it was measured from the same things."""
        return self.experiment(name).cell(task)

    def inputs(
        self, folder: Path | None, definition: ConfigurableTask, metric: str | None = None
    ) -> dict:
        """Everything that values on a task follow from, with the adapter of `folder` (None: of the
        base alone), by the task's own metric if None."""
        inputs = {
            "model": self.model_hash,
            "adapter": folder and adapter_hash(folder),
            **_rows_and_task(definition),
            "parameters": self.profile.model_dump(include={"device", "tokens", "answer_tokens"}),
        }
        usual = metric in (None, tasks.METRIC[definition.config.task])
        return inputs if usual else inputs | {"metric": metric}

    def measure(
        self,
        name: str,
        folder: Path | None,
        definition: ConfigurableTask,
        metric: str | None = None,
    ) -> Cell:
        """Evaluate the base model with the adapter of `folder` (None: without) on a task."""
        start, task = time.perf_counter(), definition.config.task
        metric = metric or tasks.METRIC[task]
        inputs = self.inputs(folder, definition, metric)
        self.lm.adapter = folder
        values, margins = evaluator.answers(self.lm, definition, metric)
        place = {"profile": self.profile.name, "method": name, "task": task, "metric": metric}
        told = {"dtype": self.dtype, "values": values, "margins": margins}
        return store.measured(start, inputs, evaluation_code(), **told, **place)


@lru_cache(maxsize=32)
def _rows_and_task(definition: ConfigurableTask) -> dict[str, str]:
    """Hashes of a task's rows and of what is done with them; thousands of cells may ask."""
    rows, task = list(definition.eval_docs), definition.config.task
    return {"data": digests.digest(rows), "task": digests.digest(tasks.fingerprint(task))}


def evaluation_code() -> dict[str, str]:
    """What a cell's values are computed by."""
    return {"evaluation": digests.code_digest(evaluator.answers, evaluator.PackedLM)}


def is_current(cell: Cell) -> bool:
    """Whether a cell was measured by today's code, or by one that is known to give the same."""
    return digests.is_same_code(cell.code, evaluation_code())


def cell_file(profile: Profile, method: str, task: str) -> Path:
    return profile.store / "cells" / f"{method}-{task}.json"


def stored(profile: Profile, method: str, task: str) -> Cell | None:
    """What was measured before, without measuring; None where nothing was."""
    return store.load(cell_file(profile, method, task))


# Groups of variants -------------------------------------------------------------------------------
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

    def task(self, name: str, train: int = 0) -> ConfigurableTask:
        return super().task(name, train) if train else tasks.held_out(name, *self.rows(name))

    def rows(self, task: str) -> tuple[int, int]:
        """How many train rows are passed over, and how many of the next are scored."""
        recipe, most = RECIPES[task], self.profile.rows(task) or FINAL
        asked = FINAL if self.final else min(ADAPTED[task].choosing, most)
        return recipe.rows, min(asked, recipe.held_out)


def run_all(
    lab: Lab, names: Sequence[str], only: Sequence[str] = (), show: Show = lambda cell: None
) -> None:
    """Measure variants on the tasks they merge, or on those of them that are in `only`: `run`."""
    claims = lab.claims / lab.profile.variant_store.name
    run([lab.experiment(name) for name in dict.fromkeys(names)], claims, only, show)


def stale(lab: Lab, names: Sequence[str]) -> list[tuple[str, str]]:
    """The stored cells, as (variant, task), that would be measured again: `is_stale`."""
    every = [lab.experiment(name) for name in names]
    return [(each.name, task) for each in every for task in each.tasks if each.is_stale(task)]


def measure(
    profile: Profile,
    group: str,
    names: Sequence[str] = (),
    only: Sequence[str] = (),
    show: Show = lambda cell: None,
) -> None:
    """Measure a group of declared variants, or those of it that are in `names`: `stages`."""
    for lab, stage in stages(profile, group, names):
        run_all(lab, stage, only, show)


def stages(
    profile: Profile, group: str, names: Sequence[str] = ()
) -> Iterator[tuple[Lab, list[str]]]:
    """What is measured of a group, or of those of it that are in `names`, one after the other.

    For its choices all candidates are first scored on held-out rows; where a profile measures but
    the important variants, the choice is read from the store. Finalists are those of the stage
    before, which is then measured. Raises TipminiError for an unknown group or name.
    """
    known = catalogue.catalogue()
    members = known.names(group, profile)
    for name in names:
        if name not in members:
            raise TipminiError(f"group {group}: no variant {name!r} at profile {profile.name}")
    wanted = [name for name in members if not names or name in names]
    choices = [known.choices[name] for name in wanted if name in known.choices]
    if choices and not profile.important_only:
        yield HeldOut(profile), [n for c in choices for n in known.candidates(c)]
        several = [choice for choice in choices if choice.finalists]
        finals = [n for c in several for n in catalogue.finalists(c, known, profile)]
        yield HeldOut(profile, final=True), finals
    yield Bundled(profile), wanted
