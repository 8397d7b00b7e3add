"""What distillation learns: to answer as each task's own adapter does on its own rows (R).

`agreement` has the divergences; here is the run over several tasks' rows, and its recipe. What is
learnt, all factors of one adapter or few coefficients, is a subclass's. A control learns the right
answers (`gold`): then a task's loss is divided by how far its own adapter lowered the base's.
"""

import math
import resource
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.weighting import adapter_digest
from tipmini_lab import locks
from tipmini_lab.evaluation import agreement, objective, tasks
from tipmini_lab.evaluation.agreement import Answered
from tipmini_lab.evaluation.model import recompute, return_memory
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.packing import Row, batches
from tipmini_lab.evaluation.tasks import Source
from tipmini_lab.experiments.weighing import OverTasks, Recipe
from tipmini_lab.results import answered, digests

Read = Callable[[nn.Module, Sequence[Example], float], Tensor]
VERSION = 1  # goes up when a recipe comes to mean another run
FEW = 1e-5  # nats: less than rounding tells apart
PROBED = 96  # rows of a task, at most, on which it is told how far the base is off
CHECKS = 4  # how often the rows to stop by are looked at where there is one epoch


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """How it is learnt; settled on validation examples, with the adapters of this project."""

    rank: int = 56
    tokens: int = 512  # small passes stay in the caches
    words: float | None = None  # what the words of listed choices count, beside the choice
    rows: int = 96  # of a task, the first of `tasks.rows`' order
    rows_of: Mapping[str, int] | None = None  # of these tasks so many instead
    stopping: int = 32  # those after them, by which the best epoch is chosen
    stories: float = 0.25  # of that many rows where a row is a conversation
    passed: Mapping[str, int] | None = None  # rows of each task that are left out before
    counts: Mapping[str, tuple[int, int]] | None = None  # of a task its own rows and stopping
    epochs: int = 6
    parts: int = 12  # steps an epoch; each reads a part of every task's rows, one at least
    learning_rate: float = 5e-4
    floor: float = 0.01  # nats
    gold: bool = False  # learn the right answers instead
    # A task's gradient is as long as what it is of is large; "capped": no longer than at R = 1
    balanced: bool | Literal["capped"] | None = None
    masked: bool | None = None  # what is 0 in the start's factors, such as a pruned element, stays
    shares: Mapping[str, float] | None = None  # what a task's R counts, 1 where nothing is said
    repeats: Mapping[str, int] | None = None  # how often an epoch has a task's rows
    warmup: ClassVar[float] = 0.5

    @property
    def looks(self) -> int:
        """How often the rows to stop by are read, after the first time."""
        return self.epochs if self.epochs > 1 else CHECKS

    def split(self, task: str, source: Source) -> tuple[int, int, int]:
        """How many rows are passed over, learnt of and kept to stop by; of too few, all in this
        proportion. Raises TipminiError for a task of fewer than two."""
        passed = (self.passed or {}).get(task, 0)
        if self.counts:
            return passed, *self.counts[task]
        every = tasks.rows(task, "train") if source == task else source.training_docs()
        if (left := len(every) - passed) < 2:
            told = "it needs two, one to learn from and one to stop by"
            raise TipminiError(f"{task}: {max(left, 0)} training examples; {told}")
        share = self.stories if task == "coqa" else 1
        wanted = (self.rows_of or {}).get(task, share * self.rows), share * self.stopping
        share = min(1, left / sum(wanted))
        return passed, *(max(1, int(share * n)) for n in wanted)

    def reads(self, task: str) -> tuple[int, int]:
        """How many rows of a packaged task are learnt of, in all epochs, and how many only read."""
        _, learnt, stopping = self.split(task, task)
        learning = self.epochs * max(learnt * (self.repeats or {}).get(task, 1), self.parts)
        probed = min(learnt, PROBED)
        answers = probed if self.gold else learnt + stopping  # of the task's own adapter
        answers += probed if self.words and task != "coqa" else 0  # by the base, once more
        return learning, answers + probed + stopping * (self.looks + 1)


