"""What merges keep beside what they cost."""

import math

import numpy as np
import pandas as pd
import pytest

from tipmini_lab.book import frontier, merge_figures
from tipmini_lab.book.frontier import ALONE, CONTROL, KINDS, LABELLED, ROUTED, UNLABELLED
from tipmini_lab.experiments.catalogue import Distilled, Inputs, Variant, catalogue
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.results.statistics import Interval


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ALONE, {"method": "ties"}),
        (ALONE, {"method": "linear", "weights": "0.35/T"}),
        (LABELLED, {"method": "tip"}),
        (LABELLED, {"method": "cat", "weights": "learnt"}),
        (LABELLED, {"method": "regmean"}),
        (UNLABELLED, {"method": "regmean", "inputs": Inputs(statistic="gram", answers=False)}),
        (UNLABELLED, {"method": "drift", "inputs": Inputs(answers=False)}),
        (UNLABELLED, {"method": "cat", "distill": Distilled()}),
        (UNLABELLED, {"method": "tip", "inputs": Inputs(answers=False), "distill": Distilled()}),
        (LABELLED, {"method": "tip", "distill": Distilled()}),
        (CONTROL, {"method": "cat", "distill": Distilled(fresh=True)}),
        (CONTROL, {"method": "cat", "distill": Distilled(gold=True)}),
    ],
)
def test_what_a_merge_needs(kind, given):
    assert frontier.kind(Variant(name="a", title="a", **given)) == kind


def test_every_method_is_compared_once():
    found = frontier.variants(catalogue())
    assert {"linear", "tip", "drift", "distilled-56", "linear-tuned"} <= found.keys()
    assert not {"base", "single", "recommended", "dare-s1"} & found.keys()
    assert not {name for name in found if name.startswith(("balanced-", "core-", "grams-"))}
    every = [each.settings() for each in found.values()]
    assert {"linear-tuned", "better"} <= found.keys() and "better-alone" not in found
    assert all(every.count(each) == 1 for each in every)


@pytest.fixture
def found() -> pd.DataFrame:
    lines = {
        "cheap": ("cheap", ALONE, 0.3, 8, 0.05),
        "dear": ("dear", UNLABELLED, 0.7, 56, 90.0),
        "dearer": ("dearer", LABELLED, 0.6, 56, 900.0),
        "small": ("small", CONTROL, 0.8, 8, 9000.0),
        "unknown": ("unknown", ALONE, math.nan, math.nan, math.nan),
    }
    names = ("title", "kind", "value", "rank", "seconds")
    frame = pd.DataFrame({n: dict(zip(names, line, strict=True)) for n, line in lines.items()}).T
    frame["kept"] = [Interval(v, v - 0.1, v + 0.1) for v in frame.value]
    frame["without"] = [Interval(v - 0.05, v - 0.1, v) for v in frame.value]
    return frame.astype({"value": float, "rank": float, "seconds": float})


def test_the_front_keeps_more_than_all_that_cost_no_more(found):
    assert frontier.front(found, "seconds") == ["cheap", "dear"]
    assert frontier.front(found, "rank") == ["cheap", "dear"]
    found.loc["small", "kind"] = ALONE
    assert frontier.front(found, "seconds") == ["cheap", "dear", "small"]
    assert frontier.front(found, "rank") == ["small"]


def test_the_table_has_what_is_measured(found):
    told = frontier.table({"one": found, "other": found.drop("small")})
    assert list(told.index) == ["cheap", "dear", "dearer", "small"]
    assert told.columns[:2].tolist() == ["retention,<br>one", "retention,<br>other"]
    assert told.loc["cheap"].to_list()[:2] == ["30%<br>[20, 40]<br>25%<br>[20, 30]"] * 2
    assert told.loc["small"].to_list()[1:] == ["–<br>–", CONTROL, "8", "2.5 h"]
    assert frontier.table({"": found}).columns[0] == "retention"
    assert told.loc["cheap", "time"] == "50 ms"


def test_the_figure_has_a_point_a_merge(found):
    known = found.dropna(subset="value")
    sets = {"one": known, "other": known.drop("cheap")}
    figure = merge_figures.frontier(sets, KINDS, {"dear": "1"})
    top, other, bottom, _ = figure.axes
    points = [sum(len(line.get_xdata()) for line in a.get_lines()) - 2 for a in (top, other)]
    assert points == [4, 3]  # without the line of 100%
    assert [axes.get_title() for axes in (top, other)] == ["one", "other"]
    assert [text.get_text() for text in (*top.texts, *other.texts)] == ["1", "1"]
    assert [tick.get_text() for tick in bottom.get_xticklabels()] == ["8", "56"]


