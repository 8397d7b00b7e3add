"""Training LoRA factors so that a kill loses nothing, and the seven adapters that are trained so.

PEFT multiplies by A and B in float32. On a CPU that takes as long as the base's own products in
bfloat16, and it keeps a float32 copy of every layer's input until the backward pass.
"""

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from tqdm import tqdm

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.evaluation import assets, objective
from tipmini_lab.evaluation.documents import ADAPTED
from tipmini_lab.evaluation.model import keep_memory, load_base, load_tokenizer
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.packing import batches
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.results import store
from tipmini_lab.results.checked import open_checkpoint as safe_open
from tipmini_lab.results.checked import save_file


def _apart(state: object, tensors: dict[str, Tensor]) -> object:
    """A state as JSON can hold it, its tensors put into `tensors` by their numbers."""
    if isinstance(state, Tensor):
        tensors[str(len(tensors))] = state.cpu().contiguous().clone()  # also of a GPU
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(state, dict):  # also of keys that are no text
        return {"pairs": [[key, _apart(value, tensors)] for key, value in state.items()]}
    return [_apart(each, tensors) for each in state] if isinstance(state, list | tuple) else state


def _together(told: object, saved: safe_open) -> object:
    """What `_apart` took apart; of tuples lists."""
    if isinstance(told, dict):
        if "tensor" in told:
            return saved.get_tensor(told["tensor"])
        return {key: _together(value, saved) for key, value in told["pairs"]}
    return [_together(each, saved) for each in told] if isinstance(told, list) else told


