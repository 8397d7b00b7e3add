"""Results that no checkpoint can hold: whole or not there, and what they stand for is masked."""

import prunable
import pytest
import torch
from kills import Killed
from prunable import SMALL, outcome, prune
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tipmini as tm
from tipmini.methods.groups import find_families
from tipmini.methods.pruner import load_masks, masked
from tipmini_lab.experiments import pruning
from tipmini_lab.experiments.pruning import Run
from tipmini_lab.experiments.recipe import PruningRecipe

pytestmark = pytest.mark.usefixtures("small_runs")

LAYERS_DIFFER = {"one layer exempt": {"exempt_first": 0.5}, "one p": {"threshold": "global"}}
WAYS = LAYERS_DIFFER | {"in 8 bits": {"threshold": "global", "int8": True}}


def made(base, tmp_path, **settings):
    """A folder, and what the model computed before it was written."""
    one = Run(base, PruningRecipe(**SMALL | settings), tmp_path / "out", "float32")
    out = one.run()
    assert not (out / "config.json").exists()
    with masked(one.model, one.pruner.masks):
        return out, prunable.logits(one.model)


@pytest.mark.parametrize("way", WAYS)
def test_masks_and_adapter_say_what_the_masked_model_did(base, tmp_path, way):
    from peft import PeftModel

    out, expected = made(base, tmp_path, **WAYS[way])
    named = tm.load_adapter(out / "adapter").base_model
    whole = AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
    worn = PeftModel.from_pretrained(whole, out / "adapter")
    masks = load_masks(out / "masks.safetensors")
    with masked(worn, masks):
        torch.testing.assert_close(prunable.logits(worn), expected, rtol=1e-4, atol=1e-4)
    if way == "one layer exempt":
        assert (
            outcome(out)[1]["kept"]["model.layers.0.mlp"] == 24 == len(masks["model.layers.0.mlp"])
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("biases", [False, True])
def test_what_is_loaded_is_masked_for_good(base, tokenizer, tmp_path, way, biases):
    if biases:
        base = prunable.save_model(tmp_path / "b", tokenizer, attention_bias=True, mlp_bias=True)
    out, expected = made(base, tmp_path, **WAYS[way])
    loaded = pruning.load(out, "float32")
    torch.testing.assert_close(prunable.logits(loaded), expected, rtol=1e-4, atol=1e-4)
    masks = load_masks(out / "masks.safetensors")
    for family in find_families(loaded):
        rows = loaded.get_submodule(family.members[0].module).weight
        zero = (rows.view(family.count, -1) == 0).all(1)
        assert zero.tolist() == (~masks[family.name]).tolist()
    assert {p.dtype for p in pruning.load(out, "bfloat16").parameters()} == {torch.bfloat16}


def test_in_8_bits_the_adapters_base_is_what_it_was_trained_on(base, tmp_path):
    out, _ = made(base, tmp_path, **WAYS["in 8 bits"])
    assert tm.load_adapter(out / "adapter").base_model == str(out / "base")
    stored, own = (load_file(f / "model.safetensors") for f in (out / "base", base))
    read = pruning.as_trained("float32")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(stored[name], read(own[name])) and not torch.equal(stored[name], own[name])
    assert torch.equal(stored["model.embed_tokens.weight"], own["model.embed_tokens.weight"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", ["nothing", "the base", "the adapter", "the masks"])
def test_a_kill_between_files_leaves_nothing_and_can_be_made_good(
    base, tmp_path, monkeypatch, way, after
):
    def killed(*given, **named):
        raise Killed

    place = {
        "nothing": (pruning.tempfile, "TemporaryDirectory"),
        "the base": (tm.LoraAdapter, "save"),
        "the adapter": (pruning, "save_masks"),
        "the masks": (pruning.Path, "replace"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*place[after], killed)
        with pytest.raises(Killed):
            prune(base, tmp_path / "out", **WAYS[way])
    assert not (tmp_path / "out").exists()
    again = outcome(prune(base, tmp_path / "out", **WAYS[way]))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert again == outcome(prune(base, tmp_path / "unbroken", **WAYS[way]))
