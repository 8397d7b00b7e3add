"""`tipmini merge` at work: read the inputs, merge, measure the fidelity, write."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path

import tipmini as tm
from tipmini.cli.merge_plan import Inputs, describe, open_inputs, refuse_out
from tipmini.cli.merge_request import Request
from tipmini.methods.merge import Fidelity, Part
from tipmini.methods.model_card import CardInput, model_card
from tipmini.methods.tip import layer_names, sparsities_of
from tipmini.methods.weighting import told, weights_of
from tipmini.models import weights
from tipmini.models.peft_folder import weights_sha256
from tipmini.papers.tip import Reading

Progress = Callable[..., Iterable]  # (things, what="merging", unit="module") -> the things


def run(request: Request, progress: Progress) -> dict[str, object]:
    """Read, merge and write; returns what there is to tell of it."""
    inputs = open_inputs(request, tm.load_adapter, weights_of)
    start = time.perf_counter()
    refuse_out(request, inputs)
    if inputs.base:
        fidelity = measured_update(request, inputs)
        step = partial(progress, what="merging", unit="tensor")
        weights.save_merged(inputs.base, fidelity, request.out, progress=step)
    else:
        merged, fidelity = merged_adapter(request, inputs, progress)
        merged.save(request.out, card=_card(request, inputs, merged, fidelity))
    return _told(request, inputs, fidelity) | {"seconds": time.perf_counter() - start}


def _card(request: Request, inputs: Inputs, merged: tm.LoraAdapter, fidelity: Fidelity) -> str:
    """The README.md of the merged adapter."""
    names = _names(request.adapters)
    parts, _ = _exact_sum(request, inputs)
    learnt = isinstance(request.weights, Path)
    shares = [told(w.values()) for w in inputs.weights] if learnt else [p.weight for p in parts]
    used = zip(names, request.adapters, shares, strict=True)
    return model_card(
        request.method,
        request.options,
        {n: CardInput(str(path), weights_sha256(path), share) for n, path, share in used},
        seed=request.seed,
        version=version("tipmini"),
        base_model=merged.base_model,
        task_type=merged.task_type,
        sparsity=_sparsities(request, inputs, names),
        fidelity=fidelity.layers() if request.options.get("layer", "block") == "block" else None,
    )


def _names(paths: list[Path]) -> list[str]:
    """The folders' own names; where two have the same one their paths, numbered for one twice."""
    own = [path.name or str(path) for path in paths]
    whole = [str(path) for path in paths]
    numbered = [f"{name} ({place})" for place, name in enumerate(whole, 1)]
    return next(names for names in (own, whole, numbered) if len(set(names)) == len(names))


def _sparsities(
    request: Request, inputs: Inputs, names: list[str]
) -> dict[str, dict[str, float]] | None:
    """{adapter: {layer: S_l}} of a method that prunes by TIP's layers, as wanda does with one S."""
    fields = {field.name for field in dataclasses.fields(Reading)}
    if "layer" not in request.options:
        return None
    reading = Reading(**{n: value for n, value in request.options.items() if n in fields})
    found = sparsities_of(list(zip(inputs.adapters, inputs.norms, strict=True)), reading)
    return {
        name: dict(zip(layer_names(adapter, reading), shares.tolist(), strict=True))
        for name, adapter, shares in zip(names, inputs.adapters, found, strict=True)
    }


def _told(request: Request, inputs: Inputs, fidelity: Fidelity) -> dict[str, object]:
    """How the merge was made and what came out."""
    measured = {"whole": fidelity.whole(), "modules": fidelity.modules()}
    return describe(request, inputs) | {"fidelity": measured}


def merged_adapter(
    request: Request, inputs: Inputs, progress: Progress
) -> tuple[tm.LoraAdapter, Fidelity]:
    """The merged adapter, and its fidelity measured."""
    step = partial(progress, what="merging", unit="module")
    merged = tm.merge(inputs.adapters, **_settings(request, inputs), progress=step)
    fidelity = Fidelity(merged.factors, _exact_sum(request, inputs)[1])
    for _ in map(fidelity.__getitem__, progress(merged.modules, what="comparing", unit="module")):
        pass  # reading measures
    return merged, fidelity


def measured_update(request: Request, inputs: Inputs) -> Fidelity:
    """The update of a base, merged and measured module by module as it is read."""
    _, update = tm.merge_update(inputs.adapters, **_settings(request, inputs))
    return Fidelity(update, _exact_sum(request, inputs)[1])


def _settings(request: Request, inputs: Inputs) -> dict[str, object]:
    """The keyword arguments of `tm.merge` and `tm.merge_update`."""
    return {
        "method": request.method,
        "weights": inputs.weights,
        "norms": inputs.norms,
        "grams": inputs.grams,
        "seed": request.seed,
        "base_model": inputs.base_model,
        **request.options,
    }


def _exact_sum(request: Request, inputs: Inputs) -> tuple[list[Part], Mapping[str, tm.LoraFactors]]:
    """The parts of the merge with their weights as numbers, and the sum of their deltas."""
    shared = {"weights": inputs.weights, "base_model": inputs.base_model}
    return tm.merge_update(inputs.adapters, "cat", **shared)
