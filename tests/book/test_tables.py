"""Tables: every number comes from a cell, and where there is no cell the text says so."""

import made_up
import numpy as np
import pandas as pd
import pytest
import torch
from made_up import SMOKE, TITLES

import tipmini as tm
from tipmini_lab.book import method_tables, tables
from tipmini_lab.book.tables import EMPTY, MISSING
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.frame import wide
from tipmini_lab.results.statistics import Interval

VALUES = {
    "base": [1, 0, 0, 0, 1, 0, 0, 0],
    "single": [1, 1, 1, 1, 1, 1, 1, 0],
    "linear": [1, 0, 1, 0, 1, 0, 1, 0],
    "dare": [0, 0, 0, 0, 0, 0, 0, 0],
    "tip": [1, 1, 0.5, 0, 1, 0, 0, 0],
}
CELLS = made_up.cells({name: dict.fromkeys(SMOKE.tasks, row) for name, row in VALUES.items()})
ROWS = wide(CELLS)
HOLED = wide({place: c for place, c in CELLS.items() if place != ("tip", "rte")})


# Accuracies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "right"), [("base", "2"), ("single", "7"), ("dare", "0"), ("tip", "3.5")]
)
def test_an_accuracy_stands_with_its_error_and_count(method, right):
    mean, error = np.mean(VALUES[method]), np.std(VALUES[method], ddof=1) / 8**0.5
    shown = tables.accuracies(ROWS, SMOKE)[tables.TITLES[method]]
    assert shown["OpenBookQA<br>acc_norm"] == f"{mean:.3f} ± {error:.3f}<br>{right}/8"
    assert list(shown.index) == ["OpenBookQA<br>acc_norm", "RTE†<br>acc", "mean of 2"]
    assert shown["mean of 2"] == f"{mean:.3f} ± {error / 2**0.5:.3f}"


def test_a_missing_cell_is_named_and_makes_no_mean():
    assert list(tables.accuracies(HOLED, SMOKE)["TIP"][1:]) == [MISSING] * 2
    assert set(tables.comparison(HOLED, SMOKE, "base", "tip").loc["RTE†"]) == {MISSING}


def test_base_against_single_shows_counts_and_the_sign_test():
    row = tables.comparison(ROWS, SMOKE, "base", "single").loc["OpenBookQA"]
    # Both tasks have p 0.0625, doubled for the two of them.
    assert list(row) == ["+62.5", "0.250", "0.875", "5 / 0 of 8", "0.125"]


def test_rte_and_coqa_are_marked_where_their_rows_were_split():
    assert "RTE and CoQA" in tables.split_note(SMOKE)
    assert tables.split_note(load_profile("a40")) == "" == tables.mark("rte", load_profile("a40"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (tables.p_text(0.0004), "< 0.001"),
        (tables.p_text(0.0314), "0.031"),
        (tables.p_text(np.nan), EMPTY),
        (tables.estimate(None), MISSING),
        (tables.points(Interval(-0.0001, -0.0226, 0.01)), "+0.0<br>[-2.3, +1.0]"),
        (tables.points(Interval(*[np.nan] * 3)), EMPTY),
        (tables.share(Interval(0.5, -0.1, 1.2)), "50%<br>[-10, 120]"),
        (tables.share(None), EMPTY),
    ],
)
def test_numbers_are_shown_in_one_way(text, shown):
    assert text == shown


def test_a_method_is_a_row_with_mean_and_retention():
    facts = {"tip": {"norm": 3.0, "sum": 2.0, "distance": 1.0}, "base": {}}
    names = iter(["base", "single", "tip", "ties", "none"])
    guess = {"openbookqa": 0.25, "rte": 0.55}
    frame = tables.by_method(made_up.ROWS, SMOKE, names, TITLES, facts, guess)
    assert list(frame.columns) == ["mean of 2", "retention,<br>1 task", "OBQA", "RTE†", "size"]
    assert list(frame.loc["Guessing"]) == ["0.400", EMPTY, "0.250", "0.550", EMPTY]
    frame = frame.drop("Guessing")
    assert list(frame["size"]) == [EMPTY, EMPTY, "1.50", EMPTY, EMPTY]
    assert list(frame.iloc[:2, 1]) == ["0%", "100%"] and frame.iloc[2, 1].startswith("50%<br>[")
    assert frame.loc["TIP", "RTE†"] == "0.500<br>±0.080"
    assert frame.loc["TIP", "mean of 2"].startswith("0.500<br>±")
    hole = MISSING.replace(" ", "<br>")
    assert list(frame.loc["TIES"])[:4] == [hole, EMPTY, EMPTY, "0.500<br>±0.080"]
    assert list(frame.loc["none"])[:4] == [hole, EMPTY, EMPTY, EMPTY]


def test_retention_and_of_which_tasks_it_is_told():
    frame = tables.retention_table(made_up.ROWS, SMOKE, ["good", "ties"], TITLES)
    assert list(frame.columns) == ["mean of 1", "OBQA"]
    assert frame.loc["Good", "mean of 1"].startswith("150%<br>[")
    assert list(frame.loc["TIES"]) == [MISSING, EMPTY]
    gains = tables.single_gains(made_up.ROWS, SMOKE)
    assert list(gains.loc["OpenBookQA"]) == ["+50.0", "< 0.001", "reported"]
    assert list(gains.loc["RTE†"]) == ["+2.5", "1.000", "not reported"]


def test_every_method_of_the_library_has_a_row():
    names = tables.every_method()
    assert names[:2] == ["base", "single"] and len(names) == len(set(names))
    assert {"linear", "tip", "regmean", "tip-inverted", "recommended"} <= set(names)
    assert "tip-printed" not in names  # TIP itself


