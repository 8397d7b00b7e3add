"""A profile's merges, what each follows from, and the sizes that tell pruning from scale."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

import tipmini as tm
from tipmini.errors import require
from tipmini.methods import merge
from tipmini.methods.merge import Fidelity, block_of
from tipmini.models.adapter import LoraFactors
from tipmini.models.lowrank import product_norm
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import UNMERGED, Inputs, Variant
from tipmini_lab.locks import alone
from tipmini_lab.results import digests, store

SCALES = ("model", "block")


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


# A profile's merges -------------------------------------------------------------------------------
PAPER = ("linear", "dare", "tip")  # the merges of the paper's Table 1
ROUNDING = 1e-6  # of float32, relative


class Measured(Protocol):
    """What is known of the inputs of the adapters' modules; `InputNorms` is one."""

    def of(self, task: str, chosen: Inputs) -> dict[str, Tensor]: ...
    def inputs(self, task: str, chosen: Inputs) -> dict: ...


class Learnt(Protocol):
    """Weights learnt of all adapters; `Weighing` is one."""

    def identity(self) -> str: ...
    def weights(self) -> dict[str, dict[str, float]]: ...


class Source(Protocol):
    """What merges are made of; `Lab` is one."""

    profile: Profile
    adapters: dict[str, tm.LoraAdapter]
    norms: Measured
    weighing: Learnt

    def adapter_path(self, task: str) -> Path: ...
    def merged(self, name: str) -> Path: ...
    def options(self, method: str) -> dict: ...
    def variant(self, name: str) -> Variant: ...


class Merges:
    """Of one `Lab`, whose profile, adapters and input norms they are made of."""

    def __init__(self, lab: Source):
        self.lab, self.profile = lab, lab.profile
        self.made: dict[str, Path] = {}

    def folder(self, variant: Variant) -> Path:
        """The folder of the merged adapter; the paper's are kept with the profile's results."""
        if variant.name not in self.made:
            paper = variant.name in PAPER
            self.made[variant.name] = self._paper(variant) if paper else self._remade(variant)
        return self.made[variant.name]

    def _paper(self, variant: Variant) -> Path:
        folder = self.profile.store / "merged" / variant.name
        _save(folder, self.merge(variant))
        return folder

    def _remade(self, variant: Variant) -> Path:
        """Merged again only where something that it is made of has changed."""
        folder, note = self._place(variant)
        code = digests.code_digest(merge.merge, scaled_to)
        recipe = digests.digest([code, self.settings(variant)])
        if not folder.is_dir() or _note(note).get("recipe") != recipe:
            merged = self.merge(variant)
            _save(folder, merged)
            facts = sizes(merged, self.exact(variant))
            store.write(note, json.dumps({"recipe": recipe, "facts": facts}) + "\n")
        return folder

    def _place(self, variant: Variant) -> tuple[Path, Path]:
        folder = self.profile.scratch / "merged" / variant.name
        return folder, folder.with_name(f"{variant.name}.json")

    def merge(self, variant: Variant) -> tm.LoraAdapter:
        """The merged adapter itself."""
        names = variant.tasks(self.profile.tasks)
        given = {"weights": self.weights(variant), "seed": self.seed(variant)}
        if variant.needs:
            chosen = _inputs(variant)
            given[variant.needs] = {task: self.lab.norms.of(task, chosen) for task in names}
        adapters = {task: self.lab.adapters[task] for task in names}
        merged = tm.merge(adapters, variant.method, **given, **self.options(variant))
        if variant.norm_of is None:
            return merged
        like = tm.load_adapter(self.lab.merged(variant.norm_of))
        return scaled_to(merged, like, variant.norm_by)

    def weights(self, variant: Variant) -> object:
        """As `merge` takes them."""
        names = variant.tasks(self.profile.tasks)
        if variant.weights != "learnt":
            return variant.shares(names)
        every = self.lab.weighing.weights()
        return {task: every[task] for task in names}

    def exact(self, variant: Variant) -> tm.LoraAdapter:
        """The plain sum of the updates that the variant merges."""
        names = variant.tasks(self.profile.tasks)
        return tm.merge({task: self.lab.adapters[task] for task in names}, "cat")

    def seed(self, variant: Variant) -> int:
        return self.profile.seed if variant.seed is None else variant.seed

    def options(self, variant: Variant) -> dict:
        """The profile's and the variant's own; rank "whole" is one that cuts nothing."""
        options = self.lab.options(variant.method) | variant.options
        if options.get("rank") == "whole":
            every = self.lab.adapters.values()
            shapes = [pair.shape for adapter in every for pair in adapter.factors.values()]
            options["rank"] = max(min(shape) for shape in shapes)
        return options

    def settings(self, variant: Variant, measured: bool = True) -> dict:
        """Everything that a merge follows from besides the library's code.

        measured=False leaves out what the inputs' norms follow from, which takes reading the rows.
        """
        own = variant.settings() | {"seed": self.seed(variant)}
        if variant.method in UNMERGED:
            return own
        names = variant.tasks(self.profile.tasks)
        hashes = {task: adapter_hash(self.lab.adapter_path(task)) for task in names}
        own |= {"options": self.options(variant), "adapters": hashes}
        if variant.needs and measured:
            chosen = _inputs(variant)
            keys = {task: digests.digest(self.lab.norms.inputs(task, chosen)) for task in names}
            own["measured"] = keys
        if variant.weights == "learnt" and measured:
            own["learnt"] = self.lab.weighing.identity()
        if variant.norm_of:
            own["norm_of"] = self.settings(self.lab.variant(variant.norm_of), measured)
        return own

    def facts(self, variant: Variant) -> dict[str, float]:
        """`merging.sizes` of a variant's merge; nothing of what isn't merged."""
        if variant.method in UNMERGED:
            return {}
        folder = self.folder(variant)
        if variant.name in PAPER:
            return sizes(tm.load_adapter(folder), self.exact(variant))
        return _note(self._place(variant)[1])["facts"]


def _inputs(variant: Variant) -> Inputs:
    """How the variant's inputs are measured; for Gram matrices, where it needs those."""
    grams = {"statistic": "gram"} if variant.needs == "grams" else {}
    return variant.inputs.model_copy(update=grams)


def _note(file: Path) -> dict:
    return json.loads(file.read_text()) if file.is_file() else {}


def _save(folder: Path, merged: tm.LoraAdapter) -> None:
    with alone(folder.parent):  # processes side by side merge the same
        if not _holds(folder, merged):
            merged.save(folder, torch.float32)


def _holds(folder: Path, adapter: tm.LoraAdapter) -> bool:
    """Whether the folder's factors are these to rounding: another processor's last bit is no news.

    What is 0, such as a pruned element, is 0 in both.
    """
    try:
        found = tm.load_adapter(folder).factors
    except tm.TipminiError:
        return False
    pairs = ((found[m], pair) for m, pair in adapter.factors.items() if m in found)
    same = [_alike(f.a, p.a) and _alike(f.b, p.b) for f, p in pairs]
    return len(same) == len(adapter.factors) == len(found) and all(same)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=ROUNDING, atol=0)


def adapter_hash(folder: Path) -> str:
    return digests.file_digest(folder / "adapter_model.safetensors")


def without_measured(settings: dict) -> dict:
    """A merge's settings but for the hashes of what its inputs and weights were measured on."""
    kept = {key: value for key, value in settings.items() if key not in ("measured", "learnt")}
    inner = kept["norm_of"]
    return kept | ({"norm_of": without_measured(inner)} if isinstance(inner, dict) else {})
