"""Files: strict JSON and safetensors of others, checked before a number is used; whole folders."""

import json
import math
import os
import reprlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from tipmini.errors import TipminiError, printable

if TYPE_CHECKING:  # a header is read without torch
    from torch import Tensor

_short = reprlib.Repr()  # bounded in depth as well: a plain repr can exceed the recursion limit
_short.maxstring = _short.maxother = 160
_short.maxlevel = 2


def shown(value: object) -> str:
    """A value as a part of one line: short and escaped."""
    return _short.repr(value)


def one_line(error: object) -> str:
    """A text on one line, its control characters escaped, of at most 300 characters."""
    safe = printable(" ".join(str(error).split()))
    return safe if len(safe) <= 300 else f"{safe[:297]}..."


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """What is refused inside is refused of this file: the error starts with its name."""
    try:
        yield
    except TipminiError as error:
        raise TipminiError(f"{file}: {error}") from None


def parse_json(data: bytes) -> object:
    """Strict JSON in UTF-8: no NaN, no name twice, no depth that exhausts the stack.

    Raises ValueError, since Python's json reads the first two and fails on the third.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{shown(twice)} stands there twice")
        return found

    def no_number(text: str) -> None:
        raise ValueError(f"{text} is no JSON number")

    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder to write into, which then takes the place of `path`: whole or not at all.

    Raises TipminiError when the disk does not take it; what was there before is then unharmed.
    """
    path = Path(os.path.realpath(path))  # what a link names, not the link, is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as staging:
            new, old = Path(staging) / "new", Path(staging) / "old"
            new.mkdir()
            yield new
            if path.is_dir():  # no call exchanges two folders, so an old one first steps aside
                os.rename(path, old)
            try:
                os.rename(new, path)
            finally:  # an interrupted program puts it back as well
                if old.is_dir() and not path.exists():
                    os.rename(old, path)
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise TipminiError(f"{path}: cannot be written ({one_line(error)})") from None


# A safetensors file, read tensor by tensor --------------------------------------------------------
FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes a number
MAX_HEADER = 16 << 20  # bytes; a hundred thousand tensors take less


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor; dtype is safetensors' name, start and size in bytes,
    the former from the file's first."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    start: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors by name, in the order of the file, of which the header alone is read.

    Raises TipminiError for a header above MAX_HEADER, and for what safetensors itself refuses:
    tensors that overlap, leave bytes over or lie outside the file.
    """
    if not os.path.isfile(path):  # a pipe may never end
        raise TipminiError(f"{path}: no such file; give a safetensors file")
    with _readable(path), path.open("rb") as stream:
        size, start = path.stat().st_size, stream.read(8)
        length = int.from_bytes(start, "little")
        if length > min(size - 8, MAX_HEADER):
            if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
                raise ValueError("a pickle, which could run code; save it as safetensors")
            if start == b"version ":
                raise ValueError("a Git-LFS pointer in its place; fetch it with git lfs pull")
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        with safe_open(path, "np"):
            header = parse_json(stream.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = entry["data_offsets"]
        found[name] = Entry(entry["dtype"], tuple(entry["shape"]), end - first, 8 + length + first)
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        why = f"not a readable safetensors file ({one_line(error)})"
        raise TipminiError(f"{path}: {why}") from None


class TensorFile(Mapping[str, "Tensor"]):
    """{name: tensor}, each read from the file when it is asked for.

    Raises TipminiError of one line for a file that is missing or no whole safetensors file, and
    with `finite` for a tensor that isn't floating or, when it is read, for NaN and Inf.
    """

    def __init__(self, path: Path, *, finite: bool = True) -> None:
        self.path, self.finite, self.entries = path, finite, read_header(path)
        with _readable(path), safe_open(path, "np") as stream:
            self.told: dict[str, str] = stream.metadata() or {}  # what the file says of itself
        for name, entry in self.entries.items():
            if finite and entry.dtype not in FLOATING:
                kinds, found = ", ".join(FLOATING), shown(entry.dtype)
                raise TipminiError(
                    f"{path}: tensor {one_line(name)} must be one of {kinds}, got {found}"
                )

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self.entries:
            raise KeyError(name)
        with _readable(self.path), safe_open(self.path, "pt") as stream:
            tensor = stream.get_tensor(name)
        if self.finite:
            with naming(self.path):
                refuse_non_finite(name, largest(tensor))
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def largest(self, name: str) -> float:
        """The largest magnitude of a floating tensor, read without torch; NaN if one is.

        With the sign bit off, the larger number has the larger bits, and NaN the largest.
        """
        import numpy as np

        entry = self.entries[name]
        width = FLOATING[entry.dtype]
        bits = np.fromfile(self.path, f"<u{width}", entry.size // width, offset=entry.start)
        top = (bits & ((1 << 8 * width - 1) - 1)).max(initial=0)
        if entry.dtype == "BF16":  # the upper half of a float32
            return float((np.array(top, "<u4") << 16).view("<f4"))
        return float(top.view(f"<f{width}"))


def refuse_non_finite(name: str, largest: float) -> None:
    """Raises TipminiError for a tensor whose largest magnitude is NaN or Inf."""
    if not math.isfinite(largest):
        raise TipminiError(f"tensor {one_line(name)} has NaN or Inf; every number must be finite")


def largest(tensor: "Tensor") -> float:
    """The largest magnitude, NaN if one is; in one pass without a copy, so memory stays bounded."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.detach().aminmax()
    return max(abs(low.item()), abs(high.item())) if low == low else math.nan
