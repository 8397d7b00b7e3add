"""Pruning criteria: the importance of every group of one module, in chunks of its rows.

Each calls its paper's equation on some rows at a time: a float32 importance of a whole matrix would
take more memory than the matrix itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tipmini.errors import TipminiError, require
from tipmini.papers.loraprune import (
    adapted,
    group_importance,
    lora_guided_importance,
    taylor_importance,
)
from tipmini.papers.tip import wanda_score

CHUNK, PART = 1 << 15, 1 / 32  # elements of a chunk at most, and as a share of the weight's

REDUCTIONS = ("paper", "released")


@dataclass(frozen=True)
class Signals:
    """A module's weight and what is known of it; None where a criterion needs nothing of it.

    weight (d, k) of any floating dtype, or int8 with scale (d, 1); factors a (r, k) and b (d, r)
    with their gradients, scaling; grad = dL/dW (d, k); input_norm (k,).
    """

    weight: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    grad_a: Tensor | None = None
    grad_b: Tensor | None = None
    scaling: float = 1.0
    grad: Tensor | None = None
    input_norm: Tensor | None = None
    scale: Tensor | None = None

    def base(self, part: slice) -> Tensor:
        """W of some rows, (rows, k) float32."""
        weight = self.weight[part].float()
        return weight if self.scale is None else weight * self.scale[part]

    def rows(self, part: slice) -> Tensor:
        """W + s B A of some rows, (rows, k) float32: the weight that the model computes with."""
        if self.b is None:
            return self.base(part)
        return adapted(self.base(part), self.a.float(), self.b[part].float(), self.scaling)


# (signals, some rows, power) -> the terms that are summed over a group, (rows, k) -----------------
def lora_guided(signals: Signals, part: slice, power: int) -> Tensor:
    """LoRAPrune's Eq. 10, which needs the gradients of A and B alone."""
    factors = signals.a, signals.b[part], signals.grad_a, signals.grad_b[part]
    floats = [factor.float() for factor in factors]
    return lora_guided_importance(signals.base(part), *floats, scaling=signals.scaling, power=power)


def vanilla(signals: Signals, part: slice, power: int) -> Tensor:
    """Eq. 3, which needs dL/dW whole."""
    return taylor_importance(signals.rows(part), signals.grad[part].float(), power=power)


CRITERIA: dict[str, Callable[[Signals, slice, int], Tensor]] = {
    "lora-guided": lora_guided,
    "vanilla": vanilla,
    # LLM-Pruner's first order: sum |w g|, or |sum w g| of each row or column.
    "taylor": lambda signals, part, _: vanilla(signals, part, power=1),
    "taylor-vector": lambda signals, part, _: signals.grad[part].float() * signals.rows(part),
    "magnitude": lambda signals, part, _: signals.rows(part).abs(),
    "wanda": lambda signals, part, _: wanda_score(signals.rows(part), signals.input_norm),
}
CHOICES = (*CRITERIA, "random")
NEEDS_WEIGHT_GRADIENT = ("vanilla", "taylor", "taylor-vector")


def needs_gradient(method: str) -> bool:
    """Whether a method reads any gradient at all."""
    return method in ("lora-guided", *NEEDS_WEIGHT_GRADIENT)


def group_scores(
    signals: Signals,
    count: int,
    dim: int = 0,
    method: str = "lora-guided",
    reduction: str = "paper",
) -> Tensor:
    """LoRAPrune's Eq. 4 of one module by any criterion, chunk by chunk: (count,) float32.

    count groups are equal blocks of rows (dim 0) or columns (dim 1). reduction "paper": Eqs. 3 and
    10. "released": their magnitudes instead of squares, and the module's scores divided
    by their L2 norm, as in the authors' code. A group of several modules adds theirs up.
    """
    require("method", method, CRITERIA)
    require("reduction", reduction, REDUCTIONS)
    shape = tuple(signals.weight.shape)
    if shape[dim] % count:
        raise TipminiError(f"a weight {shape} has no {count} equal groups along {dim}")
    power = 2 if reduction == "paper" else 1
    # Double sums, so that the result does not show how the rows were cut into chunks.
    lines = signals.weight.new_zeros(shape[dim], dtype=torch.float64)
    for part in chunks(signals.weight):
        found = CRITERIA[method](signals, part, power).sum(1 - dim, dtype=torch.float64)
        lines[part if dim == 0 else slice(None)] += found
    if method == "taylor-vector":
        lines.abs_()
    scores = group_importance(lines.unsqueeze(1 - dim), count, dim)
    if reduction == "released":
        scores /= torch.linalg.norm(scores) + 1e-8
    return scores.float()


def chunks(weight: Tensor) -> Iterator[slice]:
    """Consecutive rows, as many as fit into a chunk, and at least one."""
    size = max(1, int(min(CHUNK, PART * weight.numel())) // weight.shape[1])
    return (slice(i, i + size) for i in range(0, weight.shape[0], size))
