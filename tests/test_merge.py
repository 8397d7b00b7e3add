import itertools
import math
import subprocess
import sys

import peft.utils.merge_utils as peft_merge
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from tiny import HIDDEN, LAYERS, MODULES, llama, peft_llama, random_adapter, random_norms, tokens

import tipmini as tm
from tipmini.adapter import LoraAdapter, LoraFactors
from tipmini.dare import named_generator
from tipmini.errors import TipminiError

METHODS = ["linear", "cat", "dare", "tip"]
ADAPTERS = {name: random_adapter(seed) for seed, name in enumerate(("boolq", "coqa", "piqa"))}
NORMS = {name: random_norms(ADAPTERS[name], seed) for seed, name in enumerate(ADAPTERS)}
WEIGHTS = {"boolq": 1.0, "coqa": -0.3, "piqa": 0.8}


def bits(adapter: LoraAdapter) -> dict[str, bytes]:
    return {
        f"{module}.{name}": factor.numpy().tobytes()
        for module in adapter.modules
        for name, factor in vars(adapter.factors[module]).items()
        if name != "scaling"
    }


def true_sum(adapters: dict, weights: dict, module: str) -> torch.Tensor:
    return sum(weights[n] * adapters[n].delta(module).double() for n in adapters)


# Against PEFT ----------------------------------------------------------------------------------

PEFT_CASES = {
    "plain": {"a": {}, "b": {}, "c": {}},
    "other scalings": {"a": {"lora_alpha": 3}, "b": {"use_rslora": True}, "c": {}},
    "other modules": {
        "a": {"target_modules": ["q_proj"]},
        "b": {},
        "c": {"layers_to_transform": [1]},
    },
}
PEFT_WEIGHTS = [(1.0, 1.0, 1.0), (0.5, -1.0, 0.3)]


def saved(model: PeftModel, folder, names: str = "abc") -> dict[str, LoraAdapter]:
    model.save_pretrained(folder)
    return {name: tm.load_adapter(folder / name) for name in names}


def peft_factors(model: PeftModel, adapter: str) -> dict:
    layers = model.get_base_model().named_modules()
    return {
        name: (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
        for name, layer in layers
        if adapter in getattr(layer, "lora_A", ())
    }


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


def test_dare_is_pefts_dare_linear_with_our_masks(tmp_path, monkeypatch):
    model = peft_llama(a={}, b={"lora_alpha": 3})
    adapters = saved(model, tmp_path, "ab")

    def masks():
        for module, factor in itertools.product(MODULES, "AB"):
            for name in adapters:
                generator = named_generator(5, name, f"{module}.lora_{factor}")
                shape = getattr(adapters[name].factors[module], factor.lower()).shape
                yield (torch.rand(shape, generator=generator) >= 0.75).float()

    queue = masks()
    monkeypatch.setattr(peft_merge.torch, "bernoulli", lambda *_, **__: next(queue))
    model.add_weighted_adapter(
        ["a", "b"], [1.0, -0.5], "merged", combination_type="dare_linear", density=0.25
    )
    merged = tm.merge(adapters, "dare", weights={"a": 1.0, "b": -0.5}, drop_rate=0.75, seed=5)
    for module, (a, b) in peft_factors(model, "merged").items():
        torch.testing.assert_close(merged.factors[module].a, a)
        torch.testing.assert_close(merged.factors[module].b, b)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_merged_runs_in_stock_peft(tmp_path, method):
    merged = tm.merge(ADAPTERS, method, norms=NORMS)
    merged.save(tmp_path / "merged")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "merged")
    by_hand = llama()
    with torch.no_grad():
        for module in merged.modules:
            by_hand.get_submodule(module).weight += merged.delta(module)
        ids = tokens(2, 9)
        expected = by_hand(ids).logits
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(llama()(ids).logits, expected, atol=1e-2)


# Linear and cat --------------------------------------------------------------------------------


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


def test_unequal_ranks_are_for_cat_alone():
    adapters = {"four": random_adapter(0), "two": random_adapter(1, rank=2)}
    assert set(tm.merge(adapters, "cat").ranks.values()) == {6}
    with pytest.raises(TipminiError, match=r"q_proj has 4 in four, 2 in two; try cat"):
        tm.merge(adapters, "linear")


