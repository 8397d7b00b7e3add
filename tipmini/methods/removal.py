"""Real removal: a smaller checkpoint that stock transformers loads, the adapter merged into it.

Tensors are read, changed and written one at a time, as `save_merged` does for any update; of the
adapter's factors the same rows of B and columns of A go, so that BA is made of what stays alone.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.methods.groups import CHANNELS, HEADS, Family
from tipmini.methods.pruner import Masks
from tipmini.models.adapter import LoraFactors
from tipmini.models.base_folder import BaseFolder, save_merged
from tipmini.models.files import Entry


@dataclass(frozen=True)
class TensorEdit:
    """What is done to one tensor of a file when it is read, and its shape afterwards."""

    apply: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]


class ChangedFile(Mapping[str, Tensor]):
    """A safetensors file some of whose tensors are read changed; as `TensorFile`, entries too."""

    def __init__(self, file: Mapping[str, Tensor], changes: Mapping[str, TensorEdit]) -> None:
        self.file, self.changes = file, changes
        self.entries = {name: self._entry(name, entry) for name, entry in file.entries.items()}

    def _entry(self, name: str, entry: Entry) -> Entry:
        if name not in self.changes:
            return entry
        shape = self.changes[name].shape
        width = entry.size // math.prod(entry.shape)
        return replace(entry, shape=shape, size=width * math.prod(shape))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.file[name]
        return self.changes[name].apply(tensor) if name in self.changes else tensor

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


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
    lines = kept_lines(families, masks)
    cut = changed(base, dict(_changes(base, lines, read)), settings)
    small = {module: cut_factors(pair, lines[module]) for module, pair in (update or {}).items()}
    text = json.dumps(dict(cut.config), indent=2) + "\n"
    files = {"config.json": text.encode(), **(beside or {})}
    save_merged(cut, small, out, beside=files, progress=progress)


def pruned_settings(
    config: Mapping[str, object], families: Sequence[Family], masks: Masks
) -> dict[str, int]:
    """What a pruned model's config.json says otherwise; raises as `save_pruned`."""
    kept = {kind: _kept(families, masks, kind) for kind in (HEADS, CHANNELS)}
    queries = next(family.queries for family in families if family.kind == HEADS)
    heads, hidden = kept[HEADS] * queries, config["hidden_size"]
    if not heads or hidden % heads:
        raise TipminiError(
            f"{heads} heads of a hidden size of {hidden}: transformers wants a divisor of it; "
            "prune another share of the heads, or keep the masks"
        )
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kept[HEADS],
        "head_dim": config.get("head_dim") or hidden // config["num_attention_heads"],
        "intermediate_size": kept[CHANNELS],
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


def kept_lines(families: Sequence[Family], masks: Masks) -> dict[str, tuple[int, Tensor]]:
    """{module: (0 for its rows or 1 for its columns, the groups that stay)}."""
    return {m.module: (m.dim, masks[f.name]) for f in families for m in f.members}


def cut_factors(pair: LoraFactors, lines: tuple[int, Tensor]) -> LoraFactors:
    """The factors of what is left of a module: rows of B, or columns of A."""
    dim, mask = lines
    a, b = (pair.a, _keep(pair.b, 0, mask)) if dim == 0 else (_keep(pair.a, 1, mask), pair.b)
    return LoraFactors(a, b, pair.scaling)


def _changes(
    base: BaseFolder,
    lines: Mapping[str, tuple[int, Tensor]],
    read: Callable[[Tensor], Tensor] | None,
) -> Iterator[tuple[str, TensorEdit]]:
    for module, (dim, mask) in lines.items():
        shape = list(base.locate(module).shape)
        shape[dim] = shape[dim] // len(mask) * int(mask.sum())
        cut = lambda t, d=dim, m=mask: _keep(read(t) if read else t, d, m)  # noqa: E731
        yield f"{module}.weight", TensorEdit(cut, tuple(shape))
        if dim == 0 and f"{module}.bias" in base.files:
            cut_bias = lambda t, m=mask: _keep(t, 0, m)  # noqa: E731
            yield f"{module}.bias", TensorEdit(cut_bias, (shape[0],))


def _keep(tensor: Tensor, dim: int, mask: Tensor) -> Tensor:
    """The lines along dim whose group stays; groups are equal blocks of them."""
    lines = mask.repeat_interleave(tensor.shape[dim] // len(mask)).nonzero()[:, 0]
    return torch.index_select(tensor, dim, lines)
