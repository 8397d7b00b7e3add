"""A base model with an update added: read, changed and written one tensor at a time."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraFactors, at_least_float32
from tipmini.models.base_folder import INDEX, SINGLE, BaseFolder, refuse_taken
from tipmini.models.files import Entry, one_line

SHARD_BYTES = 4 * 2**30  # of a written file, unless one tensor alone is larger
COPIED = (".jinja", ".json", ".model", ".py", ".tiktoken", ".txt")
# The weights' own index, and what would make transformers load an adapter on top.
LEFT = (INDEX, "pytorch_model.bin.index.json", "adapter_config.json")

Update = Mapping[str, LoraFactors | Tensor]
ShardTensor = tuple[int, str]  # number of the written file, name of a tensor
Progress = Callable[[Sequence[ShardTensor]], Iterable[ShardTensor]]


def save_merged(
    base: BaseFolder,
    update: Update,
    out: str | PathLike,
    *,
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] | None = None,
    progress: Progress = iter,
) -> None:
    """Write the base model with the update added, all at once or not at all.

    update: LoRA factors or a dense (d, k) delta for each module; each is read once, when its
    tensor is due. Added in float32 at least and rounded once, to the base's own dtype. A file
    has at most `shard_bytes` of tensors, or one larger tensor alone; configuration and tokenizer
    are copied; beside holds further files of the folder, or others in their place. progress wraps
    the tensors, e.g. `tqdm.tqdm`.

    Raises TipminiError when `out` is there and not empty, a module does not fit the base, a sum
    overflows its dtype, or the disk does not take it; `out` is then as it was.
    """
    for module in update:
        base.locate(module)
    refuse_taken(Path(out), base.size)
    out = Path(os.path.realpath(out))  # what a link names, not the link, is replaced
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as staging:
            new = Path(staging) / "new"
            new.mkdir()
            _write_tensors(base, update, new, shard_bytes, progress)
            _copy_beside(base.folder, new)
            for name, content in (beside or {}).items():
                (new / name).write_bytes(content)
            new.replace(out)  # also where an empty folder is
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None


def _write_tensors(
    base: BaseFolder, update: Update, folder: Path, shard_bytes: int, progress: Progress
) -> None:
    places = plan(base, shard_bytes)
    files = _file_names(places)
    changed = {f"{module}.weight": module for module in update}
    for number, group in groupby(progress(places), key=lambda place: place[0]):
        inside = {name: base.entry(name) for n, name in places if n == number}
        with (folder / files[number]).open("xb") as opened:
            opened.write(_header(inside))
            for _, name in group:
                tensor = base.files[name][name]
                if name in changed:
                    tensor = _added(base, name, tensor, update[changed[name]])
                opened.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    if len(files) > 1:
        weight_map = {name: files[number] for number, name in places}
        index = {"metadata": {"total_size": base.size}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def plan(base: BaseFolder, shard_bytes: int) -> list[ShardTensor]:
    """Which tensor goes into which file, in the order of writing."""
    number, used, places = 0, 0, []
    for name in base.files:
        size = base.entry(name).size
        if used and used + size > shard_bytes:
            number, used = number + 1, 0
        places.append((number, name))
        used += size
    # Wide dtypes first, as safetensors itself does: every tensor then lies aligned to its dtype.
    return sorted(places, key=lambda place: (place[0], -_width(base.entry(place[1]))))


def _width(entry: Entry) -> int:
    return entry.size // max(1, math.prod(entry.shape))


def _file_names(places: Sequence[ShardTensor]) -> list[str]:
    count = 1 + max(number for number, _ in places)
    if count == 1:
        return [SINGLE]
    return [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def _header(entries: Mapping[str, Entry]) -> bytes:
    """The start of a safetensors file: its own length, then JSON padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, entry in entries.items():
        end = start + entry.size
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _added(base: BaseFolder, name: str, tensor: Tensor, change: LoraFactors | Tensor) -> Tensor:
    """A tensor of the base with its module's update added, in its own dtype."""
    delta = change.delta() if isinstance(change, LoraFactors) else change
    base.check({name.removesuffix(".weight"): tuple(delta.shape)})  # else it could broadcast
    total = (at_least_float32(tensor) + delta).to(tensor.dtype)
    if not total.isfinite().all():
        raise TipminiError(f"{base.folder}: {name} overflows in {tensor.dtype} once merged")
    return total


def _copy_beside(folder: Path, new: Path) -> None:
    """What loading needs besides weights, and licences; no model card, which tells of the base."""
    for file in sorted(folder.iterdir()):
        wanted = file.suffix in COPIED or file.name.upper().startswith(("LICENSE", "NOTICE"))
        if file.is_file() and wanted and file.name not in LEFT:
            shutil.copyfile(file, new / file.name)
