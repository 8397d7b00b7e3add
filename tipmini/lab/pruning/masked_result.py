"""A result that no plain checkpoint can hold, since layers differ: masks beside an adapter."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.base_folder import BaseFolder
from tipmini.errors import TipminiError
from tipmini.groups import Family, find_families
from tipmini.lab.model import load_base
from tipmini.masking import Masks, load_masks, save_masks
from tipmini.removal import save_pruned
from tipmini.strict import one_line

MASKS, STORY, ADAPTER, BASE = "masks.safetensors", "pruning.json", "adapter", "base"


def save(
    base: BaseFolder,
    families: Sequence[Family],
    masks: Masks,
    factors: Mapping[str, tm.LoraFactors],
    out: Path,
    *,
    read: Callable[[Tensor], Tensor] | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write masks, adapter and further files into a folder, all at once or not at all.

    read: what the pruned modules' weights were rounded to while the adapter was trained; the base
    with these weights is then written too, and the adapter names it. Raises TipminiError when the
    disk does not take it.
    """
    out = Path(os.path.realpath(out))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
            new = Path(staging) / "new"
            new.mkdir()
            if read:
                whole = {family.name: torch.ones_like(masks[family.name]) for family in families}
                save_pruned(base, families, whole, new / BASE, read=read)
            name = str(out / BASE if read else base.folder.resolve())
            tm.LoraAdapter(dict(factors), base_model=name).save(new / ADAPTER)
            for file, content in {MASKS: save_masks(masks), **(beside or {})}.items():
                (new / file).write_bytes(content)
            new.replace(out)
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None


def load(folder: Path, dtype: str = "auto", device: str = "cpu") -> nn.Module:
    """The model that the folder stands for, of the base's shapes; it computes Eq. 13's masked pass.

    The adapter is merged into the weights, and the rows that write what is gone are zero.
    """
    adapter, masks = tm.load_adapter(folder / ADAPTER), load_masks(folder / MASKS)
    model = load_base(adapter.base_model, dtype)
    for module, pair in adapter.factors.items():
        _replace(model.get_submodule(module), "weight", lambda w, p=pair: w.float() + p.delta())
    for family in find_families(model):
        for member in (m for m in family.members if m.dim == 0):
            layer = model.get_submodule(member.module)
            for name, _ in list(layer.named_parameters()):
                _replace(layer, name, lambda t, m=masks[family.name]: _without(t, m))
    return model.to(device)


def _replace(layer: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Another parameter of the same dtype: the old one may be a file that is mapped."""
    old = layer.get_parameter(name).detach()
    setattr(layer, name, nn.Parameter(change(old).to(old.dtype), requires_grad=False))


def _without(tensor: Tensor, mask: Tensor) -> Tensor:
    """(d, k) or (d,) with zeros in the rows of the groups that the mask leaves out."""
    rows = mask.repeat_interleave(len(tensor) // len(mask))
    return tensor * rows.view(-1, *[1] * (tensor.ndim - 1)).to(tensor.dtype)
