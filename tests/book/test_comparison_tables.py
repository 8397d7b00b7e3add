"""Tables over many variants: numbers from cells, and where one is missing the row says so."""

from types import SimpleNamespace

import made_up
import pytest
from made_up import CELLS, SMOKE, TITLES, right

from tipmini_lab.book import comparisons, method_tables, sweeps, tables
from tipmini_lab.results.statistics import MISSING, Pair

NARROW = tables.NARROW


def test_a_method_is_a_row_with_mean_and_retention():
    frame = tables.complete(CELLS, SMOKE, ["base", "single", "tip"], TITLES)
    assert list(frame.columns) == [
        "Open-<br>Book-<br>QA",
        "RTE†",
        "mean of 2",
        "retention,<br>1 task",
    ]
    assert list(frame.index) == ["Base", "Single", "TIP"]
    assert frame.loc["TIP", "RTE†"] == "0.500<br>±0.080"
    assert frame.loc["TIP", "mean of 2"].startswith("0.500<br>±")
    assert list(frame.iloc[:2, -1]) == ["0%", "100%"]
    assert frame.iloc[2, -1].startswith("50%<br>[")


def test_the_size_of_a_merge_stands_beside_it():
    facts = {"tip": {"norm": 3.0, "sum": 2.0, "distance": 1.0}, "base": {}}
    frame = tables.complete(CELLS, SMOKE, iter(["base", "tip"]), TITLES, facts)
    assert list(frame["size"]) == ["–", "1.50"]
    alone = tables.sizes(["tip", "none"], facts, TITLES)
    assert dict(alone["size"]) == {"TIP": "1.50", "none": "–"}


def test_a_method_with_a_hole_says_so():
    row = tables.complete(CELLS, SMOKE, ["ties", "none"], TITLES)
    assert list(row.loc["TIES"]) == ["–", "0.500<br>±0.080", NARROW, "–"]
    assert list(row.loc["none"]) == ["–", "–", NARROW, "–"]


def test_each_method_against_one():
    frame = comparisons.against(CELLS, SMOKE, ["good", "tip", "base", "ties"], "tip", TITLES)
    assert list(frame.index) == ["Good", "Base", "TIES"]
    assert frame.index.name == "against TIP"
    assert frame.loc["Good"].to_list()[::2] == ["+25.0", "< 0.001", "better"]
    assert frame.loc["Good", "tasks better / worse"] == "1 / 0"
    assert frame.loc["Base", "tasks better / worse"] == "0 / 1"
    assert frame.loc["TIES"].to_list() == ["–"] * 4 + [MISSING]


SENTENCES = [
    (
        "good",
        "tip",
        "*Good* minus *TIP* is +25.0 points in the mean of 2 tasks",
        "**better** than *TIP*",
    ),
    (
        "base",
        "tip",
        "*Base* minus *TIP* is -12.5 points in the mean of 2 tasks",
        "**worse** than *TIP*",
    ),
    ("tip", "tip", "+0.0 points", "[+0.0, +0.0], p = 1.000): the two are **not significant**."),
    ("ties", "tip", "*TIES* against *TIP*", MISSING),
]


@pytest.mark.parametrize(("one", "two", "start", "end"), SENTENCES)
def test_sentences_carry_the_verdict(one, two, start, end):
    text = comparisons.sentence(CELLS, SMOKE, one, two, TITLES)
    assert start in text and end in text


def test_sentences_are_corrected_together():
    """Six rows of six: p = 1/32 alone, 1/16 as one of two."""
    rows = {"good": [1] * 6, "tip": [0] * 6, "base": [0] * 6}
    cells = made_up.cells({name: {"rte": row} for name, row in rows.items()})
    pairs = [Pair("good", "tip", ("rte",)), Pair("good", "base", ("rte",))]
    assert "**better**" in comparisons.sentences(cells, pairs[:1])[0]
    for text in comparisons.sentences(cells, pairs):
        assert "not significant" in text and "corrected p = 0.06" in text


def test_better_is_what_beats_all():
    frame = comparisons.verdicts(CELLS, SMOKE, ["good", "single"], ["tip", "good"], TITLES)
    assert list(frame.columns) == ["minus TIP", "minus Good", "it is"]
    assert frame.loc["Good", "minus TIP"].startswith("+25.0<br>[+")
    assert list(frame["it is"]) == ["not significant", "worse"]
    frame = comparisons.verdicts(CELLS, SMOKE, ["good", "ties"], ["tip", "base"], TITLES)
    assert list(frame["it is"]) == ["better", MISSING]


