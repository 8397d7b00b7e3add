"""What is merged: sizes that tell pruning from scale, merged folders, and the adapters' inputs."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import require
from tipmini.methods.merge import Fidelity, block_of
from tipmini.models import calibration
from tipmini.models.factors import LoraFactors
from tipmini.models.lowrank import product_norm
from tipmini_lab.evaluation import packing, tasks
from tipmini_lab.experiments.catalogue import Inputs
from tipmini_lab.locks import alone
from tipmini_lab.results import checked, digests

if TYPE_CHECKING:
    from tipmini_lab.experiments.lab import Lab

SCALES = ("model", "block")
ROUNDING = 1e-6  # of float32, relative


def module_norms(adapter: tm.LoraAdapter) -> dict[str, float]:
    r"""$\lVert s B A \rVert_F$ of every module."""
    pairs = adapter.factors.items()
    return {m: product_norm(f.b.double() * f.scaling, f.a.double()) for m, f in pairs}


def grouped_norms(adapter: tm.LoraAdapter, by: str = "model") -> dict[str, float]:
    """{group: norm}, each group's modules as one: the whole model's, or each block's."""
    require("by", by, SCALES)
    found: dict[str, list[float]] = {}
    for module, norm in module_norms(adapter).items():
        found.setdefault(_group(module, by), []).append(norm)
    return {group: math.hypot(*norms) for group, norms in found.items()}


def _group(module: str, by: str) -> str:
    return block_of(module) if by == "block" else ""


def scaled_to(adapter: tm.LoraAdapter, like: tm.LoraAdapter, by: str = "model") -> tm.LoraAdapter:
    """The adapter with its update multiplied so that its norm is that of `like`.

    by: one number for the whole "model", or one for each transformer "block". What is 0 stays 0.
    """
    have, want = grouped_norms(adapter, by), grouped_norms(like, by)
    ratios = {g: want.get(g, 0.0) / norm if norm else 0.0 for g, norm in have.items()}

    def change(module: str, pair: LoraFactors) -> LoraFactors:
        root = math.sqrt(ratios[_group(module, by)])
        return replace(pair, a=pair.a * root, b=pair.b * root)

    return adapter.map(change)


def sizes(merged: tm.LoraAdapter, exact: tm.LoraAdapter) -> dict[str, float]:
    """A merge beside the exact, unweighted sum of its adapters, over all modules (Frobenius).

    norm and sum are their sizes, distance that of their difference.
    """
    apart = Fidelity(merged.factors, exact.factors)
    for _ in apart.values():
        pass  # each module is measured as it is read
    return {
        "norm": math.hypot(*module_norms(merged).values()),
        "sum": math.hypot(*apart.norm.values()),
        "distance": math.hypot(*apart.apart.values()),
    }


# Folders ------------------------------------------------------------------------------------------
def adapter_hash(folder: Path) -> str:
    return digests.file_digest(folder / "adapter_model.safetensors")


def save_merge(folder: Path, merged: tm.LoraAdapter) -> Path:
    """Write it unless it is there: another processor's last bit is no news.

    What is 0, such as a pruned element, is 0 in both.
    """
    with alone(folder.parent):  # processes side by side merge the same
        if not _holds(folder, merged):
            merged.save(folder, torch.float32)
    return folder


def _holds(folder: Path, adapter: tm.LoraAdapter) -> bool:
    try:
        found = tm.load_adapter(folder).factors
    except tm.TipminiError:
        return False
    return found.keys() == adapter.factors.keys() and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=ROUNDING, atol=0)
        for module, pair in adapter.factors.items()
        for one, other in ((found[module].a, pair.a), (found[module].b, pair.b))
    )


# Inputs of the adapters' modules ------------------------------------------------------------------
DEFAULT = Inputs()  # as the paper says
FIRST = 4  # train rows whose norms are kept apart: soon measured again on another machine
EVERY_ROW = 10**9


