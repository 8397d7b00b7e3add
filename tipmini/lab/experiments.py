"""Calibrate, merge, evaluate, store: every measured number of the book passes through here."""

import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lm_eval.api.task import ConfigurableTask
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tipmini as tm
from tipmini import calibration
from tipmini.lab import (
    assets,
    attention,
    bundles,
    catalogue,
    evaluation,
    generation,
    llama,
    model,
    packing,
    paths,
    resident,
    results,
    selection,
    tasks,
)
from tipmini.lab.merging import PAPER, Merges, adapter_hash
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell
from tipmini.lab.variants import UNMERGED, Inputs, Variant

METHODS = (*UNMERGED, *PAPER)
MERGES = PAPER
DEFAULT = Inputs()  # as the paper says
EVERY_ROW = 10**9

EVALUATION_CODE = (
    packing.Row,
    packing.pack_requests,
    packing.together,
    packing.flatten,
    packing.runs,
    packing.collate,
    packing.batches,
    packing.Group,
    attention,
    generation,
    llama,
    model.target_hidden,
    model.scored_targets,
    model.target_logprobs,
    resident.Resident,
    evaluation.PackedLM,
    evaluation.Stop,
    evaluation.evaluate,
)
CALIBRATION_CODE = (
    packing.batches,
    calibration.calibrate,
    calibration.calibrate_adapter,
    calibration._InputSums,
    tasks.text,
)