def test_every_method_of_the_library_has_a_row():
    names = tables.every_method()
    assert names[:2] == ["base", "single"]
    assert {"linear", "tip", "regmean", "tip-inverted"} <= set(names)
    assert len(names) == len(set(names))


def test_dots_of_what_is_measured():
    accuracies, retentions, levels = tables.dots(CELLS, SMOKE, TITLES, TITLES)
    assert accuracies["TIP"][0] == 0.5 and accuracies["TIES"] is None
    assert retentions["TIP"][0] == 0.5 and retentions["TIES"] is None
    assert levels == {"Base": 0.375, "Single": pytest.approx(0.6375)}


def test_seeds_are_found_in_their_order():
    names = ["dare-s10", "dare", "dare-s2", "dare-ties-s1", "dare-s2x"]
    cells = {(name, "rte"): None for name in names}
    assert comparisons.seeds_of(cells, "dare") == ["dare", "dare-s2", "dare-s10"]
    assert comparisons.seeds_of(cells, "tip.random") == []


def test_seeds_are_counted_and_spread():
    frame = comparisons.seed_table(CELLS, SMOKE, ["tip", "good"])
    assert list(frame.index) == ["OpenBookQA", "RTE†", "mean of 2"]
    assert list(frame.loc["OpenBookQA"])[:2] == ["2", "0.750"]
    assert frame.loc["RTE†", "spread of seeds (sd)"] == "0.000"
    assert set(comparisons.seed_table(CELLS, SMOKE, ["tip", "ties"]).loc["OpenBookQA"]) == {MISSING}


def test_seeds_are_told():
    text = comparisons.told(CELLS, SMOKE, ["tip", "good"])
    assert "number 2 of 2 (0.500; mean of all 0.625)" in text and "spread by 0.177" in text
    assert MISSING in comparisons.told(CELLS, SMOKE, ["tip"]) and MISSING in comparisons.told(
        {}, SMOKE, []
    )


def test_retention_and_who_is_left_out():
    frame = tables.retention_table(CELLS, SMOKE, ["good", "ties"], TITLES)
    assert list(frame.columns) == ["Open-<br>Book-<br>QA", "mean of 1"]
    assert frame.loc["Good", "mean of 1"].startswith("150%<br>[")
    assert list(frame.loc["TIES"]) == ["–", NARROW]
    note = tables.learnt_note(CELLS, SMOKE)
    assert "1 of 2 tasks" in note
    assert "Left out: RTE (Single − Base +2.5 points, p = 1.000)." in note


# The ledger -----------------------------------------------------------------------------------


def reading(option: str, name: str, against: str = "tip"):
    return SimpleNamespace(option=option, name=name, against=against)


POINTS = [
    SimpleNamespace(
        point=8, question="sign", readings=[reading("-", "good"), reading("0", "none")]
    ),
    SimpleNamespace(point=1, question="W", readings=[reading("A", "ties", "base")]),
]


class Merged(SimpleNamespace):
    """A declared variant that is evaluated on the first `count` tasks."""

    def tasks(self, every):
        return every[-self.count :]


VARIANTS = {name: Merged(count=1 if name == "ties" else 2) for name in (*TITLES, "none")}
ENTRIES = method_tables.entries(POINTS, VARIANTS, SMOKE)


def test_entries_follow_the_points_and_keep_to_common_tasks():
    assert [(e.heading, e.option) for e in ENTRIES] == [
        ("1. W", "A"),
        ("8. sign", "-"),
        ("8. sign", "0"),
    ]
    assert ENTRIES[0].pair == Pair("ties", "base", ("rte",))


def test_the_ledger_has_a_line_a_reading():
    frame = method_tables.table(CELLS, ENTRIES)
    assert list(frame.index) == [1, 8, 8]
    assert list(frame["it is"]) == ["not<br>significant", "better", NARROW]
    assert list(frame.iloc[:, 2].str.split("<br>").str[0]) == ["+0.0", "+25.0", "–"]
    assert frame.iloc[0, 2] == "+0.0<br>[+0.0, +0.0]"


