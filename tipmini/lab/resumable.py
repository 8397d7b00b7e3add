"""Training that can be killed at any step and goes on, bit for bit, from its last checkpoint."""

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from tipmini.lab import objective
from tipmini.lab.lora_linear import LoraLinear
from tipmini.lab.objective import Example
from tipmini.lab.packing import batches


def wear_lora(
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
    from peft import LoraConfig, get_peft_model

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
    """Steps of AdamW over factors; the whole state is factors, moments, and what `kept` names.

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

    def kept(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors and facts (JSON) of the state besides factors, moments and log."""
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], facts: dict) -> None:  # noqa: B027  as kept
        """Take up what `kept` gave."""

    def backward(self, group: Sequence[Example], share: float = 1.0) -> float:
        """Add up the gradients of a share of the mean loss, in passes of at most `tokens`."""
        total = 0.0
        for part in batches([len(e.row) for e in group], self.tokens):
            rows = [group[i] for i in part]
            loss = objective.losses(self.model, rows, self.temperature).sum() * share / len(group)
            if loss.requires_grad:
                loss.backward()
            total += loss.item()
        return total

    def advance(self, done: int, last: int, what: str, marks: Collection[int] = ()) -> None:
        """The steps from `done` to `last`, with a progress bar, checkpoints and marked scores."""
        from tqdm import tqdm

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
        more, facts = self.kept()
        tensors = {f"factor/{n}": p.detach() for n, p in self.factors.items()} | more
        for name, parameter in self.factors.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        state = {"step": number, "log": self.log, **facts, "identity": self.identity()}
        state["dtype"] = self._dtype()
        self._write(tensors, json.dumps(state))

    def _dtype(self) -> str:
        """The number format of the frozen base: another one computes other steps."""
        return str(next(self.model.parameters()).dtype)

    def _write(self, tensors: dict[str, Tensor], state: str) -> None:
        from safetensors.torch import save_file

        self.saved.parent.mkdir(parents=True, exist_ok=True)
        partial = self.saved.with_suffix(".partial")
        save_file({n: t.contiguous() for n, t in tensors.items()}, partial, {"state": state})
        os.replace(partial, self.saved)

    def resume(self) -> int:
        """Load the last checkpoint of this very run; the number of steps done."""
        from safetensors import safe_open

        if not self.saved.exists():
            return 0
        with safe_open(self.saved, "pt") as saved:
            state = json.loads(saved.metadata()["state"])
            if (state["identity"], state.get("dtype")) != (self.identity(), self._dtype()):
                return 0
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
        self._load(tensors, state)
        return state["step"]

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor], state: dict) -> None:
        for name, parameter in self.factors.items():
            parameter.copy_(tensors[f"factor/{name}"])
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}/{name}" in tensors]
            if keys:
                self.optimizer.state[parameter] = {k: tensors[f"{k}/{name}"] for k in keys}
        self.log = state["log"]
        self.restore(tensors, state)
