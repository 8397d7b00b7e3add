r"""TIP on adapters, Eqs. 1 to 5: scores, layers' importances and sparsities, pruning by them.

Everything that the text of TIP leaves open is a field of `Reading`, whose defaults are this
project's reading. Norms are keyed as `calibrate_adapter` returns them: x under the module's name,
A x under "<module>.lora_B".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from tipmini.errors import TipminiError, input_norm, require
from tipmini.masks import count_mask, prune_rows, row_mask
from tipmini.methods.merge import (
    Norms,
    Part,
    Parts,
    Transform,
    Update,
    block_of,
    in_blocks,
    merge_tensors,
)
from tipmini.methods.table import TARGETS
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors, at_least_float32
from tipmini.papers.dare import named_generator
from tipmini.papers.tip import (
    Reading,
    layer_importance,
    layer_sparsity,
    prune_scored,
    wanda_score,
    whole_pieces,
)

Scores = dict[str, dict[str, Tensor]]  # module -> {"a": (r, k), "b": (d, r)}, or {"delta": (d, k)}
Place = tuple[str, str]  # (module, "a", "b" or "delta")

ROWS = 512  # about so many at a time; the last bits of an importance depend on it


def merge_tip(
    parts: Parts,
    *,
    sparsity: float = 0.7,
    on: str = "factors",
    layer: str = "block",
    mean: str = "elements",
    normalized: str = "within",
    sign: int = 1,
    shift_range: float = 1.0,
    bounds: str = "clip",
    group: str = "row",
    rescale: bool = False,
    score: str = "wanda",
    assignment: str = "layer",
    summation: str = "linear",
    rank: int | None = None,
) -> Update:
    """The least important elements pruned at each layer's own sparsity, then summed (TIP).

    Options as in `tipmini.papers.tip.Reading`; summation as in `merge_tensors`.
    """
    reading = Reading(
        **{"sparsity": sparsity, "on": on, "layer": layer, "mean": mean, "normalized": normalized},
        **{"sign": sign, "shift_range": shift_range, "bounds": bounds, "group": group},
        **{"rescale": rescale, "score": score, "assignment": assignment},
    )
    space = "delta" if on == "delta" else "factors"
    change = tip_change(parts, reading)
    return merge_tensors(parts, change, on=space, summation=summation, rank=rank)


def merge_wanda(
    parts: Parts,
    *,
    sparsity: float = 0.7,
    group: str = "row",
    on: str = "factors",
    rescale: bool = False,
    summation: str = "linear",
    rank: int | None = None,
) -> Update:
    """The elements with the lowest activation scores pruned at one sparsity, then summed (Wanda).

    TIP without its dynamic sparsity; options as in `merge_tip`.
    """
    options = {"group": group, "on": on, "rescale": rescale, "summation": summation, "rank": rank}
    return merge_tip(parts, sparsity=sparsity, shift_range=0.0, **options)


def tip_change(parts: Parts, reading: Reading) -> Transform:
    """What TIP does to each tensor of a merge: a `Transform` for `merge_tensors`."""
    if any(part.norms is None for part in parts):
        raise TipminiError("norms are needed, one dict for each adapter, from calibrate_adapter")
    adapters = [(part.adapter, part.norms) for part in parts]
    shares, counts = {}, {}
    for part, sparsities in zip(parts, sparsities_of(adapters, reading), strict=True):
        if reading.assignment == "shuffled":
            generator = named_generator(part.seed, part.name)
            sparsities = sparsities[torch.randperm(len(sparsities), generator=generator)]
        layers = _layers(part.adapter, reading).values()
        for places, sparsity in zip(layers, sparsities.tolist(), strict=True):
            shares |= {(part.name, *place): sparsity for place in places}
            if reading.group == "layer":
                found = _pruned_of_layer(part, places, sparsity, reading.score)
                counts |= {(part.name, *place): count for place, count in found.items()}

    def change(part: Part, full_name: str, tensor: Tensor) -> Tensor:
        module, _, factor = full_name.partition(".lora_")
        name = factor.lower() or "delta"
        if (part.name, module, name) not in shares:
            return tensor  # B, where A alone is pruned
        sparsity = shares[part.name, module, name]
        if reading.group == "row" and reading.score == "wanda":
            norm = _norm_of(part.norms, module, name, tensor)
            # A delta is made for this alone, unlike a factor.
            pruned = prune_scored(tensor, norm, sparsity, out=tensor if name == "delta" else None)
        else:
            score = _score(part, (module, name), tensor, reading.score)
            if reading.group == "layer":
                keep = count_mask(score.reshape(1, -1), counts[part.name, module, name])
                pruned = torch.where(keep.view_as(tensor), tensor, 0)
            else:
                shape = (1, -1) if reading.group == "matrix" else tensor.shape
                pruned = prune_rows(tensor.reshape(shape), score.reshape(shape), sparsity)
                pruned = pruned.view_as(tensor)
        return pruned / (1 - sparsity) if reading.rescale and sparsity < 1 else pruned

    return change


def _score(part: Part, place: Place, tensor: Tensor, by: str) -> Tensor:
    """What a tensor's elements are ranked by, in its shape: Eq. 1, their size, or a draw."""
    module, name = place
    if by == "random":
        full_name = module if name == "delta" else f"{module}.lora_{name.upper()}"
        generator = named_generator(part.seed, part.name, full_name)
        return torch.rand(tensor.shape, generator=generator).to(tensor.device)
    if by == "magnitude":
        return tensor.abs()
    return wanda_score(tensor, _norm_of(part.norms, module, name, tensor))


