"""Training: what is scored, the schedule, and that a killed run ends as if it never was killed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import prunable
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import Killed, kill_at
from labs import TASKS, llama, save_adapter
from peft import PeftModel

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods import pruner
from tipmini.methods.groups import find_families
from tipmini.methods.pruner import masked
from tipmini.models.int8 import to_int8
from tipmini_lab import paths
from tipmini_lab.commands import one
from tipmini_lab.evaluation import assets, documents, objective
from tipmini_lab.evaluation.model import recompute
from tipmini_lab.experiments import training
from tipmini_lab.experiments.pruning import TARGETS
from tipmini_lab.experiments.training import RECIPES as EVERY
from tipmini_lab.experiments.training import LoraLinear, Run, TrainingRecipe, add_lora
from tipmini_lab.experiments.weighing import Weighed, Weighing, WeighingRecipe

SMALL = {"batch": 6, "tokens": 300, "rank": 2, "held_out": 4, "checks": 2}
RECIPES = {
    "rte": TrainingRecipe(**SMALL | {"rows": 12, "epochs": 2, "batch": 4, "tokens": 600}),
    "openbookqa": TrainingRecipe(rows=24, targets=("v_proj",), **SMALL),
    "coqa": TrainingRecipe(**SMALL | {"rows": 4, "batch": 2, "tokens": 2048}),
}


def make_small(patch: pytest.MonkeyPatch, tiny: Path, tokenizer) -> None:
    """The tiny model, and a tokenizer that need not be read each time."""
    patch.setattr(assets, "embedded", lambda: tiny)
    patch.setattr(training, "keep_memory", lambda: None)
    patch.setattr(training, "load_tokenizer", lambda _: tokenizer)


@pytest.fixture
def small(tiny, tokenizer, monkeypatch):
    make_small(monkeypatch, tiny, tokenizer)


# Schedule -----------------------------------------------------------------------------------------
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5))
def test_schedule_is_a_pure_function_and_takes_every_row_each_epoch(rows, epochs, batch, seed):
    state = torch.random.get_rng_state()
    steps = training.schedule(rows, epochs, batch, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(seed + 1)
    assert training.schedule(rows, epochs, batch, seed) == steps
    numbers = [number for step in steps for number in step]
    for epoch in range(epochs):
        assert sorted(numbers[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert max(map(len, steps)) <= batch and len(steps) == epochs * -(-rows // batch)


def test_schedule_follows_the_seed():
    schedules = [training.schedule(50, 2, 16, seed) for seed in (0, 1)]
    assert schedules[0] != schedules[1] and schedules[0][:4] != schedules[0][4:]


@settings(max_examples=30)
@given(st.integers(2, 300), st.sampled_from([0.0, 0.05, 0.3]))
def test_learning_rate_rises_and_falls_to_zero(steps, warmup):
    recipe = TrainingRecipe(rows=1, learning_rate=0.5, warmup=warmup)
    rates = [training.learning_rate(recipe, step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert training.learning_rate(recipe, steps, steps) == 0


def test_learning_rate_by_hand():
    """Ten steps, two of them rising: 1/4 + 1/4, then eight equal falls of 1/16."""
    recipe = TrainingRecipe(rows=1, learning_rate=0.5, warmup=0.2)
    rates = [training.learning_rate(recipe, step, 10) for step in (0, 1, 3, 9)]
    assert rates == pytest.approx([0.25, 0.5, 0.4375, 0.0625])


# Killed and continued -----------------------------------------------------------------------------
def outcome(folder: Path) -> tuple[bytes, dict]:
    story = json.loads((folder / "training.json").read_text())
    assert story.pop("seconds") > 0
    return (folder / "adapter_model.safetensors").read_bytes(), story


KILLS = {  # of six steps, with checkpoints after the third and the last
    "before any checkpoint": ("step", 1),
    "between checkpoints": ("step", 4),
    "before the first step": ("score", 0),
    "while the second is written": ("_write", 1),
    "before the end": ("finish", 0),
    "between adapter and story": ("story", 0),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny, tokenizer):
    """Folder of a run of `rte` that nothing stopped."""
    out = tmp_path_factory.mktemp("unbroken") / "rte"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, tiny, tokenizer)
        training.train("rte", out, RECIPES["rte"])
    return out


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_ends_bit_for_bit_like_one_unbroken(
    small, unbroken, tmp_path, monkeypatch, kill
):
    out = tmp_path / "rte"
    with monkeypatch.context() as patch:
        kill_at(patch, Run, *KILLS[kill])
        with pytest.raises(Killed):
            training.train("rte", out, RECIPES["rte"])
    assert not (out / "training.json").exists()
    training.train("rte", out, RECIPES["rte"])
    assert outcome(out) == outcome(unbroken)
    assert [path.name for path in tmp_path.iterdir()] == ["rte"]
    assert {path.name for path in out.iterdir()} == {path.name for path in unbroken.iterdir()}


def test_a_kill_while_a_checkpoint_is_renamed_leaves_the_old(small, tmp_path, monkeypatch):
    run = Run("rte", RECIPES["rte"], tmp_path / "rte")
    run.step(0)
    run.checkpoint(1)
    before = run.saved.read_bytes()

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        run.step(1)
        with pytest.raises(Killed):
            run.checkpoint(2)
    assert run.saved.read_bytes() == before
    assert Run("rte", RECIPES["rte"], tmp_path / "rte").resume() == 1


@pytest.mark.parametrize("change", [{"learning_rate": 1e-4}, {"rows": 8}, {"seed": 1}])
def test_another_recipe_is_not_continued(small, tmp_path, change):
    run = Run("rte", RECIPES["rte"], tmp_path / "rte")
    run.step(0)
    run.checkpoint(1)
    assert Run("rte", replace(RECIPES["rte"], **change), tmp_path / "rte").resume() == 0


@pytest.mark.parametrize("task", ["openbookqa", "coqa"])
def test_an_adapter_and_its_story(small, tmp_path, monkeypatch, task):
    falling = iter([(0.3, 0.5), (0.2, 0.5), (0.1, 0.5)])
    monkeypatch.setattr(Run, "choices", lambda *_: next(falling))
    recipe, out = RECIPES[task], tmp_path / task
    assert training.train(task, out, recipe) == out
    adapter = tm.load_adapter(out)
    assert {module.rsplit(".", 1)[1] for module in adapter.modules} == set(recipe.targets)
    assert set(adapter.ranks.values()) == {2} and set(adapter.scaling.values()) == {8.0}
    story = json.loads((out / "training.json").read_text())
    assert story["steps"] == len(story["loss"]) == -(-recipe.rows // recipe.batch)
    checked = [check["step"] for check in story["held_out"]]
    assert checked == [0, story["steps"] // 2, story["steps"]]
    assert story["held_out_rows"] == 4 and story["seed"] == 0


def test_the_factors_kept_are_those_of_the_lowest_held_out_loss(small, tmp_path, monkeypatch):
    """The checkpoint in the middle, when the last one is worse."""
    found = iter([(0.9, 0.5), (0.1, 0.2), (0.2, 0.8)])
    monkeypatch.setattr(Run, "choices", lambda *_: next(found))
    run = Run("rte", RECIPES["rte"], tmp_path / "rte")
    seen = []
    score = run.score
    factors = lambda: {n: p.detach().clone() for n, p in run.factors.items()}  # noqa: E731
    run.score = lambda number: (score(number), seen.append(factors()))[0]
    run.run()
    for module, pair in tm.load_adapter(tmp_path / "rte").factors.items():
        middle, last = (
            next(f for n, f in factors.items() if f"{module}.lora_A" in n) for factors in seen[1:]
        )
        assert torch.equal(pair.a, middle.half()) and not torch.equal(pair.a, last.half())


def test_an_adapter_that_never_bettered_the_base_is_not_saved(small, tmp_path, monkeypatch):
    found = iter([(0.1, 0.5), (0.3, 0.9), (0.2, 0.8)])
    monkeypatch.setattr(Run, "choices", lambda *_: next(found))
    with pytest.raises(tm.TipminiError, match=r"^adapter rte: no checkpoint is better than"):
        training.train("rte", tmp_path / "rte", RECIPES["rte"])
    assert not (tmp_path / "rte" / "training.json").exists()


# The committed adapters ---------------------------------------------------------------------------
def test_committed_adapters_load_and_say_how_they_were_made(embedded, tokenizer):
    """On which rows is made again for the task that is read quickest."""
    assert set(training.RECIPES) == set(documents.TASKS)
    for name, recipe in training.RECIPES.items():
        assert (recipe.rank, recipe.alpha) == (8, 16)
        adapter = tm.load_adapter(paths.ADAPTERS / name)
        story = json.loads((paths.ADAPTERS / name / "training.json").read_text())
        made = story["recipe"]
        blocks = [f"model.layers.{layer}.self_attn" for layer in range(30)]
        modules = {f"{block}.{target}" for block in blocks for target in made["targets"]}
        assert set(adapter.modules) == modules and set(adapter.ranks.values()) == {made["rank"]}
        assert set(adapter.scaling.values()) == {made["alpha"] / made["rank"]}
        assert story["command"] == f"tipmini adapters --task {name}"
        assert story["seed"] == made["seed"] and story["seconds"] > 0
        assert len(story["loss"]) == story["steps"] and story["held_out"]
        assert len(bytes.fromhex(story["data"])) == 32
        if name == "rte":
            run = Run.__new__(Run)
            run.task, run.recipe = (
                name,
                TrainingRecipe(**made | {"targets": tuple(made["targets"])}),
            )
            every = objective.examples(name, tokenizer, run.recipe.rows + run.recipe.held_out)
            run.train, run.held_out = every[: run.recipe.rows], every[run.recipe.rows :]
            assert run.identity() == story["data"]
            assert len(run.held_out) == story["held_out_rows"]


# The lighter LoRA layer has PEFT's numbers and gradients and keeps less; so does recomputing ------
def worn(light: bool, shape: str = "grouped", dtype=torch.float64, int8: bool = False, again=False):
    """A PEFT model with factors that are not zero."""
    base = prunable.model(shape).to(dtype)
    if int8:
        to_int8(base)
    if again:
        recompute(base)
    peft = add_lora(base, 4, 8, TARGETS, seed=0, light=light)
    drawn = torch.Generator().manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            fresh = torch.randn(parameter.shape, generator=drawn) / 8
            parameter.data = fresh.to(dtype if dtype == torch.float64 else torch.float32)
    return peft


def found(peft, weights: bool = False):
    """The logits, and all gradients by name."""
    if weights:
        linear = pruner.linear_weights(peft.get_base_model(), find_families(peft))
        pruner.require_gradients("vanilla", linear)
    logits = peft(prunable.tokens()).logits
    logits.log_softmax(-1)[..., 0].mean().backward()
    return logits, {n: p.grad for n, p in peft.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("int8", "weights"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("shape", ["grouped", "biases", "qwen2"])
def test_numbers_and_gradients_are_those_of_peft(shape, int8, weights):
    (theirs, expected), (ours, got) = (
        found(worn(light, shape, int8=int8), weights) for light in (False, True)
    )
    torch.testing.assert_close(ours, theirs)
    assert got.keys() == expected.keys() and len(got) >= 14
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(got[name], gradient, msg=name)


def test_every_adapted_layer_is_the_light_one_and_the_base_without_its_adapter():
    peft = worn(True)
    assert sum(isinstance(m, LoraLinear) for m in peft.modules()) == 3 * len(TARGETS)
    assert not any(isinstance(m, LoraLinear) for m in worn(False).modules())
    with peft.disable_adapter():
        off = peft(prunable.tokens()).logits
    torch.testing.assert_close(off, prunable.model().double()(prunable.tokens()).logits)


def test_factors_and_their_gradients_stay_float32_over_a_bfloat16_base():
    (theirs, expected), (ours, got) = (
        found(worn(light, dtype=torch.bfloat16)) for light in (False, True)
    )
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert {g.dtype for g in got.values()} == {torch.float32}
    # As wholes: which single numbers are off by several steps depends on the processor.
    for name, tensor in (expected | {"logits": theirs}).items():
        off = ((got | {"logits": ours})[name] - tensor).float().norm() / tensor.float().norm()
        assert off < 0.05, (name, off)


def kept(peft) -> int:
    """Bytes that the backward pass waits for, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in peft.parameters()}
    held: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        peft(prunable.tokens()).logits.sum()
    return sum(held.values())


