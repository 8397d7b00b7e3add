r"""Weights of a merge learnt on train rows: one for each adapter and module.

The merge is the exact sum with weights, $\Delta^* = \sum_t w_{t,m} \Delta_{t,m}$ in module m. The
weights alone are learnt, by the mean over tasks of the loss that an adapter is trained on
(`objective`), each divided by the base model's, so that no task counts for its unit. Evaluation
rows are never looked at. Learning coefficients of a merge by gradient descent is that of AdaMerging
(Yang et al., ICLR 2024), which has no labels and minimises entropy instead.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.methods import weighting
from tipmini.methods.weighting import ByModule as Weights
from tipmini.models.factors import LoraFactors
from tipmini.models.sealed import sealed
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.tasks import Source
from tipmini_lab.experiments.training import Resumable
from tipmini_lab.results import checked, digests, store


@dataclass(frozen=True)
class Recipe:
    """How long `OverTasks` learns, and how fast."""

    epochs: int
    parts: int  # steps an epoch: each takes a part of every task's rows
    learning_rate: float
    tokens: int = 2048  # padded tokens of one forward pass; a step accumulates several
    seed: int = 0
    warmup: ClassVar[float] = 1.0  # epochs

    @property
    def steps(self) -> int:
        return self.epochs * self.parts

    def rate(self, step: int) -> float:
        """Warm-up, and a cosine to zero."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min((step + 1) / (self.warmup * self.parts), 1) * cosine


@dataclass(frozen=True)
class WeighingRecipe(Recipe):
    """How they are learnt; settled on held-out train rows, with the adapters of this project."""

    rows: int = 64  # train rows a task, the first of `tasks.rows`' order
    stories: int = 8  # of CoQA, each of which asks many questions
    epochs: int = 4
    parts: int = 4
    learning_rate: float = 0.08
    start: float = 0.3  # between the mean and the sum of seven


