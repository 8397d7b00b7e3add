"""Merges in a shared space of inputs or outputs; both results are exact factors."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tipmini.errors import TipminiError
from tipmini.methods.sums import Combine, Lazy, Part, Parts, Update
from tipmini.methods.table import input_gram
from tipmini.methods.weighting import refuse_negative
from tipmini.models.adapter import LoraFactors
from tipmini.models.lowrank import stack
from tipmini.papers.ties import electing, trim

RIDGE = 1e-6  # of each diagonal element of the Gram matrices, whose digits are float32's
NULL = 1e-6  # of the largest singular value; what lies below is rounding


def merge_regmean(parts: Parts, *, shrink: float = 0.9, scale: float = 1.0) -> Update:
    r"""The update whose outputs are nearest to each adapter's on its own inputs (RegMean).

    $\Delta^* = \left(\sum_i w_i \Delta_i G_i\right) \left(\sum_i w_i G_i\right)^{-1}$ with the Gram
    matrices $G_i = X_i^\top X_i$ of the modules' inputs (`calibrate(..., statistic="gram")`), which
    minimises $\sum_i w_i \lVert X_i (\Delta - \Delta_i)^\top \rVert^2$. So the weights, from 0 on,
    matter in proportion alone; scale multiplies the whole result. shrink multiplies what is off
    the diagonal of the G_i. Source: Jin et al., "Dataless knowledge fusion by merging weights of
    language models" (ICLR 2023), Eq. 2 and section 3.3.
    """
    refuse_negative({part.name: part.weight for part in parts})
    return Lazy(parts, lambda module, own: _regmean(module, own, shrink, scale))


def _regmean(module: str, parts: Parts, shrink: float, scale: float) -> LoraFactors:
    root = _root(module, _grams(module, parts, shrink))
    pairs = []
    for part, gram in zip(parts, _grams(module, parts, shrink), strict=True):
        factors = part.adapter.factors[module]
        a = scale * factors.scaling * factors.a.double() @ gram
        solved = torch.cholesky_solve(a.T, root).T
        pairs.append((factors.b, solved.to(factors.b.dtype)))
    return stack(pairs)


def _root(module: str, grams: Iterator[Tensor]) -> Tensor:
    """The Cholesky factor of the Gram matrices' sum, (k, k)."""
    whole = sum(grams)
    diagonal = whole.diagonal()
    diagonal *= 1 + RIDGE
    diagonal[diagonal == 0] = 1  # a channel that nothing drives: its column comes out 0
    root, failed = torch.linalg.cholesky_ex(whole)
    if failed:
        raise TipminiError(f"the Gram matrices of {module} are singular; take a smaller shrink")
    return root


def _grams(module: str, parts: Parts, shrink: float) -> Iterator[Tensor]:
    """Weighted and shrunk, one at a time: each is large."""
    for part in parts:
        gram = _gram(part, module)
        yield part.weight * (shrink * gram + (1 - shrink) * torch.diag(gram.diagonal()))


def _gram(part: Part, module: str) -> Tensor:
    channels = part.adapter.factors[module].shape[1]
    gram = input_gram(part.grams, module, channels).double()
    if not gram.isfinite().all():
        raise TipminiError(f"{module} needs a finite Gram matrix, got NaN or Inf")
    return gram


def merge_knots(
    parts: Parts, *, density: float = 0.3, variant: str = "peft", scaled: bool = True
) -> Update:
    r"""TIES in the basis of the outputs that the adapters share (KnOTS).

    $[\Delta_1 \dots \Delta_T] = U \Sigma [V_1 \dots V_T]$, of its own rank, and the result is U
    times the TIES of the $\Sigma V_i$, as in the authors' release; scaled=False takes $U \Sigma$
    times the TIES of the $V_i$ instead. density as in `merge_ties`; variant is "peft" or
    "mergekit". Source: Stoica et al., "Model merging with SVD to tie the KnOTS" (ICLR 2025).
    """
    combine = electing(variant)
    return Lazy(parts, lambda module, own: _knots(module, own, density, combine, scaled))


def _knots(
    module: str, parts: Parts, density: float, combine: Combine, scaled: bool
) -> LoraFactors:
    pairs = [part.adapter.factors[module] for part in parts]
    u, s, vh = _shared_svd(pairs)
    left, right = (u, s[:, None] * vh) if scaled else (u * s, vh)
    views = right.split([pair.shape[1] for pair in pairs], dim=1)
    merged = combine([trim(view, density) for view in views], [part.weight for part in parts])
    dtype = pairs[0].a.dtype
    return LoraFactors(merged.to(dtype), left.to(dtype), scaling=1.0)


def _shared_svd(pairs: list[LoraFactors]) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of all deltas side by side, in float64 and never forming them.

    Without the null directions, which are arbitrary; one is left where everything is 0.
    """
    q, r = torch.linalg.qr(torch.cat([pair.b.double() for pair in pairs], dim=1))
    inner = r.split([pair.rank for pair in pairs], dim=1)
    seen = [p.scaling * own @ p.a.double() for p, own in zip(pairs, inner, strict=True)]
    u, s, vh = torch.linalg.svd(torch.cat(seen, dim=1), full_matrices=False)
    rank = max(1, int((s > NULL * s[0]).sum()))
    return q @ u[:, :rank], s[:rank], vh[:rank]
