"""A base model's folder on disk, of which only the safetensors' headers are read."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path

from tipmini.errors import TipminiError
from tipmini.models.files import FLOATING, Entry, TensorFile, one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Their linear layers hold the transposed weight, which a square one would not show.
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

    def locate(self, module: str) -> Entry:
        """The header of a module's weight; raises TipminiError unless it can be added to."""
        name = f"{module}.weight"
        self._refuse_tied(module)
        if name not in self.files:
            near = get_close_matches(name, self.files, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise TipminiError(f"{self.folder}: lacks {name}, which the adapters change{hint}")
        if self.entry(name).dtype not in FLOATING:
            kind = self.entry(name).dtype
            raise TipminiError(f"{self.folder}: {name} is {kind}; only floating weights add up")
        return self.entry(name)

    def check(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise TipminiError unless every module has a floating weight of its (d, k) shape."""
        for module, shape in shapes.items():
            found = self.locate(module).shape
            if found != tuple(shape):
                raise TipminiError(
                    f"{self.folder}: {module}.weight is {found}, the adapters' {tuple(shape)}; "
                    "give the base that they were trained on"
                )

    def _refuse_tied(self, module: str) -> None:
        if self.config.get("tie_word_embeddings") and module.rpartition(".")[2] in HEADS:
            raise TipminiError(
                f"{self.folder}: {module} shares its weight with the embedding, which would "
                "change too; keep this merge an adapter"
            )


def open_base(path: str | PathLike) -> BaseFolder:
    """A local model folder: model.safetensors, or its shards with their index.

    Raises TipminiError for anything else: no config.json, a pickle, a damaged file, a shard
    outside the folder, quantised weights, transposed layers (GPT-2).
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # also of a name that no disk takes
        raise TipminiError(f"{folder}: no such folder; give a local model with safetensors")
    config = _read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise TipminiError(f"{folder}: quantised weights cannot be added to; de-quantise the base")
    if config.get("model_type") in TRANSPOSED:
        kind = config["model_type"]
        raise TipminiError(f"{folder}: {kind} stores weights transposed; merge into an adapter")
    return BaseFolder(folder, config, _files(folder))


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
    shards = {name: _shard(folder, name) for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise TipminiError(f"{folder / name}: lacks {tensor}, which {INDEX} names")
    return {t: file for name, file in shards.items() for t in file if places.get(t) == name}


def _shard(folder: Path, name: str) -> TensorFile:
    if Path(name).name != name:
        raise TipminiError(f"{folder / INDEX}: shard {name!r} lies outside the folder")
    return TensorFile(folder / name, finite=False)


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
