import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    ADAPTERS,
    MODULES,
    WEIGHTS,
    peft_factors,
    peft_llama,
    random_adapter,
    saved,
    true_sum,
)

import tipmini as tm
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors

PEFT_CASES = {
    "plain": {"a": {}, "b": {}, "c": {}},
    "other scalings": {"a": {"lora_alpha": 3}, "b": {"use_rslora": True}, "c": {}},
    "other modules": {
        "a": {"target_modules": ["q_proj"]},
        "b": {},
        "c": {"layers_to_transform": [1]},
    },
}
PEFT_WEIGHTS = [(1.0, 1.0, 1.0), (0.5, -1.0, 0.3), (1.0, 0.0, 2.0)]


@pytest.mark.parametrize("weights", PEFT_WEIGHTS)
@pytest.mark.parametrize("arguments", PEFT_CASES.values(), ids=PEFT_CASES)
@pytest.mark.parametrize("method", ["linear", "cat"])
def test_linear_and_cat_are_pefts_to_the_last_bit(tmp_path, method, arguments, weights):
    model = peft_llama(**arguments)
    model.add_weighted_adapter(list("abc"), list(weights), "merged", combination_type=method)
    merged = tm.merge(list(saved(model, tmp_path).values()), method, weights=weights)
    theirs = peft_factors(model, "merged")
    assert merged.modules == list(theirs) and set(merged.scaling.values()) == {1.0}
    for module, (a, b) in theirs.items():
        rank = merged.ranks[module]  # PEFT fills up with zeros what an absent adapter leaves
        assert torch.equal(merged.factors[module].a, a[:rank]) and not a[rank:].any()
        assert torch.equal(merged.factors[module].b, b[:, :rank]) and not b[:, rank:].any()


@pytest.mark.parametrize("rank", [None, 2, 9])
@pytest.mark.parametrize("arguments", PEFT_CASES.values(), ids=PEFT_CASES)
def test_svd_is_pefts(tmp_path, arguments, rank):
    """The products: singular vectors have no sign of their own."""
    model, weights = peft_llama(**arguments), [0.5, -1.0, 0.3]
    model.add_weighted_adapter(list("abc"), weights, "merged", "svd", svd_rank=rank)
    merged = tm.merge(list(saved(model, tmp_path).values()), "svd", weights=weights, rank=rank)
    for module, (a, b) in peft_factors(model, "merged").items():
        torch.testing.assert_close(merged.delta(module), b @ a, rtol=1e-4, atol=1e-5)


def test_linear_worked_by_hand():
    """Two rank-1 adapters on one weight, shares 4 and -1: the cross terms stand out."""
    one = LoraAdapter({"m": LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]]), 2.0)})
    two = LoraAdapter({"m": LoraFactors(torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0]]), 0.5)})
    linear = tm.merge([one, two], "linear", weights=[2, -2]).factors["m"]
    assert linear.a.tolist() == [[2.0, -3.0]] and linear.b.tolist() == [[7.0]]
    cat = tm.merge([one, two], "cat", weights=[2, -2])
    assert cat.delta("m").tolist() == [[4.0, -15.0]]  # linear: [14, -21]


@given(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3))
def test_cat_is_the_sum_of_the_deltas(weights):
    named = dict(zip(ADAPTERS, weights, strict=True))
    merged = tm.merge(ADAPTERS, "cat", weights=named)
    for module in MODULES:
        exact = true_sum(ADAPTERS, named, module)
        torch.testing.assert_close(merged.delta(module).double(), exact, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 14))
def test_svd_is_the_exact_sum_cut_to_a_rank(rank):
    merged = tm.merge(ADAPTERS, "svd", weights=WEIGHTS, rank=rank)
    for module in MODULES:
        u, s, vh = torch.linalg.svd(true_sum(ADAPTERS, WEIGHTS, module), full_matrices=False)
        cut = u[:, :rank] * s[:rank] @ vh[:rank]
        assert merged.ranks[module] == min(rank, 12)  # three adapters of rank 4
        torch.testing.assert_close(merged.delta(module).double(), cut, rtol=1e-4, atol=1e-4)


def test_unequal_ranks_are_for_cat_and_svd():
    adapters = {"four": random_adapter(0), "two": random_adapter(1, rank=2)}
    assert set(tm.merge(adapters, "cat").ranks.values()) == {6}
    assert set(tm.merge(adapters, "svd").ranks.values()) == {4}
    lower = [random_adapter(1, rank=2), random_adapter(2, rank=3)]  # the largest of them by default
    assert set(tm.merge(lower, "svd").ranks.values()) == {3}
    assert set(tm.merge(lower, "magnitude", on="delta").ranks.values()) == {3}
    dense = tm.merge(adapters, "magnitude", on="delta", sparsity=0.0, rank=6)
    expected = true_sum(adapters, {"four": 1, "two": 1}, MODULES[0])
    torch.testing.assert_close(dense.delta(MODULES[0]).double(), expected, rtol=1e-4, atol=1e-4)


def test_summations_of_changed_tensors_are_those_of_the_unchanged():
    """Nothing pruned: what is left is the way of adding up."""
    for summation in ("linear", "cat", "svd"):
        options = {"summation": summation} | ({"rank": 3} if summation == "svd" else {})
        kept = tm.merge(ADAPTERS, "magnitude", sparsity=0, weights=WEIGHTS, **options)
        rank = {"rank": 3} if summation == "svd" else {}
        plain = tm.merge(ADAPTERS, summation, weights=WEIGHTS, **rank)
        for module in MODULES:
            assert torch.equal(kept.delta(module), plain.delta(module))


def test_a_dense_update_is_cut_only_by_merge():
    options = {"on": "delta", "sparsity": 0.0, "rank": 2}
    parts, update = tm.merge_update(ADAPTERS, "magnitude", weights=WEIGHTS, **options)
    merged = tm.merge(ADAPTERS, "magnitude", weights=WEIGHTS, **options)
    assert [part.name for part in parts] == list(ADAPTERS) and list(update) == MODULES
    for module in MODULES:
        exact = true_sum(ADAPTERS, WEIGHTS, module)
        torch.testing.assert_close(update[module].double(), exact, rtol=1e-4, atol=1e-4)
        assert merged.ranks[module] == 2
        assert torch.linalg.matrix_rank(exact) > 2
