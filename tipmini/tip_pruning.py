"""TIP's pruning: the tensors of an adapter at their layers' sparsities, and in a merge."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tipmini.adapter import LoraAdapter, LoraFactors
from tipmini.dare import named_generator
from tipmini.errors import TipminiError
from tipmini.fitting import input_norm
from tipmini.options import TARGETS
from tipmini.reading import Reading
from tipmini.summation import Change, Part
from tipmini.tip import (
    Norms,
    Place,
    Shares,
    sparsities_of,
    tensor_sparsities,
    without_draws,
)
from tipmini.wanda import prune_rows, prune_scored, wanda_score

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
    """(d, k): by what the elements of a tensor are told apart; the lowest go."""
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
    place: Place,
    tensor: Tensor,
    shares: Shares,
    reading: Reading,
    draw: Draw = torch.Generator,
    out: Tensor | None = None,
) -> Tensor:
    norm = input_norm(norms, *place, tensor.shape[1])
    return prune(tensor, norm, shares[place], reading, draw, out)


def tip_change(parts: Sequence[Part], reading: Reading) -> Change:
    """What TIP does to each tensor of a merge: a `Change` for `merge_tensors`."""
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
