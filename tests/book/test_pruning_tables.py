"""Tables and lines of the prunings: by hand, of made-up outcomes, and of nothing at all."""

import math

import made_up_prunings as made_up
import nbformat
import numpy as np
import pandas as pd
import pytest

from tipmini_lab import paths
from tipmini_lab.book import method_tables, pruning_costs, pruning_tables, tables
from tipmini_lab.book.pruning_tables import (
    HALF,
    LONG,
    OURS,
    PERPLEXITIES,
    UNPRUNED,
    Gap,
    shown,
)
from tipmini_lab.experiments import declared, few_shot
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.results.statistics import MISSING

GRID = declared.grid()
RUNS = GRID.runs("smoke")
FOUND = made_up.outcomes(GRID)
BENCH = made_up.bench()
NAMES = [m.title for m in GRID.methods]  # made up so that each is worse than the last
SHORT = {name: bundle for name, bundle in FOUND.items() if not RUNS[name].longer}
ROWS, SCORES = pruning_tables.frames(FOUND, RUNS, GRID)


def frames(outcomes):
    return pruning_tables.frames(outcomes, RUNS, GRID)


def of_levels(method: str, levels: list[float], share: float = 0.5, tuned: bool = True) -> dict:
    names = [declared.run_name(method, share, tuned, seed) for seed in range(len(levels))]
    return {
        name: made_up.bundle(RUNS[name], GRID.tasks, level)
        for name, level in zip(names, levels, strict=True)
    }


def test_a_run_has_its_scores_and_what_is_declared_of_it():
    run = RUNS[declared.run_name("wanda", 0.2, True, 2)]
    own, cells = SCORES.loc[run.name], {c.task: c for c in FOUND[run.name].cells}
    assert own[[*pruning_tables.MODEL, "seed"]].tolist() == ["wanda", 0.2, True, False, 2]
    assert own["books"] == pytest.approx(math.exp(cells["books"].mean))
    assert own["piqa"] == pytest.approx(cells["piqa"].mean)
    assert GRID.averaged == tuple(task for task in GRID.tasks if task != "boolq")
    assert own["accuracy"] == pytest.approx(np.mean([cells[task].mean for task in GRID.averaged]))
    assert own["removed_share"] == 0.2 and SCORES.stored.all()
    assert len(ROWS) == sum(c.count for bundle in FOUND.values() for c in bundle.cells)


def test_seeds_are_averaged_with_their_spread():
    levels = [3.0, 3.2, 3.4]
    scores = frames(of_levels("wanda", levels))[1]
    row = pruning_tables.table(scores, GRID, 0.5, tuned=True).loc["Wanda"]
    every = [math.exp(sum(made_up.losses(level)) / 16) for level in levels]
    low, middle, high = (f"{p:.1f}" for p in every)  # evenly apart: the middle is the mean loss's
    assert row["ppl, books"] == f"{middle}<br>{low}–{high}" and row["seeds"] == "3"
    means = scores["accuracy"].dropna()
    ends = f"{means.min():.3f}–{means.max():.3f}"
    assert row["mean without BoolQ"] == f"{means.mean():.3f}<br>{ends}"


def test_numbers_have_three_digits():
    sizes = [0.51283, 1, 26.313, 99.96, 871.4, 1855298.25]
    told = ["0.513", "1.00", "26.3", "100", "871", "1,860,000"]
    assert [pruning_tables.three_digits(size) for size in sizes] == told


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_every_method_has_its_row(share, tuned):
    table = pruning_tables.table(SCORES, GRID, share, tuned)
    above = [m.title for m in GRID.whole]
    zeroed = [m.title for m in GRID.zeroed if m.zero_shot]  # the others in a table of their own
    above += zeroed if share == 0.5 and not tuned else []
    above += ["unpruned, fine-tuned"] if tuned else []
    tasks = pruning_tables.accuracies(SCORES, GRID, share, tuned)
    assert list(table.index) == list(tasks.index) == above + NAMES
    assert not (table.join(tasks) == MISSING).any(axis=None)
    assert table.loc["magnitude", "seeds"] == ("3" if tuned else "1")


