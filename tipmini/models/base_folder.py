"""A base model's folder: its headers, and writing it with an update added, tensor by tensor."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tipmini.errors import TipminiError
from tipmini.models.files import FLOATING, Entry, TensorFile, one_line, replacing, shown
from tipmini.models.identity import CACHED, core

if TYPE_CHECKING:  # a dry run reads the headers alone
    from torch import Tensor

    from tipmini.models.factors import LoraFactors

    Update = Mapping[str, LoraFactors | Tensor]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Their linear layers hold the transposed weight, which a square one does not show.
TRANSPOSED = ("clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt")
HEADS = ("embed_out", "lm_head")  # names of the layer that can share the embedding's weight


@dataclass(frozen=True, eq=False)
class BaseFolder:
    """A model folder whose tensors are read one at a time; made by `open_base`."""

    folder: Path
    config: Mapping[str, object]
    files: Mapping[str, TensorFile]  # tensor -> the file that holds it, in the files' order

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(self.entry(name).size for name in self.files)

    def entry(self, name: str) -> Entry:
        return self.files[name].entries[name]

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """{name without what wraps a whole model: the base's names of it} of all that has a weight.

        The class that saved a model decides on its wrappers: model.layers.0 is layers.0 where the
        model was saved without its head.
        """
        found: dict[str, list[str]] = {}
        for name in self.files:
            module, _, what = name.rpartition(".")
            if what == "weight":
                found.setdefault(core(module), []).append(module)
        return found

    def weight_name(self, module: str) -> str | None:
        """The name of a module's weight, whatever wraps the module; None where it isn't sure."""
        known = self.modules.get(core(module), [])
        own = module if module in known else known[0] if len(known) == 1 else None
        return own and f"{own}.weight"

    def tied_weight(self) -> str | None:
        """The embedding's weight, where the head shares it and is not stored itself."""
        names = [n for n in self.files if n.endswith(("embed_tokens.weight", "wte.weight"))]
        return names[0] if len(names) == 1 and self.is_tied else None

    @cached_property
    def is_tied(self) -> bool:
        """Whether the head shares the embedding's weight, by the config or its text model's; older
        ones leave out the default, that it does."""
        for config in (self.config, self.config.get("text_config")):
            if isinstance(config, dict) and "tie_word_embeddings" in config:
                return bool(config["tie_word_embeddings"])
        stored = {name.removesuffix(".weight").rpartition(".")[2] for name in self.files}
        return stored.isdisjoint(HEADS)

    def is_transposed(self, module: str, told: bool) -> bool:
        """Whether a square weight is stored as (inputs, outputs), by the model or the part of one
        that the module is of; told: by the adapter, where the base doesn't say."""
        config, inner = self.config, False
        for part in module.split("."):
            if isinstance(config.get(part), dict):
                config, inner = config[part], True
        known = config.get("model_type") in TRANSPOSED
        return known or (told and not inner)

    def locate(self, module: str) -> Entry:
        """The header of a module's weight; raises TipminiError unless it can be added to."""
        name = self.weight_name(module)
        if self.is_tied and module.rpartition(".")[2] in HEADS:
            raise TipminiError(
                f"{self.folder}: {module} shares its weight with the embedding, which would "
                "change too; keep this merge an adapter"
            )
        if name is None:
            name = f"{module}.weight"
            near = get_close_matches(name, self.files, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise TipminiError(f"{self.folder}: lacks {name}, which the adapters change{hint}")
        if (kind := self.entry(name).dtype) not in FLOATING:
            raise TipminiError(f"{self.folder}: {name} is {kind}; only floating weights add up")
        return self.entry(name)

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise TipminiError unless every module has a floating weight of its (d, k) shape."""
        for module, shape in shapes.items():
            found = self.locate(module).shape
            if tuple(shape) not in (found, found[::-1]):
                raise TipminiError(
                    f"{self.folder}: {module}.weight is {found}, the adapters' {tuple(shape)}; "
                    "give the base that they were trained on"
                )


def open_base(path: str | PathLike) -> BaseFolder:
    """A local model folder: model.safetensors, or its shards with their index.

    Raises TipminiError for anything else: no config.json, a pickle, a damaged file, a shard
    outside the folder, quantised weights.
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # also of a name that no disk takes
        raise TipminiError(f"{folder}: no such folder; give a local model with safetensors")
    config = _read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise TipminiError(f"{folder}: quantised weights cannot be added to; dequantise the base")
    return BaseFolder(folder, config, _files(folder))


def modules_of_base(base: str | None) -> list[str]:
    """What a base model calls its modules, where it is a folder at hand; else nothing."""
    if not base or not os.path.isfile(os.path.join(base, "config.json")):
        return []
    return [name.removesuffix(".weight") for name in open_base(base).files]


def refuse_taken(out: Path, needed: int) -> None:
    """Raise TipminiError unless `out`, where a merged base goes, is new or empty and
    its disk has the bytes."""
    real = Path(os.path.realpath(out))
    try:
        if any(real.iterdir()) if real.is_dir() else os.path.lexists(real):
            raise TipminiError(f"{out}: is there already; choose a new folder")
        free = shutil.disk_usage(next(above for above in real.parents if above.is_dir())).free
    except OSError as error:
        raise TipminiError(f"{out}: cannot be written ({one_line(error)})") from None
    if free < needed:
        raise TipminiError(f"{out}: needs {needed:,} bytes, the disk has {free:,} left")


def _files(folder: Path) -> dict[str, TensorFile]:
    if (folder / SINGLE).is_file():
        file = TensorFile(folder / SINGLE, finite=False)
        return dict.fromkeys(file, file)
    if not (folder / INDEX).is_file():
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        found = f"; {pickles[0]} is a pickle, which could run code" if pickles else ""
        raise TipminiError(f"{folder}: has no {SINGLE}{found}; save the model as safetensors")
    places = _read_json(folder / INDEX).get("weight_map")
    if not (isinstance(places, dict) and all(isinstance(p, str) for p in places.values())):
        raise TipminiError(f"{folder / INDEX}: weight_map must give each tensor's file")
    shards = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.isprintable():
            told = f"shard {shown(name)} lies outside the folder, or is no name"
            raise TipminiError(f"{folder / INDEX}: {told}")
        shards[name] = TensorFile(folder / name, finite=False)
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise TipminiError(f"{folder / name}: lacks {one_line(tensor)}, which {INDEX} names")
    return {t: file for name, file in shards.items() for t in file if places.get(t) == name}


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TipminiError(f"{file}: missing; give the folder of a whole model") from None
    except (OSError, ValueError) as error:
        raise TipminiError(f"{file}: not a readable JSON file ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise TipminiError(f"{file}: must hold a JSON object")
    return content


# Written with an update added ---------------------------------------------------------------------
SHARD_BYTES = 4 * 2**30  # of a written file, unless one tensor alone is larger
# Of the folder all comes along but weights in any format, what would make transformers load an
# adapter on top, and the card, which tells of the base.
WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".onnx_data", ".ot")
WEIGHTS += (".pt", ".pth", ".safetensors", ".index.json")
STALE = ("coreml", "gguf", "metal", "onnx", "openvino", "original")  # folders of the same weights
LEFT = ("adapter_config.json", "README.md")

ShardTensor = tuple[int, str]  # number of the written file, name of a tensor
Progress = Callable[[Sequence[ShardTensor]], Iterable[ShardTensor]]


def save_merged(
    base: BaseFolder,
    update: "Update",
    out: str | PathLike,
    *,
    shard_bytes: int = SHARD_BYTES,
    beside: "Mapping[str, bytes | Callable[[], bytes]] | None" = None,
    fan_in_fan_out: bool = False,
    overwrite: bool = False,
    progress: Progress = iter,
) -> None:
    """Write the base model with the update added, all at once or not at all.

    update: LoRA factors or a dense (d, k) delta for each module; each is read once, when its
    tensor is due. Added in float32 at least and rounded once, to the base's own dtype. A file
    has at most `shard_bytes` of tensors, or one larger tensor alone; all else of the folder but
    its card is copied; beside holds further files, or others in their place, or what makes them
    once all is merged. overwrite: replace a folder that holds something. fan_in_fan_out: that
    a square weight is stored as (inputs, outputs), as GPT-2's are; of others the shape tells.
    progress wraps the tensors, e.g. `tqdm.tqdm`.

    Raises TipminiError when `out` is there and not empty, a module does not fit the base, a sum
    overflows its dtype, or the disk does not take it; `out` is then as it was.
    """
    for module in update:
        base.locate(module)
    if not (overwrite and Path(out).is_dir()):
        refuse_taken(Path(out), base.size)
    with replacing(Path(out)) as new:
        added = partial(_added, base, transposed=fan_in_fan_out)
        _write_tensors(base, update, new, shard_bytes, progress, added)
        for file in base.folder.rglob("*"):
            inside = file.relative_to(base.folder)
            hidden = any(part.startswith(".") for part in inside.parts)
            top = len(inside.parts) == 1  # further on are other layers', as of sentence models
            weights = file.name.endswith(WEIGHTS) if top else inside.parts[0] in STALE
            if file.is_file() and not (weights or hidden or str(inside) in LEFT):
                _refuse_outside(file, base.folder)
                (new / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, new / inside)
        for name, content in (beside or {}).items():
            (new / name).write_bytes(content() if callable(content) else content)


def _refuse_outside(file: Path, folder: Path) -> None:
    """Raise TipminiError for a link to what is neither in the folder nor in the hub's cache of it:
    a copy would carry along whatever a stranger's folder points to."""
    top = os.path.realpath(folder)
    cached = CACHED.search(top)
    top = top[: cached.end(2)] if cached else top
    if not Path(os.path.realpath(file)).is_relative_to(top):
        raise TipminiError(f"{file}: a link out of the folder; put a copy in its place, or none")


def _write_tensors(
    base: BaseFolder,
    update: "Update",
    folder: Path,
    shard_bytes: int,
    progress: Progress,
    added: Callable,
) -> None:
    import torch

    places = plan(base, shard_bytes)
    count = 1 + places[-1][0]
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    files = files if count > 1 else [SINGLE]
    changed = {base.weight_name(module): module for module in update}
    for number, group in groupby(progress(places), key=lambda place: place[0]):
        inside = {name: base.entry(name) for n, name in places if n == number}
        with (folder / files[number]).open("xb") as opened:
            opened.write(_header(inside))
            for _, name in group:
                tensor = base.files[name][name]
                if name in changed:
                    tensor = added(name, tensor, update[changed[name]])
                opened.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    if count > 1:
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

    def width(name: str) -> int:
        entry = base.entry(name)
        return entry.size // max(1, math.prod(entry.shape))

    # Wide dtypes first, as safetensors itself does: every tensor then lies aligned to its dtype.
    return sorted(places, key=lambda place: (place[0], -width(place[1])))


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


def _added(
    base: BaseFolder,
    name: str,
    tensor: "Tensor",
    change: "LoraFactors | Tensor",
    *,
    transposed: bool = False,
) -> "Tensor":
    """A tensor of the base with its module's update added, in its own dtype."""
    from tipmini.models.factors import LoraFactors, at_least_float32

    delta = change.delta() if isinstance(change, LoraFactors) else change
    base.check({name.removesuffix(".weight"): tuple(delta.shape)})  # else it could broadcast
    square = delta.shape[0] == delta.shape[1]
    module = name.removesuffix(".weight")
    if base.is_transposed(module, transposed) if square else delta.shape != tensor.shape:
        delta = delta.T
    total = (at_least_float32(tensor) + delta.to(tensor.device)).to(tensor.dtype)
    if not total.isfinite().all():
        raise TipminiError(f"{base.folder}: {name} overflows in {tensor.dtype} once merged")
    return total
