"""Merge methods beside TIP and the sums: DARE, magnitude, TIES, RegMean, KnOTS."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tipmini.errors import TipminiError, input_gram, refuse_negative
from tipmini.masks import prune_rows
from tipmini.methods.merge import Combine, Part, Parts, Transform, Update, lazy, merge_tensors
from tipmini.methods.table import TARGETS
from tipmini.methods.tip import tip_tensor
from tipmini.models.factors import LoraFactors
from tipmini.models.lowrank import stack
from tipmini.papers.dare import dare, named_generator
from tipmini.papers.ties import elect, electing, majority, trim, trim_threshold

RIDGE = 1e-6  # of each diagonal element of the Gram matrices, whose digits are float32's
NULL = 1e-6  # of the largest singular value; what lies below is rounding


def merge_dare(
    parts: Parts,
    *,
    drop_rate: float = 0.7,
    rescale: str | None = "expected",
    on: str = "factors",
    summation: str = "linear",
    rank: int | None = None,
) -> Update:
    """Random elements dropped, the others rescaled, then summed (DARE).

    By default PEFT's dare_linear with density 1 - drop_rate; on="delta" is the authors'. Options
    as in `dare` and `merge_tensors`.
    """
    change = _dropping(drop_rate, rescale)
    return merge_tensors(parts, change, on=on, summation=summation, rank=rank)


def _dropping(drop_rate: float, rescale: str | None) -> Transform:
    """A `Transform` that drops by the seed, the adapter's name and the tensor's."""

    def change(part: Part, name: str, tensor: Tensor) -> Tensor:
        generator = named_generator(part.seed, part.name, name)
        return dare(tensor, drop_rate, generator=generator, rescale=rescale)

    return change


def merge_magnitude(
    parts: Parts,
    *,
    sparsity: float = 0.7,
    group: str = "matrix",
    on: str = "factors",
    summation: str = "linear",
    rank: int | None = None,
) -> Update:
    """The smallest elements pruned, then summed (PEFT's magnitude_prune).

    group: whose smallest go, the whole tensor's or each row's. floor(sparsity n) of n elements go;
    PEFT keeps floor(density n), which is one less where density n is not whole.
    """

    def change(part: Part, name: str, tensor: Tensor) -> Tensor:
        flat = tensor.reshape(1, -1) if group == "matrix" else tensor
        return prune_rows(flat, flat.abs(), sparsity).view_as(tensor)

    return merge_tensors(parts, change, on=on, summation=summation, rank=rank)


# TIES ---------------------------------------------------------------------------------------------
def merge_ties(
    parts: Parts,
    *,
    density: float = 0.3,
    variant: str = "peft",
    on: str = "factors",
    rank: int | None = None,
) -> Update:
    """Trimmed by size, one sign elected a place, those that agree averaged (TIES).

    density is the share that stays; variant is "peft", "authors" or "mergekit" (see `ties`), the
    last with on="delta" alone: the weights it divides by would take the scaling away from factors.
    """
    bars = {}  # the authors': one over all tensors of an adapter, which are held all at once
    for part in parts if variant == "authors" else ():
        pairs = part.adapter.factors.values()
        tensors = [tip_tensor(pair, name) for pair in pairs for name in TARGETS[on]]
        bars[part.name] = trim_threshold(tensors, density)

    def change(part: Part, name: str, tensor: Tensor) -> Tensor:
        if part.name not in bars:
            return trim(tensor, density)
        return tensor.masked_fill(tensor.abs() < bars[part.name], 0)

    return _elected(parts, change, variant, on, rank)


def merge_dare_ties(
    parts: Parts,
    *,
    drop_rate: float = 0.7,
    rescale: str | None = "expected",
    variant: str = "peft",
    on: str = "factors",
    rank: int | None = None,
) -> Update:
    """Random elements dropped instead of small ones trimmed, then elected as TIES does (DARE-TIES).

    Options as in `merge_dare` and `merge_ties`.
    """
    return _elected(parts, _dropping(drop_rate, rescale), variant, on, rank)


def _elected(parts: Parts, change: Transform, variant: str, on: str, rank: int | None) -> Update:
    """The authors give sums of 0 the sign that most places of all tensors elect."""
    signs: list[Tensor] = []

    def note(tensors: Sequence[Tensor], _: Sequence[float]) -> Tensor:
        signs.append(elect(torch.stack(list(tensors)), zero=0.0).sum(dtype=torch.float64))
        return tensors[0]

    if variant == "authors":
        for _ in merge_tensors(parts, change, on=on, combine=note).values():
            pass  # each module is merged as it is read
    combine = electing(variant, majority(torch.stack(signs)) if signs else 1.0)
    return merge_tensors(parts, change, on=on, rank=rank, combine=combine)


# RegMean: in the space of the inputs --------------------------------------------------------------
def merge_regmean(
    parts: Parts, *, shrink: float = 0.9, scale: float = 1.0, balance: float = 0.0
) -> Update:
    r"""The update whose outputs are nearest to each adapter's on its own inputs (RegMean).

    $\Delta^* = \left(\sum_i w_i \Delta_i G_i\right) \left(\sum_i w_i G_i\right)^{-1}$ with the Gram
    matrices $G_i = X_i^\top X_i$ of the modules' inputs (`calibrate(..., statistic="gram")`), which
    minimises $\sum_i w_i \lVert X_i (\Delta - \Delta_i)^\top \rVert^2$. So the weights, from 0 on,
    matter in proportion alone; scale multiplies the whole result. shrink multiplies what is off
    the diagonal of the G_i. balance is the power p of $w_i / \operatorname{tr}(\Delta_i G_i
    \Delta_i^\top)^p$ in the place of $w_i$, module by module: at 1 each adapter's error counts in
    parts of its own output, however large its update is. Source: Jin et al., "Dataless knowledge
    fusion by merging weights of language models" (ICLR 2023), Eq. 2 and section 3.3.
    """
    refuse_negative({part.name: part.weight for part in parts})

    def regmean(module: str, own: Parts) -> LoraFactors:
        root, pairs = root_of(module, sum(_grams(module, own, shrink, balance))), []
        for part, gram in zip(own, _grams(module, own, shrink, balance), strict=True):
            factors = part.adapter.factors[module]
            a = scale * factors.scaling * factors.a.double() @ gram
            solved = torch.cholesky_solve(a.T, root).T
            pairs.append((factors.b, solved.to(factors.b.dtype)))
        return stack(pairs)

    return lazy(parts, regmean)


def root_of(module: str, whole: Tensor) -> Tensor:
    """The Cholesky factor of the Gram matrices' sum, (k, k), which is overwritten."""
    diagonal = whole.diagonal()
    diagonal *= 1 + RIDGE
    diagonal[diagonal == 0] = 1  # a channel that nothing drives: its column comes out 0
    root, failed = torch.linalg.cholesky_ex(whole)
    if failed:
        raise TipminiError(f"the Gram matrices of {module} are singular; take a smaller shrink")
    return root


def _grams(module: str, parts: Parts, shrink: float, balance: float) -> Iterator[Tensor]:
    """Weighted and shrunk, one at a time: each is large."""
    for part in parts:
        a = part.adapter.factors[module].a  # (r, k)
        gram = input_gram(part.grams, module, a.shape[1]).to(a.device, torch.float64)
        if not gram.isfinite().all():
            raise TipminiError(f"{module} needs a finite Gram matrix, got NaN or Inf")
        yield balanced_weight(part, module, gram, balance) * shrunk(gram, shrink)


def shrunk(gram: Tensor, shrink: float) -> Tensor:
    """The matrix with what is off its diagonal times shrink."""
    return shrink * gram + (1 - shrink) * torch.diag(gram.diagonal())


def balanced_weight(part: Part, module: str, gram: Tensor, balance: float) -> float:
    r"""$w / \operatorname{tr}(\Delta G \Delta^\top)^p$, what the update puts out; 0 of nothing."""
    if not balance:
        return part.weight
    pair = part.adapter.factors[module]
    a, b = pair.a.double() * pair.scaling, pair.b.double()
    output = ((a @ gram @ a.T) * (b.T @ b)).sum().item()
    return part.weight * output**-balance if output > 0 else 0.0


# KnOTS: in the space of the outputs ---------------------------------------------------------------
def merge_knots(
    parts: Parts, *, density: float = 0.3, variant: str = "peft", scaled: bool = True
) -> Update:
    r"""TIES in the basis of the outputs that the adapters share (KnOTS).

    $[\Delta_1 \dots \Delta_T] = U \Sigma [V_1 \dots V_T]$, of its own rank, and the result is U
    times the TIES of the $\Sigma V_i$, as in the authors' release; scaled=False takes $U \Sigma$
    times the TIES of the $V_i$ instead. density as in `merge_ties`; variant is "peft" or
    "mergekit". Source: Stoica et al., "Model merging with SVD to tie the KnOTS" (ICLR 2025).
    """
    combine: Combine = electing(variant)

    def knots(module: str, own: Parts) -> LoraFactors:
        pairs = [part.adapter.factors[module] for part in own]
        u, s, vh = _shared_svd(pairs)
        left, right = (u, s[:, None] * vh) if scaled else (u * s, vh)
        views = right.split([pair.shape[1] for pair in pairs], dim=1)
        merged = combine([trim(view, density) for view in views], [part.weight for part in own])
        dtype = pairs[0].a.dtype
        return LoraFactors(merged.to(dtype), left.to(dtype), scaling=1.0)

    return lazy(parts, knots)


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