def test_a_task_that_is_missing_leaves_out_the_mean_only():
    ((name, bundle),) = of_levels("wanda", [3.0], 0.2, False).items()
    fewer = bundle.model_copy(update={"cells": [c for c in bundle.cells if c.task != "piqa"]})
    every = [
        made(frames({name: fewer})[1], GRID, 0.2, tuned=False)
        for made in (pruning_tables.table, pruning_tables.accuracies)
    ]
    row = pd.concat(every, axis="columns").loc["Wanda"]
    assert (row["PIQA"], row["mean without BoolQ"]) == (MISSING, MISSING)
    assert MISSING not in (row["BoolQ"], row["ppl, books"])


def test_rows_may_be_of_any_models_and_columns_of_any_score():
    """What is tuned longer is another model; a seed that removed less lowers the mean."""
    models = {"few": ("wanda", 0.5, True), "many": ("wanda", 0.5, True, True)}
    removed = {"really removed": ("removed_share", pruning_tables.mean(".1%"))}
    table = shown(SCORES, models, removed | PERPLEXITIES)
    assert table["seeds"].tolist() == ["3", "3"] and set(table["really removed"]) == {"50.0%"}
    name = declared.run_name("wanda", 0.5, True, 0)
    less = FOUND[name].model_copy(update={"facts": {"removed_share": 0.2}})
    scores = frames(SHORT | {name: less})[1]
    table = shown(scores, models, removed | PERPLEXITIES)
    assert table["really removed"].tolist() == ["40.0%", MISSING]
    assert table.loc["many"].tolist() == [MISSING, MISSING, MISSING, "-"]


def test_a_difference_is_taken_window_by_window():
    """The windows differ a lot, two methods by 0.1 everywhere: the interval is a point."""
    found = of_levels("wanda", [3.1], 0.2, False) | of_levels(OURS, [3.0], 0.2, False)
    table = pruning_tables.against(frames(found)[0], GRID, OURS, "books")
    assert table.loc["Wanda", "20%"] == "1.11<br>[1.11, 1.11]"  # exp(0.1)
    assert table.loc["Wanda", "50%"] == MISSING and "LoRAPrune" not in table.index


@pytest.mark.parametrize(("tuned", "start"), [(True, UNPRUNED), (False, ("base", 0.0, False))])
def test_lines_start_at_what_nothing_was_removed_of(tuned, start):
    line = pruning_tables.lines(ROWS, {"a": ("magnitude", tuned)}, "books")
    assert line.x.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5] and line.y.is_monotonic_increasing
    every = [FOUND[run.name] for run in pruning_tables.planned(RUNS, *start)]
    losses = [next(c for c in bundle.cells if c.task == "books").values for bundle in every]
    own = pd.Series(np.mean(losses, axis=0))
    ends = [own.mean() + sign * 1.96 * own.sem() for sign in (0, -1, 1)]
    assert line.loc[0, ["y", "low", "high"]].tolist() == pytest.approx(np.exp(ends))
    alone = frames({"base": FOUND["base"]})[0]
    assert pruning_tables.lines(alone, {"a": ("magnitude", False)}, "books").empty


# What is clear ------------------------------------------------------------------------------------


def gap(*seeds: float, noise: float = 0.01) -> Gap:
    """Of 16 windows, with so much noise between them."""
    values = np.mean(seeds) + noise * np.linspace(-1, 1, 16)
    return Gap(values, np.array(seeds), (len(seeds), 1))


