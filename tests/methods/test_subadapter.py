"""Sub-adapters in stock PEFT, merges that keep zeros, and smaller bases that transformers loads."""

from dataclasses import replace

import prunable
import pytest
import torch
from peft import PeftModel
from tiny import MODULES, llama, random_adapter, tokens
from transformers import AutoModelForCausalLM

from tipmini.errors import TipminiError
from tipmini.methods.groups import CHANNELS, find_families
from tipmini.methods.subadapter import merged, ordered, save_narrow, subadapter
from tipmini.models import int4
from tipmini.models.base_folder import open_base
from tipmini.models.factors import LoraFactors

RANKS = {module: 1 + number % 4 for number, module in enumerate(MODULES)}  # of 4


@torch.no_grad()
def test_stock_peft_loads_a_subadapter_with_the_same_logits(tmp_path):
    """The slices' logits, computed by hand into the weights; every rank differs from module to
    module, and the scaling is the whole adapter's."""
    whole = random_adapter(0)
    subadapter(whole, RANKS).save(tmp_path / "sub")
    by_hand = llama()
    for module, rank in RANKS.items():
        pair, layer = whole.factors[module], by_hand.get_submodule(module)
        layer.weight += pair.scaling * pair.b[:, :rank] @ pair.a[:rank]
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "sub")
    config = loaded.peft_config["default"]
    assert len(config.rank_pattern) == 4 and set(config.alpha_pattern.values()) <= {2, 4, 6, 8}
    found = loaded(tokens(2, 7)).logits
    assert torch.allclose(found, by_hand(tokens(2, 7)).logits, atol=1e-4)
    assert not torch.allclose(found, llama()(tokens(2, 7)).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("ranks", "told"),
    [({"no.module": 2}, "no module 'no.module'"), ({MODULES[0]: 5}, "rank must be 1 to 4, got 5")],
)
def test_ranks_that_there_are_not_are_refused(ranks, told):
    with pytest.raises(TipminiError, match=told):
        subadapter(random_adapter(0), ranks)


def test_merges_by_what_they_keep():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 64, generator=generator)
    weight *= torch.rand(8, 64, generator=generator) < 0.5
    scale, zero = int4.grid(weight)
    start = merged(weight, _pair(generator, 0.0), "grid", (scale, zero))
    pair = _pair(generator, 1.0)
    dense, sparse = merged(start, pair), merged(start, pair, "sparse")
    assert (dense != 0).all() and torch.equal(sparse == 0, start == 0)
    assert torch.equal(sparse[start != 0], dense[start != 0])
    grid = merged(start, pair, "grid", (scale, zero))
    codes = grid / scale + zero
    assert torch.allclose(codes, codes.round(), atol=1e-4) and (grid[start == 0] == 0).all()
    assert not torch.equal(grid, start)
    with pytest.raises(TipminiError, match="needs the scales"):
        merged(start, pair, "grid")
    with pytest.raises(TipminiError, match="how"):
        merged(start, pair, "thick")


def _pair(generator: torch.Generator, size: float) -> LoraFactors:
    a, b = (torch.randn(*shape, generator=generator) for shape in ((2, 64), (8, 2)))
    return LoraFactors(a, size * b, 1.0)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_transformers_loads_a_narrow_base_with_the_same_logits(tmp_path, tied):
    """Channels in another order, layers of 24, 12 and 6 of them, an adapter on all matrices."""
    model = prunable.model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "base")
    families = find_families(model)
    mlps = [family for family in families if family.kind == CHANNELS]
    widths = dict(zip((f.name for f in mlps), (12, 6, 10), strict=True))
    orders = {f.name: torch.randperm(f.count) for f in mlps}
    generator, update = torch.Generator().manual_seed(1), {}
    for module in (member.module for family in families for member in family.members):
        d, k = model.get_submodule(module).weight.shape
        a, b = (torch.randn(*shape, generator=generator) for shape in ((2, k), (d, 2)))
        update[module] = LoraFactors(0.3 * a, 0.3 * b, 1.0)
    base = ordered(open_base(tmp_path / "base"), families, orders)
    save_narrow(base, families, widths, tmp_path / "narrow", update=update)

    for family in families:  # by hand: the masks on the channels of the reordered model
        for module, dim in family.members:
            weight = model.get_submodule(module).weight
            if family.kind == CHANNELS:
                weight.copy_(weight.index_select(dim, orders[family.name]))
            weight += update[module].delta()
            if family.kind == CHANNELS and dim == 1:
                weight[:, widths[family.name] :] = 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").eval()
    assert loaded.config.intermediate_size == 12
    assert loaded.num_parameters() < model.num_parameters()
    assert torch.allclose(prunable.logits(loaded), prunable.logits(model), atol=1e-5)


@torch.no_grad()
def test_another_order_of_channels_computes_the_same(tmp_path):
    model = prunable.model()
    model.save_pretrained(tmp_path / "base")
    families = find_families(model)
    orders = {f.name: torch.arange(f.count).flip(0) for f in families if f.kind == CHANNELS}
    changed = ordered(open_base(tmp_path / "base"), families, orders)
    widths = {f.name: f.count for f in families if f.kind == CHANNELS}
    save_narrow(changed, families, widths, tmp_path / "same")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "same").eval()
    assert torch.allclose(prunable.logits(loaded), prunable.logits(model), atol=1e-5)
    before = model.get_submodule("model.layers.0.mlp.up_proj").weight
    after = loaded.get_submodule("model.layers.0.mlp.up_proj").weight
    assert torch.equal(after, before.flip(0))


def test_factors_are_not_changed_in_place(tmp_path):
    """What a narrow base is saved with stays whole for whoever holds it."""
    model = prunable.model()
    model.save_pretrained(tmp_path / "base")
    families = find_families(model)
    down = "model.layers.0.mlp.down_proj"
    pair = LoraFactors(torch.ones(1, 24), torch.ones(32, 1), 1.0)
    kept = replace(pair, a=pair.a.clone())
    widths = {f.name: 8 for f in families if f.kind == CHANNELS}
    save_narrow(
        open_base(tmp_path / "base"), families, widths, tmp_path / "out", update={down: pair}
    )
    assert torch.equal(pair.a, kept.a)
