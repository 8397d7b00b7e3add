"""The bench of pruning: counts of agreeing masks, and all of it on a tiny model."""

import prunable
import pytest
import torch

from tipmini.groups import CHANNELS, HEADS, Family
from tipmini.lab import assets, experiments
from tipmini.lab.bench import pruning, pruning_cost, pruning_masks, pruning_parts, timing
from tipmini.lab.profiles import Profile
from tipmini.lab.pruning import step_time

FAMILIES = [Family("a", 0, HEADS, 4, 9, ()), Family("b", 0, CHANNELS, 10, 3, ())]


def test_agreement_by_hand():
    ranks = {"a": [1, 2, 3, 4], "b": list(range(10))}
    other = {"a": [1, 3, 2, 4], "b": [9 - i for i in range(10)]}
    scores = {
        name: {n: torch.tensor(v, dtype=torch.float32) for n, v in found.items()}
        for name, found in (("vanilla", ranks), ("lora-guided", other))
    }
    heads, channels = pruning_masks.compared(FAMILIES, scores, 0.5, "paper", 0)
    assert (heads["groups"], heads["removed"], heads["same"], heads["both"]) == (4, 2, 0.5, 0.5)
    assert heads["chance_same"] == heads["chance_both"] == 0.5
    assert (channels["removed"], channels["same"], channels["both"]) == (5, 0.0, 0.0)
    heads, channels = pruning_masks.compared(FAMILIES, scores, 0.2, "paper", 0)
    assert (heads["removed"], heads["both"], heads["same"]) == (0, None, 1.0)
    assert channels["same"] == pytest.approx(0.6)
    assert channels["chance_same"] == pytest.approx(0.2**2 + 0.8**2)


@pytest.mark.parametrize("share", pruning_masks.SHARES)
def test_chance_is_what_random_masks_agree_on(share):
    family = [Family("b", 0, CHANNELS, 200, 3, ())]
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(50):
        scores = {m: {"b": torch.rand(200, generator=generator)} for m in ("one", "two")}
        found += pruning_masks.compared(family, scores, share, "paper", 0)
    mean = sum(entry["same"] for entry in found) / len(found)
    assert mean == pytest.approx(found[0]["chance_same"], abs=0.02)


@pytest.fixture
def lab(tiny, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "embedded"
    folder.mkdir()
    prunable.save_model(folder / "model", tokenizer)
    (folder / "data").symlink_to(tiny / "data")
    monkeypatch.setattr(assets, "embedded", lambda: folder)
    monkeypatch.setattr(pruning, "keep_memory", lambda: None)
    monkeypatch.setattr(timing, "in_new_process", lambda work, *given: work(*given))
    monkeypatch.setattr(experiments.Lab, "tokenizer", tokenizer)
    made = {"name": "tiny", "description": "tiny", "results": str(tmp_path / "results")}
    return experiments.Lab(Profile(**made, dtype="float32"))


def test_all_of_it_on_a_tiny_model(lab):
    size = {"accumulated": 2, "length": 8, "repeats": 1, "rows": 3, "seeds": 2, "rank": 2}
    size |= {
        "lengths": (4, 8),
        "long_rows": 2,
        "batches": (1, 2),
        "prompt": 8,
        "rounds": 2,
        "shares": (0.0, 0.5),
    }
    found = {}
    for measure in pruning.PARTS.values():
        found |= measure(lab, pruning.Size(**size))
    assert set(found["cost"]) == set(pruning_cost.SIDES)
    plain, int8 = (found["cost"][n]["model_bytes"] for n in ("lora-guided", "lora-guided int8"))
    assert int8 < plain == found["cost"]["vanilla"]["model_bytes"]
    assert all(entry["rows_a_second"] > 0 for entry in found["cost"].values())
    kinds = {(e["kind"], e["share"], e["seed"], e["reduction"]) for e in found["agreement"]}
    assert len(kinds) == len(found["agreement"]) == 2 * 5 * 2 * 2
    assert len(found["inference"]) == 2 * 2 * 2
    assert all(len(entry["seconds"]) == 2 for entry in found["inference"])
    assert {round(e["removed"], 1) for e in found["inference"]} == {0.0, 0.5}
    assert [entry["tokens"] for entry in found["lengths"]] == [4, 8]
    parts = found["time"]["parts"]
    assert parts["vanilla"][step_time.WEIGHTS] > 0 == parts["lora-guided"][step_time.WEIGHTS]
    whole, half = found["pass"]["parts"]
    assert whole["parts"][step_time.PRODUCTS] > 0 < half["parts"][step_time.ATTENTION]
    told = pruning.report(found)
    assert "vanilla: " in told and "masks of channels at 50%" in told and "unmerged" in told


@pytest.mark.parametrize(
    ("name", "operands", "part"),
    [
        ("aten::mm", [[7, 12], [12, 20]], step_time.PRODUCTS),  # x W^T, tokens first
        ("aten::mm", [[7, 20], [20, 12]], step_time.PRODUCTS),  # dL/dy W
        ("aten::mm", [[20, 7], [7, 12]], step_time.WEIGHTS),  # dL/dW
        ("aten::mm", [[12, 7], [7, 20]], step_time.WEIGHTS),  # its transpose
        ("aten::mm", [[7, 12], [12, 2]], step_time.FACTORS),
        ("aten::addmm_", [[7, 20], [7, 2], [2, 20], [], []], step_time.FACTORS),
        ("aten::mm", [[7, 12], [12, 99]], step_time.HEAD),
        ("aten::_log_softmax", [[7, 99], [], []], step_time.HEAD),
        ("aten::_softmax", [[1, 3, 7, 7], [], []], step_time.ATTENTION),
        ("aten::_scaled_dot_product_flash", [[1, 3, 7, 4]] * 3, step_time.ATTENTION),
        ("aten::bmm", [[3, 7, 4], [3, 4, 7]], step_time.ATTENTION),
        ("aten::add_", [[20, 12], [20, 12], []], step_time.ADDING),
        ("aten::add_", [[7, 12], [7, 12], []], step_time.REST),
        ("aten::mul", [[1, 7, 12], [12]], step_time.REST),
        ("torch::autograd::AccumulateGrad", [], step_time.REST),
    ],
)
def test_every_operation_of_a_step_has_its_part(name, operands, part):
    sizes = pruning_parts.Sizes(frozenset({(20, 12)}), vocabulary=99, rank=2)
    assert sizes.part(name, operands) == part
