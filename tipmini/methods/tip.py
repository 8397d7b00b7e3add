r"""TIP on adapters, Eqs. 1 to 5: scores, layers' importances and sparsities, pruning by them.

Everything that the paper leaves open is a field of `Reading`, whose defaults are the paper's own
words. Norms are keyed as `calibrate_adapter` returns them: x under the module's name, A x under
"<module>.lora_B".
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from tipmini.errors import TipminiError, require
from tipmini.masks import prune_rows
from tipmini.methods.sums import Part, Transform
from tipmini.methods.table import input_norm
from tipmini.models.adapter import LoraAdapter, LoraFactors, at_least_float32
from tipmini.options import TARGETS
from tipmini.papers.dare import named_generator
from tipmini.papers.tip import Reading, layer_importance, layer_sparsity, whole_pieces
from tipmini.papers.wanda import prune_scored, wanda_score

Norms = Mapping[str, Tensor]
Scores = dict[str, dict[str, Tensor]]  # module -> {"a": (r, k), "b": (d, r)}, or {"delta": (d, k)}

FactorName = tuple[str, str]  # (module, "a", "b" or "delta")
Shares = dict[FactorName, float]  # place -> sparsity

ROWS = 512  # about so many at a time; the last bits of an importance depend on it

BLOCK = re.compile(r".*?\.\d+(?=\.)")  # up to the first number: model.layers.0


def tip_layers(adapter: LoraAdapter) -> dict[str, list[str]]:
    """{block: its modules}, e.g. "model.layers.0", in the order of the model.

    A module outside the numbered blocks, such as lm_head, is a layer by itself.
    """
    layers: dict[str, list[str]] = {}
    for module in adapter.modules:
        layers.setdefault(block_of(module), []).append(module)
    return layers


def block_of(module: str) -> str:
    """The transformer block of a module, which itself is one where it lies outside of all."""
    block = BLOCK.match(module)
    return block[0] if block else module


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
    return {
        module: {name: _score(adapter, norms, module, name) for name in TARGETS[on]}
        for module in adapter.modules
    }


def _score(adapter: LoraAdapter, norms: Norms, module: str, name: str) -> Tensor:
    tensor = tip_tensor(adapter.factors[module], name)
    return wanda_score(tensor, input_norm(norms, module, name, tensor.shape[1]))


class _Rows:
    """`_score` in chunks of rows, without gradients. Deltas share one memory, and so do chunks."""

    def __init__(self, adapter: LoraAdapter, norms: Norms):
        self.adapter, self.norms = adapter, norms
        self.delta = torch.empty(0)

    def __call__(self, module: str, name: str) -> Iterator[Tensor]:
        tensor = self._tensor(self.adapter.factors[module], name).detach()
        norm = input_norm(self.norms, module, name, tensor.shape[1])
        chunks = tensor.split(whole_pieces(tensor.shape[1], ROWS))
        room = torch.empty_like(chunks[0], dtype=torch.result_type(tensor, norm))
        return (wanda_score(rows, norm.detach(), out=room[: len(rows)]) for rows in chunks)

    @torch.no_grad()
    def _tensor(self, factors: LoraFactors, name: str) -> Tensor:
        if name != "delta":
            return tip_tensor(factors, name)
        fits = (
            self.delta.shape == factors.shape
            and self.delta.dtype == at_least_float32(factors.b).dtype
        )
        self.delta = factors.delta(out=self.delta if fits else None)
        return self.delta


def _layers(adapter: LoraAdapter, reading: Reading) -> list[list[FactorName]]:
    """The places of every layer; those of one module follow each other."""
    names = TARGETS[reading.on]
    if reading.layer == "factor":
        return [[(module, name)] for module in adapter.modules for name in names]
    blocks = reading.layer == "block"
    groups = tip_layers(adapter).values() if blocks else [[module] for module in adapter.modules]
    return [[(module, name) for module in group for name in names] for group in groups]


def layer_names(adapter: LoraAdapter, reading: Reading) -> list[str]:
    """What the layers are called, in `tip_importance`'s order."""
    if reading.layer == "block":
        return list(tip_layers(adapter))
    groups = _layers(adapter, reading)
    if reading.layer == "module":
        return [places[0][0] for places in groups]
    return [f"{module} ({name})" for ((module, name),) in groups]


def tip_importance(adapter: LoraAdapter, norms: Norms, **options: object) -> Tensor:
    """TIP Eqs. 1 and 2: the importance of every layer, (L,) float64, in the model's order.

    options are `Reading`'s on, layer and mean. Tensor after tensor, so that no more than one
    tensor's scores are held.
    """
    reading = Reading(**options)
    rows = _Rows(adapter, norms)
    found = [_importance(layer, rows, reading) for layer in _layers(adapter, reading)]
    return torch.tensor(found, dtype=torch.float64)


def _importance(layer: list[FactorName], rows: _Rows, reading: Reading) -> float:
    def mean(places: Iterable[FactorName]) -> float:
        return layer_importance(chunk for place in places for chunk in rows(*place))

    if reading.mean == "elements":
        return mean(layer)
    own = [mean(places) for _, places in groupby(layer, key=lambda place: place[0])]
    return sum(own) / len(own)


def tip_sparsities(
    adapter: LoraAdapter, norms: Norms, sparsity: float = 0.7, **options: object
) -> Tensor:
    """TIP Eqs. 1-5: the sparsity of every layer, (L,) float64, in `tip_importance`'s order.

    sparsity is S_org; options are `Reading`'s.
    """
    reading = without_draws(Reading(sparsity=sparsity, **options))
    return sparsities_of([(adapter, norms)], reading)[0]


