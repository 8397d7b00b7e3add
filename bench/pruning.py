"""LoRAPrune's efficiency claims, measured: the parts of the bench that are about pruning.

Where a criterion's step and a pruned model's pass spend their time is told by torch's profiler: an
operation belongs to the part that its name and the sizes of its operands tell.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from bench import pruning_cost, pruning_zeros, timing
from bench.pruning_cost import Checkpoints, Setting, one_pass, side
from bench.serving import prompts
from tipmini.errors import TipminiError
from tipmini.methods.groups import Family, find_families
from tipmini.methods.pruner import linear_weights
from tipmini_lab.book import pruning_costs as costs
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import keep_memory, load_base
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.evaluation.packing import collate
from tipmini_lab.experiments.lab import Lab

TASK = "boolq"


def criteria(lab: Lab, **size: object) -> dict:
    """What a step by each criterion costs."""
    setting, rows, told = _read(lab, size)
    found = pruning_cost.cost(setting, rows)
    return told | {"rows_a_pass": 1, "repeats": setting.repeats, "cost": found}


def masks(lab: Lab, **size: object) -> dict:
    """Whether the criteria remove the same groups, and which channels magnitude misjudges."""
    setting, rows, told = _read(lab, size)
    model = load_base(setting.base, setting.dtype)
    batches = objective.padded(rows, lab.profile.tokens)
    loudest = pruning_cost.find_loudest(model, find_families(model), batches)
    return told | {"agreement": pruning_cost.agreement(setting, rows), "loudest": loudest}


def inference(lab: Lab, **size: object) -> dict:
    """How fast models are that have lost a share."""
    setting, _, _ = _read(lab, size)
    with pruning_cost.exported(setting) as checkpoints:
        found = pruning_cost.inference(setting, checkpoints)
    return {"dtype": setting.dtype, "rank": setting.rank, "inference": found}


def profile(lab: Lab, **size: object) -> dict:
    """Where the time of a step by either criterion goes, and that of a pass of a pruned model."""
    setting, rows, told = _read(lab, size)
    found = of_steps(setting, rows)
    with pruning_cost.exported(setting) as checkpoints:
        found |= of_passes(setting, checkpoints)
    return told | {"rows": setting.profiled} | found


def zeros(lab: Lab, **size: object) -> dict:
    """What zeros that leave all shapes do: to time, to bytes, and once an adapter is merged."""
    keep_memory()
    setting = Setting(Path(lab.model_path), lab.dtype, **{"prompt": 128, "rounds": 5} | size)
    adapters = {task: lab.adapter_path(task) for task in lab.profile.tasks}
    return {
        "dtype": "float32",
        "passes": pruning_zeros.passes(setting),
        "refused": pruning_zeros.refused(setting),
        "merged": pruning_zeros.merged(setting.base, adapters),
    }


def _read(lab: Lab, size: dict) -> tuple[Setting, list[Example], dict[str, object]]:
    """What is measured, the rows that the criteria read, and what is stored of both."""
    keep_memory()
    setting = Setting(Path(lab.model_path), lab.dtype, **size)
    told = {name: getattr(setting, name) for name in ("dtype", "rows", "length", "rank")}
    rows = objective.plain_examples([TASK], setting.rows, setting.length, lab.tokenizer)
    return setting, rows, {"task": TASK} | told


PARTS = {
    f"{costs.PREFIX}{name}": part
    for name, part in zip(costs.PARTS, (criteria, masks, inference, profile, zeros), strict=True)
}


def report(found: costs.Found) -> str:
    """The tables of the parts that are measured, as the book has them."""
    shown = {
        costs.CRITERIA: [costs.cost_table],
        costs.MASKS: [costs.overlap_table],
        costs.INFERENCE: [costs.inference_table],
        costs.PROFILE: [costs.step_times, costs.pass_times],
        costs.ZEROS: [costs.zeros_table],
    }
    return "\n\n".join(table(found).to_string() for name in found for table in shown[name])


# Where the time goes ------------------------------------------------------------------------------
PRODUCT_NAMES = ("aten::mm", "aten::addmm", "aten::addmm_")
ATTENTION_NAMES = ("aten::bmm", "softmax", "dot_product")


@dataclass(frozen=True)
class Operands:
    """The sizes by which operations are told apart."""

    weights: frozenset[tuple[int, ...]]  # (d, k) of the pruned matrices
    vocabulary: int
    rank: int = 0  # 0: no adapter

    @classmethod
    def of(cls, model: nn.Module, families: Sequence[Family], rank: int = 0) -> "Operands":
        shapes = {tuple(w.shape) for w in linear_weights(model, families)}
        return cls(frozenset(shapes), model.config.vocab_size, rank)

    def tells_apart(self, row: Example) -> bool:
        """Whether a row's number of tokens, padded, is none of the sizes that tell parts apart."""
        sizes = {self.rank, self.vocabulary, *(d for shape in self.weights for d in shape)}
        return padded(row) not in sizes

    def part(self, name: str, operands: Sequence[Sequence[int]]) -> str:
        """The part that an operation belongs to; operands: their sizes, a scalar's empty."""
        matrices = [tuple(sizes) for sizes in operands if len(sizes) == 2]
        if any(self.vocabulary in sizes for sizes in operands):
            return costs.HEAD
        # By its name; or it has scores, (batch, heads, T, T), or repeats groups in five dims.
        scores = any(len(s) == 5 or (len(s) == 4 and s[-1] == s[-2]) for s in operands)
        if scores or any(known in name for known in ATTENTION_NAMES):
            return costs.ATTENTION
        if name.startswith("LowRankSum") or any(self.rank in sizes for sizes in matrices):
            return costs.FACTORS
        if name == "aten::add_" and matrices and matrices[0] in self.weights:
            return costs.ADDING
        if name not in PRODUCT_NAMES:
            return costs.REST
        first, second = matrices[-2:]
        made = (first[0], second[1])
        return costs.WEIGHTS if {made, made[::-1]} & self.weights else costs.PRODUCTS


