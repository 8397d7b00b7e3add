"""Groups of variants on a tiny model: what is measured, once, by whom, and what a kill leaves."""

import functools

import pytest
from labs import TASKS, save_adapter
from typer.testing import CliRunner

from tipmini.errors import TipminiError
from tipmini_lab import locks
from tipmini_lab.commands import main
from tipmini_lab.evaluation import evaluator
from tipmini_lab.experiments import catalogue, measuring, profiles
from tipmini_lab.experiments.measuring import Bundled, HeldOut
from tipmini_lab.locks import alone
from tipmini_lab.results import store

DECLARED = """
description: a try
variants:
  - {name: base, title: Base, method: base}
  - {name: linear, title: Linear, method: linear}
  - {name: half, title: Half, method: linear, weights: 0.5, full: true}
  - {name: plain, title: "Linear, said otherwise", method: linear, weights: 1.0}
  - {name: one, title: One adapter, method: cat, adapters: 1}
  - {name: other, title: Another metric, method: linear, metrics: {openbookqa: acc}}
"""
CHOICE = """
description: choices
choices: [{name: best, title: The best, among: [linear, half]}]
"""
CELLS = 2 + 2 + 2 + 0 + 1 + 1  # plain is linear; other's RTE as well


@pytest.fixture(autouse=True)
def known(tmp_path, monkeypatch):
    """Few variants instead of those shipped."""
    (tmp_path / "declared").mkdir()
    (tmp_path / "declared" / "methods.yaml").write_text(DECLARED)
    (tmp_path / "declared" / "tuned.yaml").write_text(CHOICE)
    found = catalogue.catalogue(tmp_path / "declared")
    monkeypatch.setattr(catalogue, "catalogue", lambda: found)
    return found


def test_a_group_is_measured_once_and_then_read(profile, measured):
    shown = []
    measuring.measure(profile, "methods", show=shown.append)
    assert len(measured) == CELLS
    cells = store.cells(profile.variant_store)
    assert {name for name, _ in cells} == {"base", "linear", "half", "plain", "one", "other"}
    assert len(cells) == len(shown) == 11 and all(
        c.method == name for (name, _), c in cells.items()
    )
    assert cells["plain", "rte"].values == cells["linear", "rte"].values
    assert cells["other", "openbookqa"].metric == "acc"
    measuring.measure(profile, "methods", show=shown.append)
    assert len(measured) == CELLS and len(shown) == 11
    assert store.cells(profile.variant_store) == cells


def test_only_what_is_merged_is_evaluated(profile):
    measuring.measure(profile, "methods", ["one"])
    assert list(store.cells(profile.variant_store)) == [("one", TASKS[0])]


def test_some_variants_on_some_tasks(profile, measured):
    measuring.measure(profile, "methods", ["half", "base"], ["rte"])
    assert measured == ["rte", "rte"]
    assert set(store.cells(profile.variant_store)) == {("base", "rte"), ("half", "rte")}


def test_the_important_ones_alone(profile):
    measuring.measure(profile.model_copy(update={"important_only": True}), "methods")
    assert store.names(profile.variant_store) == ["half"]


def test_facts_and_settings_stand_beside_the_cells(profile):
    measuring.measure(profile, "methods", ["half", "base"], ["rte"])
    half, base = (store.read(profile.variant_store, name) for name in ("half", "base"))
    assert half.title == "Half" and half.settings["weights"] == 0.5
    assert set(half.settings["adapters"]) == set(TASKS)
    assert half.facts["norm"] > 0 and half.facts["sum"] > 0 and base.facts == {}


def test_a_kill_loses_no_finished_cell(profile, measured, monkeypatch):
    answers = evaluator.answers

    @functools.wraps(answers)
    def dying(*given):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return answers(*given)

    monkeypatch.setattr(evaluator, "answers", dying)
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(profile, "methods")
    assert len(store.cells(profile.variant_store)) == 3
    monkeypatch.setattr(evaluator, "answers", answers)
    measuring.measure(profile, "methods")
    assert len(measured) == CELLS and len(store.cells(profile.variant_store)) == 11


def test_what_became_stale_is_measured_again(profile, place, measured):
    measuring.measure(profile, "methods", ["base", "half"], ["rte"])
    before = store.cells(profile.variant_store)
    save_adapter(place / "adapters" / "rte", seed=7)
    measuring.measure(profile, "methods", ["base", "half"], ["rte"])
    after = store.cells(profile.variant_store)
    assert measured == ["rte"] * 3 and after["base", "rte"] == before["base", "rte"]
    assert after["half", "rte"].key != before["half", "rte"].key


