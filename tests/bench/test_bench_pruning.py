"""The bench of pruning: counts of agreeing masks, and all of it on a tiny model."""

import json

import prunable
import pytest
import torch
from transformers import AutoModelForCausalLM

import tipmini as tm
from bench import __main__, pruning, pruning_cost, pruning_zeros, timing
from tipmini.errors import TipminiError
from tipmini.masks import row_mask
from tipmini.methods.groups import CHANNELS, HEADS, Family, find_families
from tipmini_lab import paths
from tipmini_lab.book import performance
from tipmini_lab.book import pruning_costs as costs
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile

WAYS = (costs.DENSE, costs.ROWS, costs.TWO_OF_FOUR, costs.CSR, costs.SPARSER, costs.GROUPS)
FAMILIES = [Family("a", 0, HEADS, 4, 9, ()), Family("b", 0, CHANNELS, 10, 3, ())]


def test_agreement_by_hand():
    ranks = {"a": [1, 2, 3, 4], "b": list(range(10))}
    other = {"a": [1, 3, 2, 4], "b": [9 - i for i in range(10)]}
    scores = {
        name: {n: torch.tensor(v, dtype=torch.float32) for n, v in found.items()}
        for name, found in (("vanilla", ranks), ("lora-guided", other))
    }
    heads, channels = pruning_cost.compared(FAMILIES, scores, 0.5)
    assert (heads["groups"], heads["removed"], heads["same"], heads["both"]) == (4, 2, 0.5, 0.5)
    assert heads["chance_same"] == heads["chance_both"] == 0.5
    assert (channels["removed"], channels["same"], channels["both"]) == (5, 0.0, 0.0)
    heads, channels = pruning_cost.compared(FAMILIES, scores, 0.2)
    assert (heads["removed"], heads["both"], heads["same"]) == (0, None, 1.0)
    assert channels["same"] == pytest.approx(0.6)
    assert channels["chance_same"] == pytest.approx(0.2**2 + 0.8**2)


@pytest.mark.parametrize("share", pruning_cost.SHARES)
def test_chance_is_what_random_masks_agree_on(share):
    family = [Family("b", 0, CHANNELS, 200, 3, ())]
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(50):
        scores = {m: {"b": torch.rand(200, generator=generator)} for m in ("one", "two")}
        found += pruning_cost.compared(family, scores, share)
    mean = sum(entry["same"] for entry in found) / len(found)
    assert mean == pytest.approx(found[0]["chance_same"], abs=0.02)


def test_the_loudest_channel_is_found_and_ranked():
    """One row of gate made large makes its channel loud; small weights elsewhere make it light."""
    model = prunable.model("grouped")
    families = find_families(model)
    with torch.no_grad():
        for layer in model.model.layers:
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.mul_(0.01)
                part.weight[2] = 5.0
    tokens = torch.arange(12)[None]
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    for entry in pruning_cost.find_loudest(model, families, [batch]):
        assert entry["times"] > 2 and entry["lighter"] == 23 / 24
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(1000)
            layer.mlp.down_proj.weight[:, 2] = 0
    quiet = pruning_cost.find_loudest(model, families, [batch])
    assert [entry["layer"] for entry in quiet] == [0, 1, 2]
    assert all(entry["times"] > 2 and entry["lighter"] == 0 for entry in quiet)


@pytest.fixture
def lab(tiny, tokenizer, tmp_path, monkeypatch):
    folder = prunable.embed(monkeypatch, tmp_path, tiny, tokenizer)
    monkeypatch.setattr(pruning, "keep_memory", lambda: None)
    monkeypatch.setattr(timing, "in_new_process", lambda work, *given: work(*given))
    monkeypatch.setattr(Lab, "tokenizer", tokenizer)
    made = {"name": "tiny", "description": "tiny", "results": str(tmp_path / "results")}
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    prunable.with_lora(model).save_pretrained(tmp_path / "rte")
    adapted = {"tasks": ("rte",), "adapters": str(tmp_path / "{task}")}
    return Lab(Profile(**made, **adapted, dtype="float32"))


