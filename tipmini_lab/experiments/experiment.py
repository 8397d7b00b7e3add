"""A profile's experiments: model, adapters and tasks; what a cell follows from; its measurement."""

import logging
import time
from functools import cached_property, lru_cache
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from torch import Tensor, nn

import tipmini as tm
from tipmini_lab import paths
from tipmini_lab.evaluation import assets, evaluator, model, tasks
from tipmini_lab.experiments import catalogue
from tipmini_lab.experiments.input_norms import DEFAULT, InputNorms
from tipmini_lab.experiments.merging import PAPER, Merges, adapter_hash, without_measured
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import UNMERGED, Inputs, Variant
from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe
from tipmini_lab.results import digests, store
from tipmini_lab.results.store import Cell


class Materials:
    """Of one profile; nothing is read before it is asked for."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self._definitions: dict[str, ConfigurableTask] = {}
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    @cached_property
    def model_path(self) -> Path | str:
        embedded = self.profile.model == "embedded"
        return assets.embedded() / "model" if embedded else self.profile.model

    @cached_property
    def model_hash(self) -> str:
        """Of the weights' file; of a hub model its id."""
        if self.profile.model != "embedded":
            return self.profile.model
        return digests.file_digest(assets.embedded() / "model" / "model.safetensors")

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
        return evaluator.PackedLM(
            self.base,
            tokenizer=self.tokenizer,
            tokens=self.profile.tokens,
            first_line=True,
            answer_tokens=self.profile.answer_tokens,
        )

    def adapter_path(self, task: str) -> Path:
        """The folder of a task's own adapter; fetched first where it is on the hub."""
        name = self.profile.adapter_names.get(task, task)
        place = self.profile.adapters.format(task=name)
        if self.profile.data == "hub":
            return model.download(place)
        return paths.REPOSITORY / place

    @cached_property
    def adapters(self) -> dict[str, tm.LoraAdapter]:
        """The seven adapters to be merged, by task."""
        return {task: tm.load_adapter(self.adapter_path(task)) for task in self.profile.tasks}

    def task(self, name: str, train: int = 0):
        return tasks.load(name, self.profile.rows(name), train, self.profile.data)

    def definition(self, task: str) -> ConfigurableTask:
        """lm-eval's task over the profile's rows, made once."""
        if task not in self._definitions:
            self._definitions[task] = self.task(task)
        return self._definitions[task]


# What a cell's values follow from -----------------------------------------------------------------
def evaluation_code() -> dict[str, str]:
    """What a cell's values are computed by."""
    return {"evaluation": digests.code_digest(evaluator.answers, evaluator.PackedLM)}


def cell_inputs(
    profile: Profile,
    model_hash: str,
    folder: Path | None,
    definition: ConfigurableTask,
    metric: str | None = None,
) -> dict:
    """Of a task scored with the adapter of `folder` (None: without), by its own metric if None."""
    task = definition.config.task
    inputs = {
        "model": model_hash,
        "adapter": folder and adapter_hash(folder),
        **_rows_and_task(definition),
        "parameters": profile.model_dump(include={"device", "tokens", "answer_tokens"}),
    }
    return inputs | ({"metric": metric} if metric not in (None, tasks.METRIC[task]) else {})


@lru_cache(maxsize=32)
def _rows_and_task(definition: ConfigurableTask) -> dict[str, str]:
    """Hashes of a task's rows and of what is done with them; thousands of cells may ask."""
    rows, task = list(definition.eval_docs), definition.config.task
    return {"data": digests.digest(rows), "task": digests.digest(tasks.fingerprint(task))}


# Calibrate, merge, evaluate, store ----------------------------------------------------------------
TABLE_1 = (*UNMERGED, *PAPER)
MERGES = PAPER


