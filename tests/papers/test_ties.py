import itertools
import math

import peft.utils.merge_utils as peft_merge
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ADAPTERS, MODULES, WEIGHTS, peft_factors, peft_llama, saved, whole_adapter

import tipmini as tm
from tipmini import masks
from tipmini.errors import TipminiError
from tipmini.methods import merge as sums
from tipmini.papers.dare import named_generator
from tipmini.papers.ties import electing, majority, trim, trim_threshold

WHOLE = st.lists(st.integers(-3, 3), min_size=1, max_size=12)
DENSITIES = st.one_of(st.sampled_from([0.0, 0.2, 0.25, 0.3, 0.5, 0.7, 1.0]), st.floats(0, 1))
STACKS = st.integers(1, 4).flatmap(
    lambda t: st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=t, max_size=t)
)
SHARES = st.sampled_from([1.0, 0.5, 2.0, 0.0, -1.0])


# The parts -------------------------------------------------------------------------------------


@given(WHOLE, DENSITIES)
def test_trim_keeps_the_largest(values, density):
    kept = int(density * len(values))
    order = sorted(range(len(values)), key=lambda i: (abs(values[i]), i))
    stays = set(order[len(values) - kept :])
    expected = [v if i in stays else 0 for i, v in enumerate(values)]
    assert trim(torch.tensor(values).double(), density).tolist() == expected


@given(st.integers(1, 12), st.integers(1, 9), DENSITIES, st.integers(0, 99))
def test_trim_is_pefts_where_no_sizes_are_equal(d, k, density, seed):
    tensor = torch.randn(k, d, generator=torch.Generator().manual_seed(seed)).T  # not contiguous
    kept = peft_merge.magnitude_based_pruning(tensor, density)
    assert torch.equal(trim(tensor, density), kept)


@given(WHOLE, DENSITIES)
def test_the_threshold_is_the_authors(values, density):
    """As they take it: kthvalue of n - int(n density), where that is not their index 0."""
    kth = len(values) - int(len(values) * density)
    expected = sorted(map(abs, values))[kth - 1] if kth else 0
    pieces = torch.tensor(values).double().split(5)
    assert trim_threshold(pieces, density) == expected


@pytest.mark.parametrize(
    ("signs", "expected"), [([1.0, 1, -1], 1), ([-1.0, 0], -1), ([1.0, -1], -1), ([0.0], -1)]
)
def test_a_drawn_majority_is_minus_as_in_the_release(signs, expected):
    assert majority(torch.tensor(signs)) == expected


def slow_ties(stacked, weights, variant, zero) -> list[float]:
    """Place by place."""
    merged = []
    for place in zip(*stacked, strict=True):
        votes = [w * x if variant == "mergekit" else x for w, x in zip(weights, place, strict=True)]
        total = sum(votes)
        sign = math.copysign(1, total) if total else zero
        agreeing = [i for i, vote in enumerate(votes) if vote * sign > 0]
        share = sum(weights[i] if variant == "mergekit" else 1 for i in agreeing)
        merged.append(sum(weights[i] * place[i] for i in agreeing) / (share or 1))
    return merged


@given(STACKS, st.lists(SHARES, min_size=4, max_size=4), st.sampled_from([1.0, -1.0]))
def test_election_and_average_are_the_slow_ones(stacked, weights, zero):
    tensors = [torch.tensor(row).double() for row in stacked]
    weights = weights[: len(tensors)]
    for variant, sign in [("peft", 1.0), ("authors", zero), ("mergekit", 1.0)]:
        merged = electing(variant, sign)(tensors, weights).tolist()
        assert merged == pytest.approx(slow_ties(stacked, weights, variant, sign), abs=1e-12)


@given(STACKS, st.permutations(range(4)))
def test_the_order_of_the_adapters_plays_no_part(stacked, order):
    tensors = [torch.tensor(row).double() for row in stacked]
    shuffled = [tensors[i] for i in order if i < len(tensors)]
    for variant in ("peft", "authors", "mergekit"):
        combine, weights = electing(variant), [1.0] * len(tensors)
        torch.testing.assert_close(combine(shuffled, weights), combine(tensors, weights))


# The whole -------------------------------------------------------------------------------------


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
    monkeypatch.setattr(sums, "ROWS", rows)
    monkeypatch.setattr(masks, "CHUNK", 8 * rows)
    assert all(map(torch.equal, merged(), reference))


@pytest.mark.parametrize("on", ["factors", "delta"])
def test_dare_ties_is_pefts_with_our_masks(tmp_path, monkeypatch, on):
    model = peft_llama(a={}, b={"lora_alpha": 3})
    adapters = saved(model, tmp_path, "ab")
    weights = {"a": 1.0, "b": -0.5}

    def masks():
        names = ["lora_A", "lora_B"] if on == "factors" else [""]
        for module, factor, name in itertools.product(MODULES, names, adapters):
            generator = named_generator(5, name, f"{module}.{factor}".rstrip("."))
            a, b = adapters[name].factors[module].a, adapters[name].factors[module].b
            shape = {"lora_A": a.shape, "lora_B": b.shape, "": (len(b), a.shape[1])}[factor]
            yield (torch.rand(shape, generator=generator) >= 0.75).float()

    queue = masks()
    monkeypatch.setattr(peft_merge.torch, "bernoulli", lambda *_, **__: next(queue))
    kind = "dare_ties" if on == "factors" else "dare_ties_svd"
    model.add_weighted_adapter(["a", "b"], [1.0, -0.5], "merged", kind, density=0.25)
    options = {"weights": weights, "drop_rate": 0.75, "seed": 5, "on": on}
    merged = tm.merge(adapters, "dare_ties", **options)
    for module, (a, b) in peft_factors(model, "merged").items():
        if on == "factors":
            assert torch.equal(merged.factors[module].a, a)
            assert torch.equal(merged.factors[module].b, b)
        else:
            torch.testing.assert_close(merged.delta(module), b @ a, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("variant", ["peft", "authors", "mergekit"])
def test_one_adapter_untrimmed_stays_itself(variant):
    _, update = tm.merge_update(
        [ADAPTERS["boolq"]], "ties", density=1.0, variant=variant, on="delta"
    )
    assert all(torch.equal(update[m], ADAPTERS["boolq"].delta(m)) for m in MODULES)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ties", {"density": 1.2}, r"density must lie in \[0, 1\], got 1.2"),
        ("ties", {"density": math.nan}, r"density must lie in \[0, 1\], got nan"),
        ("ties", {"density": None}, r"density must lie in \[0, 1\], got None"),
        ("ties", {"on": "A"}, "on must be one of factors, delta, got 'A'"),
        ("ties", {"variant": "soup"}, "variant must be one of peft, authors, mergekit, got 'soup'"),
        ("ties", {"variant": "mergekit"}, "variant 'mergekit' merges whole weights; it needs on="),
        ("dare_ties", {"variant": "mergekit"}, "it needs on='delta'"),
        ("dare_ties", {"drop_rate": 1.0}, r"drop_rate must be a number in \[0, 1\), got 1.0"),
        ("dare_ties", {"rescale": "l2"}, "rescale must be 'expected', 'l1' or None, got 'l2'"),
    ],
)
def test_what_there_is_not_is_refused_at_once(method, options, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge_update(ADAPTERS, method, **options)
