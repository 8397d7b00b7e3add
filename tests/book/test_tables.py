"""Tables: every number comes from a cell, and where there is no cell the text says so."""

import json
import math
import statistics

import pytest
import torch

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import again, front_page, method_tables, staging, tables
from tipmini_lab.book.claims import page as claims_page
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.experiment import TABLE_1
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results import store
from tipmini_lab.results.store import Cell

SMOKE = load_profile("smoke")
A40 = load_profile("a40")
ROWS = {
    "base": [1, 0, 0, 0, 1, 0, 0, 0],
    "single": [1, 1, 1, 1, 1, 1, 1, 0],
    "linear": [1, 0, 1, 0, 1, 0, 1, 0],
    "dare": [0, 0, 0, 0, 0, 0, 0, 0],
    "tip": [1, 1, 0.5, 0, 1, 0, 0, 0],
}


def cell(method: str, task: str) -> Cell:
    values = [float(value) for value in ROWS[method]]
    return Cell(
        **{
            "key": "k",
            "inputs": {"model": "m"},
            "code": {"evaluation": "e" * 64},
            "profile": "smoke",
            "method": method,
        },
        **{
            "task": task,
            "metric": METRIC[task],
            "values": values,
            "seconds": 1.5,
            "dtype": "float32",
        },
        **{
            "date": "2026-01-31",
            "machine": {"processor": "P", "cores": 2},
            "versions": {"torch": "2"},
        },
    )


CELLS = {(method, task): cell(method, task) for task in SMOKE.tasks for method in TABLE_1}

ENTRIES = [  # method -> accuracy and standard error by the textbook, right rows
    ("base", 2 / 8, "2/8"),
    ("single", 7 / 8, "7/8"),
    ("dare", 0.0, "0/8"),
    ("tip", 3.5 / 8, "3.5/8"),
]


@pytest.mark.parametrize(("method", "mean", "count"), ENTRIES)
def test_a_measured_entry_is_mean_error_and_count(method, mean, count):
    error = statistics.stdev(ROWS[method]) / math.sqrt(8)
    shown = tables.measured(CELLS, SMOKE).loc["OpenBookQA<br>acc_norm", tables.TITLES[method]]
    assert shown == f"{mean:.3f} ± {error:.3f}<br>{count}"


def test_the_mean_of_tasks_adds_errors_of_independent_tasks():
    error = statistics.stdev(ROWS["single"]) / math.sqrt(8)
    mean, found = tables.mean_of(CELLS, "single", SMOKE.tasks)
    assert mean == pytest.approx(7 / 8)
    assert found == pytest.approx(error / math.sqrt(2))


def test_a_missing_cell_is_named_and_makes_no_mean():
    some = {place: c for place, c in CELLS.items() if place != ("tip", "rte")}
    frame = tables.measured(some, SMOKE)
    assert list(frame["TIP"][1:]) == [tables.MISSING] * 2
    assert tables.mean_of(some, "tip", SMOKE.tasks) is None
    assert tables.mean_of({}, "tip", []) is None
    assert set(tables.comparison(some, SMOKE, "base", "tip").loc["RTE†"]) == {tables.MISSING}


def test_base_against_single_shows_counts_and_the_sign_test():
    row = tables.base_vs_single(CELLS, SMOKE).loc["OpenBookQA"]
    assert list(row) == ["8", "2 (0.250)", "7 (0.875)", "+0.625", "5 / 0", "0.062"]


def test_rte_and_coqa_are_marked_where_their_rows_were_split():
    shown = list(tables.measured(CELLS, SMOKE).index)
    assert shown == ["OpenBookQA<br>acc_norm", "RTE†<br>acc", "mean of 2"]
    assert "RTE and CoQA" in tables.split_note(SMOKE)
    assert tables.split_note(A40) == ""


def test_the_summary_counts_what_the_cells_say():
    """Sign tests of 5 / 0 rows: p = 1/16 each, as the smallest of eight tests 1/2."""
    told = "Single lies above Base on 2 of 2 tasks; "
    told += "significantly so, it is better on {} and worse on 0."
    for level, better in ((0.1, 0), (0.6, 2)):
        text = tables.summary(CELLS, SMOKE, level=level)
        assert "16 rows in 2 tasks" in text and "the 8 tests" in text
        assert told.format(better) in text, text


@pytest.mark.parametrize(("p", "text"), [(0.0004, "< 0.001"), (0.0314, "0.031"), (1.0, "1.000")])
def test_p_values(p, text):
    assert tables.p_text(p) == text