def test_a_module_is_merged_from_those_that_have_it(tmp_path):
    q_only = random_adapter(0, modules=MODULES[::2])
    merged = tm.merge([q_only, random_adapter(1)], "cat")
    assert merged.modules == MODULES
    assert [merged.ranks[m] for m in MODULES[:2]] == [8, 4]
    merged.save(tmp_path / "out")  # rank_pattern at work
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "out")
    for module, (a, _) in peft_factors(loaded, "default").items():
        assert torch.equal(a, merged.factors[module].a)


# DARE ------------------------------------------------------------------------------------------


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


# TIP -------------------------------------------------------------------------------------------


def slow_prune(factor, norm, sparsity):
    """Eq. 1 and the mask, element by element."""
    rows = []
    for row in factor.tolist():
        score = [abs(w) * n for w, n in zip(row, norm.tolist(), strict=True)]
        order = sorted(range(len(row)), key=lambda j: (score[j], j))
        gone = set(order[: math.floor(len(row) * sparsity)])
        rows.append([0.0 if j in gone else w for j, w in enumerate(row)])
    return torch.tensor(rows, dtype=torch.float64)


def slow_sparsities(adapter, norms, base):
    """Eqs. 1-5 in plain Python, one importance a block."""
    importance = []
    for layer in range(LAYERS):
        scores = []
        for module in (m for m in MODULES if f".{layer}." in m):
            factors = adapter.factors[module]
            for factor, norm in (
                (factors.a, norms[module]),
                (factors.b, norms[f"{module}.lora_B"]),
            ):
                for row in factor.tolist():
                    scores += [abs(w) * n for w, n in zip(row, norm.tolist(), strict=True)]
        importance.append(sum(scores) / len(scores))
    low, high = min(importance), max(importance)
    normal = [(i - low) / (high - low) for i in importance]
    return [min(max(base + n - sum(normal) / LAYERS, 0.0), 1.0) for n in normal]


