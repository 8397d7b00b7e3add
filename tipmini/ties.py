r"""TIES: trim small elements, elect a sign for every place, average those that agree with it.

Source: Yadav et al., "TIES-Merging: resolving interference when merging models" (NeurIPS 2023).
Three algorithms carry the name, here by `variant`:

| | "authors" | "peft" | "mergekit" |
|---|---|---|---|
| trimmed over | the whole adapter, ties stay | a tensor, floor(k n) stay | as peft |
| elected from | sum; 0: the majority's sign | sum; 0: plus | weighted sum; 0: plus |
| divided by | count that agrees | count that agrees | weights that agree |
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tipmini.wanda import row_mask

VARIANTS = ("peft", "authors", "mergekit")


def trim(tensor: Tensor, density: float) -> Tensor:
    r"""All but the $\lfloor k n \rfloor$ largest of the n elements set to 0, for a density k.

    Any shape and floating dtype. Among equal magnitudes the lower index goes first.
    """
    flat = tensor.reshape(1, -1)
    gone = flat.shape[1] - int(density * flat.shape[1])
    # Half an element above the count, so that no rounding of the ratio takes one less.
    share = min(1.0, (gone + 0.5) / flat.shape[1])
    return flat.masked_fill(~row_mask(flat.abs(), share), 0).view_as(tensor)


def trim_threshold(tensors: Sequence[Tensor], density: float) -> float:
    r"""The authors': the magnitude from which on an element stays, over all tensors flattened.

    As their release takes it with `kthvalue`: elements as large as it stay, so that at density 0
    the largest one is left.
    """
    flat = torch.cat([tensor.abs().reshape(-1) for tensor in tensors])
    gone = min(len(flat) - int(len(flat) * density), len(flat) - 1) or 1
    return flat.kthvalue(gone).values.item() if density < 1 else 0.0


def elect(stacked: Tensor, zero: float = 1.0) -> Tensor:
    r"""(T, ...) -> (...) the sign of the sum over the first dimension; `zero` where it is 0."""
    sign = stacked.sum(0).sign()
    return torch.where(sign == 0, zero, sign)


def majority(signs: Tensor) -> float:
    """+1 or -1, whichever more places elected; the authors give it to sums of 0."""
    return math.copysign(1.0, signs.sum().item()) if signs.sum() != 0 else 1.0


def disjoint_mean(stacked: Tensor, sign: Tensor, weights: Sequence[float], by: str) -> Tensor:
    r"""The weighted sum of the elements whose own sign was elected, over their count or weight.

    stacked is (T, ...), sign (...); by is "count" or "weight". Zero where none agrees.
    """
    scale = torch.tensor(weights, dtype=stacked.dtype).view(-1, *[1] * sign.ndim)
    agrees = stacked.sign() == sign
    total = (stacked * scale * agrees).sum(0)
    share = agrees if by == "count" else agrees * scale
    divisor = share.sum(0)
    return total / torch.where(divisor == 0, 1, divisor)


def electing(
    variant: str, zero: float = 1.0
) -> Callable[[Sequence[Tensor], Sequence[float]], Tensor]:
    """Elect and average trimmed tensors as a variant does: (tensors, weights) -> tensor.

    zero: the sign where a sum is 0.
    """

    def combine(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        stacked = torch.stack(list(tensors))
        scale = torch.tensor(weights, dtype=stacked.dtype).view(-1, *[1] * (stacked.ndim - 1))
        sign = elect(stacked * scale if variant == "mergekit" else stacked, zero)
        return disjoint_mean(stacked, sign, weights, "weight" if variant == "mergekit" else "count")

    return combine
