"""What a criterion's step costs, and how fast a pruned model is."""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import timing
from tipmini.methods import pruner
from tipmini.methods.groups import Family, find_families, quotas, removed_share
from tipmini.methods.pruner import Masks, Pruner
from tipmini.methods.removal import save_pruned
from tipmini.models.base_folder import open_base
from tipmini.models.int8 import to_int8
from tipmini_lab.book.pruning_costs import RECOMPUTED
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import load_base, recompute
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.experiments.pruning import families_of
from tipmini_lab.experiments.recipe import TARGETS
from tipmini_lab.experiments.training import add_lora

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
        return pruner.all_scores(self.model, self.families, method or self.method, reduction)

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
    causal = add_lora(model, rank, 2 * rank, TARGETS, seed, light=True).get_base_model()
    pruner.require_gradients(method, pruner.linear_weights(causal, families))
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


# How fast a pruned model is -----------------------------------------------------------------------
Key = tuple[float, bool]  # the share that is gone, and whether the adapter is merged
Checkpoints = Mapping[float, tuple[Path, float]]  # asked share -> folder, share really gone


@contextmanager
def exported(base: Path, shares: Sequence[float]) -> Iterator[Checkpoints]:
    """Checkpoints without these shares, for the while.

    Which groups are gone does not matter to time, so they are chosen at random.
    """
    families = families_of(open_base(base))
    with tempfile.TemporaryDirectory() as folder:
        places = {share: Path(folder) / f"{share:g}" for share in shares}
        yield {s: (out, export(base, families, s, out)) for s, out in places.items()}


def inference(
    checkpoints: Checkpoints,
    dtype: str,
    batches: Sequence[int],
    prompt: int,
    rounds: int,
    rank: int,
) -> list[dict]:
    """Seconds of a pass over (batch, prompt) tokens of every checkpoint, adapter merged and not.

    The adapter is a random one.
    """
    models = {}
    for share, (folder, _) in checkpoints.items():
        models |= {(share, merged): model for merged, model in _adapted(folder, dtype, rank)}
    taken = passes(models, batches, prompt, rounds)
    return [
        {"share": share, "removed": checkpoints[share][1], "merged": merged, "batch": batch}
        | {"prompt": prompt, "seconds": [round(s, 6) for s in seconds]}
        for (share, merged, batch), seconds in taken.items()
    ]


def export(base: Path, families: Sequence[Family], share: float, out: Path) -> float:
    """Write a checkpoint without random groups; the share of weights that it has lost."""
    opened = open_base(base)
    masks, gone = random_masks(families, share, opened.config["hidden_size"])
    save_pruned(opened, families, masks, out)
    return gone


def random_masks(families: Sequence[Family], share: float, hidden: int) -> tuple[Masks, float]:
    """Masks of a share, and the share that could be met."""
    final = quotas(families, share, hidden_size=hidden)
    one = Pruner(families, final)
    one.observe({f.name: pruner.random_scores(f, seed=0) for f in families})
    one.remove(1.0)
    return one.masks, removed_share(families, one.counts)


def _adapted(folder: Path, dtype: str, rank: int) -> Iterator[tuple[bool, nn.Module]]:
    """The checkpoint as stock transformers runs it, alone and under an adapter of its own."""
    load = partial(load_base, folder, dtype, attention="sdpa")
    yield True, load()
    # in the model's dtype: float32 factors would be converted at every product
    yield False, add_lora(load(), rank, 2 * rank, TARGETS, seed=0, cast=False).eval()


@torch.inference_mode()
def passes(
    models: Mapping[Key, nn.Module], batches: Sequence[int], prompt: int, rounds: int
) -> dict[tuple[float, bool, int], list[float]]:
    """Seconds of every round, after one that warms up; all take a pass in turn."""
    taken = {(*key, batch): [] for batch in batches for key in models}
    some = next(iter(models.values()))
    given = {batch: reading(some, batch, prompt) for batch in batches}
    for number in range(rounds + 1):
        for share, merged, batch in list(taken)[:: 1 if number % 2 else -1]:
            seconds = timing.seconds(partial(models[share, merged], **given[batch]))
            taken[share, merged, batch] += [seconds] if number else []
    return taken


def reading(model: nn.Module, batch: int, prompt: int) -> dict[str, object]:
    """A pass's arguments: random tokens, (batch, prompt), read as generation reads a prompt."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (batch, prompt), generator=generator)
    last = torch.tensor([-1])  # logits of the last token alone: see bench.serving
    return {"input_ids": tokens, "logits_to_keep": last, "use_cache": False}
