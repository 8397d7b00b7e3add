"""Where a criterion's step spends its time, and what the machine at its best would take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tipmini.lab.bench import timing
from tipmini.lab.bench.pruning_cost import Side, side
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
    def of(cls, one: Side, rank: int) -> "Sizes":
        shapes = {tuple(w.shape) for w in linear_weights(one.model, one.families)}
        return cls(frozenset(shapes), one.model.config.vocab_size, rank)

    def part(self, name: str, operands: Sequence[Sequence[int]]) -> str:
        """The part of a step that an operation belongs to; operands: their sizes, scalars empty."""
        matrices = [tuple(sizes) for sizes in operands if len(sizes) == 2]
        if any(self.vocabulary in sizes for sizes in operands):
            return step_time.HEAD
        if name == "aten::bmm" or "softmax" in name:
            return step_time.ATTENTION
        if name == "aten::add_" and matrices and matrices[0] in self.weights:
            return step_time.ADDING
        return self._product(*matrices[-2:]) if name in MATRIX_PRODUCTS else step_time.REST

    def _product(self, first: tuple[int, ...], second: tuple[int, ...]) -> str:
        if self.rank in (*first, *second):
            return step_time.FACTORS
        made = (first[0], second[1])
        return step_time.WEIGHTS if {made, made[::-1]} & self.weights else step_time.PRODUCTS


def measure(base: Path, dtype: str, rows: Sequence[Example], rank: int) -> dict:
    """{"parts": {side: {part: seconds}}, "best": {part: seconds}} of a step over the rows."""
    sides = {name: side(base, dtype, name, rank) for name in step_time.CRITERIA}
    found = {name: parts(one, rows, Sizes.of(one, rank)) for name, one in sides.items()}
    one = sides["vanilla"]
    return {"parts": found, "best": best(linear_weights(one.model, one.families), rows)}


def parts(one: Side, rows: Sequence[Example], sizes: Sizes) -> dict[str, float]:
    """Seconds of every part in one step, after one that warms up."""
    one.step(rows)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        one.step(rows)
    found = dict.fromkeys(step_time.PARTS, 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        found[sizes.part(event.key, event.input_shapes)] += event.self_cpu_time_total / 1e6
    return found


def best(weights: Sequence[torch.Tensor], rows: Sequence[Example]) -> dict[str, float]:
    """Seconds of the products at the measured peak, and of adding up at the measured bandwidth."""
    tokens, dtype = sum(len(row.row) for row in rows), weights[0].dtype
    once = 2 * sum(w.numel() for w in weights) * tokens / timing.matmul_peak(dtype)
    moved = 3 * sum(w.nbytes for w in weights) * (len(rows) - 1)  # two are read, one written
    return {
        step_time.PRODUCTS: 2 * once,
        step_time.WEIGHTS: once,
        step_time.ADDING: moved / timing.bandwidth(),
    }