def test_the_printed_table_is_the_file_and_its_means():
    frame = tables.printed()
    assert list(frame.columns) == ["Single", "Linear", "DARE", "TIP"]
    assert list(frame.index) == [*(tables.TITLES[task] for task in TASKS), "mean"]
    assert list(frame.loc["mean"]) == ["0.6428", "0.4761", "0.4719", "0.6479"]
    assert "LLaMA-2-7B" in frame.index.name


def test_provenance_tells_machines_apart():
    elsewhere = cell("base", "rte").model_copy(update={"machine": {"processor": "Q"}})
    frame = tables.provenance(CELLS | {("base", "rte"): elsewhere})
    assert list(frame.loc["cells"]) == [9, 1]
    assert list(frame.loc["seconds"]) == ["14", "2"]
    assert set(frame.loc["measured"]) == {elsewhere.date}
    older = {"code": {"evaluation": "0" * 64}, "date": "2026-01-30"}
    other = elsewhere.model_copy(update=older)
    frame = tables.provenance({("base", "rte"): other, ("tip", "rte"): elsewhere})
    assert list(frame.loc["code (SHA-256)"]) == ["0" * 12, "e" * 12]


REPORT = again.Report(
    **{"profile": "mini", "dtype": "float32", "minutes": 3, "merges": {"tip": 0, "svd": 1e-8}},
    **{"norms": {"rte": 0}, "calibration_rows": 4, "rows": {"rte": 6}, "same": {"rte": 30}},
    **{"ties": {"rte": 0}, "others": [], "estimate": 1, "seconds": 1, "resumed": False},
    **{"date": "2026-01-01", "machine": store.machine(), "threads": 2, "versions": {}},
)


def test_what_was_computed_again_is_told(monkeypatch):
    monkeypatch.setattr(again, "read", lambda *_, whole=False: None if whole else REPORT)
    values = again.page_values()
    assert "30 of 30 answers the same (" in values["again_line"]
    assert "| RTE | 6 | 30 | 30 | 0 |" in values["again_answers"]
    assert "| TIP | nothing, bit for bit |" in values["again_merges"]
    assert "(svd) | 1.0e-08 |" in values["again_merges"]
    monkeypatch.setattr(again, "read", lambda *_, **__: None)
    with pytest.raises(TipminiError, match="run `tipmini again` first"):
        again.page_values()


def test_every_value_that_a_page_names_is_given(tmp_path, monkeypatch):
    """Nothing stored, so that nothing may look measured. The claims have their own page."""
    of_claims = claims_page.page_values()
    counts = {task: (100, 1000) for task in TASKS}
    monkeypatch.setattr(front_page, "row_counts", lambda: counts)
    monkeypatch.setattr(tables, "stored", lambda *_: None)
    monkeypatch.setattr(front_page, "variant_cells", lambda profile: {})
    monkeypatch.setattr(again, "read", lambda *_, whole=False: None if whole else REPORT)
    values = front_page.front_page_values() | again.page_values()
    named = {n for page in paths.BOOK.glob("*.md") for n in staging.VALUE.findall(page.read_text())}
    assert named <= values.keys() | of_claims.keys()
    assert not values.keys() & of_claims.keys()
    assert {values[f"{p}_{m}"] for p in ("mini", "full") for m in TABLE_1} == {tables.MISSING}
    assert all(tables.MISSING in line for line in values["answers"].splitlines())
    assert values["printed_tip"] == "0.6479"
    assert values["full_coqa"] == "100" and values["train_piqa"] == "1,000"


def test_stored_cells_make_the_values_of_the_front_page(monkeypatch):
    monkeypatch.setattr(front_page, "row_counts", lambda: {task: (100, 1000) for task in TASKS})
    monkeypatch.setattr(tables, "stored", lambda profile, method, task: cell(method, task))
    monkeypatch.setattr(front_page, "variant_cells", lambda profile: {})
    assert front_page.front_page_values()["full_base"].startswith("0.250 ± ")


def train(folder, task: str, accuracies: tuple) -> None:
    """An adapter's training.json: the checkpoint at step 2 has the lowest loss."""
    losses = (1.5, 1.25, 1.375)
    checks = [{"loss": x, "accuracy": a} for x, a in zip(losses, accuracies, strict=True)]
    recipe = {"rows": 1200, "epochs": 2, "learning_rate": 5e-4}
    story = {"recipe": recipe, "held_out": checks, "held_out_rows": 40, "seconds": 600}
    (folder / task).mkdir()
    (folder / task / "training.json").write_text(json.dumps(story))