class Agreeing(OverTasks):
    """One run over the rows of several tasks; it goes on where it was killed.

    saved: the checkpoint's file; who keeps the result deletes it. sources: what a task's rows are
    read of, where it is no packaged one. temperatures: of tasks whose training told one. base: what
    tells the model from others that may take its place. answers: a folder of what adapters
    answered; of runs that share it the first asks, and the others' seconds count it too.

    A subclass wraps the model, says which of its parameters are `factors`, and how each adapter,
    or none, is put in the place of what is learnt.
    """

    every = 6
    clip = 1.0

    def __init__(
        self,
        tokenizer,
        adapters: Mapping[str, tm.LoraAdapter],
        recipe: DistillRecipe,
        saved: Path,
        sources: Mapping[str, Source] = {},
        temperatures: Mapping[str, float] = {},
        base: str | None = None,
        answers: Path | None = None,
    ):
        self.adapters, self.tasks, self.saved = dict(adapters), list(adapters), saved
        self.base, self.answers = base, answers
        self.recipe, self.floor = recipe, recipe.floor
        self.tokenizer, self.tokens = tokenizer, recipe.tokens
        self.sources = {task: sources.get(task, task) for task in adapters}
        self.counts = {task: recipe.split(task, own) for task, own in self.sources.items()}
        self.told = {t: temperatures[t] for t in adapters if t in temperatures}
        self.log: dict = {"loss": [], "stopping": [], "seconds": 0.0}
        told = {task: (recipe.shares or {}).get(task, 1.0) for task in self.tasks}
        self.shares = {task: share * len(told) / sum(told.values()) for task, share in told.items()}
        self.rows: dict[str, list[Example]] = {}
        self.factors: dict[str, nn.Parameter] = {}
        self.best: tuple[float, dict[str, Tensor]] | None = None

    @abstractmethod
    def alone(self, task: str) -> AbstractContextManager:
        """The model with a task's own adapter, for the while."""

    @abstractmethod
    def bare(self) -> AbstractContextManager:
        """The base model, for the while."""

    def identity(self) -> str:
        """Hash of all that it depends on: another run's checkpoint is not continued."""
        adapters = {task: adapter_digest(each) for task, each in self.adapters.items()}
        rows = {task: self._read(task) for task in self.tasks}
        recipe = {key: value for key, value in asdict(self.recipe).items() if value is not None}
        base = [self.base] if self.base else []
        told = [type(self).__name__, recipe, adapters, rows, self.told]
        return digests.digest([*told, *base, VERSION])

    def _read(self, task: str) -> list:
        """A task's rows; a user's own in tokens: their template may change as well."""
        if isinstance(source := self.sources[task], str):
            return tasks.rows(source, "train", sum(self.counts[task]))
        every = objective.examples(self.sources[task], self.tokenizer, sum(self.counts[task]))
        return [[list(e.content), e.row.targets, e.lengths] for e in every]

    # Before the first step: what the adapters answer, and how far from it the base is -------------
    def ask(self) -> None:
        """Note each adapter's answers on its rows, or the right ones; how far the base is off."""
        self.log |= {"temperature": {}, "base": {}, "words": {}}
        for task in tqdm(self.adapters, desc="answers", unit="task"):
            every = self.rows[task] = self._told(task)
            self.log["temperature"][task] = self.told.get(task) or self._temperature(every)
            with self.bare():
                apart = self._mean(task, probed := every[: min(self.counts[task][1], PROBED)])
                if self.recipe.words and every[0].lengths:
                    told = self._mean(task, probed, agreement.word_divergences)
                    if min(apart, told) > FEW:  # else there is nothing to learn of them
                        self.log["words"][task] = self.recipe.words * apart / told
            if self.recipe.gold:
                with self.alone(task):
                    apart -= self._mean(task, probed)
            self.log["base"][task] = apart

    def _told(self, task: str) -> list[Example]:
        return self._right(task) if self.recipe.gold else self._answered(task)

    def _right(self, task: str) -> list[Example]:
        passed, *counts = self.counts[task]
        every = objective.examples(self.sources[task], self.tokenizer, passed + sum(counts))
        objective.refuse_unpredicted(task, every[passed:])
        return every[passed:]

    def _answered(self, task: str) -> list[Answered]:
        if self.answers is None:
            return self._asked(task)
        adapter, weight = adapter_digest(self.adapters[task]), next(self.model.parameters())
        told = [adapter, self._read(task), self.counts[task], self.tokens, self.base]
        how = [type(self).__name__, str(weight.dtype), weight.device.type]  # what rounding goes by
        kept = digests.digest([*told, *how, bool(self.recipe.words), VERSION])
        folder = self.answers / f"{task}-{kept}"
        came = time.perf_counter()
        with locks.alone(folder):
            start, file = time.perf_counter(), folder / "answers.safetensors"
            found, seconds = answered.load(file)
            if not found:
                found = self._asked(task)
                answered.save(found, file, seconds := time.perf_counter() - start)
        self.log["seconds"] += seconds - (time.perf_counter() - came)  # as if it had asked itself
        return found

    def _asked(self, task: str) -> list[Answered]:
        passed, *counts = self.counts[task]
        with self.alone(task):
            every = agreement.unlabelled(
                self.model, self.tokenizer, self.sources[task], sum(counts), passed
            )
            objective.refuse_unpredicted(task, every)
            words = bool(self.recipe.words)
            return agreement.answered(self.model, every, self.tokens, words)

    def _temperature(self, every: Sequence[Example]) -> float:
        """Where no training told one: by the adapter's answers, or by the base's right ones."""
        if not every[0].lengths:
            return 1.0
        if not self.recipe.gold:
            return agreement.spread(every)
        with self.bare():
            scores = objective.all_scores(self.model, every, self.tokens)
        return objective.fit_temperature(scores, objective.gold(every))

    def learnt(self, task: str) -> list[Example]:
        return self.rows[task][: self.counts[task][1]] * (self.recipe.repeats or {}).get(task, 1)

    def share(self, task: str) -> float:
        return super().share(task) * self.shares[task]

    def stopping(self, task: str) -> list[Example]:
        return self.rows[task][self.counts[task][1] :]

    # Steps ----------------------------------------------------------------------------------------
    def backward(self, group: Sequence[Example], share: float = 1.0) -> float:
        """As usual; where it is balanced the gradient of a task's part is scaled to the norm of its
        loss, else a task whose answers turn at a touch outweighs all others."""
        if not self.recipe.balanced:
            return super().backward(group, share)
        before = [each.grad for each in self.factors.values()]
        self.optimizer.zero_grad()
        loss = length = super().backward(group, share)
        if self.recipe.balanced == "capped":
            length = min(loss, self.shares[self.task] / len(self.tasks))
        norm = nn.utils.get_total_norm(
            own for p in self.factors.values() if (own := p.grad) is not None
        )
        for each, sum_of_others in zip(self.factors.values(), before, strict=True):
            if each.grad is not None:
                each.grad *= length / max(norm.item(), 1e-12)
            if sum_of_others is not None:
                each.grad = sum_of_others if each.grad is None else each.grad + sum_of_others
        return loss

    def losses(self, rows: Sequence[Example]) -> Tensor:
        """What is learnt. Of a row that is longer than a pass no layer's inside is kept."""
        long = torch.is_grad_enabled() and len(rows[0].row) > self.tokens
        with recomputed(self.model) if long else nullcontext():
            if words := self.log["words"].get(self.task):
                return agreement.divergences(self.model, rows, self.temperature, words)
            return self._apart(self.model, rows, self.temperature)

    @property
    def _apart(self) -> Read:
        return objective.losses if self.recipe.gold else agreement.divergences

    @torch.no_grad()
    def _mean(self, task: str, rows: Sequence[Example], read: Read | None = None) -> float:
        self.task, read = task, read or self._apart
        parts = batches([len(example.row) for example in rows], self.tokens)
        every = (read(self.model, [rows[i] for i in p], self.temperature) for p in parts)
        return math.fsum(each.sum().item() for each in every) / len(rows)

    def score(self, number: int) -> None:
        """Note R on the rows to stop by; remember the factors of the lowest."""
        found = {task: self._mean(task, self.stopping(task)) for task in self.adapters}
        total = math.fsum(found[task] * self.share(task) for task in found)
        told = {task: round(value, 5) for task, value in found.items()}
        self.log["stopping"].append({"step": number, "R": round(total, 5), "divergence": told})
        if self.best is None or total < self.best[0]:
            self.best = (total, {n: p.detach().clone() for n, p in self.factors.items()})

    def checkpoint(self, number: int) -> None:
        super().checkpoint(number)
        return_memory()

    def kept(self) -> dict:
        """The best so far, and the rows with what the adapters answered, where no folder has it."""
        if self.answers:
            return {"best": self.best}
        told = lambda example: vars(example) | {"row": vars(example.row)}  # noqa: E731
        return {"best": self.best, "rows": {t: list(map(told, e)) for t, e in self.rows.items()}}

    def restore(self, kept: dict) -> None:
        kind = Example if self.recipe.gold else Answered
        made = lambda told: kind(**told | {"row": Row(**told["row"])})  # noqa: E731
        self.best = kept["best"]
        if self.answers:
            seconds = self.log["seconds"]
            self.rows = {task: self._told(task) for task in self.tasks}
            self.log["seconds"] = seconds
        else:
            self.rows = {task: list(map(made, rows)) for task, rows in kept["rows"].items()}

    # The run --------------------------------------------------------------------------------------
    def run(self) -> tm.LoraAdapter:
        """The adapter of the lowest R on the rows to stop by, the start among them."""
        done, last = self.resume(), self.recipe.steps
        if not self.rows:
            start = time.perf_counter()
            self.ask()
            self.score(0)
            self.log["seconds"] += time.perf_counter() - start
            self.checkpoint(0)
        looks = self.recipe.looks
        self.advance(done, last, "distill", {last * (n + 1) // looks for n in range(looks)})
        return self.found(self.best[1])

    @abstractmethod
    def found(self, factors: Mapping[str, Tensor]) -> tm.LoraAdapter:
        """The adapter that these values of `factors` make."""

    def story(self) -> dict:
        """How it was made, for the file beside it."""
        return {
            "identity": self.identity(),
            "recipe": asdict(self.recipe),
            "rows": {
                t: {"passed": p, "learnt": n, "stop": m} for t, (p, n, m) in self.counts.items()
            },
            "tokens": {t: sum(len(e.row) for e in self.learnt(t)) for t in self.rows},
            "adapters": {task: adapter_digest(each) for task, each in self.adapters.items()},
            "memory": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            **self.made(),
        }


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """`recompute`, for the while."""
    recompute(model)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()  # a hook that enabling it leaves
        for layer in model.base_model.layers:
            layer.training = False
