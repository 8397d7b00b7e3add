"""Tables and figures of the prunings: by hand, of made-up outcomes, and of nothing at all."""

import math

import made_up_prunings as made_up
import prunable
import pytest
import torch

from tipmini.groups import find_families
from tipmini.lab import show
from tipmini.lab.pruning import (
    agreement,
    benched,
    comparisons,
    curves,
    declared,
    efficiency,
    figures,
    guessing,
    kept_masks,
    memory,
    step_time,
    tables,
)
from tipmini.lab.pruning.memory import LLAMA_7B, LLAMA_65B, Shape
from tipmini.lab.statistics import MISSING
from tipmini.masking import save_masks

GRID = declared.grid()
RUNS = GRID.runs("smoke")
FOUND = made_up.outcomes(GRID)
BENCH = made_up.bench()


def test_perplexity_by_hand():
    cell = made_up.cell("base", "books", "nll", [1.0, 3.0])  # mean 2, standard error 1
    found = tables.perplexity(cell)
    assert found == pytest.approx((math.exp(2), math.exp(2 - 1.96), math.exp(2 + 1.96)))


def test_seeds_are_averaged_with_their_spread():
    levels = [3.0, 3.2, 3.4]
    names = [declared.run_name("wanda", 0.5, True, seed) for seed in range(3)]
    found = {
        name: made_up.bundle(RUNS[name], GRID.tasks, level)
        for name, level in zip(names, levels, strict=True)
    }
    every = [math.exp(sum(made_up.losses(level)) / 16) for level in levels]
    row = tables.table(found, GRID, RUNS, 0.5, tuned=True).loc["Wanda"]
    assert every == sorted(every)
    low, middle, high = (f"{p:.1f}" for p in every)  # evenly apart: the middle is the mean loss's
    assert row["ppl, books"] == f"{middle}<br>{low}–{high}" and row["seeds"] == "3"


def test_numbers_have_three_digits():
    sizes = [0.51283, 1, 26.313, 99.96, 871.4, 1855298.25]
    told = ["0.513", "1.00", "26.3", "100", "871", "1,860,000"]
    assert [tables.three_digits(size) for size in sizes] == told


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_every_method_has_its_row(share, tuned):
    table = tables.table(FOUND, GRID, RUNS, share, tuned)
    titles = [m.title for m in (*GRID.whole, *GRID.methods)]
    semi = [m.title for m in GRID.semi_structured] if share == 0.5 and not tuned else []
    control = ["unpruned, fine-tuned"] if tuned else []
    assert sorted(table.index) == sorted(titles + semi + control)
    assert not (table == MISSING).any(axis=None)
    seeds = table.loc["magnitude", "seeds"]
    assert seeds == ("3" if tuned else "1")


def test_what_is_not_measured_says_so():
    table = tables.table({}, GRID, RUNS, 0.5, tuned=False)
    assert (table.drop(columns="seeds") == MISSING).all(axis=None)
    assert comparisons.summary({}, GRID, RUNS, "lora-guided").count(MISSING) == 2 * 4
    assert MISSING in tables.provenance({}, RUNS)
    assert (tables.shares({}, RUNS, "lora-guided") == MISSING).all(axis=None)
    frame = comparisons.against({}, GRID, RUNS, "lora-guided", "books")
    assert (frame == MISSING).all(axis=None)
    assert curves.lines({}, GRID, RUNS, [("wanda", False)], "books") == {}


def test_a_task_that_is_missing_leaves_out_the_mean_only():
    name = declared.run_name("wanda", 0.2, False, 0)
    bundle = FOUND[name]
    fewer = bundle.model_copy(update={"cells": [c for c in bundle.cells if c.task != "piqa"]})
    row = tables.table({name: fewer}, GRID, RUNS, 0.2, tuned=False).loc["Wanda"]
    assert (row["PIQA"], row["mean without BoolQ"]) == (MISSING, MISSING)
    assert MISSING not in (row["BoolQ"], row["ppl, books"])


