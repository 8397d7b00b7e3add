"""What pruning costs and takes, measured: criteria, masks, pruned models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import tipmini as tm
from bench import pruning_cost, pruning_profile
from bench.pruning_cost import side
from tipmini.methods import pruner
from tipmini.methods.criteria import REDUCTIONS
from tipmini.methods.groups import CHANNELS, Family, find_families
from tipmini.papers.loraprune import share_mask
from tipmini_lab.book import pruning_costs
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import keep_memory, load_base
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.experiments.experiment import Lab

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)

Scores = Mapping[str, Mapping[str, Tensor]]  # of two criteria: {family: (count,) importances}


def compared(
    families: Sequence[Family],
    scores: Scores,
    share: float,
    reduction: str,
    seed: int,
) -> list[dict]:
    """One entry for each kind: this share of every family's groups removed by either criterion.

    same: share of groups with the same verdict; both: of the groups that the first removes, those
    that the second removes too. chance_*: of two masks with these numbers that know nothing.
    """
    entries = []
    for kind in {family.kind: None for family in families}:
        own = [family for family in families if family.kind == kind]
        tally = [overlap(family, scores, int(share * family.count + 1e-9)) for family in own]
        groups, gone, both = (sum(column) for column in zip(*tally, strict=True))
        same = groups - 2 * (gone - both)  # every group that one alone removes has its counterpart
        by_chance = sum(n * (g / n) ** 2 for n, g, _ in tally)
        entries.append(
            {"kind": kind, "share": share, "reduction": reduction, "seed": seed}
            | {"groups": groups, "removed": gone, "same": same / groups}
            | {"both": both / gone if gone else None}
            | {"chance_same": (groups - 2 * (gone - by_chance)) / groups}
            | {"chance_both": by_chance / gone if gone else None}
        )
    return entries


def overlap(family: Family, scores: Scores, gone: int) -> tuple[int, int, int]:
    """Groups, those that each criterion removes, those that both do."""
    first, second = (~share_mask(found[family.name], gone) for found in scores.values())
    return family.count, gone, int((first & second).sum())


def find_loudest(
    model: nn.Module, families: Sequence[Family], batches: Sequence[Mapping[str, Tensor]]
) -> list[dict]:
    """For every layer the channel with the largest activation, and where its weights stand.

    times: its norm over the median channel's; lighter: the share of the layer's channels that
    magnitude removes before it.
    """
    channels = [family for family in families if family.kind == CHANNELS]
    reads = [next(m.module for m in family.members if m.dim == 1) for family in channels]
    norms = tm.calibrate(model, batches, reads)
    scores = pruner.all_scores(model, channels, "magnitude")
    entries = []
    for family, module in zip(channels, reads, strict=True):
        norm, weights = norms[module], scores[family.name]
        most = int(norm.argmax())
        lighter = (weights < weights[most]).double().mean()
        times = norm[most] / norm.median()
        entries.append({"layer": family.layer, "lighter": float(lighter), "times": float(times)})
    return entries


# LoRAPrune's efficiency claims, measured ----------------------------------------------------------
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
    batches = objective.padded(rows, lab.profile.tokens)
    loudest = find_loudest(model, find_families(model), batches)
    found = agreement(base, lab.dtype, rows, size)
    return _sizes(lab, size) | {"agreement": found, "loudest": loudest}


def inference(lab: Lab, size: Size = Size()) -> dict:
    """How fast models are that have lost a share."""
    base, _ = _read(lab, size)
    with pruning_cost.exported(base, size.shares) as checkpoints:
        found = pruning_cost.inference(
            checkpoints, lab.dtype, size.batches, size.prompt, size.rounds, size.rank
        )
    return {"dtype": lab.dtype, "rank": size.rank, "inference": found}


def profile(lab: Lab, size: Size = Size()) -> dict:
    """Where the time of a step by either criterion goes, and that of a pass of a pruned model."""
    base, rows = _read(lab, size)
    dtype, batch = lab.dtype, max(size.batches)
    sides = {name: side(base, dtype, name, size.rank) for name in pruning_costs.TIMED}
    found = pruning_profile.of_steps(sides, rows, size.profiled, size.profiles, size.rank)
    with pruning_cost.exported(base, size.shares) as checkpoints:
        models = pruning_profile.loaded(checkpoints, dtype)
        found |= pruning_profile.of_passes(models, batch, size.prompt, size.profiles)
    return _sizes(lab, size) | {"rows": size.profiled} | found


def _read(lab: Lab, size: Size) -> tuple[Path, list[Example]]:
    """The base model's folder, and the rows that the criteria read."""
    keep_memory()
    return Path(lab.model_path), objective.plain_examples(
        [TASK], size.rows, size.length, lab.tokenizer
    )


def _sizes(lab: Lab, size: Size) -> dict[str, object]:
    told = {name: getattr(size, name) for name in ("rows", "length", "rank")}
    return {"task": TASK, "dtype": lab.dtype} | told


PARTS = {
    f"{pruning_costs.PREFIX}{name}": part
    for name, part in zip(pruning_costs.PARTS, (criteria, masks, inference, profile), strict=True)
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
            for share in SHARES:
                found += compared(one.families, scores, share, reduction, seed)
    return found


# What the terminal shows --------------------------------------------------------------------------


def report(found: pruning_costs.Found) -> str:
    """The tables of the parts that are measured, as the book has them."""
    shown = {
        pruning_costs.CRITERIA: [pruning_costs.cost_table],
        pruning_costs.MASKS: [pruning_costs.overlap_table],
        pruning_costs.INFERENCE: [pruning_costs.inference_table],
        pruning_costs.PROFILE: [pruning_costs.step_table, pruning_costs.pass_table],
    }
    return "\n\n".join(table(found).to_string() for name in found for table in shown[name])
