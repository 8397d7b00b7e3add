"""The other merge methods: against PEFT with our draws, and against plain, slow versions."""

import itertools
import math

import peft.utils.merge_utils as peft_merge
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_ties import slow_ties
from tiny import (
    ADAPTERS,
    GRAMS,
    HIDDEN,
    MODULES,
    NORMS,
    WEIGHTS,
    bits,
    peft_factors,
    peft_llama,
    random_adapter,
    saved,
    whole_adapter,
)

import tipmini as tm
from tipmini import masks
from tipmini.errors import TipminiError
from tipmini.methods import merge
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors
from tipmini.papers.dare import named_generator
from tipmini.papers.ties import electing, trim

ONE = ADAPTERS["boolq"]


# DARE and DARE-TIES -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
@pytest.mark.parametrize("on", ["factors", "delta"])
def test_random_drops_are_pefts_with_our_masks(tmp_path, monkeypatch, method, on):
    model = peft_llama(a={}, b={"lora_alpha": 3})
    adapters = saved(model, tmp_path, "ab")

    def draws():
        names = ["lora_A", "lora_B"] if on == "factors" else [""]
        for module, factor, name in itertools.product(MODULES, names, adapters):
            generator = named_generator(5, name, f"{module}.{factor}".rstrip("."))
            a, b = adapters[name].factors[module].a, adapters[name].factors[module].b
            shape = {"lora_A": a.shape, "lora_B": b.shape, "": (len(b), a.shape[1])}[factor]
            yield (torch.rand(shape, generator=generator) >= 0.75).float()

    queue = draws()
    monkeypatch.setattr(peft_merge.torch, "bernoulli", lambda *_, **__: next(queue))
    kind = {"dare": "dare_linear", "dare_ties": "dare_ties"}[method]
    kind += "_svd" if on == "delta" else ""
    model.add_weighted_adapter(["a", "b"], [1.0, -0.5], "merged", kind, density=0.25)
    options = {"drop_rate": 0.75, "seed": 5, "on": on}
    merged = tm.merge(adapters, method, weights={"a": 1.0, "b": -0.5}, **options)
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


def test_a_draw_depends_on_seed_and_names_alone():
    """With cat, each adapter's own rows can be read off: boolq's four, coqa's four, piqa's four."""
    reference = bits(tm.merge(ADAPTERS, "dare", seed=3))
    assert bits(tm.merge(ADAPTERS, "dare", seed=3)) == reference
    assert bits(tm.merge(ADAPTERS, "dare", seed=4)) != reference
    renamed = {name + "x": adapter for name, adapter in ADAPTERS.items()}
    assert bits(tm.merge(renamed, "dare", seed=3)) != reference
    alone = tm.merge({"coqa": ADAPTERS["coqa"]}, "dare", summation="cat")
    beside = tm.merge(ADAPTERS, "dare", summation="cat")
    for module in MODULES:
        assert torch.equal(beside.factors[module].a[4:8], alone.factors[module].a)


# Magnitude --------------------------------------------------------------------------------------


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


# TIES -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, -1.0, 0.0)])
@pytest.mark.parametrize("kind", ["ties", "magnitude_prune"])
def test_factors_are_pefts_to_the_last_bit(tmp_path, kind, weights, density):
    model = peft_llama(a={}, b={"lora_alpha": 3}, c={"layers_to_transform": [1]})
    model.add_weighted_adapter(list("abc"), list(weights), "merged", kind, density=density)
    adapters = list(saved(model, tmp_path).values())
    method = {"ties": "ties", "magnitude_prune": "magnitude"}[kind]
    option = {"density": density} if kind == "ties" else {"sparsity": 1 - density}
    merged = tm.merge(adapters, method, weights=weights, **option)
    for module, (a, b) in peft_factors(model, "merged").items():
        assert torch.equal(merged.factors[module].a, a)
        assert torch.equal(merged.factors[module].b, b)


