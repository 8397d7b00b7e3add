"""Tables of what a criterion keeps, counted, and of the bench of pruning, made up."""

import made_up_prunings as made_up
import prunable
import pytest
import torch

from tipmini.methods.groups import find_families
from tipmini_lab.book import pruning_costs
from tipmini_lab.book.pruning_costs import LLAMA_7B, LLAMA_65B, Shape
from tipmini_lab.results.statistics import MISSING

BENCH = made_up.bench()

# What a criterion keeps ---------------------------------------------------------------------------


def test_a_shape_counts_what_the_model_has():
    model = prunable.model("grouped")
    shape = Shape.of("tiny", model.config.to_dict())
    families = find_families(model)
    assert shape.weights == sum(family.weights for family in families)
    assert shape.groups == sum(family.count for family in families)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.inputs == sum(m.in_features for m in linear) - model.lm_head.in_features
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


# The bench ----------------------------------------------------------------------------------------


def test_costs_are_set_against_the_vanilla_criterion():
    row = pruning_costs.cost_table(BENCH).loc["LoRA-guided"]
    assert row["of all saved"] == f"{1 - 570 / 790:.1%}" and row["faster by"] == "+50.0%"
    assert row["of a step saved"] == f"{1 - 300 / 520:.1%}"
    printed = row[["printed, LLaMA-7B, GB", "printed, saved", "printed, faster by"]]
    assert printed.tolist() == ["18.3", "52.6%", "+64.6%"]
    eight = pruning_costs.cost_table(BENCH).loc["in 8 bits"]
    assert (eight["printed, saved"], eight["printed, faster by"]) == ("64.2%", "-")


def test_times_are_set_against_the_unpruned_merged_model():
    table = pruning_costs.inference_table(BENCH)
    assert table.loc["50%, merged", "batch 8, against unpruned"].startswith("-50.0%")
    assert table.loc["20%, adapter beside", "batch 1, s"] == "1.200"
    printed = table[pruning_costs.PRINTED_TIME]
    assert printed[printed != "-"].to_dict() == {
        "0%, adapter beside": "+54.0%",
        "20%, merged": "-24.7%",
        "50%, merged": "-49.5%",
    }


def test_a_part_says_what_it_read_and_how_often():
    told = {part: pruning_costs.made_with(BENCH, part) for part in pruning_costs.PARTS}
    assert told["inference"].startswith("Prompts of 8 tokens, each model 3 times in turn; an adap")
    assert told["criteria"].startswith("96 rows of boolq cut to 256 tokens, one a pass; 2 steps of")
    counted = BENCH | {"criteria": BENCH["criteria"] | {"repeats": 5}}
    assert "; 5 steps of each; an" in pruning_costs.made_with(counted, "criteria")


