"""What no merge may depend on, and tensors at the edge of what there is."""

import itertools

import pytest
import torch
from tiny import ADAPTERS, GRAMS, MODULES, NORMS, bits, random_adapter, random_norms
from ways import IN_DELTAS, POSITIVE, each_way, measured, merged_by

import tipmini as tm
from tipmini.models.adapter import LoraAdapter
from tipmini.models.factors import LoraFactors

# Order, threads, dtypes ------------------------------------------------------------------------


@each_way
def test_the_order_of_a_mapping_changes_no_bit(method, options):
    reference = bits(merged_by(method, **options))
    for order in list(itertools.permutations(ADAPTERS))[1:]:
        shuffled = {}
        for name in order:  # nor does the order of the modules
            factors = dict(reversed(ADAPTERS[name].factors.items()))
            shuffled[name] = LoraAdapter(factors, "tiny")
        assert bits(merged_by(method, shuffled, **options)) == reference


@each_way
def test_the_order_of_a_list_changes_rounding_alone(method, options):
    if method.startswith("dare"):  # in a list an adapter's name, so its draws, is its place
        options = options | {"drop_rate": 0.0}
    lists = {"norms": NORMS, "grams": GRAMS, "weights": POSITIVE}
    merged = [
        tm.merge(
            [ADAPTERS[n] for n in order],
            method,
            **{what: [values[n] for n in order] for what, values in lists.items()},
            **options,
        )
        for order in (list(ADAPTERS), list(ADAPTERS)[::-1])
    ]
    for module in MODULES:
        torch.testing.assert_close(*(m.delta(module) for m in merged), rtol=1e-3, atol=1e-3)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    yield lambda: torch.set_num_threads(2)
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("method", "options"),
    [*[(m, {"on": on}) for m in IN_DELTAS for on in ("factors", "delta")], ("cat", {})],
)
def test_the_number_of_threads_changes_no_bit(two_threads, method, options):
    """In tensors large enough for torch to share them out, of products that are exact: how a
    product of matrices rounds is its library's, and with AVX2 depends on the threads."""
    generator = torch.Generator().manual_seed(0)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randint(-500, 501, shape, generator=generator) / 512

    modules = ["layers.0.q", "layers.1.q"]
    adapters = [
        LoraAdapter({m: LoraFactors(factor(24, 3001), factor(101, 24), 0.5) for m in modules})
        for _ in range(2)
    ]
    norms = [random_norms(adapter, seed) for seed, adapter in enumerate(adapters)]
    results = []
    for setting in (lambda: torch.set_num_threads(1), two_threads):
        setting()
        _, update = tm.merge_update(adapters, method, weights=[0.7, 0.4], norms=norms, **options)
        tensors = [[m] if torch.is_tensor(m) else [m.a, m.b] for m in update.values()]
        results.append([tensor for own in tensors for tensor in own])
    assert all(map(torch.equal, *results))


def half(dtype):
    return {n: random_adapter(i, dtype=dtype) for i, n in enumerate(ADAPTERS)}


def changed(adapters, change):
    return {name: adapter.map(lambda _, f: change(f)) for name, adapter in adapters.items()}


def widened(pair: LoraFactors) -> LoraFactors:
    return LoraFactors(pair.a.float(), pair.b.float(), pair.scaling)


def strided(pair: LoraFactors) -> LoraFactors:
    a, b = pair.a.T.contiguous().T.requires_grad_(), pair.b.T.contiguous().T
    assert not a.is_contiguous()
    return LoraFactors(a, b, pair.scaling)


HALF, BRAIN = half(torch.float16), half(torch.bfloat16)
A_IN_DOUBLE = ADAPTERS | changed(
    {"coqa": ADAPTERS["coqa"]}, lambda f: LoraFactors(f.a.double(), f.b, f.scaling)
)


@pytest.mark.parametrize(
    ("adapters", "same", "dtype", "apart"),
    [
        (HALF, changed(HALF, widened), torch.float32, 0),
        (BRAIN, changed(BRAIN, widened), torch.float32, 0),
        (A_IN_DOUBLE, ADAPTERS, torch.float64, 1e-3),  # a double among them makes all double
        (changed(ADAPTERS, strided), ADAPTERS, torch.float32, 1e-3),
    ],
    ids=["float16", "bfloat16", "double", "strides and gradients"],
)
@each_way
def test_how_factors_are_stored_changes_nothing(method, options, adapters, same, dtype, apart):
    before = {name: bits_of(adapter) for name, adapter in adapters.items()}
    found, expected = merged_by(method, adapters, **options), merged_by(method, same, **options)
    for module in MODULES:
        pair = found.factors[module]
        assert pair.a.dtype == pair.b.dtype == dtype and not pair.a.requires_grad
        one, two = found.delta(module).float(), expected.delta(module)
        torch.testing.assert_close(one, two, rtol=apart, atol=apart)
    assert {name: bits_of(adapter) for name, adapter in adapters.items()} == before  # left alone


def bits_of(adapter: LoraAdapter) -> dict[str, bytes]:
    return bits(
        adapter.map(lambda _, f: LoraFactors(*(t.detach().double() for t in (f.a, f.b)), 1.0))
    )


# Edges -----------------------------------------------------------------------------------------


@each_way
def test_adapters_of_zeros_make_zeros(method, options):
    zeros = ADAPTERS["boolq"].map(
        lambda _, f: LoraFactors(torch.zeros_like(f.a), torch.zeros_like(f.b), f.scaling)
    )
    merged = merged_by(method, dict.fromkeys(ADAPTERS, zeros), **options)
    assert not any(merged.delta(module).any() for module in MODULES)
    beside = merged_by(method, ADAPTERS | {"coqa": zeros}, **options)
    assert all(beside.delta(module).isfinite().all() for module in MODULES)


@pytest.mark.parametrize(("d", "k", "rank"), [(2, 9, 5), (9, 2, 5), (1, 1, 3), (6, 7, 1)])
@each_way
def test_a_rank_above_the_sizes_is_no_obstacle(method, options, d, k, rank):
    generator = torch.Generator().manual_seed(0)

    def adapter() -> LoraAdapter:
        a, b = (torch.randn(s, generator=generator) for s in [(rank, k), (d, rank)])
        return LoraAdapter({f"layers.{i}.q": LoraFactors(a, b, 2.0) for i in range(2)})

    adapters = [adapter(), adapter()]
    needs = [measured(own, seed) for seed, own in enumerate(adapters)]
    lists = {what: [need[what][0] for need in needs] for what in ("norms", "grams")}
    merged = tm.merge(adapters, method, **lists, **options)
    for module in adapters[0].modules:
        assert merged.factors[module].shape == (d, k) and merged.delta(module).isfinite().all()


PRUNED_AWAY = [
    ("magnitude", {"sparsity": 1.0}),
    ("wanda", {"sparsity": 1.0}),
    ("wanda", {"sparsity": 1.0, "rescale": True}),
    ("tip", {"sparsity": 1.0, "shift_range": 0.0, "rescale": True}),
    ("ties", {"density": 0.0}),
    ("knots", {"density": 0.0}),
]


@pytest.mark.parametrize(("method", "options"), PRUNED_AWAY)
def test_with_nothing_left_the_result_is_zero_not_nan(method, options):
    for space in [{}] if method == "knots" else [{"on": "factors"}, {"on": "delta"}]:
        merged = merged_by(method, **options, **space)
        assert not any(merged.delta(module).any() for module in MODULES)
