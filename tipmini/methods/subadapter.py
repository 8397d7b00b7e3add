"""A sub-adapter of an elastic adapter, as others load it: a PEFT folder, or a smaller base.

Of mode A stock PEFT needs `rank_pattern` and `alpha_pattern` alone, which `LoraAdapter.save` writes
of whatever ranks and scalings there are. Of mode B the channels that stay are the first ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tipmini.errors import TipminiError, require
from tipmini.methods.groups import CHANNELS, Family, Member
from tipmini.methods.removal import TensorEdit, changed, save_pruned
from tipmini.models.adapter import LoraAdapter
from tipmini.models.base_folder import BaseFolder
from tipmini.models.factors import LoraFactors
from tipmini.papers.elastic import on_grid, rank_slice, sparse_delta

MERGES = ("dense", "sparse", "grid")
Grid = tuple[Tensor, Tensor]  # scale and zero point of every group, (d, g) each


def subadapter(adapter: LoraAdapter, ranks: Mapping[str, int]) -> LoraAdapter:
    """The adapter with its modules cut to these ranks; scalings stay those of the whole (Eq. 3).

    Raises TipminiError for a module that the adapter doesn't have, or a rank above its own.
    """
    for module in ranks.keys() - adapter.factors.keys():
        raise TipminiError(f"the adapter has no module {module!r}, so no rank of it")

    def cut(module: str, pair: LoraFactors) -> LoraFactors:
        a, b = rank_slice(pair.a, pair.b, ranks.get(module, pair.rank))
        return LoraFactors(a.contiguous(), b.contiguous(), pair.scaling)

    return adapter.map(cut)


def merged(
    weight: Tensor, pair: LoraFactors, how: str = "dense", grid: Grid | None = None
) -> Tensor:
    """The weight with an adapter in it, (d, k).

    how: "dense" adds s B A, and fills the weight's zeros; "sparse" (SparsePEFT, Eq. 5) keeps every
    zero; "grid" (QA-SparsePEFT, Eq. 6) keeps every zero and rounds the sum to `grid`, the weight's
    own. Raises TipminiError for another word, or where there is no grid.
    """
    require("how", how, MERGES)
    if how == "dense":
        return weight + pair.delta().to(weight.dtype)
    total = weight + sparse_delta(pair.a, pair.b, pair.scaling, weight != 0)
    if how == "sparse":
        return total
    if grid is None:
        raise TipminiError("merged: how='grid' needs the scales and zero points of the weight")
    return on_grid(total, *grid)


# A smaller base -----------------------------------------------------------------------------------
def ordered(
    base: BaseFolder, families: Sequence[Family], orders: Mapping[str, Tensor]
) -> BaseFolder:
    """The base with the channels of its MLPs in other orders, which computes the same.

    orders: {family: (count,) indexes, the channel that comes first at first}.
    """
    changes = {}
    for family, (module, dim) in _members(families):
        if family.name in orders:
            pick = partial(torch.index_select, dim=dim, index=orders[family.name])
            changes[f"{module}.weight"] = TensorEdit(pick, base.locate(module).shape)
    return changed(base, changes)


def save_narrow(
    base: BaseFolder,
    families: Sequence[Family],
    widths: Mapping[str, int],
    out: Path,
    *,
    update: Mapping[str, LoraFactors] | None = None,
) -> None:
    """Write a checkpoint with the first channels of every MLP alone, an update merged into it.

    widths: {family: channels that stay}. A LLaMA has one width for all layers: it is that of the
    widest, and a narrower layer's further channels are kept but read by nothing, since their
    columns of `down_proj` are 0. update: {module: factors} of the base's own shapes. Raises as
    `removal.save_pruned`.
    """
    masks = {family.name: torch.ones(family.count, dtype=torch.bool) for family in families}
    widest = max(widths.values())
    update, changes = dict(update or {}), {}
    for family, (module, dim) in _members(families):
        own = widths[family.name]
        masks[family.name] = torch.arange(family.count) < widest
        if dim == 1:  # down_proj reads the channels
            silent = partial(_silent, width=own)
            changes[f"{module}.weight"] = TensorEdit(silent, base.locate(module).shape)
            if module in update:
                update[module] = replace(update[module], a=silent(update[module].a))
    save_pruned(changed(base, changes), families, masks, out, update=update)


def _members(families: Sequence[Family]) -> Iterator[tuple[Family, Member]]:
    return ((f, member) for f in families if f.kind == CHANNELS for member in f.members)


def _silent(tensor: Tensor, width: int) -> Tensor:
    """A copy with 0 in the columns from `width` on."""
    tensor = tensor.clone()
    tensor[:, width:] = 0
    return tensor
