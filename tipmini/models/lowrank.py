r"""Products B A without ever forming them: norms, truncation, and factors of a dense delta."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tipmini.errors import TipminiError, check_rank
from tipmini.models.factors import LoraFactors
from tipmini.models.files import largest


def product_norm(b: Tensor, a: Tensor) -> float:
    r"""$\lVert B A \rVert_F = \lVert R_B R_A^\top \rVert_F$ with $B = Q_B R_B$, $A^\top = Q_A R_A$.

    (d, r), (r, k). In float64 and without squares, so that nothing is lost where B A cancels.
    """
    r_b, r_a = (torch.linalg.qr(x.double(), mode="r").R for x in (b, a.T))
    return torch.linalg.matrix_norm(r_b @ r_a.T).item()


def relative_error(merged: LoraFactors | Tensor, exact: LoraFactors) -> float:
    r"""$\lVert M - E \rVert_F / \lVert E \rVert_F$ of one module; NaN where the exact sum is 0."""
    b, a = exact.b.double() * exact.scaling, exact.a.double()
    norm = product_norm(b, a)
    if isinstance(merged, Tensor):
        apart = torch.linalg.matrix_norm(merged.double() - b @ a).item()
    else:
        apart = product_norm(
            torch.cat([merged.b.double() * merged.scaling, -b], dim=1),
            torch.cat([merged.a.double(), a]),
        )
    return apart / norm if norm else float("nan")


def truncate(factors: LoraFactors, rank: int) -> LoraFactors:
    r"""The best approximation of rank at most `rank` (Eckart-Young), by an SVD of (r, r) size.

    With $B = Q_B R_B$ and $A^\top = Q_A R_A$ the singular values of B A are those of
    $R_B R_A^\top$. The root of each singular value goes to either factor; the scaling becomes 1.
    Raises TipminiError for a rank that is none and for factors that aren't finite.
    """
    check_rank(rank)
    q_b, r_b = torch.linalg.qr(factors.b * factors.scaling)
    q_a, r_a = torch.linalg.qr(factors.a.T)
    inner = r_b @ r_a.T
    _refuse_overflow(inner)
    u, s, vh = torch.linalg.svd(inner, full_matrices=False)
    return _split(q_b @ u[:, :rank], s[:rank], vh[:rank] @ q_a.T)


def product_svd(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """(d, n), (n,), (n, k) singular vectors and values of s B A, in float64; n is min(d, r, k)."""
    q_b, r_b = torch.linalg.qr(factors.b.double() * factors.scaling)
    q_a, r_a = torch.linalg.qr(factors.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, vh @ q_a.T


def factorise(delta: Tensor, rank: int) -> LoraFactors:
    """The best approximation of a dense (d, k) delta of rank at most `rank`, scaling 1.

    Lanczos (ARPACK) from a fixed start where few of many singular vectors are wanted, else LAPACK.
    Raises TipminiError for a rank that is none and for a delta that isn't finite.
    """
    check_rank(rank)
    _refuse_overflow(delta)
    smaller = min(delta.shape)
    if 4 * rank > smaller or _exhausts_lanczos(delta, rank):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return _split(u[:, :rank], s[:rank], vh[:rank])
    import numpy as np
    from scipy.sparse.linalg import svds

    dense = delta.cpu().numpy()
    start = np.random.default_rng(0).standard_normal(smaller).astype(dense.dtype)
    u, s, vh = svds(dense, k=rank, v0=start)  # ascending
    order = s.argsort()[::-1].copy()
    parts = (torch.from_numpy(x.copy()) for x in (u[:, order], s[order], vh[order]))
    u, s, vh = (part.to(delta.device) for part in parts)
    return _split(u, s, vh)


def _exhausts_lanczos(delta: Tensor, rank: int) -> bool:
    """Whether ARPACK's basis can span all that the delta reaches, as where most rows are pruned:
    it then goes on from random numbers of its own, which differ from run to run."""
    rows, columns = (int(delta.any(dim=dim).sum()) for dim in (1, 0))
    return min(rows, columns) <= max(2 * rank + 1, 20)  # the size of its basis


def _refuse_overflow(tensor: Tensor) -> None:
    if not math.isfinite(largest(tensor)):
        raise TipminiError(f"the sum overflows {tensor.dtype}; take smaller weights")


def stack(pairs: Sequence[tuple[Tensor, Tensor]]) -> LoraFactors:
    """All (B, A) side by side: exactly the sum of the B A; scaling 1."""
    return LoraFactors(
        torch.cat([a for _, a in pairs], dim=0), torch.cat([b for b, _ in pairs], dim=1), 1.0
    )


def _split(u: Tensor, s: Tensor, vh: Tensor) -> LoraFactors:
    root = s.sqrt()
    return LoraFactors(root[:, None] * vh, u * root, scaling=1.0)
