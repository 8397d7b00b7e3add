"""The two factors of one module's update."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tipmini.errors import TipminiError


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """The adapter of one module: a is (r, k), b is (d, r), both of a floating dtype."""

    a: Tensor
    b: Tensor
    scaling: float

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise TipminiError(
                "lora_A must be (r, k) and lora_B (d, r), "
                f"got {tuple(self.a.shape)} and {tuple(self.b.shape)}"
            )
        if not self.rank:
            raise TipminiError("rank is 0; a factor needs at least one row")
        if not (self.a.is_floating_point() and self.b.is_floating_point()):
            raise TipminiError(f"factors must be floating, got {self.a.dtype} and {self.b.dtype}")
        if not math.isfinite(self.scaling):
            raise TipminiError(f"scaling must be finite, got {self.scaling}")

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k), the shape of the delta."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self, *, out: Tensor | None = None) -> Tensor:
        """scaling * B @ A, (d, k), in float32 at least, in the memory of `out` where it is given.

        A large delta's memory costs more than its product: the system hands out every page anew.
        """
        a, b = at_least_float32(self.a), at_least_float32(self.b)
        return torch.mm(b, a, out=out).mul_(self.scaling)


def at_least_float32(tensor: Tensor) -> Tensor:
    """16-bit tensors in float32, where sums and products keep their digits; others as they are."""
    return tensor.float() if tensor.element_size() < 4 else tensor
