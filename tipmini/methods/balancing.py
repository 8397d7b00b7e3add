r"""Weights by the adapters' sizes, so that the weighted updates are of one norm (NAN).

Each adapter gets its part of a total in proportion to $1 / \lVert \Delta \rVert_F$. Source: Si et
al., "NAN: a training-free solution to coefficient estimation in model merging" (arXiv 2505.16148).
"""

import math
from collections.abc import Mapping

from tipmini.methods.table import Total
from tipmini.models.adapter import LoraAdapter
from tipmini.models.lowrank import product_norm

Balanced = dict[str, float] | dict[str, dict[str, float]]


def balanced(total: Total, adapters: Mapping[str, LoraAdapter]) -> Balanced:
    """{adapter: weight} by the norms of whole updates, or {adapter: {module: weight}} by those of
    each module. They add up to the total; what is 0 gets 0, and its part goes to the others."""
    norms = {name: _norms(adapter) for name, adapter in adapters.items()}
    if total.over == "norm":
        return _shared(total.sum, {name: math.hypot(*own.values()) for name, own in norms.items()})
    weights: dict[str, dict[str, float]] = {name: {} for name in adapters}
    for module in {module: None for own in norms.values() for module in own}:
        have = {name: own[module] for name, own in norms.items() if module in own}
        for name, weight in _shared(total.sum, have).items():
            weights[name][module] = weight
    return weights


def _norms(adapter: LoraAdapter) -> dict[str, float]:
    pairs = adapter.factors.items()
    return {module: product_norm(f.b.double() * f.scaling, f.a) for module, f in pairs}


def _shared(total: float, norms: Mapping[str, float]) -> dict[str, float]:
    parts = {name: 1 / norm if norm else 0.0 for name, norm in norms.items()}
    whole = math.fsum(parts.values())
    return {name: total * part / whole if whole else 0.0 for name, part in parts.items()}
