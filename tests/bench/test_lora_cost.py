"""LoRA's costs on a tiny model: every way computes what it should, and bytes are counted right."""

import pytest
import torch
from labs import llama, save_adapter

from bench import lora_cost
from bench.serving import prompts

BASE = llama(vocabulary=64)
TOKENS = prompts(BASE, 3, 5)


@pytest.fixture(scope="module")
def ways() -> dict[str, torch.nn.Module]:
    return lora_cost.served(llama(vocabulary=64))


def test_a_pass_gives_the_models_own_last_logits(ways):
    expected = BASE(TOKENS).logits[:, -1].detach()
    assert list(ways) == ["base", "merged", "lora", *lora_cost.RIVALS]
    for way, of in ways.items():
        found = lora_cost.one_pass(of, TOKENS)
        if way in ("prefix", "prompt"):  # random before they are trained
            assert not torch.allclose(found, expected, atol=1e-2)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_merged_lora_has_no_module_more(ways):
    count = {way: sum(1 for _ in of.modules()) for way, of in ways.items()}
    assert count["merged"] == count["base"] < count["lora"]
    assert all(count[way] > count["base"] for way in ("adapter-h", "adapter-l", "adapter-p"))
    own = {p.data_ptr() for p in ways["base"].parameters()}
    beside = {p.data_ptr() for p in ways["adapter-h"].parameters()}
    assert own <= beside  # the weights are shared


def test_every_way_is_timed_at_every_point():
    found = lora_cost.latencies(llama(vocabulary=64), points=((1, 1), (2, 3)), rounds=2)
    places = [(p["batch"], p["length"]) for p in found]
    assert places == [(1, 1)] * 9 + [(2, 3)] * 9
    assert all(len(p["seconds"]) == 2 and min(p["seconds"]) > 0 for p in found)


def test_switching_ends_at_the_weights_within_rounding(tmp_path):
    folders = {n: save_adapter(tmp_path / n, seed) for seed, n in enumerate(("one", "other"))}
    loaded = []

    def load() -> torch.nn.Module:
        loaded.append(llama())
        return loaded[-1]

    found = lora_cost.switching(load, folders, rounds=2)
    assert list(found["seconds"]) == [
        *("BA swapped in the weights", "BA swapped beside the weights", "whole model read")
    ]
    assert all(len(taken) == 2 for taken in found["seconds"].values())
    assert 0 < found["moved"] < 1  # float32 rounds
    named = dict(loaded[0].named_parameters())
    assert all(
        torch.allclose(p, named[n.replace("proj.", "proj.base_layer.")], atol=1e-5)
        for n, p in llama().named_parameters()
        if n.endswith(("q_proj.weight", "v_proj.weight"))
    )


def test_a_steps_bytes_are_those_of_what_is_trained(place):
    full, ours = (lora_cost.step_memory(way, 4) for way in ("full", "lora"))
    assert full["gradients"] == 4 * full["trained"] and full["moments"] == 8 * full["trained"]
    assert ours["moments"] == 8 * ours["trained"] < full["moments"]
    assert ours["weights"] - full["weights"] == 4 * ours["trained"]  # A and B are beside
    assert full["risen"] is None or full["risen"] > 0
