"""TIP's Figure 1, measured: the cost of several adapters in one batch, with stock PEFT.

Every way to serve has a model of its own that holds the adapters it serves and no others; the
weights of the base are shared. All take a step in turn, so that a drifting machine hits all alike.
"""

import copy
import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tipmini as tm
from bench import timing
from tipmini_lab.book import serving
from tipmini_lab.book.serving import Forward
from tipmini_lab.evaluation import model
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.results import store as storage

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTH, STEPS, ROUNDS = 64, 3, 5  # tokens of a prompt, tokens after it, counted rounds
MERGE = "linear"  # any merge to the same rank costs the same

# As a tensor: for the number 1, transformers hands the head a view, and on a CPU torch then copies
# the head's whole weight for every row.
LAST = {"use_cache": True, "logits_to_keep": torch.tensor([-1])}


@dataclass(frozen=True)
class Setting:
    """What is served: a way to load the base model, every adapter's folder, that of the merge."""

    load: Callable[[], nn.Module]
    adapters: Mapping[str, Path]
    merged: Path

    @property
    def ways(self) -> list[str]:
        """Names of all ways to serve: "base", "mixed 1" ..., "one adapter", "weights"."""
        counts = range(1, len(self.adapters) + 1)
        return ["base", *(f"mixed {n}" for n in counts), "one adapter", "weights"]


def setting(lab: Lab) -> Setting:
    """A profile's model and adapters, with the attention that transformers itself takes."""
    profile = lab.profile
    load = partial(model.load_base, lab.model_path, lab.dtype, profile.device, attention="sdpa")
    return Setting(load, {t: lab.adapter_path(t) for t in profile.tasks}, lab.merged(MERGE))


# How a batch is served ----------------------------------------------------------------------------
def in_peft(base: nn.Module, folders: Mapping[str, Path]) -> nn.Module:
    """A PeftModel that holds these adapters in the base model's own dtype."""
    from peft import PeftModel

    first, *others = folders
    same = {"autocast_adapter_dtype": False}  # else float32, converted at every product
    peft = PeftModel.from_pretrained(base, folders[first], adapter_name=first, **same)
    for name in others:
        peft.load_adapter(folders[name], name, **same)
    return peft.eval()


def served(way: str, what: Setting, base: nn.Module) -> Forward:
    """One way to serve; `base` is changed by none but "weights"."""
    if way == "base":
        return base
    if way == "weights":
        return in_peft(base, {"merged": what.merged}).merge_and_unload()
    shared = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    if way == "one adapter":
        return in_peft(shared, {"merged": what.merged})
    names = list(what.adapters)[: adapters_of(way)]
    return serving.mixed(in_peft(shared, {n: what.adapters[n] for n in names}), names)


def adapters_of(way: str) -> int:
    """How many different adapters a way to serve keeps beside the weights."""
    kind, _, count = way.partition(" ")
    return int(count) if kind == "mixed" else int(way == "one adapter")


def prompts(model: nn.Module, rows: int, length: int) -> Tensor:
    """(rows, length) random token numbers; what they say does not matter."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (rows, length), generator=draw)


# Time and memory ----------------------------------------------------------------------------------
@torch.inference_mode()
def generation(forward: Forward, tokens: Tensor, steps: int) -> tuple[float, float]:
    """Seconds of a pass over (B, T) prompts, and the median of the `steps` that follow it."""
    out: list = []
    run = lambda *args, **options: out.append(forward(*args, **LAST, **options))  # noqa: E731
    taken = [timing.seconds(lambda: run(tokens))]
    for _ in range(steps):
        last = out.pop()
        token, cache = last.logits[:, -1:].argmax(-1), last.past_key_values
        taken.append(timing.seconds(lambda t=token, c=cache: run(t, past_key_values=c)))
    return taken[0], statistics.median(taken[1:])


def latencies(
    what: Setting, base: nn.Module, batches: Sequence[int], length: int, rounds: int
) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """{(way, batch): (prompt's seconds, next token's) of every round}."""
    forwards = {w: served(w, what, what.load() if w == "weights" else base) for w in what.ways}
    works = {
        (way, batch): partial(generation, forward, prompts(base, batch, length), STEPS)
        for batch in batches
        for way, forward in forwards.items()
        if adapters_of(way) <= batch  # every adapter of a mixed batch has a row
    }
    return timing.in_turn(works, rounds)


def memories(what: Setting, batches: Sequence[int], length: int) -> dict[tuple[str, int], float]:
    """{(way, batch): bytes by which a pass over prompts raises the memory}; two at a time.

    Of the fewest and the most adapters: a process of its own for each takes long to start.
    """
    ways = [way for way in what.ways if adapters_of(way) in (0, 1, len(what.adapters))]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, max_tasks_per_child=1) as pool:
        found = list(pool.map(partial(peaks, what, batches, length), ways))
    return {(w, b): m for w, row in zip(ways, found, strict=True) for b, m in row.items()}


@torch.inference_mode()
def peaks(what: Setting, batches: Sequence[int], length: int, way: str) -> dict[int, float | None]:
    """Of every batch; to be called in a process of its own."""
    base = what.load()
    forward, least = served(way, what, base), max(1, adapters_of(way))
    found = {}
    for batch in (batch for batch in batches if batch >= least):
        forward(prompts(base, least, 2))  # every weight is in memory now
        tokens = prompts(base, batch, length)
        timing.give_memory_back()  # else a pass uses unseen what loading and merging have freed
        found[batch] = timing.peak_memory(partial(forward, tokens, **LAST))
    return found


# All of it ----------------------------------------------------------------------------------------
def measure(
    what: Setting, batches: Sequence[int] = BATCHES, length: int = LENGTH, rounds: int = ROUNDS
) -> dict:
    """Sizes, and for every way, batch and step its seconds, operations, bytes and memory."""
    base = what.load()
    size = serving.sizes(base, tm.load_adapter(what.merged))
    memory = memories(what, batches, length)
    middle = length + (STEPS - 1) // 2  # tokens before the step in the middle
    points = []
    for (way, batch), pairs in latencies(what, base, batches, length, rounds).items():
        count = adapters_of(way)
        for i, (step, *span) in enumerate((("prompt", length, 0), ("token", 1, middle))):
            point = {"way": way, "adapters": count, "batch": batch, "step": step}
            point["seconds"] = [round(pair[i], 6) for pair in pairs]
            point["operations"] = serving.operations(size, batch, *span, adapted=count > 0)
            point["bytes"] = serving.moved(size, batch, *span, adapters=count)
            points.append(point | ({} if i else {"memory": memory.get((way, batch))}))
    return {"length": length, "rounds": rounds, "sizes": asdict(size), "points": points}


def store(lab: Lab, **options: object) -> str:
    """Measure, write results/serving.json, and return what the terminal shows."""
    model.keep_memory()
    found = {
        **{"command": "python -m bench serving", "profile": lab.profile.name, "dtype": lab.dtype},
        **timing.made(),
        "matrix_product": timing.matmul_peak(getattr(torch, lab.dtype)),
        "bandwidth": timing.bandwidth(),
        **measure(setting(lab), **options),
    }
    storage.write(serving.STORED, json.dumps(found, indent=1) + "\n")
    return serving.report(serving.Stored(**found))
