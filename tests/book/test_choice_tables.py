"""What the chapter on a better merge shows: the rounds of a choice, and learnt weights."""

import pytest
from made_up import CHOOSING, keep_scored, scored

from tipmini_lab.book import comparisons, figures, tables
from tipmini_lab.experiments.catalogue import Catalogue, Choice, Group
from tipmini_lab.experiments.profiles import Profile
from tipmini_lab.experiments.variants import Variant
from tipmini_lab.results import store as storage
from tipmini_lab.results.statistics import MISSING
from tipmini_lab.results.store import Bundle

NAMES = ("linear", "cat", "svd")


@pytest.fixture
def known():
    variants = {n: Variant(name=n, title=n.upper(), method=n) for n in NAMES}
    choice = Choice(name="best", title="the best", among=NAMES, finalists=2)
    return Catalogue({"tuned": Group(description="d", choices=(choice,))}, {}, variants)


@pytest.fixture
def profile(tmp_path):
    return Profile(name="tiny", description="d", tasks=CHOOSING, results=str(tmp_path))


def test_a_choice_is_named_by_its_own_title_and_its_winners(known, tmp_path):
    assert comparisons.titles(known, tmp_path) == {"best": "the best"}
    won = Bundle(name="best", title="an older title: CAT", settings={}, facts={}, cells=[])
    storage.keep(tmp_path, won)
    assert comparisons.titles(known, tmp_path) == {"best": "the best: CAT"}


def test_rounds_are_ordered_by_the_first_and_tell_the_second(known, profile):
    first = {"linear": ([1, 0, 1, 0], [1, 0]), "cat": ([1, 1, 1, 1], [1, 1])}
    keep_scored(profile, scored(**first, svd=([0, 0, 0, 0], [0, 0])))
    keep_scored(profile, scored(linear=([1, 1], [1, 1]), cat=([0, 0], [1, 1])), final=True)
    frame = comparisons.rounds("best", known, profile, count=2)
    assert list(frame.index) == ["CAT", "LINEAR"]
    assert list(frame["finalists"]) == ["0.500 ± 0.000", "1.000 ± 0.000"]
    assert frame.loc["LINEAR", "first round"].startswith("0.500 ± ")


def test_a_round_with_a_hole_is_not_measured(known, profile):
    keep_scored(profile, scored(linear=([1], [1])))
    frame = comparisons.rounds("best", known, profile)
    assert frame.iloc[0, 0] == MISSING


def test_weights_stand_in_lines_and_the_chosen_one_is_bold(profile):
    values = {"linear-w-mean": "mean", "linear-w-0.1": 0.1, "cat-w-0.1": 0.1}
    variants = {
        name: Variant(name=name, title=name, method=name.split("-")[0], weights=weight)
        for name, weight in values.items()
    }
    choices = tuple(
        Choice(name=f"{of}-tuned", title=of, among=(f"{of}-w-*",), finalists=2)
        for of in ("linear", "cat")
    )
    known = Catalogue({"tuned": Group(description="d", choices=choices)}, {}, variants)
    keep_scored(
        profile, scored(**{"linear-w-mean": ([1, 0], [1, 0]), "linear-w-0.1": ([1, 1], [1, 0])})
    )
    frame = comparisons.weights(["linear-tuned", "cat-tuned"], known, profile)
    assert dict(frame["linear"]) == {"1/T": "0.500", "0.1": "0.750"}  # no second round yet
    assert dict(frame["cat"]) == {"1/T": "–", "0.1": MISSING}
    last = {"linear-w-mean": ([1, 1], [1, 1]), "linear-w-0.1": ([1, 1], [0, 0])}
    keep_scored(profile, scored(**last), final=True)
    frame = comparisons.weights(["linear-tuned"], known, profile)
    assert dict(frame["linear"]) == {"1/T": "**0.500<br>1.000**", "0.1": "0.750<br>0.500"}


def test_weights_are_drawn_by_kind_of_module_and_task():
    modules = [f"model.layers.{i}.self_attn.{kind}" for i in (0, 1) for kind in ("q", "v")]
    weights = {"RTE": dict.fromkeys(modules, 0.5), "PIQA": dict.fromkeys(modules, -0.25)}
    figure = figures.weight_maps(weights)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["self_attn.q", "self_attn.v"]
    assert panels[0].images[0].get_array().tolist() == [[0.5, 0.5], [-0.25, -0.25]]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["RTE", "PIQA"]
    assert tables.svg(figure) == tables.svg(figures.weight_maps(weights))