def _norm_of(norms: Norms, module: str, name: str, tensor: Tensor) -> Tensor:
    """The norms of what a (d, k) tensor reads, (k,), on its device."""
    return input_norm(norms, module, name, tensor.shape[1]).to(tensor.device)


@torch.no_grad()
def _pruned_of_layer(
    part: Part, places: Sequence[Place], sparsity: float, by: str
) -> dict[Place, int]:
    r"""How many elements go of each place where all n of a layer are ranked together.

    They are $\lfloor n S_l \rfloor$ in all; among equal scores those of the place and index that
    come first. So the lowest of each place go, and their number says which.
    """
    tensors = [tip_tensor(part.adapter.factors[module], name) for module, name in places]
    pairs = zip(places, tensors, strict=True)
    scores = [_score(part, place, tensor, by).flatten() for place, tensor in pairs]
    keep = row_mask(torch.cat(scores)[None], sparsity)[0].split([len(own) for own in scores])
    return {place: int((~own).sum()) for place, own in zip(places, keep, strict=True)}


def tip_prune(
    adapter: LoraAdapter, norms: Norms, sparsity: float = 0.7, **options: object
) -> LoraAdapter:
    """The adapter with its factors pruned at their layers' sparsities; shapes and scaling stay.

    Arguments as in `tip_sparsities`, but for on="delta", which leaves no factors (see `merge`).
    """
    reading = _without_draws(Reading(sparsity=sparsity, **options))
    if reading.on == "delta":
        raise TipminiError("a pruned delta has no factors; use merge with on='delta'")
    part = Part("", adapter, norms=norms)
    change = tip_change([part], reading)

    def pruned(module: str, pair: LoraFactors) -> LoraFactors:  # as stored: the dtype stays
        a, b = change(part, f"{module}.lora_A", pair.a), change(part, f"{module}.lora_B", pair.b)
        return replace(pair, a=a, b=b)

    return adapter.map(pruned)


# Layers: their names, importances and sparsities --------------------------------------------------
def tip_layers(adapter: LoraAdapter) -> dict[str, list[str]]:
    """{block: its modules}, e.g. "model.layers.0", in the order of the model.

    A module outside the numbered blocks, such as lm_head, is a layer by itself.
    """
    return in_blocks(adapter.modules)


def _layers(adapter: LoraAdapter, reading: Reading) -> dict[str, list[Place]]:
    """{layer: its places}, in the order of the model; those of one module follow each other."""
    layers: dict[str, list[Place]] = {}
    for module in adapter.modules:
        for name in TARGETS[reading.on]:
            names = {"block": block_of(module), "module": module, "factor": f"{module} ({name})"}
            layers.setdefault(names[reading.layer], []).append((module, name))
    return layers


def layer_names(adapter: LoraAdapter, reading: Reading) -> list[str]:
    """What the layers are called, in `tip_importance`'s order."""
    return list(_layers(adapter, reading))


def tip_tensor(factors: LoraFactors, name: str) -> Tensor:
    """What is scored and pruned of a module: its "a", "b" or "delta", in float32 at least."""
    return factors.delta() if name == "delta" else at_least_float32(getattr(factors, name))