@pytest.mark.parametrize("base", [0.7, 0.3])
def test_tip_is_the_slow_one(base):
    merged = tm.merge(ADAPTERS, "tip", norms=NORMS, sparsity=base, weights=WEIGHTS)
    expected = {module: [0.0, 0.0] for module in MODULES}
    for name, adapter in ADAPTERS.items():
        sparsities = slow_sparsities(adapter, NORMS[name], base)
        fast = tm.tip_sparsities(adapter, NORMS[name], base)
        assert fast.dtype == torch.float64 and fast.tolist() == pytest.approx(sparsities, abs=1e-6)
        for module, sparsity in zip(MODULES, [s for s in sparsities for _ in "qv"], strict=True):
            share = WEIGHTS[name] * 2.0
            a, b = adapter.factors[module].a, adapter.factors[module].b
            pruned_a = slow_prune(a, NORMS[name][module], sparsity)
            pruned_b = slow_prune(b, NORMS[name][f"{module}.lora_B"], sparsity)
            expected[module][0] += math.copysign(abs(share) ** 0.5, share) * pruned_a
            expected[module][1] += abs(share) ** 0.5 * pruned_b
    for module in MODULES:
        factors = merged.factors[module]
        torch.testing.assert_close(factors.a.double(), expected[module][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(factors.b.double(), expected[module][1], rtol=1e-5, atol=1e-5)


def test_tip_prunes_every_row_at_its_layers_sparsity():
    adapter, norms = ADAPTERS["boolq"], NORMS["boolq"]
    pruned = tm.tip_prune(adapter, norms, 0.5)
    sparsities = tm.tip_sparsities(adapter, norms, 0.5).tolist()
    for modules, sparsity in zip(tm.tip_layers(adapter).values(), sparsities, strict=True):
        for module in modules:
            gone_a = (pruned.factors[module].a == 0).sum(1)
            gone_b = (pruned.factors[module].b == 0).sum(1)
            assert set(gone_a.tolist()) == {math.floor(HIDDEN * sparsity)}
            assert set(gone_b.tolist()) == {math.floor(4 * sparsity)}


def test_the_options_reach_layer_sparsity():
    adapter, norms = ADAPTERS["boolq"], NORMS["boolq"]
    options = {"sign": -1, "shift_range": 0.3, "bounds": "mean_preserving"}
    expected = tm.layer_sparsity(tm.tip_importance(adapter, norms), 0.8, **options)
    assert torch.equal(tm.tip_sparsities(adapter, norms, 0.8, **options), expected)
    pruned = tm.tip_prune(adapter, norms, 0.8, **options)
    merged = tm.merge([adapter], "tip", norms=[norms], sparsity=0.8, summation="cat", **options)
    for module in MODULES:
        assert torch.equal(merged.factors[module].b, pruned.factors[module].b)


def test_b_left_whole_counts_for_nothing():
    adapter, norms = ADAPTERS["boolq"], NORMS["boolq"]
    only_x = {module: norms[module] for module in MODULES}  # B needs no norms then
    pruned = tm.tip_prune(adapter, only_x, 0.5, on="A")
    scores = [tm.wanda_score(adapter.factors[m].a, norms[m]) for m in MODULES[:2]]
    importance = tm.tip_importance(adapter, only_x, on="A")
    assert importance[0].item() == tm.layer_importance(scores)
    assert torch.equal(
        tm.layer_sparsity(importance, 0.5), tm.tip_sparsities(adapter, only_x, 0.5, on="A")
    )
    for module in MODULES:
        assert torch.equal(pruned.factors[module].b, adapter.factors[module].b)
    assert any((factors.a == 0).any() for factors in pruned.factors.values())
    merged = tm.merge([adapter], norms=[only_x], sparsity=0.5, on="A", summation="cat")
    assert torch.equal(merged.delta(MODULES[0]), pruned.delta(MODULES[0]))


def test_layers_are_blocks_in_the_order_of_the_model():
    names = [
        *(f"model.layers.{i}.mlp.up_proj" for i in range(11)),
        "model.layers.2.self_attn.q_proj",
    ]
    layers = tm.tip_layers(random_adapter(0, modules=[*reversed(names), "lm_head"]))
    assert list(layers) == ["lm_head", *(f"model.layers.{i}" for i in range(11))]
    assert layers["model.layers.2"] == ["model.layers.2.mlp.up_proj", names[-1]]
    assert layers["lm_head"] == ["lm_head"]
    stacked = tm.tip_layers(random_adapter(0, modules=["transformer.h.3.attn.c_attn"]))
    assert list(stacked) == ["transformer.h.3"]


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (None, "norms are needed, one dict for each adapter"),
        ([{}], r"under 'model\.layers\.0\.self_attn\.q_proj', got nothing"),
        (
            [NORMS["boolq"] | {f"{MODULES[1]}.lora_B": torch.ones(3)}],
            r"v_proj\.lora_B', got \(3,\)",
        ),
    ],
)
def test_norms_that_do_not_fit_are_refused(norms, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge([ADAPTERS["boolq"]], "tip", norms=norms)


# Of every method -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("linear", {}),
        ("cat", {}),
        ("dare", {"drop_rate": 0.0}),
        ("tip", {"sparsity": 0, "shift_range": 0}),
    ],
)
def test_one_adapter_unpruned_stays_itself(method, options):
    adapter = ADAPTERS["boolq"]
    merged = tm.merge([adapter], method, norms=[NORMS["boolq"]], **options)
    assert merged.modules == adapter.modules and merged.base_model == "tiny"
    for module in MODULES:
        torch.testing.assert_close(merged.delta(module), adapter.delta(module))


@pytest.mark.parametrize("order", list(itertools.permutations(ADAPTERS))[1:])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_a_mapping_changes_no_bit(method, order):
    reference = tm.merge(ADAPTERS, method, norms=NORMS, weights=WEIGHTS)
    shuffled = {name: ADAPTERS[name] for name in order}
    for name in order:  # nor does the order of the modules
        factors = dict(reversed(ADAPTERS[name].factors.items()))
        shuffled[name] = LoraAdapter(factors, "tiny")
    again = tm.merge(shuffled, method, norms=NORMS, weights=WEIGHTS)
    assert bits(again) == bits(reference)


