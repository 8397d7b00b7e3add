r"""LoRA Eqs. 1-6: what is trained, the update BA beside a frozen weight, what the update is like.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. The
paper numbers some of these and sets others in its text; here they are numbered in its order.
Shapes: W (d, k), A (r, k), B (d, r), so that h = W x has d channels of k; rows of a batch are x.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tipmini.errors import TipminiError

IGNORED = -100  # a target that is read and not predicted, as torch has it

# What is trained ----------------------------------------------------------------------------------


def log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    r"""LoRA Eq. 1: $\max_\Phi \sum_{(x, y)} \sum_t \log P_\Phi(y_t \mid x, y_{<t})$, the sum.

    logits (B, T, V) of a model with the weights Phi, where place t predicts targets (B, T) at t;
    a target of IGNORED counts for nothing. A scalar, not above 0.
    """
    return -torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def adapted_log_likelihood(
    logits: Callable[[Mapping[str, Tensor]], Tensor],
    frozen: Mapping[str, Tensor],
    increments: Mapping[str, Tensor],
    targets: Tensor,
) -> Tensor:
    r"""LoRA Eq. 2: $\max_\Theta \sum_{(x, y)} \sum_t \log p_{\Phi_0 + \Delta\Phi(\Theta)}(y_t)$.

    logits: from weights by name to (B, T, V). frozen: Phi_0. increments: Delta Phi, of which few
    names have one, each made of far fewer numbers Theta. Otherwise as `log_likelihood`.
    """
    weights = {
        name: w + increments[name] if name in increments else w for name, w in frozen.items()
    }
    return log_likelihood(logits(weights), targets)


# The update ---------------------------------------------------------------------------------------


def forward(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, alpha: float | None = None) -> Tensor:
    r"""LoRA Eq. 3: $h = W_0 x + \tfrac{\alpha}{r} B A x$, without the product BA.

    x is (..., k), h (..., d). alpha: None for r, which scales nothing. Raises TipminiError when
    the shapes don't fit.
    """
    _check(weight, a, b)
    return x @ weight.T + scaling(a, alpha) * (x @ a.T @ b.T)


def scaling(a: Tensor, alpha: float | None = None) -> float:
    """alpha / r of Eq. 3; 1 where alpha is None."""
    return 1.0 if alpha is None else alpha / len(a)


def initial_factors(d: int, k: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A (r, k) of a Gaussian, B (d, r) zero: BA is zero, and the model is what it was."""
    return torch.randn(rank, k, generator=generator) / k**0.5, torch.zeros(d, rank)


def merged(weight: Tensor, a: Tensor, b: Tensor, alpha: float | None = None) -> Tensor:
    """W_0 + alpha / r B A, (d, k), in W_0's dtype: Eq. 3 without any cost, and without its A and B.

    Raises TipminiError when the shapes don't fit.
    """
    _check(weight, a, b)
    return torch.addmm(weight, b.to(weight.dtype), a.to(weight.dtype), alpha=scaling(a, alpha))


def _check(weight: Tensor, a: Tensor, b: Tensor) -> None:
    (d, k), rank = weight.shape, len(a)
    if a.shape != (rank, k) or b.shape != (d, rank):
        shapes = ", ".join(str(tuple(t.shape)) for t in (weight, a, b))
        raise TipminiError(f"LoRA needs (d, k), (r, k), (d, r), got {shapes}")


# How many numbers are trained ---------------------------------------------------------------------


def lora_parameters(matrices: int, width: int, rank: int) -> int:
    r"""LoRA Eq. 4: $|\Theta| = 2 \hat L_{LoRA}\, d_{model}\, r$, of so many square matrices."""
    return 2 * matrices * width * rank


def adapter_parameters(adapters: int, width: int, rank: int, norms: int = 0) -> int:
    r"""$\hat L_{Adpt} (2 d r + r + d) + 2 \hat L_{LN} d$: bottlenecks with biases, and norms."""
    return adapters * (2 * width * rank + rank + width) + 2 * norms * width


def prefix_embedding_parameters(width: int, prefix: int, infix: int = 0) -> int:
    """$d (l_p + l_i)$: a vector for every special token before the text, and within."""
    return width * (prefix + infix)


def prefix_layer_parameters(layers: int, width: int, prefix: int, infix: int = 0) -> int:
    """$L d (l_p + l_i)$: the same after every layer."""
    return layers * prefix_embedding_parameters(width, prefix, infix)


# What the update is like --------------------------------------------------------------------------


def directions(matrix: Tensor) -> Tensor:
    """(min(d, k), k) right singular vectors in rows, that of the largest singular value first."""
    return torch.linalg.svd(matrix, full_matrices=False).Vh


def subspace_similarity(first: Tensor, second: Tensor) -> Tensor:
    r"""LoRA Eq. 5: $\phi(i, j) = \lVert U_1^{i\top} U_2^j \rVert_F^2 / \min(i, j)$, all i and j.

    first (r1, k) and second (r2, k) have orthonormal rows, as `directions` gives; U^i are the
    first i of them. (r1, r2) in [0, 1]: 0 where the subspaces are orthogonal, 1 where one lies
    within the other. Two random ones of k channels have max(i, j) / k.
    """
    overlap = (first @ second.T).square().cumsum(0).cumsum(1)
    count = torch.arange(1, 1 + max(overlap.shape), dtype=overlap.dtype)
    return overlap / torch.minimum(count[: len(first), None], count[None, : len(second)])


def projected_norm(weight: Tensor, onto: Tensor, rank: int) -> float:
    r"""$\lVert U^\top W V^\top \rVert_F$: what of W (d, k) lies in the first directions of another.

    U and V are the first `rank` left and right singular vectors of `onto`, (d, k).
    """
    u, _, vh = torch.linalg.svd(onto, full_matrices=False)
    return (u[:, :rank].T @ weight @ vh[:rank].T).norm().item()


def amplification(weight: Tensor, delta: Tensor, rank: int) -> float:
    r"""LoRA Eq. 6: $\lVert \Delta W \rVert_F / \lVert U^\top W V^\top \rVert_F$, U, V of Delta W.

    weight and delta are (d, k), rank that of delta: by how much training makes larger what W has
    in the directions that it changes.
    """
    return delta.norm().item() / projected_norm(weight, delta, rank)
