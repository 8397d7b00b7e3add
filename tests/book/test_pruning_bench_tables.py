"""Tables of what a criterion keeps, counted, and of the bench of pruning, made up."""

import made_up_prunings as made_up
import prunable
import pytest
import torch

from tipmini.methods.groups import find_families
from tipmini_lab.book import pruning_costs
from tipmini_lab.book.pruning_costs import LLAMA_7B, LLAMA_65B, MASK, SCORE, SUM, WALL, Shape
from tipmini_lab.book.pruning_tables import formatted
from tipmini_lab.results.statistics import MISSING

BENCH = made_up.bench()
TABLES = {
    "criteria": pruning_costs.cost_table,
    "masks": pruning_costs.overlap_table,
    "inference": pruning_costs.inference_table,
    "profile": lambda found: formatted(pruning_costs.pass_times(found), "{:.1f}"),
}


def test_a_shape_counts_what_the_model_has():
    model = prunable.model("grouped")
    shape = Shape.of("tiny", model.config.to_dict())
    families = find_families(model)
    assert shape.weights == sum(family.weights for family in families)
    assert shape.group_bytes == (SCORE + MASK) * sum(family.count for family in families)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = sum(m.in_features for m in linear) - model.lm_head.in_features
    assert shape.norm_bytes == SCORE * inputs
    worn = prunable.with_lora(model)
    factors = sum(p.numel() for n, p in worn.named_parameters() if "lora_" in n)
    assert shape.factors(4) == factors


def test_counts_at_7b_by_hand():
    assert LLAMA_7B.weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert LLAMA_7B.factors(8) == 32 * 8 * (4 * 8192 + 3 * 15104)
    table = pruning_costs.memory_table([LLAMA_7B, LLAMA_65B], rank=8)
    assert table.loc["LLM-Pruner, vanilla", "LLaMA-7B"] == "13 GB"
    assert table.loc["LoRAPrune", "LLaMA-7B"] == "41.7 MB"
    assert table.loc["PST", "LLaMA-65B"] == "194 GB"  # three GPUs of 80 GB
    assert [pruning_costs.size(n) for n in (500, 2_345_600, 10**13)] == [
        "0.5 kB",
        "2.35 MB",
        "10,000 GB",
    ]


# The bench ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [None, *TABLES])
def test_any_part_can_be_shown_alone_and_what_is_missing_says_so(measured):
    found = {measured: BENCH[measured]} if measured else {}
    for part, table in TABLES.items():
        assert (MISSING in table(found).to_string()) == (part != measured)
        assert (MISSING in pruning_costs.made_with(found, part)) == (part != measured)
    assert pruning_costs.step_times(found).isna().all(axis=None) == (measured != "profile")
    assert pruning_costs.alike(found).empty == (measured != "masks")


def test_costs_are_set_against_the_vanilla_criterion():
    table = pruning_costs.cost_table(BENCH)
    told = table.loc["LoRA-guided"].tolist()
    assert told[:3] == [f"{1 - 570 / 790:.1%}", "+50.0%", f"{1 - 300 / 520:.1%}"]
    assert told[3:] == ["270", "300", "3.00", "18.3", "52.6%", "+64.6%"]
    recomputed = table.loc["LoRA-guided,<br>gradient checkpointing"]
    assert recomputed["of a step saved"] == f"{1 - 60 / 270:.1%}"
    assert table.loc["in 8 bits"].tolist()[-2:] == ["64.2%", "-"]
    cost = {name: own | {"step_bytes": None} for name, own in BENCH["criteria"]["cost"].items()}
    table = pruning_costs.cost_table({"criteria": {"cost": cost}})
    told = table.loc["in 8 bits"]
    assert told[["a step, MB", "of a step saved"]].tolist() == ["not known"] * 2
    assert told["of all saved"] == f"{1 - 170 / 270:.1%}"