@pytest.mark.parametrize("method", ["linear", "cat", "tip"])
def test_the_order_of_a_list_changes_rounding_alone(method):
    names = list(ADAPTERS)
    merged = [
        tm.merge([ADAPTERS[n] for n in order], method, norms=[NORMS[n] for n in order])
        for order in (names, names[::-1])
    ]
    for module in MODULES:
        torch.testing.assert_close(*(m.delta(module) for m in merged), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_merging_16_bit_factors_is_done_in_float32(method):
    halves = {n: random_adapter(i, dtype=torch.bfloat16) for i, n in enumerate(ADAPTERS)}
    wide = {
        n: a.map(lambda _, f: LoraFactors(f.a.float(), f.b.float(), f.scaling))
        for n, a in halves.items()
    }
    merged = tm.merge(halves, method, norms=NORMS)
    assert merged.factors[MODULES[0]].a.dtype == torch.float32
    assert bits(merged) == bits(tm.merge(wide, method, norms=NORMS))


@pytest.mark.parametrize("method", METHODS)
def test_merging_leaves_its_adapters(method):
    before = {name: bits(adapter) for name, adapter in ADAPTERS.items()}
    tm.merge(ADAPTERS, method, norms=NORMS, weights=WEIGHTS)
    assert {name: bits(adapter) for name, adapter in ADAPTERS.items()} == before


def test_base_and_task_are_kept_where_the_adapters_agree():
    one, two = ADAPTERS["boolq"], LoraAdapter(ADAPTERS["coqa"].factors, "another", None)
    merged = tm.merge([one, two], "linear")
    assert (merged.base_model, merged.task_type) == (None, None)


def test_every_method_has_one_line_and_its_options():
    assert list(tm.METHODS) == METHODS
    assert all(
        function.__doc__.splitlines()[0].endswith((".", ").")) for function in tm.METHODS.values()
    )
    assert tm.method_options("linear") == {}
    assert tm.method_options("dare") == {
        "drop_rate": 0.7,
        "rescale": "expected",
        "summation": "linear",
    }
    assert tm.method_options("tip")["sparsity"] == 0.7


OTHER_BASE = LoraAdapter({MODULES[0]: LoraFactors(torch.ones(4, 8), torch.ones(8, 4), 1.0)})


@pytest.mark.parametrize(
    ("adapters", "arguments", "message"),
    [
        (
            ADAPTERS,
            {"method": "soup"},
            "no merge method 'soup'; there are linear, cat, svd, dare, ties",
        ),
        (
            ADAPTERS,
            {"sparsity": 0.5},
            "merge method linear has no option 'sparsity'; it has no opt",
        ),
        (
            ADAPTERS,
            {"method": "dare", "density": 0.5},
            "no option 'density'; it has drop_rate, resc",
        ),
        (ADAPTERS, {"method": "dare", "summation": "sum"}, "linear, cat, svd, got 'sum'"),
        (ADAPTERS, {"method": "tip", "norms": NORMS, "on": "B"}, "factors, A, delta, got 'B'"),
        ([], {}, "nothing to merge"),
        ({}, {}, "nothing to merge"),
        (["boolq"], {}, "adapter 0 is a str; merge takes what load_adapter returns"),
        (ADAPTERS["boolq"], {}, "got a single one"),
        (ADAPTERS, {"weights": {"boolq": 1.0}}, r"weights must be one .* \(boolq, coqa, piqa\)"),
        (ADAPTERS, {"weights": [1.0, 1.0, 1.0]}, r"weights must be .*, got \(0, 1, 2\)"),
        ([ADAPTERS["boolq"]], {"weights": [1.0, 2.0]}, r"each adapter \(0\), got \(0, 1\)"),
        ([ADAPTERS["boolq"]], {"norms": NORMS}, r"norms must be one for each adapter \(0\)"),
        (
            [ADAPTERS["boolq"]],
            {"weights": [math.nan]},
            "weight of adapter 0 must be finite, got nan",
        ),
        ([ADAPTERS["boolq"], OTHER_BASE], {}, r"q_proj is \(32, 32\) in 0, \(8, 8\) in 1"),
    ],
)
def test_what_cannot_be_merged_is_refused(adapters, arguments, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge(adapters, **{"method": "linear"} | arguments)


def test_importing_the_package_loads_no_model_library():
    code = "import sys, tipmini; print({'transformers', 'peft', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