@pytest.mark.parametrize(
    ("both", "found"),
    [
        ((gap(-0.1), gap(-0.1)), "lower, 1:1"),
        ((gap(0.1), gap(0.1)), "higher, 1:1"),
        ((gap(-0.1, -0.2), gap(-0.1, -0.05)), "lower, 2:1"),
        ((gap(-0.1, 0.05), gap(-0.1, -0.05)), "neither, 2:1"),  # one seed the other way
        ((gap(-0.1), gap(0.1)), "neither, 1:1"),  # the other corpus the other way
        ((gap(-0.1), gap(-0.1, noise=1.0)), "neither, 1:1"),  # windows are too unlike
        ((gap(0.0, noise=0.0), gap(0.0, noise=0.0)), "neither, 1:1"),  # a tie
        ((gap(-0.1), None), MISSING),
    ],
)
def test_lower_is_clearly_so_on_both_corpora_and_with_every_seed(both, found):
    assert pruning_tables.verdicts({"a": both}) == {"a": found}


def test_tests_are_corrected_together():
    """Of one pair alone a p of 0.03 is clear; of many that show nothing it is not."""
    weak, none = gap(-0.1, noise=0.29), gap(0.0, noise=1.0)
    assert 0.025 < weak.p < 0.05
    alone = {"a": (gap(-1.0), weak)}
    among = pruning_tables.verdicts(alone | {"b": (none, none), "c": (none, none)})
    assert pruning_tables.verdicts(alone)["a"] == "lower, 1:1" and among["a"] == "neither, 1:1"


def test_takeaways_follow_from_the_outcomes():
    """Wanda alone is made worse, and falls behind LoRAPrune."""
    table = pruning_tables.takeaways(FOUND, RUNS, GRID)
    changed = [m.title for m in (*GRID.ablations, *GRID.variants)]
    assert list(table.index) == NAMES + changed
    beside, place = table[HALF], NAMES.index("LoRAPrune")
    told = ["lower, 3:3"] * place + ["-", "neither, 3:3", "higher, 3:3"]
    assert beside.tolist() == told + ["higher, 3:3"] * len(changed)
    turned = pruning_tables.takeaways(FOUND | of_levels("wanda", [6.0] * 3), RUNS, GRID)
    assert turned.loc["Wanda", HALF] == "higher, 3:3"
    few = {run: b for run, b in FOUND.items() if not run.startswith("wanda-50-tuned")}
    few |= of_levels("wanda", [3.0])  # one seed of three is not all
    assert pruning_tables.takeaways(few, RUNS, GRID).loc["Wanda", HALF] == MISSING


def test_long_runs_stand_beside_short_ones_of_the_same_seeds():
    """However many are stored, and with a verdict of their own."""
    long = declared.run_name("wanda", 0.5, True, 0, longer=True)
    one = pruning_tables.long_beside_short(frames(SHORT | {long: FOUND[long]})[1])
    assert {*one.index} == {long, declared.run_name("wanda", 0.5, True, 0)}
    every = pruning_tables.long_beside_short(SCORES)
    assert every.longer.sum() == sum(run.longer for run in RUNS.values()) == len(every) / 2
    table = pruning_tables.takeaways(FOUND, RUNS, GRID)[LONG]
    assert table["Wanda"].startswith("lower, ") and table["random"] == "-"
    assert pruning_tables.takeaways(SHORT, RUNS, GRID)[LONG]["Wanda"] == MISSING


def test_few_and_many_steps_have_their_ends():
    points = pruning_tables.few_and_many(SCORES, GRID, "books").set_index("longer", append=True)
    few, many = (points.loc[("Wanda", longer)] for longer in (False, True))
    assert few.low < few.y < few.high and many.y > few.high  # made up to be half a place worse
    assert {*points.index.unique("method")} == {*NAMES}


def test_seeds_of_long_runs_in_words():
    told = pruning_tables.seeds_in_words(SCORES, GRID.titles())
    assert told.startswith("seeds: 3 of ") and "LLM-Pruner (by element)" in told
    gone = declared.run_name("wanda", 0.5, True, 0, longer=True)
    fewer = frames({name: bundle for name, bundle in FOUND.items() if name != gone})[1]
    assert pruning_tables.seeds_in_words(fewer, GRID.titles()).endswith("; 2 of Wanda")
    assert pruning_tables.seeds_in_words(frames({})[1], GRID.titles()) == f"seeds: {MISSING}"


