"""Training: what is scored, the schedule, and that a killed run ends as if it never was killed."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import Killed, kill_at
from labs import llama

import tipmini as tm
from tipmini_lab import paths
from tipmini_lab.evaluation import assets, documents, objective
from tipmini_lab.experiments import training
from tipmini_lab.experiments.training import Run, TrainingRecipe

RECIPES = {
    "rte": TrainingRecipe(rows=12, epochs=2, batch=4, tokens=600, rank=2, held_out=4, checks=2),
    "openbookqa": TrainingRecipe(
        rows=24, batch=6, tokens=300, rank=2, held_out=4, checks=2, targets=("v_proj",)
    ),
    "coqa": TrainingRecipe(rows=4, batch=2, rank=2, held_out=4, checks=2),
}


@pytest.fixture(scope="module")
def model():
    return llama()


def make_small(patch: pytest.MonkeyPatch, tiny: Path, tokenizer) -> None:
    """The tiny model, and a tokenizer that need not be read each time."""
    patch.setattr(assets, "embedded", lambda: tiny)
    patch.setattr(training, "keep_memory", lambda: None)
    patch.setattr(training, "load_tokenizer", lambda _: tokenizer)


@pytest.fixture
def small(tiny, tokenizer, monkeypatch):
    make_small(monkeypatch, tiny, tokenizer)


# Schedule -------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5))
def test_schedule_is_a_pure_function_and_takes_every_row_each_epoch(rows, epochs, batch, seed):
    recipe = TrainingRecipe(rows=rows, epochs=epochs, batch=batch, seed=seed)
    state = torch.random.get_rng_state()
    steps = training.schedule(recipe)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(seed + 1)
    assert training.schedule(recipe) == steps
    numbers = [number for step in steps for number in step]
    for epoch in range(epochs):
        assert sorted(numbers[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert max(map(len, steps)) <= batch and len(steps) == epochs * -(-rows // batch)


def test_schedule_follows_the_seed():
    schedules = [training.schedule(TrainingRecipe(rows=50, epochs=2, seed=seed)) for seed in (0, 1)]
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


@pytest.mark.parametrize(("step", "rate"), [(0, 0.25), (1, 0.5), (3, 0.4375), (9, 0.0625)])
def test_learning_rate_by_hand(step, rate):
    """Ten steps, two of them rising: 1/4 + 1/4, then eight equal falls of 1/16."""
    recipe = TrainingRecipe(rows=1, learning_rate=0.5, warmup=0.2)
    assert training.learning_rate(recipe, step, 10) == pytest.approx(rate)


# Killed and continued -------------------------------------------------------------------------


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


@pytest.mark.parametrize(("method", "call"), KILLS.values(), ids=KILLS)
def test_a_killed_run_ends_bit_for_bit_like_one_unbroken(
    small, unbroken, tmp_path, monkeypatch, method, call
):
    out = tmp_path / "rte"
    with monkeypatch.context() as patch:
        kill_at(patch, Run, method, call)
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
    other = TrainingRecipe(**{**RECIPES["rte"].__dict__, **change})
    assert Run("rte", other, tmp_path / "rte").resume() == 0


@pytest.mark.parametrize("task", ["openbookqa", "coqa"])
def test_an_adapter_and_its_story(small, tmp_path, monkeypatch, task):
    falling = iter([(0.3, 0.5), (0.2, 0.5), (0.1, 0.5)])
    monkeypatch.setattr(Run, "choices", lambda *_: next(falling))
    recipe = RECIPES[task]
    out = tmp_path / task
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
    saved = tm.load_adapter(tmp_path / "rte")
    for module, pair in saved.factors.items():
        middle, last = (
            {n: f for n, f in factors.items() if f"{module}.lora_A" in n} for factors in seen[1:]
        )
        assert torch.equal(pair.a, *(f.half() for f in middle.values()))
        assert not torch.equal(pair.a, *(f.half() for f in last.values()))


def test_an_adapter_that_never_bettered_the_base_is_not_saved(small, tmp_path, monkeypatch):
    found = iter([(0.1, 0.5), (0.3, 0.9), (0.2, 0.8)])
    monkeypatch.setattr(Run, "choices", lambda *_: next(found))
    with pytest.raises(tm.TipminiError, match=r"^adapter rte: no checkpoint is better than"):
        training.train("rte", tmp_path / "rte", RECIPES["rte"])
    assert not (tmp_path / "rte" / "training.json").exists()


# The committed adapters -----------------------------------------------------------------------


def test_a_recipe_for_each_task_of_the_papers_kind():
    assert set(training.RECIPES) == set(documents.TASKS)
    for recipe in training.RECIPES.values():
        assert (recipe.rank, recipe.alpha) == (8, 16)


def committed() -> list[Path]:
    return sorted(file.parent for file in paths.ADAPTERS.glob("*/training.json"))


def test_committed_adapters_load_and_say_how_they_were_made():
    for folder in committed():
        adapter = tm.load_adapter(folder)
        story = json.loads((folder / "training.json").read_text())
        recipe = story["recipe"]
        modules = {
            f"model.layers.{layer}.self_attn.{target}"
            for layer in range(30)
            for target in recipe["targets"]
        }
        assert set(adapter.modules) == modules and set(adapter.ranks.values()) == {recipe["rank"]}
        assert set(adapter.scaling.values()) == {recipe["alpha"] / recipe["rank"]}
        assert story["command"] == f"tipmini adapters --task {folder.name}"
        assert story["seed"] == recipe["seed"] and story["seconds"] > 0
        assert len(story["loss"]) == story["steps"] and story["held_out"]
        assert len(bytes.fromhex(story["data"])) == 32


def test_committed_adapters_were_trained_on_these_rows(embedded, tokenizer):
    """The hash is made again from recipe and rows, for the task that is read quickest."""
    for folder in [folder for folder in committed() if folder.name == "rte"]:
        story = json.loads((folder / "training.json").read_text())
        recipe = TrainingRecipe(**story["recipe"] | {"targets": tuple(story["recipe"]["targets"])})
        run = Run.__new__(Run)
        run.task, run.recipe = folder.name, recipe
        every = objective.examples(folder.name, tokenizer, recipe.rows + recipe.held_out)
        run.train, run.held_out = every[: recipe.rows], every[recipe.rows :]
        assert run.identity() == story["data"]
        assert len(run.held_out) == story["held_out_rows"]