def test_what_is_not_varied_is_settled_as_declared():
    points = [SimpleNamespace(**vars(p), printed="as printed", note="") for p in POINTS]
    points[1].note = "seen"
    frame = method_tables.settled(points)
    assert list(frame.index) == [1, 8]
    assert list(frame.loc[1]) == ["W", "as printed (seen)"]


def test_effects_are_in_points_by_point():
    found = method_tables.effects(CELLS, ENTRIES)
    assert found["8. sign"]["0"] is None
    assert found["8. sign"]["-"][0] == pytest.approx(25)
    assert found["1. W"]["A"] == (0, 0, 0)


def test_the_ledgers_summary_counts():
    text = method_tables.summary(CELLS, ENTRIES)
    assert "2 of 3 readings are measured: 1 better, 0 worse, 1 not significant" in text
    assert "largest gain is +25.0 points, of point 8 read as “-” (better)" in text
    assert "largest loss" not in text
    assert MISSING in method_tables.summary({}, ENTRIES)


# Sweeps ---------------------------------------------------------------------------------------


def sweep(moves: str, values: tuple) -> SimpleNamespace:
    return SimpleNamespace(
        name="s", moves=moves, values=values, lines=("tip",), place=lambda line, v: f"{line}-s-{v}"
    )


SWEPT = CELLS | made_up.cells(
    {
        "tip-s-1": {"openbookqa": right(10)},
        "tip-s-2": {"openbookqa": right(20), "rte": right(30)},
        "tip-s-mean": {"openbookqa": right(40), "rte": right(40)},
    }
)


@pytest.mark.parametrize(
    ("moves", "values", "x", "means"),
    [
        ("weights", ("mean", 2, 3), [0.5, 2], [1.0, 0.625]),  # 1 / T of two; 3 isn't measured
        ("adapters", (2, 1), [1, 2], [0.25, 0.625]),  # one adapter: its own task alone
        ("sparsity", (1, 2), [2], [0.625]),  # 1 has a hole
    ],
)
def test_a_sweep_is_a_line_over_what_is_measured(moves, values, x, means):
    (xs, bounds) = sweeps.lines(SWEPT, sweep(moves, values), SMOKE, TITLES)["TIP"]
    assert xs == x
    assert [value for value, _, _ in bounds] == pytest.approx(means)
    assert all(low <= value <= high for value, low, high in bounds)


def test_a_line_declared_with_its_sweep_has_its_own_title():
    declared = sweep("rows", (2,))
    declared.lines = (SimpleNamespace(name="tip", title="TIP once more"),)
    assert list(sweeps.lines(SWEPT, declared, SMOKE, TITLES)) == ["TIP once more"]


def test_what_a_sweep_stands_beside():
    found = sweeps.references(SWEPT, sweep("adapters", (1, 2)), SMOKE, {"base": "Base"})
    assert [value for value, _, _ in found["Base"][1]] == [0.25, 0.375]
    assert list(sweeps.levels(SWEPT, SMOKE, TITLES)) == ["Base", "Single", "TIP", "Good"]
    assert sweeps.lines({}, sweep("rows", (1, 2)), SMOKE, TITLES) == {}


def test_small_panels_leave_out_what_is_not_measured():
    found = sweeps.by_task(SWEPT, sweep("adapters", (1, 2)), SMOKE, TITLES)
    assert found["openbookqa"]["TIP"][0] == [1, 2]
    assert found["rte"]["TIP"][0] == [2]


# Which task a difference is of -------------------------------------------------------------------


def test_a_difference_is_taken_apart_by_task():
    pairs = [Pair("good", "tip", SMOKE.tasks), Pair("ties", "tip", SMOKE.tasks)]
    frame = comparisons.table(CELLS, SMOKE, pairs, TITLES)
    assert list(frame.columns)[1:] == ["RTE†", "mean of 2", "without the<br>largest"]
    assert list(frame.loc["Good minus TIP"]) == ["+50.0", "+0.0", "+25.0", "+0.0<br>[+0.0, +0.0]"]
    assert set(frame.loc["TIES minus TIP"]) == {"–"}
    assert comparisons.rest(CELLS, pairs[0]) == " Without OpenBookQA it is +0.0 [+0.0, +0.0]."
    assert comparisons.rest(CELLS, pairs[1]) == ""


def test_the_largest_is_so_to_either_side():
    assert comparisons.largest({"a": 0.1, "b": -0.2}) == "b"
