"""The header of a safetensors file: read and checked before any of the numbers are."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tipmini.errors import TipminiError
from tipmini.strict import naming, one_line, parse_json, shown

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
