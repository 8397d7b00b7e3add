"""MMLU of pruned models of a tiny base: made of stored masks, measured once, refused where not."""

import prunable
import pytest
import yaml

from tipmini.errors import TipminiError
from tipmini.methods.pruner import load_masks, save_masks
from tipmini_lab import paths
from tipmini_lab.experiments import declared, few_shot, pruning, prunings
from tipmini_lab.experiments.few_shot import Group
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.results import digests
from tipmini_lab.results import store as storage

TINY = """
description: a try
version: 1
sizes:
  tiny:
    windows: 2
    length: 12
    tuned: {tasks: [rte], rows: 4, length: 12, rank: 2, batch: 2, epochs: 1, every: 1}
    one_shot: {tasks: [rte], rows: 4, length: 12, rank: 2, tune: false}
tasks: [openbookqa]
whole: [{name: base, title: unpruned}, {name: base-int8, title: 8 bits, int8: true}]
semi_structured: [{name: wanda-2to4, title: "2:4", score: wanda}]
methods:
  - {name: lora, title: LoRAPrune, options: {method: lora-guided}}
plans:
  - {what: a, methods: [lora], shares: [0.5], tuned: false, seeds: [0], zero_shot: false}
  - {what: b, methods: [lora], shares: [0.5], tuned: true, seeds: [0], zero_shot: false}
"""
GRID = declared.Grid.model_validate(yaml.safe_load(TINY))
ONCE, TUNED = "lora-50-once-s0", "lora-50-tuned-s0"


def asked(*runs: str) -> Group:
    return Group(module="few_shot", description="a try", rows=2, runs=runs)


@pytest.fixture
def profile(tmp_path, embedded, tokenizer, two_subjects, monkeypatch) -> Profile:
    return prunable.profile(monkeypatch, tmp_path, embedded, tokenizer)


def test_a_model_of_stored_masks_is_the_pruned_one_and_is_asked_once(profile, monkeypatch):
    pruned = prunings.experiments(profile, GRID)[ONCE]
    weights = [file.read_bytes() for file in pruned.build().glob("*.safetensors")]
    list(pruned.run())
    before = pruned.masks_file.read_bytes()
    monkeypatch.setattr(pruning.Run, "run", None)  # nothing is pruned by groups again
    known = few_shot.experiments(profile, asked("base", "wanda-2to4", ONCE), GRID)
    again = known[ONCE].build().glob("*.safetensors")
    assert sorted(file.read_bytes() for file in again) == sorted(weights)
    for name, each in known.items():
        (cell,) = each.run()
        assert (cell.method, cell.task, cell.metric, cell.count) == (name, "mmlu", "acc", 4)
        assert list(each.run()) == [] and not each.is_stale("mmlu", measured=True)
        assert set(cell.values) <= {0.0, 1.0}
    assert storage.names(pruned.store) == [ONCE] and pruned.masks_file.read_bytes() == before
    assert storage.names(few_shot.store_of(profile)) == sorted(known)
    assert list((profile.scratch / "pruned").iterdir()) == []


def test_other_masks_or_other_questions_make_a_cell_stale(profile):
    list(prunings.experiments(profile, GRID)[ONCE].run())
    (each,) = few_shot.experiments(profile, asked(ONCE), GRID).values()
    list(each.run())
    (fewer,) = few_shot.experiments(
        profile, asked(ONCE).model_copy(update={"rows": 1}), GRID
    ).values()
    assert fewer.is_stale("mmlu") and not each.is_stale("mmlu")
    other = {family: ~mask for family, mask in load_masks(each.masks_file).items()}
    each.masks_file.write_bytes(save_masks(other))
    assert each.is_stale("mmlu")
    each.masks_file.write_bytes(save_masks(other) + b" ")
    with pytest.raises(TipminiError, match="no stored masks"):
        each.is_stale("mmlu")


@pytest.mark.parametrize(
    ("run", "told"),
    [(TUNED, "is fine-tuned"), ("base-int8", "or in 8 bits"), ("nothing", "no pruning 'nothing'")],
)
def test_what_is_not_to_be_had_of_masks_is_refused(profile, run, told):
    with pytest.raises(TipminiError, match=f"^group mmlu: .*{told}"):
        few_shot.experiments(profile, asked("base", run), GRID)


def test_without_stored_masks_it_says_what_makes_them(profile):
    (each,) = few_shot.experiments(profile, asked(ONCE), GRID).values()
    with pytest.raises(TipminiError, match=f"{ONCE} has no stored masks; run `tipmini measure"):
        list(each.run())


def test_whatever_is_stored_was_measured_as_it_would_be_now(embedded):
    assert paths.own_groups("few_shot") == {"mmlu": few_shot.FILE}
    known = few_shot.experiments(load_profile("mini"))
    names = storage.names(few_shot.store_of(load_profile("mini")))
    assert set(names) <= set(known)
    for each in map(known.get, names):
        assert not each.is_stale("mmlu", measured=True), each.name
        assert each.stored("mmlu").key == digests.digest(each.inputs("mmlu")), each.name
