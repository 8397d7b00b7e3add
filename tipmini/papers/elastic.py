r"""Elastic adapters: LoNAS, Shears and SQFT, from slices of LoRA's factors to the search.

Source: Muñoz et al., "Low-rank adapters meet neural architecture search for LLM compression", arXiv
2501.16372, which tells of all three. Its text at hand prints no equations, so their numbers here
are this project's. The paper has Y = XW with X (n, k), W (k, d), L1 (k, r) and L2 (r, d); here
weights are stored as torch and PEFT have them: weight = W^T (d, k), a = L1^T (r, k), b = L2^T
(d, r), so that the adapter adds s (L1 L2)^T = s b a. n is the number of tokens.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tipmini.errors import TipminiError

Shape = tuple[int, int, int]  # of an adapted module: (d, k, r)
Value = TypeVar("Value", int, float)


# An adapter beside a frozen weight ----------------------------------------------------------------
def frozen_output(x: Tensor, weight: Tensor) -> Tensor:
    """Elastic Eq. 1: $Y = XW$. x is (..., k), weight (d, k), the outputs are (..., d)."""
    return x @ weight.T


def adapted_output(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Elastic Eq. 2: $Y = XW + s X L_1 L_2$, without the product L1 L2; shapes as in Eq. 1."""
    return frozen_output(x, weight) + scaling * (x @ a.T @ b.T)


# What is elastic: the rank (mode A), and the channels too (mode B) --------------------------------
def rank_slice(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Elastic Eq. 3: $L_1[:, :r'],\ L_2[:r', :]$, mode A; views of both, the scaling stays.

    a is (r, k), b (d, r); the slices are (r', k) and (d, r'). The scaling stays alpha / r of the
    whole adapter, so that a smaller rank leaves terms of the sum out and changes none. Raises
    TipminiError for a rank outside 1 ... r.
    """
    if not 1 <= rank <= len(a):
        raise TipminiError(f"rank_slice: rank must be 1 to {len(a)}, got {rank}")
    return a[:rank], b[:, :rank]


def channel_slice(
    weight: Tensor, a: Tensor, b: Tensor, rows: int | None = None, columns: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Elastic Eq. 4: $W[:k', :d'],\ L_1[:k', :],\ L_2[:, :d']$, mode B; views of all three.

    rows: d', the first output channels that stay; columns: k', the first input channels; None
    leaves all. weight is (d, k), a (r, k), b (d, r). Which channels come first is settled before,
    by an importance. Raises TipminiError for more channels than there are, or none.
    """
    for what, count, most in zip(("rows", "columns"), (rows, columns), weight.shape, strict=True):
        if count is not None and not 1 <= count <= most:
            raise TipminiError(f"channel_slice: {what} must be 1 to {most}, got {count}")
    return weight[:rows, :columns], a[:, :columns], b[:rows]


# Merging into a sparse weight, and into one on a grid of integers ---------------------------------
def sparse_delta(a: Tensor, b: Tensor, scaling: float, mask: Tensor) -> Tensor:
    r"""Elastic Eq. 5: $\Delta W = s\,(L_1 L_2) \odot M$, SparsePEFT, with $M = (W \neq 0)$.

    a is (r, k), b (d, r), mask (d, k) bool; the delta is (d, k), 0 wherever the weight is, so that
    W + delta has every zero of W. SparsePEFT computes with it in training too.
    """
    return scaling * (b @ a) * mask


def on_grid(weight: Tensor, scale: Tensor, zero: Tensor, bits: int = 4) -> Tensor:
    r"""Elastic Eq. 6: $\hat W = \sigma \bigl(\mathrm{clamp}(\lfloor W / \sigma \rceil + z,\ 0,\
    2^n - 1) - z\bigr)$, the numbers that integers of n bits stand for; QA-SparsePEFT's W is the sum
    $W + \Delta W$ of Eq. 5.

    weight is (d, k); scale and zero are (d, g), the base's own, one a group of k / g weights of a
    row; zero holds whole numbers, so 0 lies on the grid. Raises TipminiError where g doesn't divide
    k.
    """
    return from_codes(codes_on(weight, scale, zero, bits), scale, zero)


def codes_on(weight: Tensor, scale: Tensor, zero: Tensor, bits: int = 4) -> Tensor:
    """The whole numbers of Eq. 6, from 0 to 2^n - 1; (d, k), of the weight's floating dtype."""
    grouped = _grouped(weight, scale)
    codes = torch.round(grouped / scale[..., None]) + zero[..., None]
    return codes.clamp_(0, 2**bits - 1).view(weight.shape)


def from_codes(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What whole numbers of Eq. 6 stand for; all shapes as there."""
    grouped = _grouped(codes, scale)
    return ((grouped - zero[..., None]) * scale[..., None]).view(codes.shape)


def _grouped(weight: Tensor, scale: Tensor) -> Tensor:
    """(d, k) as (d, g, k / g)."""
    rows, columns = weight.shape
    if scale.shape[0] != rows or columns % scale.shape[1]:
        raise TipminiError(
            f"a weight {tuple(weight.shape)} has no scales {tuple(scale.shape)}: "
            "they must be (d, g), with g a divisor of k"
        )
    return weight.reshape(rows, scale.shape[1], -1)


# The search: what a sub-network costs, and the one that is taken without searching ----------------
def operations(shapes: Iterable[Shape]) -> int:
    r"""Elastic Eq. 7: $\mathrm{MACs} = \sum_m d_m k_m + r_m (d_m + k_m)$, for one token.

    shapes: (d, k, r) of every linear module as the sub-network has it, r = 0 where there is no
    adapter or it is merged. A multiply-accumulate is two floating-point operations. Products of
    tokens with one another (attention) are left out.
    """
    return sum(d * k + r * (d + k) for d, k, r in shapes)


def midpoint(choices: Sequence[Value]) -> Value:
    r"""Elastic Eq. 8: $c_{\lfloor n / 2 \rfloor}$ of the n values of an axis, from 0, largest
    first: the heuristic sub-adapter takes it of every axis, so that nothing is searched.

    Raises TipminiError for an axis without values.
    """
    if not choices:
        raise TipminiError("midpoint: an axis needs at least one value")
    return sorted(choices, reverse=True)[len(choices) // 2]
