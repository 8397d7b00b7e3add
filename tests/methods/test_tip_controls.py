"""TIP with one thing taken away: what is pruned at the S_l, and which layer gets which S_l."""

import math

import pytest
import torch
from slow_tip import slow_layers, slow_merge
from tiny import ADAPTERS, HIDDEN, NORMS, random_norms, whole_adapter

import tipmini as tm
from tipmini.errors import TipminiError

PAIR = {"one": whole_adapter(1), "two": whole_adapter(2)}  # float64, many equal scores
PAIR_NORMS = {
    name: {key: norm.double() for key, norm in random_norms(adapter, 7).items()}
    for name, adapter in PAIR.items()
}
WEIGHTS = {"one": 1.0, "two": 1.0}
PRINTED = {"sparsity": 0.5, "on": "factors", "layer": "block", "mean": "elements", "sign": 1}
PRINTED |= {"normalized": "within", "shift_range": 1.0, "bounds": "clip", "rescale": False}


def zeros(adapter: tm.LoraAdapter) -> list[int]:
    """How many elements of the first row of A are gone, a block; cat of one adapter keeps A."""
    blocks = tm.tip_layers(adapter).values()
    return [int((adapter.factors[modules[0]].a[0] == 0).sum()) for modules in blocks]


def pruned(**options) -> tm.LoraAdapter:
    given = {"norms": {"boolq": NORMS["boolq"]}, "summation": "cat", "sparsity": 0.5}
    return tm.merge({"boolq": ADAPTERS["boolq"]}, "tip", **given | options)


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_by_size_alone_is_the_slow_merge_with_norms_of_1(group):
    """The sparsities still follow from the real norms."""
    reading = PRINTED | {"group": group}
    layers = slow_layers(PAIR, PAIR_NORMS, reading)
    alike = {n: {k: torch.ones_like(v) for k, v in m.items()} for n, m in PAIR_NORMS.items()}
    expected = slow_merge(PAIR, alike, WEIGHTS, reading, layers)
    found = tm.merge(PAIR, "tip", norms=PAIR_NORMS, score="magnitude", **reading)
    for module, tensors in expected.items():
        torch.testing.assert_close(found.factors[module].a, tensors["a"])
        torch.testing.assert_close(found.factors[module].b, tensors["b"])


def test_at_random_as_many_go_as_by_score():
    drawn, own = pruned(score="random"), pruned()
    shares = tm.tip_sparsities(ADAPTERS["boolq"], NORMS["boolq"], 0.5).tolist()
    assert zeros(drawn) == zeros(own) == [math.floor(HIDDEN * share) for share in shares]
    same = [torch.equal(drawn.factors[m].a, own.factors[m].a) for m in own.modules]
    assert not all(same)


@pytest.mark.parametrize("option", [{"score": "random"}, {"assignment": "shuffled"}])
def test_a_draw_depends_on_the_seed_and_the_name_alone(option):
    both = {name: ADAPTERS[name] for name in ("boolq", "piqa")}
    norms = {name: NORMS[name] for name in both}
    one = tm.merge(both, "tip", norms=norms, seed=1, **option)
    turned = tm.merge(dict(reversed(both.items())), "tip", norms=norms, seed=1, **option)
    other = tm.merge(both, "tip", norms=norms, seed=2, **option)
    assert all(torch.equal(one.delta(m), turned.delta(m)) for m in one.modules)
    assert not all(torch.equal(one.delta(m), other.delta(m)) for m in one.modules)


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
    static = tm.merge(
        {"boolq": ADAPTERS["boolq"]},
        "wanda",
        norms={"boolq": NORMS["boolq"]},
        sparsity=mean[0].item(),
        summation="cat",
    )
    same = pruned(assignment="mean", **options)
    assert all(torch.equal(same.delta(m), static.delta(m)) for m in same.modules)


@pytest.mark.parametrize("function", [tm.tip_prune, tm.tip_sparsities])
@pytest.mark.parametrize("option", [{"score": "random"}, {"assignment": "shuffled"}])
def test_where_no_seed_is_known_nothing_is_drawn(function, option):
    with pytest.raises(TipminiError, match="need a seed; use merge"):
        function(ADAPTERS["boolq"], NORMS["boolq"], **option)


@pytest.mark.parametrize("option", [{"score": "size"}, {"assignment": "own"}])
def test_an_unknown_word_is_refused(option):
    with pytest.raises(TipminiError, match="must be one of"):
        pruned(**option)