def test_the_mean_is_of_the_tasks_that_do_not_stand_apart():
    assert GRID.averaged == tuple(task for task in GRID.tasks if task != "boolq")
    name = declared.run_name("wanda", 0.2, False, 0)
    cells = [c for c in FOUND[name].cells if c.task != "boolq"]
    boolq = made_up.cell(name, "boolq", "acc", [1.0] * 20)
    other = FOUND[name].model_copy(update={"cells": [*cells, boolq]})
    rows = [
        tables.table({name: b}, GRID, RUNS, 0.2, tuned=False).loc["Wanda"]
        for b in (FOUND[name], other)
    ]
    assert rows[1]["BoolQ"] == "1.000" != rows[0]["BoolQ"]
    assert rows[0]["mean without BoolQ"] == rows[1]["mean without BoolQ"]
    every = [sum(c.values) / 20 for c in cells if c.metric == "acc"]
    assert rows[0]["mean without BoolQ"] == f"{sum(every) / 6:.3f}"


def test_a_constant_answer_is_worth_what_most_rows_have():
    class Task:
        eval_docs = ({"label": label} for label in (0, 1, 1, 0, 1))

        @staticmethod
        def doc_to_target(doc):
            return doc["label"]

    assert guessing.majority(Task) == 0.6


def test_a_difference_is_taken_window_by_window():
    """The windows differ a lot, two methods by 0.1 everywhere: the interval is a point."""
    names = [declared.run_name(m, 0.2, False, 0) for m in ("wanda", "lora-guided")]
    found = {
        name: made_up.bundle(RUNS[name], GRID.tasks, level)
        for name, level in zip(names, (3.1, 3.0), strict=True)
    }
    frame = comparisons.against(found, GRID, RUNS, "lora-guided", "books")
    assert frame.loc["Wanda", "20%"] == "1.11<br>[1.11, 1.11]"  # exp(0.1)
    assert frame.loc["Wanda", "50%"] == MISSING


def test_a_summary_names_the_place_and_the_lowest():
    names = [m.name for m in GRID.methods]  # made up so that each is worse than the last
    lines = comparisons.summary(FOUND, GRID, RUNS, "lora-guided").splitlines()
    place = names.index("lora-guided") + 1
    assert len(lines) == 4 and lines[3].startswith("- 50%, tuned: on wikipedia LoRAPrune, ")
    assert all(line.count(f"is number {place} of {len(names)}, the") == 2 for line in lines)
    best = comparisons.summary(FOUND, GRID, RUNS, names[0])
    assert "the lowest" not in best and f"is number 1 of {len(names)};" in best


def test_lines_start_at_what_nothing_was_removed_of():
    (line,) = curves.lines(FOUND, GRID, RUNS, [("magnitude", True)], "books").values()
    assert line[0] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert line[1] == sorted(line[1])
    tuned = tables.seeds(FOUND, RUNS, *tables.UNPRUNED)
    assert len(tuned) == 3
    assert line[1][0] == pytest.approx(math.exp(comparisons.windows(tuned, "books").mean()))
    (line,) = curves.lines(FOUND, GRID, RUNS, [("magnitude", False)], "books").values()
    base = tables.cell(FOUND["base"], "books")
    assert [ends[0] for ends in line[1:]] == pytest.approx(tables.perplexity(base))
    assert all(low < y < high for _, y, low, high in zip(*line, strict=True))


def test_printed_cells_are_the_papers():
    table = tables.printed()
    assert table.loc["LoRAPrune"].tolist() == ["11.60", "17.39"]
    gap = float(table.loc["LLM-Pruner", "WikiText2"]) - float(table.loc["LoRAPrune", "WikiText2"])
    assert gap == pytest.approx(4.81)


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
    table = memory.table([LLAMA_7B, LLAMA_65B], rank=8)
    assert table.loc["LLM-Pruner, vanilla", "LLaMA-7B"] == "13 GB"
    assert table.loc["LoRAPrune", "LLaMA-7B"] == "41.7 MB"
    assert table.loc["PST", "LLaMA-65B"] == "194 GB"  # three GPUs of 80 GB


