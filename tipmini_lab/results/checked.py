"""Stored files that carry a digest of their own, looked at before they are used.

JSON: its last member (`tipmini.models.sealed`). Safetensors: among the metadata, over the tensors
and the rest of the metadata. What was stored before files carried one, and masks, whose files'
hashes are settings of other results, is listed in `results.sha256`, as sha256sum writes and checks
it. What is damaged counts as not stored: one line tells so, and it is computed again.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import safetensors
from safetensors import SafetensorError

from tipmini.errors import TipminiError
from tipmini.models.files import one_line
from tipmini.models.sealed import SEAL, unsealed
from tipmini_lab.intact import file_digest
from tipmini_lab.paths import REPOSITORY

LISTED = REPOSITORY / "results.sha256"  # written by scripts/list-results
DIGEST = "digest"
OF_NOTHING = json.dumps({"pairs": [["of", None]]})


def text(file: Path) -> str | None:
    """A JSON file without its digest; None where there is none, or it is damaged."""
    try:
        content = file.read_bytes()
        if SEAL.search(content):
            return unsealed(content).decode()
        if _is_as_listed(file):
            json.loads(content)
            return content.decode()
        _tell(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError:  # also TipminiError
        _tell(file)
    return None


def is_whole(file: Path) -> bool:
    """Whether a safetensors file is there, and undamaged."""
    if not file.is_file():
        return False
    try:
        with safetensors.safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            if DIGEST in told:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                whole = told[DIGEST] == _digest(tensors, told)
            else:
                whole = _is_as_listed(file)
    except (SafetensorError, OSError, ValueError):
        whole = False
    if not whole:
        _tell(file)
    return whole


def load_file(file: Path) -> dict:
    """safetensors' own; raises TipminiError where the file is not whole."""
    from safetensors.torch import load_file

    if not is_whole(file):
        raise TipminiError(f"{file}: missing or damaged; `git restore` it, or measure it again")
    return load_file(file)


def save_file(tensors: Mapping, file: Path, metadata: Mapping[str, str]) -> None:
    """safetensors' own; a digest of it all stands among the metadata.

    Raises TipminiError where the disk does not take it.
    """
    from safetensors.torch import save_file

    with writing(file, file):
        save_file(dict(tensors), file, {**metadata, DIGEST: _digest(tensors, metadata)})


@contextmanager
def writing(file: Path, partial: Path) -> Iterator[None]:
    """A disk that is full, and the like, as one line; nothing of the partial file is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise TipminiError(f"{file}: cannot be written ({one_line(error)})") from error


def open_checkpoint(file: Path, framework: str) -> "safetensors.safe_open | _OfNothing":
    """safetensors' own `safe_open`; where the file is damaged, a checkpoint of no run at all, so
    that every run starts anew."""
    return safetensors.safe_open(file, framework) if is_whole(file) else _OfNothing()


class _OfNothing:
    """As `safe_open`: what it tells of itself is of none."""

    def __enter__(self) -> "_OfNothing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def metadata(self) -> dict[str, str]:
        return {"state": OF_NOTHING}


def _digest(tensors: Mapping, metadata: Mapping[str, str]) -> str:
    """SHA-256 of metadata without the digest itself, and of every tensor's name, type and bytes."""
    import torch

    told = sorted((name, value) for name, value in metadata.items() if name != DIGEST)
    found = hashlib.sha256(json.dumps(told).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _is_as_listed(file: Path) -> bool:
    """Whether a file without a digest is the one that was listed, or is listed nowhere."""
    if not (file := file.resolve()).is_relative_to(REPOSITORY):
        return True
    known = listed().get(str(file.relative_to(REPOSITORY)))
    return known is None or known == file_digest(file)


@cache
def listed() -> dict[str, str]:
    """{place in the checkout: SHA-256}"""
    if not LISTED.is_file():
        return {}
    return {line[66:]: line[:64] for line in LISTED.read_text().splitlines()}


@cache  # once a process and file
def _tell(file: Path) -> None:
    told = f"{file}: damaged, so it counts as not stored; `git restore` it where it is committed"
    print(told, file=sys.stderr)
