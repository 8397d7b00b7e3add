"""Weights of the adapters in a merge: rules by name, numbers, or one number a module."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tipmini.errors import TipminiError, is_finite

if TYPE_CHECKING:  # rules are checked without torch
    from tipmini.adapter import LoraAdapter, LoraFactors

Weight = float | Mapping[str, float]  # of an adapter: one, or one for each of its modules
Weights = str | Iterable[Weight] | Mapping[str, Weight] | None

RULES = "sum, mean, sqrt or a total such as 0.7/T"
TOTAL = re.compile(r"([0-9]{0,9}\.?[0-9]{1,9})/T")


def is_rule(text: str) -> bool:
    if text in ("sum", "mean", "sqrt"):
        return True
    found = TOTAL.fullmatch(text)
    return found is not None and float(found[1]) > 0


def equal_weight(rule: str, count: int) -> float:
    """The weight that a rule gives each of T = `count` adapters.

    "sum" is 1, "mean" 1 / T, "sqrt" 1 / sqrt(T), and "0.7/T" what adds up to 0.7. Raises
    TipminiError for anything else.
    """
    if not is_rule(rule):
        raise TipminiError(f"weights must be numbers, {RULES}, got {rule!r}")
    named = {"sum": 1.0, "mean": 1 / count, "sqrt": 1 / math.sqrt(count)}
    return named[rule] if rule in named else float(rule.removesuffix("/T")) / count


def refuse_negative(weights: Mapping[str, float]) -> None:
    """Raise TipminiError for a weight that RegMean can't take; by the adapters' names."""
    for name, weight in weights.items():
        if weight < 0:
            raise TipminiError(f"regmean needs weights from 0 on, adapter {name} has {weight}")


def weighed(name: str, adapter: "LoraAdapter", weight: Weight) -> tuple["LoraAdapter", float]:
    """The adapter and its one weight; weights of modules go into their scalings."""
    if not isinstance(weight, Mapping):
        if not is_finite(weight):
            raise TipminiError(f"the weight of adapter {name} must be finite, got {weight}")
        return adapter, float(weight)
    for module in adapter.factors.keys() ^ weight.keys():
        raise TipminiError(f"the weights of adapter {name} must be of its modules; see {module}")
    for module, own in weight.items():
        if not is_finite(own):
            raise TipminiError(f"the weight of {module} of {name} must be finite, got {own}")

    def scaled(module: str, pair: "LoraFactors") -> "LoraFactors":
        return replace(pair, scaling=pair.scaling * weight[module])

    return adapter.map(scaled), 1.0
