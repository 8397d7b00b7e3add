"""Every path with the model on another device than the CPU gives what it gives on the CPU.

No GPU is needed: `elsewhere` stands in for one, and refuses what a GPU would.
"""

from dataclasses import replace

import elsewhere
import prunable
import pytest
import torch
from labs import TASKS
from tiny import ADAPTERS
from torch.testing import assert_close
from ways import each_way, merged_by

import tipmini as tm
from tipmini.methods.blockwise import merge_blockwise
from tipmini.methods.table import BY_BLOCK
from tipmini.models.factors import LoraFactors
from tipmini_lab.evaluation import model
from tipmini_lab.experiments import pruning, training
from tipmini_lab.experiments.agreeing import DistillRecipe
from tipmini_lab.experiments.distilling import Distilling
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.pruning import PruningRecipe
from tipmini_lab.experiments.weighing import Weighing, WeighingRecipe


@pytest.fixture
def both(monkeypatch):
    """Calls something with models on the CPU, then with the device there; returns both results."""
    load = model.load_base

    def loaded(path, dtype="auto", device="cpu", attention=model.llama.NAME):
        return elsewhere.to(load(path, dtype, "cpu", attention))

    def called(work):
        here = work()
        for module in (model, pruning, training):
            monkeypatch.setattr(module, "load_base", loaded)
        with elsewhere.device():
            there = work()
        return here, there

    return called


def test_what_a_gpu_refuses_is_refused():
    with elsewhere.device():
        there = torch.ones(3, device=elsewhere.NAME)
        with pytest.raises(RuntimeError, match="and on the CPU"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there + 1).cpu().tolist() == [2.0, 2.0, 2.0]


@each_way
def test_merge(method, options):
    there = {name: each.map(lambda _, p: moved(p)) for name, each in ADAPTERS.items()}
    here = merged_by(method, **options)
    with elsewhere.device():
        merged = merged_by(method, there, **options)
        assert all(isinstance(pair.a, elsewhere.Elsewhere) for pair in merged.factors.values())
        for module, pair in here.factors.items():
            assert_close(merged.factors[module].a.cpu(), pair.a)
            assert_close(merged.factors[module].b.cpu(), pair.b)


def moved(pair: LoraFactors) -> LoraFactors:
    return replace(pair, a=elsewhere.Elsewhere(pair.a), b=elsewhere.Elsewhere(pair.b))


@pytest.mark.parametrize("statistic", ["wanda", "gram"])
def test_calibrate(profile, both, statistic):
    here, there = both(lambda: Lab(profile).norms.measure("rte", statistic=statistic))
    assert here.keys() == there.keys()
    for module, norm in here.items():
        assert_close(there[module], norm)


def test_evaluate(profile, both):
    """A choice's log-likelihoods, and an answer that is generated."""

    def answers():
        lab = Lab(profile)
        adapter = lab.adapter_path("rte")
        return [lab.measure("single", adapter, lab.task(task)) for task in ("rte", "coqa")]

    here, there = both(answers)
    for one, other in zip(here, there, strict=True):
        assert one.values == other.values
        assert_close(one.margins, other.margins)


def test_weigh(profile, both, tmp_path):
    recipe = WeighingRecipe(rows=4, stories=1, epochs=1, parts=1)
    files = iter(tmp_path / f"{number}.json" for number in range(2))

    def weights():
        lab = Lab(profile)
        return Weighing(lab.trainable, lab.tokenizer, lab.adapters, recipe, [next(files)]).weights()

    here, there = both(weights)
    for task in TASKS:
        assert_close(there[task], here[task])


def test_distill(profile, both, tmp_path):
    recipe = DistillRecipe(rank=4, rows=3, stopping=2, epochs=1, parts=1)
    files = iter(tmp_path / f"{number}.safetensors" for number in range(2))

    def distances():
        lab = Lab(profile)
        start = tm.merge(lab.adapters, "cat", weights="chosen")
        told = lab.adapters, start, recipe, next(files)
        run = Distilling(lab.trainable, lab.tokenizer, *told)
        assert run.run().modules == start.modules
        return [each["R"] for each in run.log["stopping"]]

    here, there = both(distances)
    assert len(here) == 2 and here[0] != here[1]
    assert_close(there, here)


@pytest.mark.parametrize("method", BY_BLOCK)
def test_blockwise(profile, both, method):
    def merged():
        lab = Lab(profile)
        texts = {task: lab.norms.texts(task) for task in lab.adapters}
        rows = {t: lab.norms.padded(lab.tokenizer(own)["input_ids"]) for t, own in texts.items()}
        base = model.load_base(lab.model_path, lab.dtype, lab.profile.device)
        return merge_blockwise(base, lab.adapters, rows, method)

    here, there = both(merged)
    for module, pair in here.factors.items():
        assert_close(there.factors[module].delta().cpu(), pair.delta(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["lora-guided", "vanilla", "wanda"])
def test_prune(base, small_runs, both, tmp_path, method):
    recipe, outs = PruningRecipe(**prunable.SMALL | {"method": method, "steps": 4}), iter("ab")
    run = lambda: pruning.Run(base, recipe, tmp_path / next(outs), "float32").run()  # noqa: E731
    here, there = (prunable.outcome(folder) for folder in both(run))
    assert here[1]["kept"] == there[1]["kept"]
    assert_close(there[1]["loss"], here[1]["loss"])


def test_train(place, both):
    recipe = training.TrainingRecipe(rows=6, batch=3, held_out=4, checks=1, rank=2)

    def losses():
        run = training.Run("rte", recipe, place / "rte", dtype="float32")
        run.score(0)
        run.advance(0, len(run.steps), "rte", {len(run.steps)})
        run.saved.unlink()
        return run.log["loss"], run.log["held_out"], tm.LoraAdapter(run.adapter().factors)

    here, there = both(losses)
    assert_close(there[:2], here[:2])