def test_signs_of_points_that_lie_close_are_above_and_below(found):
    known = found.dropna(subset="value").copy()
    known.loc["dearer", ["value", "seconds", "rank"]] = known.loc[
        "dear", ["value", "seconds", "rank"]
    ]
    known.loc["dearer", "value"] -= 0.03
    known["kind"] = known.kind["dear"]
    top, _ = merge_figures.frontier(
        {"": known}, KINDS, {"dear": "1", "dearer": "2", "cheap": "3"}
    ).axes
    assert {text.get_text(): text.xyann[1] > 0 for text in top.texts} == {
        "1": True,
        "2": False,
        "3": True,
    }


def test_what_is_kept_of_each_task_stands_by_the_size_of_its_update():
    kept = {"RTE": Interval(0.5, 0.4, 0.6), "BoolQ": Interval(0.9, 0.8, 1.1)}
    (axes,) = merge_figures.kept_by_task({"Linear": kept}, {"RTE": 3.0, "BoolQ": 2.04}).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["BoolQ\n2.0", "RTE\n3.0"]
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in points] == [[0.9, 0.5]]


def test_the_figure_of_what_has_no_cost_yet(found):
    unknown = found.dropna(subset="value").assign(seconds=math.nan)
    top, bottom = merge_figures.frontier({"one": unknown}, KINDS, {}).axes
    assert [text.get_text() for text in top.texts] == ["not measured yet"] and not bottom.texts


def test_what_a_router_reaches_is_a_level_not_a_merge(found, monkeypatch):
    profile = load_profile("mini").model_copy(update={"tasks": ("rte", "boolq")})
    index = pd.MultiIndex.from_product([profile.tasks, range(64)], names=["task", "row"])
    right = np.arange(128) % 2  # of the merge: half
    rows = pd.DataFrame({"base": 0.0, "single": 1.0, "tip": right}, index=index)
    taken = {"rte": ["rte"] * 48 + ["boolq"] * 16, "boolq": ["boolq"] * 64}
    monkeypatch.setattr(frontier.router, "routed", lambda names, counts: taken)
    points = frontier.points(rows, profile, {"tip": catalogue().variant("tip")}, {})
    assert points.loc["router", "value"] == pytest.approx((0.75 + 1) / 2)
    assert points.loc["router", "kind"] == ROUTED and points.loc["tip", "value"] == 0.5
    known = found.dropna(subset="value")
    both = pd.concat([known, points.loc[["router"]]])
    both.loc["router", "rank"] = 8.0  # were it a merge
    assert frontier.front(both, "rank") == frontier.front(known, "rank")
    assert frontier.table({"": both}).index[-1].startswith("router")
    for axes in merge_figures.frontier({"": both}, KINDS, {}).axes:
        levels = [line.get_ydata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2]
        assert 0.875 in levels


def test_what_one_set_lacks_is_a_dash_in_its_column(monkeypatch):
    """A merge whose cost is not known either is there all the same."""
    profile = load_profile("mini").model_copy(update={"tasks": ("rte",)})
    index = pd.MultiIndex.from_product([profile.tasks, range(64)], names=["task", "row"])
    rows = pd.DataFrame({"base": 0.0, "single": 1.0, "taught": 0.5}, index=index)
    monkeypatch.setattr(frontier.router, "values", lambda rows, profile: 0.5)
    monkeypatch.setattr(frontier, "_costs", dict)
    variants = {"taught": Variant(name="taught", title="T", method="cat", distill=Distilled())}
    one, other = (
        frontier.points(own, profile, variants, {}) for own in (rows, rows.drop(columns="taught"))
    )
    assert other.loc["taught", "kept"] is None
    told = frontier.table({"one": one, "other": other}).loc["taught"]
    assert told.to_list()[:2] == ["50%<br>[50, 50]<br>–", "–<br>–"]
    assert frontier.most({"one": one, "other": other.dropna(subset="value")}) == (
        "taught, adapters of one: 50%"
    )


def test_each_set_names_the_tasks_that_it_is_told_of(monkeypatch):
    learnt = {"mini": ["boolq"], "mini-seeds": ["boolq", "rte"]}
    monkeypatch.setattr(frontier.questions, "rows", lambda profile: profile.name)
    monkeypatch.setattr(frontier.retention, "learnt", lambda rows, tasks: learnt[rows])
    both = dict.fromkeys(frontier.SETS)
    told = frontier.counted(both, "mini")
    assert told == "with one seed BoolQ; with a seed each BoolQ, RTE"
    assert frontier.counted({"": None}, "mini") == "BoolQ"
    learnt["mini-seeds"] = learnt["mini"]
    assert frontier.counted(both, "mini") == "BoolQ"


