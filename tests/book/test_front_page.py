"""What the pages name as {{ value }}: from what is printed, declared and stored."""

import json
from types import SimpleNamespace

import made_up
import pandas as pd
import pytest

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import again, answers, front_page, guessing, questions, tables
from tipmini_lab.book.claims import page as claims_page
from tipmini_lab.book.pruning_tables import HALF, LONG, OURS
from tipmini_lab.book.site import about, runs_page, staging
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.variants import TABLE_1
from tipmini_lab.results import store

REPORT = again.Report(
    **{"profile": "mini", "dtype": "float32", "minutes": 3, "merges": {"tip": 0, "svd": 1e-8}},
    **{"norms": {"rte": 0}, "calibration_rows": 4, "rows": {"rte": 6}, "same": {"rte": 30}},
    **{"ties": {"rte": 0}, "others": [], "estimate": 1, "seconds": 1, "resumed": False},
    **{"date": "2026-01-01", "machine": store.machine(), "threads": 2, "versions": {}},
)


@pytest.fixture(scope="module")
def of_claims(evidence, audited) -> dict[str, str]:
    """What the claims' verdicts fill in, which are of what is really stored."""
    found = [*audited.values()]
    return claims_page.page_values(evidence=evidence, audited=found) | answers.page_values(found)


@pytest.fixture(autouse=True)
def nothing_stored(monkeypatch):
    monkeypatch.setattr(front_page, "row_counts", lambda: {task: (100, 1000) for task in TASKS})
    monkeypatch.setattr(front_page.mmlu, "rows", lambda subject, split: [{}] * 20)
    monkeypatch.setattr(tables, "stored", lambda *_: None)
    for module in (front_page, tables):
        monkeypatch.setattr(module, "variant_cells", lambda profile: {})
    monkeypatch.setattr(questions, "_compared", lambda *_: [])
    monkeypatch.setattr(guessing, "scores", lambda profile: {"rte": 0.6, "coqa": 0.0})
    monkeypatch.setattr(again, "read", lambda *_, whole=False: None if whole else REPORT)
    for kept in (questions._tested, questions._rows):
        kept.cache_clear()
    yield
    for kept in (questions._tested, questions._rows):
        kept.cache_clear()


def test_what_was_computed_again_is_told(monkeypatch):
    values = again.page_values()
    assert "30 of 30 answers the same (" in values["again_line"]
    assert "| RTE | 6 | 30 | 30 | 0 |" in values["again_answers"]
    assert "| TIP | nothing, bit for bit |" in values["again_merges"]
    assert '(svd) | <span class="unbroken">1.0e-08</span> |' in values["again_merges"]
    monkeypatch.setattr(again, "read", lambda *_, **__: None)
    with pytest.raises(TipminiError, match="run `tipmini again` first"):
        again.page_values()


def test_every_value_that_a_page_names_is_given(of_claims):
    """Nothing is stored, so that nothing may look measured. The claims have their own page."""
    values = (
        front_page.front_page_values()
        | again.page_values()
        | about.page_values()
        | runs_page.page_values()
    )
    named = {n for page in paths.BOOK.glob("*.md") for n in staging.VALUE.findall(page.read_text())}
    assert named <= values.keys() | of_claims.keys()
    assert not values.keys() & of_claims.keys()
    assert {values[f"{p}_{m}"] for p in ("mini", "full") for m in TABLE_1} == {tables.MISSING}
    assert all(tables.MISSING in line for line in values["answers"].splitlines()[2:])
    assert values["full_guess"] == "0.300"
    assert values["printed_tip"] == "0.6479"
    assert values["full_coqa"] == "100" and values["train_piqa"] == "1,000"
    assert values["mmlu_test"] == "1,140" and values["mmlu_subjects"] == "57"


def test_stored_cells_make_the_values_of_the_front_page(monkeypatch):
    rows = made_up.rows({"base": {task: [1, 0, 0, 0] for task in TASKS}})
    monkeypatch.setattr(front_page, "variant_rows", lambda profile: rows)
    assert front_page.front_page_values()["full_base"].startswith("0.250 ± ")


def test_other_criteria_are_told_beside_loraprune_and_not_its_own_forms(monkeypatch):
    lines = {"LoRAPrune": "-", "LoRAPrune, released reduction": "lower, 3:3", "Wanda": "lower, 3:3"}
    judged = pd.DataFrame({HALF: lines, LONG: lines | {"Wanda": "neither, 1:3"}})
    methods = [SimpleNamespace(title=title) for title in lines]
    grid = SimpleNamespace(methods=methods, titles=lambda: {OURS: "LoRAPrune"})
    told = front_page.beside_loraprune(judged, grid)
    assert told == {
        "pruned_few": "significantly lower for Wanda",
        "pruned_many": "neither for Wanda",
    }


def train(folder, task: str, accuracies: tuple) -> None:
    """An adapter's training.json: the checkpoint at step 2 has the lowest loss."""
    losses = (1.5, 1.25, 1.375)
    checks = [{"loss": x, "accuracy": a} for x, a in zip(losses, accuracies, strict=True)]
    recipe = {"rows": 1200, "epochs": 2, "learning_rate": 5e-4, "seed": 3}
    story = {"recipe": recipe, "held_out": checks, "held_out_rows": 40, "seconds": 600}
    (folder / task).mkdir()
    (folder / task / "training.json").write_text(json.dumps(story))


def test_training_shows_the_checkpoint_that_was_kept_and_who_learnt_nothing(tmp_path, monkeypatch):
    """CoQA has no accuracy."""
    monkeypatch.setattr(paths, "ADAPTERS", tmp_path)
    train(tmp_path, "boolq", (0.0, 0.5, 0.5))
    train(tmp_path, "coqa", (None, None, None))
    assert front_page.unlearnt() == "none"
    train(tmp_path, "rte", (0.5, 0.5, 0.75))
    assert front_page.unlearnt() == "RTE"
    frame = front_page.training(paths.ADAPTERS)
    told = ["1,200 × 2", "0.0005", "3", "10", "40", "1.500 → 1.250", "0.500 → 0.500"]
    assert list(frame.loc["RTE"]) == told and frame.loc["CoQA", "validation accuracy"] == "-"


def test_rows_of_mini_that_came_out_otherwise_at_full_are_counted(monkeypatch):
    """Four rows of RTE lead the eight of `full`; what only one of them has isn't counted."""
    eight = made_up.cell("tip", "rte", [1, 1, 0.5, 0, 1, 0, 0, 0])
    four = eight.model_copy(update={"values": [1.0, 0.0, 0.5, 0.0]})
    otherwise = eight.model_copy(update={"inputs": eight.inputs | {"adapter": "of another day"}})
    stored = {
        "mini": {("tip", "rte"): four, ("linear", "rte"): four, ("dare", "rte"): four},
        "full": {("tip", "rte"): eight, ("base", "rte"): eight, ("dare", "rte"): otherwise},
    }
    monkeypatch.setattr(front_page, "variant_cells", lambda profile: stored[profile.name])
    assert front_page._mini_in_full(load_profile("mini"), load_profile("full")) == "1 of 4"
