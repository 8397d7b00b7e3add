r"""Merge methods in the subspace that the adapters span: TSV-M and Iso-C in core space, and WUDI.

With orthonormal bases Q_B of all the B side by side and Q_A of all the A above each other, every
update is $\Delta_i = Q_B M_i Q_A^\top$ with a small core matrix $M_i$, and what singular vectors
make of the $\Delta_i$ they make of the $M_i$ (Panariello et al., "Accurate and efficient low-rank
model merging in core space", NeurIPS 2025). Here the singular vectors are those of thin factors,
which comes to the same: no (d, k) matrix is formed. The weights multiply the updates at first.
"""

import torch
from torch import Tensor

from tipmini.methods.merge import Parts, Update, lazy, stack_factors
from tipmini.models.factors import LoraFactors
from tipmini.models.lowrank import product_svd

NULL = 1e-6  # of the largest singular value; what lies below is rounding


def merge_tsv(parts: Parts, *, isotropic: bool = False) -> Update:
    r"""Singular vectors of all updates made orthogonal to one another, then summed (TSV-M).

    With $\Delta_i = U_i \Sigma_i V_i^\top$ it is $P([U_1 \dots U_T])\, \mathrm{diag}(\Sigma_1
    \dots \Sigma_T)\, P([V_1 \dots V_T])^\top$, where $P(X) = X (X^\top X)^{-1/2}$ has the nearest
    orthonormal columns. The largest min(d, k) // T singular values of each update stay: of so many
    the vectors can be orthogonal. isotropic replaces all values by their mean at the end, as core
    space's authors do. Of dense updates of a lower rank than that the authors' code also takes
    vectors of the value 0, which are arbitrary and turn the others; here, as in core space, there
    are none. Source: Gargiulo et al., "Task singular vectors: reducing task interference in model
    merging" (CVPR 2025).
    """

    def tsv(module: str, own: Parts) -> LoraFactors:
        pairs = [stack_factors(module, [part]) for part in own]
        found = [svd for svd in map(_own_directions, pairs) if len(svd[1])]
        if not found:
            return _nothing(pairs[0])
        stay = max(1, min(pairs[0].shape) // len(found))
        left = _orthonormal(torch.cat([u[:, :stay] for u, _, _ in found], dim=1))
        right = _orthonormal(torch.cat([vh[:stay] for _, _, vh in found]).T).T
        values = torch.cat([s[:stay] for _, s, _ in found])
        return _factors(left, values, right, isotropic, pairs[0].a.dtype)

    return lazy(parts, tsv)


def merge_iso(parts: Parts) -> Update:
    r"""The exact sum with all its singular values replaced by their mean (Iso-C).

    With $\sum_i \Delta_i = U \Sigma V^\top$ it is $\bar\sigma U V^\top$, over the directions that
    the sum has, as in core space. On dense updates the authors' mean is over all min(d, k) singular
    values, most of them 0, which come out as large as the others, in arbitrary directions. Source:
    Marczak et al., "No task left behind: isotropic model merging with common and task-specific
    subspaces" (ICML 2025).
    """

    def iso(module: str, own: Parts) -> LoraFactors:
        exact = stack_factors(module, own)
        u, s, vh = _own_directions(exact)
        return _factors(u, s, vh, True, exact.a.dtype) if len(s) else _nothing(exact)

    return lazy(parts, iso)


def _own_directions(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """(d, n), (n,), (n, k) SVD in float64 without what is 0, which has no direction."""
    u, s, vh = product_svd(factors)
    count = int((s > NULL * s[0]).sum())
    return u[:, :count], s[:count], vh[:count]


def _orthonormal(columns: Tensor) -> Tensor:
    """The polar factor of (d, n); directions that the columns do not span stay 0."""
    u, s, vh = torch.linalg.svd(columns, full_matrices=False)
    count = int((s > NULL * s[0]).sum())
    return u[:, :count] @ vh[:count]


def _factors(
    left: Tensor, values: Tensor, right: Tensor, isotropic: bool, dtype: torch.dtype
) -> LoraFactors:
    """Of left (d, n), values (n,) or their mean, and right (n, k)."""
    values = values.mean().expand_as(values) if isotropic else values
    return LoraFactors((values[:, None] * right).to(dtype), left.to(dtype), scaling=1.0)


def _nothing(factors: LoraFactors) -> LoraFactors:
    """A rank of 1 where every update is 0."""
    return LoraFactors(0 * factors.a[:1], 0 * factors.b[:, :1], scaling=1.0)


# WUDI: the updates' own rows in place of inputs ---------------------------------------------------
def merge_wudi(parts: Parts, *, ridge: float = 0.0) -> Update:
    r"""The update that interferes least with each adapter's own rows (WUDI, in closed form).

    $\sum_i \lVert (\Delta - \Delta_i) \Delta_i^\top \rVert^2 / \lVert \Delta_i \rVert^2$ is
    RegMean's objective with $G_i = \Delta_i^\top \Delta_i / \lVert \Delta_i \rVert^2$ in the place
    of Gram matrices, so $\Delta^* = \left(\sum_i \Delta_i (G_i + \rho I)\right) \left(\sum_i G_i +
    \rho I\right)^+$. At ridge 0 it is the minimum within the rows of the $\Delta_i$: of other
    directions the objective says nothing, and there it is 0. The authors start at the sum and take
    300 steps of Adam at 1e-5 (in fusion-bench): no element moves further than about 3e-3, and the
    steps leave the rows' span. ridge, times the mean eigenvalue of $\sum_i G_i$, likewise holds the
    result near the sum.
    Source: Cheng et al., "Whoever started the interference should end it: guiding data-free model
    merging via task vectors" (ICML 2025).
    """

    def wudi(module: str, own: Parts) -> LoraFactors:
        exact = stack_factors(module, own)
        basis, rows = torch.linalg.qr(exact.a.double().T)  # A = rows^T basis^T
        ranks = [part.adapter.factors[module].rank for part in own]
        pairs = zip(exact.b.double().split(ranks, dim=1), rows.T.split(ranks), strict=True)
        seen = [(a, _gram_of(b, a)) for b, a in pairs]
        whole = sum(gram for _, gram in seen)
        rho = ridge * whole.trace() / len(whole)
        held = rho * torch.eye(len(whole), dtype=whole.dtype, device=whole.device)
        inverse = torch.linalg.pinv(whole + held, rtol=NULL**2, hermitian=True)
        solved = torch.cat([a @ (gram + held) @ inverse for a, gram in seen]) @ basis.T
        return LoraFactors(solved.to(exact.a.dtype), exact.b, scaling=1.0)

    return lazy(parts, wudi)


def _gram_of(b: Tensor, a: Tensor) -> Tensor:
    """(n, n) of b (d, r) and a (r, n): $(B A)^\top B A$ over its trace; 0 of what is 0."""
    gram = a.T @ (b.T @ b) @ a
    trace = gram.trace()
    return gram / trace if trace > 0 else gram
