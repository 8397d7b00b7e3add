"""Imports flow one way: every module may import only what stands before it in ORDER."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. "tipmini" and "tipmini.lab" are the packages' __init__ modules.
GROUND = ["tipmini.errors", "tipmini.options", "tipmini.fitting"]
GROUND += ["tipmini.source", "tipmini.methods", "tipmini.checkout"]
TENSORS = [
    "tipmini.threads",
    "tipmini.wanda",
    "tipmini.sparsity",
    "tipmini.dare",
    "tipmini.loraprune",
]
TENSORS += ["tipmini.schedules"]
READING = ["tipmini.reading"]  # of TIP, where the paper leaves it open
CRITERIA = ["tipmini.criteria"]  # of tensors too, above LoRAPrune's equations
ADAPTERS = [
    "tipmini.strict",
    "tipmini.tensor_header",
    "tipmini.tensor_file",
    "tipmini.peft_config",
    "tipmini.peft_modules",
    "tipmini.peft_tensors",
    "tipmini.peft_folder",
    "tipmini.peft_write",
    "tipmini.adapter_header",
    "tipmini.adapter",
    "tipmini.bases",
    "tipmini.inspection",
    "tipmini.calibration",
    "tipmini.lowrank",
    "tipmini.summation",
    "tipmini.tip",
    "tipmini.tip_pruning",
    "tipmini.ties",
    "tipmini.elementwise",
    "tipmini.weighting",
    "tipmini.subspace",
    "tipmini.learnt_weights",
    "tipmini.merge",
    "tipmini.model_card",
    "tipmini.base_folder",
    "tipmini.fidelity",
    "tipmini.weights",
    "tipmini.groups",
    "tipmini.masking",
    "tipmini.removal",
    "tipmini.int8",
]
COMMANDS = [
    "tipmini.commands",
    "tipmini.commands.arguments",
    "tipmini.commands.auditing",
    "tipmini.commands.listing",
    "tipmini.commands.batch",
    "tipmini.commands.laboratory",
    "tipmini.commands.merge_options",
    "tipmini.commands.merge_values",
    "tipmini.commands.merge_request",
    "tipmini.commands.merge_inputs",
    "tipmini.commands.merge_run",
    "tipmini.commands.merge_plan",
    "tipmini.commands.merging",
    "tipmini.commands.pruning",
    "tipmini.cli",
]
LAB = [
    "tipmini.lab.claims",
    "tipmini.lab.claims.proportions",
    "tipmini.lab.controls",
    "tipmini.lab.paths",
    "tipmini.lab.digests",
    "tipmini.lab.claims.declared",
    "tipmini.lab.locks",
    "tipmini.lab.assets",
    "tipmini.lab.documents",
    "tipmini.lab.tasks",
    "tipmini.lab.variants",
    "tipmini.lab.packing",
    "tipmini.lab.attention",
    "tipmini.lab.llama",
    "tipmini.lab.generation",
    "tipmini.lab.model",
    "tipmini.lab.results",
    "tipmini.lab.bundles",
    "tipmini.lab.resampling",
    "tipmini.lab.statistics",
    "tipmini.lab.retention",
    "tipmini.lab.objective",
    "tipmini.lab.lora_linear",
    "tipmini.lab.resumable",
    "tipmini.lab.training",
    "tipmini.lab.weighing",
    "tipmini.lab.pruning",
    "tipmini.lab.pruning.recipe",
    "tipmini.lab.pruning.declared",
    "tipmini.lab.pruning.memory",
    "tipmini.lab.pruning.benched",
    "tipmini.lab.pruning.efficiency",
    "tipmini.lab.pruning.agreement",
    "tipmini.lab.pruning.step_time",
    "tipmini.lab.pruning.texts",
    "tipmini.lab.pruning.scoring",
    "tipmini.lab.pruning.masked_result",
    "tipmini.lab.pruning.run",
    "tipmini.lab.pruning.semi_structured",
    "tipmini.lab.pruning.work",
    "tipmini.lab.resident",
    "tipmini.lab.evaluation",
    "tipmini.lab.pruning.perplexity",
    "tipmini.lab.pruning.tables",
    "tipmini.lab.pruning.variant_tables",
    "tipmini.lab.pruning.comparisons",
    "tipmini.lab.pruning.gaps",
    "tipmini.lab.pruning.takeaways",
    "tipmini.lab.pruning.kept_masks",
    "tipmini.lab.pruning.curves",
    "tipmini.lab.profiles",
    "tipmini.lab.declarations",
    "tipmini.lab.catalogue",
    "tipmini.lab.merging",
    "tipmini.lab.input_norms",
    "tipmini.lab.selection",
    "tipmini.lab.sweeps",
    "tipmini.lab.materials",
    "tipmini.lab.cell_inputs",
    "tipmini.lab.experiments",
    "tipmini.lab.pruning.examples",
    "tipmini.lab.measuring",
    "tipmini.lab.formats",
    "tipmini.lab.pruning.measuring",
    "tipmini.lab.peers",
    "tipmini.lab.parity",
    "tipmini.lab.parity.stored",
    "tipmini.lab.parity.inputs",
    "tipmini.lab.parity.theirs",
    "tipmini.lab.parity.ours",
    "tipmini.lab.parity.pitfalls",
    "tipmini.lab.parity.cases",
    "tipmini.lab.parity.measure",
    "tipmini.lab.show",
    "tipmini.lab.figures",
    "tipmini.lab.pruning.figures",
    "tipmini.lab.effect_figures",
    "tipmini.lab.weight_figures",
    "tipmini.lab.serving_figures",
    "tipmini.lab.bench",
    "tipmini.lab.bench.timing",
    "tipmini.lab.bench.shapes",
    "tipmini.lab.bench.merging",
    "tipmini.lab.bench.limits",
    "tipmini.lab.bench.evaluation",
    "tipmini.lab.bench.calibration",
    "tipmini.lab.bench.stored",
    "tipmini.lab.bench.serving_cost",
    "tipmini.lab.bench.serving_stored",
    "tipmini.lab.bench.serving_words",
    "tipmini.lab.bench.serving",
    "tipmini.lab.bench.pruning_masks",
    "tipmini.lab.bench.pruning_speed",
    "tipmini.lab.bench.pruning_cost",
    "tipmini.lab.bench.pruning_profile",
    "tipmini.lab.bench.pruning",
    "tipmini.lab.bench.__main__",
    "tipmini.lab.tables",
    "tipmini.lab.claims.evidence",
    "tipmini.lab.claims.in_print",
    "tipmini.lab.claims.pruned",
    "tipmini.lab.claims.settings",
    "tipmini.lab.accuracy_tables",
    "tipmini.lab.again",
    "tipmini.lab.guessing",
    "tipmini.lab.choice_tables",
    "tipmini.lab.seeds",
    "tipmini.lab.comparison_tables",
    "tipmini.lab.sweep_tables",
    "tipmini.lab.contributions",
    "tipmini.lab.plain_answers",
    "tipmini.lab.front_page",
    "tipmini.lab.ledger",
    "tipmini.lab.method_tables",
    "tipmini.lab.claims.here",
    "tipmini.lab.claims.pruned_words",
    "tipmini.lab.claims.pruned_here",
    "tipmini.lab.claims.bench_here",
    "tipmini.lab.claims.pruning_settings",
    "tipmini.lab.claims.combined",
    "tipmini.lab.claims.audit",
    "tipmini.lab.claims.printed_tables",
    "tipmini.lab.claims.page",
    "tipmini.lab.book",
    "tipmini.lab.workflow",
]
ORDER = [
    *GROUND,
    *TENSORS,
    *READING,
    *CRITERIA,
    *ADAPTERS,
    "tipmini",
    *LAB,
    "tipmini.lab",
    *COMMANDS,
]


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in sorted((ROOT / "tipmini").rglob("*.py"))}


def imported(module: str) -> Iterator[str]:
    """Every name imported anywhere in a module, inside functions too, as written in full."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: line {node.lineno}: write the import in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(module: str) -> set[str]:
    """The project's own modules it imports: the longest known prefix of each name."""
    names = (name for name in imported(module) if name.split(".")[0] == "tipmini")
    return {next(m for m in prefixes(name) if m in MODULES) for name in names}


def prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def outside(module: str) -> set[str]:
    tops = {name.split(".")[0] for name in imported(module)}
    return tops - set(sys.stdlib_module_names) - {"tipmini"}


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_what_stands_below(module):
    below = set(ORDER[: ORDER.index(module)])
    assert inside(module) <= below


@pytest.mark.parametrize("module", TENSORS)
def test_tensor_modules_know_nothing_but_tensors(module):
    assert outside(module) <= {"torch", "numpy"}
    assert inside(module) <= {"tipmini.errors", "tipmini.options", "tipmini.threads"}


@pytest.mark.parametrize("module", CRITERIA)
def test_criteria_know_tensors_and_equations(module):
    assert outside(module) <= {"torch", "numpy"}
    assert inside(module) <= {"tipmini.errors", *TENSORS}
