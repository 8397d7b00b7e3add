"""tipmini's side: a merge with its options, called on `Inputs` and named in the table."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import tipmini as tm
from tests.parity.inputs import MODULES, Inputs
from tipmini.methods.merge import merge_update
from tipmini.models.factors import LoraFactors

# By which option a method takes the share that stays, or the share that goes.
SHARE = {
    **{"ties": "density", "knots": "density", "magnitude": "sparsity"},
    **{"dare": "drop_rate", "dare_ties": "drop_rate"},
}


@dataclass(frozen=True)
class Merge:
    """`tm.merge` by a method with options; see what: "factors" (A, B), the whole "update" as a
    dense delta, or what is left of it "cut" to the adapters' rank."""

    method: str
    options: dict
    see: str

    def __str__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.method}({listed})"

    def __call__(self, given: Inputs) -> Sequence[Tensor]:
        settings = {"weights": given.weight, "seed": given.seed} | self._share(given) | self.options
        if self.method == "regmean":
            settings["grams"] = given.grams
        if self.see == "cut":
            merged = tm.merge(given.adapters, self.method, **settings)
            return [merged.delta(module) for module in MODULES]
        _, update = merge_update(given.adapters, self.method, **settings)
        if self.see == "factors":
            return [f for m in MODULES for f in (update[m].a, update[m].b)]
        return [_dense(update[module]) for module in MODULES]

    def _share(self, given: Inputs) -> dict[str, float]:
        name = SHARE.get(self.method)
        return {name: given.density if name == "density" else given.drop_rate} if name else {}


def merge(method: str, see: str = "update", **options: object) -> Merge:
    return Merge(method, options, see)


def _dense(merged: LoraFactors | Tensor) -> Tensor:
    return merged.delta() if isinstance(merged, LoraFactors) else merged


def merged_weight(given: Inputs) -> list[Tensor]:
    """The base's weight plus the adapter's delta."""
    return [given.base(module) + given.deltas(module)[0] for module in MODULES]


def answers(given: Inputs) -> list[Tensor]:
    """What the merged weights answer."""
    return [given.rows() @ weight.T for weight in merged_weight(given)]


def stored_scaling(given: Inputs) -> list[Tensor]:
    """The scalings of the first adapter after its way through a PEFT folder."""
    with tempfile.TemporaryDirectory() as folder:
        given.adapters[given.names[0]].save(Path(folder) / "adapter")
        scaling = tm.load_adapter(Path(folder) / "adapter").scaling
    return [torch.tensor(scaling[module]) for module in MODULES]