def test_less_is_kept_for_the_backward_pass():
    theirs, ours, again = (
        kept(worn(light, dtype=torch.bfloat16, again=again))
        for light, again in ((False, False), (True, False), (True, True))
    )
    assert again < ours / 2 and ours < 0.9 * theirs


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("masks", [False, True])
def test_recomputed_activations_give_the_same_gradients(int8, masks):
    outcomes = []
    for again in (False, True):
        peft = worn(True, int8=int8, again=again)
        gone = 1 if masks else 0  # masks are on when a layer is recomputed
        with masked(
            peft, prunable.random_masks(find_families(peft), heads=gone, channels=7 * gone)
        ):
            outcomes.append(found(peft))
    (logits, expected), (again, got) = outcomes
    assert torch.equal(again, logits)
    assert all(torch.equal(got[name], gradient) for name, gradient in expected.items())


# Learnt weights: what the gates compute, and what is learnt of ------------------------------------
RECIPE = WeighingRecipe(rows=6, stories=2, epochs=2, parts=2, tokens=600)


@pytest.fixture
def adapters(tmp_path):
    folders = {task: save_adapter(tmp_path / task, seed) for seed, task in enumerate(TASKS)}
    return {task: tm.load_adapter(folder) for task, folder in folders.items()}


@pytest.fixture
def make(adapters, tokenizer, tmp_path):
    files = [tmp_path / "weights.json"]
    return lambda **changes: Weighing(
        llama(), tokenizer, adapters, replace(RECIPE, **changes), files
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
    tm.merge(adapters, "cat", weights=weights).save(tmp_path / "merged", torch.float32)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        stock = PeftModel.from_pretrained(llama(), tmp_path / "merged").eval()
        torch.testing.assert_close(run.model(tokens).logits, stock(tokens).logits)
    assert len({w for own in weights.values() for w in own.values()}) > 4


def test_learning_lowers_the_loss_it_is_told_by(make):
    run = make(epochs=12, learning_rate=0.1)
    run.run()
    assert sum(run.log["loss"][-2:]) < sum(run.log["loss"][:2])


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
def test_a_killed_weighing_ends_as_if_it_never_was_killed(make, monkeypatch, step):
    whole = make()
    expected = whole.run()
    whole.files[0].unlink()
    monkeypatch.setattr(Weighing, "every", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, Weighing, "step", step)
        make().run()
    assert make().resume() == step and make().run() == expected


def test_another_seed_or_adapter_is_another_run(make, adapters):
    first, other = make().identity(), make(seed=1).identity()
    adapters["rte"] = adapters["rte"].map(lambda _, pair: tm.LoraFactors(pair.a, pair.b * 2, 1.0))
    assert len({first, other, make().identity()}) == 3


def test_adapters_of_other_modules_are_refused(make, adapters):
    module = adapters["rte"].modules[0]
    adapters["rte"] = tm.LoraAdapter({module: adapters["rte"].factors[module]})
    with pytest.raises(
        tm.TipminiError, match="weigh needs adapters of the same modules; rte's are"
    ):
        make()


def test_what_is_written_tells_how_it_was_made_and_is_read(make, monkeypatch):
    run = make()
    weights, found = run.weights(), json.loads(run.files[0].read_text())
    assert found["weights"] == weights and set(weights) == set(TASKS)
    assert found["made"]["recipe"]["rows"] == 6 and len(found["made"]["loss"]) == 4
    assert not run.saved.exists()
    monkeypatch.setattr(Weighing, "step", None)
    assert make().weights() == weights
    with pytest.raises(TypeError):
        make(seed=1).weights()


def test_a_second_set_has_a_seed_a_task(tmp_path, monkeypatch):
    seeds = {}
    monkeypatch.setattr(assets, "fetch", lambda: None)
    monkeypatch.setattr(
        training, "train", lambda task, out, recipe, device: seeds.update({out.name: recipe.seed})
    )
    one.adapters(own_seeds=1, out=tmp_path)
    assert list(seeds) == list(EVERY) and list(seeds.values()) == [*range(1, 8)]
    one.adapters(task=["rte"], own_seeds=1, out=tmp_path / "again")
    assert seeds["rte"] == 1 + list(EVERY).index("rte")
    one.adapters(task=["rte"])
    assert seeds["rte"] == 0
    for out in (None, paths.ADAPTERS):
        with pytest.raises(TipminiError, match="--own-seeds needs another --out"):
            one.adapters(own_seeds=1, out=out)
