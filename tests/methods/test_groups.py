"""Groups found from models of many shapes, and how many of them a share takes."""

import prunable
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tipmini.errors import TipminiError
from tipmini.methods.groups import (
    CHANNELS,
    HEADS,
    exempt_layers,
    find_families,
    quotas,
    removed_share,
)


def of_config(**settings):
    with torch.device("meta"):
        return find_families(LlamaForCausalLM(LlamaConfig(**settings)))


SMOL = of_config(
    vocab_size=64,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
)
LLAMA_7B = of_config(vocab_size=64)  # LlamaConfig's own defaults


@pytest.mark.parametrize("shape", prunable.SHAPES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_families_cover_every_matrix_of_the_layers_once(shape, wrapped):
    model = prunable.model(shape)
    expected = {n: m for n, m in model.named_modules() if ".layers." in n and hasattr(m, "weight")}
    expected = {n: m for n, m in expected.items() if m.weight.ndim == 2}
    sizes = {name: module.weight.numel() for name, module in expected.items()}
    families = find_families(prunable.with_lora(model) if wrapped else model)
    assert sorted(m.module for f in families for m in f.members) == sorted(sizes)
    for family in families:
        assert family.weights == sum(sizes[m.module] for m in family.members)
    assert [f.layer for f in families] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("shape", "count", "queries"),
    [("grouped", 4, 2), ("every head its own", 8, 1), ("wide heads", 4, 2)],
)
def test_a_group_of_heads_is_a_key_value_head_with_its_queries(shape, count, queries):
    heads = find_families(prunable.model(shape))[0]
    assert (heads.kind, heads.count, heads.queries) == (HEADS, count, queries)
    assert [member.dim for member in heads.members] == [0, 0, 0, 1]


def test_other_models_are_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(TipminiError, match=r"^GPT2LMHeadModel: no layers found"):
        find_families(gpt2)
    broken = prunable.model()
    del broken.model.layers[1].mlp.up_proj
    with pytest.raises(TipminiError, match=r"^model\.layers\.1\.mlp: no gate_proj, up_proj"):
        find_families(broken)


# How many go --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("families", "share", "heads", "channels"),
    [
        (SMOL, 0.0, 0, 0),
        (SMOL, 0.2, 0, 409),  # a third of the heads would be more than a fifth
        (SMOL, 0.5, 1, 853),  # 6 of 9 query heads stay; channels fill up
        (SMOL, 0.7, 2, 1092),
        (LLAMA_7B, 0.5, 16, 5504),
        (LLAMA_7B, 0.2, 0, 3293),  # 26 heads stay in the paper, but 26 does not divide 4096
    ],
)
def test_quotas_of_real_shapes(families, share, heads, channels):
    hidden = 576 if families is SMOL else 4096
    counts = quotas(families, share, hidden_size=hidden)
    assert {counts[f.name] for f in families if f.kind == HEADS} == {heads}
    assert {counts[f.name] for f in families if f.kind == CHANNELS} == {channels}
    assert share - 5e-4 < removed_share(families, counts) <= share


def test_a_divisor_is_asked_for_only_where_a_checkpoint_is_written():
    counts = quotas(LLAMA_7B, 0.2)
    assert {counts[f.name] for f in LLAMA_7B if f.kind == HEADS} == {6}


@given(st.floats(0, 0.7), st.one_of(st.none(), st.floats(0, 0.7)))
def test_a_share_is_met_to_one_channel_and_never_exceeded(share, head_share):
    counts = quotas(SMOL, share, head_share=min(head_share, share) if head_share else None)
    one = SMOL[1].size / (SMOL[0].weights + SMOL[1].weights)
    assert -1e-9 <= share - removed_share(SMOL, counts) < one + 1e-9


def test_shares_of_each_kind():
    counts = quotas(SMOL, 0.5, head_share=0.7, channel_share=0.25)
    assert (counts[SMOL[0].name], counts[SMOL[1].name]) == (2, 384)
    assert set(quotas(SMOL, 0.5, head_share=0.0).values()) == {0, 1024}


def test_exempt_layers_lose_nothing():
    exempt = exempt_layers(30, 0.1, 1)
    assert exempt == {0, 1, 2, 29}
    counts = quotas(SMOL, 0.5, exempt=exempt)
    whole = {family.layer for family in SMOL if not counts[family.name]}
    assert whole == exempt
    assert exempt_layers(30) == set() and exempt_layers(9, 0.1) == set()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"share": 1.2}, r"share must lie in \[0, 1\], got 1.2"),
        ({"share": 1.0}, r"share 1: model\.layers\.\d+\.mlp would lose all 1536 channels"),
        ({"share": 0.5, "channel_share": 1.0}, "would lose all 1536"),
        ({"share": 0.5, "head_share": -0.1}, "head_share must lie in"),
        ({"share": 0.5, "channel_share": 2}, "channel_share must lie in"),
    ],
)
def test_shares_that_cannot_be_are_refused(given, line):
    with pytest.raises(TipminiError, match=line):
        quotas(SMOL, **given)
