"""Tables and lines of the prunings: by hand, of made-up outcomes, and of nothing at all."""

import math

import made_up_prunings as made_up
import pytest

from tipmini_lab.book import pruning_masks, pruning_tables
from tipmini_lab.experiments import declared
from tipmini_lab.results.statistics import MISSING

GRID = declared.grid()
RUNS = GRID.runs("smoke")
FOUND = made_up.outcomes(GRID)


def test_perplexity_by_hand():
    cell = made_up.cell("base", "books", "nll", [1.0, 3.0])  # mean 2, standard error 1
    found = pruning_tables.perplexity(cell)
    assert found == pytest.approx((math.exp(2), math.exp(2 - 1.96), math.exp(2 + 1.96)))


def test_seeds_are_averaged_with_their_spread():
    levels = [3.0, 3.2, 3.4]
    names = [declared.run_name("wanda", 0.5, True, seed) for seed in range(3)]
    found = {
        name: made_up.bundle(RUNS[name], GRID.tasks, level)
        for name, level in zip(names, levels, strict=True)
    }
    every = [math.exp(sum(made_up.losses(level)) / 16) for level in levels]
    row = pruning_tables.table(found, GRID, RUNS, 0.5, tuned=True).loc["Wanda"]
    assert every == sorted(every)
    low, middle, high = (f"{p:.1f}" for p in every)  # evenly apart: the middle is the mean loss's
    assert row["ppl, books"] == f"{middle}<br>{low}–{high}" and row["seeds"] == "3"


def test_numbers_have_three_digits():
    sizes = [0.51283, 1, 26.313, 99.96, 871.4, 1855298.25]
    told = ["0.513", "1.00", "26.3", "100", "871", "1,860,000"]
    assert [pruning_tables.three_digits(size) for size in sizes] == told


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_every_method_has_its_row(share, tuned):
    table = pruning_tables.table(FOUND, GRID, RUNS, share, tuned)
    titles = [m.title for m in (*GRID.whole, *GRID.methods)]
    semi = [m.title for m in GRID.semi_structured] if share == 0.5 and not tuned else []
    control = ["unpruned, fine-tuned"] if tuned else []
    assert sorted(table.index) == sorted(titles + semi + control)
    assert not (table == MISSING).any(axis=None)
    seeds = table.loc["magnitude", "seeds"]
    assert seeds == ("3" if tuned else "1")


def test_what_is_not_measured_says_so():
    table = pruning_tables.table({}, GRID, RUNS, 0.5, tuned=False)
    assert (table.drop(columns="seeds") == MISSING).all(axis=None)
    assert pruning_tables.summary({}, GRID, RUNS, "lora-guided").count(MISSING) == 2 * 4
    assert MISSING in pruning_tables.provenance({}, RUNS)
    assert (pruning_tables.shares({}, RUNS, "lora-guided") == MISSING).all(axis=None)
    frame = pruning_tables.against({}, GRID, RUNS, "lora-guided", "books")
    assert (frame == MISSING).all(axis=None)
    assert pruning_masks.lines({}, GRID, RUNS, [("wanda", False)], "books") == {}


def test_a_task_that_is_missing_leaves_out_the_mean_only():
    name = declared.run_name("wanda", 0.2, False, 0)
    bundle = FOUND[name]
    fewer = bundle.model_copy(update={"cells": [c for c in bundle.cells if c.task != "piqa"]})
    row = pruning_tables.table({name: fewer}, GRID, RUNS, 0.2, tuned=False).loc["Wanda"]
    assert (row["PIQA"], row["mean without BoolQ"]) == (MISSING, MISSING)
    assert MISSING not in (row["BoolQ"], row["ppl, books"])


def test_the_mean_is_of_the_tasks_that_do_not_stand_apart():
    assert GRID.averaged == tuple(task for task in GRID.tasks if task != "boolq")
    name = declared.run_name("wanda", 0.2, False, 0)
    cells = [c for c in FOUND[name].cells if c.task != "boolq"]
    boolq = made_up.cell(name, "boolq", "acc", [1.0] * 20)
    other = FOUND[name].model_copy(update={"cells": [*cells, boolq]})
    rows = [
        pruning_tables.table({name: b}, GRID, RUNS, 0.2, tuned=False).loc["Wanda"]
        for b in (FOUND[name], other)
    ]
    assert rows[1]["BoolQ"] == "1.000" != rows[0]["BoolQ"]
    assert rows[0]["mean without BoolQ"] == rows[1]["mean without BoolQ"]
    every = [sum(c.values) / 20 for c in cells if c.metric == "acc"]
    assert rows[0]["mean without BoolQ"] == f"{sum(every) / 6:.3f}"