# The bench ----------------------------------------------------------------------------------------


def test_costs_are_set_against_the_vanilla_criterion():
    row = efficiency.cost_table(BENCH).loc["LoRA-guided"]
    assert row["of all saved"] == f"{1 - 570 / 790:.1%}" and row["faster by"] == "+50.0%"
    assert row["of a step saved"] == f"{1 - 300 / 520:.1%}"
    printed = row[["printed, LLaMA-7B, GB", "printed, saved", "printed, faster by"]]
    assert printed.tolist() == ["18.3", "52.6%", "+64.6%"]
    eight = efficiency.cost_table(BENCH).loc["in 8 bits"]
    assert (eight["printed, saved"], eight["printed, faster by"]) == ("64.2%", "-")


def test_times_are_set_against_the_unpruned_merged_model():
    table = efficiency.inference_table(BENCH)
    assert table.loc["50%, merged", "batch 8, against unpruned"].startswith("-50.0%")
    assert table.loc["20%, adapter beside", "batch 1, s"] == "1.200"
    printed = table[efficiency.PRINTED_TIME]
    assert printed[printed != "-"].to_dict() == {
        "0%, adapter beside": "+54.0%",
        "20%, merged": "-24.7%",
        "50%, merged": "-49.5%",
    }


def test_a_part_says_what_it_read_and_how_often():
    told = {part: benched.made_with(BENCH, part) for part in benched.PARTS}
    assert told["inference"].startswith("Prompts of 8 tokens, each model 3 times in turn; an adap")
    assert told["criteria"].startswith("128 rows of boolq cut to 256 tokens, one a pass; an adap")
    counted = BENCH | {"criteria": BENCH["criteria"] | {"repeats": 5}}
    assert "; 5 steps of each; an" in benched.made_with(counted, "criteria")


