"""What a criterion's step costs: memory and throughput, each side a fresh model with an adapter."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from tipmini.groups import Family, find_families
from tipmini.int8 import to_int8
from tipmini.lab import objective
from tipmini.lab.bench import timing
from tipmini.lab.model import load_base, recompute
from tipmini.lab.objective import Example
from tipmini.lab.pruning import scoring
from tipmini.lab.pruning.efficiency import RECOMPUTED
from tipmini.lab.pruning.recipe import TARGETS
from tipmini.lab.resumable import wear_lora

WARM = 16  # rows of a step that is not timed
KEPT = {  # criterion of each side, and whether its base is in 8 bits
    "vanilla": ("vanilla", False),
    "lora-guided": ("lora-guided", False),
    "lora-guided int8": ("lora-guided", True),
}
SIDES = {
    f"{name}{RECOMPUTED if again else ''}": (*side, again)
    for again in (False, True)
    for name, side in KEPT.items()
}


@dataclass
class Side:
    """A model with a fresh adapter and a criterion that reads its gradients."""

    model: nn.Module
    families: list[Family]
    method: str

    def step(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Gradients accumulated over passes of one row, then the importances of all groups."""
        self.accumulate(rows)
        found = self.importances()
        self.model.zero_grad()
        return found

    def accumulate(self, rows: Sequence[Example]) -> None:
        """The mean gradient over the rows, one a pass."""
        for row in rows:
            (objective.losses(self.model, [row]).sum() / len(rows)).backward()

    def importances(self, method: str | None = None, reduction: str = "paper") -> dict[str, Tensor]:
        """Of all groups, by this side's criterion or another one whose gradients it has."""
        return scoring.all_scores(self.model, self.families, method or self.method, reduction)

    @property
    def bytes(self) -> int:
        """Of all parameters and buffers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.nbytes for tensor in {id(t): t for t in tensors}.values())


def side(base: Path, dtype: str, name: str, rank: int, seed: int = 0) -> Side:
    method, int8, again = SIDES[name]
    model = load_base(base, dtype, attention="eager")
    families = find_families(model)
    if int8:
        to_int8(model)
    if again:
        recompute(model)
    causal = wear_lora(model, rank, 2 * rank, TARGETS, seed, light=True).get_base_model()
    scoring.require_gradients(method, scoring.linear_weights(causal, families))
    return Side(causal, families, method)


def cost(base: Path, dtype: str, rows: Sequence[Example], repeats: int, rank: int) -> dict:
    """{side: bytes of the model, bytes by which a step raises the memory, seconds of steps}.

    A row's activations are gone before the next one, so a few rows tell the memory of all.
    """
    few = rows[:WARM]
    memory = {
        name: timing.in_new_process(memory_of, base, dtype, name, few, rank) for name in SIDES
    }
    sides = {name: side(base, dtype, name, rank) for name in SIDES}
    taken = seconds(sides, rows, repeats)
    return {
        name: {"model_bytes": memory[name][0], "step_bytes": memory[name][1]}
        | {"seconds": taken[name], "rows_a_second": len(rows) / statistics.median(taken[name])}
        for name in SIDES
    }


def seconds(
    sides: Mapping[str, Side], rows: Sequence[Example], repeats: int
) -> dict[str, list[float]]:
    """{side: seconds of every step}, the sides taken in turn after a short step of each."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            once = timing.seconds(partial(sides[name].step, rows if number else rows[:WARM]))
            taken[name] += [once] if number else []
    return taken


def memory_of(
    base: Path, dtype: str, name: str, rows: Sequence[Example], rank: int
) -> tuple[int, float | None]:
    """Bytes of the model, and those above it at a step's peak; in a process of its own.

    Of the second step: the first one also makes kernels for every shape, which oneDNN keeps.
    """
    timing.give_memory_back()  # else what int8 frees of the weights would be used again unseen
    one = side(base, dtype, name, rank)
    one.step(rows)
    timing.give_memory_back()
    return one.bytes, timing.peak_memory(partial(one.step, rows))
