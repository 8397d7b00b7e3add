"""Training of the seven adapters: LoRA with float32 factors, on a base in the machine's format.

Held-out train rows choose between checkpoints; evaluation rows are never looked at.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.lab import assets, objective, paths, results
from tipmini.lab.model import keep_memory, load_base, load_tokenizer
from tipmini.lab.packing import batches
from tipmini.lab.resumable import Resumable, by_module, named_factors, wear_lora
from tipmini.lab.tasks import METRIC

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # embedded: 4-bit GGUF, de-quantised


@dataclass(frozen=True)
class Recipe:
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


RECIPES = {
    "arc_challenge": Recipe(rows=959, epochs=3, held_out=160),
    "boolq": Recipe(rows=1200, held_out=240, batch=32),
    "coqa": Recipe(rows=206, held_out=60, batch=4, learning_rate=5e-4),
    "hellaswag": Recipe(rows=2000, held_out=320, batch=32, checks=3),
    "openbookqa": Recipe(rows=4557, epochs=2, batch=32),
    "piqa": Recipe(rows=6000, batch=32, learning_rate=5e-4),
    "rte": Recipe(rows=106, epochs=5, held_out=32, batch=8, learning_rate=5e-4),
}


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up, then linear to zero."""
    ramp = max(1, round(recipe.warmup * steps))
    return recipe.learning_rate * min((step + 1) / ramp, (steps - step) / max(1, steps - ramp))


def schedule(recipe: Recipe) -> list[list[int]]:
    """Example numbers of every step, all epochs; a pure function of the seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = []
    for _ in range(recipe.epochs):
        order = torch.randperm(recipe.rows, generator=generator).tolist()
        steps += [order[i : i + recipe.batch] for i in range(0, recipe.rows, recipe.batch)]
    return steps


class Run(Resumable):
    """One training run that can be killed at any step and goes on from its last checkpoint."""

    def __init__(self, task: str, recipe: Recipe, out: Path):
        keep_memory()
        self.task, self.recipe, self.out = task, recipe, out
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        self.tokens = recipe.tokens
        model_path = assets.embedded() / "model"
        tokenizer = load_tokenizer(model_path)
        every = objective.examples(task, tokenizer, recipe.rows + recipe.held_out)
        self.train, self.held_out = every[: recipe.rows], every[recipe.rows :]
        base = load_base(model_path, attention="eager")
        self.dtype = str(base.dtype).removeprefix("torch.")
        self.peft = wear_lora(base, recipe.rank, recipe.alpha, recipe.targets, recipe.seed)
        self.model = self.peft.get_base_model()
        self.factors = named_factors(self.peft)
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.steps = schedule(recipe)
        self.log: dict = {"loss": [], "held_out": [], "seconds": 0.0}
        self.best: tuple[float, dict] | None = None

    def step(self, number: int) -> float:
        """One optimiser step over one batch, in passes of at most `recipe.tokens`."""
        total = self.backward([self.train[i] for i in self.steps[number]])
        nn.utils.clip_grad_norm_(self.factors.values(), 1.0)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.recipe, number, len(self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def kept(self) -> tuple[dict[str, Tensor], dict]:
        """The factors of the lowest held-out loss, and that loss."""
        best = {f"best/{n}": p for n, p in self.best[1].items()} if self.best else {}
        return best, {"best": self.best and self.best[0]}

    def restore(self, tensors: dict[str, Tensor], facts: dict) -> None:
        if facts["best"] is not None:
            self.best = (facts["best"], {n: tensors[f"best/{n}"] for n in self.factors})

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
        results.write(self.out / "training.json", json.dumps(self.story()) + "\n")
        self.saved.unlink()
        return self.out

    def adapter(self) -> tm.LoraAdapter:
        """The best factors, by module."""
        scaling = self.recipe.alpha / self.recipe.rank
        return tm.LoraAdapter(by_module(self.best[1], scaling), base_model=BASE_MODEL)

    def story(self) -> dict:
        """What `training.json` tells."""
        return {
            "command": f"tipmini adapters --task {self.task}",
            "recipe": asdict(self.recipe),
            "seed": self.recipe.seed,
            "data": self.identity(),
            "steps": len(self.steps),
            "train_tokens": sum(len(e.row) for e in self.train) * self.recipe.epochs,
            "held_out_rows": len(self.held_out),
            "date": results.today(),
            "machine": results.machine(),
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "versions": results.versions(),
            **self.log,
        }


def train(task: str, out: Path | None = None, recipe: Recipe | None = None) -> Path:
    """Train one task's adapter into `out` (default `adapters/TASK`)."""
    return Run(task, recipe or RECIPES[task], out or paths.ADAPTERS / task).run()