def test_all_of_it_on_a_tiny_model(lab):
    sizes = {"length": 40, "repeats": 1, "rows": 3, "profiled": 2, "profiles": 1, "rounds": 2}
    sizes |= {"batches": (1, 2), "prompt": 8, "shares": (0.0, 0.5), "rank": 2, "seeds": 2}
    stored = {name: {"made": {}} | part(lab, **sizes) for name, part in pruning.PARTS.items()}
    found = costs.of(stored)
    cost, agreement = found["criteria"]["cost"], found["masks"]["agreement"]
    assert set(cost) == set(pruning_cost.SIDES)
    plain, int8 = (cost[name]["model_bytes"] for name in ("lora-guided", "lora-guided int8"))
    assert int8 < plain == cost["vanilla"]["model_bytes"]
    assert all(entry["rows_a_second"] > 0 for entry in cost.values())
    kinds = {(e["kind"], e["share"], e["seed"], e["reduction"]) for e in agreement}
    assert len(kinds) == len(agreement) == 2 * len(pruning_cost.SHARES) * 2 * 2
    inference = found["inference"]["inference"]
    assert len(inference) == 2 * 2 * 2
    assert all(len(entry["seconds"]) == 2 for entry in inference)
    assert {round(e["removed"], 1) for e in inference} == {0.0, 0.5}
    steps, passes = found["profile"]["steps"], found["profile"]["passes"]
    spared = {n: own["parts"][costs.WEIGHTS] for n, own in steps.items()}
    assert spared["vanilla"] > 0 == spared["lora-guided"]
    assert all(own["parts"][costs.IMPORTANCES] > 0 for own in steps.values())
    assert [round(e["removed"], 1) for e in passes] == [0.0, 0.5]
    assert all(e["parts"][costs.ATTENTION] > 0 for e in passes)
    assert [entry["layer"] for entry in found["masks"]["loudest"]] == [0, 1]
    told = pruning.report(found)
    assert "part of a step" in told and "50%, merged" in told and "removed by both" in told


def test_zeros_on_a_tiny_model(lab):
    """Half of the elements are zero before an adapter is merged, none after."""
    zeros = pruning.zeros(lab, rounds=2, prompt=8)
    assert {(e["way"], e["tokens"]) for e in zeros["passes"]} == {
        (way, tokens) for way in WAYS for tokens in (8, 1)
    }
    shares = {e["way"]: e["zeros"] for e in zeros["passes"]}
    assert shares[costs.DENSE] == shares[costs.GROUPS] == 0
    assert shares[costs.ROWS] == shares[costs.TWO_OF_FOUR] == shares[costs.CSR] == 0.5
    assert {(e["way"], e["before"], e["after"], e["of_delta"]) for e in zeros["merged"]} == {
        (way, 0.5, 0.0, 0.0) for way in (costs.ROWS, costs.TWO_OF_FOUR)
    }


def test_sparse_rows_compute_what_the_matrix_does():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weight = weight * row_mask(weight.abs(), 0.5)
    x = torch.arange(60.0).view(2, 3, 10)
    sparse = pruning_zeros.SparseRows(weight)
    assert torch.allclose(sparse(x), x @ weight.T, atol=1e-4)  # of sums that nearly cancel
    assert sparse.nbytes == 30 * (4 + 8) + 7 * 8  # values and columns, and where rows end


def test_only_what_a_delta_leaves_at_zero_stays_zero(tmp_path, tokenizer):
    """B with one row of zeros: of q's half zeros the part of that row stays, of v's none."""
    prunable.save_model(tmp_path / "model", tokenizer)
    drawn = torch.Generator().manual_seed(0)
    rows = {"q_proj": 32, "v_proj": 16}
    pairs = {
        f"model.layers.0.self_attn.{part}": tm.LoraFactors(
            torch.randn(2, 32, generator=drawn), torch.randn(d, 2, generator=drawn), 1.0
        )
        for part, d in rows.items()
    }
    pairs["model.layers.0.self_attn.q_proj"].b[0] = 0
    tm.LoraAdapter(pairs).save(tmp_path / "adapter")
    found = pruning_zeros.merged(tmp_path / "model", {"one": tmp_path / "adapter"})
    assert [e["before"] for e in found] == [0.5, 0.5]
    assert [e["after"] for e in found] == [16 / (48 * 32)] * 2
    assert [e["of_delta"] for e in found] == [32 / (48 * 32)] * 2