def tip_scores(adapter: LoraAdapter, norms: Norms, on: str = "factors") -> Scores:
    """TIP Eq. 1 for every module: {module: {"a": (r, k) scores, "b": (d, r) scores}}.

    norms has (k,) under the module's name and (r,) under "<module>.lora_B" (`calibrate_adapter`);
    on="A" leaves B out, on="delta" scores {"delta": (d, k)}, and both need no norms of B.
    Raises TipminiError when a norm is missing or has another size.
    """
    require("on", on, TARGETS)
    scores: Scores = {module: {} for module in adapter.modules}
    for module, own in scores.items():
        for name in TARGETS[on]:
            tensor = tip_tensor(adapter.factors[module], name)
            own[name] = wanda_score(tensor, _norm_of(norms, module, name, tensor))
    return scores


@torch.no_grad()
def tip_importance(adapter: LoraAdapter, norms: Norms, **options: object) -> Tensor:
    """TIP Eqs. 1 and 2: the importance of every layer, (L,) float64, in the model's order.

    options are `Reading`'s on, layer and mean. Tensor after tensor, so that no more than one
    tensor's scores are held.
    """
    reading, delta = Reading(**options), torch.empty(0)

    def scores(place: Place) -> Iterator[Tensor]:
        """In chunks of rows. Deltas share one memory, and so do a tensor's chunks."""
        nonlocal delta
        module, name = place
        factors = adapter.factors[module]
        if name == "delta":
            dtype = at_least_float32(factors.b).dtype
            fits = delta.shape == factors.shape and delta.dtype == dtype
            tensor = delta = factors.delta(out=delta if fits else None)
        else:
            tensor = tip_tensor(factors, name)
        norm = _norm_of(norms, module, name, tensor)
        chunks = tensor.split(whole_pieces(tensor.shape[1], ROWS))
        room = torch.empty_like(chunks[0], dtype=torch.result_type(tensor, norm))
        return (wanda_score(rows, norm, out=room[: len(rows)]) for rows in chunks)

    def mean(places: Iterable[Place]) -> float:
        return layer_importance(chunk for place in places for chunk in scores(place))

    found = []
    for places in _layers(adapter, reading).values():
        if reading.mean == "elements":
            found.append(mean(places))
        else:
            own = [mean(group) for _, group in groupby(places, key=lambda place: place[0])]
            found.append(sum(own) / len(own))
    return torch.tensor(found, dtype=torch.float64)


def tip_sparsities(
    adapter: LoraAdapter, norms: Norms, sparsity: float = 0.7, **options: object
) -> Tensor:
    """TIP Eqs. 1-5: the sparsity of every layer, (L,) float64, in `tip_importance`'s order.

    sparsity is S_org; options are `Reading`'s.
    """
    reading = _without_draws(Reading(sparsity=sparsity, **options))
    return sparsities_of([(adapter, norms)], reading)[0]


def sparsities_of(adapters: Sequence[tuple[LoraAdapter, Norms]], reading: Reading) -> list[Tensor]:
    """`tip_sparsities` of several adapters, which matters where they are normalised across."""
    if not reading.shift_range:  # the importances would be multiplied by 0
        counts = [len(_layers(adapter, reading)) for adapter, _ in adapters]
        return [torch.full((n,), float(reading.sparsity), dtype=torch.float64) for n in counts]
    own = {"on": reading.on, "layer": reading.layer, "mean": reading.mean}
    found = [tip_importance(adapter, norms, **own) for adapter, norms in adapters]
    groups = [torch.cat(found)] if reading.normalized == "across" else found
    bound = {"sign": reading.sign, "shift_range": reading.shift_range, "bounds": reading.bounds}
    shares = torch.cat([layer_sparsity(group, reading.sparsity, **bound) for group in groups])
    layers = shares.split([len(importance) for importance in found])
    if reading.assignment == "mean":
        return [sparsities.mean().expand(len(sparsities)) for sparsities in layers]
    return list(layers)


def _without_draws(reading: Reading) -> Reading:
    """Refuses what a merge's seed decides."""
    if reading.assignment == "shuffled" or reading.score == "random":
        raise TipminiError("assignment='shuffled' and score='random' need a seed; use merge")
    return reading
