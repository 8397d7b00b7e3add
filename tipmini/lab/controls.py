"""What tells pruning from scale: the sizes of merges, and a plain sum scaled to another's size."""

import math
from dataclasses import replace

import tipmini as tm
from tipmini.adapter import LoraFactors
from tipmini.errors import require
from tipmini.fidelity import Fidelity
from tipmini.lowrank import product_norm
from tipmini.tip import block_of

SCALES = ("model", "block")


def module_norms(adapter: tm.LoraAdapter) -> dict[str, float]:
    r"""$\lVert s B A \rVert_F$ of every module."""
    pairs = adapter.factors.items()
    return {m: product_norm(f.b.double() * f.scaling, f.a.double()) for m, f in pairs}


def grouped_norms(adapter: tm.LoraAdapter, by: str = "model") -> dict[str, float]:
    """{group: norm}, each group's modules as one: the whole model's, or each block's."""
    require("by", by, SCALES)
    found: dict[str, list[float]] = {}
    for module, norm in module_norms(adapter).items():
        found.setdefault(_group(module, by), []).append(norm)
    return {group: math.hypot(*norms) for group, norms in found.items()}


def _group(module: str, by: str) -> str:
    return block_of(module) if by == "block" else ""


def scaled_to(adapter: tm.LoraAdapter, like: tm.LoraAdapter, by: str = "model") -> tm.LoraAdapter:
    """The adapter with its update multiplied so that its norm is that of `like`.

    by: one number for the whole "model", or one for each transformer "block". What is 0 stays 0.
    """
    have, want = grouped_norms(adapter, by), grouped_norms(like, by)
    ratios = {g: want.get(g, 0.0) / norm if norm else 0.0 for g, norm in have.items()}

    def change(module: str, pair: LoraFactors) -> LoraFactors:
        root = math.sqrt(ratios[_group(module, by)])
        return replace(pair, a=pair.a * root, b=pair.b * root)

    return adapter.map(change)


def sizes(merged: tm.LoraAdapter, exact: tm.LoraAdapter) -> dict[str, float]:
    """A merge beside the exact, unweighted sum of its adapters, over all modules (Frobenius).

    norm and sum are their sizes, distance that of their difference.
    """
    apart = Fidelity(merged.factors, exact.factors)
    for _ in apart.values():
        pass  # each module is measured as it is read
    return {
        "norm": math.hypot(*module_norms(merged).values()),
        "sum": math.hypot(*apart.norm.values()),
        "distance": math.hypot(*apart.apart.values()),
    }
