r"""Adding LoRA adapters up: factor by factor ("linear"), exactly ("cat"), exactly then cut ("svd").

An update is what a merge results in: for every module LoRA factors, or a dense delta where no
factors give it. It may be computed module by module as it is read, so that a merge of a large
model's adapters holds one delta at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tipmini.methods.table import check_ranks, check_shapes
from tipmini.models.adapter import LoraAdapter, LoraFactors, natural_order
from tipmini.models.lowrank import stack, truncate
from tipmini.threads import in_threads


@dataclass(frozen=True)
class Part:
    """One adapter of a merge, its weight in the sum, and what a method may need besides: its input
    norms, its Gram matrices, and the seed that with the name decides its random draws.

    The factors of all parts are of one dtype, float32 or float64."""

    name: str
    adapter: LoraAdapter
    weight: float = 1.0
    norms: Mapping[str, Tensor] | None = None
    seed: int = 0
    grams: Mapping[str, Tensor] | None = None


Parts = Sequence[Part]
Update = Mapping[str, LoraFactors | Tensor]
Transform = Callable[[Part, str, Tensor], Tensor]  # (part, name of a tensor, tensor) -> tensor
Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]  # tensors, weights -> tensor

ROWS = 512  # of deltas at a time where many are put together; the result does not depend on it


class Lazy(Mapping[str, LoraFactors | Tensor]):
    """An update that is computed module by module, each time it is read."""

    def __init__(self, parts: Parts, merge: Callable[[str, Parts], LoraFactors | Tensor]):
        self.parts, self.merge = parts, merge
        self.modules = natural_order({m for part in parts for m in part.adapter.factors})
        for module in self.modules:  # all of them before any is merged
            check_shapes(module, _factors(module, parts))

    def __getitem__(self, module: str) -> LoraFactors | Tensor:
        return self.merge(module, having(module, self.parts))

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)


def having(module: str, parts: Parts) -> list[Part]:
    """The parts whose adapter changes the module."""
    return [part for part in parts if module in part.adapter.factors]


def _factors(module: str, parts: Parts) -> dict[str, LoraFactors]:
    return {part.name: part.adapter.factors[module] for part in having(module, parts)}


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Stacked and summed as PEFT does, so that the results agree to the last bit."""
    scaled = [tensor * weight for tensor, weight in zip(tensors, weights, strict=True)]
    return torch.stack(scaled).sum(0)


def sum_linear(parts: Parts, combine: Combine = weighted_sum) -> Update:
    """Sum of the factors A and of the factors B (PEFT's linear; the product has cross terms)."""
    update = Lazy(parts, lambda module, own: _sum_factors(module, own, combine))
    for module in update:
        check_ranks(module, _factors(module, parts))
    return update


def sum_cat(parts: Parts) -> Update:
    """Factors stacked along the rank (PEFT's cat): exactly the sum of the deltas."""
    return Lazy(parts, _stack_factors)


def sum_svd(parts: Parts, *, rank: int | None = None) -> Update:
    """The exact sum cut back to a rank by SVD, by default the largest of the adapters' (svd)."""
    return Lazy(
        parts, lambda module, own: truncate(_stack_factors(module, own), rank or top(module, own))
    )


def merge_tensors(
    parts: Parts,
    change: Transform,
    *,
    on: str = "factors",
    summation: str = "linear",
    rank: int | None = None,
    combine: Combine = weighted_sum,
) -> Update:
    """Change every tensor of every adapter, then add the adapters up.

    on="factors" changes A and B, named "<module>.lora_A" and "<module>.lora_B", and adds up by
    `summation`, cut to `rank` with "svd"; on="delta" changes s B A, named "<module>", and the
    update is dense; `merge` cuts it to `rank`. Several threads call change at once; it may
    overwrite the delta that it is given, but no factor. combine puts the changed tensors of one
    place together; "cat" and "svd" don't use it.
    """
    if on == "delta":
        return Lazy(parts, lambda module, own: _sum_deltas(module, own, change, combine))
    changed = _changed(parts, change)
    if summation == "linear":
        return sum_linear(changed, combine)
    return sum_cat(changed) if summation == "cat" else sum_svd(changed, rank=rank)


def top(module: str, parts: Parts) -> int:
    """The largest rank that an adapter has on the module."""
    return max(part.adapter.factors[module].rank for part in parts)


def _changed(parts: Parts, change: Transform) -> list[Part]:
    """All factors of all parts, shared out among the threads: one draws or sorts by itself."""

    def both(place: tuple[Part, str]) -> LoraFactors:
        part, module = place
        factors = part.adapter.factors[module]
        a = change(part, f"{module}.lora_A", factors.a)
        b = change(part, f"{module}.lora_B", factors.b)
        return replace(factors, a=a, b=b)

    places = [(part, module) for part in parts for module in part.adapter.modules]
    pairs = iter(in_threads(both, places))
    return [
        replace(part, adapter=part.adapter.map(lambda module, factors: next(pairs)))
        for part in parts
    ]


def _sum_deltas(module: str, parts: Parts, change: Transform, combine: Combine) -> Tensor:
    weights = [part.weight for part in parts]
    if combine is weighted_sum:  # one at a time: all at once would not fit beside a large model's
        return _running_sum(_in_one_room(module, parts, change), weights)
    changed = (change(part, module, part.adapter.factors[module].delta()) for part in parts)
    rows = zip(*(tensor.split(ROWS) for tensor in changed), strict=True)
    return torch.cat([combine(tensors, weights) for tensors in rows])


def _in_one_room(module: str, parts: Parts, change: Transform) -> Iterator[Tensor]:
    """The changed deltas, each in the memory of the one before."""
    room = None
    for part in parts:
        room = part.adapter.factors[module].delta(out=room)
        yield change(part, module, room)


def _running_sum(tensors: Iterator[Tensor], weights: Sequence[float]) -> Tensor:
    """Product and sum apart: a fused one would round by where a thread's share of rows ends."""
    total = next(tensors) * weights[0]
    for tensor, weight in zip(tensors, weights[1:], strict=True):
        for rows, more in zip(total.split(ROWS), tensor.split(ROWS), strict=True):
            rows += more.mul_(weight)
    return total


def _sum_factors(module: str, parts: Parts, combine: Combine = weighted_sum) -> LoraFactors:
    r"""$A^* = \sum \mathrm{sgn}(w s) \sqrt{|w s|} A$ and $B^* = \sum \sqrt{|w s|} B$.

    The sign sits on A alone: on both it would cancel.
    """
    pairs = [part.adapter.factors[module] for part in parts]
    shares = [part.weight * pair.scaling for part, pair in zip(parts, pairs, strict=True)]
    roots = [math.sqrt(abs(share)) for share in shares]
    signed = [math.copysign(root, share) for root, share in zip(roots, shares, strict=True)]
    a = combine([pair.a for pair in pairs], signed)
    b = combine([pair.b for pair in pairs], roots)
    return LoraFactors(a, b, scaling=1.0)


def _stack_factors(module: str, parts: Parts) -> LoraFactors:
    r"""$A^*$: all $w s A$ above each other; $B^*$: all B side by side; $B^* A^* = \sum w s B A$."""
    pairs = []
    for part in parts:
        factors = part.adapter.factors[module]
        pairs.append((factors.b, factors.a * part.weight * factors.scaling))
    return stack(pairs)
