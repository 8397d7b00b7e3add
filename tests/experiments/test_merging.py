"""Sizes of merges, and a plain sum scaled to another's size, against dense deltas."""

import pytest
import torch
from tiny import ADAPTERS, NORMS, random_adapter

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab.experiments.merging import grouped_norms, scaled_to, sizes

PRUNED = tm.merge(ADAPTERS, "tip", norms=NORMS, sparsity=0.6)
SUM = tm.merge(ADAPTERS, "cat")


def dense(adapter: tm.LoraAdapter, prefix: str = "") -> torch.Tensor:
    """All elements of the deltas of the modules below a prefix."""
    modules = [m for m in adapter.modules if m.startswith(prefix)]
    return torch.cat([adapter.delta(m).double().flatten() for m in modules])


@pytest.mark.parametrize("unpruned", ["linear", "cat"])
def test_as_a_whole(unpruned):
    plain = tm.merge(ADAPTERS, unpruned)
    scaled = scaled_to(plain, PRUNED)
    assert dense(scaled).norm() == pytest.approx(dense(PRUNED).norm().item(), rel=1e-5)
    ratio = dense(scaled) / dense(plain)
    assert ratio.min().item() == pytest.approx(ratio.max().item(), rel=1e-2)


def test_block_by_block():
    scaled = scaled_to(SUM, PRUNED, "block")
    ratios = set()
    for block in tm.tip_layers(SUM):
        want = dense(PRUNED, f"{block}.").norm().item()
        assert dense(scaled, f"{block}.").norm().item() == pytest.approx(want, rel=1e-5)
        ratios.add(round(want / dense(SUM, f"{block}.").norm().item(), 6))
    assert len(ratios) == len(tm.tip_layers(SUM))


def test_an_adapter_has_its_own_size():
    same = scaled_to(SUM, SUM, "block")
    assert all(torch.allclose(same.delta(m), SUM.delta(m), atol=1e-5) for m in SUM.modules)


def test_what_is_nothing_stays_nothing():
    nothing = SUM.map(lambda _, pair: tm.LoraFactors(pair.a * 0, pair.b, 1.0))
    assert not dense(scaled_to(nothing, PRUNED)).any()
    assert not dense(scaled_to(SUM, nothing, "block")).any()


def test_another_scaling_is_no_other_size():
    adapter = random_adapter(3, scaling=2.0)
    unscaled = adapter.map(lambda _, pair: tm.LoraFactors(pair.a * 2, pair.b, 1.0))
    assert grouped_norms(adapter) == pytest.approx(grouped_norms(unscaled))


def test_sizes_are_those_of_the_dense_deltas():
    found = sizes(PRUNED, SUM)
    assert found == pytest.approx(
        {
            "norm": dense(PRUNED).norm().item(),
            "sum": dense(SUM).norm().item(),
            "distance": (dense(PRUNED) - dense(SUM)).norm().item(),
        },
        rel=1e-5,
    )


def test_an_unknown_group_is_refused():
    with pytest.raises(TipminiError, match="by must be one of model, block, got 'layer'"):
        scaled_to(SUM, PRUNED, "layer")
