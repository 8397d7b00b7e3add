"""A PEFT adapter folder: which tensors it may hold, and writing one whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from tipmini.errors import TipminiError
from tipmini.models.files import (
    FLOATING,
    Entry,
    largest,
    naming,
    one_line,
    parse_json,
    refuse_non_finite,
    shown,
)
from tipmini.models.peft_settings import config_problems

Header = Mapping[str, Entry]

PREFIX = "base_model.model."  # PEFT's wrapping, before the module's own name
FACTOR_NAME = re.compile(re.escape(PREFIX) + r"(.+)\.lora_[AB]\.weight")
MAX_NAME = 500

# What PEFT's other tensors are, by a part of their names.
OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitude",
    "lora_embedding_": "the adapter of an embedding",
    "lora_diag": "KaSA's singular values",
    ".bias": "a bias",
    "modules_to_save": "a whole trained module",
    "trainable_tokens": "trained token embeddings",
    "embed_tokens.weight": "a whole embedding",
    "lm_head.weight": "a whole output layer",
    "lora_A.": "its name holds an adapter's name, which save_pretrained leaves out",
    "lora_B.": "its name holds an adapter's name, which save_pretrained leaves out",
}


def tensor_problems(header: Header) -> list[str]:
    """Why the tensors are not the factors of linear modules, one line each; [] when they are."""
    if not header:
        return ["holds no tensor; an adapter has lora_A and lora_B"]
    strange = [name for name in header if not _module_of(name)]
    problems = [
        f"{one_line(name)} is no LoRA factor of a linear module{_what(name)}" for name in strange
    ]
    for module in modules_of(header):
        problems += _module_problems(header, module)
    return problems


def _module_of(name: str) -> str | None:
    """The module that has a factor of this name."""
    if len(name) > MAX_NAME or not name.isprintable():
        return None
    found = FACTOR_NAME.fullmatch(name)
    return found[1] if found else None


def _what(name: str) -> str:
    return next((f"; it is {what}" for part, what in OTHERS.items() if part in name), "")


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules that have a factor, in the order of the names."""
    return list(dict.fromkeys(filter(None, map(_module_of, names))))


