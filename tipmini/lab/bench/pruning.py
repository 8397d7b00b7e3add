"""LoRAPrune's efficiency claims, measured: the criterion's cost and its masks, the pruned model's
time.

The vanilla criterion (Eq. 3) has its gradients taken while the same adapter is trained, as the
authors' code does; what it costs more is the gradients of all pruned weights.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from tipmini.criteria import REDUCTIONS
from tipmini.groups import Family, find_families
from tipmini.int8 import to_int8
from tipmini.lab import objective
from tipmini.lab.bench import pruning_masks, pruning_speed, timing
from tipmini.lab.experiments import Lab
from tipmini.lab.model import keep_memory, load_base, recompute
from tipmini.lab.objective import Example
from tipmini.lab.pruning import scoring, texts
from tipmini.lab.pruning.efficiency import RECOMPUTED, against
from tipmini.lab.pruning.recipe import TARGETS
from tipmini.lab.resumable import wear_lora

TASK = "boolq"
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


@dataclass(frozen=True)
class Size:
    """How much is measured. The paper: batch 1, 128 times accumulated; 128 rows; 2048 tokens."""

    accumulated: int = 16  # rows of a step, one a pass
    length: int = 256  # tokens of a row
    repeats: int = 5  # steps of each criterion that are timed
    rows: int = 128  # whose gradients make the masks that are compared
    seeds: int = 3  # adapters that they are compared for
    shares: tuple[float, ...] = (0.0, 0.2, 0.5)  # whose inference is timed
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 512
    rounds: int = 7  # counted passes of each
    rank: int = 8


def measure(lab: Lab, size: Size = Size()) -> dict:
    """The three parts, and the sizes they were measured at."""
    keep_memory()
    base = Path(lab.model_path)
    rows = texts.examples([TASK], max(size.rows, size.accumulated), size.length, lab.tokenizer)
    return {
        "task": TASK,
        "dtype": lab.profile.dtype,
        "length": size.length,
        "rank": size.rank,
        "cost": cost(base, lab.profile.dtype, rows[: size.accumulated], size),
        "agreement": agreement(base, lab.profile.dtype, rows[: size.rows], size),
        "inference": pruning_speed.inference(
            base,
            lab.profile.dtype,
            size.shares,
            size.batches,
            size.prompt,
            size.rounds,
            size.rank,
        ),
    }


# What a criterion costs ---------------------------------------------------------------------------


@dataclass
class Side:
    """A model with a fresh adapter and a criterion that reads its gradients."""

    model: nn.Module
    families: list[Family]
    method: str

    def step(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Gradients accumulated over passes of one row, then the importances of all groups."""
        for row in rows:
            (objective.losses(self.model, [row]).sum() / len(rows)).backward()
        found = scoring.all_scores(self.model, self.families, self.method)
        self.model.zero_grad()
        return found

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


def cost(base: Path, dtype: str, rows: Sequence[Example], size: Size) -> dict:
    """{side: bytes of the model, bytes by which a step raises the memory, rows a second}."""
    memory = {
        name: timing.in_new_process(memory_of, base, dtype, name, rows, size.rank) for name in SIDES
    }
    sides = {name: side(base, dtype, name, size.rank) for name in SIDES}
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(size.repeats + 1):  # in turns; the first one warms up
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seconds = timing.seconds(partial(sides[name].step, rows))
            taken[name] += [seconds] if number else []
    return {
        name: {"model_bytes": memory[name][0], "step_bytes": memory[name][1]}
        | {"rows_a_second": len(rows) / statistics.median(taken[name])}
        for name in SIDES
    }


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


# Whether the masks agree --------------------------------------------------------------------------


def agreement(base: Path, dtype: str, rows: Sequence[Example], size: Size) -> list[dict]:
    """Masks of the same accumulated gradients by both criteria, for several adapters."""
    found = []
    for seed in range(size.seeds):
        one = side(base, dtype, "vanilla", size.rank, seed)  # has both kinds of gradients
        for row in rows:
            (objective.losses(one.model, [row]).sum() / len(rows)).backward()
        for reduction in REDUCTIONS:
            scores = {
                method: scoring.all_scores(one.model, one.families, method, reduction)
                for method in ("vanilla", "lora-guided")
            }
            for share in pruning_masks.SHARES:
                found += pruning_masks.compared(one.families, scores, share, reduction, seed)
    return found


# What the terminal shows --------------------------------------------------------------------------


def report(found: dict) -> str:
    """The measured figures beside the paper's claims, in a few lines."""
    cost = found["cost"]
    total = {n: c["model_bytes"] + (c["step_bytes"] or 0) for n, c in cost.items()}
    lines = [
        f"{name}: {total[name] / 1e6:.0f} MB ({1 - total[name] / total[against(name)]:.1%} less), "
        f"{c['rows_a_second']:.2f} rows/s "
        f"({c['rows_a_second'] / cost[against(name)]['rows_a_second'] - 1:+.1%})"
        for name, c in cost.items()
    ]
    for kind, share in dict.fromkeys((e["kind"], e["share"]) for e in found["agreement"]):
        own = [e for e in found["agreement"] if (e["kind"], e["share"]) == (kind, share)]
        own = [e for e in own if e["reduction"] == "paper"]
        same, chance = (statistics.mean(e[n] for e in own) for n in ("same", "chance_same"))
        lines.append(f"masks of {kind} at {share:.0%}: {same:.1%} the same, {chance:.1%} by chance")
    for entry in found["inference"]:
        seconds = statistics.median(entry["seconds"])
        form = "merged" if entry["merged"] else "unmerged"
        lines.append(
            f"{entry['removed']:.1%} removed, {form}, batch {entry['batch']}: {seconds:.3f} s"
        )
    return "\n".join(lines)
