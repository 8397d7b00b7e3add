r"""LoRAPrune: which heads and channels matter, told by the gradients of A and B alone.

Source: Zhang et al., "LoRAPrune", arXiv 2305.18403. Shapes: W (d, k), A (r, k), B (d, r), with
z = x W^T, as torch has it. The adapter adds s B A to W; the paper has s = 1.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tipmini.errors import TipminiError, require

Loss = Callable[[Tensor], Tensor]  # weight (d, k) -> the loss, a scalar

# What removing one weight costs ------------------------------------------------------------------


def lora_linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float = 1.0) -> Tensor:
    """LoRAPrune Eq. 1: $z = x W_0 + x B A$, without the product BA; x is (..., k), z (..., d)."""
    return x @ weight.T + scaling * (x @ a.T @ b.T)


def removal_importance(loss: Loss, weight: Tensor) -> Tensor:
    r"""LoRAPrune Eq. 2: $I_{ij} = [L(W) - L(W | W_{ij} = 0)]^2$, by d k evaluations of the loss."""
    return lora_removal_importance(loss, weight, torch.zeros_like(weight))


def lora_removal_importance(loss: Loss, weight: Tensor, product: Tensor) -> Tensor:
    r"""LoRAPrune Eq. 5: $I_{ij} = [L(W) - L(W | (BA)_{ij} = -W_{ij})]^2$, for W with an adapter.

    weight and product = BA are (d, k); so are the importances. For small matrices: it is what the
    first-order estimates below stand for.
    """
    whole, found = loss(weight + product), torch.empty_like(weight)
    for place in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
        without = product.clone()
        without[tuple(place)] = -weight[tuple(place)]
        found[tuple(place)] = (whole - loss(weight + without)).square()
    return found


def taylor_importance(weight: Tensor, grad: Tensor) -> Tensor:
    r"""LoRAPrune Eq. 3: $\hat I = (\nabla_W \circ W)^2$, the vanilla first-order criterion.

    weight and grad = dL/dW are (d, k); the importances are (d, k), not below 0. Raises
    TipminiError when the shapes differ.
    """
    _check_same_shape(weight, grad)
    return (grad * weight).square()


def product_importance(
    weight: Tensor, product: Tensor, grad: Tensor, *, scaling: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 6: $\hat I = [\partial L / \partial (BA) \circ (BA + W)]^2$, Eq. 5 to first
    order.

    weight, product = BA and grad = dL/d(BA) are (d, k). Raises TipminiError when shapes differ.
    """
    _check_same_shape(weight, grad)  # before the sum below could broadcast
    return taylor_importance(weight + scaling * product, grad)


# The gradient of BA, from those of A and B -------------------------------------------------------


def change_gradient(before: Tensor, after: Tensor, learning_rate: float = 1.0) -> Tensor:
    r"""LoRAPrune Eq. 7: $\partial L / \partial (BA) = [(BA)_{t-1} - (BA)_t] / \eta$."""
    return (before - after) / learning_rate


