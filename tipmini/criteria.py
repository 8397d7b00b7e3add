r"""Pruning criteria: the importance of every group of one module, in chunks of its rows.

No matrix of the weight's size is ever made: a chunk holds at most CHUNK numbers, and no more than
a PART of the module. What a criterion reads of a module stands in `Signals`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tipmini.errors import TipminiError, require
from tipmini.loraprune import lora_gradient

CHUNK, PART = 1 << 15, 1 / 32

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

    def rows(self, part: slice) -> Tensor:
        """W + s B A of some rows, (rows, k) float32: the weight that the model computes with."""
        weight = self.weight[part].to(torch.float32, copy=True)
        if self.scale is not None:
            weight *= self.scale[part]
        if self.b is not None:
            weight.addmm_(self.b[part].float(), self.a.float(), alpha=self.scaling)
        return weight


# What is summed over a group, (rows, k) ----------------------------------------------------------


def lora_guided(signals: Signals, part: slice) -> Tensor:
    """LoRAPrune's: G o (W + s B A), the root of Eq. 10; needs the gradients of A and B alone."""
    factors = signals.a, signals.b[part], signals.grad_a, signals.grad_b[part]
    return lora_gradient(*(f.float() for f in factors)).mul_(signals.rows(part))


def vanilla(signals: Signals, part: slice) -> Tensor:
    """Eq. 3's: the gradient of the weight times the weight; needs dL/dW whole."""
    return signals.grad[part].float() * signals.rows(part)


def taylor(signals: Signals, part: slice) -> Tensor:
    """LLM-Pruner's first order, element by element: sum |w g|."""
    return vanilla(signals, part)


def taylor_vector(signals: Signals, part: slice) -> Tensor:
    """LLM-Pruner's vectorised form: |sum w g| of each row or column, summed over a group's."""
    return vanilla(signals, part)


def magnitude(signals: Signals, part: slice) -> Tensor:
    """sum |w|."""
    return signals.rows(part)


def wanda(signals: Signals, part: slice) -> Tensor:
    """Wanda's score |w| n_j summed over a group; needs the norms of the module's inputs."""
    return signals.rows(part).mul_(signals.input_norm)


CRITERIA: dict[str, Callable[[Signals, slice], Tensor]] = {
    "lora-guided": lora_guided,
    "vanilla": vanilla,
    "taylor": taylor,
    "taylor-vector": taylor_vector,
    "magnitude": magnitude,
    "wanda": wanda,
}
METHODS = (*CRITERIA, "random")
SQUARED = ("lora-guided", "vanilla")  # as the paper prints them
NEEDS_WEIGHT_GRADIENT = ("vanilla", "taylor", "taylor-vector")


def needs_gradient(method: str) -> bool:
    """Whether a method reads any gradient at all."""
    return method == "lora-guided" or method in NEEDS_WEIGHT_GRADIENT


# Sums over groups --------------------------------------------------------------------------------


def group_scores(
    signals: Signals,
    count: int,
    dim: int = 0,
    method: str = "lora-guided",
    reduction: str = "paper",
) -> Tensor:
    """LoRAPrune Eq. 4 of one module by any criterion, chunk by chunk: (count,) float32.

    count groups are equal blocks of rows (dim 0) or columns (dim 1). reduction "paper": squares
    for Eqs. 3 and 10, magnitudes for the others. "released": magnitudes, and the module's scores
    divided by their L2 norm, as in the authors' code. A group of several modules adds theirs up.
    """
    require("method", method, CRITERIA)
    require("reduction", reduction, REDUCTIONS)
    if signals.weight.shape[dim] % count:
        shape = tuple(signals.weight.shape)
        raise TipminiError(f"a weight {shape} has no {count} equal groups along {dim}")
    # Double sums, so that the result does not show how the rows were cut into chunks.
    lines = signals.weight.new_zeros(signals.weight.shape[dim], dtype=torch.float64)
    for part in chunks(signals.weight):
        _add_lines(lines, part, dim, _terms(signals, part, method, reduction))
    if method == "taylor-vector":
        lines.abs_()
    scores = lines.view(count, -1).sum(1)
    if reduction == "released":
        scores /= torch.linalg.norm(scores) + 1e-8
    return scores.float()


def chunks(weight: Tensor) -> Iterator[slice]:
    """Consecutive rows, as many as fit into a chunk, and at least one."""
    size = max(1, int(min(CHUNK, PART * weight.numel())) // weight.shape[1])
    return (slice(i, i + size) for i in range(0, weight.shape[0], size))


def _terms(signals: Signals, part: slice, method: str, reduction: str) -> Tensor:
    terms = CRITERIA[method](signals, part)
    if method == "taylor-vector":
        return terms
    return terms.square_() if method in SQUARED and reduction == "paper" else terms.abs_()


def _add_lines(lines: Tensor, part: slice, dim: int, terms: Tensor) -> None:
    """Add the sums of rows, or of columns, to those of the rows or columns that they are of."""
    found = terms.sum(1 - dim, dtype=torch.float64)
    if dim == 0:
        lines[part] += found
    else:
        lines += found


# Masks of single weights -------------------------------------------------------------------------


def semi_structured_mask(score: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """n:m sparsity: False at the n lowest of every m consecutive scores of a row; bool, (d, k).

    Among equal scores the lower index goes first. Raises TipminiError unless m divides k.
    """
    if score.ndim != 2 or score.shape[1] % m:
        raise TipminiError(
            f"{n}:{m} sparsity needs rows of a multiple of {m}, got {tuple(score.shape)}"
        )
    order = score.reshape(-1, m).argsort(dim=1, stable=True)
    mask = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :n], False)
    return mask.view(score.shape)
