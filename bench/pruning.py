"""LoRAPrune's efficiency claims, measured: the parts of the bench that are about pruning."""

from pathlib import Path

from bench import pruning_cost, pruning_profile
from bench.pruning_cost import Setting
from tipmini.methods.groups import find_families
from tipmini_lab.book import pruning_costs
from tipmini_lab.evaluation import objective
from tipmini_lab.evaluation.model import keep_memory, load_base
from tipmini_lab.evaluation.objective import Example
from tipmini_lab.experiments.experiment import Lab

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
    found = pruning_profile.of_steps(setting, rows)
    with pruning_cost.exported(setting) as checkpoints:
        found |= pruning_profile.of_passes(setting, checkpoints)
    return told | {"rows": setting.profiled} | found


def _read(lab: Lab, size: dict) -> tuple[Setting, list[Example], dict[str, object]]:
    """What is measured, the rows that the criteria read, and what is stored of both."""
    keep_memory()
    setting = Setting(Path(lab.model_path), lab.dtype, **size)
    told = {name: getattr(setting, name) for name in ("dtype", "rows", "length", "rank")}
    rows = objective.plain_examples([TASK], setting.rows, setting.length, lab.tokenizer)
    return setting, rows, {"task": TASK} | told


PARTS = {
    f"{pruning_costs.PREFIX}{name}": part
    for name, part in zip(pruning_costs.PARTS, (criteria, masks, inference, profile), strict=True)
}


def report(found: pruning_costs.Found) -> str:
    """The tables of the parts that are measured, as the book has them."""
    shown = {
        pruning_costs.CRITERIA: [pruning_costs.cost_table],
        pruning_costs.MASKS: [pruning_costs.overlap_table],
        pruning_costs.INFERENCE: [pruning_costs.inference_table],
        pruning_costs.PROFILE: [pruning_costs.step_times, pruning_costs.pass_times],
    }
    return "\n\n".join(table(found).to_string() for name in found for table in shown[name])