def padded(row: Example) -> int:
    """Tokens that a pass over this row alone computes."""
    return collate([row.row]).tokens.shape[-1]


# Steps of the criteria, passes of pruned models ---------------------------------------------------
def of_steps(setting: Setting, rows: Sequence[Example]) -> dict:
    """{"steps": {side: {"parts", "seconds"}}, "at_peak": {part: seconds}}, all of one row.

    Profiled are the first rows whose length is told apart from the weights' sizes. Importances are
    read off once a step, so of them a row has one part in len(rows). Raises TipminiError where no
    row has such a length.
    """
    sides = {name: side(setting, name) for name in costs.TIMED}
    told = {n: Operands.of(own.model, own.families, setting.rank) for n, own in sides.items()}
    first = next(iter(sides))
    chosen = [row for row in rows if told[first].tells_apart(row)][: setting.profiled]
    if not chosen:
        raise TipminiError("profile: every row is as long as a weight is wide; take another length")

    def step(name: str) -> None:
        sides[name].model.zero_grad()
        sides[name].accumulate(chosen)

    works = {name: (partial(step, name), told[name]) for name in sides}
    found = profiled(works, setting.profiles, len(chosen))
    for name, own in sides.items():
        once = timing.median_seconds(own.importances, setting.profiles) / len(rows)
        found[name]["parts"][costs.IMPORTANCES] = once
        found[name]["seconds"] += once
    weights = linear_weights(sides[first].model, sides[first].families)
    return {"steps": found, "at_peak": at_peak(weights, chosen)}


def at_peak(weights: Sequence[torch.Tensor], rows: Sequence[Example]) -> dict[str, float]:
    """Seconds a row at the measured peak: two products, forward and to the inputs, and one more."""
    tokens = statistics.mean(padded(row) for row in rows)
    once = 2 * sum(w.numel() for w in weights) * tokens / timing.matmul_peak(weights[0].dtype)
    return {costs.PRODUCTS: 2 * once, costs.WEIGHTS: once}


def of_passes(setting: Setting, checkpoints: Checkpoints) -> dict:
    """{"batch", "prompt", "passes": [{"share", "removed", "parts", "seconds"}]}."""
    batch, works = max(setting.batches), {}
    for share, (folder, gone) in checkpoints.items():
        model = load_base(folder, setting.dtype, attention="sdpa")
        work = partial(one_pass, model, prompts(model, batch, setting.prompt))
        works[share, gone] = work, Operands.of(model, find_families(model))
    found = profiled(works, setting.profiles).items()
    passes = [{"share": share, "removed": gone} | own for (share, gone), own in found]
    return {"batch": batch, "prompt": setting.prompt, "passes": passes}


def profiled(
    works: Mapping[object, tuple[Callable, Operands]], rounds: int, count: int = 1
) -> dict[object, dict]:
    """{name: {"parts": {part: seconds}, "seconds": by the clock}} of one in `count`; medians."""

    def once(work: Callable[[], object], told: Operands) -> dict[str, float]:
        clock = timing.seconds(work)
        with profiler(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            work()
        found = dict.fromkeys(costs.STEP_PARTS, 0.0)
        for event in recorded.key_averages(group_by_input_shape=True):
            found[told.part(event.key, event.input_shapes)] += event.self_cpu_time_total / 1e6
        return found | {"seconds": clock}

    taken = timing.in_turn({name: partial(once, *work) for name, work in works.items()}, rounds)
    medians = {
        name: {part: statistics.median(one[part] for one in every) / count for part in every[0]}
        for name, every in taken.items()
    }
    return {n: {"seconds": own.pop("seconds"), "parts": own} for n, own in medians.items()}
