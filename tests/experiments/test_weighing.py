"""Learnt weights: what the gates compute, what is learnt of, and that a kill changes nothing."""

import json
from dataclasses import replace

import pytest
import torch
from labs import TASKS, llama, save_adapter
from peft import PeftModel

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini_lab.experiments.weighing import Weighed, Weighing, WeighingRecipe

RECIPE = WeighingRecipe(rows=6, stories=2, epochs=2, parts=2, tokens=600)


@pytest.fixture
def adapters(tmp_path):
    folders = {task: save_adapter(tmp_path / task, seed) for seed, task in enumerate(TASKS)}
    return {task: tm.load_adapter(folder) for task, folder in folders.items()}


@pytest.fixture
def make(adapters, tokenizer, tmp_path):
    return lambda **changes: Weighing(
        llama(),
        tokenizer,
        adapters,
        replace(RECIPE, **changes),
        [tmp_path / "weights.json"],
    )


def test_a_weighed_layer_is_the_sum_with_those_weights():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    pairs = [tm.LoraFactors(torch.randn(r, 6), torch.randn(5, r), s) for r, s in ((2, 1), (3, 2))]
    layer, x = Weighed(base, pairs, 0.5), torch.randn(4, 6)
    with torch.no_grad():
        layer.weights.copy_(torch.tensor([0.25, -1.5]))
    expected = base(x) + x @ (0.25 * pairs[0].delta() - 1.5 * pairs[1].delta()).T
    torch.testing.assert_close(layer(x), expected)


def test_the_model_in_training_is_the_merge_that_comes_out(make, adapters, tmp_path):
    run = make()
    weights = run.run()
    merged = tm.merge(adapters, "cat", weights=weights)
    merged.save(tmp_path / "merged", torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        stock = PeftModel.from_pretrained(llama(), tmp_path / "merged").eval()
        torch.testing.assert_close(run.model(tokens).logits, stock(tokens).logits)
    assert len({w for own in weights.values() for w in own.values()}) > 4


def test_learning_lowers_the_loss_it_is_told_by(make):
    run = make(epochs=12, learning_rate=0.1)
    run.run()
    first, last = run.log["loss"][:2], run.log["loss"][-2:]
    assert sum(last) < sum(first)


def test_every_row_counts_once_an_epoch(make):
    run = make(parts=4)
    for epoch in (0, 1):
        parts = [run._part("rte", number) for number in range(4 * epoch, 4 * epoch + 4)]
        assert sorted(id(e) for part in parts for e in part) == sorted(map(id, run.rows["rte"]))


def test_the_base_is_measured_without_any_adapter(make):
    """Its losses are those of a model whose gates are all 0, and the gates are as before."""
    run = make()
    run.measure_base()
    assert all((weight == RECIPE.start).all() for weight in run.factors.values())
    plain = make(start=0.0)
    plain.measure_base()
    assert run.log["base"] == plain.log["base"]


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_ends_as_if_it_never_was_killed(make, monkeypatch, step):
    whole = make()
    expected = whole.run()
    whole.files[0].unlink()
    monkeypatch.setattr(Weighing, "every", 1)
    killed, take = make(), Weighing.step

    def dying(self, number):
        if number == step:
            raise KeyboardInterrupt
        return take(self, number)

    monkeypatch.setattr(Weighing, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    monkeypatch.setattr(Weighing, "step", take)
    again = make()
    assert again.resume() == step and make().run() == expected


def test_another_seed_or_adapter_is_another_run(make, adapters):
    first, other = make().identity(), make(seed=1).identity()
    adapters["rte"] = adapters["rte"].map(lambda _, pair: tm.LoraFactors(pair.a, pair.b * 2, 1.0))
    assert len({first, other, make().identity()}) == 3


def test_adapters_of_other_modules_are_refused(make, adapters):
    module = adapters["rte"].modules[0]
    adapters["rte"] = tm.LoraAdapter({module: adapters["rte"].factors[module]})
    with pytest.raises(TipminiError, match="weigh needs adapters of the same modules; rte's are"):
        make()


def test_what_is_written_tells_how_it_was_made(make):
    run = make()
    weights, found = run.weights(), json.loads(run.files[0].read_text())
    assert found["weights"] == weights and set(weights) == set(TASKS)
    assert found["made"]["recipe"]["rows"] == 6 and len(found["made"]["loss"]) == 4
    assert not run.saved.exists()


def test_what_was_learnt_before_of_the_same_is_read(make, monkeypatch):
    weights = make().weights()
    monkeypatch.setattr(Weighing, "step", None)
    assert make().weights() == weights
    with pytest.raises(TypeError):
        make(seed=1).weights()
