import itertools
import math

import peft.utils.merge_utils as peft_merge
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ADAPTERS, MODULES, WEIGHTS, bits, peft_factors, peft_llama, saved, whole_adapter

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter
from tipmini.papers.dare import named_generator

# DARE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["factors", "delta"])
def test_dare_is_pefts_dare_linear_with_our_masks(tmp_path, monkeypatch, on):
    model = peft_llama(a={}, b={"lora_alpha": 3})
    adapters = saved(model, tmp_path, "ab")

    def masks():
        names = ["lora_A", "lora_B"] if on == "factors" else [""]
        for module, factor, name in itertools.product(MODULES, names, adapters):
            generator = named_generator(5, name, f"{module}.{factor}".rstrip("."))
            a, b = adapters[name].factors[module].a, adapters[name].factors[module].b
            shape = {"lora_A": a.shape, "lora_B": b.shape, "": (len(b), a.shape[1])}[factor]
            yield (torch.rand(shape, generator=generator) >= 0.75).float()

    queue = masks()
    monkeypatch.setattr(peft_merge.torch, "bernoulli", lambda *_, **__: next(queue))
    kind = "dare_linear" if on == "factors" else "dare_linear_svd"
    model.add_weighted_adapter(["a", "b"], [1.0, -0.5], "merged", kind, density=0.25)
    options = {"drop_rate": 0.75, "seed": 5, "on": on}
    merged = tm.merge(adapters, "dare", weights={"a": 1.0, "b": -0.5}, **options)
    for module, (a, b) in peft_factors(model, "merged").items():
        if on == "factors":
            assert torch.equal(merged.factors[module].a, a)
            assert torch.equal(merged.factors[module].b, b)
        else:
            torch.testing.assert_close(merged.delta(module), b @ a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rescale", ["expected", "l1", None])
@pytest.mark.parametrize("on", ["factors", "delta"])
def test_dare_is_the_weighted_sum_of_what_dare_leaves(on, rescale):
    _, update = tm.merge_update(
        ADAPTERS, "dare", weights=WEIGHTS, on=on, rescale=rescale, drop_rate=0.4, seed=9
    )
    for module in MODULES:
        expected = [0.0, 0.0]
        for name, adapter in ADAPTERS.items():
            pair, weight = adapter.factors[module], WEIGHTS[name]
            root = math.sqrt(abs(weight) * pair.scaling)
            tensors = {"lora_A": (pair.a, math.copysign(root, weight)), "lora_B": (pair.b, root)}
            tensors = tensors if on == "factors" else {"": (pair.delta(), weight)}
            for i, (factor, (tensor, share)) in enumerate(tensors.items()):
                generator = named_generator(9, name, f"{module}.{factor}".rstrip("."))
                left = tm.dare(tensor.double(), 0.4, generator=generator, rescale=rescale)
                expected[i] = expected[i] + share * left
        merged = update[module]
        got = [merged] if on == "delta" else [merged.a, merged.b]
        for tensor, slow in zip(got, expected, strict=False):
            torch.testing.assert_close(tensor.double(), slow, rtol=1e-4, atol=1e-5)


def test_dare_depends_on_seed_and_names_alone():
    reference = bits(tm.merge(ADAPTERS, "dare", seed=3))
    assert bits(tm.merge(ADAPTERS, "dare", seed=3)) == reference
    assert bits(tm.merge(ADAPTERS, "dare", seed=4)) != reference
    renamed = {name + "x": adapter for name, adapter in ADAPTERS.items()}
    assert bits(tm.merge(renamed, "dare", seed=3)) != reference


def test_an_adapter_draws_the_same_beside_any_other():
    """With cat, each adapter's own rows can be read off."""
    alone = tm.merge({"coqa": ADAPTERS["coqa"]}, "dare", summation="cat")
    beside = tm.merge(ADAPTERS, "dare", summation="cat")
    for module in MODULES:  # boolq's four rows, coqa's four, piqa's four
        assert torch.equal(beside.factors[module].a[4:8], alone.factors[module].a)


def test_dare_on_average_is_linear():
    target = tm.merge(ADAPTERS, "linear").factors[MODULES[0]].a
    one_module = {n: LoraAdapter({MODULES[0]: a.factors[MODULES[0]]}) for n, a in ADAPTERS.items()}
    draws = [
        tm.merge(one_module, "dare", drop_rate=0.3, seed=s).factors[MODULES[0]].a
        for s in range(400)
    ]
    spread = torch.stack(draws).std(0) / math.sqrt(len(draws))
    assert ((torch.stack(draws).mean(0) - target).abs() <= 6 * spread + 1e-6).all()


# Magnitude -------------------------------------------------------------------------------------


def slow_magnitude(tensor: torch.Tensor, sparsity: float, group: str) -> torch.Tensor:
    """The smallest floor(n S) of every group to 0, the first of equals first."""
    rows = tensor.reshape(1, -1) if group == "matrix" else tensor
    kept = []
    for row in rows.tolist():
        order = sorted(range(len(row)), key=lambda j: (abs(row[j]), j))
        gone = set(order[: math.floor(len(row) * sparsity)])
        kept.append([0.0 if j in gone else value for j, value in enumerate(row)])
    return torch.tensor(kept, dtype=torch.float64).view(tensor.shape)


@given(
    st.sampled_from([0.0, 0.25, 0.3, 0.7, 1.0]),
    st.sampled_from(["row", "matrix"]),
    st.sampled_from(["factors", "delta"]),
)
def test_magnitude_is_the_slow_one(sparsity, group, on):
    pair = {"one": whole_adapter(1), "two": whole_adapter(2)}
    weights = {"one": 2.0, "two": -0.5}
    _, update = tm.merge_update(
        pair, "magnitude", weights=weights, sparsity=sparsity, group=group, on=on
    )
    for module, merged in update.items():
        own = [(adapter.factors[module], weights[name]) for name, adapter in pair.items()]
        if on == "delta":
            slow = sum(w * slow_magnitude(f.delta(), sparsity, group) for f, w in own)
            torch.testing.assert_close(merged, slow)
            continue
        a = sum(
            math.copysign(abs(2 * w) ** 0.5, w) * slow_magnitude(f.a, sparsity, group)
            for f, w in own
        )
        b = sum(abs(2 * w) ** 0.5 * slow_magnitude(f.b, sparsity, group) for f, w in own)
        torch.testing.assert_close(merged.a, a)
        torch.testing.assert_close(merged.b, b)


def test_peft_prunes_one_more_where_the_share_is_not_whole():
    adapter = whole_adapter(1)
    a = adapter.factors["layers.0.q"].a + torch.rand(3, 10, dtype=torch.float64) / 9  # no ties
    theirs = peft_merge.magnitude_based_pruning(a, 0.25)
    assert (theirs != 0).sum() == 7 and (slow_magnitude(a, 0.75, "matrix") != 0).sum() == 8


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dare", {"drop_rate": 1.0}, r"drop_rate must be a number in \[0, 1\), got 1.0"),
        ("dare", {"drop_rate": "half"}, r"drop_rate must be a number in \[0, 1\), got 'half'"),
        ("dare", {"rescale": True}, "rescale must be 'expected', 'l1' or None, got True"),
        ("magnitude", {"sparsity": -0.1}, r"sparsity must lie in \[0, 1\], got -0.1"),
        ("magnitude", {"sparsity": True}, r"sparsity must lie in \[0, 1\], got True"),
        ("magnitude", {"group": "block"}, "group must be one of row, matrix, got 'block'"),
    ],
)
def test_what_there_is_not_is_refused_at_once(method, options, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge_update(ADAPTERS, method, **options)
