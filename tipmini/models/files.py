"""What others wrote: strict JSON and safetensors files, checked before a number of them is used."""

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from safetensors import SafetensorError, safe_open

from tipmini.errors import TipminiError

_short = reprlib.Repr()  # bounded in depth as well: a plain repr can exceed the recursion limit
_short.maxstring = _short.maxother = 160
_short.maxlevel = 2


def shown(value: object) -> str:
    """A value as a part of one line: short and escaped."""
    return _short.repr(value)


def one_line(error: object) -> str:
    """A text on one line, its control characters escaped, of at most 300 characters."""
    text = " ".join(str(error).split())
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
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
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(twice)} stands there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


# The header of a safetensors file -----------------------------------------------------------------
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
    """The tensors by name, in the order of the file; raises TipminiError if one lies outside it.

    Reads the header alone, and no more than MAX_HEADER bytes whatever length it claims.
    """
    try:
        if not path.is_file():  # a pipe may never end
            raise TipminiError(f"{path}: no such file; give a safetensors file")
        with naming(path), path.open("rb") as stream:
            return _entries(stream)
    except OSError as error:
        raise TipminiError(f"{path}: cannot be read ({one_line(error)})") from None


def _entries(stream: BinaryIO) -> dict[str, Entry]:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if length > min(size - 8, MAX_HEADER):
        raise _no_header(start, length, size)
    header = _parse(stream.read(length))
    for name, entry in header.items():
        if not _is_inside(entry, size - 8 - length):
            raise unreadable(f"tensor {shown(name)} is not where its header says: {shown(entry)}")
    # In the order of the file, which the header need not have.
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {name: _entry(entry, 8 + length) for name, entry in ordered}


def _no_header(start: bytes, length: int, size: int) -> TipminiError:
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        return unreadable("a pickle, which could run code; save it as safetensors")
    return unreadable(f"its header claims {length} bytes, the file has {size}")


def _parse(text: bytes) -> dict[str, object]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise unreadable(f"its header: {one_line(error)}") from None
    if not isinstance(header, dict):
        raise unreadable("its header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _is_inside(entry: object, data: int) -> bool:
    """Whether an entry is one, and its place in the `data` bytes after the header is its size."""
    if not isinstance(entry, dict):
        return False
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(place)):
        return False
    if len(place) != 2 or not place[0] <= place[1] <= data:
        return False
    return dtype not in FLOATING or math.prod(shape) * FLOATING[dtype] == place[1] - place[0]


def _are_counts(values: object) -> bool:
    """Whole numbers of 40 bits, and few: their product stays small enough to compute."""
    return (
        isinstance(values, list)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 2**40 for value in values)
    )


def _entry(entry: dict, data: int) -> Entry:
    start, end = entry["data_offsets"]
    return Entry(entry["dtype"], tuple(entry["shape"]), end - start, data + start)


def unreadable(why: str) -> TipminiError:
    """The error of a file that is no safetensors file, or a damaged one."""
    return TipminiError(f"not a readable safetensors file ({why})")


# A safetensors file, read tensor by tensor --------------------------------------------------------
if TYPE_CHECKING:  # a header is read without torch
    from torch import Tensor

CHUNK = 1 << 22  # bytes of a tensor at a time


class TensorFile(Mapping[str, "Tensor"]):
    """{name: tensor}, each read from the file when it is asked for.

    Raises TipminiError of one line for a file that is missing or no whole safetensors file, and
    with `finite` for a tensor that isn't floating or, when it is read, for NaN and Inf.
    """

    def __init__(self, path: Path, *, finite: bool = True) -> None:
        self.path, self.finite = path, finite
        self.entries = read_header(path)
        if finite:
            self._refuse_other_dtypes()
        with _opened(path, "np"):
            pass

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self.entries:
            raise KeyError(name)
        with _opened(self.path) as stream:
            return self._checked(name, stream.get_tensor(name))

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def read_all(self) -> dict[str, "Tensor"]:
        """All tensors, to be kept: the file is opened once, and may change afterwards.

        Copies: safetensors maps the file, and who writes into a mapped file ends our process.
        """
        with _opened(self.path) as stream:
            return {name: self._checked(name, stream.get_tensor(name).clone()) for name in self}

    def largest(self, name: str) -> float:
        """The largest magnitude of a floating tensor, read without torch; NaN if one is.

        With the sign bit off, the larger number has the larger bits, and NaN the largest.
        """
        import numpy as np

        entry = self.entries[name]
        width = FLOATING[entry.dtype]
        kind, magnitude, top = np.dtype(f"<u{width}"), (1 << 8 * width - 1) - 1, 0
        with self.path.open("rb") as stream:
            stream.seek(entry.start)
            for start in range(0, entry.size, CHUNK):
                bits = np.frombuffer(stream.read(min(CHUNK, entry.size - start)), kind)
                top = max(top, int((bits & kind.type(magnitude)).max()))
        return _number(top, entry)

    def _checked(self, name: str, tensor: "Tensor") -> "Tensor":
        if self.finite:
            with naming(self.path):
                refuse_non_finite(name, largest(tensor))
        return tensor

    def _refuse_other_dtypes(self) -> None:
        for name, entry in self.entries.items():
            if entry.dtype not in FLOATING:
                kinds, found = ", ".join(FLOATING), shown(entry.dtype)
                raise TipminiError(
                    f"{self.path}: tensor {one_line(name)} must be one of {kinds}, got {found}"
                )


@contextmanager
def _opened(path: Path, framework: str = "pt") -> Iterator[safe_open]:
    """The file as safetensors opens it, which refuses tensors that overlap or leave bytes over."""
    try:
        with safe_open(path, framework) as stream:
            yield stream
    except (OSError, SafetensorError) as error:
        with naming(path):
            raise unreadable(one_line(error)) from None


def _number(bits: int, entry: Entry) -> float:
    """What the bits of a stored number mean."""
    import numpy as np

    width = FLOATING[entry.dtype]
    if entry.dtype == "BF16":  # the upper half of a float32
        bits, width = bits << 16, 4
    return float(np.array(bits, f"<u{width}").view(f"<f{width}"))


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
