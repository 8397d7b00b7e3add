"""Which elements of a matrix go, by their scores: the lowest of each row, as in Wanda's release.

Sources: TIP; Sun et al., "A simple and effective pruning approach for large language models"
(Wanda), arXiv 2306.11695.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tipmini.errors import TipminiError, require_share

CHUNK = 1 << 17  # elements at a time, which a core's cache holds; the result does not depend on it
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


def row_mask(score: Tensor, sparsity: float) -> Tensor:
    r"""Which elements survive: False at the lowest $\lfloor k S \rfloor$ scores of each row.

    score is (d, k); the mask is a (d, k) bool tensor. Among equal scores the lower index goes
    first. Give the sparsity in double precision: the 0.7 of float32 takes 6 of 10. Raises
    TipminiError for a sparsity outside [0, 1], another shape, and NaN scores, without an order.
    """
    require_share("sparsity", float(sparsity))
    return count_mask(score, math.floor(score.shape[-1] * float(sparsity)))


def count_mask(score: Tensor, count: int) -> Tensor:
    """`row_mask` of a number instead of a share: False at the `count` lowest of each row."""
    if score.ndim != 2:
        raise TipminiError(f"scores must be (d, k), got {tuple(score.shape)}")
    mask = torch.empty(score.shape, dtype=torch.bool)
    in_threads(lambda pair: pair[1].copy_(_above(pair[0], count)), in_row_chunks(score, mask))
    return mask.to(score.device)


def in_row_chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The same rows of all (d, k) tensors, about CHUNK elements of each at a time."""
    rows = max(1, CHUNK // max(1, tensors[0].shape[1]))
    return list(zip(*(tensor.split(rows) for tensor in tensors), strict=True))


def _above(score: Tensor, count: int) -> Tensor:
    """False at the `count` lowest of each row, as a stable ascending sort would order them.

    A partition finds the last that goes and the first that stays without sorting either side;
    only where the two are equal does the order of the ties matter. In numpy, whose partition is
    vectorised: one pivot and a maximum, as two pivots would leave that way (12 x slower).
    """
    wide = torch.promote_types(score.dtype, torch.float32)
    exact = score.detach().to("cpu", wide).numpy()
    if np.isnan(exact.max(initial=0)):
        raise TipminiError("scores contain NaN; check the weight and the input norms")
    if count in (0, score.shape[1]):
        return torch.full(score.shape, count == 0)
    parted = np.partition(exact, count, axis=1)
    last, first = parted[:, :count].max(axis=1, keepdims=True), parted[:, count : count + 1]
    keep = exact > last
    for row in (last == first)[:, 0].nonzero()[0]:
        ties = (exact[row] == last[row]).nonzero()[0]
        gone = count - np.count_nonzero(exact[row] < last[row])
        keep[row, ties[gone:]] = True
    return torch.from_numpy(keep)


def prune_rows(weight: Tensor, score: Tensor, sparsity: float) -> Tensor:
    r"""The weight with the lowest $\lfloor k S \rfloor$ scores of each row set to 0.

    weight and score are (d, k); the result is a new (d, k) tensor of the weight's dtype. Nothing
    is rescaled. Ties and errors as in `row_mask`.
    """
    if weight.shape != score.shape:
        raise TipminiError(
            f"prune_rows: weight and score need one shape, "
            f"got {tuple(weight.shape)} and {tuple(score.shape)}"
        )
    keep = row_mask(score, sparsity)
    if weight.requires_grad:
        return torch.where(keep, weight, 0)
    return zeroed(weight, keep, torch.empty_like(weight))


def zeroed(weight: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """`torch.where(keep, weight, 0)` into out, bit for bit, without its branch on a random mask."""
    bits = BITS.get(weight.element_size())
    if bits is None:
        return out.copy_(torch.where(keep, weight, 0))
    torch.mul(weight.view(bits), keep, out=out.view(bits))
    return out


def semi_structured_mask(score: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """n:m sparsity: False at the n lowest of every m consecutive scores of a row; bool, (d, k).

    Among equal scores the lower index goes first. Raises TipminiError unless m divides k.
    """
    if score.ndim != 2 or score.shape[1] % m:
        shape = tuple(score.shape)
        raise TipminiError(f"{n}:{m} sparsity needs rows of a multiple of {m}, got {shape}")
    order = score.reshape(-1, m).argsort(dim=1, stable=True)
    mask = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :n], False)
    return mask.view(score.shape)


# One piece of work for each of many items --------------------------------------------------------
Item, Result = TypeVar("Item"), TypeVar("Result")

ONE = RLock()  # a call in a thread of another waits
MOST = 8  # threads; beyond them Python's lock keeps more from working at once


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(item) for item in items]`, by up to `torch.get_num_threads()` threads.

    For what torch leaves to one thread: random draws, numpy's partition, many small tensors. What
    any call raises, or a Ctrl-C, is raised here, once the items at work are done. One call at a
    time: torch's number of threads, which is the process's, is 1 for the while.
    """
    own = torch.get_num_threads()
    count = min(own, MOST, len(items))
    if count < 2:
        return [work(item) for item in items]
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def one(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return work(item)

    with ONE:
        try:  # each thread's tensors by itself, since the others have the other cores
            with ThreadPoolExecutor(
                count, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                return list(pool.map(one, items))
        finally:
            torch.set_num_threads(own)  # threads to come would otherwise start with 1
