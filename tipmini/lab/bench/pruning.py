"""LoRAPrune's efficiency claims, measured: the criterion's cost and its masks, the pruned model's
time.

The vanilla criterion (Eq. 3) has its gradients taken while the same adapter is trained, as the
authors' code does; what it costs more is the gradients of all pruned weights.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tipmini.criteria import REDUCTIONS
from tipmini.lab.bench import pruning_cost, pruning_masks, pruning_parts, pruning_speed
from tipmini.lab.bench.pruning_cost import side
from tipmini.lab.experiments import Lab
from tipmini.lab.model import keep_memory
from tipmini.lab.objective import Example
from tipmini.lab.pruning import step_time, texts
from tipmini.lab.pruning.efficiency import against

TASK = "boolq"
LONG = "coqa"  # whose rows fill every length


@dataclass(frozen=True)
class Size:
    """How much is measured. The paper: batch 1, 128 times accumulated; 128 rows; 2048 tokens."""

    accumulated: int = 128  # rows of a step, one a pass
    length: int = 256  # tokens of a row
    repeats: int = 2  # steps of each criterion that are timed
    rows: int = 128  # whose gradients make the masks that are compared
    seeds: int = 3  # adapters that they are compared for
    shares: tuple[float, ...] = (0.0, 0.2, 0.5)  # whose inference is timed
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 512
    rounds: int = 7  # counted passes of each
    rank: int = 8
    lengths: tuple[int, ...] = (32, 128, 512)  # of rows that tell how the gain depends on them
    long_rows: int = 32


def criteria(lab: Lab, size: Size = Size()) -> dict:
    """What a step by each criterion costs, where its time goes, and the sizes of all that."""
    keep_memory()
    base, dtype = Path(lab.model_path), lab.profile.dtype
    rows = texts.examples([TASK], size.accumulated, size.length, lab.tokenizer)
    return {
        "task": TASK,
        "dtype": dtype,
        "length": size.length,
        "rank": size.rank,
        "rows": size.accumulated,
        "cost": pruning_cost.cost(base, dtype, rows, size.repeats, size.rank),
        "time": pruning_parts.of_steps(base, dtype, rows[: pruning_cost.WARM], size.rank),
        "lengths": by_length(lab, size),
    }


def masks(lab: Lab, size: Size = Size()) -> dict:
    """Whether the criteria remove the same groups."""
    keep_memory()
    rows = texts.examples([TASK], size.rows, size.length, lab.tokenizer)
    return {"agreement": agreement(Path(lab.model_path), lab.profile.dtype, rows, size)}


def inference(lab: Lab, size: Size = Size()) -> dict:
    """How fast models are that have lost a share, and where the time of a pass goes."""
    keep_memory()
    base, dtype = Path(lab.model_path), lab.profile.dtype
    with pruning_speed.exported(base, size.shares) as checkpoints:
        return {
            "inference": pruning_speed.inference(
                checkpoints, dtype, size.batches, size.prompt, size.rounds, size.rank
            ),
            "pass": pruning_parts.of_passes(checkpoints, dtype, max(size.batches), size.prompt),
        }


def by_length(lab: Lab, size: Size) -> list[dict]:
    """Seconds of a step by either criterion over rows that all have the same length."""
    base, dtype = Path(lab.model_path), lab.profile.dtype
    sides = {name: side(base, dtype, name, size.rank) for name in step_time.CRITERIA}
    found = []
    for length in size.lengths:
        rows = texts.examples([LONG], size.long_rows, length, lab.tokenizer)
        taken = pruning_cost.seconds(sides, rows, size.repeats)
        tokens = sum(len(row.row) for row in rows) / len(rows)
        found.append({"tokens": tokens, "rows": len(rows), "seconds": taken})
    return found


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


PARTS = {
    "pruning-criteria": criteria,
    "pruning-masks": masks,
    "pruning-inference": inference,
}


# What the terminal shows --------------------------------------------------------------------------


def report(found: dict) -> str:
    """The measured figures beside the paper's claims, in a few lines."""
    cost = found.get("cost", {})
    total = {n: c["model_bytes"] + (c["step_bytes"] or 0) for n, c in cost.items()}
    lines = [
        f"{name}: {total[name] / 1e6:.0f} MB ({1 - total[name] / total[against(name)]:.1%} less), "
        f"{c['rows_a_second']:.2f} rows/s "
        f"({c['rows_a_second'] / cost[against(name)]['rows_a_second'] - 1:+.1%})"
        for name, c in cost.items()
    ]
    for kind, share in dict.fromkeys((e["kind"], e["share"]) for e in found.get("agreement", [])):
        own = [e for e in found["agreement"] if (e["kind"], e["share"]) == (kind, share)]
        own = [e for e in own if e["reduction"] == "paper"]
        same, chance = (statistics.mean(e[n] for e in own) for n in ("same", "chance_same"))
        lines.append(f"masks of {kind} at {share:.0%}: {same:.1%} the same, {chance:.1%} by chance")
    for entry in found.get("inference", []):
        seconds = statistics.median(entry["seconds"])
        form = "merged" if entry["merged"] else "unmerged"
        lines.append(
            f"{entry['removed']:.1%} removed, {form}, batch {entry['batch']}: {seconds:.3f} s"
        )
    return "\n".join(lines)
