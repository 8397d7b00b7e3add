"""TIP on adapters: every reading against plain Python, and TIP with one thing taken away."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_tip import slow_layers, slow_merge
from tiny import ADAPTERS, HIDDEN, MODULES, NORMS, bits, random_adapter, random_norms, whole_adapter

import tipmini as tm
from tipmini import masks
from tipmini.errors import TipminiError
from tipmini.methods.tip import layer_names, sparsities_of
from tipmini.models.factors import LoraFactors
from tipmini.papers.tip import Reading

READINGS = st.fixed_dictionaries(
    {
        "sparsity": st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
        "on": st.sampled_from(["factors", "A", "delta"]),
        "layer": st.sampled_from(["block", "module", "factor"]),
        "mean": st.sampled_from(["elements", "modules"]),
        "normalized": st.sampled_from(["within", "across"]),
        "sign": st.sampled_from([1, -1]),
        "shift_range": st.sampled_from([0.0, 0.3, 1.0, 2.5]),
        "bounds": st.sampled_from(["clip", "mean_preserving"]),
        "group": st.sampled_from(["row", "matrix", "layer"]),
        "rescale": st.booleans(),
    }
)
PAIR = {"one": whole_adapter(1), "two": whole_adapter(2)}  # float64, many equal scores
PAIR_NORMS = {
    name: {key: norm.double().mul(4).ceil() for key, norm in random_norms(adapter, 7).items()}
    for name, adapter in PAIR.items()
}
PAIR_WEIGHTS = {"one": 1.5, "two": -1.0}


def slow(reading: dict) -> dict:
    """The slow merge, with sparsities that are first asserted and then taken as they are fast, so
    that the last bit of one decides nothing."""
    layers = slow_layers(PAIR, PAIR_NORMS, reading)
    fast = sparsities_of([(PAIR[name], PAIR_NORMS[name]) for name in PAIR], Reading(**reading))
    for own, shares in zip(layers.values(), fast, strict=True):
        assert shares.dtype == torch.float64
        assert shares.tolist() == pytest.approx(list(own.values()), abs=1e-9)
        own.update(zip(own, shares.tolist(), strict=True))
    return slow_merge(PAIR, PAIR_NORMS, PAIR_WEIGHTS, reading, layers)


def assert_slow(update: dict, reading: dict) -> None:
    expected = slow(reading)
    assert list(update) == sorted(expected)
    for module, tensors in expected.items():
        for name, tensor in tensors.items():
            got = update[module] if name == "delta" else getattr(update[module], name)
            torch.testing.assert_close(got, tensor, rtol=1e-9, atol=1e-9)


@given(READINGS)
def test_every_reading_is_the_slow_one_and_wanda_its_one_sparsity(reading):
    given = {"norms": PAIR_NORMS, "weights": PAIR_WEIGHTS}
    assert_slow(tm.merge_update(PAIR, "tip", **given, **reading)[1], reading)
    options = {key: reading[key] for key in ("sparsity", "on", "group", "rescale")}
    _, update = tm.merge_update(PAIR, "wanda", **given, **options)
    assert_slow(update, reading | {"shift_range": 0.0, "layer": "block"})


@pytest.mark.parametrize("chunk", [1, 100, 1 << 17])
@pytest.mark.parametrize("on", ["factors", "delta"])
def test_elements_at_a_time_change_no_bit(monkeypatch, chunk, on):
    def merged():
        _, update = tm.merge_update(PAIR, "tip", norms=PAIR_NORMS, on=on)
        return [update[m] if on == "delta" else update[m].delta() for m in update]

    reference = merged()
    monkeypatch.setattr(masks, "CHUNK", chunk)
    assert all(map(torch.equal, merged(), reference))


@given(READINGS.filter(lambda reading: reading["on"] != "delta"))
def test_a_pruned_adapter_is_what_is_merged(reading):
    """With cat and one adapter the factors can be read off; the merge puts the scaling into A."""
    adapter, norms = PAIR["one"], PAIR_NORMS["one"]
    pruned = tm.tip_prune(adapter, norms, **reading)
    merged = tm.merge([adapter], "tip", norms=[norms], summation="cat", **reading)
    for module in adapter.modules:
        assert torch.equal(merged.factors[module].b, pruned.factors[module].b)
        assert torch.equal(merged.factors[module].a, 2.0 * pruned.factors[module].a)
        assert pruned.scaling[module] == adapter.scaling[module]


@pytest.mark.parametrize(
    ("group", "a", "b"),
    [
        ("row", [[0, 0, 3, 4]], [[3], [7]]),  # 2 of the row of A, none of a row of B
        ("matrix", [[0, 0, 3, 4]], [[0], [7]]),  # 2 of the 4 of A, 1 of the 2 of B
        ("layer", [[0, 0, 0, 4]], [[3], [7]]),  # 3 of all 6; of the two 3 that of A comes first
    ],
)
def test_whose_lowest_go_worked_by_hand(group, a, b):
    """One layer of rank 1 at S = 0.5, all norms 1: A (1, 2, 3, 4) and B (3, 7)."""
    pair = LoraFactors(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[3.0], [7]]), 1.0)
    norms = {"m": torch.ones(4), "m.lora_B": torch.ones(1)}
    pruned = tm.tip_prune(tm.LoraAdapter({"m": pair}), norms, 0.5, group=group).factors["m"]
    assert pruned.a.tolist() == a and pruned.b.tolist() == b


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pruning_keeps_the_dtype_and_the_mask_of_float32(dtype):
    stored, norms = random_adapter(0, dtype=dtype), NORMS["boolq"]
    wide = stored.map(lambda _, f: LoraFactors(f.a.float(), f.b.float(), f.scaling))
    narrow, reference = tm.tip_prune(stored, norms), tm.tip_prune(wide, norms)
    for module in MODULES:
        assert narrow.factors[module].a.dtype == dtype
        assert torch.equal(narrow.factors[module].a == 0, reference.factors[module].a == 0)


@pytest.mark.parametrize("on", ["factors", "delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_importances_are_those_of_the_scores_at_hand(on, dtype):
    adapter = ADAPTERS["boolq"]
    norms = {name: norm.to(dtype) for name, norm in NORMS["boolq"].items()}
    scores = tm.tip_scores(adapter, norms, on)
    blocks = tm.tip_layers(adapter).values()
    own = [[score for m in block for score in scores[m].values()] for block in blocks]
    expected = [tm.layer_importance(layer) for layer in own]
    assert tm.tip_importance(adapter, norms, on=on).tolist() == expected


def test_b_left_whole_counts_for_nothing():
    adapter, norms = ADAPTERS["boolq"], NORMS["boolq"]
    only_x = {module: norms[module] for module in MODULES}  # B needs no norms then
    pruned = tm.tip_prune(adapter, only_x, 0.5, on="A")
    scores = [tm.wanda_score(adapter.factors[m].a, norms[m]) for m in MODULES[:2]]
    importance = tm.tip_importance(adapter, only_x, on="A")
    assert importance[0].item() == tm.layer_importance(scores)
    for module in MODULES:
        assert torch.equal(pruned.factors[module].b, adapter.factors[module].b)
    assert any((factors.a == 0).any() for factors in pruned.factors.values())


def test_scores_are_those_of_wanda():
    adapter, norms = ADAPTERS["boolq"], NORMS["boolq"]
    module = MODULES[1]
    for on, names in [("factors", ["a", "b"]), ("A", ["a"]), ("delta", ["delta"])]:
        scores = tm.tip_scores(adapter, norms, on)
        assert list(scores) == MODULES and list(scores[module]) == names
    factors = adapter.factors[module]
    expected = tm.wanda_score(factors.b, norms[f"{module}.lora_B"])
    assert torch.equal(tm.tip_scores(adapter, norms)[module]["b"], expected)
    dense = tm.tip_scores(adapter, norms, "delta")[module]["delta"]
    assert torch.equal(dense, tm.wanda_score(adapter.delta(module), norms[module]))


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
    experts = tm.tip_layers(random_adapter(0, modules=["model.layers.7.mlp.experts.3.up_proj"]))
    assert list(experts) == ["model.layers.7"]


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        ("block", [f"model.layers.{i}" for i in range(3)]),
        ("module", MODULES),
        ("factor", [f"{module} ({name})" for module in MODULES for name in "ab"]),
    ],
)
def test_layers_have_names(layer, names):
    assert layer_names(ADAPTERS["boolq"], Reading(layer=layer)) == names


# TIP with one thing taken away: what is pruned at the S_l, and which layer gets which S_l --------
ALONE = {"boolq": ADAPTERS["boolq"]}


def zeros(adapter: tm.LoraAdapter) -> list[int]:
    """How many elements of the first row of A are gone, a block; cat of one adapter keeps A."""
    blocks = tm.tip_layers(adapter).values()
    return [int((adapter.factors[modules[0]].a[0] == 0).sum()) for modules in blocks]


def pruned(**options) -> tm.LoraAdapter:
    given = {"norms": {"boolq": NORMS["boolq"]}, "summation": "cat", "sparsity": 0.5}
    return tm.merge(ALONE, options.pop("method", "tip"), **given | options)


@pytest.mark.parametrize("group", ["row", "matrix", "layer"])
def test_by_size_alone_is_the_slow_merge_with_norms_of_1(group):
    """The sparsities still follow from the real norms."""
    reading = vars(Reading(sparsity=0.5, group=group))
    layers = slow_layers(PAIR, PAIR_NORMS, reading)
    alike = {n: {k: torch.ones_like(v) for k, v in m.items()} for n, m in PAIR_NORMS.items()}
    expected = slow_merge(PAIR, alike, PAIR_WEIGHTS, reading, layers)
    given = {"norms": PAIR_NORMS, "weights": PAIR_WEIGHTS}
    found = tm.merge(PAIR, "tip", **given, **reading | {"score": "magnitude"})
    for module, tensors in expected.items():
        torch.testing.assert_close(found.factors[module].a, tensors["a"])
        torch.testing.assert_close(found.factors[module].b, tensors["b"])


def test_at_random_as_many_go_as_by_score():
    drawn, own = pruned(score="random"), pruned()
    shares = tm.tip_sparsities(ADAPTERS["boolq"], NORMS["boolq"], 0.5).tolist()
    assert zeros(drawn) == zeros(own) == [math.floor(HIDDEN * share) for share in shares]
    assert bits(drawn) != bits(own)


@pytest.mark.parametrize("option", [{"score": "random"}, {"assignment": "shuffled"}])
def test_a_draw_depends_on_the_seed_and_the_name_alone(option):
    both = {name: ADAPTERS[name] for name in ("boolq", "piqa")}
    norms = {name: NORMS[name] for name in both}
    one = tm.merge(both, "tip", norms=norms, seed=1, **option)
    turned = tm.merge(dict(reversed(both.items())), "tip", norms=norms, seed=1, **option)
    other = tm.merge(both, "tip", norms=norms, seed=2, **option)
    assert bits(one) == bits(turned) != bits(other)


def test_shuffled_sparsities_are_the_same_ones():
    orders = [zeros(pruned(assignment="shuffled", seed=seed)) for seed in range(8)]
    assert all(sorted(order) == sorted(zeros(pruned())) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_all_layers_at_the_mean():
    """Of what is left after clipping, which need not be S_org."""
    options = {"sparsity": 0.9, "shift_range": 1.0}
    own = tm.tip_sparsities(ADAPTERS["boolq"], NORMS["boolq"], **options)
    mean = tm.tip_sparsities(ADAPTERS["boolq"], NORMS["boolq"], assignment="mean", **options)
    assert own.mean() < 0.9 and set(mean.tolist()) == {own.mean().item()}
    assert zeros(pruned(assignment="mean", **options)) == [math.floor(HIDDEN * mean[0])] * 3
    static = pruned(method="wanda", sparsity=mean[0].item())
    same = pruned(assignment="mean", **options)
    assert bits(same) == bits(static)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (None, "norms are needed, one dict for each adapter"),
        ([{}], r"under 'model\.layers\.0\.self_attn\.q_proj', got nothing"),
        (
            [NORMS["boolq"] | {f"{MODULES[1]}.lora_B": torch.ones(3)}],
            r"v_proj\.lora_B', got \(3,\)",
        ),
        ([NORMS["boolq"] | {MODULES[0]: torch.full((HIDDEN,), math.nan)}], "one finite number"),
    ],
)
def test_norms_that_do_not_fit_are_refused(norms, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge([ADAPTERS["boolq"]], "tip", norms=norms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, r"sparsity must lie in \[0, 1\], got 1.5"),
        ({"sparsity": "0.5"}, r"sparsity must lie in \[0, 1\], got '0.5'"),
        ({"on": "B"}, "on must be one of factors, A, delta, got 'B'"),
        ({"layer": "head"}, "layer must be one of block, module, factor, got 'head'"),
        ({"mean": "rows"}, "mean must be one of elements, modules, got 'rows'"),
        ({"normalized": "no"}, "normalized must be one of within, across, got 'no'"),
        ({"sign": "-1"}, "sign must be 1"),
        ({"shift_range": "wide"}, "shift_range must be a finite number from 0 on, got 'wide'"),
        ({"bounds": "none"}, "bounds must be one of clip, mean_preserving, got 'none'"),
        ({"group": "column"}, "group must be one of row, matrix, layer, got 'column'"),
        ({"rescale": "expected"}, "rescale must be one of False, True, got 'expected'"),
        ({"score": "size"}, "score must be one of wanda, magnitude, random, got 'size'"),
        ({"assignment": "own"}, "assignment must be one of layer, mean, shuffled, got 'own'"),
    ],
)
def test_readings_that_there_are_not_are_refused(options, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge_update(ADAPTERS, "tip", norms=NORMS, **options)
    with pytest.raises(TipminiError, match=message):
        tm.tip_prune(ADAPTERS["boolq"], NORMS["boolq"], **options)


@pytest.mark.parametrize("group", ["row", "matrix", "layer"])
def test_gradients_pass_what_survives(group):
    """Factors may be those of a model in training."""
    live = ADAPTERS["piqa"].map(
        lambda _, f: LoraFactors(f.a.clone().requires_grad_(), f.b, f.scaling)
    )
    pruned = tm.tip_prune(live, NORMS["piqa"], group=group).factors[MODULES[0]].a
    pruned.sum().backward()
    assert torch.equal(live.factors[MODULES[0]].a.grad, (pruned != 0).float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "random"}, "need a seed; use merge"),
        ({"assignment": "shuffled"}, "need a seed; use merge"),
        ({"on": "delta"}, "a pruned delta has no factors; use merge with on='delta'"),
    ],
)
def test_what_a_merge_alone_can_do_is_refused(options, message):
    with pytest.raises(TipminiError, match=message):
        tm.tip_prune(ADAPTERS["boolq"], NORMS["boolq"], **options)
    if "on" not in options:
        with pytest.raises(TipminiError, match=message):
            tm.tip_sparsities(ADAPTERS["boolq"], NORMS["boolq"], **options)
