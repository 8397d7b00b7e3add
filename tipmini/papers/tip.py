r"""TIP Eqs. 1-5, from a weight's scores to every layer's sparsity, and what TIP leaves open.

Eq. 1 is Wanda's score: Sun et al., "A simple and effective pruning approach for large language
models", arXiv 2306.11695. TIP scores and prunes the LoRA factors by it: A with the norms of the
module's input x, B with those of A x. L is the number of layers; a layer is a transformer block in
TIP. The functions keep the dtype of the importances they are given; use float64 where
`floor(k * sparsity)` follows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from tipmini.errors import TipminiError, check_options, require_share
from tipmini.masks import in_row_chunks, in_threads, prune_rows, row_mask, zeroed

PIECE = 16_384  # elements; torch sums no more than this in one thread, so in one order


def wanda_score(weight: Tensor, input_norm: Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""TIP Eq. 1: $A_{ij} = |W_{ij}| \cdot \lVert X_j \rVert_2$, or $A = |W|\, \mathrm{diag}(n)$.

    weight is (d, k) and input_norm, n, (k,): one norm for each input channel. The scores are
    (d, k), in the wider of the two dtypes, and in the memory of `out` where that is given. Raises
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


def layer_importance(scores: Iterable[Tensor]) -> float:
    r"""TIP Eq. 2: $I_l = \mathrm{mean}(A^l_{ij})$, over all elements of the layer pooled.

    scores are the layer's score matrices, of any shapes; a large matrix weighs more than a small
    one. Summed in float64, one matrix after the other, alike with any number of threads. Raises
    TipminiError when there is nothing to average.
    """
    total, count = 0.0, 0
    for score in scores:
        total += sum(_piece_sums(score.flatten()))
        count += score.numel()
    if not count:
        raise TipminiError("layer_importance: a layer needs at least one score")
    return total / count


def _piece_sums(flat: Tensor) -> list[float]:
    whole = flat[: len(flat) // PIECE * PIECE]
    sums = whole.view(-1, PIECE).sum(1, dtype=torch.float64).tolist()
    return [*sums, flat[len(whole) :].sum(dtype=torch.float64).item()]


def whole_pieces(score_width: int, rows: int) -> int:
    """About so many rows of a score hold whole pieces: their sum does not depend on the number."""
    step = PIECE // gcd(PIECE, score_width)
    return step * max(1, rows // step)


def normalize_importance(importance: Tensor) -> Tensor:
    r"""TIP Eq. 3: $\tilde I_l = (I_l - \min I) / (\max I - \min I)$.

    (L,) to (L,) in [0, 1]; zeros where all layers are equally important. Raises TipminiError
    unless the importances are one finite vector.
    """
    if importance.ndim != 1 or not len(importance) or not importance.isfinite().all():
        raise TipminiError(
            f"importances must be one finite number a layer, got {importance.tolist()}"
        )
    spread = importance.max() - importance.min()
    if spread == 0:
        return torch.zeros_like(importance)
    return (importance - importance.min()) / spread


def sparsity_shift(normalized: Tensor) -> Tensor:
    r"""TIP Eq. 4: $\Delta S_l = \tilde I_l - \mathrm{mean}(\tilde I)$. (L,) to (L,), mean 0."""
    return normalized - normalized.mean()


def layer_sparsity(
    importance: Tensor,
    base_sparsity: float,
    *,
    sign: int = 1,
    shift_range: float = 1.0,
    bounds: str = "clip",
) -> Tensor:
    r"""TIP Eq. 5: $S_l = S_{org} + \Delta S_l$, with Eqs. 3 and 4 before it. (L,) to (L,).

    sign: +1 as Eq. 5 has it, which prunes important layers more; -1 for the intent of the prose.
    shift_range: the width max - min of the shifts, 1.0 by Eqs. 3 and 4; 0.3 as DLP, whose released
    `get_dlp_ratios` (arXiv 2505.23807) coincides with Eqs. 2-5, and whose paper takes a large score
    for redundancy.
    bounds: S_l can leave [0, 1]. "clip" cuts it there; "mean_preserving" also moves the other
    layers, all by the same amount, so that the mean stays base_sparsity.
    Raises TipminiError for an argument outside its range.
    """
    require_share("base sparsity", base_sparsity)
    check_options("tip", {"sign": sign, "shift_range": shift_range, "bounds": bounds})
    shift = sparsity_shift(normalize_importance(importance))
    sparsity = base_sparsity + sign * shift_range * shift
    if bounds == "mean_preserving":
        sparsity = sparsity + _mean_preserving_offset(sparsity, base_sparsity)
    return sparsity.clamp(0, 1)


def _mean_preserving_offset(sparsity: Tensor, mean: float) -> float:
    """The number to add to every layer so that, once clipped to [0, 1], their mean is `mean`.

    The clipped mean never falls as the offset grows, from 0 (all layers at 0) to 1 (all at 1), so
    halving the interval finds the offset.
    """
    if sparsity.min() >= 0 and sparsity.max() <= 1:
        return 0.0  # nothing to clip: leave the values untouched
    sparsity = sparsity.double()
    low, high = -sparsity.max().item(), 1 - sparsity.min().item()
    for _ in range(64):
        middle = (low + high) / 2
        if (sparsity + middle).clamp(0, 1).mean() < mean:
            low = middle
        else:
            high = middle
    return high


# How TIP is read where the paper leaves it open ---------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How TIP is read where its text leaves it open; the defaults are this project's reading.

    sparsity: S_org of Eq. 5. on: W of Eq. 1 is A and B ("factors"), A alone ("A": B is left whole
    and counts for nothing), or s B A ("delta"). layer: a transformer block, a module or a factor.
    mean: Eq. 2 over all elements pooled, or over the modules' own means. normalized: Eqs. 3 and 4
    within each adapter, or across all that are merged. sign, shift_range, bounds: of
    `layer_sparsity`. group: whose lowest scores go, each row's, the whole matrix's, or those of all
    elements of the layer together. rescale: survivors times 1 / (1 - S_l).

    Two more take one thing away from TIP, to see what it does. score: what goes at the S_l is
    chosen by Eq. 1, by size alone ("magnitude") or at random. assignment: each layer gets its own
    S_l, all get the adapter's "mean", or the S_l are "shuffled" over its layers.
    """

    sparsity: float = 0.7
    on: str = "factors"
    layer: str = "block"
    mean: str = "elements"
    normalized: str = "within"
    sign: int = 1
    shift_range: float = 1.0
    bounds: str = "clip"
    group: str = "row"
    rescale: bool = False
    score: str = "wanda"
    assignment: str = "layer"

    def __post_init__(self) -> None:
        check_options("tip", vars(self))
