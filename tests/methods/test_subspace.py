import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ADAPTERS, GRAMS, HIDDEN, MODULES, NORMS, random_adapter

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.models.adapter import LoraAdapter, LoraFactors
from tipmini.papers.ties import electing, trim

ONE = ADAPTERS["boolq"]


def inputs(seed: int, tokens: int = 60) -> torch.Tensor:
    scale = torch.linspace(0.2, 3.0, HIDDEN, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64) / 6
    x = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64)
    return x @ mixed * scale


# RegMean ---------------------------------------------------------------------------------------

X = {name: inputs(seed) for seed, name in enumerate(ADAPTERS)}
X_GRAMS = {name: dict.fromkeys(MODULES, x.T @ x) for name, x in X.items()}
SHARES = {"boolq": 1.0, "coqa": 0.25, "piqa": 3.0}
DOUBLE = {
    name: adapter.map(lambda _, f: LoraFactors(f.a.double(), f.b.double(), f.scaling))
    for name, adapter in ADAPTERS.items()
}


def loss(delta: torch.Tensor, module: str) -> torch.Tensor:
    """What RegMean minimises: sum of w ||X (Delta - Delta_i)^T||^2."""
    return sum(
        SHARES[name] * (X[name] @ (delta - DOUBLE[name].delta(module)).T).square().sum()
        for name in X
    )


def test_regmean_is_the_closed_form():
    merged = tm.merge(DOUBLE, "regmean", weights=SHARES, grams=X_GRAMS, shrink=1.0)
    for module in MODULES:
        parts = [(SHARES[n] * X_GRAMS[n][module], DOUBLE[n].delta(module)) for n in X]
        right, left = sum(gram for gram, _ in parts), sum(delta @ gram for gram, delta in parts)
        expected = torch.linalg.solve(right.T, left.T).T
        torch.testing.assert_close(merged.delta(module), expected, rtol=1e-3, atol=1e-4)


def test_regmean_is_where_the_loss_has_no_slope():
    merged = tm.merge(DOUBLE, "regmean", weights=SHARES, grams=X_GRAMS, shrink=1.0)
    for module in MODULES:
        delta = merged.delta(module).requires_grad_()
        best = loss(delta, module)
        slope = torch.autograd.grad(best, delta)[0]
        start = DOUBLE["boolq"].delta(module).requires_grad_()
        elsewhere = torch.autograd.grad(loss(start, module), start)[0]
        assert slope.norm() < 1e-4 * elsewhere.norm()
        for name in X:
            assert best < loss(DOUBLE[name].delta(module), module)


@pytest.mark.parametrize("shrink", [0.0, 0.5, 0.9, 1.0])
def test_shrink_multiplies_what_is_off_the_diagonal(shrink):
    off = {
        name: {m: g * shrink + torch.diag(g.diagonal()) * (1 - shrink) for m, g in grams.items()}
        for name, grams in X_GRAMS.items()
    }
    one = tm.merge(DOUBLE, "regmean", grams=X_GRAMS, shrink=shrink)
    two = tm.merge(DOUBLE, "regmean", grams=off, shrink=1.0)
    for module in MODULES:
        torch.testing.assert_close(one.delta(module), two.delta(module))


def test_without_the_off_diagonal_channels_are_averaged_by_their_power():
    merged = tm.merge(DOUBLE, "regmean", grams=X_GRAMS, shrink=0.0, weights=SHARES)
    for module in MODULES:
        power = torch.stack([SHARES[n] * X_GRAMS[n][module].diagonal() for n in X])
        deltas = torch.stack([DOUBLE[n].delta(module) for n in X])
        expected = (power[:, None] * deltas).sum(0) / power.sum(0)
        torch.testing.assert_close(merged.delta(module), expected, rtol=1e-5, atol=1e-5)


def test_with_equal_inputs_regmean_is_the_mean():
    same = dict.fromkeys(ADAPTERS, GRAMS["boolq"])
    merged = tm.merge(ADAPTERS, "regmean", grams=same)
    for module in MODULES:
        mean = sum(adapter.delta(module) for adapter in ADAPTERS.values()) / 3
        torch.testing.assert_close(merged.delta(module), mean, rtol=1e-3, atol=1e-3)
        assert merged.factors[module].a.dtype == torch.float32 and merged.ranks[module] == 12


@given(st.floats(0.01, 100))
def test_weights_matter_in_proportion_alone(scale):
    scaled = {name: weight * scale for name, weight in SHARES.items()}
    one, two = (
        tm.merge(DOUBLE, "regmean", grams=X_GRAMS, weights=weights) for weights in (SHARES, scaled)
    )
    torch.testing.assert_close(one.delta(MODULES[0]), two.delta(MODULES[0]))


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


# KnOTS -----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("order", list(itertools.permutations(ADAPTERS))[1:])
def test_the_order_of_the_adapters_changes_rounding_alone(order):
    shuffled = [DOUBLE[name] for name in order]
    one, two = (tm.merge(given, "knots") for given in (list(DOUBLE.values()), shuffled))
    for module in MODULES:
        torch.testing.assert_close(one.delta(module), two.delta(module))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 5}, r"density must lie in \[0, 1\], got 5"),
        ({"variant": "authors"}, "variant must be one of peft, mergekit, got 'authors'"),
        ({"scaled": "yes"}, "scaled must be one of True, False, got 'yes'"),
    ],
)
def test_what_knots_has_not_is_refused(options, message):
    with pytest.raises(TipminiError, match=message):
        tm.merge_update(ADAPTERS, "knots", **options)
