"""Merges that change the adapters' tensors one element at a time, then add or elect."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tipmini.masks import prune_rows
from tipmini.methods.sums import Combine, Part, Parts, Transform, Update, merge_tensors
from tipmini.methods.tip import tip_change, tip_tensor
from tipmini.options import TARGETS
from tipmini.papers.dare import dare, named_generator
from tipmini.papers.ties import elect, electing, majority, trim, trim_threshold
from tipmini.papers.tip import Reading


def merge_dare(
    parts: Parts,
    *,
    drop_rate: float = 0.7,
    rescale: str | None = "expected",
    on: str = "factors",
    summation: str = "linear",
    rank: int | None = None,
) -> Update:
    """Random elements dropped, the others rescaled, then summed (DARE).

    By default PEFT's dare_linear with density 1 - drop_rate; on="delta" is the authors'. Options
    as in `dare` and `merge_tensors`.
    """
    return merge_tensors(
        parts, _dropping(drop_rate, rescale), on=on, summation=summation, rank=rank
    )


def merge_magnitude(
    parts: Parts,
    *,
    sparsity: float = 0.7,
    group: str = "matrix",
    on: str = "factors",
    summation: str = "linear",
    rank: int | None = None,
) -> Update:
    """The smallest elements pruned, then summed (PEFT's magnitude_prune).

    group: whose smallest go, the whole tensor's or each row's. floor(sparsity n) of n elements go;
    PEFT keeps floor(density n), which is one less where density n is not whole.
    """

    def change(part: Part, name: str, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(1, -1) if group == "matrix" else tensor
        return prune_rows(flat, flat.abs(), sparsity).view_as(tensor)

    return merge_tensors(parts, change, on=on, summation=summation, rank=rank)


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
    options = {"group": group, "on": on, "rescale": rescale, "summation": summation}
    return merge_tip(parts, sparsity=sparsity, shift_range=0.0, rank=rank, **options)


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
    space = "factors" if on == "A" else on
    reading = Reading(
        **{"sparsity": sparsity, "on": on, "layer": layer, "mean": mean, "normalized": normalized},
        **{"sign": sign, "shift_range": shift_range, "bounds": bounds, "group": group},
        **{"rescale": rescale, "score": score, "assignment": assignment},
    )
    return merge_tensors(
        parts, tip_change(parts, reading), on=space, summation=summation, rank=rank
    )


def merge_ties(
    parts: Parts,
    *,
    density: float = 0.3,
    variant: str = "peft",
    on: str = "factors",
    rank: int | None = None,
) -> Update:
    """Trimmed by size, one sign elected a place, those that agree averaged (TIES).

    density is the share that stays; variant is "peft", "authors" or "mergekit" (see `ties`), the
    last with on="delta" alone: the weights it divides by would take the scaling away from factors.
    """
    change = _trimming(parts, density, on) if variant == "authors" else _trimming_each(density)
    combine = _electing(variant, parts, change, on)
    return merge_tensors(parts, change, on=on, rank=rank, combine=combine)


def merge_dare_ties(
    parts: Parts,
    *,
    drop_rate: float = 0.7,
    rescale: str | None = "expected",
    variant: str = "peft",
    on: str = "factors",
    rank: int | None = None,
) -> Update:
    """Random elements dropped instead of small ones trimmed, then elected as TIES does (DARE-TIES).

    Options as in `merge_dare` and `merge_ties`.
    """
    change = _dropping(drop_rate, rescale)
    combine = _electing(variant, parts, change, on)
    return merge_tensors(parts, change, on=on, rank=rank, combine=combine)


def _dropping(drop_rate: float, rescale: str | None) -> Transform:
    """A `Transform` that drops by the seed, the adapter's name and the tensor's."""

    def change(part: Part, name: str, tensor: Tensor) -> Tensor:
        generator = named_generator(part.seed, part.name, name)
        return dare(tensor, drop_rate, generator=generator, rescale=rescale)

    return change


def _trimming_each(density: float) -> Transform:
    return lambda part, name, tensor: trim(tensor, density)


def _trimming(parts: Parts, density: float, on: str) -> Transform:
    """The authors' `Transform`: one threshold over all tensors of an adapter, held all at once."""
    bars = {}
    for part in parts:
        pairs = part.adapter.factors.values()
        tensors = [tip_tensor(pair, name) for pair in pairs for name in TARGETS[on]]
        bars[part.name] = trim_threshold(tensors, density)
    return lambda part, name, tensor: tensor.masked_fill(tensor.abs() < bars[part.name], 0)


def _electing(variant: str, parts: Parts, change: Transform, on: str) -> Combine:
    return electing(variant, _majority(parts, change, on) if variant == "authors" else 1.0)


def _majority(parts: Parts, change: Transform, on: str) -> float:
    """The sign that most places of all tensors elect (the authors', for sums of 0)."""
    signs: list[Tensor] = []

    def note(tensors: Sequence[Tensor], _: Sequence[float]) -> Tensor:
        signs.append(elect(torch.stack(list(tensors)), zero=0.0).sum(dtype=torch.float64))
        return tensors[0]

    for _ in merge_tensors(parts, change, on=on, combine=note).values():
        pass  # each module is merged as it is read
    return majority(torch.stack(signs))