class LowRankSum(torch.autograd.Function):
    """y + s (x A^T) B^T, (..., d), into y itself; x is (..., k), A (r, k), B (d, r).

    A and B may be float32 where x and y are not: they are rounded for the products, their
    gradients come back in their own dtype.
    """

    @staticmethod
    def forward(ctx, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        down = x.flatten(0, -2) @ a.to(x.dtype).T
        ctx.save_for_backward(x, a, b, down)
        ctx.scaling = scaling
        ctx.mark_dirty(y)
        y.view(-1, y.shape[-1]).addmm_(down, b.to(y.dtype).T, alpha=scaling)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, a, b, down = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        back = rows @ (ctx.scaling * b).to(rows.dtype)
        of_x = (back @ a.to(back.dtype)).view_as(x) if ctx.needs_input_grad[1] else None
        of_a, of_b = back.T @ x.flatten(0, -2), rows.T @ down
        return gradient, of_x, of_a.to(a.dtype), of_b.to(b.dtype).mul_(ctx.scaling), None


class LoraLinear(lora.Linear):
    """PEFT's layer with one adapter on, without dropout; its sum is `LowRankSum`'s."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return LowRankSum.apply(self.base_layer(x), x, a, b, self.scaling[name])


# Training that can be killed at any step and goes on ----------------------------------------------
def add_lora(
    base: nn.Module,
    rank: int,
    alpha: int,
    targets: Sequence[str],
    seed: int,
    *,
    cast: bool = True,
    light: bool = False,
):
    """A PeftModel around a frozen base with a new adapter: A drawn from the seed, B = 0.

    cast: the factors are float32, as they are trained; else in the base's own dtype.
    light: products with the factors are in the base's dtype all the same (`lora_linear`).
    """
    torch.manual_seed(seed)  # PEFT draws A from the global generator
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), task_type="CAUSAL_LM"
    )
    if light:
        config._register_custom_module({nn.Linear: LoraLinear})
    return get_peft_model(base, config, autocast_adapter_dtype=cast)


def named_factors(peft: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the active adapter, by PEFT's names."""
    return {n: p for n, p in peft.named_parameters() if p.requires_grad}


def by_module(factors: dict[str, Tensor], scaling: float) -> dict[str, tm.LoraFactors]:
    """PEFT's names of A and B as pairs, by the base model's names of modules."""
    names = {n.split(".lora_A.")[0]: n for n in factors if ".lora_A." in n}
    return {
        name.removeprefix("base_model.model."): tm.LoraFactors(
            factors[a], factors[a.replace(".lora_A.", ".lora_B.")], scaling
        )
        for name, a in names.items()
    }


class Resumable(ABC):
    """Steps of AdamW over factors; a checkpoint is factors, optimizer, log, and what `kept` gives.

    A subclass sets these fields, says what one step is, and what a checkpoint belongs to.
    """

    saved: Path  # the checkpoint's file
    model: nn.Module
    factors: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    log: dict  # with "loss" and "seconds"
    tokens: int  # padded tokens of one forward pass; a step accumulates several
    temperature: float = 1.0
    every: int = 20  # steps between checkpoints

    @abstractmethod
    def identity(self) -> str:
        """Hash of all that a run depends on: a checkpoint of anything else is not continued."""

    @abstractmethod
    def step(self, number: int) -> float:
        """One optimiser step; the loss."""

    def score(self, number: int) -> None:  # noqa: B027  none by default
        """What is looked at after `number` steps, where that is marked."""

    def kept(self) -> dict:
        """The state besides factors, moments and log."""
        return {}

    def restore(self, kept: dict) -> None:  # noqa: B027  as kept
        """Take up what `kept` gave."""

    def losses(self, rows: Sequence[Example]) -> Tensor:
        """(len(rows),) what is learnt: the right answers, where nothing else is said."""
        return objective.losses(self.model, rows, self.temperature)

    def backward(self, group: Sequence[Example], share: float = 1.0) -> float:
        """Add up the gradients of a share of the mean loss, in passes of at most `tokens`."""
        total = 0.0
        for part in batches([len(e.row) for e in group], self.tokens):
            rows = [group[i] for i in part]
            loss = self.losses(rows).sum() * share / len(group)
            if loss.requires_grad:
                loss.backward()
            total += loss.item()
        return total

    def update(self, rate: float) -> None:
        """The optimizer's step at a learning rate; gradients are then none."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def advance(self, done: int, last: int, what: str, marks: Collection[int] = ()) -> None:
        """The steps from `done` to `last`, with a progress bar, checkpoints and marked scores."""
        for number in tqdm(range(done, last), initial=done, total=last, desc=what):
            start = time.perf_counter()
            self.log["loss"].append(round(self.step(number), 4))
            if number + 1 in marks:
                self.score(number + 1)
            self.log["seconds"] += time.perf_counter() - start
            if (number + 1) % self.every == 0 or number + 1 in marks:
                self.checkpoint(number + 1)

    def checkpoint(self, number: int) -> None:
        """What a continuation needs after `number` steps, written whole or not at all."""
        factors = {name: factor.detach() for name, factor in self.factors.items()}
        state = {"step": number, "of": self._of(), "log": json.dumps(self.log)}
        state |= {"factors": factors, "optimizer": self.optimizer.state_dict()}
        self._write(state | {"kept": self.kept()})

    def _of(self) -> list[str]:
        """What a checkpoint is of; a base of another number format computes other steps."""
        return [self.identity(), str(next(self.model.parameters()).dtype)]

    def _write(self, state: dict) -> None:
        self.saved.parent.mkdir(parents=True, exist_ok=True)
        partial, tensors = self.saved.with_suffix(".partial"), {}
        told = json.dumps(_apart(state, tensors))
        save_file(tensors, partial, {"state": told})
        os.replace(partial, self.saved)

    def resume(self) -> int:
        """Load the last checkpoint of this very run; the number of steps done."""
        if not self.saved.exists():
            return 0
        with safe_open(self.saved, "pt") as saved:
            state = _together(json.loads(saved.metadata()["state"]), saved)
        if state["of"] != self._of():
            return 0
        with torch.no_grad():
            for name, factor in self.factors.items():
                factor.copy_(state["factors"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log = json.loads(state["log"])
        self.restore(state["kept"])
        return state["step"]

    def made(self) -> dict:
        """When and where it was run, and the log: what a story ends with."""
        return {
            "date": store.today(),
            "machine": store.machine(),
            "threads": torch.get_num_threads(),
            "versions": store.versions(),
            **self.log,
        }


# Training of the seven adapters -------------------------------------------------------------------
BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # embedded: 4-bit GGUF, de-quantised


@dataclass(frozen=True)
class TrainingRecipe:
    """What a training run does. Rows are the first of `tasks.rows`' order."""

    rows: int
    epochs: int = 1
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 1e-3
    batch: int = 16
    tokens: int = 2048  # padded tokens of one forward pass; a step accumulates several
    warmup: float = 0.05
    held_out: int = 400  # the train rows after those; they only choose between checkpoints
    checks: int = 4  # how often they are scored
    seed: int = 0


RECIPES = {name: TrainingRecipe(**task.training) for name, task in ADAPTED.items()}


def learning_rate(recipe: TrainingRecipe, step: int, steps: int) -> float:
    """Linear warm-up, then linear to zero."""
    ramp = max(1, round(recipe.warmup * steps))
    return recipe.learning_rate * min((step + 1) / ramp, (steps - step) / max(1, steps - ramp))


def schedule(rows: int, epochs: int, batch: int, seed: int) -> list[list[int]]:
    """Example numbers of every step, all epochs; a pure function of the seed."""
    generator, steps = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator).tolist()
        steps += [order[i : i + batch] for i in range(0, rows, batch)]
    return steps


