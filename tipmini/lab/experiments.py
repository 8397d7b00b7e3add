"""Calibrate, merge, evaluate, store: every measured number of the book passes through here."""

import json
import logging
import tempfile
import time
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import tipmini as tm
from tipmini import calibration
from tipmini.lab import (
    assets,
    attention,
    evaluation,
    generation,
    llama,
    model,
    packing,
    paths,
    resident,
    results,
    tasks,
)
from tipmini.lab.locks import alone
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell

METHODS = ("base", "single", "linear", "dare", "tip")
MERGES = METHODS[2:]

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
    """One profile's experiments. What is stored under the same key is read, the rest measured."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self._merged: dict[str, Path] = {}
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

    def input_norms(self, task: str) -> dict[str, Tensor]:
        """Input norms of a task's own adapter on its own text: see `tm.calibrate_adapter`."""
        file = self.profile.store / "norms" / f"{task}.safetensors"
        texts = self.calibration_texts(task)
        inputs = {
            "code": results.code_digest(CALIBRATION_CODE),
            "model": self.model_hash,
            "adapter": _adapter_hash(self.adapter_path(task)),
            "data": results.digest(texts),
            "parameters": self.profile.model_dump(include={"dtype", "device", "tokens"}),
        }
        key = results.digest(inputs)
        if _metadata(file).get("key") != key:
            norms = self.calibrate(task, texts)
            save_tensors(norms, file, {"key": key, "inputs": json.dumps(inputs)})
        with safe_open(file, "pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

    def calibration_texts(self, task: str) -> list[str]:
        """Train rows as text, prompt and right answer."""
        definition = self.task(task, self.profile.calibration_rows)
        docs = definition.training_docs()
        chosen = tasks.order(len(docs))[: self.profile.calibration_rows]
        return [tasks.text(definition, docs[i]) for i in chosen]

    def calibrate(
        self, task: str, texts: list[str] | None = None, statistic: str = "wanda"
    ) -> dict[str, Tensor]:
        """Measure a task's input norms or Gram matrices, on its calibration texts by default."""
        from tqdm import tqdm

        texts = texts or self.calibration_texts(task)
        batches = self.padded(self.tokenizer(texts)["input_ids"])
        bar = lambda batches: tqdm(batches, desc=f"calibrate {task}")  # noqa: E731
        with self.lm.resident.wearing(self.adapter_path(task)) as peft:
            return tm.calibrate_adapter(
                peft, batches, peft.active_adapter, statistic=statistic, progress=bar
            )

    def padded(self, encoded: list[list[int]]) -> list[dict[str, Tensor]]:
        """Batches of similar lengths, under 5% of padding, as `tm.calibrate` takes them."""
        parts = packing.batches([len(tokens) for tokens in encoded], self.profile.tokens, 0.9)
        return [
            self.tokenizer.pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt")
            for part in parts
        ]

    # Merge ----------------------------------------------------------------------------------

    def options(self, method: str) -> dict:
        """The profile's settings of a merge; everything else is the library's default."""
        rate = {"dare": "drop_rate", "tip": "base_sparsity"}
        names = {"dare": "drop_rate", "tip": "sparsity"}
        return {names[method]: getattr(self.profile, rate[method])} if method in rate else {}

    def merged(self, method: str) -> Path:
        """The PEFT folder of all adapters merged by a method."""
        if method not in self._merged:
            folder = self.profile.store / "merged" / method
            merged = self._merge(method)
            with alone(folder.parent):  # processes side by side merge the same
                if not _holds(folder, merged):
                    merged.save(folder, torch.float32)
            self._merged[method] = folder
        return self._merged[method]

    def _merge(self, method: str) -> tm.LoraAdapter:
        norms = {t: self.input_norms(t) for t in self.profile.tasks} if method == "tip" else None
        return tm.merge(
            self.adapters, method, norms=norms, seed=self.profile.seed, **self.options(method)
        )

    def sparsities(self, task: str) -> Tensor:
        """(L,) sparsity of every layer of a task's adapter, TIP Eq. 5."""
        return tm.tip_sparsities(
            self.adapters[task], self.input_norms(task), self.profile.base_sparsity
        )

    # Evaluate -------------------------------------------------------------------------------

    def folder(self, method: str, task: str) -> Path | None:
        """The adapter that a method puts on the base for a task."""
        if method == "base":
            return None
        return self.adapter_path(task) if method == "single" else self.merged(method)

    def cell(self, method: str, task: str) -> Cell:
        """The measured cell; read from the store where it was measured from the same things."""
        folder = self.folder(method, task)
        definition = self.task(task)
        inputs = self.inputs(folder, definition)
        file = cell_file(self.profile, method, task)
        stored = results.load(file)
        if stored is None or stored.key != results.digest(inputs):
            stored = self.measure(method, folder, definition)
            results.save(file, stored)
        return stored

    def inputs(self, folder: Path | None, definition) -> dict:
        """Everything a cell's values follow from."""
        return {
            "code": results.code_digest(EVALUATION_CODE),
            "model": self.model_hash,
            "adapter": folder and _adapter_hash(folder),
            "data": results.digest(list(definition.eval_docs)),
            "task": results.digest(tasks.fingerprint(definition.config.task)),
            "parameters": self.profile.model_dump(
                include={"dtype", "device", "tokens", "answer_tokens"}
            ),
        }

    def measure(self, method: str, folder: Path | None, definition) -> Cell:
        """Evaluate the base model with the adapter of `folder` (None: without) on a task."""
        start = time.perf_counter()
        task, inputs = definition.config.task, self.inputs(folder, definition)
        self.lm.adapter = folder
        values = evaluation.evaluate(self.lm, definition, tasks.METRIC[task])
        return Cell(
            key=results.digest(inputs),
            inputs=inputs,
            profile=self.profile.name,
            method=method,
            task=task,
            metric=tasks.METRIC[task],
            values=values,
            seconds=round(time.perf_counter() - start, 1),
            date=results.today(),
            machine=results.machine(),
            versions=results.versions(),
        )


def cell_file(profile: Profile, method: str, task: str) -> Path:
    return profile.store / "cells" / f"{method}-{task}.json"


def stored(profile: Profile, method: str, task: str) -> Cell | None:
    """What was measured before, without measuring; None where nothing was."""
    return results.load(cell_file(profile, method, task))


def _holds(folder: Path, adapter: tm.LoraAdapter) -> bool:
    """Whether the folder's factors are these, bit for bit."""
    try:
        found = tm.load_adapter(folder).factors
    except tm.TipminiError:
        return False
    pairs = ((found[m], pair) for m, pair in adapter.factors.items() if m in found)
    same = [torch.equal(f.a, p.a) and torch.equal(f.b, p.b) for f, p in pairs]
    return len(same) == len(adapter.factors) == len(found) and all(same)


def _adapter_hash(folder: Path) -> str:
    return results.file_digest(folder / "adapter_model.safetensors")


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
