"""A safetensors file, read tensor by tensor: no more of it in memory than what is asked for."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tipmini.errors import TipminiError


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor; dtype is safetensors' name, size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


class TensorFile(Mapping[str, Tensor]):
    """{name: tensor}, each read from the file when it is asked for.

    Raises TipminiError of one line for a file that is missing or no whole safetensors file, and
    with `finite`, when a tensor is read, for NaN and Inf.
    """

    def __init__(self, path: Path, *, finite: bool = True) -> None:
        self.path, self.finite = path, finite
        self.entries = _entries(path)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.entries:
            raise KeyError(name)
        tensor = _read(self.path, name)
        if self.finite and not tensor.isfinite().all():
            raise TipminiError(f"{self.path}: tensor {name} has NaN or Inf; it must be finite")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _entries(path: Path) -> dict[str, Entry]:
    """The header, which safetensors has checked: in bounds, without gaps, as long as the file."""
    if not path.is_file():
        raise TipminiError(f"{path}: no such file; give a safetensors file")
    try:
        with safe_open(path, "pt"):
            pass
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from None
    header.pop("__metadata__", None)
    # In the order of the file, which the header need not have.
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {name: _entry(**facts) for name, facts in ordered}


def _entry(dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    start, end = data_offsets
    return Entry(dtype, tuple(shape), end - start)


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> TipminiError:
    line = " ".join(str(error).split())
    return TipminiError(f"{path}: not a readable safetensors file ({line})")