def sparsities_of(adapters: Sequence[tuple[LoraAdapter, Norms]], reading: Reading) -> list[Tensor]:
    """`tip_sparsities` of several adapters, which matters where they are normalised across."""
    if not reading.shift_range:  # the importances would be multiplied by 0
        counts = [len(_layers(adapter, reading)) for adapter, _ in adapters]
        return [torch.full((n,), float(reading.sparsity), dtype=torch.float64) for n in counts]
    own = {"on": reading.on, "layer": reading.layer, "mean": reading.mean}
    found = [tip_importance(adapter, norms, **own) for adapter, norms in adapters]
    sizes = [len(importance) for importance in found]
    groups = [torch.cat(found)] if reading.normalized == "across" else found
    bound = {"sign": reading.sign, "shift_range": reading.shift_range, "bounds": reading.bounds}
    shares = [layer_sparsity(group, reading.sparsity, **bound) for group in groups]
    own = torch.cat(shares).split(sizes)
    if reading.assignment == "mean":
        return [layers.mean().expand(len(layers)) for layers in own]
    return list(own)


def without_draws(reading: Reading) -> Reading:
    """Refuses what a merge's seed decides."""
    if reading.assignment == "shuffled" or reading.score == "random":
        raise TipminiError("assignment='shuffled' and score='random' need a seed; use merge")
    return reading


def tensor_sparsities(adapter: LoraAdapter, layers: Tensor, reading: Reading) -> Shares:
    """{place: its layer's sparsity}."""
    pairs = zip(_layers(adapter, reading), layers.tolist(), strict=True)
    return {place: share for layer, share in pairs for place in layer}


# TIP's pruning ------------------------------------------------------------------------------------
Draw = Callable[[], torch.Generator]  # what a random score is drawn from


def prune(
    tensor: Tensor,
    norm: Tensor,
    sparsity: float,
    reading: Reading,
    draw: Draw,
    out: Tensor | None = None,
) -> Tensor:
    """One tensor pruned by its scores, within rows or the whole matrix; (d, k), its dtype.

    out: memory that the result may be written into, e.g. the tensor's own.
    """
    if reading.group == "row" and reading.score == "wanda":
        pruned = prune_scored(tensor, norm, sparsity, out=out)
    else:
        score = _deciding(tensor, norm, reading.score, draw)
        shape = (1, -1) if reading.group == "matrix" else tensor.shape
        pruned = prune_rows(tensor.reshape(shape), score.reshape(shape), sparsity).view_as(tensor)
    return pruned / (1 - sparsity) if reading.rescale and sparsity < 1 else pruned


def _deciding(tensor: Tensor, norm: Tensor, score: str, draw: Draw) -> Tensor:
    """(d, k): by what the elements of a tensor are ranked; the lowest go."""
    if score == "random":
        return torch.rand(tensor.shape, generator=draw()).to(tensor.device)
    return tensor.abs() if score == "magnitude" else wanda_score(tensor, norm)


def tip_prune(
    adapter: LoraAdapter, norms: Norms, sparsity: float = 0.7, **options: object
) -> LoraAdapter:
    """The adapter with its factors pruned at their layers' sparsities; shapes and scaling stay.

    Arguments as in `tip_sparsities`, but for on="delta", which leaves no factors (see `merge`).
    """
    reading = without_draws(Reading(sparsity=sparsity, **options))
    if reading.on == "delta":
        raise TipminiError("a pruned delta has no factors; use merge with on='delta'")
    layers = sparsities_of([(adapter, norms)], reading)[0]
    shares = tensor_sparsities(adapter, layers, reading)

    def change(module: str, pair: LoraFactors) -> LoraFactors:
        pruned = {  # as stored: pruning keeps the dtype
            name: _pruned(norms, (module, name), getattr(pair, name), shares, reading)
            for name in TARGETS[reading.on]
        }
        return replace(pair, **pruned)

    return adapter.map(change)


def _pruned(
    norms: Norms,
    place: FactorName,
    tensor: Tensor,
    shares: Shares,
    reading: Reading,
    draw: Draw = torch.Generator,
    out: Tensor | None = None,
) -> Tensor:
    norm = input_norm(norms, *place, tensor.shape[1])
    return prune(tensor, norm, shares[place], reading, draw, out)


def tip_change(parts: Sequence[Part], reading: Reading) -> Transform:
    """What TIP does to each tensor of a merge: a `Transform` for `merge_tensors`."""
    adapters = [(part.adapter, _norms(part)) for part in parts]
    shares = {
        part.name: tensor_sparsities(part.adapter, _assigned(part, layers, reading), reading)
        for part, layers in zip(parts, sparsities_of(adapters, reading), strict=True)
    }

    def change(part: Part, full_name: str, tensor: Tensor) -> Tensor:
        module, _, factor = full_name.partition(".lora_")
        name = factor.lower() or "delta"
        if (module, name) not in shares[part.name]:
            return tensor  # B, where A alone is pruned
        draw = partial(named_generator, part.seed, part.name, full_name)
        out = tensor if name == "delta" else None  # made for this alone, unlike a factor
        return _pruned(part.norms, (module, name), tensor, shares[part.name], reading, draw, out)

    return change


def _assigned(part: Part, layers: Tensor, reading: Reading) -> Tensor:
    """The sparsities as they are, or in an order that the seed and the adapter's name decide."""
    if reading.assignment != "shuffled":
        return layers
    return layers[torch.randperm(len(layers), generator=named_generator(part.seed, part.name))]


def _norms(part: Part) -> Norms:
    if part.norms is None:
        raise TipminiError("norms are needed, one dict for each adapter, from calibrate_adapter")
    return part.norms
