"""A pruned checkpoint in stock transformers computes what the masked model does."""

import json

import prunable
import pytest
import torch
from transformers import AutoModelForCausalLM

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.groups import find_families
from tipmini.methods.pruner import masked
from tipmini.methods.removal import is_exportable, save_pruned
from tipmini.models.base_folder import open_base
from tipmini.models.int8 import rounded, to_int8
from tipmini_lab.experiments.training import by_module, named_factors

SHARDS = {"one file": "5GB", "shards": "10KB"}


def lay(folder, shape="grouped", shards="one file"):
    model = prunable.model(shape)
    model.save_pretrained(folder, max_shard_size=SHARDS[shards])
    return model


def factors(peft):
    return by_module({n: p.detach() for n, p in named_factors(peft).items()}, scaling=2.0)


@pytest.mark.parametrize("shape", prunable.SHAPES)
@pytest.mark.parametrize("heads", [0, 2])
def test_the_export_computes_what_the_masked_model_does(tmp_path, shape, heads):
    model = lay(tmp_path / "base", shape)
    heads = 4 if shape == "every head its own" and heads else heads
    families = find_families(model)
    masks = prunable.random_masks(families, heads, channels=7)
    peft = prunable.with_lora(model)
    with masked(peft, masks):
        expected = prunable.logits(peft)
    save_pruned(
        open_base(tmp_path / "base"), families, masks, tmp_path / "out", update=factors(peft)
    )

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(prunable.logits(loaded), expected, rtol=1e-4, atol=2e-5)
    assert type(loaded) is type(model)
    assert loaded.config.intermediate_size == 17
    assert loaded.config.num_key_value_heads == families[0].count - heads
    gone = sum(f.size * (heads if f.kind == "heads" else 7) for f in families)
    gone += sum(  # biases of rows
        p.numel() - loaded.get_parameter(n).numel()
        for n, p in prunable.model(shape).named_parameters()
        if n.endswith("bias")
    )
    before = sum(p.numel() for p in prunable.model(shape).parameters())
    assert sum(p.numel() for p in loaded.parameters()) == before - gone


@pytest.mark.parametrize("shards", SHARDS)
def test_weights_without_an_adapter_are_the_bases_own(tmp_path, shards):
    model = lay(tmp_path / "base", shards=shards)
    families = find_families(model)
    masks = prunable.random_masks(families, heads=2, channels=4)
    save_pruned(
        open_base(tmp_path / "base"),
        families,
        masks,
        tmp_path / "out",
        beside={"note.txt": b"kept"},
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    kept = masks["model.layers.1.mlp"]
    down, up = (model.model.layers[1].mlp.get_submodule(n).weight for n in ("down_proj", "up_proj"))
    assert torch.equal(loaded.model.layers[1].mlp.down_proj.weight, down[:, kept])
    assert torch.equal(loaded.model.layers[1].mlp.up_proj.weight, up[kept])
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert (tmp_path / "out" / "note.txt").read_bytes() == b"kept"


def test_int8_is_what_the_masked_int8_model_computes_with(tmp_path):
    model = lay(tmp_path / "base")
    families = find_families(model)
    masks = prunable.random_masks(families, heads=2, channels=4)
    peft = prunable.with_lora(to_int8(model))
    with masked(peft, masks):
        expected = prunable.logits(peft)
    base, update = open_base(tmp_path / "base"), factors(peft)
    save_pruned(base, families, masks, tmp_path / "out", update=update, read=rounded)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(prunable.logits(loaded), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("family", "kind"), [(2, "heads"), (3, "channels")])
def test_layers_of_different_shapes_are_refused(tmp_path, family, kind):
    model = lay(tmp_path / "base")
    families = find_families(model)
    masks = prunable.random_masks(families, heads=0, channels=0)
    masks[families[family].name][0] = False
    with pytest.raises(TipminiError, match=f"^{kind} differ: .*layers.1.* so keep the masks"):
        save_pruned(open_base(tmp_path / "base"), families, masks, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not is_exportable(model.config.to_dict(), families, masks)


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_that_transformers_would_refuse_are_refused(tmp_path, heads):
    """6 heads, and none."""
    families = find_families(lay(tmp_path / "base"))
    masks = prunable.random_masks(families, heads, channels=0)
    base = open_base(tmp_path / "base")
    with pytest.raises(TipminiError, match="transformers wants a divisor"):
        save_pruned(base, families, masks, tmp_path / "out")
    assert not is_exportable(base.config, families, masks)
    assert is_exportable(base.config, families, prunable.random_masks(families, 2, channels=3))


def test_the_configuration_says_what_is_left(tmp_path):
    families = find_families(lay(tmp_path / "base"))
    masks = prunable.random_masks(families, heads=2, channels=4)
    save_pruned(open_base(tmp_path / "base"), families, masks, tmp_path / "out")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "out")
    )
    changed = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20}
    assert after == before | changed | {"head_dim": 4}


def test_a_pruned_model_can_be_pruned_again(tmp_path):
    families = find_families(lay(tmp_path / "base"))
    masks = prunable.random_masks(families, heads=2, channels=4)
    save_pruned(open_base(tmp_path / "base"), families, masks, tmp_path / "once")
    smaller = find_families(AutoModelForCausalLM.from_pretrained(tmp_path / "once"))
    assert {(f.kind, f.count) for f in smaller} == {("heads", 2), ("channels", 20)}
    masks = prunable.random_masks(smaller, heads=1, channels=4)
    save_pruned(tm.open_base(tmp_path / "once"), smaller, masks, tmp_path / "twice")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "twice").config
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (2, 4, 16)