def test_a_difference_is_taken_window_by_window():
    """The windows differ a lot, two methods by 0.1 everywhere: the interval is a point."""
    names = [declared.run_name(m, 0.2, False, 0) for m in ("wanda", "lora-guided")]
    found = {
        name: made_up.bundle(RUNS[name], GRID.tasks, level)
        for name, level in zip(names, (3.1, 3.0), strict=True)
    }
    frame = pruning_tables.against(found, GRID, RUNS, "lora-guided", "books")
    assert frame.loc["Wanda", "20%"] == "1.11<br>[1.11, 1.11]"  # exp(0.1)
    assert frame.loc["Wanda", "50%"] == MISSING


def test_a_summary_names_the_place_and_the_lowest():
    names = [m.name for m in GRID.methods]  # made up so that each is worse than the last
    lines = pruning_tables.summary(FOUND, GRID, RUNS, "lora-guided").splitlines()
    place = names.index("lora-guided") + 1
    assert len(lines) == 4 and lines[3].startswith("- 50%, tuned: on wikipedia LoRAPrune, ")
    assert all(line.count(f"is number {place} of {len(names)}, the") == 2 for line in lines)
    best = pruning_tables.summary(FOUND, GRID, RUNS, names[0])
    assert "the lowest" not in best and f"is number 1 of {len(names)};" in best


def test_lines_start_at_what_nothing_was_removed_of():
    (line,) = pruning_masks.lines(FOUND, GRID, RUNS, [("magnitude", True)], "books").values()
    assert line[0] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert line[1] == sorted(line[1])
    tuned = pruning_tables.seeds(FOUND, RUNS, *pruning_tables.UNPRUNED)
    assert len(tuned) == 3
    assert line[1][0] == pytest.approx(math.exp(pruning_tables.windows(tuned, "books").mean()))
    (line,) = pruning_masks.lines(FOUND, GRID, RUNS, [("magnitude", False)], "books").values()
    base = pruning_tables.measured_cell(FOUND["base"], "books")
    assert [ends[0] for ends in line[1:]] == pytest.approx(pruning_tables.perplexity(base))
    assert all(low < y < high for _, y, low, high in zip(*line, strict=True))


def test_printed_cells_are_the_papers():
    table = pruning_tables.printed()
    assert table.loc["LoRAPrune"].tolist() == ["11.60", "17.39"]
    gap = float(table.loc["LLM-Pruner", "WikiText2"]) - float(table.loc["LoRAPrune", "WikiText2"])
    assert gap == pytest.approx(4.81)


# Of parts and variants ----------------------------------------------------------------------------


def test_the_ablations_stand_beside_the_whole():
    table = pruning_tables.ablations(FOUND, GRID, RUNS)
    assert list(table.index) == ["LoRAPrune", *(method.title for method in GRID.ablations)]
    assert set(table["seeds"]) == {"3"} and not (table == MISSING).any(axis=None)
    assert (pruning_tables.ablations({}, GRID, RUNS).drop(columns="seeds") == MISSING).all(
        axis=None
    )


def test_the_variants_say_what_really_went():
    table = pruning_tables.variants(FOUND, GRID, RUNS)
    names = ["LoRAPrune", "LoRAPrune, released reduction", *(v.title for v in GRID.variants)]
    assert list(table.index) == [f"{share}, {name}" for share in ("20%", "50%") for name in names]
    assert set(table["seeds"]) == {"3"} and not (table == MISSING).any(axis=None)
    name = declared.run_name("lora-guided-recipe", 0.5, True, 0)
    less = FOUND[name].model_copy(update={"facts": {"removed_share": 0.2}})
    row = f"50%, {GRID.titles()['lora-guided-recipe']}"
    found = {run: b for run, b in FOUND.items() if run != name} | {name: less}
    assert pruning_tables.variants(found, GRID, RUNS).loc[row, "really removed"] == "40.0%"
    assert (pruning_tables.variants({}, GRID, RUNS).drop(columns="seeds") == MISSING).all(axis=None)


def test_longer_tuning_stands_beside_the_same_run_with_few_steps():
    table = pruning_tables.longer(FOUND, GRID, RUNS)
    runs = [declared.run_name("wanda", 0.5, True, 0, longer) for longer in (False, True)]
    told = [
        f"{pruning_tables.perplexity(pruning_tables.measured_cell(FOUND[r], 'books'))[0]:.1f}"
        for r in runs
    ]
    assert told == table.loc["Wanda", ["ppl, books, few", "ppl, books, many"]].tolist()
    assert told[0] != told[1] and "unpruned" in table.index
    few_alone = {name: bundle for name, bundle in FOUND.items() if not RUNS[name].longer}
    half = pruning_tables.longer(few_alone, GRID, RUNS)
    assert (half.filter(like="many") == MISSING).all(axis=None)
    assert half.filter(like="few").equals(table.filter(like="few"))
