"""What is known of a profile's adapters' inputs: measured of train rows once, then read."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lm_eval.api.task import ConfigurableTask
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import tipmini as tm
from tipmini.models import calibration
from tipmini_lab.evaluation import packing, tasks
from tipmini_lab.evaluation.evaluator import PackedLM
from tipmini_lab.experiments.merging import adapter_hash
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import Inputs
from tipmini_lab.results import digests

DEFAULT = Inputs()  # as the paper says
FIRST = 4  # train rows whose norms are kept apart: soon measured again on another machine
EVERY_ROW = 10**9


class Source(Protocol):
    """Whose adapters, model and rows they are; `Lab` is one."""

    profile: Profile
    adapters: dict[str, tm.LoraAdapter]
    lm: PackedLM
    tokenizer: PreTrainedTokenizerBase
    model_hash: str
    dtype: str

    def adapter_path(self, task: str) -> Path: ...
    def task(self, name: str, train: int = 0) -> ConfigurableTask: ...


class InputNorms:
    """Of one `Lab`: norms, or Gram matrices, of what its adapters' modules read.

    kept: a folder of norms that were measured before, read where they are of the very same things.
    """

    def __init__(self, lab: Source, kept: Path | None = None):
        self.lab, self.profile, self.kept = lab, lab.profile, kept
        self._texts: dict[tuple, list[str]] = {}

    @property
    def first(self) -> Inputs:
        return Inputs(rows=min(FIRST, self.profile.calibration_rows))

    def of(self, task: str, chosen: Inputs = DEFAULT) -> dict[str, Tensor]:
        """Of a task's own adapter on its own text: see `tm.calibrate_adapter`."""
        inputs = self.inputs(task, chosen)
        key = digests.digest(inputs)
        kept = self.kept and self.kept / f"{task}.safetensors"
        file = kept if kept and _is_of(kept, key) else self._file(task, chosen, key)
        if not _is_of(file, key):
            norms = self.measure(task, self.texts(task, chosen), chosen.statistic, chosen.source)
            told = {"key": key, "inputs": json.dumps(inputs), "dtype": self.lab.dtype}
            save_tensors(norms, file, told | {"code": calibration_code()})
        return _tensors(file)

    def stored(self, task: str, chosen: Inputs, dtype: str) -> dict[str, Tensor] | None:
        """What was measured before in a number format; None where nothing of the very same was."""
        key = digests.digest(self.inputs(task, chosen))
        file = self._file(task, chosen, key)
        return _tensors(file) if _is_of(file, key) and _told(file)["dtype"] == dtype else None

    def _file(self, task: str, chosen: Inputs, key: str) -> Path:
        """The paper's are kept with the profile's results, others where all can be made again."""
        rows = None if chosen.rows == self.profile.calibration_rows else chosen.rows
        if chosen.model_copy(update={"rows": rows}) == DEFAULT:
            return self.profile.store / "norms" / f"{task}.safetensors"
        if chosen == self.first:
            return self.profile.store / "norms" / "first" / f"{task}.safetensors"
        return self.profile.scratch / "norms" / f"{task}-{key[:16]}.safetensors"

    def _rows(self, chosen: Inputs) -> int:
        return chosen.rows or self.profile.calibration_rows

    def inputs(self, task: str, chosen: Inputs = DEFAULT) -> dict:
        """Everything that they follow from."""
        inputs = {
            "model": self.lab.model_hash,
            "adapter": adapter_hash(self.lab.adapter_path(task)),
            "data": digests.digest(self.texts(task, chosen)),
            "parameters": self.profile.model_dump(include={"device", "tokens"}),
        }
        other = chosen.model_dump(include={"statistic", "source"}, exclude_defaults=True)
        return inputs | ({"inputs": other} if other else {})

    def texts(self, task: str, chosen: Inputs = DEFAULT) -> list[str]:
        """Train rows as text, prompt and right answer."""
        rows = self._rows(chosen)
        asked = (task, rows, chosen.seed, chosen.answers)
        if asked not in self._texts:
            # Other rows than the first ones are among all.
            definition = self.lab.task(task, EVERY_ROW if chosen.seed else rows)
            docs = definition.training_docs()
            picked = [docs[i] for i in tasks.order(len(docs), chosen.seed)[:rows]]
            write = tasks.text if chosen.answers else _prompt
            self._texts[asked] = [write(definition, doc) for doc in picked]
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
        from tqdm import tqdm

        texts = texts or self.texts(task)
        batches = self.padded(self.lab.tokenizer(texts)["input_ids"])
        bar = lambda batches: tqdm(batches, desc=f"calibrate {task}")  # noqa: E731
        with self._source(task, source) as folder, self.lab.lm.resident.active(folder) as peft:
            return tm.calibrate_adapter(
                peft, batches, peft.active_adapter, statistic=statistic, progress=bar
            )

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
        sizes = [len(tokens) for tokens in encoded]
        parts = packing.batches(sizes, self.profile.tokens // 2, 0.9)
        pad = self.lab.tokenizer.pad
        return [
            pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt") for part in parts
        ]


def _prompt(definition: ConfigurableTask, doc: dict) -> str:
    return definition.doc_to_text(doc)


def calibration_code() -> str:
    """What norms are measured by."""
    return digests.code_digest(calibration.calibrate_adapter, packing.batches, tasks.text)


def _is_of(file: Path, key: str) -> bool:
    """Whether a file's norms were measured of the very same things, by code that gives the same."""
    told = _told(file)
    codes = ({"calibration": code} for code in (told.get("code", ""), calibration_code()))
    return told.get("key") == key and digests.is_same_code(*codes)


def _told(file: Path) -> dict[str, str]:
    """What a file of norms says of itself; nothing without a file."""
    if not file.is_file():
        return {}
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}


def _tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".norms-") as work:
        partial = Path(work) / file.name
        save_file(tensors, partial, metadata)
        partial.replace(file)