@pytest.mark.parametrize("density", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("method", ["ties", "magnitude"])
def test_deltas_are_pefts_to_the_last_bit(method, density):
    option = {"density": density} if method == "ties" else {"sparsity": 1 - density}
    _, update = tm.merge_update(ADAPTERS, method, weights=WEIGHTS, on="delta", **option)
    theirs = peft_merge.ties if method == "ties" else peft_merge.magnitude_prune
    for module in MODULES:
        deltas = [adapter.delta(module) for adapter in ADAPTERS.values()]
        expected = theirs(deltas, torch.tensor(list(WEIGHTS.values())), density)
        torch.testing.assert_close(update[module], expected, rtol=1e-6, atol=1e-6)
        if method == "ties":
            assert torch.equal(update[module], expected)


@pytest.mark.parametrize("rows", [1, 3, 512])
@pytest.mark.parametrize("variant", ["peft", "authors", "mergekit"])
def test_rows_at_a_time_change_no_bit(monkeypatch, rows, variant):
    def merged() -> list[torch.Tensor]:
        options = {"variant": variant, "on": "delta", "weights": WEIGHTS}
        return list(tm.merge_update(ADAPTERS, "ties", **options)[1].values())

    reference = merged()
    monkeypatch.setattr(merge, "ROWS", rows)
    monkeypatch.setattr(masks, "CHUNK", 8 * rows)
    assert all(map(torch.equal, merged(), reference))


def slow_authors(adapters: dict, density: float, on: str) -> dict[str, list[float]]:
    """Their release on the whole adapters flattened: {module.tensor: merged elements}."""
    names, vectors = [], []
    for adapter in adapters.values():
        flat = {}
        for module in adapter.modules:
            pair = adapter.factors[module]
            tensors = {"a": pair.a, "b": pair.b} if on == "factors" else {"d": pair.delta()}
            flat |= {f"{module}.{n}": t.flatten().tolist() for n, t in tensors.items()}
        names = [name for name, values in flat.items() for _ in values]
        vectors.append([value for values in flat.values() for value in values])
    kept = []
    for vector in vectors:
        bar = sorted(map(abs, vector))[len(vector) - int(len(vector) * density) - 1]
        kept.append([value if abs(value) >= bar else 0.0 for value in vector])
    sums = [sum(place) for place in zip(*kept, strict=True)]
    zero = 1 if sum((s > 0) - (s < 0) for s in sums) > 0 else -1
    merged: dict[str, list[float]] = {}
    for name, value in zip(names, slow_ties(kept, [1] * 3, "authors", zero), strict=True):
        merged.setdefault(name, []).append(value)
    return merged


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("on", ["factors", "delta"])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_authors_variant_is_their_release(on, density, flip):
    """Whole numbers: many sizes equal the threshold and many sums are 0; flipped, so that both
    signs come to be the majority."""
    adapters = {str(seed): whole_adapter(seed) for seed in (3, 4, 5)}
    for adapter in adapters.values():
        for pair in adapter.factors.values():
            pair.a.mul_(flip)
    expected = slow_authors(adapters, density, on)
    _, update = tm.merge_update(adapters, "ties", variant="authors", density=density, on=on)
    root = math.sqrt(2.0)  # of the scaling, which a sum of factors multiplies either by
    for module, merged in update.items():
        got = {"d": merged} if on == "delta" else {"a": merged.a / root, "b": merged.b / root}
        for name, tensor in got.items():
            assert tensor.flatten().tolist() == pytest.approx(expected[f"{module}.{name}"])


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_the_mergekit_variant_divides_by_the_weights(method):
    option = {"density": 1.0} if method == "ties" else {"drop_rate": 0.0}
    options = option | {"variant": "mergekit", "on": "delta"}
    for weight in (0.5, 3.0):
        weights = dict.fromkeys(ADAPTERS, weight)
        _, one = tm.merge_update(ADAPTERS, method, weights=weights, **options)
        deltas = [adapter.delta(MODULES[0]).flatten().tolist() for adapter in ADAPTERS.values()]
        expected = slow_ties(deltas, [weight] * 3, "mergekit", 1.0)
        assert one[MODULES[0]].flatten().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


# RegMean ----------------------------------------------------------------------------------------


def inputs(seed: int, tokens: int = 60) -> torch.Tensor:
    scale = torch.linspace(0.2, 3.0, HIDDEN, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64) / 6
    x = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64)
    return x @ mixed * scale


