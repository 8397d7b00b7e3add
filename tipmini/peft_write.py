"""Writing a PEFT adapter folder, all at once or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from tipmini.errors import TipminiError
from tipmini.peft_config import config_problems
from tipmini.peft_folder import CONFIG, WEIGHTS, refuse
from tipmini.strict import naming, one_line
from tipmini.tensor_file import largest, refuse_non_finite

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