class Lab:
    """One profile's experiments. What is stored under the same key is read, the rest measured.

    A name is one of METHODS, whose cells have files of their own, or a declared variant's
    (`catalogue`), whose cells are in bundles.
    """

    apart: tuple[str, ...] = METHODS

    def __init__(self, profile: Profile):
        self.profile = profile
        self.merges = Merges(self)
        self._texts: dict[tuple, list[str]] = {}
        self._definitions: dict[str, ConfigurableTask] = {}
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    # What goes in ---------------------------------------------------------------------------

    @cached_property
    def model_path(self) -> Path | str:
        embedded = self.profile.model == "embedded"
        return assets.embedded() / "model" if embedded else self.profile.model

    @cached_property
    def model_hash(self) -> str:
        """Of the weights' file; of a hub model its id."""
        if self.profile.model != "embedded":
            return self.profile.model
        return results.file_digest(assets.embedded() / "model" / "model.safetensors")

    @cached_property
    def tokenizer(self):
        return model.load_tokenizer(self.model_path)

    @cached_property
    def base(self) -> nn.Module:
        """The base model, loaded once."""
        model.keep_memory()
        return model.load_base(self.model_path, self.profile.dtype, self.profile.device)

    @cached_property
    def lm(self) -> evaluation.PackedLM:
        """The base model as lm-eval sees it; adapters come and go on it."""
        return evaluation.PackedLM(
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

    # Calibrate ------------------------------------------------------------------------------

    def input_norms(self, task: str, chosen: Inputs = DEFAULT) -> dict[str, Tensor]:
        """Input norms of a task's own adapter on its own text: see `tm.calibrate_adapter`."""
        if chosen.rows == self.profile.calibration_rows:
            chosen = chosen.model_copy(update={"rows": None})
        inputs = self.norm_inputs(task, chosen)
        key = results.digest(inputs)
        file = self.profile.store / "norms" / f"{task}.safetensors"
        if chosen != DEFAULT:
            file = self.profile.scratch / "norms" / f"{task}-{key[:16]}.safetensors"
        if _metadata(file).get("key") != key:
            texts = self.calibration_texts(task, chosen)
            norms = self.calibrate(task, texts, chosen.statistic, chosen.source)
            save_tensors(norms, file, {"key": key, "inputs": json.dumps(inputs)})
        with safe_open(file, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

    def norm_inputs(self, task: str, chosen: Inputs = DEFAULT) -> dict:
        """Everything that input norms follow from."""
        inputs = {
            "code": results.code_digest(CALIBRATION_CODE),
            "model": self.model_hash,
            "adapter": adapter_hash(self.adapter_path(task)),
            "data": results.digest(self.calibration_texts(task, chosen)),
            "parameters": self.profile.model_dump(include={"dtype", "device", "tokens"}),
        }
        other = chosen.model_dump(include={"statistic", "source"}, exclude_defaults=True)
        return inputs | ({"inputs": other} if other else {})

    def calibration_texts(self, task: str, chosen: Inputs = DEFAULT) -> list[str]:
        """Train rows as text, prompt and right answer."""
        rows = chosen.rows or self.profile.calibration_rows
        asked = (task, rows, chosen.seed, chosen.answers)
        if asked not in self._texts:
            # Other rows than the first ones are among all.
            definition = self.task(task, EVERY_ROW if chosen.seed else rows)
            docs = definition.training_docs()
            picked = [docs[i] for i in tasks.order(len(docs), chosen.seed)[:rows]]
            write = tasks.text if chosen.answers else _prompt
            self._texts[asked] = [write(definition, doc) for doc in picked]
        return self._texts[asked]

    def calibrate(
        self,
        task: str,
        texts: list[str] | None = None,
        statistic: str = "wanda",
        source: str = "adapter",
    ) -> dict[str, Tensor]:
        """Measure a task's input norms or Gram matrices, on its calibration texts by default.

        source: whose activations, the base's with its own "adapter", or the "base"'s alone.
        """
        from tqdm import tqdm

        texts = texts or self.calibration_texts(task)
        batches = self.padded(self.tokenizer(texts)["input_ids"])
        bar = lambda batches: tqdm(batches, desc=f"calibrate {task}")  # noqa: E731
        with self._source(task, source) as folder, self.lm.resident.wearing(folder) as peft:
            return tm.calibrate_adapter(
                peft, batches, peft.active_adapter, statistic=statistic, progress=bar
            )

    @contextmanager
    def _source(self, task: str, source: str) -> Iterator[Path]:
        """The folder of a task's adapter; for the base alone with B = 0, which changes nothing of
        what the model computes, but still reads A x."""
        if source == "adapter":
            yield self.adapter_path(task)
            return
        silent = self.adapters[task].map(lambda _, pair: replace(pair, b=pair.b * 0))
        with tempfile.TemporaryDirectory() as work:
            silent.save(Path(work) / task)
            yield Path(work) / task

    def padded(self, encoded: list[list[int]]) -> list[dict[str, Tensor]]:
        """Batches of similar lengths, under 5% of padding, as `tm.calibrate` takes them.

        Half the size of a pass that evaluates: it is as fast, and the squares are in float32.
        """
        sizes = [len(tokens) for tokens in encoded]
        parts = packing.batches(sizes, self.profile.tokens // 2, 0.9)
        return [
            self.tokenizer.pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt")
            for part in parts
        ]

    # Merge ----------------------------------------------------------------------------------

    def variant(self, name: str) -> Variant:
        """The variant of a name; raises TipminiError for an unknown one."""
        if name in METHODS:
            return Variant(name=name, title=name, method=name)
        known = catalogue.catalogue()
        if name in known.choices:
            return selection.resolved(known.choices[name], known, self.profile)
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

    def definition(self, task: str) -> ConfigurableTask:
        """lm-eval's task over the profile's rows, made once."""
        if task not in self._definitions:
            self._definitions[task] = self.task(task)
        return self._definitions[task]

    def cell(self, name: str, task: str) -> Cell:
        """The measured cell; read from the store where it was measured from the same things."""
        folder = self.folder(name, task)
        definition, metric = self.definition(task), self.variant(name).metric(task)
        key = results.digest(self.inputs(folder, definition, metric))
        found = self.stored(name, task)
        if found is None or found.key != key:
            found = self._measured_before(name, key)
            found = found or self.measure(name, folder, definition, metric)
            self.keep(name, found)
        return found

    def stored(self, name: str, task: str) -> Cell | None:
        """What was measured before, of whatever; None where nothing was."""
        if name in self.apart:
            return stored(self.profile, name, task)
        return bundles.cell_of(self.profile.variant_store, name, task)

    def _measured_before(self, name: str, key: str) -> Cell | None:
        """The same measurement under another variant's name."""
        if name in self.apart:
            return None
        found = bundles.find((self.profile.variant_store, self.profile.store / "cells"), key)
        return found and found.model_copy(update={"method": name})

    def keep(self, name: str, cell: Cell) -> None:
        """Store a cell, with its variant's settings and facts where it is a variant's."""
        if name in self.apart:
            results.save(cell_file(self.profile, name, cell.task), cell)
            return
        variant = self.variant(name)
        made = {"name": name, "title": variant.title, "settings": self.merges.settings(variant)}
        made |= {"facts": self.merges.facts(variant), "cells": [cell]}
        bundles.keep(self.profile.variant_store, bundles.Bundle(**made))

    def is_stale(self, name: str, task: str) -> bool:
        """Whether a stored variant's cell is of other code, model, rows or settings than now.

        Told without merging or calibrating; `cell` compares the merged factors themselves.
        """
        variant, bundle = self.variant(name), bundles.read(self.profile.variant_store, name)
        cell = self.stored(name, task)
        if bundle is None or cell is None:
            return False
        inputs = self.inputs(None, self.definition(task), variant.metric(task))
        now = [self.merges.settings(variant, measured=False), inputs | {"adapter": None}]
        return now != [_without_measured(bundle.settings), cell.inputs | {"adapter": None}]

    def inputs(self, folder: Path | None, definition, metric: str | None = None) -> dict:
        """Everything a cell's values follow from."""
        task = definition.config.task
        inputs = {
            "code": results.code_digest(EVALUATION_CODE),
            "model": self.model_hash,
            "adapter": folder and adapter_hash(folder),
            "data": results.digest(list(definition.eval_docs)),
            "task": results.digest(tasks.fingerprint(task)),
            "parameters": self.profile.model_dump(
                include={"dtype", "device", "tokens", "answer_tokens"}
            ),
        }
        return inputs | ({"metric": metric} if metric not in (None, tasks.METRIC[task]) else {})

    def measure(
        self, method: str, folder: Path | None, definition, metric: str | None = None
    ) -> Cell:
        """Evaluate the base model with the adapter of `folder` (None: without) on a task."""
        start = time.perf_counter()
        task = definition.config.task
        metric = metric or tasks.METRIC[task]
        inputs = self.inputs(folder, definition, metric)
        self.lm.adapter = folder
        values = evaluation.evaluate(self.lm, definition, metric)
        return Cell(
            key=results.digest(inputs),
            inputs=inputs,
            profile=self.profile.name,
            method=method,
            task=task,
            metric=metric,
            values=values,
            seconds=round(time.perf_counter() - start, 1),
            date=results.today(),
            machine=results.machine(),
            versions=results.versions(),
        )

    def forget(self) -> None:
        """Take all adapters from the model, which would hold each that it ever wore."""
        resident = self.lm.resident
        with warnings.catch_warnings(action="ignore"):  # of the active one's being among them
            for name in list(resident.known):
                resident.peft.delete_adapter(name)
                resident.known.discard(name)


def cell_file(profile: Profile, method: str, task: str) -> Path:
    return profile.store / "cells" / f"{method}-{task}.json"


def stored(profile: Profile, method: str, task: str) -> Cell | None:
    """What was measured before, without measuring; None where nothing was."""
    return results.load(cell_file(profile, method, task))


def _without_measured(settings: dict) -> dict:
    kept = {key: value for key, value in settings.items() if key != "measured"}
    inner = kept["norm_of"]
    return kept | ({"norm_of": _without_measured(inner)} if isinstance(inner, dict) else {})


def _prompt(definition: ConfigurableTask, doc: dict) -> str:
    return definition.doc_to_text(doc)


def _metadata(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".norms-") as work:
        partial = Path(work) / file.name
        save_file(tensors, partial, metadata)
        partial.replace(file)