def test_what_is_stale_is_told_without_merging(profile, place, monkeypatch):
    measuring.measure(profile, "methods", ["base", "half", "one"])
    names = ["base", "linear", "half", "one"]

    def found(**changes):
        lab = Bundled(profile.model_copy(update=changes))
        monkeypatch.setattr(lab.merges, "merge", None)
        return measuring.stale(lab, names)

    assert found() == []
    every = [("base", t) for t in TASKS] + [("half", t) for t in TASKS] + [("one", TASKS[0])]
    assert found(tokens=100) == every
    assert found(evaluation_rows_of={"rte": 2}) == [("base", "rte"), ("half", "rte")]
    save_adapter(place / "adapters" / "rte", seed=7)
    assert found() == [("half", task) for task in TASKS]


def test_the_model_does_not_hold_every_adapter_it_wore(profile):
    lab = Bundled(profile)
    measuring.run(lab, ["linear", "half", "one"])
    assert not lab.lm.resident.known
    measuring.run(lab, ["plain", "other"])
    assert lab.cell("half", "rte").key == store.cell_of(profile.variant_store, "half", "rte").key


# Several at once ----------------------------------------------------------------------------------


def test_each_is_one_processs_at_a_time(tmp_path):
    """Another's are passed over, and yielded once they are let go."""
    names = locks.in_turn(["one", "half"], tmp_path)
    assert next(names) == "one"
    with pytest.raises(BlockingIOError), alone(tmp_path / "one", wait=False):
        pass
    other = locks.in_turn(["one", "half"], tmp_path)
    assert next(other) == "half"  # of both, the first is not free
    other.close()
    assert list(names) == ["half", "one", "half"]


def test_what_another_process_is_at_comes_last(profile, monkeypatch):
    """And is then waited for: here the other is done the second time one asks."""
    order, asked, held = [], [], alone

    def busy_once(folder, *, wait=True):
        asked.append(folder.name)
        if folder.name == "base" and asked.count("base") == 1:
            raise BlockingIOError
        return held(folder, wait=wait)

    monkeypatch.setattr(locks, "alone", busy_once)
    show = lambda cell: order.append(cell.method)  # noqa: E731
    measuring.run(Bundled(profile), ["base", "half"], ["rte"], show)
    assert order == ["half", "base"]


# Choosing -----------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Held-out rows in a number that a tiny test can afford."""
    monkeypatch.setattr(HeldOut, "rows", lambda self, task: (100, 6 if self.final else 4))


def test_a_choice_is_made_on_held_out_rows_and_then_evaluated(profile, few, known, measured):
    measuring.measure(profile, "tuned")
    assert set(store.names(profile.selection_store)) == {"linear", "half"}
    assert len(measured) == 2 * 2 + 2  # two candidates and the chosen one, two tasks each
    cells = store.cells(profile.variant_store)
    assert set(cells) == {("best", task) for task in TASKS}
    chosen = Bundled(profile).variant("best")
    assert chosen.title in ("The best: Linear", "The best: Half")
    held = store.cells(profile.selection_store)
    assert not {c.inputs["data"] for c in held.values()} & {
        c.inputs["data"] for c in cells.values()
    }


def test_finalists_are_scored_on_more_rows(profile, few, known, measured):
    known.groups["tuned"].choices[0].__dict__["finalists"] = 1
    measuring.measure(profile, "tuned")
    assert len(measured) == 2 * 2 + 2 + 2 and len(store.names(profile.finals_store)) == 1


def test_before_that_there_is_nothing_chosen(profile):
    with pytest.raises(TipminiError, match="choice best: linear and 1 more are not measured"):
        Bundled(profile).variant("best")


def test_where_only_some_are_measured_the_choice_is_read(profile, few, measured):
    measuring.measure(profile, "tuned")
    again = {"important_only": True, "results": f"{profile.results}-full"}
    again |= {"selection": str(profile.selection_store)}
    measuring.measure(profile.model_copy(update=again), "tuned")
    assert len(measured) == 6 + 2


# The command --------------------------------------------------------------------------------------


def run(monkeypatch, profile, *given):
    monkeypatch.setattr(profiles, "load_profile", lambda _: profile)
    return CliRunner().invoke(main.app, ["measure", *given])


def test_the_command(profile, monkeypatch):
    given = ["--group", "methods", "--variant", "half", "--task", "rte", "--json"]
    done = run(monkeypatch, profile, *given)
    assert done.exit_code == 0, done.output
    assert '{"method": "half", "task": "rte", "metric": "acc"' in done.stdout


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--group", "none"], "group 'none': not one of methods, tuned"),
        (
            ["--group", "methods", "--variant", "tip"],
            "group methods: no variant 'tip' at profile tiny",
        ),
        (["--variant", "nothing"], "variant 'nothing': not declared in experiments/*.yaml"),
    ],
)
def test_unknown_names(profile, monkeypatch, given, line):
    done = run(monkeypatch, profile, *given)
    assert isinstance(done.exception, TipminiError) and line in str(done.exception)
