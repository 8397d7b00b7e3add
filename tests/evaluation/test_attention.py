"""Attention against torch's own, in float64, and inside a model against its own attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labs import llama
from torch.nn import functional

from tipmini_lab.evaluation import llama as flat
from tipmini_lab.evaluation.llama import NAME, additive, attend


def inputs(batch, groups, shared, length, past, size=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)  # noqa: E731
    query = normal(batch, groups * shared, length, size)
    return query, *(normal(batch, groups, past + length, size) for _ in range(2))


def theirs(query, key, value, allowed):
    return functional.scaled_dot_product_attention(query, key, value, allowed, enable_gqa=True)


@pytest.mark.parametrize("past", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_causal(monkeypatch, length, past, block):
    monkeypatch.setattr(flat, "BLOCK", block)
    query, key, value = inputs(2, 3, 2, length, past)
    allowed = torch.ones(length, past + length, dtype=torch.bool).tril(past)
    found = attend(query, key, value, None, 0.5)
    torch.testing.assert_close(found, theirs(query, key, value, allowed))


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_any_mask_that_looks_back(length, block, seed):
    query, key, value = inputs(1, 2, 1, length, 0)
    draw = torch.Generator().manual_seed(seed)
    allowed = torch.rand(length, length, generator=draw) < 0.5
    allowed = allowed.tril() | torch.eye(length, dtype=torch.bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "BLOCK", block)
        found = attend(query, key, value, additive(allowed, query.dtype)[None, None], 0.5)
    torch.testing.assert_close(found, theirs(query, key, value, allowed))


def test_a_model_with_it_computes_and_generates_what_it_did():
    """With left padding, as generation pads."""
    model = llama(vocabulary=64)
    tokens = torch.tensor([[0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])

    def run():
        logits = model(tokens, attention_mask=mask).logits[mask.bool()]
        settings = {
            "max_new_tokens": 8,
            "do_sample": False,
            "pad_token_id": 0,
            "eos_token_id": None,
        }
        return logits, model.generate(tokens, attention_mask=mask, **settings)

    before = run()
    model.set_attn_implementation(NAME)
    after = run()
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(after[1], before[1])