def test_agreement_is_a_mean_over_seeds_between_the_least_and_the_most():
    line = agreement.lines(BENCH)["channels"]["squares, as printed"]
    assert line[0] == [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert line[1][5] == pytest.approx(1 - 0.5 * 0.65)
    assert (line[2][5], line[3][5]) == pytest.approx((1 - 0.5 * 0.7, 1 - 0.5 * 0.6))
    assert agreement.chance(BENCH)["channels"][1][5] == pytest.approx(0.5)


def test_shares_that_come_to_the_same_groups_are_one_place():
    """Of three groups of heads one goes at 40% and at 50%, and none below."""
    assert agreement.lines(BENCH)["heads"]["as released"][0] == [1 / 3]
    assert agreement.chance(BENCH)["heads"][0] == [1 / 3]
    table = agreement.overlap_table(BENCH)
    heads = [row for row in table.index if row.startswith("heads")]
    assert heads == ["heads, 40% and 50%"] and table.loc[heads[0], "gone"] == "30 of 90"
    assert [row for row in table.index if "channels" in row][:2] == [
        "channels, 5%",
        "channels, 10%",
    ]


def test_a_bench_of_before_has_fewer_shares():
    fewer = [e for e in BENCH["masks"]["agreement"] if e["share"] != 0.05]
    before = BENCH | {"masks": BENCH["masks"] | {"agreement": fewer}}
    assert agreement.lines(before)["channels"]["as released"][0] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert len(agreement.overlap_table(before)) == len(agreement.overlap_table(BENCH)) - 1


@pytest.mark.parametrize(
    "table",
    [
        efficiency.cost_table,
        efficiency.inference_table,
        agreement.overlap_table,
        step_time.table,
        step_time.pass_table,
    ],
)
def test_without_a_bench_every_table_says_so(table):
    assert MISSING in table({}).to_string()
    assert MISSING not in table(BENCH).to_string()
    assert MISSING in benched.made_with({}, benched.CRITERIA)


@pytest.mark.parametrize("name", [None, *benched.PARTS])
def test_any_one_part_of_the_bench_can_be_shown_alone(name):
    found = {name: BENCH[name]} if name else {}
    tables = (efficiency.cost_table, efficiency.inference_table, step_time.table)
    filled = {
        part
        for part, table in zip(("criteria", "inference", "profile"), tables, strict=True)
        if MISSING not in table(found).to_string()
    }
    assert filled == {name} & {"criteria", "inference", "profile"}
    assert bool(agreement.lines(found)) == (name == benched.MASKS)
    told = efficiency.summary(found) + step_time.bound(found) + step_time.pass_bound(found)
    left = {"criteria": 4, "masks": 4, "inference": 4, "profile": 3}
    assert told.count(MISSING) == left.get(name, 5)


def test_a_summary_of_the_bench_says_what_its_tables_say():
    told = efficiency.summary(BENCH)
    assert f"vanilla: {1 - 300 / 520:.1%} saved, {1 - 60 / 270:.1%} where" in told
    assert (
        "**Throughput**: +50.0% and +33.3% (printed: +64.6%)" in told and "batch 8: -50.0%" in told
    )
    assert "82.0% by chance" in told  # two masks of 10%: 1 - 2 * 0.1 * 0.9


def test_the_bound_leaves_only_the_products():
    """What vanilla alone needs, (1.0 + 0.2) / 2.0 of the products and 1.2 of 6.0 in all."""
    told = step_time.bound(BENCH)
    assert "is 60.0% of the two products that stay" in told
    assert "only 20% of a whole vanilla step" in told and "are 40% of a LoRA-guided one" in told
    printed = efficiency.cost_table({}).loc["LoRA-guided", "printed, faster by"]
    assert printed.strip("+") in told and float(printed.strip("+%")) > 50
    assert step_time.table(BENCH).loc[step_time.SUM].tolist() == ["6000.0", "5000.0", "-"]
    assert step_time.table(BENCH).loc[step_time.WALL].tolist() == ["6500.0", "5500.0", "-"]


def test_a_pass_is_told_part_by_part():
    table = step_time.pass_table(BENCH)
    assert table.loc[step_time.SUM].tolist() == ["4000.0", "2000.0", "-50.0%"]
    assert table.loc[step_time.WALL].tolist() == ["5000.0", "2500.0", "-50.0%"]
    assert "they are 25% of the unpruned model's pass" in step_time.pass_bound(BENCH)


def test_the_stored_profile_is_of_what_the_stored_costs_are_of():
    """The profiler sees what the clock does, and the gain that the bench measured apart."""
    found = benched.read()
    steps, cost = found[benched.PROFILE]["steps"], found[benched.CRITERIA]["cost"]
    for own in steps.values():
        assert sum(own["parts"].values()) == pytest.approx(own["seconds"], rel=0.25)
    vanilla, ours = (steps[name]["seconds"] for name in ("vanilla", "lora-guided"))
    gain = cost["lora-guided"]["rows_a_second"] / cost["vanilla"]["rows_a_second"]
    assert vanilla / ours == pytest.approx(gain, rel=0.1)
    same = [own["parts"][step_time.HEAD] for own in steps.values()]
    assert same[0] == pytest.approx(same[1], rel=0.2)


# Figures ------------------------------------------------------------------------------------------


def drawn() -> dict:
    wanted = [("lora-guided", True), ("magnitude", False)]
    lines = {c: curves.lines(FOUND, GRID, RUNS, wanted, c) for c in ("wikipedia", "books")}
    marks = {c: curves.marks(FOUND, GRID, c) for c in lines}
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator)
    thin = torch.randn(2, 8, generator=generator)
    return {
        "perplexities": figures.perplexities(lines, marks),
        "no perplexities": figures.perplexities({"wikipedia": {}, "books": {}}, {}),
        "agreements": figures.agreements(agreement.lines(BENCH), agreement.chance(BENCH)),
        "no agreements": figures.agreements({}, {}),
        "progress": figures.progress({"a": [3.0, 2.0]}, [0.0, 0.5]),
        "no progress": figures.progress({}, []),
        "schedules": figures.schedules({"cubic": [0, 0.1, 0.5]}),
        "criteria": figures.criteria(weight, weight, thin, thin.T, weight, {"a": [0.4, 0.6]}),
        "sparsities": figures.merged_sparsities({"x": {"a": weight, "b": weight, "c": weight}}),
        "dependencies": figures.dependencies(
            {"heads": [("q", weight.abs(), 0, (0, 2)), ("o", weight.abs(), 1, (4, 6))]}
            | {"channels": [("up", weight.abs(), 0, (3, 4))]},
            1,
        ),
    }