class Lab(Materials):
    """One profile's experiments. What is stored under the same key is read, the rest measured.

    A name is one of METHODS, whose cells have files of their own, or a declared variant's
    (`catalogue`), whose cells are in bundles.
    """

    apart: tuple[str, ...] = TABLE_1
    kept: Path | None = None  # folder of norms and learnt weights that were made before

    def __init__(self, profile: Profile):
        super().__init__(profile)
        self.merges = Merges(self)
        self.norms = InputNorms(self, self.kept and self.kept / "norms")

    # Merge ----------------------------------------------------------------------------------

    def input_norms(self, task: str, chosen: Inputs = DEFAULT) -> dict[str, Tensor]:
        """See `InputNorms.of`."""
        return self.norms.of(task, chosen)

    @cached_property
    def weighing(self) -> Weighing:
        """Weights learnt of the seven adapters."""
        files = [place / "weights.json" for place in (self.kept, self.profile.store) if place]
        return Weighing(self.trainable, self.tokenizer, self.adapters, WeighingRecipe(), files)

    def variant(self, name: str) -> Variant:
        """The variant of a name; raises TipminiError for an unknown one."""
        if name in TABLE_1:
            return Variant(name=name, title=name, method=name)
        known = catalogue.catalogue()
        if name in known.choices:
            return catalogue.resolved(known.choices[name], known, self.profile)
        return known.variant(name)

    def options(self, method: str) -> dict:
        """The profile's settings of a merge; everything else is the library's default."""
        settings = {"drop_rate": self.profile.drop_rate, "sparsity": self.profile.base_sparsity}
        known = {} if method in UNMERGED else tm.method_options(method)
        return {name: value for name, value in settings.items() if name in known}

    def merged(self, name: str) -> Path:
        """The PEFT folder of the adapters merged as a variant says."""
        return self.merges.folder(self.variant(name))

    def sparsities(self, task: str) -> Tensor:
        """(L,) sparsity of every layer of a task's adapter, TIP Eq. 5."""
        return tm.tip_sparsities(
            self.adapters[task], self.input_norms(task), self.profile.base_sparsity
        )

    # Evaluate -------------------------------------------------------------------------------

    def folder(self, name: str, task: str) -> Path | None:
        """The adapter that a method or variant puts on the base for a task."""
        method = self.variant(name).method
        if method == "base":
            return None
        return self.adapter_path(task) if method == "single" else self.merged(name)

    def cell(self, name: str, task: str) -> Cell:
        """The measured cell; read from the store where it was measured from the same things."""
        folder = self.folder(name, task)
        definition, metric = self.definition(task), self.variant(name).metric(task)
        key = digests.digest(self.inputs(folder, definition, metric))
        found = self.stored(name, task)
        if found is None or found.key != key or not self.takes(found) or not is_current(found):
            found = self._measured_before(name, key)
            found = found or self.measure(name, folder, definition, metric)
            self.keep(name, found)
        return found

    def takes(self, cell: Cell) -> bool:
        """Whether a stored cell is of the number format that is asked for; "auto" takes any."""
        return self.profile.dtype in ("auto", cell.dtype)

    def stored(self, name: str, task: str) -> Cell | None:
        """What was measured before, of whatever; None where nothing was."""
        if name in self.apart:
            return stored(self.profile, name, task)
        return store.cell_of(self.profile.variant_store, name, task)

    def _measured_before(self, name: str, key: str) -> Cell | None:
        """The same measurement under another variant's name, in the same number format."""
        if name in self.apart:
            return None
        found = store.find((self.profile.variant_store, self.profile.store / "cells"), key)
        same = found is not None and found.dtype == self.dtype and is_current(found)
        return found.model_copy(update={"method": name}) if same else None

    def keep(self, name: str, cell: Cell) -> None:
        """Store a cell, with its variant's settings and facts where it is a variant's."""
        if name in self.apart:
            store.save(cell_file(self.profile, name, cell.task), cell)
            return
        variant = self.variant(name)
        made = {"name": name, "title": variant.title, "settings": self.merges.settings(variant)}
        made |= {"facts": self.merges.facts(variant), "cells": [cell]}
        store.keep(self.profile.variant_store, store.Bundle(**made))

    def is_stale(self, name: str, task: str, measured: bool = False) -> bool:
        """Whether a stored variant's cell is of other code, model, rows or settings than now.

        Told without merging or calibrating, so that another machine, which rounds otherwise, finds
        a cell as good as its own; `cell` compares the merged factors themselves. measured: also
        whether the rows that its inputs were calibrated on are others, which takes reading them.
        """
        variant, bundle = self.variant(name), store.read(self.profile.variant_store, name)
        cell = self.stored(name, task)
        if bundle is None or cell is None:
            return False
        inputs = self.inputs(None, self.definition(task), variant.metric(task))
        then = bundle.settings if measured else without_measured(bundle.settings)
        now = [self.merges.settings(variant, measured), inputs | {"adapter": None}]
        return now != [then, cell.inputs | {"adapter": None}] or not is_current(cell)

    def inputs(self, folder: Path | None, definition, metric: str | None = None) -> dict:
        """Everything a cell's values follow from: `cell_inputs`."""
        return cell_inputs(self.profile, self.model_hash, folder, definition, metric)

    def measure(
        self, method: str, folder: Path | None, definition, metric: str | None = None
    ) -> Cell:
        """Evaluate the base model with the adapter of `folder` (None: without) on a task."""
        start = time.perf_counter()
        task = definition.config.task
        metric = metric or tasks.METRIC[task]
        inputs = self.inputs(folder, definition, metric)
        self.lm.adapter = folder
        values, margins = evaluator.answers(self.lm, definition, metric)
        place = {"profile": self.profile.name, "method": method, "task": task, "metric": metric}
        told = {"dtype": self.dtype, "values": values, "margins": margins}
        return store.measured(start, inputs, evaluation_code(), **told, **place)


def is_current(cell: Cell) -> bool:
    """Whether a cell was measured by today's code, or by one that is known to give the same."""
    return digests.is_same_code(cell.code, evaluation_code())


def cell_file(profile: Profile, method: str, task: str) -> Path:
    return profile.store / "cells" / f"{method}-{task}.json"


def stored(profile: Profile, method: str, task: str) -> Cell | None:
    """What was measured before, without measuring; None where nothing was."""
    return store.load(cell_file(profile, method, task))
