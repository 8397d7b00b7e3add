"""What is told of a measurement before it is begun: what is stored, what is not, and how long."""

import json
from dataclasses import asdict

import pytest
from labs import TASKS, save_adapter

from tipmini.errors import TipminiError
from tipmini.models.peft_folder import WEIGHTS
from tipmini.models.sealed import sealed
from tipmini_lab.experiments import distilling, estimate, groups, variants
from tipmini_lab.experiments.lab import Lab, measure
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.variants import TABLE_1, cell_file
from tipmini_lab.results import store


@pytest.fixture
def twice_as_slow(monkeypatch):
    monkeypatch.setattr(estimate, "slowness", lambda like, profile, row: 2.0)


def test_what_is_stored_needs_no_time(profile, measured, twice_as_slow):
    lab = Lab(profile)
    for task in TASKS:
        lab.cell("base", task)
        cell = variants.stored(profile, "base", task).model_copy(update={"seconds": 10.0})
        store.save(cell_file(profile, "base", task), cell)
    done = len(measured)
    found = estimate.estimate(profile, None)
    assert (found.stored, found.missing, found.untimed) == (2, 2 * (len(TABLE_1) - 1), 0)
    assert found.seconds == pytest.approx(2.0 * 10.0 * found.missing)
    assert found.line == "2 cells stored, 8 to measure, about 3 min on this machine"
    assert estimate.estimate(profile, None, ["base"]).line == "2 cells stored, 0 to measure"
    assert estimate.estimate(profile, None, ["tip"], ["rte"]).missing == 1
    assert len(measured) == done  # nothing was


def test_another_setting_is_measured_again(profile, twice_as_slow):
    Lab(profile).cell("base", "rte")
    changed = profile.model_copy(update={"evaluation_rows": 3})
    assert estimate.estimate(profile, None, ["base"], ["rte"]).stored == 1
    assert estimate.estimate(changed, None, ["base"], ["rte"]).stored == 0


def test_as_many_cells_as_a_group_then_measures(profile, measured, twice_as_slow):
    names = ["cat"]
    found = estimate.estimate(profile, "methods", names)
    assert (found.stored, found.missing) == (0, len(TASKS)) and found.seconds > 0
    measure(profile, "methods", names)
    assert len(measured) == found.missing
    assert estimate.estimate(profile, "methods", names).stored == len(TASKS)


def test_what_follows_from_what_is_not_measured_is_told(profile, twice_as_slow):
    found = estimate.estimate(profile, "few", ["few-2"])
    assert found.unknown and "follow from what is measured first" in found.line
    assert found.missing  # its candidates


def test_what_is_learnt_first_is_told(profile, twice_as_slow):
    name, lab = "distilled-56", Lab(profile)
    for task in TASKS:
        lab.cell("base", task)
        cell = variants.stored(profile, "base", task)
        cell = cell.model_copy(update={"seconds": 10.0 * cell.count})
        store.save(cell_file(profile, "base", task), cell)
    found = estimate.estimate(profile, "distilled", [name])
    assert found.learnt == {name}
    # of each task 96 rows 4 times, forward and back, what is answered, what the base answers
    # and says, and what is to stop by, once in the beginning and after each epoch
    expected = estimate.BACKWARD * 96 * 4 + 3 * 96 + 32 + 32 * 5
    assert found.learning == pytest.approx(2.0 * 10.0 * len(TASKS) * expected)
    assert "; merges to be learnt first: 1, " in found.line and found.line.endswith("of the time")
    # and what a merge starts from, as many coefficients, which is three epochs and every pair
    found = estimate.estimate(profile, "distilled", ["distilled-from-coefficients"])
    assert found.learnt == {"distilled-from-coefficients", "coefficients-module"}
    expected += estimate.BACKWARD * 96 * 3 + 2 * 96 + 32 + 32 * 4 + 32 * (len(TASKS) - 1)
    assert found.learning == pytest.approx(2.0 * 10.0 * len(TASKS) * expected)