def test_training_shows_the_checkpoint_that_was_kept(tmp_path, monkeypatch):
    train(tmp_path, "rte", (0.25, 0.5, 0.75))
    monkeypatch.setattr(paths, "ADAPTERS", tmp_path)
    found = dict(front_page.training().loc["RTE"])
    assert found["rows × epochs"] == "1,200 × 2" and found["learning rate"] == "0.0005"
    assert found["their loss"] == "1.500 → 1.250"
    assert found["their accuracy"] == "0.250 → 0.500"
    assert found["minutes"] == "10" and found["held-out rows"] == "40"


def test_an_adapter_that_learnt_nothing_is_named(tmp_path, monkeypatch):
    """Its accuracy at the kept checkpoint counts; CoQA has none."""
    monkeypatch.setattr(paths, "ADAPTERS", tmp_path)
    train(tmp_path, "boolq", (0.0, 0.5, 0.5))
    train(tmp_path, "coqa", (None, None, None))
    assert front_page.unlearnt().endswith("than before with every adapter.")
    train(tmp_path, "rte", (0.5, 0.5, 0.75))
    assert "with RTE (loss 1.500 → 1.250, accuracy 0.500 → 0.500). Such" in front_page.unlearnt()


def test_rows_of_mini_that_came_out_otherwise_at_full_are_counted(monkeypatch):
    """Four rows of RTE lead the eight of `full`; what only one of them has isn't counted."""
    eight = cell("tip", "rte")
    four = eight.model_copy(update={"values": [1.0, 0.0, 0.5, 0.0]})
    otherwise = eight.model_copy(update={"inputs": eight.inputs | {"adapter": "of another day"}})
    stored = {
        "mini": {("tip", "rte"): four, ("linear", "rte"): four, ("dare", "rte"): four},
        "full": {("tip", "rte"): eight, ("base", "rte"): eight, ("dare", "rte"): otherwise},
    }
    monkeypatch.setattr(front_page, "variant_cells", lambda profile: stored[profile.name])
    assert front_page._mini_in_full(load_profile("mini"), load_profile("full")) == "1 of 4"


# The tables of the method -------------------------------------------------------------------


def test_bounds_table_of_the_example_in_the_book():
    frame = method_tables.bounds_table({"rte": torch.tensor([1.0, 3.0, 2.0])}, 0.7)
    row = dict(zip(frame.columns, frame.loc["RTE"], strict=True))
    assert row["most important layer"] == "1" and row["its sparsity"] == "1.000"
    assert row["layers above 1"] == "1" and row["layers below 0"] == "0"
    assert row["mean as printed"] == "0.700" and row["mean once clipped"] == "0.633"


def test_unbiasedness_falls_with_the_number_of_copies():
    weight = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    frame = method_tables.unbiasedness(weight, 0.5, (1, 100), seed=0).astype(float)
    assert frame["measured error"].to_list() == pytest.approx([1.0, 0.1], rel=0.1)
    assert frame["expected"].to_list() == [1.0, 0.1]


def adapter(a: float, b: float) -> tm.LoraAdapter:
    return tm.LoraAdapter({"m": tm.LoraFactors(torch.tensor([[a]]), torch.tensor([[b]]), 1.0)})


def test_cross_terms_of_the_example_in_the_book():
    frame = method_tables.cross_terms({"one": adapter(2.0, 1.0), "two": adapter(1.0, 3.0)})
    assert list(frame["‖merged‖ / ‖sum‖"]) == ["1.000", "2.400"]  # 12 against 5
    assert list(frame["‖merged − sum‖ / ‖sum‖"]) == ["0.000", "1.400"]


def test_pruned_shares_count_zeros():
    factors = tm.LoraFactors(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(3, 1), 1.0)
    pruned = {"rte": tm.LoraAdapter({"m": factors})}
    frame = method_tables.pruned_shares(pruned, {"rte": torch.tensor([0.75])})
    assert list(frame.loc["RTE"]) == ["0.750", "0.750", "0.000"]


# How they are shown -------------------------------------------------------------------------


def test_a_markdown_table_has_a_line_a_task():
    lines = tables.markdown_table(tables.base_vs_single(CELLS, SMOKE)).splitlines()
    assert lines[0].startswith("| measured, smoke | rows | Base | Single |")
    assert len(lines) == 2 + len(SMOKE.tasks)
    assert len({line.count("|") for line in lines}) == 1


def test_a_numbered_table_is_a_directive_with_a_label_and_a_note(monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "text", shown.append)
    tables.numbered(tables.printed(), "Printed", name="tab-x", note="† a note")
    assert shown[0].startswith(":::{table} Printed\n:name: tab-x\n\n| printed, LLaMA-2-7B |")
    assert shown[0].endswith("|\n\n:::\n\n† a note\n")
