"""A rehearsal in small: what is counted, and that few layers tell of many."""

import json

import pytest
import torch

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import rehearsed
from tipmini_lab.commands import batch
from tipmini_lab.experiments import rehearsal, walking
from tipmini_lab.experiments.counting import Counted, all_flops, least_seconds
from tipmini_lab.experiments.profiles import load_profile

A40 = load_profile("a40").model_copy(update={"tasks": ("arc_challenge", "coqa")})
TINY = {
    **{"vocab_size": 8000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048},
}


@pytest.fixture
def tiny(embedded, monkeypatch, tmp_path):
    """The 7B model's shapes are tiny ones, and what is stored lies elsewhere."""
    monkeypatch.setitem(rehearsal.SHAPES, A40.model, TINY)
    monkeypatch.setattr(rehearsal, "own_peaks", lambda: dict.fromkeys(rehearsal.PEAKS, 1e11))
    monkeypatch.setattr(paths, "REHEARSAL", tmp_path / "rehearsal.json")
    monkeypatch.setattr(paths, "GPU", tmp_path / "gpu")


# Counting -----------------------------------------------------------------------------------------
def test_a_product_is_counted_by_its_operations_and_its_bytes():
    a, b = torch.ones(2, 3), torch.ones(3, 4, dtype=torch.float32)
    with Counted() as counted:
        c = a @ b
        c.T.add_(1)  # in place: nothing new is held
    facts = counted.facts()
    assert facts["flops.float32"] == 2 * 2 * 3 * 4
    assert facts["products"] == 4 * (6 + 12 + 8) and facts["other"] == 4 * (8 + 8)
    assert facts["peak"] == counted.held == 4 * 8


def test_what_is_freed_is_no_longer_held():
    with Counted() as counted:
        for _ in range(3):
            made = torch.ones(1000)
            del made
        kept = torch.ones(500)
    assert (counted.peak, counted.held) == (4000, 2000) and kept.sum() == 500


def test_the_least_time_is_that_of_the_slower_of_products_and_bytes():
    peaks = {"float32": 10.0, "bytes": 2.0}
    facts = {"flops.float32": 40, "products": 4, "other": 6}
    assert least_seconds(facts, peaks) == 4 + 3
    assert least_seconds(facts | {"products": 20}, peaks) == 10 + 3


# Walking ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("step", ["evaluate", "prune", "train"])
def test_one_layer_and_two_tell_of_three(tiny, step, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "LAYERS", (1, 2, 3))
    found = {}
    for count, profile in rehearsal._few_layers(A40, tmp_path, TINY).items():
        place = walking.Place(profile, tmp_path / f"written-{count}")
        found[count] = rehearsal._walked(walking.STEPS[step](place))
    three, told = found.pop(3), rehearsal._at(found, 3)
    assert all_flops(told) == all_flops(three) > 0
    for name in ("held", "products", "other"):
        assert told[name] == pytest.approx(three[name], rel=0.01)
    assert told["peak"] == pytest.approx(three["peak"], rel=0.1)


def test_a_whole_rehearsal_is_stored_and_shown(tiny, capsys, monkeypatch):
    monkeypatch.setattr(batch, "_profile", lambda name: A40)
    batch.rehearse(as_json=True)
    found = json.loads(paths.REHEARSAL.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert found["weights"] == "random" and found["steps"].keys() == walking.STEPS.keys()
    for step in found["steps"].values():
        assert step["tokens"] > 0 and step["seconds"] > 0 and 0 < step["efficiency"] <= 1
        assert step["peak"] > step["weights"] > 0
    a_token = {name: step["flops"] / step["tokens"] for name, step in found["steps"].items()}
    assert a_token["train"] > a_token["evaluate"] > 0
    assert {"into", "tip", "regmean"} <= found["merges"].keys()
    values = rehearsed.page_values()
    assert "| score questions with choices | 1,172 questions, 5 ways |" in values["rehearsal"]
    assert values["gpu_runs"].startswith("No GPU has been measured yet")
    assert rehearsed.told(found).startswith(f"{A40.model}, random weights, bfloat16; projected")


def test_a_model_of_unknown_shapes_is_one_line():
    with pytest.raises(TipminiError, match="profile mini: model embedded: its shapes are not"):
        rehearsal.rehearse(load_profile("mini"))


def test_a_missing_rehearsal_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REHEARSAL", tmp_path / "none.json")
    with pytest.raises(TipminiError, match="missing; run `tipmini rehearse`"):
        rehearsed.read()
