"""One variant: what it merges, by what it is scored, and what it follows from."""

import pytest

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab.evaluation.documents import TASKS
from tipmini_lab.evaluation.tasks import METRIC
from tipmini_lab.experiments.variants import Variant

ONE = {"name": "one", "title": "One"}


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        (None, TASKS),
        (2, TASKS[:2]),
        (99, TASKS),
        (("rte", "boolq"), ("boolq", "rte")),
    ],
)
def test_the_tasks_that_are_merged(adapters, expected):
    assert Variant(**ONE, adapters=adapters).tasks(TASKS) == expected


def test_an_adapter_that_the_profile_lacks_is_refused():
    with pytest.raises(TipminiError, match="variant one: piqa is not a task of the profile"):
        Variant(**ONE, adapters=("piqa",)).tasks(("rte", "boolq"))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("mean", "mean"), (2, {"rte": 2.0, "piqa": 2.0}), ({"rte": 1, "piqa": 3}, None)],
)
def test_weights_as_merge_takes_them(weights, expected):
    shares = Variant(**ONE, weights=weights).shares(("rte", "piqa"))
    assert shares == (weights if expected is None else expected)


def test_a_presets_weights_are_its_own_unless_others_are_named():
    own = Variant(**ONE, method="recommended")
    assert own.weights == tm.PRESETS["recommended"].weights != "sum"
    assert Variant(**ONE, method="recommended", weights="mean").weights == "mean"
    assert Variant(**ONE, method="tip-inverted").weights == "sum"


def test_a_rule_of_weights_must_be_known():
    with pytest.raises(ValueError, match=r"such as 0\.7/T, or learnt, got 'median'"):
        Variant(**ONE, weights="median")


def test_another_metric_is_another_measurement_of_the_same_merge():
    plain, other = Variant(**ONE), Variant(**ONE, metrics={"piqa": "acc"})
    assert other.settings() == plain.settings()
    assert (other.metric("piqa"), other.metric("rte")) == ("acc", METRIC["rte"])


@pytest.mark.parametrize(
    "change",
    [
        {"method": "cat"},
        {"options": {"sign": -1}},
        {"weights": "mean"},
        {"seed": 3},
        {"adapters": 2},
        {"inputs": {"rows": 8}},
        {"norm_of": "tip"},
    ],
)
def test_what_a_merge_follows_from(change):
    assert Variant(**ONE).changed(**change).settings() != Variant(**ONE).settings()


def test_a_changed_variant_is_checked():
    with pytest.raises(ValueError, match="no option"):
        Variant(**ONE).changed(options={"density": 1})


@pytest.mark.parametrize(
    ("method", "needs"),
    [("linear", None), ("tip-dlp", "norms"), ("wanda", "norms"), ("regmean", "grams")],
)
def test_what_must_be_measured_of_the_inputs(method, needs):
    assert Variant(**ONE, method=method).needs == needs
