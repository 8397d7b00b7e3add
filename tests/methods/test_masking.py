"""Masked passes against zeroed weights, and how masks follow from importances."""

import prunable
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tipmini.errors import TipminiError
from tipmini.methods.groups import CHANNELS, HEADS, Family, find_families
from tipmini.methods.pruner import Pruner, load_masks, masked, save_masks
from tipmini.papers.loraprune import offsets, staggered_count


@pytest.mark.parametrize("shape", prunable.SHAPES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_masked_pass_is_that_of_a_model_without_the_columns(shape, wrapped):
    """What o and down read of a group that is gone is zero, whatever made it."""
    model = prunable.model(shape)
    families = find_families(model)
    masks = prunable.random_masks(families, heads=1, channels=7)
    zeroed = prunable.model(shape)
    worn = prunable.with_lora(model) if wrapped else model
    if wrapped:  # merged, since zeros in W_0 alone would leave the adapter's part
        merged = prunable.with_lora(prunable.model(shape)).merge_and_unload()
        zeroed.load_state_dict(merged.state_dict())
    for family in families:
        last = family.members[-1].module  # o or down
        columns = masks[family.name].repeat_interleave(
            zeroed.get_submodule(last).in_features // family.count
        )
        zeroed.get_submodule(last).weight.data *= columns
    before = prunable.logits(worn)
    with masked(worn, masks):
        found = prunable.logits(worn)
    torch.testing.assert_close(found, prunable.logits(zeroed), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)
    assert torch.equal(prunable.logits(worn), before)  # nothing is left behind


def test_masks_are_read_anew_at_every_pass():
    model = prunable.model()
    families = find_families(model)
    masks = prunable.random_masks(families, heads=0, channels=0)
    with masked(model, masks):
        assert torch.equal(prunable.logits(model), prunable.logits(prunable.model()))
        masks |= prunable.random_masks(families, heads=1, channels=3)
        changed = prunable.logits(model)
        assert not torch.allclose(changed, prunable.logits(prunable.model()), atol=1e-2)


def test_no_gradient_reaches_a_group_that_is_gone():
    model = prunable.with_lora(prunable.model())
    families = find_families(model)
    masks = prunable.random_masks(families, heads=1, channels=7)
    with masked(model, masks):
        model(prunable.tokens()).logits.square().sum().backward()
    for family in families:
        rows = ~masks[family.name]
        for member in (m for m in family.members if m.dim == 0):
            grad = model.get_base_model().get_submodule(member.module).lora_B["default"].weight.grad
            gone = rows.repeat_interleave(len(grad) // family.count)
            assert not grad[gone].any() and grad[~gone].any()


def test_masks_of_another_model_are_refused():
    masks = {"model.layers.0.mlp": torch.ones(5, dtype=torch.bool)}
    with (
        pytest.raises(TipminiError, match=r"mask of model\.layers\.0\.mlp is \(5,\).* 24 channels"),
        masked(prunable.model(), masks),
    ):
        pass


def test_saved_masks_are_read_again(tmp_path):
    masks = prunable.random_masks(find_families(prunable.model()), heads=1, channels=7)
    (tmp_path / "masks.safetensors").write_bytes(save_masks(masks))
    found = load_masks(tmp_path / "masks.safetensors")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_a_file_without_masks_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(TipminiError, match="weight is no mask"):
        load_masks(tmp_path / "x.safetensors")


# How masks follow from importances ----------------------------------------------------------------


FAMILIES = [
    Family(f"layers.{i}.{kind}", i, kind, count, 10, ())
    for i in range(3)
    for kind, count in ((HEADS, 4), (CHANNELS, 12))
]


def scores(seed):
    generator = torch.Generator().manual_seed(seed)
    return {f.name: torch.rand(f.count, generator=generator) * (1 + f.layer) for f in FAMILIES}


def pruner(threshold="layer", heads=2, channels=6):
    final = {f.name: heads if f.kind == HEADS else channels for f in FAMILIES}
    return Pruner(FAMILIES, final, threshold=threshold)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).map(sorted), st.integers(0, 9))