@pytest.mark.parametrize("name", drawn())
def test_a_figure_is_drawn_the_same_twice(name):
    first, second = (show.svg(drawn()[name]) for _ in range(2))
    assert first == second and first.startswith("<?xml")
    assert (name.startswith("no ")) == (MISSING in _texts(drawn()[name]))


def _texts(figure) -> str:
    import matplotlib.text

    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_zeros_are_counted_in_the_title():
    half = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    figure = figures.merged_sparsities({"way": {"W": half, "BA": half + 1, "merged": half}})
    assert [a.get_title() for a in figure.axes][:2] == ["W\n50% zeros", "BA\n0% zeros"]


def test_the_band_marks_the_groups_rows():
    weight = torch.ones(10, 4)
    parts = {"rows": [("q", weight, 0, (20, 40))], "columns": [("d", weight, 1, (0, 10))]}
    figure = figures.dependencies(parts, 10)
    first, second = (axes.patches[0].get_bbox() for axes in figure.axes)
    assert (first.y0, first.y1) == (1.5, 3.5) and (first.x0, first.x1) == (-0.5, 3.5)
    assert (second.x0, second.x1) == (-0.5, 0.5) and (second.y0, second.y1) == (-0.5, 9.5)


def test_the_ablations_stand_beside_the_whole():
    table = tables.ablations(FOUND, GRID, RUNS)
    assert list(table.index) == ["LoRAPrune", *(method.title for method in GRID.ablations)]
    assert set(table["seeds"]) == {"3"} and not (table == MISSING).any(axis=None)
    assert (tables.ablations({}, GRID, RUNS).drop(columns="seeds") == MISSING).all(axis=None)


def test_the_variants_say_what_really_went():
    table = tables.variants(FOUND, GRID, RUNS)
    names = ["LoRAPrune", "LoRAPrune, released reduction", *(v.title for v in GRID.variants)]
    assert list(table.index) == [f"{share}, {name}" for share in ("20%", "50%") for name in names]
    assert set(table["seeds"]) == {"3"} and not (table == MISSING).any(axis=None)
    name = declared.run_name("lora-guided-recipe", 0.5, True, 0)
    less = FOUND[name].model_copy(update={"facts": {"removed_share": 0.2}})
    row = f"50%, {GRID.titles()['lora-guided-recipe']}"
    found = {run: b for run, b in FOUND.items() if run != name} | {name: less}
    assert tables.variants(found, GRID, RUNS).loc[row, "really removed"] == "40.0%"
    assert (tables.variants({}, GRID, RUNS).drop(columns="seeds") == MISSING).all(axis=None)


def test_longer_tuning_stands_beside_the_same_run_with_few_steps():
    table = tables.longer(FOUND, GRID, RUNS)
    runs = [declared.run_name("wanda", 0.5, True, 0, longer) for longer in (False, True)]
    told = [f"{tables.perplexity(tables.cell(FOUND[r], 'books'))[0]:.1f}" for r in runs]
    assert told == table.loc["Wanda", ["ppl, books, few", "ppl, books, many"]].tolist()
    assert told[0] != told[1] and "unpruned" in table.index
    few_alone = {name: bundle for name, bundle in FOUND.items() if not RUNS[name].longer}
    half = tables.longer(few_alone, GRID, RUNS)
    assert (half.filter(like="many") == MISSING).all(axis=None)
    assert half.filter(like="few").equals(table.filter(like="few"))