class InputNorms:
    """Norms, or Gram matrices, of what a `Lab`'s adapters' modules read; measured once, then read.

    kept: a folder of norms that were measured before, read where they are of the very same things.
    """

    def __init__(self, lab: "Lab", kept: Path | None = None):
        self.lab, self.profile, self.kept = lab, lab.profile, kept
        self._texts: dict[tuple, list[str]] = {}

    @property
    def first(self) -> Inputs:
        return Inputs(rows=min(FIRST, self.profile.calibration_rows))

    def of(self, task: str, chosen: Inputs = DEFAULT) -> dict[str, Tensor]:
        """Of a task's own adapter on its own text: see `tm.calibrate_adapter`."""
        inputs = self.inputs(task, chosen)
        key = digests.digest(inputs)
        file = self.file(task, chosen)
        if self.kept and _is_of(kept := self.kept / f"{task}.safetensors", key):
            file = kept
        if not _is_of(file, key):
            norms = self.measure(task, self.texts(task, chosen), chosen.statistic, chosen.source)
            self.lab.require_same_model()
            told = {"key": key, "inputs": json.dumps(inputs), "dtype": self.lab.dtype}
            save_tensors(norms, file, told | {"code": calibration_code()})
        return _read(file)

    def stored(self, task: str, chosen: Inputs, dtype: str) -> dict[str, Tensor] | None:
        """What was measured before in a number format, by whatever code, to compare with; None
        where nothing of the very same was."""
        file, key = self.file(task, chosen), digests.digest(self.inputs(task, chosen))
        told = _told(file)
        return _read(file) if (told.get("key"), told.get("dtype")) == (key, dtype) else None

    def file(self, task: str, chosen: Inputs) -> Path:
        """The paper's are kept with the profile's results, others where all can be made again."""
        rows = None if chosen.rows == self.profile.calibration_rows else chosen.rows
        norms = self.profile.store / "norms"
        if chosen.model_copy(update={"rows": rows}) == DEFAULT:
            return norms / f"{task}.safetensors"
        if chosen == self.first:
            return norms / "first" / f"{task}.safetensors"
        key = digests.digest(self.inputs(task, chosen))
        return self.profile.scratch / "norms" / f"{task}-{key[:16]}.safetensors"

    def inputs(self, task: str, chosen: Inputs = DEFAULT) -> dict:
        """Everything that they follow from."""
        inputs = {
            "model": self.lab.model_hash,
            "adapter": adapter_hash(self.lab.adapter_path(task)),
            "data": digests.digest(self.texts(task, chosen)),
            "parameters": self.profile.model_dump(include={"device", "tokens"}),
        }
        other = chosen.model_dump(include={"statistic", "source"}, exclude_defaults=True)
        if chosen.statistic == "gram":
            other["mean over"] = "tokens"
        if chosen.statistic == "gram_sequences":
            other["statistic"] = "gram"  # its name when the first were measured
        return inputs | ({"inputs": other} if other else {})

    def texts(self, task: str, chosen: Inputs = DEFAULT) -> list[str]:
        """Train rows as text, with the answers that are asked for."""
        rows = chosen.rows or self.profile.calibration_rows
        asked = (task, rows, chosen.seed, chosen.answers)
        if asked not in self._texts:
            # Other rows than the first ones are among all.
            definition = self.lab.task(task, EVERY_ROW if chosen.seed else rows)
            docs = definition.training_docs()
            picked = [docs[i] for i in tasks.order(len(docs), chosen.seed)[:rows]]
            if chosen.answers == "listed":
                self._texts[asked] = tasks.unlabelled(definition, picked)
            else:
                read = partial(tasks.text, definition) if chosen.answers else definition.doc_to_text
                self._texts[asked] = list(map(read, picked))
        return self._texts[asked]

    def measure(
        self,
        task: str,
        texts: list[str] | None = None,
        statistic: str = "wanda",
        source: str = "adapter",
    ) -> dict[str, Tensor]:
        """Of a task's calibration texts by default; nothing is stored.

        source: whose activations, the base's with its own "adapter", or the "base"'s alone.
        """
        batches = self.padded(self.lab.tokenizer(texts or self.texts(task))["input_ids"])
        bar = lambda batches: tqdm(batches, desc=f"calibrate {task}")  # noqa: E731
        with self._source(task, source) as folder, self.lab.lm.resident.active(folder) as peft:
            told = {"statistic": statistic, "progress": bar}
            return tm.calibrate_adapter(peft, batches, peft.active_adapter, **told)

    @contextmanager
    def _source(self, task: str, source: str) -> Iterator[Path]:
        """The folder of a task's adapter; for the base alone with B = 0, which changes nothing of
        what the model computes, but still reads A x."""
        if source == "adapter":
            yield self.lab.adapter_path(task)
            return
        silent = self.lab.adapters[task].map(lambda _, pair: replace(pair, b=pair.b * 0))
        with tempfile.TemporaryDirectory() as work:
            silent.save(Path(work) / task)
            yield Path(work) / task

    def padded(self, encoded: list[list[int]]) -> list[dict[str, Tensor]]:
        """Batches of similar lengths, under 5% of padding, as `tm.calibrate` takes them.

        Half the size of a pass that evaluates: it is as fast, and the squares are in float32.
        """
        parts = packing.batches(list(map(len, encoded)), self.profile.tokens // 2, 0.9)
        rows = ({"input_ids": [encoded[i] for i in part]} for part in parts)
        return [self.lab.tokenizer.pad(each, return_tensors="pt") for each in rows]


def calibration_code() -> str:
    """What norms are measured by."""
    return digests.code_digest(calibration.calibrate_adapter, packing.batches, tasks.text)


def _is_of(file: Path, key: str) -> bool:
    """Whether a file's norms were measured of the very same things, by code that gives the same."""
    told = _told(file)
    codes = ({"calibration": code} for code in (told.get("code", ""), calibration_code()))
    return told.get("key") == key and digests.is_same_code(*codes)


def _told(file: Path) -> dict[str, str]:
    """What a file of norms says of itself; nothing without a file, or of one that is damaged."""
    if not checked.is_whole(file):
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _read(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".norms-") as work:
        checked.save_file(tensors, Path(work) / file.name, metadata)
        (Path(work) / file.name).replace(file)