class Run(Resumable):
    """One training run that can be killed at any step and goes on from its last checkpoint.

    base: a model's folder; the embedded model's by default.
    """

    def __init__(
        self,
        task: str,
        recipe: TrainingRecipe,
        out: Path,
        base: Path | None = None,
        dtype: str = "auto",
        device: str = "cpu",
    ):
        keep_memory()
        self.task, self.recipe, self.out = task, recipe, out
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        self.tokens = recipe.tokens
        model_path = base or assets.embedded() / "model"
        tokenizer = load_tokenizer(model_path)
        every = objective.examples(task, tokenizer, recipe.rows + recipe.held_out)
        self.train, self.held_out = every[: recipe.rows], every[recipe.rows :]
        model = load_base(model_path, dtype, device, attention="eager")
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.peft = add_lora(model, recipe.rank, recipe.alpha, recipe.targets, recipe.seed)
        self.model = self.peft.get_base_model()
        self.factors = named_factors(self.peft)
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.steps = schedule(recipe.rows, recipe.epochs, recipe.batch, recipe.seed)
        self.log: dict = {"loss": [], "held_out": [], "seconds": 0.0}
        self.best: tuple[float, dict] | None = None

    def step(self, number: int) -> float:
        """One optimiser step over one batch, in passes of at most `recipe.tokens`."""
        total = self.backward([self.train[i] for i in self.steps[number]])
        nn.utils.clip_grad_norm_(self.factors.values(), 1.0)
        self.update(learning_rate(self.recipe, number, len(self.steps)))
        return total

    def kept(self) -> dict:
        """The lowest held-out loss, and its factors."""
        return {"best": self.best}

    def restore(self, kept: dict) -> None:
        self.best = kept["best"]

    def identity(self) -> str:
        """Hash of the recipe and of the rows: a checkpoint of anything else is not continued."""
        rows = [[list(e.content), e.row.targets, e.gold] for e in self.train + self.held_out]
        content = json.dumps([self.task, asdict(self.recipe), rows]).encode()
        return hashlib.sha256(content).hexdigest()

    @property
    def temperature(self) -> float:
        return self.log.get("temperature", 1.0)

    @torch.no_grad()
    def score(self, number: int) -> None:
        """Note loss and accuracy on the held-out rows; remember the factors of the lowest loss."""
        loss, accuracy = self.texts() if self.task == "coqa" else self.choices(number)
        self.log["held_out"].append({"step": number, "loss": loss, "accuracy": accuracy})
        if self.best is None or loss < self.best[0]:
            self.best = (loss, {n: p.detach().clone() for n, p in self.factors.items()})

    def texts(self) -> tuple[float, None]:
        """Mean held-out loss of conversations; which of their answers are right is not known."""
        parts = batches([len(e.row) for e in self.held_out], self.recipe.tokens)
        groups = [[self.held_out[i] for i in part] for part in parts]
        total = sum(objective.losses(self.model, group).sum().item() for group in groups)
        return total / len(self.held_out), None

    def choices(self, number: int) -> tuple[float, float]:
        """Mean held-out loss and accuracy; before the first step they set the temperature."""
        scores = objective.all_scores(self.model, self.held_out, self.recipe.tokens)
        right = objective.gold(self.held_out)
        if number == 0:
            # A choice of one token has the confidence that training and scoring use.
            summed = METRIC[self.task] == "acc_norm"
            self.log["temperature"] = objective.fit_temperature(scores, right) if summed else 1.0
        loss = objective.choice_losses(scores, right, self.temperature).mean().item()
        return loss, (scores.argmax(1) == right).float().mean().item()

    def run(self) -> Path:
        """Train to the end; PEFT folder and `training.json` in `out`."""
        done, last = self.resume(), len(self.steps)
        checks = self.recipe.checks
        if not done:
            self.score(0)
        marks = {last * (k + 1) // checks for k in range(checks)}
        self.advance(done, last, self.task, marks)
        return self.finish()

    @torch.no_grad()
    def finish(self) -> Path:
        """Save the best factors, and beside them how they were made.

        Raises TipminiError where training never bettered the base on the held-out rows.
        """
        if self.best[0] == self.log["held_out"][0]["loss"]:
            raise TipminiError(f"adapter {self.task}: no checkpoint is better than the base model")
        (self.out / "training.json").unlink(missing_ok=True)
        self.adapter().save(self.out, torch.float16)
        store.write(self.out / "training.json", json.dumps(self.story()) + "\n")
        self.saved.unlink()
        return self.out

    def adapter(self) -> tm.LoraAdapter:
        """The best factors, by module."""
        scaling = self.recipe.alpha / self.recipe.rank
        return tm.LoraAdapter(by_module(self.best[1], scaling), base_model=BASE_MODEL)

    def story(self) -> dict:
        """What `training.json` tells."""
        first = self.recipe.seed - list(RECIPES).index(self.task)
        flags = f" --own-seeds {first} --out {self.out.parent}" if self.recipe.seed else ""
        return {
            "command": f"tipmini adapters --task {self.task}{flags}",
            "recipe": asdict(self.recipe),
            "seed": self.recipe.seed,
            "data": self.identity(),
            "steps": len(self.steps),
            "train_tokens": sum(len(e.row) for e in self.train) * self.recipe.epochs,
            "held_out_rows": len(self.held_out),
            "dtype": self.dtype,
            **self.made(),
        }


def train(
    task: str,
    out: Path | None = None,
    recipe: TrainingRecipe | None = None,
    device: str = "cpu",
) -> Path:
    """Train one task's adapter into `out` (default `adapters/TASK`)."""
    out = out or paths.ADAPTERS / task
    return Run(task, recipe or RECIPES[task], out, device=device).run()


LITTLE, QUARTER = 0.01, 0.25


def shares(folders: Mapping[str, Path]) -> dict[str, float]:
    """By task a QUARTER where a training told beside its adapter that it lowered the loss on the
    validation rows by less than LITTLE of it: such an adapter has next to nothing to teach."""
    found = {}
    for task, told in _stories(folders).items():
        losses = [each["loss"] for each in told.get("held_out", ())]  # of another's there are none
        if losses and min(losses) > (1 - LITTLE) * losses[0]:
            found[task] = QUARTER
    return found


def _stories(folders: Mapping[str, Path]) -> dict[str, dict]:
    """What trainings told beside their adapters, by task, where they did."""
    told = {task: folder / "training.json" for task, folder in folders.items()}
    return {task: json.loads(f.read_text()) for task, f in told.items() if f.is_file()}


def temperatures(folders: Mapping[str, Path]) -> dict[str, float]:
    """By task the temperature of its choices that a training told beside its adapter, if any."""
    found = _stories(folders)
    return {task: each["temperature"] for task, each in found.items() if "temperature" in each}