OPERANDS = pruning.Operands(frozenset({(20, 12)}), vocabulary=99, rank=2)


@pytest.mark.parametrize(
    ("name", "operands", "part"),
    [
        ("aten::mm", [[7, 12], [12, 20]], costs.PRODUCTS),  # x W^T, tokens first
        ("aten::mm", [[7, 20], [20, 12]], costs.PRODUCTS),  # dL/dy W
        ("aten::mm", [[20, 7], [7, 12]], costs.WEIGHTS),  # dL/dW
        ("aten::mm", [[12, 7], [7, 20]], costs.WEIGHTS),  # its transpose
        ("aten::mm", [[7, 12], [12, 2]], costs.FACTORS),
        ("aten::addmm_", [[7, 20], [7, 2], [2, 20], [], []], costs.FACTORS),
        ("aten::mm", [[7, 12], [12, 99]], costs.HEAD),
        ("aten::_log_softmax", [[7, 99], [], []], costs.HEAD),
        ("aten::_softmax", [[1, 3, 7, 7], [], []], costs.ATTENTION),
        ("aten::add", [[1, 3, 7, 7], [1, 1, 7, 7], []], costs.ATTENTION),
        ("aten::copy_", [[1, 3, 3, 7, 4], [1, 3, 3, 7, 4]], costs.ATTENTION),
        ("LowRankSumBackward", [], costs.FACTORS),
        ("aten::_to_copy", [[2, 12], []], costs.FACTORS),
        ("aten::_scaled_dot_product_flash", [[1, 3, 7, 4]] * 3, costs.ATTENTION),
        ("aten::bmm", [[3, 7, 4], [3, 4, 7]], costs.ATTENTION),
        ("aten::add_", [[20, 12], [20, 12], []], costs.ADDING),
        ("aten::add_", [[7, 12], [7, 12], []], costs.REST),
        ("aten::mul", [[1, 7, 12], [12]], costs.REST),
        ("torch::autograd::AccumulateGrad", [], costs.REST),
    ],
)
def test_every_operation_of_a_step_has_its_part(name, operands, part):
    assert OPERANDS.part(name, operands) == part


@pytest.mark.parametrize(("tokens", "apart"), [(24, True), (20, False), (5, True), (12, False)])
def test_a_row_as_long_as_a_weight_is_not_profiled(tokens, apart, monkeypatch):
    """A product of (20, 12) by (12, 12) would be taken for a gradient of the (20, 12) weight."""
    monkeypatch.setattr(pruning, "padded", lambda row: row)
    assert OPERANDS.part("aten::mm", [[20, 12], [12, 12]]) == costs.WEIGHTS
    assert OPERANDS.tells_apart(tokens) is apart


def test_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "pruning"])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2
    assert "no part 'pruning': one of limits, " in capsys.readouterr().err


def test_parts_measured_before_stay_and_old_keys_go(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BENCH", tmp_path / "bench.json")
    monkeypatch.setitem(__main__.PARTS, "limits", lambda lab: {"bandwidth": lab})
    paths.BENCH.write_text(json.dumps({"date": "of old", "merging": {"whole": 1}}))
    found = __main__.measured(3, ["limits"])
    assert found == json.loads(paths.BENCH.read_text())
    assert found["merging"] == {"whole": 1} and set(found) == {"limits", "merging"}
    assert found["limits"]["bandwidth"] == 3 and found["limits"]["made"]["threads"]
    with pytest.raises(TipminiError, match="evaluation, calibration not measured; run python -m"):
        performance.read()
