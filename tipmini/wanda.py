r"""Wanda's activation score of a weight, and pruning by it row by row.

TIP scores and prunes the LoRA factors this way: A with the norms of the module's input x, B with
the norms of A x. Sources: TIP, Eq. 1; Sun et al., "A simple and effective pruning approach for
large language models" (Wanda), arXiv 2306.11695.
"""

import math

import numpy as np
import torch
from torch import Tensor

from tipmini.errors import TipminiError

CHUNK = 512  # rows at a time; the result does not depend on it


def wanda_score(weight: Tensor, input_norm: Tensor) -> Tensor:
    r"""TIP Eq. 1: $A_{ij} = |W_{ij}| \cdot \lVert X_j \rVert_2$.

    weight is (d, k) and input_norm (k,), one norm for each input channel. The scores are (d, k),
    in the wider of the two dtypes. Raises TipminiError when the shapes don't fit.
    """
    if weight.ndim != 2 or input_norm.shape != weight.shape[1:]:
        raise TipminiError(
            f"wanda_score: weight (d, k) needs an input_norm (k,), "
            f"got {tuple(weight.shape)} and {tuple(input_norm.shape)}"
        )
    return weight.abs() * input_norm


def row_mask(score: Tensor, sparsity: float) -> Tensor:
    r"""Which elements survive: False at the lowest $\lfloor k S \rfloor$ scores of each row.

    score is (d, k); the mask is a (d, k) bool tensor. Among equal scores the lower index goes
    first. Rows are the comparison group, as in Wanda's release. Give the sparsity in double
    precision: the 0.7 of float32 lies below 0.7 and takes 6 of 10. Raises TipminiError for a
    sparsity outside [0, 1], another shape, and NaN scores, which have no order.
    """
    if not 0 <= sparsity <= 1:
        raise TipminiError(f"sparsity must lie in [0, 1], got {float(sparsity)}")
    return count_mask(score, math.floor(score.shape[-1] * float(sparsity)))


def count_mask(score: Tensor, count: int) -> Tensor:
    """`row_mask` of a number instead of a share: False at the `count` lowest of each row."""
    if score.ndim != 2:
        raise TipminiError(f"scores must be (d, k), got {tuple(score.shape)}")
    if score.isnan().any():
        raise TipminiError("scores contain NaN; check the weight and the input norms")
    mask = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    for rows, part in zip(score.split(CHUNK), mask.split(CHUNK), strict=True):
        part.copy_(_above(rows, count))
    return mask


def _above(score: Tensor, count: int) -> Tensor:
    """False at the `count` lowest of each row, as a stable ascending sort would order them.

    A partition finds the last that goes and the first that stays without sorting either side;
    only where the two are equal does the order of the ties matter.
    """
    if count in (0, score.shape[-1]):
        return torch.full_like(score, count == 0, dtype=torch.bool)
    last, first = _around(score, count)
    keep = score > last
    for row in (last == first)[:, 0].nonzero()[:, 0].tolist():
        ties = (score[row] == last[row]).nonzero()[:, 0]
        gone = count - int((score[row] < last[row]).sum())
        keep[row, ties[gone:]] = True
    return keep


def _around(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(d, 1) each: the highest of the `count` lowest of every row, and the lowest of the others.

    One pivot and a maximum: with two pivots numpy leaves its vectorised partition (12 x slower).
    """
    exact = score.detach().to("cpu", torch.promote_types(score.dtype, torch.float32)).numpy()
    parted = np.partition(exact, count, axis=-1)
    last, first = parted[:, :count].max(axis=-1, keepdims=True), parted[:, count : count + 1]
    back = lambda array: torch.from_numpy(array).to(score.device, score.dtype)  # noqa: E731
    return back(last), back(first)


def prune_rows(weight: Tensor, score: Tensor, sparsity: float) -> Tensor:
    r"""The weight with the lowest $\lfloor k S \rfloor$ scores of each row set to 0.

    weight and score are (d, k); the result is a new (d, k) tensor of the weight's dtype. Nothing
    is rescaled. Ties and errors as in `row_mask`.
    """
    if weight.shape != score.shape:
        raise TipminiError(
            f"prune_rows: weight and score need one shape, "
            f"got {tuple(weight.shape)} and {tuple(score.shape)}"
        )
    return torch.where(row_mask(score, sparsity), weight, 0)


def prune_scored(weight: Tensor, input_norm: Tensor, sparsity: float) -> Tensor:
    """`prune_rows` by `wanda_score`, in chunks of rows: a large weight's scores are never whole.

    weight is (d, k), input_norm (k,); the result is a new (d, k) tensor of the weight's dtype.
    """
    keep = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    for rows, part in zip(weight.split(CHUNK), keep.split(CHUNK), strict=True):
        part.copy_(row_mask(wanda_score(rows, input_norm), sparsity))
    return torch.where(keep, weight, 0)  # in one piece: gradients can't pass a tensor filled so
