"""Few coefficients of the adapters' exact sum, learnt of the adapters' answers (`agreeing`).

Before it learns, it measures how far one adapter drives another's answers: R of every pair of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import require
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.experiments.agreeing import Agreeing, DistillRecipe
from tipmini_lab.experiments.weighing import weighed
from tipmini_lab.results import digests

GRAINS = ("adapter", "kind", "module")  # q_proj of all layers is a kind


class Coefficients(Agreeing):
    """One number for each adapter, for each and kind of module, or for each and module, is learnt.

    Arguments as `Distilling`'s. start: the number that all begin with. ridge: what the mean square
    of the numbers' distance from their adapter's mean counts, beside R.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        adapters: Mapping[str, tm.LoraAdapter],
        grain: str,
        start: float,
        recipe: DistillRecipe,
        saved: Path,
        ridge: float = 0.1,
        **given,
    ):
        super().__init__(tokenizer, adapters, recipe, saved, **given)
        require("grain", grain, GRAINS)
        self.model, self.ridge, self.settled = model, ridge, [grain, start, ridge]
        self.layers = weighed(model, adapters, start)
        named = {"adapter": lambda _: "all", "kind": lambda module: module.rpartition(".")[2]}
        self.group = {module: named.get(grain, str)(module) for module in self.layers}
        for module, layer in self.layers.items():
            layer.weights = self.factors.setdefault(self.group[module], layer.weights)
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)

    def identity(self) -> str:
        return digests.digest([super().identity(), self.settled])

    def backward(self, group: Sequence[Example], share: float = 1.0) -> float:
        """As usual, and a task's part of the ridge."""
        every = torch.stack(list(self.factors.values()))  # (groups, adapters)
        ridge = self.ridge * (every - every.mean(0)).square().mean() / len(self.tasks)
        if ridge.requires_grad:
            ridge.backward()
        return super().backward(group, share) + ridge.item()

    @contextmanager
    def _set(self, values: Tensor) -> Iterator[None]:
        before = {name: each.detach().clone() for name, each in self.factors.items()}
        with torch.no_grad():
            for each in self.factors.values():
                each.copy_(values)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, each in self.factors.items():
                    each.copy_(before[name])

    def ask(self) -> None:
        super().ask()
        self.log["interference"] = self.interference()

    def interference(self) -> dict[str, dict[str, float]]:
        """{task: {other: its R, on the rows to stop by, with the other's adapter added whole}}."""
        found: dict[str, dict[str, float]] = {}
        for task, other in tqdm([*product(self.tasks, repeat=2)], desc="pairs", unit="pair"):
            if task != other:
                with self._set(self._of(task, other)):
                    apart = self._mean(task, self.stopping(task))
                at_base = max(self.log["base"][task], self.floor)
                found.setdefault(task, {})[other] = round(apart / at_base, 4)
        return found

    def _of(self, *tasks: str) -> Tensor:
        """(adapters,) 1 at these, else 0."""
        return torch.tensor([float(task in tasks) for task in self.tasks])

    def alone(self, task: str) -> AbstractContextManager:
        return self._set(self._of(task))

    def bare(self) -> AbstractContextManager:
        return self._set(self._of())

    def found(self, factors: Mapping[str, Tensor]) -> tm.LoraAdapter:
        weights = {
            task: {module: factors[self.group[module]][i].item() for module in self.layers}
            for i, task in enumerate(self.tasks)
        }
        return tm.merge(self.adapters, "cat", weights=weights)
