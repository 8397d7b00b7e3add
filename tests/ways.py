"""What the tests of merging share: every way of merging, and all that any of them needs."""

import pytest
from tiny import ADAPTERS, GRAMS, NORMS, random_grams, random_norms

import tipmini as tm
from tipmini.models.adapter import LoraAdapter

METHODS = list(tm.METHODS)
IN_DELTAS = [name for name, row in tm.METHODS.items() if row.options.get("on") == "factors"]
WAYS = [(method, {}) for method in METHODS] + [(m, {"on": "delta"}) for m in IN_DELTAS]
each_way = pytest.mark.parametrize(
    ("method", "options"), WAYS, ids=[" ".join([m, *options.values()]) for m, options in WAYS]
)
POSITIVE = {"boolq": 1.0, "coqa": 0.3, "piqa": 0.8}  # regmean takes no others


def merged_by(method: str, adapters: object = None, **options: object) -> LoraAdapter:
    """Merged with all that any method needs."""
    given = {"norms": NORMS, "grams": GRAMS, "weights": POSITIVE} | options
    return tm.merge(ADAPTERS if adapters is None else adapters, method, **given)


def measured(adapter: LoraAdapter, seed: int = 0) -> dict:
    """norms and grams of a single adapter."""
    return {"norms": [random_norms(adapter, seed)], "grams": [random_grams(adapter, seed)]}
