"""Where a criterion's step and a pass spend their time, and what the machine at its best takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tipmini.groups import Family, find_families
from tipmini.lab.bench import timing
from tipmini.lab.bench.pruning_cost import Side, side
from tipmini.lab.bench.pruning_speed import Checkpoints, reading
from tipmini.lab.model import load_base
from tipmini.lab.objective import Example
from tipmini.lab.pruning import step_time
from tipmini.lab.pruning.scoring import linear_weights

MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


@dataclass(frozen=True)
class Sizes:
    """What tells a step's operations apart: by the sizes of their operands."""

    weights: frozenset[tuple[int, ...]]  # (d, k) of the pruned matrices
    vocabulary: int
    rank: int

    @classmethod
    def of(cls, model: nn.Module, families: Sequence[Family], rank: int) -> "Sizes":
        shapes = {tuple(w.shape) for w in linear_weights(model, families)}
        return cls(frozenset(shapes), model.config.vocab_size, rank)

    def part(self, name: str, operands: Sequence[Sequence[int]]) -> str:
        """The part of a step that an operation belongs to; operands: their sizes, scalars empty."""
        matrices = [tuple(sizes) for sizes in operands if len(sizes) == 2]
        if any(self.vocabulary in sizes for sizes in operands):
            return step_time.HEAD
        if name == "aten::bmm" or "softmax" in name or "dot_product" in name:
            return step_time.ATTENTION
        if name == "aten::add_" and matrices and matrices[0] in self.weights:
            return step_time.ADDING
        return self._product(*matrices[-2:]) if name in MATRIX_PRODUCTS else step_time.REST

    def _product(self, first: tuple[int, ...], second: tuple[int, ...]) -> str:
        if self.rank in (*first, *second):
            return step_time.FACTORS
        made = (first[0], second[1])
        return step_time.WEIGHTS if {made, made[::-1]} & self.weights else step_time.PRODUCTS


def of_steps(base: Path, dtype: str, rows: Sequence[Example], rank: int) -> dict:
    """{"rows", "parts": {criterion: {part: seconds}}, "best": {part: seconds}} of a step."""
    sides = {name: side(base, dtype, name, rank) for name in step_time.CRITERIA}
    one = sides["vanilla"]
    return {
        "rows": len(rows),
        "parts": {name: of_step(own, rows, rank) for name, own in sides.items()},
        "best": best(linear_weights(one.model, one.families), rows),
    }


def of_step(one: Side, rows: Sequence[Example], rank: int) -> dict[str, float]:
    """Of the passes every part, and the importances that are read off their gradients."""
    one.accumulate(rows)
    taken = timing.median_seconds(one.importances)

    def passes() -> None:
        one.model.zero_grad()
        one.accumulate(rows)

    found = parts(passes, Sizes.of(one.model, one.families, rank))
    return found | {step_time.IMPORTANCES: taken}


@torch.inference_mode()
def of_passes(checkpoints: Checkpoints, dtype: str, batch: int, prompt: int) -> dict:
    """{"batch", "prompt", "parts": [{"share", "removed", "parts": {part: seconds}}]} of a pass."""
    found = []
    for share, (folder, removed) in checkpoints.items():
        model = load_base(folder, dtype, attention="sdpa")
        run = partial(model, **reading(model, batch, prompt))
        own = parts(run, Sizes.of(model, find_families(model), rank=0))
        found.append({"share": share, "removed": removed, "parts": own})
    return {"batch": batch, "prompt": prompt, "parts": found}


def parts(work: Callable[[], object], sizes: Sizes) -> dict[str, float]:
    """Seconds of every part in one call, after one that warms up."""
    work()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        work()
    found = dict.fromkeys(step_time.PARTS[:-1], 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        found[sizes.part(event.key, event.input_shapes)] += event.self_cpu_time_total / 1e6
    return found


def best(weights: Sequence[torch.Tensor], rows: Sequence[Example]) -> dict[str, float]:
    """Seconds that the products take at the measured peak of matrix products."""
    tokens, dtype = sum(len(row.row) for row in rows), weights[0].dtype
    once = 2 * sum(w.numel() for w in weights) * tokens / timing.matmul_peak(dtype)
    return {step_time.PRODUCTS: 2 * once, step_time.WEIGHTS: once}
