"""A safetensors file, read tensor by tensor: no more of it in memory than what is asked for."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.strict import naming, one_line, shown
from tipmini.tensor_header import FLOATING, read_header, unreadable


class TensorFile(Mapping[str, Tensor]):
    """{name: tensor}, each read from the file when it is asked for.

    Raises TipminiError of one line for a file that is missing or no whole safetensors file, and
    with `finite` for a tensor that isn't floating or, when it is read, for NaN and Inf.
    """

    def __init__(self, path: Path, *, finite: bool = True) -> None:
        self.path, self.finite = path, finite
        self.entries = read_header(path)
        if finite:
            self._refuse_other_dtypes()
        with _opened(path):
            pass

    def __getitem__(self, name: str) -> Tensor:
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

    def read_all(self) -> dict[str, Tensor]:
        """All tensors, to be kept: the file is opened once, and may change afterwards.

        Copies: safetensors maps the file, and who writes into a mapped file ends our process.
        """
        with _opened(self.path) as stream:
            return {name: self._checked(name, stream.get_tensor(name).clone()) for name in self}

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if self.finite:
            with naming(self.path):
                refuse_non_finite({name: tensor})
        return tensor

    def _refuse_other_dtypes(self) -> None:
        for name, entry in self.entries.items():
            if entry.dtype not in FLOATING:
                kinds, found = ", ".join(FLOATING), shown(entry.dtype)
                raise TipminiError(
                    f"{self.path}: tensor {one_line(name)} must be one of {kinds}, got {found}"
                )


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """The file as safetensors opens it, which refuses tensors that overlap or leave bytes over."""
    try:
        with safe_open(path, "pt") as stream:
            yield stream
    except (OSError, SafetensorError) as error:
        with naming(path):
            raise unreadable(one_line(error)) from None


def refuse_non_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises TipminiError that names the first tensor with NaN or Inf."""
    for name, tensor in tensors.items():
        if not math.isfinite(largest(tensor)):
            raise TipminiError(
                f"tensor {one_line(name)} has NaN or Inf; every number must be finite"
            )


def largest(tensor: Tensor) -> float:
    """The largest magnitude, NaN if one is; in one pass without a copy, so memory stays bounded."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.detach())
    return max(abs(low.item()), abs(high.item())) if low == low else math.nan
