"""Real removal: a smaller checkpoint that stock transformers loads, the adapter merged into it.

Tensors are read, changed and written one at a time, as `save_merged` does for any update; of the
adapter's factors the same rows of B and columns of A go, so that BA is made of what stays alone.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.methods.groups import CHANNELS, HEADS, Family
from tipmini.methods.merge import Lazy
from tipmini.methods.pruner import Masks
from tipmini.models.base_folder import BaseFolder, save_merged
from tipmini.models.factors import LoraFactors


class TensorEdit(NamedTuple):
    """What is done to one tensor of a file when it is read, and its shape afterwards."""

    apply: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


class ChangedFile(Lazy):
    """A safetensors file some of whose tensors are read changed; as `TensorFile`, entries too."""

    def __init__(self, file: Mapping[str, Tensor], changes: Mapping[str, TensorEdit]) -> None:
        def read(name: str) -> Tensor:
            return changes[name].apply(file[name]) if name in changes else file[name]

        super().__init__(file.entries, read)
        self.entries = dict(file.entries)
        for name in self.entries.keys() & changes.keys():
            entry, shape = self.entries[name], changes[name].shape
            width = entry.size // math.prod(entry.shape)
            self.entries[name] = replace(entry, shape=shape, size=width * math.prod(shape))


def changed(
    base: BaseFolder,
    changes: Mapping[str, TensorEdit],
    settings: Mapping[str, object] | None = None,
) -> BaseFolder:
    """The base as it would be with tensors changed and settings of its configuration replaced."""
    files = {name: ChangedFile(file, changes) for name, file in base.files.items()}
    return BaseFolder(base.folder, {**base.config, **(settings or {})}, files)


def save_pruned(
    base: BaseFolder,
    families: Sequence[Family],
    masks: Masks,
    out: Path,
    *,
    update: Mapping[str, LoraFactors] | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
    beside: Mapping[str, bytes] | None = None,
    progress: Callable = iter,
) -> None:
    """Write the base without the groups that the masks leave out, the update merged into it.

    update: {module: factors} of the whole model's shapes, as trained. read: what is done to the
    pruned modules' weights first, e.g. rounding to int8 where that is what was trained on. beside:
    further files of the folder. All is written, or nothing. Raises TipminiError when the layers
    keep different numbers of groups (a LLaMA has one shape for all), and as `save_merged` does.
    """
    settings = pruned_settings(base.config, families, masks)
    update, changes, small = update or {}, {}, {}
    for module, dim, mask in ((*m, masks[f.name]) for f in families for m in f.members):
        cut = partial(_keep, dim=dim, mask=mask)
        shape = list(base.locate(module).shape)
        shape[dim] = shape[dim] // len(mask) * int(mask.sum())
        changes[f"{module}.weight"] = TensorEdit(
            lambda weight, cut=cut: cut(read(weight) if read else weight), tuple(shape)
        )
        if dim == 0 and f"{module}.bias" in base.files:
            changes[f"{module}.bias"] = TensorEdit(cut, (shape[0],))
        if module in update:
            pair = update[module]
            rows = {"b": cut(pair.b)} if dim == 0 else {"a": cut(pair.a)}
            small[module] = replace(pair, **rows)
    for module in update.keys() - small.keys():
        raise TipminiError(f"{module} of the update is none that groups are pruned of")
    base = changed(base, changes, settings)
    files = {"config.json": (json.dumps(dict(base.config), indent=2) + "\n").encode()}
    save_merged(base, small, out, beside=files | dict(beside or {}), progress=progress)


def pruned_settings(
    config: Mapping[str, object], families: Sequence[Family], masks: Masks
) -> dict[str, int]:
    """What a pruned model's config.json says otherwise; raises as `save_pruned`."""
    groups, channels = (_kept(families, masks, kind) for kind in (HEADS, CHANNELS))
    heads = groups * next(family.queries for family in families if family.kind == HEADS)
    hidden = config["hidden_size"]
    if not heads or hidden % heads:
        raise TipminiError(
            f"{heads} heads of a hidden size of {hidden}: transformers wants a divisor of it; "
            "prune another share of the heads, or keep the masks"
        )
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": config.get("head_dim") or hidden // config["num_attention_heads"],
        "intermediate_size": channels,
    }


def is_exportable(config: Mapping[str, object], families: Sequence[Family], masks: Masks) -> bool:
    """Whether one configuration describes what is left of every layer, as `save_pruned` needs."""
    try:
        pruned_settings(config, families, masks)
    except TipminiError:
        return False
    return True


def _kept(families: Sequence[Family], masks: Masks, kind: str) -> int:
    counts = {f.name: int(masks[f.name].sum()) for f in families if f.kind == kind}
    least, most = (f(counts, key=counts.get) for f in (min, max))
    if counts[least] != counts[most]:
        raise TipminiError(
            f"{kind} differ: {least} keeps {counts[least]}, {most} {counts[most]}; a LLaMA has one "
            "number for all layers, so keep the masks"
        )
    return counts[most]


def _keep(tensor: Tensor, dim: int, mask: Tensor) -> Tensor:
    """The lines along dim whose group stays; groups are equal blocks of them."""
    lines = mask.repeat_interleave(tensor.shape[dim] // len(mask)).nonzero()[:, 0]
    return torch.index_select(tensor, dim, lines)