def stepped_product(
    a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, learning_rate: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 8: $(BA)_t = (B - \eta \nabla_B)(A - \eta \nabla_A)$, after one SGD step."""
    return (b - learning_rate * grad_b) @ (a - learning_rate * grad_a)


def lora_gradient(
    a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, *, learning_rate: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 9: $G = \nabla_B A + B \nabla_A - \eta \nabla_B \nabla_A$.

    a and grad_a are (r, k), b and grad_b (d, r); G is (d, k). It stands for the gradient of the
    loss with respect to BA: it is the change $BA - (B - \nabla_B)(A - \nabla_A)$ that one SGD step
    of learning rate 1 brings (Eqs. 7, 8). With the true gradient g, $\nabla_B = g A^\top$ and
    $\nabla_A = B^\top g$, so G is g itself for instance where B = 0 and $A^\top A$ is the identity,
    which needs a rank of k; else it is mostly g seen through the adapter. Raises TipminiError when
    the shapes don't fit.
    """
    if a.shape != grad_a.shape or b.shape != grad_b.shape or a.shape[0] != b.shape[1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (a, b, grad_a, grad_b))
        raise TipminiError(f"lora_gradient needs (r, k), (d, r), (r, k), (d, r), got {shapes}")
    return grad_b @ a + b @ grad_a - learning_rate * (grad_b @ grad_a)


def lora_guided_importance(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    grad_a: Tensor,
    grad_b: Tensor,
    *,
    scaling: float = 1.0,
) -> Tensor:
    r"""LoRAPrune Eq. 10: $\hat I = [G \circ (W + s B A)]^2$, with G of `lora_gradient`.

    weight is (d, k); the importances are (d, k), not below 0. The paper has no scaling (s = 1);
    with an adapter's own s, W + s B A is the weight that the model computes with, as in the
    authors' code. Raises TipminiError when the shapes don't fit.
    """
    gradient = lora_gradient(a, b, grad_a, grad_b)
    return product_importance(weight, b @ a, gradient, scaling=scaling)


def _check_same_shape(weight: Tensor, grad: Tensor) -> None:
    if weight.shape != grad.shape:
        raise TipminiError(
            f"importance needs weight and gradient of one shape, "
            f"got {tuple(weight.shape)} and {tuple(grad.shape)}"
        )


# From weights to groups, and from groups to masks ------------------------------------------------


def group_importance(importance: Tensor, count: int, dim: int = 0) -> Tensor:
    r"""LoRAPrune Eq. 4: $\hat G_g = \sum_{W_{ij} \in g} \hat I_{ij}$, of one module's weights.

    importance: (d, k). count: groups, which are blocks of d / count rows (dim 0) or k / count
    columns (dim 1). The sums are (count,); a group of several modules adds theirs up.
    """
    if importance.ndim != 2 or importance.shape[dim] % count:
        raise TipminiError(f"{tuple(importance.shape)} has no {count} equal groups along {dim}")
    return importance.sum(1 - dim).view(count, -1).sum(1)


def moving_average(average: Tensor, importance: Tensor, decay: float = 0.9) -> Tensor:
    r"""LoRAPrune Eq. 11: $\bar G_t = \lambda \bar G_{t-1} + (1 - \lambda) \hat G_t$, (count,)."""
    return decay * average + (1 - decay) * importance


def threshold_mask(importance: Tensor, threshold: float) -> Tensor:
    r"""LoRAPrune Eq. 12: $M_g = 1$ where $\bar G_g > p$, else 0; bool, (count,)."""
    if importance.isnan().any():
        raise TipminiError("group importances contain NaN; check the gradients")
    return importance > threshold


def share_mask(importance: Tensor, removed: int, kept: Tensor | None = None) -> Tensor:
    """Eq. 12 with p at the `removed`-th lowest importance: bool, (count,), False for that many.

    Among equal importances the lower index goes first. kept: the mask so far; what it has removed
    stays removed and counts. Raises TipminiError for NaN, for a number that is not there, and for
    one below what is removed already.
    """
    gone = torch.zeros_like(importance, dtype=torch.bool) if kept is None else ~kept
    least = int(gone.sum())
    if not least <= removed <= len(importance):
        already = f", {least} are already" if least else ""
        raise TipminiError(f"{removed} of {len(importance)} groups cannot be removed{already}")
    if importance.isnan().any():
        raise TipminiError("group importances contain NaN; check the gradients")
    order = torch.where(gone, -math.inf, importance).argsort(stable=True)
    mask = torch.ones_like(gone)
    mask[order[:removed]] = False
    return mask


def masked_linear(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, mask: Tensor, scaling: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 13: $z = (x W_0 + x B A) \circ M$; mask is (count,) groups of outputs.

    x is (..., k), z (..., d), d a multiple of count.
    """
    z = lora_linear(x, weight, a, b, scaling)
    return z * mask.repeat_interleave(z.shape[-1] // len(mask)).to(z.dtype)


# Pruning criteria: the importance of every group of one module, in chunks of its rows -----------
CHUNK, PART = 1 << 15, 1 / 32

REDUCTIONS = ("paper", "released")


@dataclass(frozen=True)
class Signals:
    """A module's weight and what is known of it; None where a criterion needs nothing of it.

    weight (d, k) of any floating dtype, or int8 with scale (d, 1); factors a (r, k) and b (d, r)
    with their gradients, scaling; grad = dL/dW (d, k); input_norm (k,).
    """

    weight: Tensor
    a: Tensor | None = None
    b: Tensor | None = None
    grad_a: Tensor | None = None
    grad_b: Tensor | None = None
    scaling: float = 1.0
    grad: Tensor | None = None
    input_norm: Tensor | None = None
    scale: Tensor | None = None

    def rows(self, part: slice) -> Tensor:
        """W + s B A of some rows, (rows, k) float32: the weight that the model computes with."""
        weight = self.weight[part].to(torch.float32, copy=True)
        if self.scale is not None:
            weight *= self.scale[part]
        if self.b is not None:
            weight.addmm_(self.b[part].float(), self.a.float(), alpha=self.scaling)
        return weight


# What is summed over a group, (rows, k) ----------------------------------------------------------


def lora_guided(signals: Signals, part: slice) -> Tensor:
    """LoRAPrune's: G o (W + s B A), the root of Eq. 10; needs the gradients of A and B alone."""
    factors = signals.a, signals.b[part], signals.grad_a, signals.grad_b[part]
    return lora_gradient(*(f.float() for f in factors)).mul_(signals.rows(part))


def vanilla(signals: Signals, part: slice) -> Tensor:
    """Eq. 3's: the gradient of the weight times the weight; needs dL/dW whole."""
    return signals.grad[part].float() * signals.rows(part)


def taylor(signals: Signals, part: slice) -> Tensor:
    """LLM-Pruner's first order, element by element: sum |w g|."""
    return vanilla(signals, part)


def taylor_vector(signals: Signals, part: slice) -> Tensor:
    """LLM-Pruner's vectorised form: |sum w g| of each row or column, summed over a group's."""
    return vanilla(signals, part)


def magnitude(signals: Signals, part: slice) -> Tensor:
    """sum |w|."""
    return signals.rows(part)


def wanda(signals: Signals, part: slice) -> Tensor:
    """Wanda's score |w| n_j summed over a group; needs the norms of the module's inputs."""
    return signals.rows(part).mul_(signals.input_norm)


CRITERIA: dict[str, Callable[[Signals, slice], Tensor]] = {
    "lora-guided": lora_guided,
    "vanilla": vanilla,
    "taylor": taylor,
    "taylor-vector": taylor_vector,
    "magnitude": magnitude,
    "wanda": wanda,
}
METHODS = (*CRITERIA, "random")
SQUARED = ("lora-guided", "vanilla")  # as the paper prints them
NEEDS_WEIGHT_GRADIENT = ("vanilla", "taylor", "taylor-vector")


def needs_gradient(method: str) -> bool:
    """Whether a method reads any gradient at all."""
    return method == "lora-guided" or method in NEEDS_WEIGHT_GRADIENT


# Sums over groups --------------------------------------------------------------------------------


def group_scores(
    signals: Signals,
    count: int,
    dim: int = 0,
    method: str = "lora-guided",
    reduction: str = "paper",
) -> Tensor:
    """LoRAPrune Eq. 4 of one module by any criterion, chunk by chunk: (count,) float32.

    count groups are equal blocks of rows (dim 0) or columns (dim 1). reduction "paper": squares
    for Eqs. 3 and 10, magnitudes for the others. "released": magnitudes, and the module's scores
    divided by their L2 norm, as in the authors' code. A group of several modules adds theirs up.
    """
    require("method", method, CRITERIA)
    require("reduction", reduction, REDUCTIONS)
    if signals.weight.shape[dim] % count:
        shape = tuple(signals.weight.shape)
        raise TipminiError(f"a weight {shape} has no {count} equal groups along {dim}")
    # Double sums, so that the result does not show how the rows were cut into chunks.
    lines = signals.weight.new_zeros(signals.weight.shape[dim], dtype=torch.float64)
    for part in chunks(signals.weight):
        _add_lines(lines, part, dim, _terms(signals, part, method, reduction))
    if method == "taylor-vector":
        lines.abs_()
    scores = lines.view(count, -1).sum(1)
    if reduction == "released":
        scores /= torch.linalg.norm(scores) + 1e-8
    return scores.float()


def chunks(weight: Tensor) -> Iterator[slice]:
    """Consecutive rows, as many as fit into a chunk, and at least one."""
    size = max(1, int(min(CHUNK, PART * weight.numel())) // weight.shape[1])
    return (slice(i, i + size) for i in range(0, weight.shape[0], size))


def _terms(signals: Signals, part: slice, method: str, reduction: str) -> Tensor:
    terms = CRITERIA[method](signals, part)
    if method == "taylor-vector":
        return terms
    return terms.square_() if method in SQUARED and reduction == "paper" else terms.abs_()


def _add_lines(lines: Tensor, part: slice, dim: int, terms: Tensor) -> None:
    """Add the sums of rows, or of columns, to those of the rows or columns that they are of."""
    found = terms.sum(1 - dim, dtype=torch.float64)
    if dim == 0:
        lines[part] += found
    else:
        lines += found


# Masks of single weights -------------------------------------------------------------------------


def semi_structured_mask(score: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """n:m sparsity: False at the n lowest of every m consecutive scores of a row; bool, (d, k).

    Among equal scores the lower index goes first. Raises TipminiError unless m divides k.
    """
    if score.ndim != 2 or score.shape[1] % m:
        raise TipminiError(
            f"{n}:{m} sparsity needs rows of a multiple of {m}, got {tuple(score.shape)}"
        )
    order = score.reshape(-1, m).argsort(dim=1, stable=True)
    mask = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :n], False)
    return mask.view(score.shape)


# How much is removed when: the authors' schedule, others, and how layers take turns -------------
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill [0, 1) more evenly than any other's

# Shares of the whole ------------------------------------------------------------------------------


def cubic_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    r"""The share removed after `step` of `steps`: $S (1 - (1 - \tau)^3)$, fast first.

    $\tau$ runs from 0 to 1 between warm-up and cool-down, shares of the steps before and after
    it. From the authors' code; the paper gives no schedule.
    """
    return share * (1 - (1 - _progress(step, steps, warmup, cooldown)) ** 3)


def linear_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    r"""The share removed after `step` of `steps`: $S \tau$, with the times of `cubic_share`."""
    return share * _progress(step, steps, warmup, cooldown)


def one_shot_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    """The whole share once the warm-up is over, and at the last step at the latest."""
    return share if step > warmup * steps or step >= steps else 0.0


def at_end_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    """The whole share at the last step: tuned first, pruned after, which nothing recovers from."""
    return share if step >= steps else 0.0


SCHEDULES: dict[str, Callable[..., float]] = {
    **{"cubic": cubic_share, "linear": linear_share},
    **{"one-shot": one_shot_share, "at-end": at_end_share},
}


def _progress(step: int, steps: int, warmup: float, cooldown: float) -> float:
    if step > steps - cooldown * steps or step >= steps:
        return 1.0
    return min(1.0, max(0.0, (step - warmup * steps) / (steps - (warmup + cooldown) * steps)))


# Groups of one family -----------------------------------------------------------------------------


def offsets(count: int) -> list[float]:
    """(count,) numbers evenly spread in (0, 1), those of neighbours far apart.

    The ranks of the multiples of the golden ratio, so that layers next to each other are not cut
    one right after the other.
    """
    turned = [number * GOLDEN % 1 for number in range(count)]
    order = sorted(range(count), key=turned.__getitem__)
    places = {number: place for place, number in enumerate(order)}
    return [(places[number] + 0.5) / count for number in range(count)]


def staggered_count(final: int, fraction: float, offset: float) -> int:
    """How many of a family's `final` groups are gone once `fraction` of all is to be gone.

    Rounding is down, after the family's own offset of [0, 1) is added: nothing is gone at 0, all
    of `final` at 1, and families with the `offsets` of their number come, in sum, as near to the
    fraction as whole groups can. This project's choice: a layer of a model with grouped-query
    attention has few groups of heads, and without offsets all layers would lose theirs at once.
    """
    return min(final, math.floor(final * fraction + offset + 1e-9))