def factor_names(module: str) -> tuple[str, str]:
    """The names of A and B."""
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _module_problems(header: Header, module: str) -> list[str]:
    names = factor_names(module)
    if missing := [name for name in names if name not in header]:
        return [f"{name} is missing" for name in missing]
    a, b = (header[name] for name in names)
    if ".base_layer." in f".{module}.":
        return [f"{module}: PEFT's adapter of an attention in one piece can't be merged"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        return [f"{module}: lora_A must be (r, k) and lora_B (d, r), got {a.shape} and {b.shape}"]
    if 0 in a.shape or 0 in b.shape:
        return [f"{module}: no side may be 0 and no rank is 0, got {a.shape} and {b.shape}"]
    if not {a.dtype, b.dtype} <= FLOATING.keys():
        kinds = ", ".join(FLOATING)
        return [f"{module}: factors must be one of {kinds}, got {shown(a.dtype)}, {shown(b.dtype)}"]
    return []


# The files of a PEFT adapter folder ---------------------------------------------------------------
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"  # what older versions of PEFT wrote
INDEX = "adapter_model.safetensors.index.json"
MAX_CONFIG = 8 << 20  # bytes; twenty thousand modules named in full take less


def read_settings(folder: Path) -> object:
    """adapter_config.json as JSON; raises TipminiError when there is no such thing."""
    file = own_file(folder, CONFIG, "give the folder of a PEFT adapter")
    with naming(file), file.open("rb") as stream:
        data = stream.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise TipminiError(f"larger than {MAX_CONFIG >> 20} MB; settings take a few kB")
        try:
            return parse_json(data)
        except ValueError as error:
            raise TipminiError(f"not a readable JSON file ({one_line(error)})") from None


def weights_file(folder: Path) -> Path:
    """The file of the factors; raises TipminiError for a pickle or shards in its place."""
    found = ""
    if (folder / PICKLE).exists():
        found = f"{PICKLE} is a pickle, which could run code; "
    elif (folder / INDEX).exists():
        found = f"{INDEX} names other files, and an adapter is one; "
    return own_file(folder, WEIGHTS, f"{found}save the adapter as safetensors")


def refuse(file: Path, problems: list[str]) -> None:
    """Raise TipminiError that names the file and its first problem, if there is any."""
    if problems:
        more = len(problems) - 1
        tail = f" (and {more} more: `tipmini inspect` lists them)" if more else ""
        raise TipminiError(f"{file}: {problems[0]}{tail}")


def own_file(folder: Path, name: str, mend: str) -> Path:
    """The path of a file; refuses what is missing, no file, or a link that leaves the folder."""
    file = folder / name
    if not folder.is_dir():
        raise TipminiError(f"{folder}: no such folder; a PEFT adapter has {CONFIG} and {WEIGHTS}")
    if not os.path.lexists(file):
        raise TipminiError(f"{file}: missing; {mend}")
    real = Path(os.path.realpath(file))
    if not any(real.is_relative_to(home) for home in _homes(folder)):
        raise TipminiError(f"{file}: a link that leaves the folder; copy the file it names here")
    if not file.is_file():  # a device or a pipe may never end
        raise TipminiError(f"{file}: not a file; {mend}")
    return file


def _homes(folder: Path) -> list[Path]:
    """The folder, and where the hub's cache keeps the files that its snapshots link to."""
    real = Path(os.path.realpath(folder))
    caches = [above.parent / "blobs" for above in real.parents if above.name == "snapshots"]
    return [real, *caches]


def weights_sha256(folder: Path) -> str:
    """The hash of the factors' file, as the hub shows it, for a model card."""
    with weights_file(folder).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Writing a PEFT adapter folder, all at once or not at all -----------------------------------------
if TYPE_CHECKING:  # a dry run asks for `refuse_taken` alone
    from torch import Tensor

CARD = "README.md"
CARD_MARK = "tipmini"  # a tag in the front matter of our own cards


def write_folder(
    path: Path, config: dict, tensors: Mapping[str, "Tensor"], card: str | None = None
) -> None:
    """Write the files, so that `path` only ever holds a whole adapter; card becomes README.md.

    They are written into a temporary folder beside `path`, which is then renamed. An adapter that
    is there already is replaced; a folder that holds anything else is refused. Raises TipminiError
    when that is so, for settings or numbers that could not be read again, and when the disk does
    not take it; what was there before is then unharmed.
    """
    with naming(path / WEIGHTS):
        for name, tensor in tensors.items():
            refuse_non_finite(name, largest(tensor))
    refuse(path / CONFIG, config_problems(config))
    refuse_taken(path)
    path = Path(os.path.realpath(path))  # what a link names, not the link, is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as staging:
            new = Path(staging) / "new"
            new.mkdir()
            _write_files(new, config, tensors, card)
            _swap(new, path, Path(staging) / "old")
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise TipminiError(f"{path}: cannot be written ({one_line(error)})") from None


def _write_files(
    folder: Path, config: dict, tensors: Mapping[str, "Tensor"], card: str | None
) -> None:
    from safetensors.torch import save

    # Copies, since safetensors refuses tensors that share memory; bytes, since its own save_file
    # makes a file that only its owner may read.
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    (folder / WEIGHTS).write_bytes(save(copies))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")


def refuse_taken(path: Path) -> None:
    """Raise TipminiError unless `path` is new, empty, or holds an adapter and nothing else."""
    path = Path(os.path.realpath(path))  # a loop of links is then refused like any other file
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise TipminiError(f"{path}: cannot be written (not a folder); choose another")
        found = {file.name for file in path.iterdir()} if path.is_dir() else set()
        ours = {CONFIG, WEIGHTS} | ({CARD} if is_our_card(path / CARD) else set())
    except OSError as error:
        raise TipminiError(f"{path}: cannot be written ({one_line(error)})") from None
    if foreign := sorted(found - ours):
        raise TipminiError(f"{path}: also holds {', '.join(foreign)}; choose another folder")


def is_our_card(file: Path) -> bool:
    """Whether the front matter has our tag: a card that someone wrote by hand is never replaced."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        fence, *lines = stream.read(1 << 16).splitlines() or [b""]
    matter = lines[: lines.index(b"---")] if b"---" in lines else []
    return fence == b"---" and f"- {CARD_MARK}".encode() in matter


def _swap(new: Path, path: Path, old: Path) -> None:
    """Rename new to path. No call exchanges two folders, so an old one first steps aside."""
    if not path.is_dir():
        os.rename(new, path)
        return
    os.rename(path, old)
    try:
        os.rename(new, path)
    finally:  # an interrupted program puts it back as well
        if not path.exists():
            os.rename(old, path)
    shutil.rmtree(old)
