"""Training of the seven adapters: LoRA on a bfloat16 base with float32 factors.

Held-out train rows choose between checkpoints; evaluation rows are never looked at.
"""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.lab import assets, objective, paths, results
from tipmini.lab.model import keep_memory, load_base, load_tokenizer
from tipmini.lab.packing import batches
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


class Run:
    """One training run that can be killed at any step and goes on from its last checkpoint."""

    def __init__(self, task: str, recipe: Recipe, out: Path):
        from peft import LoraConfig, get_peft_model

        keep_memory()
        self.task, self.recipe, self.out = task, recipe, out
        self.saved = out.with_name(f"{out.name}.checkpoint.safetensors")
        model_path = assets.embedded() / "model"
        tokenizer = load_tokenizer(model_path)
        every = objective.examples(task, tokenizer, recipe.rows + recipe.held_out)
        self.train, self.held_out = every[: recipe.rows], every[recipe.rows :]
        torch.manual_seed(recipe.seed)  # PEFT draws A from the global generator
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=list(recipe.targets),
            task_type="CAUSAL_LM",
        )
        self.peft = get_peft_model(load_base(model_path, attention="eager"), config)
        self.model = self.peft.get_base_model()
        self.factors = {n: p for n, p in self.peft.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.factors.values(), weight_decay=0.0)
        self.steps = schedule(recipe)
        self.log: dict = {"loss": [], "held_out": [], "seconds": 0.0}
        self.best: tuple[float, dict] | None = None

    def step(self, number: int) -> float:
        """One optimiser step over one batch, in passes of at most `recipe.tokens`."""
        group = [self.train[i] for i in self.steps[number]]
        total = 0.0
        for part in batches([len(e.row) for e in group], self.recipe.tokens):
            rows = [group[i] for i in part]
            loss = objective.losses(self.model, rows, self.temperature).sum() / len(group)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.factors.values(), 1.0)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.recipe, number, len(self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def checkpoint(self, number: int) -> None:
        """What a continuation needs after `number` steps, written whole or not at all."""
        tensors = {f"factor/{n}": p.detach() for n, p in self.factors.items()}
        for name, parameter in self.factors.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        if self.best:
            tensors |= {f"best/{n}": p for n, p in self.best[1].items()}
        state = {"step": number, "log": self.log, "best": self.best and self.best[0]}
        self._write(tensors, json.dumps(state | {"identity": self.identity()}))

    def _write(self, tensors: dict[str, Tensor], state: str) -> None:
        from safetensors.torch import save_file

        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.saved.with_suffix(".partial")
        save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"state": state})
        os.replace(partial, self.saved)

    def resume(self) -> int:
        """Load the last checkpoint of this very recipe and data; the number of steps done."""
        from safetensors import safe_open

        if not self.saved.exists():
            return 0
        with safe_open(self.saved, "pt") as saved:
            state = json.loads(saved.metadata()["state"])
            if state["identity"] != self.identity():
                return 0
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
        self._load(tensors, state)
        return state["step"]

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor], state: dict) -> None:
        for name, parameter in self.factors.items():
            parameter.copy_(tensors[f"factor/{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[parameter] = {k: tensors[f"{k}/{name}"] for k in keys}
        self.log = state["log"]
        if state["best"] is not None:
            best = {n: tensors[f"best/{n}"] for n in self.factors}
            self.best = (state["best"], best)

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
        from tqdm import tqdm

        done, last = self.resume(), len(self.steps)
        checks = self.recipe.checks
        marks = {last * (k + 1) // checks for k in range(checks)}
        if not done:
            self.score(0)
        for number in tqdm(range(done, last), initial=done, total=last, desc=self.task):
            start = time.perf_counter()
            self.log["loss"].append(round(self.step(number), 4))
            if number + 1 in marks:
                self.score(number + 1)
            self.log["seconds"] += time.perf_counter() - start
            if (number + 1) % 20 == 0 or number + 1 in marks:
                self.checkpoint(number + 1)
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
        best, scaling = self.best[1], self.recipe.alpha / self.recipe.rank
        names = {n.split(".lora_A.")[0]: n for n in best if ".lora_A." in n}
        factors = {
            name.removeprefix("base_model.model."): tm.LoraFactors(
                best[a], best[a.replace(".lora_A.", ".lora_B.")], scaling
            )
            for name, a in names.items()
        }
        return tm.LoraAdapter(factors, base_model=BASE_MODEL)

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
            "threads": torch.get_num_threads(),
            "versions": results.versions(),
            **self.log,
        }


def train(task: str, out: Path | None = None, recipe: Recipe | None = None) -> Path:
    """Train one task's adapter into `out` (default `adapters/TASK`)."""
    return Run(task, recipe or RECIPES[task], out or paths.ADAPTERS / task).run()
