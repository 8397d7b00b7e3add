"""The decoder without padding, and attention, against transformers' and torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labs import llama as tiny
from labs import save_adapter
from torch.nn import functional

from tipmini_lab.evaluation import llama
from tipmini_lab.evaluation.evaluator import Resident
from tipmini_lab.evaluation.packing import flatten, pack

ROWS = {
    "plain rows": [pack([1, 2, 3, 4], []), pack([5], []), pack([6, 7], [])],
    "a tree": [pack([1, 2], [[3, 4, 5], [3, 6, 7], [8, 9]]), pack([4, 4, 4], [[1], [2]])],
}


def attended_as_torch_does(shape, block, scale=0.5, past=0, seed=None):
    """In float64; shape: batch, key heads, query heads for each, tokens. seed: of a random mask."""
    (batch, groups, shared, length), size = shape, 4
    draw = torch.Generator().manual_seed(seed or 0)
    normal = lambda *shape: torch.randn(shape, generator=draw, dtype=torch.float64)  # noqa: E731
    query = normal(batch, groups * shared, length, size)
    key, value = (normal(batch, groups, past + length, size) for _ in range(2))
    allowed, mask = torch.ones(length, past + length, dtype=torch.bool).tril(past), None
    if seed is not None:
        allowed &= (torch.rand(length, length, generator=draw) < 0.5) | torch.eye(length).bool()
        mask = llama.additive(allowed, query.dtype)[None, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "BLOCK", block)
        found = llama.attend(query, key, value, mask, scale)
    theirs = functional.scaled_dot_product_attention
    torch.testing.assert_close(found, theirs(query, key, value, allowed, enable_gqa=True))


@pytest.mark.parametrize("past", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_causal(length, past, block):
    attended_as_torch_does((2, 3, 2, length), block, past=past)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_any_mask_that_looks_back(length, block, seed):
    attended_as_torch_does((1, 2, 1, length), block, seed=seed)


def test_a_model_with_it_computes_and_generates_what_it_did():
    """With left padding, as generation pads."""
    model = tiny(vocabulary=64)
    tokens = torch.tensor([[0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    plain = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def run():
        logits = model(tokens, attention_mask=mask).logits[mask.bool()]
        return logits, model.generate(tokens, attention_mask=mask, **plain)

    before = run()
    model.set_attn_implementation(llama.NAME)
    after = run()
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(after[1], before[1])


def alone(model, row) -> torch.Tensor:
    """Every token's last hidden state, its own sequence run by itself."""
    states = []
    for index in range(len(row)):
        path = [index]
        while row.parents[path[0]] >= 0:
            path.insert(0, row.parents[path[0]])
        tokens = torch.tensor([[row.tokens[i] for i in path]])
        states.append(model.model(tokens).last_hidden_state[0, -1])
    return torch.stack(states)


@torch.no_grad()
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_hidden_states_are_those_of_each_sequence_alone(rows, adapted, tmp_path):
    """Every token is read, the last one twice."""
    model, flat = tiny(vocabulary=64), flatten(rows)
    flat.reads = torch.tensor([*range(len(flat.tokens)), len(flat.tokens) - 1])
    folder = save_adapter(tmp_path / "adapter", seed=1) if adapted else None
    bare = llama.hidden_states(model, flat)[:-1]
    with Resident(model).active(folder):
        *found, again = llama.hidden_states(model, flat)
        found = torch.stack(found)
        torch.testing.assert_close(again, found[-1])
        expected = torch.cat([alone(model, row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert adapted != torch.allclose(found, bare, atol=1e-3)


def test_other_architectures_are_left_to_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    assert llama.supports(tiny()) and not llama.supports(GPT2LMHeadModel(small))


PROMPTS = [[5, 6, 7, 8], [1], [9, 8, 7, 6, 5, 4, 3], [2, 2]]


def likeliest(model, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Greedy, the whole sequence anew for every token; and the smallest lead of a chosen one."""
    said: list[int] = []
    leads = []
    for _ in range(count):
        best, places = model(torch.tensor([prompt + said])).logits[0, -1].topk(2)
        said.append(int(places[0]))
        leads.append(float(best[0] - best[1]))
    return said, min(leads)


@torch.no_grad()
@pytest.mark.parametrize("adapted", [False, True])
def test_greedy_answers_are_the_likeliest_tokens(adapted, tmp_path):
    model = tiny(vocabulary=64)
    folder = save_adapter(tmp_path / "adapter", seed=1) if adapted else None
    with Resident(model).active(folder):
        found, leads = llama.greedy(model, PROMPTS, 9, lambda said: False)
        expected = [likeliest(model, prompt, 9) for prompt in PROMPTS]
    assert found == [said for said, _ in expected]
    assert leads == pytest.approx([lead for _, lead in expected], rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("ending", [[1, 2, 3, 4], [9, 1, 1, 1], [1, 1, 1, 1], [4, 4, 9, 4]])
def test_each_prompt_ends_by_itself_and_the_others_go_on(ending):
    """Whichever rows the cache forgets on the way."""
    model = tiny(vocabulary=64)
    alone = [likeliest(model, prompt, 9)[0] for prompt in PROMPTS]
    stops = {tuple(said[:count]) for said, count in zip(alone, ending, strict=True)}
    found, _ = llama.greedy(model, PROMPTS, 9, lambda said: tuple(said) in stops)
    assert found == [said[:count] for said, count in zip(alone, ending, strict=True)]


@torch.no_grad()
def test_of_equal_tokens_the_first_is_said(monkeypatch):
    """As transformers says it. Logits in bfloat16 are often equal, and topk takes any of them."""
    model = tiny(vocabulary=64)
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: torch.ones(len(hidden), 64))
    found, leads = llama.greedy(model, PROMPTS, 3, lambda said: False)
    assert found == [[0] * 3] * len(PROMPTS) and leads == [0.0] * len(PROMPTS)