class Weighed(nn.Module):
    """A frozen linear layer with all adapters' factors and a weight for each adapter."""

    def __init__(self, base: nn.Linear, factors: list[LoraFactors], start: float):
        super().__init__()
        self.base, self.ranks = base, [pair.rank for pair in factors]
        self.a = torch.cat([pair.scaling * pair.a.float() for pair in factors]).to(base.weight)
        self.b = torch.cat([pair.b.float() for pair in factors], dim=1).to(base.weight)
        self.weights = nn.Parameter(torch.full((len(factors),), start, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """(..., k) -> (..., d)"""
        each = self.weights.repeat_interleave(torch.tensor(self.ranks, device=x.device))
        return self.base(x) + (x @ self.a.T * each.to(x.dtype)) @ self.b.T


def refuse_other_bases(model: nn.Module, adapters: Mapping[str, tm.LoraAdapter]) -> None:
    """Raise TipminiError for an adapter that is not of the model's layers."""
    layers = dict(model.named_modules())
    for module, pair in (item for each in adapters.values() for item in each.factors.items()):
        shape = getattr(getattr(layers.get(module), "weight", None), "shape", None)
        if pair.shape != shape:
            told = "no layer of the base in the adapters' shape; give the one they are of"
            raise tm.TipminiError(f"{module}: {told}")


def weighed(
    model: nn.Module, adapters: Mapping[str, tm.LoraAdapter], start: float
) -> dict[str, Weighed]:
    """The model's layers that adapters of the same modules change, each wrapped, by name.

    Raises TipminiError for adapters of different modules or not of the model's layers.
    """
    first, *_ = adapters.values()
    for task, adapter in adapters.items():
        if adapter.modules != first.modules:
            told = f"weigh needs adapters of the same modules; {task}'s are others"
            raise tm.TipminiError(told)
    refuse_other_bases(model, adapters)
    layers, found = dict(model.named_modules()), {}
    for module in first.modules:
        pairs = [adapter.factors[module] for adapter in adapters.values()]
        found[module] = Weighed(layers[module], pairs, start)
        model.set_submodule(module, found[module])
    return found


class OverTasks(Resumable):
    """Steps over a part of every task's rows, each task's loss divided by what it is at first.

    A subclass says which rows are learnt of, and sets `log["temperature"]` and `log["base"]`.
    """

    recipe: Recipe
    tasks: Sequence[str]
    task: str  # whose rows are read
    floor = 0.0  # what a loss is divided by at least
    clip = math.inf  # the norm of a step's gradient at most

    @abstractmethod
    def learnt(self, task: str) -> Sequence[Example]:
        """A task's rows that are learnt of."""

    def step(self, number: int) -> float:
        """One part of every task's rows; the mean of the tasks' losses over the base model's."""
        total = 0.0
        for task in self.tasks:
            self.task = task
            total += self.backward(self._part(task, number), self.share(task))
        if self.clip < math.inf:
            nn.utils.clip_grad_norm_(self.factors.values(), self.clip)
        self.update(self.recipe.rate(number))
        return total

    @property
    def temperature(self) -> float:
        return self.log["temperature"][self.task]

    def share(self, task: str) -> float:
        """What a task's loss is multiplied by."""
        return 1 / (len(self.tasks) * max(self.log["base"][task], self.floor))

    def _part(self, task: str, number: int) -> list[Example]:
        """Every row once an epoch, in an order of the epoch's own; of too few rows one a step."""
        epoch, part = divmod(number, self.recipe.parts)
        rows, parts = self.learnt(task), self.recipe.parts
        if len(rows) < parts:
            return [rows[number % len(rows)]]
        generator = torch.Generator().manual_seed(self.recipe.seed * 1000 + epoch)
        order = torch.randperm(len(rows), generator=generator).tolist()
        return [rows[i] for i in order[part * len(rows) // parts : (part + 1) * len(rows) // parts]]


class Weighing(OverTasks):
    """One run over the adapters of several tasks; it goes on where it was killed.

    model: a frozen base with eager attention, whose layers are wrapped. adapters: one a task.
    files: where weights may stand that were learnt before; new ones are written to the last.
    sources: what a task's rows are read of, where it is no packaged one (`tasks.sources`). base:
    what tells the model from others that may take its place. Raises TipminiError for adapters that
    are not of the model's layers.
    """

    every = 2

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        adapters: Mapping[str, tm.LoraAdapter],
        recipe: WeighingRecipe,
        files: Sequence[Path],
        sources: Mapping[str, Source] = {},
        base: str | None = None,
    ):
        self.model, self.recipe, self.files, self.base = model, recipe, files, base
        self.saved = files[-1].with_suffix(".checkpoint.safetensors")
        self.tokens, self.tasks, self.factors = recipe.tokens, list(adapters), {}
        counts = {t: recipe.stories if t == "coqa" else recipe.rows for t in self.tasks}
        self.rows = {
            t: objective.examples(sources.get(t, t), tokenizer, n) for t, n in counts.items()
        }
        for module, layer in weighed(model, adapters, recipe.start).items():
            self.factors[module] = layer.weights
        chosen = {"betas": (0.9, 0.95), "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW(self.factors.values(), **chosen)
        self.adapters = {t: weighting.adapter_digest(each) for t, each in adapters.items()}
        self.log: dict = {"loss": [], "seconds": 0.0}

    def identity(self) -> str:
        """Hash of recipe, adapters and rows: what was learnt of anything else is another's."""
        told = lambda e: [list(e.content), e.row.targets, e.gold]  # noqa: E731
        rows = {task: list(map(told, each)) for task, each in self.rows.items()}
        base = [self.base] if self.base else []
        return digests.digest([asdict(self.recipe), self.adapters, digests.digest(rows), *base])

    @torch.no_grad()
    def measure_base(self) -> None:
        """Note each task's temperature and loss without an adapter."""
        started = {module: weight.clone() for module, weight in self.factors.items()}
        for weight in self.factors.values():
            weight.zero_()
        self.log |= {"temperature": {}, "base": {}}
        for task, rows in self.rows.items():
            self.task, self.log["temperature"][task] = task, 1.0
            if any(len(set(example.lengths)) > 1 for example in rows):  # length-normalised
                scores = objective.all_scores(self.model, rows, self.tokens)
                found = objective.fit_temperature(scores, objective.gold(rows))
                self.log["temperature"][task] = found
            self.log["base"][task] = self.backward(rows)
        for module, weight in self.factors.items():
            weight.copy_(started[module])

    def learnt(self, task: str) -> list[Example]:
        return self.rows[task]

    def weights(self) -> Weights:
        """Those learnt before of the very same things; else they are learnt now and written."""
        for file in self.files:
            found = weighting.read(file) if checked.text(file) else None
            if found and found.made.identity == self.identity():
                return found.weights
        return self.run()

    def run(self) -> Weights:
        """Learn them, from the last checkpoint on where there is one, and write them."""
        done = self.resume()
        if not done:
            self.measure_base()
        self.advance(done, self.recipe.steps, "weigh")
        found = {"weights": self._found(), "made": self.story()}
        store.write(self.files[-1], sealed(json.dumps(found)))
        self.saved.unlink(missing_ok=True)
        return found["weights"]

    def _found(self) -> Weights:
        found = {module: weight.tolist() for module, weight in self.factors.items()}
        return {
            task: {module: round(each[i], 6) for module, each in found.items()}
            for i, task in enumerate(self.tasks)
        }

    def story(self) -> dict:
        """How they were made, for the file that holds them."""
        return {
            "identity": self.identity(),
            "recipe": asdict(self.recipe),
            "rows": {task: len(rows) for task, rows in self.rows.items()},
            "tokens": sum(len(e.row) for rows in self.rows.values() for e in rows),
            "adapters": self.adapters,
            **self.made(),
        }