def test_what_is_gone_stays_gone(fractions, seed):
    for threshold in ("layer", "global"):
        one, former = pruner(threshold), None
        for number, fraction in enumerate([*fractions, 1.0]):
            one.observe(scores(seed + number))
            one.remove(fraction)
            masks = {name: mask.clone() for name, mask in one.masks.items()}
            if former:
                assert not any((masks[n] & ~former[n]).any() for n in masks)
            former = masks
        assert sum(one.counts.values()) == sum(one.final.values())
        if threshold == "layer":
            assert one.counts == one.final


def test_the_least_important_groups_of_every_family_go():
    one = pruner()
    found = scores(0)
    one.observe(found)
    one.remove(0.5)
    for family in FAMILIES:
        gone = (~one.masks[family.name]).nonzero()[:, 0].tolist()
        offset = offsets(3)[family.layer]
        count = staggered_count(one.final[family.name], 0.5, offset)
        assert abs(count - one.final[family.name] / 2) < 1
        lowest = found[family.name].argsort()[:count].tolist()
        assert sorted(gone) == sorted(lowest)


def test_layers_take_turns():
    """Of one group a layer, a third of the layers have lost theirs at a third of the way."""
    one = pruner(heads=1, channels=6)
    one.observe(scores(0))
    for fraction, heads in ((0.1, 0), (1 / 3, 1), (2 / 3, 2), (1.0, 3)):
        one.remove(fraction)
        counts = {
            kind: [n for f, n in _counted(one) if f.kind == kind] for kind in (HEADS, CHANNELS)
        }
        assert sum(counts[HEADS]) == heads and max(counts[HEADS]) <= 1
        assert abs(sum(counts[CHANNELS]) - 18 * fraction) <= 0.5


def _counted(one):
    return [(family, one.counts[family.name]) for family in FAMILIES]


@pytest.mark.parametrize("fractions", [[1.0], [0.3, 0.6, 1.0]])
def test_one_threshold_leaves_one_group_of_each_family(fractions):
    """The first layer's groups are all worth less than any other's."""
    one = pruner("global", heads=3, channels=11)
    found = {name: values + name.startswith("layers.0") for name, values in scores(0).items()}
    for fraction in fractions:
        one.observe({name: -values for name, values in found.items()})
        one.remove(fraction)
        assert all(mask.any() for mask in one.masks.values())
    assert sum(one.counts.values()) == sum(one.final.values())
    best = found["layers.0.heads"].argmin()
    assert one.masks["layers.0.heads"].nonzero().tolist() == [[best]]


def test_one_threshold_takes_the_least_important_of_all_layers():
    one = pruner("global")
    found = scores(0)
    one.observe(found)
    one.remove(1.0)
    for kind, count in ((HEADS, 6), (CHANNELS, 18)):
        names = [f.name for f in FAMILIES if f.kind == kind]
        every = torch.cat([found[name] for name in names])
        p = every.sort().values[count - 1]
        for name in names:
            assert one.masks[name].tolist() == (found[name] > p).tolist()


def test_a_family_that_is_exempt_is_so_with_one_threshold_too():
    final = {f.name: 0 if f.layer == 0 else 3 for f in FAMILIES}
    one = Pruner(FAMILIES, final, threshold="global")
    one.observe(scores(0))
    one.remove(1.0)
    assert all(one.masks[f.name].all() for f in FAMILIES if f.layer == 0)
    assert sum(one.counts.values()) == sum(final.values())


def test_importances_are_averaged_and_a_step_with_nan_is_left_out():
    one = pruner()
    one.observe(scores(0))
    kept = {name: average.clone() for name, average in one.averages.items()}
    bad = scores(1)
    bad[FAMILIES[0].name][0] = torch.nan
    one.observe(bad)
    assert all(torch.equal(one.averages[name], kept[name]) for name in kept)
    for name, first in scores(0).items():
        torch.testing.assert_close(kept[name], 0.1 * first)


def test_without_any_importance_nothing_is_removed():
    one = pruner()
    bad = {name: torch.full_like(found, torch.nan) for name, found in scores(0).items()}
    one.observe(bad)
    with pytest.raises(TipminiError, match="no step had finite importances"):
        one.remove(1.0)
    assert one.skipped == 1 and all(mask.all() for mask in one.masks.values())
