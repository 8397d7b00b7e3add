"""Choosing by held-out cells: the highest mean over tasks, of equal ones the first."""

import pytest
from made_up import CHOOSING, keep_scored, scored

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.merge import equal_weight
from tipmini_lab.evaluation import documents, tasks
from tipmini_lab.experiments import catalogue, measuring
from tipmini_lab.experiments.catalogue import Catalogue, Choice
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.training import RECIPES
from tipmini_lab.experiments.variants import Variant
from tipmini_lab.results.store import digest

HALF = ([1, 0, 1, 0], [1, 0])
CASES = {
    "the highest": ({"a": HALF, "b": ([1, 1, 1, 0], [1, 0])}, "b"),
    "tasks count alike, not rows": ({"a": ([1, 1, 1, 0], [0, 0]), "b": HALF}, "b"),
    "the first of equals": ({"a": HALF, "b": HALF}, "a"),
}


@pytest.mark.parametrize(("rows", "expected"), CASES.values(), ids=CASES)
def test_the_best(rows, expected):
    assert catalogue.best(scored(**rows), ["a", "b"], CHOOSING) == [expected]


@pytest.fixture
def place(tmp_path):
    """A profile that stores below tmp_path, and a choice between two merges."""
    made = {"name": "tiny", "description": "d", "tasks": CHOOSING}
    profile = Profile(**made, results=str(tmp_path))
    variants = {n: Variant(name=n, title=n.upper(), method=n) for n in ("linear", "cat")}
    choice = Choice(name="best", title="the best", among=("linear", "c*"))
    return profile, Catalogue({}, {}, variants), choice


def test_finalists_are_chosen_from_by_their_own_rows(place):
    """cat is last of three at first, so it is not among the two however well it does later."""
    profile, known, _ = place
    known.variants["svd"] = Variant(name="svd", title="SVD", method="svd")
    choice = Choice(name="best", title="the best", among=("linear", "cat", "svd"), finalists=2)
    keep_scored(
        profile, scored(linear=HALF, cat=([0, 0, 0, 0], [0, 0]), svd=([1, 1, 1, 1], [1, 1]))
    )
    assert catalogue.finalists(choice, known, profile) == ["linear", "svd"]
    with pytest.raises(TipminiError, match="linear and 1 more are not measured"):
        catalogue.resolved(choice, known, profile)
    keep_scored(profile, scored(linear=([1, 1], [1]), svd=([1, 1], [0])), final=True)
    assert catalogue.resolved(choice, known, profile).method == "linear"


def test_a_choice_is_the_winner_under_its_own_name(place):
    profile, known, choice = place
    keep_scored(profile, scored(linear=HALF, cat=([1, 1, 1, 0], [1, 0])))
    found = catalogue.resolved(choice, known, profile)
    assert (found.name, found.title, found.method) == ("best", "the best: CAT", "cat")


def test_the_lowest_is_chosen_where_it_is_asked_for(place):
    profile, known, choice = place
    keep_scored(profile, scored(linear=HALF, cat=([1, 1, 1, 0], [1, 0])))
    lowest = choice.model_copy(update={"lowest": True})
    assert catalogue.resolved(lowest, known, profile).method == "linear"


def test_nothing_is_chosen_while_a_candidate_is_not_measured(place):
    profile, known, choice = place
    keep_scored(profile, scored(linear=HALF))
    with pytest.raises(TipminiError, match="choice best: cat and 0 more are not measured"):
        catalogue.resolved(choice, known, profile)


def content(rows: list[dict]) -> set[str]:
    """Rows told apart by all that they hold but running numbers, which differ by file."""
    return {digest({k: v for k, v in row.items() if k not in tasks.NUMBERS}) for row in rows}


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("task", documents.TASKS)
def test_held_out_rows_are_neither_trained_on_nor_evaluated(embedded, task, final):
    lab = measuring.HeldOut(load_profile("mini"), final)
    after, count = lab.rows(task)
    scored = list(lab.task(task).eval_docs)
    recipe = RECIPES[task]
    expected = {"coqa": 60, "rte": 32, "arc_challenge": 160}.get(task, 192)
    expected = expected if final else {"coqa": 16, "rte": 32}.get(task, 48)
    assert len(scored) >= count - 1 and count == expected and after == recipe.rows
    trained = list(tasks.load(task, 1, recipe.rows).training_docs())
    evaluated = list(tasks.load(task).eval_docs)
    assert len(trained) == recipe.rows
    own = content(scored)
    assert len(own) == len(scored)
    assert not own & content(trained) and not own & content(evaluated)


def test_held_out_rows_of_other_peoples_adapters_are_not_known():
    with pytest.raises(TipminiError, match="profile a40: its adapters' held-out rows"):
        measuring.HeldOut(load_profile("a40"))


def test_every_choice_can_be_made_of_what_is_declared():
    known = catalogue.catalogue()
    assert all(len(known.candidates(choice)) > 5 for choice in known.choices.values())


def test_what_is_recommended_was_chosen_on_held_out_rows():
    profile, known = load_profile("mini"), catalogue.catalogue()
    chosen = catalogue.resolved(known.choices["better-alone"], known, profile)
    preset = tm.PRESETS["recommended"]
    assert (chosen.base_method, chosen.options) == (preset.method, preset.options)
    weight = equal_weight(preset.weights, len(profile.tasks))
    assert chosen.shares(profile.tasks) == pytest.approx(dict.fromkeys(profile.tasks, weight))
