"""A declared variant of the merges: made of a lab's adapters, measured on the tasks it merges."""

import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

import tipmini as tm
from tipmini.methods import merge
from tipmini.methods.blockwise import merge_blockwise
from tipmini.methods.table import plain_rule
from tipmini.models.sealed import sealed
from tipmini_lab.evaluation import evaluator, model
from tipmini_lab.experiments import agreeing, distilling
from tipmini_lab.experiments.catalogue import UNMERGED, Variant
from tipmini_lab.experiments.experiment import Experiment
from tipmini_lab.experiments.merging import adapter_hash, save_merge, scaled_to, sizes
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.locks import alone
from tipmini_lab.results import checked, digests, store
from tipmini_lab.results.store import Cell

if TYPE_CHECKING:
    from tipmini_lab.experiments.lab import Lab

PAPER = ("linear", "dare", "tip")  # the merges of the paper's Table 1
TABLE_1 = (*UNMERGED, *PAPER)


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
        if variant.distill:
            own["distilling"] = agreeing.VERSION
            if other := variant.distill.start:
                own["started"] = self.lab.experiment(other).settings(measured)
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
        return self.profile.scratch / "merged" / f"{self.lab.made_as(self.name)}.json"

    def merge(self) -> tm.LoraAdapter:
        """The merged adapter itself."""
        variant = self.variant
        merged = self.taught[0] if variant.distill else self._merged_at_once()
        like = variant.norm_of and tm.load_adapter(self.lab.merged(variant.norm_of))
        return scaled_to(merged, like, variant.norm_by) if like else merged

    @cached_property
    def taught(self) -> tuple[tm.LoraAdapter, distilling.Facts]:
        """What is learnt from the merge on, or from another variant's, and what there is to tell
        of it, the other's seconds among it."""
        if (other := self.variant.distill.start) is None:
            return self.lab.distilled(self, self._merged_at_once())
        found, told = self.lab.distilled(self, tm.load_adapter(self.lab.merged(other)))
        begun = self.lab.experiment(other).facts()
        more = begun.get("seconds", 0.0) * begun.get("threads", 1) / told["threads"]
        return found, told | {"seconds": round(told["seconds"] + more, 1)}

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


# Cells of merges ----------------------------------------------------------------------------------
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
