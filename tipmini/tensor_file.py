"""A safetensors file, read tensor by tensor: no more of it in memory than what is asked for."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from tipmini.errors import TipminiError
from tipmini.strict import naming, one_line, shown
from tipmini.tensor_header import FLOATING, Entry, read_header, unreadable

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
