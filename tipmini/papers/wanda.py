r"""Wanda's activation score of a weight, and pruning by it row by row.

TIP scores and prunes the LoRA factors this way: A with the norms of the module's input x, B with
the norms of A x. Sources: TIP, Eq. 1; Sun et al., "A simple and effective pruning approach for
large language models" (Wanda), arXiv 2306.11695.
"""

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.masks import in_row_chunks, prune_rows, row_mask, zeroed
from tipmini.threads import in_threads


def wanda_score(weight: Tensor, input_norm: Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""TIP Eq. 1: $A_{ij} = |W_{ij}| \cdot \lVert X_j \rVert_2$.

    weight is (d, k) and input_norm (k,), one norm for each input channel. The scores are (d, k),
    in the wider of the two dtypes, and in the memory of `out` where that is given. Raises
    TipminiError when the shapes don't fit.
    """
    if weight.ndim != 2 or input_norm.shape != weight.shape[1:]:
        raise TipminiError(
            f"wanda_score: weight (d, k) needs an input_norm (k,), "
            f"got {tuple(weight.shape)} and {tuple(input_norm.shape)}"
        )
    room = out if out is not None and out.dtype == weight.dtype else None
    return torch.mul(torch.abs(weight, out=room), input_norm, out=out)


def prune_scored(
    weight: Tensor, input_norm: Tensor, sparsity: float, *, out: Tensor | None = None
) -> Tensor:
    """`prune_rows` by `wanda_score`, in chunks of rows: a large weight's scores are never whole.

    weight is (d, k), input_norm (k,); the result is a (d, k) tensor of the weight's dtype, in the
    memory of `out` where that is given, which may be the weight itself.
    """
    if weight.requires_grad:  # gradients can't pass a tensor that is filled in pieces
        return prune_rows(weight, wanda_score(weight, input_norm), sparsity)
    pruned = torch.empty_like(weight) if out is None else out

    def fill(pair: tuple[Tensor, Tensor]) -> None:
        rows, part = pair
        zeroed(rows, row_mask(wanda_score(rows, input_norm), sparsity), part)

    in_threads(fill, in_row_chunks(weight, pruned))
    return pruned