def test_verdicts_in_words():
    told = pd.Series({"a": "lower, 3:3", "b, c": "neither, 3:3", "d": "lower, 1:1", "e": "-"})
    assert pruning_tables.in_words(told) == "significantly lower for a, d; neither for b (c)"
    assert pruning_tables.in_words(told[3:]) == MISSING


# The chapter --------------------------------------------------------------------------------------


@pytest.fixture
def chapter(monkeypatch):
    """The texts of the chapter on pruning and its appendices, of these outcomes and this bench."""

    def run(outcomes, bench) -> str:
        told = []
        monkeypatch.setattr(pruning_tables, "read", lambda store: outcomes)
        monkeypatch.setattr(pruning_costs, "read", lambda: bench)
        monkeypatch.setattr(method_tables, "same_answer", lambda task: 0.6)
        monkeypatch.setattr(Lab, "definition", lambda lab, task: task)
        monkeypatch.setattr(tables, "text", told.append)
        monkeypatch.setattr(tables, "figure", lambda figure, alt="": told.append(alt))
        for chapter in ("08_pruning", "e_pruning_tables", "f_pruning_cost"):
            names = {}
            for cell in nbformat.read(paths.NOTEBOOKS / f"{chapter}.ipynb", 4).cells:
                if cell.cell_type == "code":
                    exec(cell.source, names)
                    names["profile"] = "smoke"
        return "\n".join(told)

    return run


def test_the_chapter_says_what_is_stored(chapter):
    told = chapter(FOUND, BENCH)
    for sentence in (
        f"{len(RUNS)} of {len(RUNS)} declared runs are stored, ",
        f"on a CPU, torch 2: {len(RUNS)} minutes of pruning and",
        "in 5 of 30 layers (1, 2, 3, 4, 5); were the two independent, 6 would",
        "layer 1: its norm is 100 times the median channel's, and 5% of",
        "is 60.0% of the two products that stay, but only 20% of a whole",  # 1.2 of 2.0, of 6.0
        "the products are 40% of a LoRA-guided one",
        "they are 25% of the unpruned model's pass",
        f"vanilla: {1 - 300 / 520:.1%} saved, {1 - 60 / 270:.1%} with",
        "**Throughput**: +50.0% and +33.3% (printed: +64.6%)",
        "82.0% expected at random",  # two masks of 10%: 1 - 2 * 0.1 * 0.9
        "batch 8, against unpruned: -50.0% [",
        "| LoRAPrune | 11.60 (text) | 17.39 (note) | 54.81 (note) |",
        "| 20% | 20.0% | 16.0% | 0.0% | 20.0% |",
        "| random | 1 | 1 | 1 | 1 |",
        "| sum | 4000.0 | 2000.0 | -50.0% |",
    ):
        assert sentence in told
    # No masks are stored, and of MMLU neither a model's line nor what is said of all.
    asked = few_shot.group().runs
    assert told.count(MISSING) == 6 * 2 * len(NAMES) + len(asked) + 1


@pytest.mark.parametrize("name", [None, *pruning_costs.PARTS])
def test_the_chapter_says_what_is_missing(chapter, name):
    told = chapter({}, {name: BENCH[name]} if name else {})
    assert "0 of " in told
    missing = [part for part in pruning_costs.PARTS if f"python -m bench pruning-{part}" in told]
    assert missing == [part for part in pruning_costs.PARTS if part != name]


def test_the_criteria_stand_beside_loraprune():
    """Each is worse than the last, but the two beside LoRAPrune alike."""
    frame = pruning_tables.halved(FOUND, RUNS, GRID)
    beside = frame["perplexity beside LoRAPrune's"]
    assert list(frame.index) == ["unpruned", *NAMES]
    assert beside["unpruned"] == beside["LoRAPrune"] == "-" and beside["random"] == "lower"
    assert beside.iloc[-1] == "higher" and "seeds" not in frame
    missing = pruning_tables.halved({}, RUNS, GRID)
    assert set(missing["ppl, wikipedia"]) == {MISSING}
    assert missing.loc["random", "perplexity beside LoRAPrune's"] == MISSING
