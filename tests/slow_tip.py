"""TIP element by element in plain Python: what the fast one is held against."""

import math
from itertools import groupby

import torch

from tipmini.models.adapter import LoraAdapter


def slow_tensors(adapter: LoraAdapter, module: str, on: str) -> dict[str, list[list[float]]]:
    factors = adapter.factors[module]
    if on == "delta":
        return {"delta": (factors.scaling * factors.b.double() @ factors.a.double()).tolist()}
    return {"a": factors.a.tolist()} | ({"b": factors.b.tolist()} if on == "factors" else {})


def slow_scores(tensor: list[list[float]], norm: torch.Tensor) -> list[list[float]]:
    return [[abs(w) * n for w, n in zip(row, norm.tolist(), strict=True)] for row in tensor]


def slow_importances(adapter, norms, on, layer, mean) -> dict[tuple, float]:
    """{layer: importance}, Eqs. 1 and 2, element by element."""
    found: dict[tuple, dict[str, list[float]]] = {}
    for module in adapter.modules:
        for name, tensor in slow_tensors(adapter, module, on).items():
            norm = norms[f"{module}.lora_B" if name == "b" else module]
            scores = [score for row in slow_scores(tensor, norm) for score in row]
            found.setdefault(layer_of(module, name, layer), {}).setdefault(module, []).extend(
                scores
            )
    if mean == "modules":
        means = {k: [sum(s) / len(s) for s in own.values()] for k, own in found.items()}
    else:
        means = {k: [score for s in own.values() for score in s] for k, own in found.items()}
    return {key: sum(values) / len(values) for key, values in means.items()}


def layer_of(module: str, name: str, layer: str) -> tuple:
    block = module[: module.index(".", module.index("layers.") + len("layers."))]
    return {"block": (block,), "module": (module,), "factor": (module, name)}[layer]


def slow_sparsities(importances: list[float], sparsity, sign, shift_range, bounds) -> list[float]:
    """Eqs. 3, 4 and 5."""
    low, high = min(importances), max(importances)
    normal = [(i - low) / (high - low) if high > low else 0.0 for i in importances]
    mean = sum(normal) / len(normal)
    raw = [sparsity + sign * shift_range * (n - mean) for n in normal]

    def clipped(offset: float) -> list[float]:
        return [min(max(s + offset, 0.0), 1.0) for s in raw]

    if bounds == "clip":
        return clipped(0.0)
    below, above = -5.0, 5.0
    for _ in range(100):
        middle = (below + above) / 2
        enough = sum(clipped(middle)) / len(raw) >= sparsity
        below, above = (below, middle) if enough else (middle, above)
    return clipped(above)


def slow_prune(tensors: list, norms: list, sparsity, group, rescale) -> list[torch.Tensor]:
    """The lowest floor(n S) of every group of a layer's tensors to 0, the first of equals first."""
    scores = [slow_scores(*pair) for pair in zip(tensors, norms, strict=True)]
    places = [
        (t, i, j)
        for t, tensor in enumerate(tensors)
        for i in range(len(tensor))
        for j in range(len(tensor[0]))
    ]
    depth = {"row": 2, "matrix": 1, "layer": 0}[group]  # of a place, common to its group
    pruned = [torch.tensor(tensor, dtype=torch.float64) for tensor in tensors]
    for _, own in groupby(places, key=lambda place: place[:depth]):
        own = list(own)
        order = sorted(own, key=lambda place: (scores[place[0]][place[1]][place[2]], place))
        for t, i, j in order[: math.floor(len(own) * sparsity)]:
            pruned[t][i, j] = 0.0
    return [one / (1 - sparsity) if rescale and sparsity < 1 else one for one in pruned]


def slow_layers(adapters: dict, norms: dict, reading: dict) -> dict[str, dict[tuple, float]]:
    """{adapter: {layer: sparsity}}, Eqs. 1-5."""
    own = {key: reading[key] for key in ("on", "layer", "mean")}
    rule = {key: reading[key] for key in ("sparsity", "sign", "shift_range", "bounds")}
    found = {name: slow_importances(adapters[name], norms[name], **own) for name in adapters}
    pooled = iter(slow_sparsities([i for own in found.values() for i in own.values()], **rule))
    layers = {}
    for name, importances in found.items():
        within = slow_sparsities(list(importances.values()), **rule)
        across = [next(pooled) for _ in importances]
        shares = across if reading["normalized"] == "across" else within
        layers[name] = dict(zip(importances, shares, strict=True))
    return layers


def slow_merge(adapters: dict, norms: dict, weights: dict, reading: dict, layers: dict) -> dict:
    """{module: {"a", "b"} or {"delta"}}: everything pruned at its layer's sparsity, then summed."""
    merged: dict[str, dict[str, torch.Tensor]] = {}
    for name, adapter in adapters.items():
        kept = slow_kept(adapter, norms[name], reading, layers[name])
        for module in adapter.modules:
            share = weights[name] * adapter.factors[module].scaling
            signed = math.copysign(abs(share) ** 0.5, share)
            factor = {"a": signed, "b": abs(share) ** 0.5, "delta": weights[name]}
            place = merged.setdefault(module, {})
            for part, tensor in kept[module].items():
                place[part] = place.get(part, 0) + factor[part] * tensor
    return merged


def slow_kept(adapter, norms, reading, sparsities) -> dict[str, dict[str, torch.Tensor]]:
    """{module: its tensors, pruned}; B as it is where A alone is."""
    whole = reading["on"] == "A"
    kept = {m: {"b": adapter.factors[m].b.double()} if whole else {} for m in adapter.modules}
    layers: dict[tuple, list[tuple]] = {}
    for module in adapter.modules:
        for name, tensor in slow_tensors(adapter, module, reading["on"]).items():
            norm = norms[f"{module}.lora_B" if name == "b" else module]
            layer = layer_of(module, name, reading["layer"])
            layers.setdefault(layer, []).append((module, name, tensor, norm))
    for layer, own in layers.items():
        modules, names, tensors, inputs = zip(*own, strict=True)
        rule = sparsities[layer], reading["group"], reading["rescale"]
        pruned = slow_prune(tensors, inputs, *rule)
        for module, name, tensor in zip(modules, names, pruned, strict=True):
            kept[module][name] = tensor
    return kept
