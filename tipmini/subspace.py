"""Merges in a shared space of inputs or outputs; both results are exact factors."""

import torch
from torch import Tensor

from tipmini.adapter import LoraFactors, at_least_float32
from tipmini.errors import TipminiError
from tipmini.lowrank import stack
from tipmini.summation import Combine, Lazy, Part, Parts, Update, require
from tipmini.ties import electing, trim

RIDGE = 1e-9  # of the mean of the Gram matrices' diagonal


def merge_regmean(parts: Parts, *, shrink: float = 0.9) -> Update:
    r"""The update whose outputs are nearest to each adapter's on its own inputs (RegMean).

    $\Delta^* = \left(\sum_i w_i \Delta_i G_i\right) \left(\sum_i w_i G_i\right)^{-1}$ with the Gram
    matrices $G_i = X_i^\top X_i$ of the modules' inputs (`calibrate(..., statistic="gram")`).
    shrink multiplies what is off the diagonal of the G_i. Source: Jin et al., "Dataless knowledge
    fusion by merging weights of language models" (ICLR 2023), Eq. 2 and section 3.3.
    """
    if not 0 <= shrink <= 1:
        raise TipminiError(f"shrink must lie in [0, 1], got {shrink}")
    return Lazy(parts, lambda module, having: _regmean(module, having, shrink))


def _regmean(module: str, parts: Parts, shrink: float) -> LoraFactors:
    grams = [part.weight * _shrunk(_gram(part, module), shrink) for part in parts]
    whole = torch.stack(grams).sum(0)
    # A trace of a ridge: channels that nothing drives would make it singular; they stay 0.
    ridge = RIDGE * whole.diagonal().mean()
    root = torch.linalg.cholesky(whole + ridge * torch.eye(len(whole)))
    pairs = []
    for part, gram in zip(parts, grams, strict=True):
        factors = part.adapter.factors[module]
        a = factors.scaling * at_least_float32(factors.a).double() @ gram
        solved = torch.cholesky_solve(a.T, root).T
        pairs.append((at_least_float32(factors.b), solved.float()))
    return stack(pairs)


def _gram(part: Part, module: str) -> Tensor:
    channels = part.adapter.factors[module].shape[1]
    if part.grams is None or module not in part.grams:
        raise TipminiError(f"regmean needs the Gram matrix of {module}; calibrate with 'gram'")
    gram = part.grams[module].double()
    if gram.shape != (channels, channels):
        need = (channels, channels)
        raise TipminiError(f"{module} needs a Gram matrix {need}, got {tuple(gram.shape)}")
    return gram


def _shrunk(gram: Tensor, shrink: float) -> Tensor:
    return shrink * gram + (1 - shrink) * torch.diag(gram.diagonal())


def merge_knots(parts: Parts, *, density: float = 0.3, variant: str = "peft") -> Update:
    r"""TIES in the basis of the outputs that the adapters share (KnOTS).

    $[\Delta_1 \dots \Delta_T] = U \Sigma [V_1 \dots V_T]$, and the result is $U \Sigma$ times the
    TIES of the $V_i$. Options as in `merge_ties`. Source: Stoica et al., "Model merging with SVD
    to tie the KnOTS" (ICLR 2025).
    """
    require("variant", variant, ("peft", "mergekit"))
    combine = electing(variant)
    return Lazy(parts, lambda module, having: _knots(module, having, density, combine))


def _knots(module: str, parts: Parts, density: float, combine: Combine) -> LoraFactors:
    pairs = [part.adapter.factors[module] for part in parts]
    q, r = torch.linalg.qr(torch.cat([at_least_float32(pair.b) for pair in pairs], dim=1))
    inner = r.split([pair.rank for pair in pairs], dim=1)
    seen = [
        pair.scaling * own @ at_least_float32(pair.a)
        for pair, own in zip(pairs, inner, strict=True)
    ]
    u, s, vh = torch.linalg.svd(torch.cat(seen, dim=1), full_matrices=False)
    views = [trim(v, density) for v in vh.split([pair.shape[1] for pair in pairs], dim=1)]
    merged = combine(views, [part.weight for part in parts])
    root = s.sqrt()
    return LoraFactors(root[:, None] * merged, q @ u * root, scaling=1.0)
