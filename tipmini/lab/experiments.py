"""Calibrate, merge, evaluate, store: every measured number of the book passes through here."""

import time
from functools import cached_property
from pathlib import Path

from torch import Tensor

import tipmini as tm
from tipmini.lab import bundles, catalogue, digests, evaluation, results, selection, tasks
from tipmini.lab.cell_inputs import cell_inputs, evaluation_code
from tipmini.lab.input_norms import DEFAULT, InputNorms
from tipmini.lab.materials import Materials
from tipmini.lab.merging import PAPER, Merges, without_measured
from tipmini.lab.profiles import Profile
from tipmini.lab.results import Cell
from tipmini.lab.variants import UNMERGED, Inputs, Variant
from tipmini.lab.weighing import Recipe, Weighing

METHODS = (*UNMERGED, *PAPER)
MERGES = PAPER


class Lab(Materials):
    """One profile's experiments. What is stored under the same key is read, the rest measured.

    A name is one of METHODS, whose cells have files of their own, or a declared variant's
    (`catalogue`), whose cells are in bundles.
    """

    apart: tuple[str, ...] = METHODS
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
        return Weighing(self.trainable, self.tokenizer, self.adapters, Recipe(), files)

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
        return bundles.cell_of(self.profile.variant_store, name, task)

    def _measured_before(self, name: str, key: str) -> Cell | None:
        """The same measurement under another variant's name, in the same number format."""
        if name in self.apart:
            return None
        found = bundles.find((self.profile.variant_store, self.profile.store / "cells"), key)
        same = found is not None and found.dtype == self.dtype and is_current(found)
        return found.model_copy(update={"method": name}) if same else None

    def keep(self, name: str, cell: Cell) -> None:
        """Store a cell, with its variant's settings and facts where it is a variant's."""
        if name in self.apart:
            results.save(cell_file(self.profile, name, cell.task), cell)
            return
        variant = self.variant(name)
        made = {"name": name, "title": variant.title, "settings": self.merges.settings(variant)}
        made |= {"facts": self.merges.facts(variant), "cells": [cell]}
        bundles.keep(self.profile.variant_store, bundles.Bundle(**made))

    def is_stale(self, name: str, task: str, measured: bool = False) -> bool:
        """Whether a stored variant's cell is of other code, model, rows or settings than now.

        Told without merging or calibrating, so that another machine, which rounds otherwise, finds
        a cell as good as its own; `cell` compares the merged factors themselves. measured: also
        whether the rows that its inputs were calibrated on are others, which takes reading them.
        """
        variant, bundle = self.variant(name), bundles.read(self.profile.variant_store, name)
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
        values, margins = evaluation.answers(self.lm, definition, metric)
        place = {"profile": self.profile.name, "method": method, "task": task, "metric": metric}
        told = {"dtype": self.dtype, "values": values, "margins": margins}
        return results.measured(start, inputs, evaluation_code(), **told, **place)


def is_current(cell: Cell) -> bool:
    """Whether a cell was measured by today's code, or by one that is known to give the same."""
    return digests.is_same_code(cell.code, evaluation_code())


def cell_file(profile: Profile, method: str, task: str) -> Path:
    return profile.store / "cells" / f"{method}-{task}.json"


def stored(profile: Profile, method: str, task: str) -> Cell | None:
    """What was measured before, without measuring; None where nothing was."""
    return results.load(cell_file(profile, method, task))
