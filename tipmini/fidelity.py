r"""How far a merge is from the exact sum of its adapters: $\lVert M - E \rVert / \lVert E \rVert$.

M is what a method made of a module, E the sum of the weighted deltas, and the norm is Frobenius'.
"""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from tipmini.adapter import LoraFactors
from tipmini.lowrank import product_norm, relative_error
from tipmini.summation import Update
from tipmini.tip import block_of


class Fidelity(Mapping[str, LoraFactors | Tensor]):
    """An update that is measured against the exact one as it is read, module by module.

    exact: LoRA factors of the same modules, as `merge_update(adapters, "cat")` returns them.
    """

    def __init__(self, update: Update, exact: Update) -> None:
        self.update, self.exact = update, exact
        self.apart: dict[str, float] = {}  # ||M - E||
        self.norm: dict[str, float] = {}  # ||E||

    def __getitem__(self, module: str) -> LoraFactors | Tensor:
        merged, exact = self.update[module], self.exact[module]
        self.norm[module] = _norm(exact)
        off = relative_error(merged, exact) * self.norm[module]
        self.apart[module] = off if self.norm[module] else _norm(merged)
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self.update)

    def __len__(self) -> int:
        return len(self.update)

    def whole(self) -> float | None:
        """Of all modules read so far as one; None where their exact sum is 0."""
        return _ratio(math.hypot(*self.apart.values()), math.hypot(*self.norm.values()))

    def modules(self) -> dict[str, float | None]:
        """Of each module read so far; None where its exact sum is 0."""
        return {module: _ratio(self.apart[module], norm) for module, norm in self.norm.items()}

    def layers(self) -> dict[str, float]:
        """Of each transformer block read so far; without those where its exact sum is 0."""
        blocks: dict[str, list[str]] = {}
        for module in self.norm:
            blocks.setdefault(block_of(module), []).append(module)
        found = {
            block: _ratio(
                math.hypot(*(self.apart[module] for module in modules)),
                math.hypot(*(self.norm[module] for module in modules)),
            )
            for block, modules in blocks.items()
        }
        return {block: ratio for block, ratio in found.items() if ratio is not None}


def _ratio(apart: float, norm: float) -> float | None:
    return apart / norm if norm else None


def _norm(merged: LoraFactors | Tensor) -> float:
    if isinstance(merged, Tensor):
        return merged.double().norm().item()
    return product_norm(merged.b.double() * merged.scaling, merged.a)
