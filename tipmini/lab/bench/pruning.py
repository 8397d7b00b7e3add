"""LoRAPrune's efficiency claims, measured: the criterion's cost and its masks, the pruned model's
time.

The vanilla criterion (Eq. 3) has its gradients taken while the same adapter is trained, as the
authors' code does; what it costs more is the gradients of all pruned weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tipmini.criteria import REDUCTIONS
from tipmini.groups import find_families
from tipmini.lab.bench import pruning_cost, pruning_masks, pruning_profile, pruning_speed
from tipmini.lab.bench.pruning_cost import side
from tipmini.lab.experiments import Lab
from tipmini.lab.model import keep_memory, load_base
from tipmini.lab.objective import Example
from tipmini.lab.pruning import benched, efficiency, step_time, texts

TASK = "boolq"


@dataclass(frozen=True)
class Size:
    """How much is measured. The paper: batch 1, 128 times accumulated; 128 rows; 2048 tokens."""

    rows: int = 128  # of a step, one a pass; and whose gradients make the masks that are compared
    length: int = 256  # tokens of a row
    repeats: int = 2  # steps of each criterion that are timed
    profiled: int = 6  # rows of a step under the profiler, whose records take minutes to read
    profiles: int = 3  # of each side and of each model
    rounds: int = 7  # counted passes of each model
    seeds: int = 3  # adapters that masks are compared for
    shares: tuple[float, ...] = (0.0, 0.2, 0.5)  # whose inference is timed
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 512
    rank: int = 8


def criteria(lab: Lab, size: Size = Size()) -> dict:
    """What a step by each criterion costs."""
    base, rows = _read(lab, size)
    found = pruning_cost.cost(base, lab.dtype, rows, size.repeats, size.rank)
    return _sizes(lab, size) | {"rows_a_pass": 1, "repeats": size.repeats, "cost": found}


def masks(lab: Lab, size: Size = Size()) -> dict:
    """Whether the criteria remove the same groups, and which channels magnitude misjudges."""
    base, rows = _read(lab, size)
    model = load_base(base, lab.dtype)
    batches = texts.padded(rows, lab.profile.tokens)
    loudest = pruning_masks.loudest(model, find_families(model), batches)
    found = agreement(base, lab.dtype, rows, size)
    return _sizes(lab, size) | {"agreement": found, "loudest": loudest}


def inference(lab: Lab, size: Size = Size()) -> dict:
    """How fast models are that have lost a share."""
    base, _ = _read(lab, size)
    with pruning_speed.exported(base, size.shares) as checkpoints:
        found = pruning_speed.inference(
            checkpoints, lab.dtype, size.batches, size.prompt, size.rounds, size.rank
        )
    return {"dtype": lab.dtype, "rank": size.rank, "inference": found}


def profile(lab: Lab, size: Size = Size()) -> dict:
    """Where the time of a step by either criterion goes, and that of a pass of a pruned model."""
    base, rows = _read(lab, size)
    dtype, batch = lab.dtype, max(size.batches)
    sides = {name: side(base, dtype, name, size.rank) for name in step_time.CRITERIA}
    found = pruning_profile.of_steps(sides, rows, size.profiled, size.profiles, size.rank)
    with pruning_speed.exported(base, size.shares) as checkpoints:
        models = pruning_profile.loaded(checkpoints, dtype)
        found |= pruning_profile.of_passes(models, batch, size.prompt, size.profiles)
    return _sizes(lab, size) | {"rows": size.profiled} | found


def _read(lab: Lab, size: Size) -> tuple[Path, list[Example]]:
    """The base model's folder, and the rows that the criteria read."""
    keep_memory()
    return Path(lab.model_path), texts.examples([TASK], size.rows, size.length, lab.tokenizer)


def _sizes(lab: Lab, size: Size) -> dict[str, object]:
    told = {name: getattr(size, name) for name in ("rows", "length", "rank")}
    return {"task": TASK, "dtype": lab.dtype} | told


PARTS = {
    f"{benched.PREFIX}{name}": part
    for name, part in zip(benched.PARTS, (criteria, masks, inference, profile), strict=True)
}


# Whether the masks agree --------------------------------------------------------------------------


def agreement(base: Path, dtype: str, rows: Sequence[Example], size: Size) -> list[dict]:
    """Masks of the same accumulated gradients by both criteria, for several adapters."""
    found = []
    for seed in range(size.seeds):
        one = side(base, dtype, "vanilla", size.rank, seed)  # has both kinds of gradients
        one.accumulate(rows)
        for reduction in REDUCTIONS:
            scores = {m: one.importances(m, reduction) for m in ("vanilla", "lora-guided")}
            for share in pruning_masks.SHARES:
                found += pruning_masks.compared(one.families, scores, share, reduction, seed)
    return found


# What the terminal shows --------------------------------------------------------------------------


def report(found: benched.Found) -> str:
    """The tables of the parts that are measured, as the book has them, and what they come to."""
    shown = {
        benched.CRITERIA: [efficiency.cost_table],
        benched.INFERENCE: [efficiency.inference_table],
        benched.PROFILE: [step_time.table, step_time.pass_table],
    }
    tables = [table(found).to_string() for name in found for table in shown.get(name, [])]
    return "\n\n".join([*tables, efficiency.summary(found)])
