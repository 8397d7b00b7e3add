"""What a pruning run does, and when."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tipmini.errors import TipminiError, require, require_share
from tipmini.methods.criteria import CHOICES, NEEDS_WEIGHT_GRADIENT, REDUCTIONS
from tipmini.methods.groups import Family, exempt_layers, quotas
from tipmini.papers.loraprune import SCHEDULES
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.experiments.training import schedule

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PruningRecipe:
    """A pruning run. The paper: learning rate 1e-4, batch 128, 2 epochs, AdamW, cosine decay.

    share: of the weights of all attention and MLP matrices in layers that are not exempt; see
    `groups.quotas` for how heads and channels divide it. tune=False: one pass over all rows for
    the gradients, the groups are removed at once, and no weight is changed.
    """

    method: str = "lora-guided"
    share: float = 0.5
    reduction: str = "paper"  # or "released"; then gradients are also taken after clipping
    schedule: str = "cubic"
    threshold: str = "layer"  # or "global": shares differ from layer to layer
    head_share: float | None = None
    channel_share: float | None = None
    exempt_first: float = 0.0  # the authors' code: 0.1
    exempt_last: int = 0  # the authors' code: 1
    decay: float = 0.9  # lambda of Eq. 11
    every: int = 10  # steps between removals
    tune: bool = True
    int8: bool = False
    tasks: tuple[str, ...] = TASKS  # whose train rows are read, in equal numbers
    rows: int = 1024
    length: int = 256  # tokens of a row; the rest is cut
    epochs: int = 2
    steps: int | None = None  # instead of epochs
    batch: int = 32
    tokens: int = 2048  # padded tokens of one forward pass; a step accumulates several
    recompute: bool = False  # activations in the backward pass: a fraction of the memory, slower
    learning_rate: float = 1e-4
    warmup: float = 0.05  # share of the steps in which the learning rate rises
    clip: float = 1.0
    rank: int = 8
    alpha: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        require("method", self.method, CHOICES)
        require("reduction", self.reduction, REDUCTIONS)
        require("schedule", self.schedule, SCHEDULES)
        require("threshold", self.threshold, ("layer", "global"))
        for task in self.tasks:
            require("task", task, TASKS)
        for name in ("share", "decay", "exempt_first", "warmup"):
            require_share(name, getattr(self, name))
        counts = ("every", "rows", "length", "epochs", "batch", "tokens", "rank", "alpha")
        for name in (*counts, *(["steps"] if self.steps is not None else [])):
            if getattr(self, name) < 1:
                raise TipminiError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.length < 2:
            raise TipminiError("length must be at least 2: the first token predicts the next")
        if self.int8 and self.method in NEEDS_WEIGHT_GRADIENT:
            raise TipminiError(
                f"method {self.method} needs gradients of the weights, which int8 has none of; "
                "prune by lora-guided, magnitude, wanda or random"
            )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def batches(self, rows: int) -> list[list[int]]:
        """Row numbers of every step."""
        if not self.tune:
            return [list(range(rows))]
        an_epoch = math.ceil(rows / self.batch)
        epochs = math.ceil(self.steps / an_epoch) if self.steps else self.epochs
        return schedule(_Order(rows, epochs, self.batch, self.seed))[: self.steps]

    def final(self, families: Sequence[Family], hidden_size: int) -> dict[str, int]:
        """The groups of each family that are gone in the end."""
        layers = 1 + max(family.layer for family in families)
        exempt = exempt_layers(layers, self.exempt_first, self.exempt_last)
        same = not exempt and self.threshold == "layer"
        return quotas(
            families,
            self.share,
            head_share=self.head_share,
            channel_share=self.channel_share,
            exempt=exempt,
            hidden_size=hidden_size if same else None,  # which a checkpoint needs
        )


@dataclass(frozen=True)
class _Order:
    """What `training.schedule` reads of a recipe."""

    rows: int
    epochs: int
    batch: int
    seed: int


def fraction(recipe: PruningRecipe, step: int, steps: int) -> float:
    """How much of all that is to go is gone after `step` of `steps` steps, in [0, 1]."""
    return SCHEDULES[recipe.schedule](step, steps, 1.0) if recipe.tune else 1.0


def removes(recipe: PruningRecipe, step: int, steps: int) -> bool:
    """Whether groups are removed after this step: every few, and when the schedule ends."""
    now, before = (fraction(recipe, number, steps) for number in (step, step - 1))
    return now > 0 and (step % recipe.every == 0 or now == 1 > before or step == steps)


def cosine_rate(recipe: PruningRecipe, step: int, steps: int) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine towards zero."""
    ramp = max(1, round(recipe.warmup * steps))
    if step < ramp:
        return recipe.learning_rate * (step + 1) / ramp
    part = (step - ramp) / max(1, steps - ramp)
    return recipe.learning_rate * (1 + math.cos(math.pi * part)) / 2