def test_agreement_is_a_mean_over_seeds_between_the_least_and_the_most():
    line = pruning_costs.lines(BENCH)["channels"]["squares, as printed"]
    assert line[0] == [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert line[1][5] == pytest.approx(1 - 0.5 * 0.65)
    assert (line[2][5], line[3][5]) == pytest.approx((1 - 0.5 * 0.7, 1 - 0.5 * 0.6))
    assert pruning_costs.chance(BENCH)["channels"][1][5] == pytest.approx(0.5)


def test_shares_that_come_to_the_same_groups_are_one_place():
    """Of three groups of heads one goes at 40% and at 50%, and none below."""
    assert pruning_costs.lines(BENCH)["heads"]["as released"][0] == [1 / 3]
    assert pruning_costs.chance(BENCH)["heads"][0] == [1 / 3]
    table = pruning_costs.overlap_table(BENCH)
    heads = [row for row in table.index if row.startswith("heads")]
    assert heads == ["heads, 40% and 50%"] and table.loc[heads[0], "gone"] == "30 of 90"
    assert [row for row in table.index if "channels" in row][:2] == [
        "channels, 5%",
        "channels, 10%",
    ]


def test_a_bench_of_before_has_fewer_shares():
    fewer = [e for e in BENCH["masks"]["agreement"] if e["share"] != 0.05]
    before = BENCH | {"masks": BENCH["masks"] | {"agreement": fewer}}
    assert pruning_costs.lines(before)["channels"]["as released"][0] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(pruning_costs.overlap_table(before)) == len(pruning_costs.overlap_table(BENCH)) - 1


def test_where_magnitude_ranks_the_largest_activations():
    told = pruning_costs.loudest_told(BENCH)
    assert told.startswith("Measured on SmolLM2-135M without an adapter, 96 rows of boolq: the ")
    assert "smallest 20% of its layer in 5 of 30 layers (1, 2, 3, 4, 5); 6 would be" in told
    assert "the most in layer 1: its norm is 100 times the median channel's, and 5% of" in told
    assert MISSING in pruning_costs.loudest_told({})


@pytest.mark.parametrize(
    "table",
    [
        pruning_costs.cost_table,
        pruning_costs.inference_table,
        pruning_costs.overlap_table,
        pruning_costs.step_table,
        pruning_costs.pass_table,
    ],
)
def test_without_a_bench_every_table_says_so(table):
    assert MISSING in table({}).to_string()
    assert MISSING not in table(BENCH).to_string()
    assert MISSING in pruning_costs.made_with({}, pruning_costs.CRITERIA)


@pytest.mark.parametrize("name", [None, *pruning_costs.PARTS])
def test_any_one_part_of_the_bench_can_be_shown_alone(name):
    found = {name: BENCH[name]} if name else {}
    tables = (pruning_costs.cost_table, pruning_costs.inference_table, pruning_costs.step_table)
    filled = {
        part
        for part, table in zip(("criteria", "inference", "profile"), tables, strict=True)
        if MISSING not in table(found).to_string()
    }
    assert filled == {name} & {"criteria", "inference", "profile"}
    assert bool(pruning_costs.lines(found)) == (name == pruning_costs.MASKS)
    told = (
        pruning_costs.summary(found) + pruning_costs.bound(found) + pruning_costs.pass_bound(found)
    )
    left = {"criteria": 4, "masks": 4, "inference": 4, "profile": 3}
    assert told.count(MISSING) == left.get(name, 5)


def test_a_summary_of_the_bench_says_what_its_tables_say():
    told = pruning_costs.summary(BENCH)
    assert f"vanilla: {1 - 300 / 520:.1%} saved, {1 - 60 / 270:.1%} where" in told
    assert (
        "**Throughput**: +50.0% and +33.3% (printed: +64.6%)" in told and "batch 8: -50.0%" in told
    )
    assert "82.0% by chance" in told  # two masks of 10%: 1 - 2 * 0.1 * 0.9


def test_the_bound_leaves_only_the_products():
    """What vanilla alone needs, (1.0 + 0.2) / 2.0 of the products and 1.2 of 6.0 in all."""
    told = pruning_costs.bound(BENCH)
    assert "is 60.0% of the two products that stay" in told
    assert "only 20% of a whole vanilla step" in told and "are 40% of a LoRA-guided one" in told
    printed = pruning_costs.cost_table({}).loc["LoRA-guided", "printed, faster by"]
    assert printed.strip("+") in told and float(printed.strip("+%")) > 50
    assert pruning_costs.step_table(BENCH).loc[pruning_costs.SUM].tolist() == [
        "6000.0",
        "5000.0",
        "-",
    ]
    assert pruning_costs.step_table(BENCH).loc[pruning_costs.WALL].tolist() == [
        "6500.0",
        "5500.0",
        "-",
    ]


def test_a_pass_is_told_part_by_part():
    table = pruning_costs.pass_table(BENCH)
    assert table.loc[pruning_costs.SUM].tolist() == ["4000.0", "2000.0", "-50.0%"]
    assert table.loc[pruning_costs.WALL].tolist() == ["5000.0", "2500.0", "-50.0%"]
    assert "they are 25% of the unpruned model's pass" in pruning_costs.pass_bound(BENCH)


def test_the_stored_profile_is_of_what_the_stored_costs_are_of():
    """The profiler sees what the clock does, and the gain that the bench measured apart."""
    found = pruning_costs.read()
    steps, cost = found[pruning_costs.PROFILE]["steps"], found[pruning_costs.CRITERIA]["cost"]
    for own in steps.values():
        assert sum(own["parts"].values()) == pytest.approx(own["seconds"], rel=0.25)
    vanilla, ours = (steps[name]["seconds"] for name in ("vanilla", "lora-guided"))
    gain = cost["lora-guided"]["rows_a_second"] / cost["vanilla"]["rows_a_second"]
    assert vanilla / ours == pytest.approx(gain, rel=0.1)
    same = [own["parts"][pruning_costs.HEAD] for own in steps.values()]
    assert same[0] == pytest.approx(same[1], rel=0.2)