def test_a_set_of_adapters_that_is_not_measured_is_left_out(monkeypatch):
    here = {"full"}
    monkeypatch.setattr(frontier, "variants", lambda known: {"tip": None})
    monkeypatch.setattr(frontier.questions, "rows", lambda profile: profile.name)
    kinds = [ALONE, ROUTED]  # what a router reaches is known before a merge is measured
    told = lambda rows, *_: pd.DataFrame(  # noqa: E731
        {"kind": kinds, "value": [1.0 if rows in here else math.nan, 0.9]}
    )
    monkeypatch.setattr(frontier, "points", told)
    assert list(frontier.sets(catalogue(), {})) == [""]
    here.add("full-seeds")
    assert list(frontier.sets(catalogue(), {})) == ["one seed", "a seed each"]


def test_two_sets_stand_beside_one_another(monkeypatch):
    names = ["base", "single", "linear-tuned", "ties", "tip", "knots", "drift"]
    monkeypatch.setattr(frontier, "variants", lambda known: dict.fromkeys(names[2:]))
    tasks = load_profile("mini").tasks
    right = {"mini": [2, 9, 6, 3, 5, 4, 8], "mini-seeds": [2, 8, 6, 7, 5, 4]}  # of 10 a task
    rows = {
        profile: pd.DataFrame(
            {n: [float(i < c) for i in range(10)] * 7 for n, c in zip(names, of, strict=False)},
            pd.MultiIndex.from_product([tasks, range(10)], names=["task", "row"]),
        )
        for profile, of in right.items()
    }
    monkeypatch.setattr(frontier.questions, "rows", lambda profile: rows[profile.name])
    found = frontier.on_both(catalogue(), "mini")
    assert list(found.index) == ["single", "linear-tuned", "tip", "knots", "ties", "base"]
    of_other = [mean for mean, _ in found["a seed each", "mean"]]
    assert of_other == pytest.approx([0.8, 0.6, 0.5, 0.4, 0.7, 0.2])
    apart = {title: found[title, "apart"]["ties"].value for title in frontier.SETS}
    assert list(apart.values()) == pytest.approx([-0.3, 0.1])
    titles = {"linear-tuned": "tuned", "ties": "TIES"}
    told = frontier.both_table(found, titles)
    assert told.shape == (6, 4) and told.loc["base", "one seed"].startswith("0.200 ± ")
    words = frontier.both_in_words(found, titles)  # of three merges' pairs one agrees
    assert words.startswith("The order of 3 merges is alike by -0.33 ")
    assert words.endswith("and on the other with the other is TIES.")
    found.at["ties", ("a seed each", "apart")] = Interval(0.1, -0.1, 0.2)
    assert frontier.both_in_words(found, titles).endswith("is no merge.")
    assert frontier.both_in_words(found.drop(["tip"]), titles) == (
        "Of so few merges no order is told."
    )
    rows["mini-seeds"] = rows["mini-seeds"].drop(columns="linear-tuned")
    assert frontier.on_both(catalogue(), "mini").empty


def test_interference_is_told_by_pairs(monkeypatch):
    profile = load_profile("mini").model_copy(update={"tasks": ("rte", "boolq")})
    stored = {"tip": {"rank": 8}, "coefficients": {"interference": [0.0, 0.5, 2.5, 0.0]}}
    monkeypatch.setattr(frontier.store, "facts", lambda folder: stored)
    found = frontier.interference(profile)
    assert found == {"RTE": {"BoolQ": 0.5}, "BoolQ": {"RTE": 2.5}}
    (axes,) = merge_figures.interference(found, "with the adapter of").axes
    assert [text.get_text() for text in axes.texts] == ["0.50", "2.50"]
    stored.pop("coefficients")
    assert frontier.interference(profile) == {}


def test_costs_are_as_stored(monkeypatch):
    stored = {"ties": {"rank": 8, "seconds": 2.0, "inputs": 3.0}, "cat": {"rank": 56}}
    stored["tip"] = {"rank": 8, "seconds": 2.0, "inputs": 30.0}
    monkeypatch.setattr(frontier, "_costs", lambda: stored)
    variant = lambda **given: Variant(name="a", title="a", **given)  # noqa: E731
    full = load_profile("full")
    assert frontier.cost("ties", variant(method="ties"), {}, full) == (8, 5.0)
    taught = variant(method="cat", distill=Distilled(rank=8))
    assert frontier.cost("x", taught, {"rank": 8, "seconds": 60.0, "threads": 2}, full) == (
        8,
        120.0,
    )
    scored = variant(method="tip", distill=Distilled())  # its start reads inputs
    assert frontier.cost("x", scored, {"rank": 56, "seconds": 60.0, "threads": 2}, full) == (
        56,
        150.0,
    )
    assert all(map(math.isnan, frontier.cost("x", taught, {}, full)))
    learnt = variant(method="cat", weights="learnt")
    rank, seconds = frontier.cost("cat-learnt", learnt, {}, full)
    assert rank == 56 and seconds > 100