X = {name: inputs(seed) for seed, name in enumerate(ADAPTERS)}
X_GRAMS = {name: dict.fromkeys(MODULES, x.T @ x) for name, x in X.items()}
SHARES = {"boolq": 1.0, "coqa": 0.25, "piqa": 3.0}
DOUBLE = {
    name: adapter.map(lambda _, f: LoraFactors(f.a.double(), f.b.double(), f.scaling))
    for name, adapter in ADAPTERS.items()
}


@pytest.mark.parametrize("shrink", [0.0, 0.5, 0.9, 1.0])
def test_regmean_is_the_closed_form(shrink):
    """What is off the diagonal times shrink; weights matter in proportion alone."""
    merged = tm.merge(DOUBLE, "regmean", weights=SHARES, grams=X_GRAMS, shrink=shrink)
    scaled = {name: 7.3 * weight for name, weight in SHARES.items()}
    again = tm.merge(DOUBLE, "regmean", weights=scaled, grams=X_GRAMS, shrink=shrink)
    for module in MODULES:
        torch.testing.assert_close(merged.delta(module), again.delta(module))
        parts = []
        for n in X:
            gram = X_GRAMS[n][module]
            gram = gram * shrink + torch.diag(gram.diagonal()) * (1 - shrink)
            parts.append((SHARES[n] * gram, DOUBLE[n].delta(module)))
        right, left = sum(gram for gram, _ in parts), sum(delta @ gram for gram, delta in parts)
        expected = torch.linalg.solve(right.T, left.T).T
        torch.testing.assert_close(merged.delta(module), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_balance_divides_each_objective_by_the_adapters_own_output(power):
    """The weights by hand; an adapter of zeros, which puts out nothing, has none."""
    zeros = DOUBLE["piqa"].map(lambda _, f: LoraFactors(f.a, 0 * f.b, f.scaling))
    adapters = DOUBLE | {"piqa": zeros}
    merged = tm.merge(adapters, "regmean", weights=SHARES, grams=X_GRAMS, balance=power)
    for module in MODULES:
        own = {n: X[n] @ adapters[n].delta(module).T for n in ("boolq", "coqa")}
        weights = {n: SHARES[n] / out.square().sum().item() ** power for n, out in own.items()}
        expected = tm.merge(
            {n: DOUBLE[n] for n in own},
            "regmean",
            weights=weights,
            grams={n: X_GRAMS[n] for n in own},
        )
        torch.testing.assert_close(merged.delta(module), expected.delta(module))


def test_with_equal_inputs_regmean_is_the_mean():
    same = dict.fromkeys(ADAPTERS, GRAMS["boolq"])
    merged = tm.merge(ADAPTERS, "regmean", grams=same)
    for module in MODULES:
        mean = sum(adapter.delta(module) for adapter in ADAPTERS.values()) / 3
        torch.testing.assert_close(merged.delta(module), mean, rtol=1e-3, atol=1e-3)
        assert merged.factors[module].a.dtype == torch.float32 and merged.ranks[module] == 12


@given(st.floats(-4, 4))
def test_scale_multiplies_the_whole(scale):
    one = tm.merge(DOUBLE, "regmean", grams=X_GRAMS)
    scaled = tm.merge(DOUBLE, "regmean", grams=X_GRAMS, scale=scale)
    torch.testing.assert_close(scaled.delta(MODULES[0]), scale * one.delta(MODULES[0]))


def test_a_channel_that_nothing_drives_comes_out_zero():
    grams = {module: gram.clone() for module, gram in GRAMS["boolq"].items()}
    for gram in grams.values():
        gram[3], gram[:, 3] = 0, 0
    delta = tm.merge([ONE], "regmean", grams=[grams]).delta(MODULES[0])
    assert not delta[:, 3].any() and delta[:, 4].any() and delta.isfinite().all()
    nothing = {module: torch.zeros_like(gram) for module, gram in grams.items()}
    assert not tm.merge([ONE], "regmean", grams=[nothing]).delta(MODULES[0]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grams": None}, r"regmean needs the Gram matrix of model\.layers\.0\.self_attn\.q_proj"),
        ({"grams": [{}]}, "calibrate with 'gram'"),
        ({"grams": [NORMS["boolq"]]}, r"needs a finite Gram matrix \(32, 32\), got \(32,\)"),
        ({"grams": [dict.fromkeys(MODULES, torch.full((32, 32), math.nan))]}, "finite Gram"),
        ({"grams": [dict.fromkeys(MODULES, -torch.eye(32))]}, "are singular; take a smaller"),
        ({"scale": math.inf}, "scale must be finite, got inf"),
        ({"shrink": 1.5}, r"shrink must lie in \[0, 1\], got 1.5"),
        ({"weights": [-1.0]}, r"regmean needs weights from 0 on, adapter 0 has -1\.0"),
    ],
)
def test_what_regmean_cannot_solve_is_refused(arguments, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge([ONE], "regmean", **{"grams": [GRAMS["boolq"]]} | arguments)


# KnOTS ------------------------------------------------------------------------------------------


def slow_knots(adapters, weights, module, density, variant, scaled) -> torch.Tensor:
    """By the SVD of the whole deltas side by side, without its null directions."""
    deltas = [adapter.delta(module).double() for adapter in adapters.values()]
    u, s, vh = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    held = s > 1e-6 * s.max()
    u, s, vh = u[:, held], s[held], vh[held]
    if scaled:
        vh = torch.diag(s) @ vh
    views = [trim(view, density) for view in vh.chunk(len(deltas), dim=1)]
    merged = electing(variant)(views, list(weights.values()))
    return u @ merged if scaled else u @ torch.diag(s) @ merged


@pytest.mark.parametrize("variant", ["peft", "mergekit"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("density", [0.0, 0.3, 0.75, 1.0])
def test_knots_is_the_naive_one(density, scaled, variant):
    weights = {"boolq": 1.0, "coqa": -0.5, "piqa": 2.0}
    options = {"density": density, "scaled": scaled, "variant": variant}
    merged = tm.merge(DOUBLE, "knots", weights=weights, **options)
    for module in MODULES:
        expected = slow_knots(DOUBLE, weights, module, **options)
        torch.testing.assert_close(merged.delta(module), expected, rtol=1e-7, atol=1e-7)


def test_directions_that_nothing_fills_play_no_part():
    """Twice the same adapter: half of the stacked rank is null, and arbitrary."""
    twice = {"one": DOUBLE["boolq"], "two": DOUBLE["boolq"]}
    merged = tm.merge(twice, "knots", density=0.5)
    assert set(merged.ranks.values()) == {4}
    for module in MODULES:
        expected = slow_knots(twice, {"one": 1.0, "two": 1.0}, module, 0.5, "peft", True)
        torch.testing.assert_close(merged.delta(module), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("d", "k"), [(2, 10), (10, 2), (1, 1)])
def test_knots_of_small_matrices(d, k):
    """Without equal sizes, of which rounding would choose one."""
    generator = torch.Generator().manual_seed(0)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    adapters = {
        name: LoraAdapter({"m": LoraFactors(factor(4, k), factor(d, 4), 2.0)}) for name in "abc"
    }
    merged = tm.merge(adapters, "knots")
    for module in merged.modules:
        expected = slow_knots(adapters, dict.fromkeys(adapters, 1.0), module, 0.3, "peft", True)
        torch.testing.assert_close(merged.delta(module), expected)


def test_knots_of_different_ranks_untrimmed_of_one_is_itself():
    alone = tm.merge([ONE], "knots", density=1.0)
    torch.testing.assert_close(alone.delta(MODULES[0]), ONE.delta(MODULES[0]))
    mixed = tm.merge([ONE, random_adapter(9, rank=2)], "knots")
    assert set(mixed.ranks.values()) == {6}
    zero = LoraAdapter({"m": LoraFactors(torch.zeros(2, 5), torch.zeros(5, 2), 1.0)})
    assert not tm.merge([zero, zero], "knots").delta("m").any()
