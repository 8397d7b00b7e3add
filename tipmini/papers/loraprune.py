r"""LoRAPrune: which heads and channels matter, told by the gradients of A and B alone.

Source: Zhang et al., "LoRAPrune", arXiv 2305.18403. Shapes: W (d, k), A (r, k), B (d, r), with
z = x W^T, as torch has it. The adapter adds s B A to W; the paper has s = 1. Importances of weights
are (d, k), those of a module's groups and their masks (count,), which the paper writes 1 x G; its
script G is a group's importance. The gradient of the loss is g, its estimate by Eq. 9 g~.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tipmini.errors import TipminiError

Loss = Callable[[Tensor], Tensor]  # weight (d, k) -> the loss, a scalar

# What removing one weight costs -------------------------------------------------------------------


def lora_linear(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float = 1.0) -> Tensor:
    r"""LoRAPrune Eq. 1: $z = x W_0^\top + s\, x A^\top B^\top$, without the product BA.

    x is (..., k), z (..., d). The paper, whose x has d columns, writes $x W_0 + x B A$.
    """
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


def taylor_importance(weight: Tensor, grad: Tensor, *, power: int = 2) -> Tensor:
    r"""LoRAPrune Eq. 3: $\hat I = (\nabla_W \circ W)^2$, the vanilla first-order criterion.

    weight and grad = dL/dW are (d, k); the importances are (d, k), not below 0. power=1 takes
    magnitudes instead of squares, as LLM-Pruner and the authors' code do. Raises TipminiError when
    the shapes differ.
    """
    _check_same_shape(weight, grad)
    change = grad * weight
    return change.square_() if power == 2 else change.abs_()


def product_importance(
    weight: Tensor, product: Tensor, grad: Tensor, *, scaling: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 6: $\hat I = [\partial L / \partial (BA) \circ (BA + W)]^2$, Eq. 5 to first
    order.

    weight, product = BA and grad are (d, k); grad is the loss's slope in the update as it is added,
    dL/d(s BA), along which removing a weight is a step of -(s BA + W). Raises TipminiError when
    shapes differ.
    """
    _check_same_shape(weight, grad)  # before the sum below could broadcast
    return taylor_importance(weight + scaling * product, grad)


# The gradient of BA, from those of A and B --------------------------------------------------------


def change_gradient(before: Tensor, after: Tensor, learning_rate: float = 1.0) -> Tensor:
    r"""LoRAPrune Eq. 7: $\eta\, \partial L / \partial (BA) = (BA)_{t-1} - (BA)_t$, over eta."""
    return (before - after) / learning_rate


def stepped_product(
    a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, learning_rate: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 8: $(BA)_t = (B - \eta \nabla_B)(A - \eta \nabla_A)$, after one SGD step."""
    return (b - learning_rate * grad_b) @ (a - learning_rate * grad_a)


def lora_gradient(
    a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, *, learning_rate: float = 1.0
) -> Tensor:
    r"""LoRAPrune Eq. 9: $\tilde g = \nabla_B A + B \nabla_A - \eta \nabla_B \nabla_A$.

    a and grad_a are (r, k), b and grad_b (d, r); $\tilde g$ is (d, k). It stands for the gradient
    of the loss with respect to BA: it is the change $BA - (B - \nabla_B)(A - \nabla_A)$ that a step
    of SGD of learning rate 1 brings (Eqs. 7, 8). With the true gradient g, of s BA, the chain rule
    gives $\nabla_B = s\, g A^\top$ and $\nabla_A = s\, B^\top g$: both carry s. So
    $\tilde g$ is s g for instance where B = 0 and $A^\top A$ is the identity, which needs a rank of
    k; else it is mostly g seen through the adapter. Raises TipminiError when the shapes don't fit.
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
    power: int = 2,
) -> Tensor:
    r"""LoRAPrune Eq. 10: $\hat I = [\tilde g \circ (W + s B A)]^2$, $\tilde g$ of `lora_gradient`.

    weight is (d, k); the importances are (d, k), not below 0. The paper has s = 1; with an
    adapter's own s, W + s B A is the weight that the model computes with, as in the authors' code,
    and the gradients of A and B have s as a factor. power as in `taylor_importance`. Raises
    TipminiError when the shapes don't fit.
    """
    gradient = lora_gradient(a, b, grad_a, grad_b)
    return taylor_importance(adapted(weight, a, b, scaling), gradient, power=power)


def adapted(weight: Tensor, a: Tensor, b: Tensor, scaling: float = 1.0) -> Tensor:
    """W + s B A, (d, k): the weight that a model with an adapter computes with."""
    _check_same_shape(weight, weight.new_empty(b.shape[0], a.shape[1], device="meta"))
    wide = torch.promote_types(weight.dtype, b.dtype)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scaling)


def _check_same_shape(weight: Tensor, grad: Tensor) -> None:
    if weight.shape != grad.shape:
        raise TipminiError(
            f"importance needs weight and gradient of one shape, "
            f"got {tuple(weight.shape)} and {tuple(grad.shape)}"
        )


# From weights to groups, and from groups to masks -------------------------------------------------


def group_importance(importance: Tensor, count: int, dim: int = 0) -> Tensor:
    r"""LoRAPrune Eq. 4: $\hat{\mathcal G}_g = \sum_{W_{ij} \in g} \hat I_{ij}$, of one module.

    importance: (d, k). count: groups, which are blocks of d / count rows (dim 0) or k / count
    columns (dim 1). The sums are (count,); a group of several modules adds theirs up.
    """
    if importance.ndim != 2 or importance.shape[dim] % count:
        raise TipminiError(f"{tuple(importance.shape)} has no {count} equal groups along {dim}")
    return importance.sum(1 - dim).view(count, -1).sum(1)


def moving_average(average: Tensor, importance: Tensor, decay: float = 0.9) -> Tensor:
    r"""LoRAPrune Eq. 11: $\lambda \bar{\mathcal G}_{t-1} + (1 - \lambda) \hat{\mathcal G}_t$.

    average, importance and the result are (count,), one number a group.
    """
    return decay * average + (1 - decay) * importance


def threshold_mask(importance: Tensor, threshold: float) -> Tensor:
    r"""LoRAPrune Eq. 12: $M_g = 1$ where $\bar{\mathcal G}_g > p$, else 0; bool, (count,)."""
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


def mask_outputs(z: Tensor, mask: Tensor) -> Tensor:
    r"""LoRAPrune Eq. 13: $z = (x W_0^\top + s\, x A^\top B^\top) \circ M$, given z of Eq. 1.

    z is (..., d), mask (count,) groups of outputs, d a multiple of count: each entry of the mask
    stands for d / count outputs. The paper writes $(x W_0 + x B A) \odot M$.
    """
    return z * mask.repeat_interleave(z.shape[-1] // len(mask)).to(z.dtype)


# How much is removed when -------------------------------------------------------------------------

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples fill [0, 1) more evenly than any other's


def cubic_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    r"""The fraction removed after `step` of `steps`: $S (1 - (1 - \tau)^3)$, fast first.

    $\tau$ runs from 0 to 1 between warm-up and cool-down, fractions of the steps.
    From the authors' code; no schedule is in the text at hand.
    """
    return share * (1 - (1 - _progress(step, steps, warmup, cooldown)) ** 3)


def linear_share(
    step: int, steps: int, share: float, warmup: float = 0.1, cooldown: float = 0.1
) -> float:
    r"""The fraction removed after `step` of `steps`: $S \tau$, with the times of `cubic_share`."""
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
