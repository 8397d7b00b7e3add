r"""TIES: trim small elements, elect a sign for every place, average those that agree with it.

Source: Yadav et al., "TIES-Merging: resolving interference when merging models" (NeurIPS 2023).
Three algorithms carry the name, here by `variant`:

| | "authors" | "peft" | "mergekit" |
|---|---|---|---|
| trimmed over | the whole adapter, ties stay | a tensor, floor(k n) stay | as peft |
| elected from | sum; 0: the majority's sign | sum; 0: plus | weighted sum; 0: plus |
| divided by | count that agrees | count that agrees | weights that agree |

An element agrees when its own sign was elected, with mergekit the sign of its weighted value.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from tipmini.masks import count_mask


def trim(tensor: Tensor, density: float) -> Tensor:
    r"""All but the $\lfloor k n \rfloor$ largest of the n elements set to 0, for a density k.

    Any shape and floating dtype. Among equal magnitudes the lower index goes first.
    """
    flat = tensor.reshape(1, -1)
    gone = flat.shape[1] - int(density * flat.shape[1])
    return flat.masked_fill(~count_mask(flat.abs(), gone), 0).view_as(tensor)


def trim_threshold(tensors: Sequence[Tensor], density: float) -> float:
    r"""The authors': the magnitude from which on an element stays, over all tensors flattened.

    It is the $(n - \lfloor k n \rfloor)$-th smallest, as in their release: one element more than
    PEFT keeps, and all that equal it. So at density 0 the largest is left.
    """
    flat = torch.cat([tensor.abs().reshape(-1) for tensor in tensors])
    gone = len(flat) - int(len(flat) * density)
    return flat.kthvalue(gone).values.item() if gone else 0.0


def elect(stacked: Tensor, zero: float = 1.0) -> Tensor:
    r"""(T, ...) -> (...) the sign of the sum over the first dimension; `zero` where it is 0."""
    sign = stacked.sum(0).sign()
    return torch.where(sign == 0, zero, sign)


def majority(signs: Tensor) -> float:
    """+1 or -1, whichever more places elected; the authors give it to sums of 0.

    Their release leaves a draw at 0, and then keeps what is negative.
    """
    return 1.0 if signs.sum() > 0 else -1.0


def electing(
    variant: str, zero: float = 1.0
) -> Callable[[Sequence[Tensor], Sequence[float]], Tensor]:
    """Elect and average trimmed tensors as a variant does: (tensors, weights) -> tensor.

    zero: the sign where a sum is 0.
    """
    return partial(_elect_and_average, by_weight=variant == "mergekit", zero=zero)


def _elect_and_average(
    tensors: Sequence[Tensor], weights: Sequence[float], by_weight: bool, zero: float
) -> Tensor:
    stacked = torch.stack(list(tensors))  # (T, ...)
    scale = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
    scale = scale.view(-1, *[1] * (stacked.ndim - 1))
    weighted = stacked * scale
    votes = weighted if by_weight else stacked
    agrees = votes.sign() == elect(votes, zero)
    share = (agrees * scale if by_weight else agrees).sum(0)
    return (weighted * agrees).sum(0) / torch.where(share == 0, 1, share)  # 0 where none agrees