def test_coefficients_read_every_pair_first(profile):
    """Of each of two tasks, the 32 to stop by once more, with the other's adapter."""
    known = groups.names(profile, "distilled")
    read = {n: estimate._rows_read(Lab(profile).experiment(n)) for n in known}
    apart = estimate.BACKWARD * 96 + 32 + 96  # three epochs in place of four, and no words
    for task in TASKS:
        assert read["coefficients-adapter"][task] == read["distilled-56"][task] - apart + 32


def test_what_was_learnt_of_the_recipe_is_not_learnt_again(profile, twice_as_slow):
    name = next(n for n in groups.names(profile, "distilled"))
    each = Lab(profile).experiment(name)
    folder = each.lab.distilled_places(name)[-1]
    recipe = asdict(each.lab.distill_recipe(each))
    save_adapter(folder, seed=0)
    for told, learnt in (({}, True), (recipe | {"epochs": 7}, True), (recipe, False)):
        store.write(folder / distilling.STORY, sealed(json.dumps({"recipe": told})))
        assert estimate.is_to_be_learnt(each) == learnt
    (folder / WEIGHTS).unlink()
    assert estimate.is_to_be_learnt(each)


def test_what_has_no_time_is_told_all_the_same(profile, monkeypatch):
    other = profile.model_copy(update={"model": "other/model"})
    monkeypatch.setattr(estimate, "lacks", lambda each, only=(): [*each.measures()])
    monkeypatch.setattr(estimate, "is_to_be_learnt", lambda each: True)
    name = next(n for n in groups.names(profile, "distilled"))
    assert estimate.estimate(other, "distilled", [name]).line.endswith("learnt first: 1")


def test_prunings_count_their_making(twice_as_slow, monkeypatch):
    mini = load_profile("mini")
    assert estimate.estimate(mini, "pruning", ["base"]).missing == 0
    monkeypatch.setattr(estimate, "lacks", lambda each, only=(): [*each.measures()])
    name = groups.names(mini, "pruning")[-1]
    bundles = store.bundles(mini.pruning_store)
    one, made = estimate.estimate(mini, "pruning", [name]), "seconds"
    least = min(bundle.facts[made] for bundle in bundles if made in bundle.facts)
    assert one.missing > 2 and one.seconds > 2.0 * least


def test_a_model_that_was_never_measured_has_no_time(profile, monkeypatch):
    other = profile.model_copy(update={"model": "other/model"})
    monkeypatch.setattr(estimate, "lacks", lambda each, only=(): [*each.measures()])
    found = estimate.estimate(other, None)
    assert found.untimed == found.missing == 10 and "about" not in found.line


def test_the_speed_is_that_of_the_first_rows(profile, monkeypatch):
    monkeypatch.setattr(estimate, "PROBED", 2)
    for task in TASKS:
        Lab(profile).cell("base", task)
    cell = variants.stored(profile, "base", TASKS[0])
    assert 0 < estimate.slowness(profile, profile, {TASKS[0]: 1000.0 / cell.count}) < 0.1


def test_a_name_that_the_group_has_not_is_refused(profile):
    with pytest.raises(TipminiError, match="group methods: no 'cta' at profile tiny"):
        estimate.estimate(profile, "methods", ["cta"])


def test_a_module_of_its_own_is_refused(profile):
    with pytest.raises(TipminiError, match=r"group elastic: elastic\.py measures it as a whole"):
        estimate.estimate(profile, "elastic")


@pytest.mark.parametrize(
    ("name", "group"),
    [(name, group) for name in ("mini", "full") for group in ("methods", "tuned", "distilled")]
    + [("mini", "nine-tenths"), ("full", "nine-tenths")],
)
def test_no_stored_merge_is_stale(name, group):
    """Weights that were learnt, and rows that were read, are those of today: else a measurement of
    what is stored would begin with learning again."""
    planned = estimate.planned(load_profile(name), group, ())
    every = [each for each in planned if not isinstance(each, TipminiError)]
    found = [(e.name, m) for e in every for m in e.measures() if e.is_stale(m, measured=True)]
    assert every and found == []
