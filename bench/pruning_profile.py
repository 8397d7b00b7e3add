"""Where a criterion's step and a pruned model's pass spend their time, by torch's profiler.

An operation belongs to the part that its name and the sizes of its operands tell.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from bench import timing
from bench.pruning_cost import Checkpoints, Side, reading
from tipmini.errors import TipminiError
from tipmini.methods.groups import Family, find_families
from tipmini.methods.pruner import linear_weights
from tipmini_lab.book import pruning_costs
from tipmini_lab.evaluation.model import load_base
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.packing import collate

PRODUCT_NAMES = ("aten::mm", "aten::addmm", "aten::addmm_")
ATTENTION_NAMES = ("aten::bmm", "softmax", "dot_product")


@dataclass(frozen=True)
class Operands:
    """The sizes by which operations are told apart."""

    weights: frozenset[tuple[int, ...]]  # (d, k) of the pruned matrices
    vocabulary: int
    head: int  # numbers of one attention head
    rank: int = 0  # 0: no adapter

    @classmethod
    def of(cls, model: nn.Module, families: Sequence[Family], rank: int = 0) -> "Operands":
        shapes = {tuple(w.shape) for w in linear_weights(model, families)}
        return cls(frozenset(shapes), model.config.vocab_size, model.config.head_dim, rank)

    def tells_apart(self, row: Example) -> bool:
        """Whether a row's number of tokens, padded, is none of the sizes that tell parts apart."""
        return padded(row) not in {
            self.rank,
            self.vocabulary,
            *(d for w in self.weights for d in w),
        }

    def part(self, name: str, operands: Sequence[Sequence[int]]) -> str:
        """The part that an operation belongs to; operands: their sizes, a scalar's empty."""
        matrices = [tuple(sizes) for sizes in operands if len(sizes) == 2]
        if any(self.vocabulary in sizes for sizes in operands):
            return pruning_costs.HEAD
        if self._attends(name, operands):
            return pruning_costs.ATTENTION
        if name.startswith("LowRankSum") or any(self.rank in sizes for sizes in matrices):
            return pruning_costs.FACTORS
        if name == "aten::add_" and matrices and matrices[0] in self.weights:
            return pruning_costs.ADDING
        return self._product(*matrices[-2:]) if name in PRODUCT_NAMES else pruning_costs.REST

    @staticmethod
    def _attends(name: str, operands: Sequence[Sequence[int]]) -> bool:
        """By its name; or it has scores, (batch, heads, T, T), or repeats groups in five dims."""
        scores = any(len(s) == 5 or (len(s) == 4 and s[-1] == s[-2]) for s in operands)
        return scores or any(known in name for known in ATTENTION_NAMES)

    def _product(self, first: tuple[int, ...], second: tuple[int, ...]) -> str:
        made = (first[0], second[1])
        of_weights = {made, made[::-1]} & self.weights
        return pruning_costs.WEIGHTS if of_weights else pruning_costs.PRODUCTS


def padded(row: Example) -> int:
    """Tokens that a pass over this row alone computes."""
    return collate([row.row]).tokens.shape[-1]


# Steps of the criteria ----------------------------------------------------------------------------


def of_steps(
    sides: Mapping[str, Side], rows: Sequence[Example], count: int, rounds: int, rank: int
) -> dict:
    """{"steps": {side: {"parts", "seconds"}}, "at_peak": {part: seconds}}, all of one row.

    Profiled are the first `count` rows whose length is told apart from the weights' sizes.
    Importances are read off once a step, so of them a row has one part in len(rows). Raises
    TipminiError where no row has such a length.
    """
    told = {n: Operands.of(own.model, own.families, rank) for n, own in sides.items()}
    chosen = [row for row in rows if next(iter(told.values())).tells_apart(row)][:count]
    if not chosen:
        raise TipminiError("profile: every row is as long as a weight is wide; take another length")
    works = {name: (partial(_passes, own, chosen), told[name]) for name, own in sides.items()}
    found = {name: _share(own, len(chosen)) for name, own in profiled(works, rounds).items()}
    for name, own in sides.items():
        once = timing.median_seconds(own.importances, rounds) / len(rows)
        found[name]["parts"][pruning_costs.IMPORTANCES] = once
        found[name]["seconds"] += once
    one = next(iter(sides.values()))
    return {"steps": found, "at_peak": at_peak(linear_weights(one.model, one.families), chosen)}


def _passes(one: Side, rows: Sequence[Example]) -> None:
    one.model.zero_grad()
    one.accumulate(rows)


def _share(own: dict, count: int) -> dict:
    parts = {part: seconds / count for part, seconds in own["parts"].items()}
    return {"parts": parts, "seconds": own["seconds"] / count}


def at_peak(weights: Sequence[torch.Tensor], rows: Sequence[Example]) -> dict[str, float]:
    """Seconds a row at the measured peak: two products, forward and to the inputs, and one more."""
    tokens = statistics.mean(padded(row) for row in rows)
    once = 2 * sum(w.numel() for w in weights) * tokens / timing.matmul_peak(weights[0].dtype)
    return {pruning_costs.PRODUCTS: 2 * once, pruning_costs.WEIGHTS: once}


# Passes of pruned models --------------------------------------------------------------------------


def loaded(checkpoints: Checkpoints, dtype: str) -> dict[tuple[float, float], nn.Module]:
    """{(share asked for, share removed): the model}"""
    return {
        (share, removed): load_base(folder, dtype, attention="sdpa")
        for share, (folder, removed) in checkpoints.items()
    }


@torch.inference_mode()
def of_passes(
    models: Mapping[tuple[float, float], nn.Module], batch: int, prompt: int, rounds: int
) -> dict:
    """{"batch", "prompt", "passes": [{"share", "removed", "parts", "seconds"}]}."""
    works = {
        key: (partial(m, **reading(m, batch, prompt)), Operands.of(m, find_families(m)))
        for key, m in models.items()
    }
    found = profiled(works, rounds).items()
    passes = [{"share": share, "removed": gone} | own for (share, gone), own in found]
    return {"batch": batch, "prompt": prompt, "passes": passes}


# Any work -----------------------------------------------------------------------------------------


def profiled(works: Mapping[object, tuple[Callable, Operands]], rounds: int) -> dict[object, dict]:
    """{name: {"parts": {part: seconds}, "seconds": by the clock}}, medians of rounds in turn."""
    parts: dict[object, list[dict[str, float]]] = {name: [] for name in works}
    clock: dict[object, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works)[:: 1 if number % 2 else -1]:
            work, told = works[name]
            seconds, once = timing.seconds(work), _once(work, told)
            if number:  # the first round warms up
                clock[name].append(seconds)
                parts[name].append(once)
    return {
        name: {"parts": _medians(parts[name]), "seconds": statistics.median(clock[name])}
        for name in works
    }


def _once(work: Callable[[], object], told: Operands) -> dict[str, float]:
    with profiler(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        work()
    found = dict.fromkeys(pruning_costs.STEP_PARTS, 0.0)
    for event in recorded.key_averages(group_by_input_shape=True):
        found[told.part(event.key, event.input_shapes)] += event.self_cpu_time_total / 1e6
    return found


def _medians(rounds: Iterable[dict[str, float]]) -> dict[str, float]:
    every = list(rounds)
    return {
        part: statistics.median(one[part] for one in every) for part in pruning_costs.STEP_PARTS
    }