def test_the_printed_table_is_the_file_and_its_means():
    frame = tables.printed()
    assert list(frame.columns) == ["Single", "Linear", "DARE", "TIP"]
    assert list(frame.index) == [*(tables.TITLES[task] for task in TASKS), "mean"]
    assert list(frame.loc["mean"]) == ["0.6428", "0.4761", "0.4719", "0.6479"]
    assert "LLaMA-2-7B" in frame.index.name


def test_what_is_printed_is_counted():
    """All seven, as the claims find; 17.6 are points."""
    assert len(tables.single_in_records()) == 7
    points, relative = tables.printed_gain()
    assert (round(points, 1), round(relative)) == (17.6, 37)


def test_guessing_is_a_column_of_the_accuracies():
    frame = tables.accuracies(ROWS, SMOKE, {"openbookqa": 0.25, "rte": 0.55})
    assert list(frame["Guessing"]) == ["0.250", "0.550", "0.400"]


def test_provenance_tells_machines_and_codes_apart():
    here = {"machine": {"processor": "P"}, "code": {"evaluation": "e" * 64}}
    cells = {place: cell.model_copy(update=here) for place, cell in CELLS.items()}
    cells["base", "rte"] = elsewhere = CELLS["base", "rte"].model_copy(
        update={"machine": {"processor": "Q"}, "code": {"evaluation": "0" * 64}}
    )
    frame = tables.provenance(cells)
    assert sorted(frame.loc["measurements"]) == [1, 9]
    assert set(frame.loc["seconds"]) == {"14", "2"}
    assert set(frame.loc["measured"]) == {elsewhere.date}
    assert set(frame.loc["code (SHA-256)"]) == {"0" * 12, "e" * 12}
    assert set(frame.loc["processor"]) == {"P", "Q"}


# The tables of the method ---------------------------------------------------------------------


def test_bounds_table_of_the_example_in_the_book():
    frame = method_tables.bounds_table({"rte": torch.tensor([1.0, 3.0, 2.0])}, 0.7)
    row = dict(zip(frame.columns, frame.loc["RTE"], strict=True))
    assert row["most important layer"] == "1" and row["its sparsity"] == "1.000"
    assert row["layers above 1"] == "1" and row["layers below 0"] == "0"
    assert row["mean of Eq. 5"] == "0.700" and row["mean once clipped"] == "0.633"


def test_unbiasedness_falls_with_the_number_of_copies():
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    frame = method_tables.unbiasedness(weight, 0.5, (1, 100), seed=0).astype(float)
    assert frame["measured error"].to_list() == pytest.approx([1.0, 0.1], rel=0.1)
    assert frame["expected"].to_list() == [1.0, 0.1]


def test_spaces_that_two_adapters_share():
    """Rows (1, 2), (1, 2) and (2, 3) of four; columns 1, 1 and 2."""
    eye = torch.eye(4)
    rows, columns = ([0, 1], [0, 1], [1, 2]), ([0, 3], [0, 3], [1, 2])
    every = [
        tm.LoraAdapter({"m": tm.LoraFactors(2 * eye[r], eye[:, c], 1.0)})
        for r, c in zip(rows, columns, strict=True)
    ]
    found = method_tables.overlaps(every)
    assert found == pytest.approx({"A": (1 + 0.5 + 0.5) / 3, "B": (1 + 0 + 0) / 3})


def adapter(a: float, b: float) -> tm.LoraAdapter:
    return tm.LoraAdapter({"m": tm.LoraFactors(torch.tensor([[a]]), torch.tensor([[b]]), 1.0)})


def test_cross_terms_of_the_example_in_the_book():
    frame = method_tables.cross_terms({"one": adapter(2.0, 1.0), "rte": adapter(1.0, 3.0)})
    assert list(frame["added last"]) == ["one", "RTE"] and list(frame.index) == [1, 2]
    assert list(frame["‖merged‖ / ‖sum‖"]) == ["1.000", "2.400"]  # 12 against 5
    assert list(frame["‖merged − sum‖ / ‖sum‖"]) == ["0.000", "1.400"]


def test_pruned_shares_count_zeros():
    factors = tm.LoraFactors(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(3, 1), 1.0)
    pruned = {"rte": tm.LoraAdapter({"m": factors})}
    frame = method_tables.pruned_shares(pruned, {"rte": torch.tensor([0.75])})
    assert list(frame.loc["RTE"]) == ["0.750", "0.750", "0.000"]


# How they are shown ---------------------------------------------------------------------------


def test_a_numbered_table_is_a_directive_with_a_label_and_a_note(monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "text", shown.append)
    frame = tables.comparison(ROWS, SMOKE, "base", "single")
    tables.numbered(frame, "Measured", name="tab-x", note="† a note", sortable=True)
    head = ":::{table} Measured\n:name: tab-x\n:class: sortable\n\n| measured, smoke | points |"
    assert shown[0].startswith(head) and shown[0].endswith("|\n\n:::\n\n† a note\n")
    lines = [line for line in shown[0].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(SMOKE.tasks) and len({line.count("|") for line in lines}) == 1


def test_lines_end_outside_of_code():
    told = tables.narrow("an exact sum, `-o summation=cat`, or so", 16)
    assert told == "an exact sum,<br>`-o summation=cat`,<br>or so"


def test_a_small_number_is_not_broken_at_its_sign():
    frame = pd.DataFrame({"error": ["rounding, 2e-07", "`1e-3`", "a|b"]}, ["x", "y", "z"])
    first, second, third = tables.markdown_table(frame).splitlines()[2:]
    assert first == '| x | rounding, <span class="unbroken">2e-07</span> |'
    assert (second, third) == ("| y | `1e-3` |", r"| z | a\|b |")
