"""Elastic layers against products by hand, training that goes on, and exports with its logits."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import prunable
import pytest
import torch
from kills import Killed
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tipmini.errors import TipminiError
from tipmini.methods.groups import find_families
from tipmini.methods.subadapter import ordered, save_narrow
from tipmini.models import int4
from tipmini.models.base_folder import open_base
from tipmini_lab.experiments import supernet
from tipmini_lab.experiments.searching import Found, SearchRecipe, search
from tipmini_lab.experiments.supernet import NetworkRecipe, Space, SuperNet

RECIPE = NetworkRecipe(
    ranks=(4, 2, 1),
    rows={"openbookqa": 6, "rte": 2},
    held_out=3,
    calibration=4,
    batch=4,
    learning_rate=0.01,
)
WIDE = {"widths": (1.0, 0.75, 0.5)}


@pytest.fixture
def base(tmp_path, embedded, tokenizer, monkeypatch) -> Path:
    folder = prunable.embed(monkeypatch, tmp_path, embedded, tokenizer)
    monkeypatch.setattr(supernet, "keep_memory", lambda: None)
    monkeypatch.setattr(supernet, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr(int4, "grid", partial(int4.grid, group=8))
    return folder / "model"


@pytest.fixture
def made(base, tmp_path):
    def one(name: str = "net", trained: bool = True, **options) -> SuperNet:
        net = SuperNet(base, replace(RECIPE, **options), tmp_path / name)
        return net.run() if trained else net

    return one


def logits(model) -> torch.Tensor:
    tokens = torch.randint(9, 4000, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens).logits


# Layers and configurations ------------------------------------------------------------------------


def test_a_layer_computes_with_the_slices_of_now(made):
    net = made()
    assert any(pair.b.any() for pair in net.adapter().factors.values())
    up = net.layers["model.layers.1.mlp.up_proj"]
    pair = net.adapter().factors["model.layers.1.mlp.up_proj"]
    weight, x = up.base_layer.weight, torch.randn(3, 32)
    up.rank_now, up.rows = 2, 18
    by_hand = weight + pair.scaling * pair.b[:, :2] @ pair.a[:2]
    assert torch.allclose(up(x), x @ by_hand[:18].T, atol=1e-5)
    assert not torch.allclose(up(x), x @ weight[:18].T, atol=1e-3)
    assert up.shape == (18, 32, 2)
    up.rank_now = 0
    assert torch.equal(up(x), x @ weight[:18].T) and up.shape == (18, 32, 0)


def test_every_value_of_an_axis_is_drawn_and_each_axis_by_itself():
    space = Space(2, (4, 2, 1), (1.0, 0.5))
    assert space.axes == [[4, 2, 1], [4, 2, 1], [1.0, 0.5]] * 2
    drawn = {space.sample(torch.Generator().manual_seed(seed)) for seed in range(60)}
    assert [{c[n] for c in drawn} for n in range(6)] == [{4, 2, 1}, {4, 2, 1}, {1.0, 0.5}] * 2
    assert len(drawn) > 50
    again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    assert space.sample(again[0]) == space.sample(again[1])
    assert space.ends() == {
        "whole": (4, 4, 1.0) * 2,
        "midpoint": (2, 2, 0.5) * 2,
        "smallest": (1, 1, 0.5) * 2,
    }
    assert Space(1, (4, 2), (1.0,)).free == [0, 1]


def test_sizes_are_counted(made):
    """Of 2 layers with hidden 32, heads of 4 and 24 channels; half of the channels, rank 1."""
    net = made(trained=False, **WIDE)
    net.apply(net.space.ends()["smallest"])
    shapes = [(32, 32), (16, 32), (16, 32), (32, 32), (12, 32), (12, 32), (32, 12)]
    inside = sum(d * k + d + k for d, k in shapes)
    table = 49152 * 32
    found = net.facts()
    assert found["macs"] == 2 * inside + table
    assert found["parameters"] == 2 * inside + 2 * table + 5 * 32 == found["nonzero"]
    assert found["sparsity"] == 0


@pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.5), ("2:4", 0.5), (0.25, 0.25)])
def test_the_base_is_sparse_and_stays_so_on_a_grid(made, sparsity, share):
    for told in ({}, {"int4": True}):
        net = made(trained=False, sparsity=sparsity, **told)
        weight = net.layers["model.layers.0.self_attn.q_proj"].base_layer.weight
        zeros = (weight == 0).float().mean(1)
        assert (zeros == share).all() if not told else (zeros >= share).all()
        if sparsity == "2:4":
            assert ((weight == 0).view(32, -1, 4).sum(2) >= 2).all()


@pytest.mark.parametrize(
    ("order", "widths"),
    [("wanda", (1.0, 0.5)), ("wanda", (0.5,)), ("lora-guided", (0.5,)), ("magnitude", (0.5,))],
)
def test_ordering_the_channels_changes_nothing_that_is_computed(made, base, order, widths):
    net = made(trained=False, order=order, widths=widths)
    found = net.orders["model.layers.0.mlp"]
    assert sorted(found.tolist()) == list(range(24)) != found.tolist()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert torch.allclose(logits(net.model), logits(plain), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"form": "thick"}, "form"),
        ({"order": "alphabet"}, "order"),
        ({"form": "grid"}, "needs a base on a grid"),
        ({"form": "sparse", **WIDE}, "give one width"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options, told):
    with pytest.raises(TipminiError, match=told):
        NetworkRecipe(**options)


# Training -----------------------------------------------------------------------------------------


def test_a_killed_training_goes_on_to_the_same_factors(made, monkeypatch):
    whole = made("whole", **WIDE)
    assert len(whole.log["loss"]) == 2 and whole.log["temperature"]["rte"] == 1.0
    step = SuperNet.step

    def killed(self, number):
        if number == 1:
            raise Killed
        return step(self, number)

    monkeypatch.setattr(SuperNet, "every", 1)
    monkeypatch.setattr(SuperNet, "step", killed)
    with pytest.raises(Killed):
        made("again", **WIDE)
    monkeypatch.setattr(SuperNet, "step", step)
    again = made("again", **WIDE)
    for module, pair in whole.adapter().factors.items():
        other = again.adapter().factors[module]
        assert torch.equal(pair.a, other.a) and torch.equal(pair.b, other.b)
    assert again.log["loss"] == whole.log["loss"] and not again.saved.exists()
    read = made("again", **WIDE)  # a finished one is read
    assert torch.equal(*(next(iter(net.factors.values())) for net in (read, again)))
    assert all(pair.b.any() for pair in read.adapter().factors.values())


def test_what_a_step_does_not_draw_it_does_not_train(made):
    net = made(trained=False, **WIDE)
    net._measure_temperatures()
    smallest = net.space.ends()["smallest"]
    net.space.sample = lambda generator: smallest
    before = net.adapter().factors["model.layers.0.mlp.up_proj"].b.clone()
    net.step(0)
    after = net.adapter().factors["model.layers.0.mlp.up_proj"].b
    changed = before != after
    assert changed[:12, 0].any() and not changed[12:].any() and not changed[:, 1:].any()


@pytest.mark.parametrize("form", ["sparse", "grid"])
def test_what_is_trained_in_the_weights_is_merged_without_a_change(made, form):
    net = made(sparsity=0.5, int4=form == "grid", form=form, learning_rate=0.3)
    net.apply(net.space.ends()["midpoint"])
    before = logits(net.model)
    net.merge(form)
    assert torch.allclose(logits(net.model), before, atol=1e-5)
    for name, layer in net.layers.items():
        zero = layer.base_layer.weight == 0
        assert (layer.fixed[zero] == 0).all()
        assert not torch.equal(layer.fixed, layer.base_layer.weight)
        if form == "grid":
            scale, offset = net.grids[name]
            codes = layer.fixed.view(len(layer.fixed), -1, 8) / scale[..., None] + offset[..., None]
            assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert net.facts()["sparsity"] >= 0.5


# Exports ------------------------------------------------------------------------------------------


def test_stock_peft_loads_a_subadapter_of_the_network_with_its_logits(made, base, tmp_path):
    net = made(epochs=3)
    chosen = net.space.sample(torch.Generator().manual_seed(5))
    net.adapter(chosen).save(tmp_path / "sub")
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    loaded = PeftModel.from_pretrained(plain, tmp_path / "sub")
    assert loaded.peft_config["default"].rank_pattern
    net.apply(chosen)
    own = logits(net.model)
    assert torch.allclose(logits(loaded), own, atol=1e-5)
    net.apply(chosen, adapter=False)
    assert not torch.allclose(logits(net.model), own, atol=1e-3)


def test_transformers_loads_a_narrow_subnetwork_with_its_logits(made, base, tmp_path):
    net = made(epochs=3, **WIDE)
    chosen = (2, 4, 0.75, 1, 2, 0.5)
    folder, sub = open_base(base), net.adapter(chosen)
    every = find_families(AutoModelForCausalLM.from_pretrained(base))
    widths = {"model.layers.0.mlp": 18, "model.layers.1.mlp": 12}
    start = ordered(folder, every, net.orders)
    save_narrow(start, every, widths, tmp_path / "narrow", update=sub.factors)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").eval()
    assert loaded.config.intermediate_size == 18
    net.apply(chosen)
    assert torch.allclose(logits(loaded), logits(net.model), atol=1e-5)


# The search ---------------------------------------------------------------------------------------


class Toy:
    """Twenty axes of which four are better large, and one is better small."""

    def __init__(self, out: Path):
        self.space, self.out, self.looked = Space(10, (3, 2, 1), (1.0,)), out, 0
        self.recipe = replace(RECIPE, seed=1)

    def apply(self, configuration):
        self.now, self.looked = configuration, self.looked + 1

    def score(self):
        large = [value == 3 for value in self.now[:2] + self.now[3:5]]
        return sum(large) / 8 + (self.now[6] == 1) / 2

    def facts(self):
        return {"macs": sum(self.now)}


def test_the_search_finds_what_is_better_than_the_midpoint(tmp_path):
    toy = Toy(tmp_path)
    found = search(toy, SearchRecipe(population=12, generations=12))
    ends = toy.space.ends()
    assert found.configurations[:3] == [ends["midpoint"], ends["whole"], ends["smallest"]]
    middle = found.macs[0], found.scores[0]
    best, smallest = found.best(found.macs[1]), found.smallest(middle[1])
    assert found.scores[best] > max(found.scores[:3]) and found.scores[smallest] >= middle[1]
    assert toy.looked == len(set(found.configurations)) <= 12 * 12
    again = Toy(tmp_path)  # what was looked at is read
    assert search(again, SearchRecipe(12, 12)) == found and again.looked == 0


def test_what_is_chosen_of_a_search():
    found = Found([(0,), (1,), (2,), (3,)], [0.5, 0.7, 0.7, 0.6], [10.0, 12.0, 11.0, 8.0], 1.0)
    assert (found.best(12.0), found.best(10.0), found.smallest(0.5)) == (2, 3, 3)


def test_the_score_is_a_share_of_right_answers_or_a_likelihood(made):
    net = made(trained=False, rows={"openbookqa": 2, "coqa": 1})
    both, choices = net.score(), net.held_out.pop("openbookqa")
    likelihood = net.score()
    losses = [supernet.objective.losses(net.model, [row]).item() for row in net.held_out["coqa"]]
    assert likelihood == pytest.approx(math.exp(-sum(losses) / len(losses)))
    best = supernet.objective.all_scores(net.model, choices, 512).argmax(1).tolist()
    right = sum(one == row.gold for one, row in zip(best, choices, strict=True)) / len(choices)
    assert both == pytest.approx((right + likelihood) / 2)