def test_times_are_set_against_the_unpruned_merged_model():
    table = pruning_costs.inference_table(BENCH)
    assert table.loc["50%, merged", "batch 8, against unpruned"] == "-50.0% [-50.0, -50.0]"
    assert table.loc["20%, adapter beside", "batch 1, s"] == "1.200"
    printed = table[pruning_costs.PRINTED_TIME]
    assert printed[printed != "-"].to_dict() == {
        "20%, merged": "-24.7%",
        "50%, merged": "-49.5%",
    }


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        ("inference", {}, "Prompts of 8 tokens, each model 3 times in turn; an adap"),
        (
            "criteria",
            {},
            "96 examples of BoolQ, truncated to 256 tokens, one per pass; 2 steps of each; an",
        ),
        (
            "criteria",
            {"repeats": 5},
            "96 examples of BoolQ, truncated to 256 tokens, one per pass; 5 steps of",
        ),
        (
            "masks",
            {},
            "96 examples of BoolQ, truncated to 256 tokens, one per pass; an adapter of rank 8 on",
        ),
    ],
)
def test_a_part_says_what_it_read_and_how_often(part, changed, told):
    own = {part: BENCH[part] | changed}
    assert pruning_costs.made_with(own, part).startswith(told)
    assert pruning_costs.made_with(own, part).endswith("2026-01-01, a CPU, 2 threads.")


def test_agreement_is_a_mean_over_seeds_between_the_least_and_the_most():
    """Of three groups of heads one goes at 40% and at 50%, and none below: that is one place."""
    places = pruning_costs.alike(BENCH).set_index(["kind", "line"])
    line = places.loc[("channels", "squares, as in Eq. 10")]
    assert line.x.tolist() == [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    ends = [1 - 0.5 * 0.65, 1 - 0.5 * 0.7, 1 - 0.5 * 0.6, 0.5]
    assert line.iloc[5][["y", "low", "high", "chance"]].tolist() == pytest.approx(ends)
    assert places.loc[[("heads", "as released")], "x"].tolist() == [1 / 3]
    table = pruning_costs.overlap_table(BENCH)
    assert [row for row in table.index if row.startswith("heads")] == ["heads, 40% and 50%"]
    assert table.index[:2].tolist() == ["channels, 5%", "channels, 10%"]
    assert table.loc["heads, 40% and 50%"].tolist() == ["30 of 90", "70.0%", "70.0%", "40.0%"]


def test_a_step_and_a_pass_are_told_part_by_part():
    steps, passes = pruning_costs.step_times(BENCH), pruning_costs.pass_times(BENCH)
    assert steps.loc[SUM].tolist()[:2] == pytest.approx([6000, 5000])
    assert steps.loc[WALL].tolist()[:2] == pytest.approx([6500, 5500])
    assert steps["at the peak, ms"].dropna().tolist() == pytest.approx([1600, 800])
    assert passes.loc[SUM].tolist() == [4000, 2000] and passes.loc[WALL].tolist() == [5000, 2500]


def test_the_stored_profile_is_of_what_the_stored_costs_are_of():
    """The profiler sees what the clock does, and the gain that the bench measured apart."""
    found = pruning_costs.read()
    times = pruning_costs.step_times(found)[[*pruning_costs.TIMED.values()]]
    cost = found[pruning_costs.CRITERIA]["cost"]
    assert times.loc[SUM].tolist() == pytest.approx(times.loc[WALL].tolist(), rel=0.25)
    vanilla, ours = times.loc[WALL]
    gain = cost["lora-guided"]["rows_a_second"] / cost["vanilla"]["rows_a_second"]
    assert vanilla / ours == pytest.approx(gain, rel=0.1)
    first, second = times.loc[pruning_costs.HEAD]
    assert first == pytest.approx(second, rel=0.2)


def test_every_stored_part_of_a_step_has_its_row():
    """A part under another name would be missing from its table and from the sum."""
    stored = pruning_costs.read()[pruning_costs.PROFILE]
    for step in stored["steps"].values():
        assert {*step["parts"]} == {*pruning_costs.STEP_PARTS, pruning_costs.IMPORTANCES}
    assert all({*one["parts"]} <= {*pruning_costs.STEP_PARTS} for one in stored["passes"])