# What whole runs removed --------------------------------------------------------------------------


def gone(heads: list[int], channels: list[int]) -> dict[str, torch.Tensor]:
    """Masks of one layer with three groups of heads and ten channels."""
    masks = {"layers.0.self_attn": torch.ones(3), "layers.0.mlp": torch.ones(10)}
    masks["layers.0.self_attn"][heads] = masks["layers.0.mlp"][channels] = 0
    return {name: mask.bool() for name, mask in masks.items()}


FIRST, SECOND, THIRD = gone([0], [0, 1, 2, 3]), gone([1], [2, 3, 4, 5]), gone([0], [3, 4, 5, 6])


def test_the_kind_of_a_family_is_in_its_name():
    families = find_families(prunable.model("grouped"))
    assert all(f.name.endswith(kept_masks.OF_KIND[f.kind]) for f in families)


def test_groups_that_both_runs_removed():
    assert kept_masks.both_gone(FIRST, SECOND, "channels") == 0.5
    assert kept_masks.both_gone(FIRST, SECOND, "heads") == 0
    assert kept_masks.both_gone(gone([], [1]), FIRST, "heads") is None
    assert kept_masks.by_chance(FIRST, "channels") == pytest.approx(0.4)
    assert kept_masks.by_chance(FIRST, "heads") == pytest.approx(1 / 3)


def test_runs_are_paired_by_seed():
    known = {("vanilla", 0.5, True): {0: FIRST, 1: SECOND}}
    known |= {("wanda", 0.5, True): {1: SECOND, 0: FIRST}}
    known |= {("vanilla", 0.5, False): {0: FIRST}}
    known |= {("random", 0.5, False): {0: FIRST, 1: SECOND, 2: THIRD}}
    table = kept_masks.beside_vanilla(known, GRID)
    assert table.loc["Wanda", "channels, 50%, tuned"] == "100.0%"
    assert table.loc["random", "channels, 50%"] == "58.3%"  # vanilla draws nothing: 4, 2, 1 of 4
    assert table.loc["by chance", "channels, 50%"] == "40.0%"
    assert table.loc["LoRAPrune", "channels, 50%"] == MISSING
    assert "vanilla, Eq. 3" not in table.index
    table = kept_masks.between_seeds(known, GRID)
    assert table.loc["random", "channels, 50%"] == "50.0%"  # of 2 / 4, 1 / 4, 3 / 4
    assert table.loc["vanilla, Eq. 3", "channels, 50%"] == kept_masks.ONE_SEED
    assert table.loc["Wanda", "heads, 50%, tuned"] == "0.0%"


def test_seeds_that_one_lacks_are_left_out_of_the_pairs():
    """By place the second of one would stand beside the first of the other."""
    known = {
        ("vanilla", 0.5, True): {1: SECOND, 2: THIRD},
        ("wanda", 0.5, True): {0: FIRST, 1: SECOND},
    }
    table = kept_masks.beside_vanilla(known, GRID)
    assert table.loc["Wanda", "channels, 50%, tuned"] == "100.0%"
    known["wanda", 0.5, True] = {0: FIRST}  # no seed of both: every pair
    table = kept_masks.beside_vanilla(known, GRID)
    assert table.loc["Wanda", "channels, 50%, tuned"] == "37.5%"  # of 2 / 4, 1 / 4


def test_stored_masks_are_read_by_run_and_seed(tmp_path):
    run = RUNS[declared.run_name("wanda", 0.5, True, 2)]
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / f"{run.name}.safetensors").write_bytes(save_masks(FIRST))
    ((seed, found),) = kept_masks.read(tmp_path, RUNS)[run.method, run.share, run.tuned].items()
    assert seed == 2 and all(found[name].equal(mask) for name, mask in FIRST.items())
