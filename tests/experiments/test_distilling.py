"""Distillation on tiny models: what it starts from, what it reaches; a kill loses nothing."""

import json
from dataclasses import replace

import pytest
import torch
from kills import Killed, kill_at
from labs import llama, save_adapter

import tipmini as tm
from tipmini.models.lowrank import truncate
from tipmini_lab import paths
from tipmini_lab.evaluation import agreement
from tipmini_lab.experiments import agreeing, distilling, training
from tipmini_lab.experiments.agreeing import DistillRecipe
from tipmini_lab.experiments.coefficients import GRAINS, Coefficients
from tipmini_lab.experiments.distilling import Distilling
from tipmini_lab.experiments.training import RECIPES

TASKS = ("openbookqa", "rte")
RECIPE = DistillRecipe(rank=8, rows=6, stopping=3, epochs=2, parts=2, learning_rate=0.02)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    every = [save_adapter(folder / task, seed) for seed, task in enumerate(TASKS)]
    return dict(zip(TASKS, map(tm.load_adapter, every), strict=True))


def base():
    model = llama()
    model.set_attn_implementation("eager")
    return model


def distilled(adapters, tokenizer, folder, start=None, recipe=RECIPE, **given):
    return Distilling(base(), tokenizer, adapters, start, recipe, folder / "c.safetensors", **given)


def test_an_adapter_alone_is_where_it_starts(adapters, tokenizer, tmp_path):
    """R is 0 at its own factors, and 1, up to the floor, where nothing is known."""
    own = {"openbookqa": adapters["openbookqa"]}
    run = distilled(own, tokenizer, tmp_path, own["openbookqa"], replace(RECIPE, epochs=0))
    found = run.run()
    assert run.log["stopping"][0]["R"] < 1e-6
    for module in found.modules:
        expected = own["openbookqa"].delta(module)
        torch.testing.assert_close(found.delta(module), expected, rtol=1e-4, atol=1e-5)
    nothing = distilled(own, tokenizer, tmp_path)
    nothing.ask()
    learnt = nothing._mean("openbookqa", nothing.learnt("openbookqa"))
    assert learnt == pytest.approx(nothing.log["base"]["openbookqa"], abs=0) and learnt > 0.001


def test_it_comes_nearer_to_the_adapters(adapters, tokenizer, tmp_path):
    start = tm.merge(adapters, "cat", weights="mean")
    run = distilled(adapters, tokenizer, tmp_path, start, replace(RECIPE, epochs=16, parts=1))
    found = run.run()
    assert run.log["loss"][-1] < 0.7 * run.log["loss"][0]
    assert set(found.ranks.values()) == {8}


def test_the_best_epoch_is_kept_the_start_among_them(adapters, tokenizer, tmp_path):
    """A rate that ruins everything leaves the start."""
    start = tm.merge(adapters, "cat", weights="mean")
    found = distilled(adapters, tokenizer, tmp_path, start, replace(RECIPE, learning_rate=30)).run()
    for module in found.modules:
        torch.testing.assert_close(found.delta(module), start.delta(module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_what_was_pruned_stays_so_where_it_is_masked(adapters, tokenizer, tmp_path, masked):
    start = tm.merge(adapters, "magnitude", sparsity=0.7, summation="cat")
    found = distilled(
        adapters, tokenizer, tmp_path, start, replace(RECIPE, masked=masked or None)
    ).run()
    zeros = [(start.factors[m].a == 0, found.factors[m].a == 0) for m in start.modules]
    zeros += [(start.factors[m].b == 0, found.factors[m].b == 0) for m in start.modules]
    assert all(then.any() for then, _ in zeros)
    assert all(torch.equal(*pair) == masked for pair in zeros)
    assert any(not torch.equal(start.delta(m), found.delta(m)) for m in start.modules)


def test_a_masked_start_is_not_cut(adapters, tokenizer, tmp_path):
    recipe = replace(RECIPE, rank=7, masked=True)
    for start, rank in ((tm.merge(adapters, "cat"), 8), (None, 0)):
        with pytest.raises(tm.TipminiError, match=f"has a rank up to 7, not {rank}"):
            distilled(adapters, tokenizer, tmp_path, start, recipe)


def test_a_recipe_without_a_mask_is_the_one_it_was(adapters, tokenizer, tmp_path):
    """What was added later has no part in the identity of a run that doesn't use it."""
    plain, masked = (
        distilled(adapters, tokenizer, tmp_path, recipe=replace(RECIPE, masked=m), start=start)
        for m, start in ((None, None), (True, tm.merge(adapters, "cat")))
    )
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreeing.digests, "digest", lambda content: told.append(content) or "")
        plain.identity(), masked.identity()
    recipes = [content[1] for content in told if isinstance(content[1], dict)]
    assert ["masked" in recipe for recipe in recipes] == [False, True]


@pytest.mark.parametrize(("gold", "shared"), [(False, False), (True, False), (False, True)])
def test_a_killed_run_ends_as_if_it_never_was(
    adapters, tokenizer, tmp_path, monkeypatch, gold, shared
):
    start, recipe = tm.merge(adapters, "cat", weights="mean"), replace(RECIPE, gold=gold)
    given = {"answers": tmp_path / "answers"} if shared else {}
    whole = distilled(adapters, tokenizer, tmp_path, start, recipe, **given)
    expected = whole.run()
    whole.saved.unlink()
    with monkeypatch.context() as patch:
        kill_at(patch, Distilling, "step", 3)
        with pytest.raises(Killed):
            distilled(adapters, tokenizer, tmp_path, start, recipe, **given).run()
    monkeypatch.setattr(Distilling, "ask", None)  # what was answered is not asked again
    again = distilled(adapters, tokenizer, tmp_path, start, recipe, **given)
    found = again.run()
    assert again.log["loss"] == whole.log["loss"] and again.log["stopping"] == whole.log["stopping"]
    for module in expected.modules:
        assert torch.equal(found.delta(module), expected.delta(module))


def test_freed_memory_is_returned_at_every_checkpoint(adapters, tokenizer, tmp_path, monkeypatch):
    start, told = tm.merge(adapters, "cat", weights="mean"), []
    run = distilled(adapters, tokenizer, tmp_path, start, RECIPE)
    monkeypatch.setattr(agreeing, "return_memory", lambda: told.append(run.saved.stat().st_size))
    run.run()
    # before the first step, and after those that are looked at or a multiple of `every`
    steps, looks = RECIPE.steps, RECIPE.looks
    marks = {steps * (n + 1) // looks for n in range(looks)} | {
        *range(run.every, steps + 1, run.every)
    }
    assert len(told) == 1 + len(marks) and all(told)


def test_what_is_run_once_more_has_the_same_gradients(adapters, tokenizer, tmp_path):
    """Rows that are longer than a pass, whose layers keep nothing; then none is left so."""
    start, found = tm.merge(adapters, "cat", weights="mean"), []
    for tokens in (4, 2048):
        run = distilled(adapters, tokenizer, tmp_path, start, replace(RECIPE, tokens=tokens))
        run.ask()
        run.task, times = "openbookqa", []
        run.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, own=times: own.append(1))
        assert min(len(e.row) for e in run.rows["openbookqa"]) > 4
        for example in run.rows["openbookqa"]:
            run.losses([example]).sum().backward()
        found.append({name: each.grad for name, each in run.factors.items()})
        assert len(times) == len(run.rows["openbookqa"]) * (2 if tokens == 4 else 1)
        assert not any(layer.training for layer in run.model.base_model.layers)
        assert not run.model.is_gradient_checkpointing
        assert not run.model.get_input_embeddings()._forward_hooks
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_words_count_as_much_of_what_the_base_lacks(adapters, tokenizer, tmp_path):
    """With all words told, an adapter's own factors are still where it ends, and R is the same;
    what is learnt is then twice as far away where nothing is known."""
    own, recipe = {"openbookqa": adapters["openbookqa"]}, replace(RECIPE, words=1.0)
    nothing = distilled(own, tokenizer, tmp_path, recipe=recipe)
    nothing.ask()
    every = nothing.learnt("openbookqa")
    apart = nothing._mean("openbookqa", every)
    with torch.no_grad():
        assert nothing.losses(every).mean().item() == pytest.approx(2 * apart, rel=1e-3)
    there = distilled(own, tokenizer, tmp_path, own["openbookqa"], recipe)
    there.ask()
    there.task = "openbookqa"
    assert there.losses(there.learnt("openbookqa")).mean().item() < 1e-6


def test_balanced_gradients_are_as_long_as_their_losses_are_large(adapters, tokenizer, tmp_path):
    """Of every task, whose directions stay; a loss without a gradient leaves the others'."""
    start, found = tm.merge(adapters, "cat", weights="mean"), {}
    for balanced in (None, True):
        recipe = replace(RECIPE, balanced=balanced)
        run = distilled(adapters, tokenizer, tmp_path, start, recipe)
        run.ask()
        for tasks in (TASKS[:1], TASKS[1:], TASKS):
            run.optimizer.zero_grad()
            losses = []
            for run.task in tasks:
                losses.append(run.backward(run.learnt(run.task), run.share(run.task)))
            whole = torch.cat([each.grad.flatten() for each in run.factors.values()])
            found[balanced, tasks] = whole, losses
    alone = [found[None, TASKS[i : i + 1]] for i in (0, 1)]
    scaled = [loss * whole / whole.norm() for whole, (loss,) in alone]
    torch.testing.assert_close(found[True, TASKS[:1]][0], scaled[0], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found[True, TASKS][0], scaled[0] + scaled[1], rtol=1e-4, atol=1e-8)
    assert found[True, TASKS][1] == pytest.approx(found[None, TASKS][1], rel=1e-4)


def test_a_task_that_is_farther_off_than_the_base_counts_no_more_than_it(
    adapters, tokenizer, tmp_path
):
    """Its gradient is capped at what R = 1 is: its share of the mean over two tasks."""
    start, recipe = tm.merge(adapters, "cat", weights=3.0), replace(RECIPE, balanced="capped")
    run = distilled(adapters, tokenizer, tmp_path, start, replace(recipe, shares={"rte": 0.25}))
    run.ask()
    for run.task, share in {"openbookqa": 1.6, "rte": 0.4}.items():  # of 1 and 1/4 the mean is 1
        run.optimizer.zero_grad()
        assert run.backward(run.learnt(run.task), run.share(run.task)) > share / 2
        whole = torch.cat([each.grad.flatten() for each in run.factors.values()])
        assert whole.norm().item() == pytest.approx(share / 2, rel=1e-4)


def test_an_adapter_that_says_nothing_new_has_no_words(adapters, tokenizer, tmp_path):
    """What rounding makes of it is no share of anything."""
    silent = adapters["rte"].map(lambda _, pair: replace(pair, b=1e-9 * pair.b))
    own = {"openbookqa": adapters["openbookqa"], "rte": silent}
    run = distilled(own, tokenizer, tmp_path, recipe=replace(RECIPE, words=1.0))
    run.run()
    assert list(run.log["words"]) == ["openbookqa"] and run.log["words"]["openbookqa"] > 0


def test_runs_that_share_a_folder_ask_once(adapters, tokenizer, tmp_path, monkeypatch):
    """What is read again is what was answered, in the seconds that it took; of other rows, another
    adapter or in another way, or where the file is damaged, it is asked again."""
    adapters = {"coqa": adapters["openbookqa"], "rte": adapters["rte"]}
    monkeypatch.setattr(agreement, "SAID", 2)
    asked, given = [], {"answers": tmp_path / "answers"}
    plain = agreeing.Agreeing._asked
    monkeypatch.setattr(agreeing.Agreeing, "_asked", lambda s, t: asked.append(t) or plain(s, t))
    listed = lambda t: None if t is None else t.tolist()  # noqa: E731
    told = lambda e: [  # noqa: E731
        *vars(e.row).values(),
        *(list(e.lengths), e.content, e.gold, listed(e.own), listed(e.said)),
    ]
    flat = lambda run: {task: list(map(told, rows)) for task, rows in run.rows.items()}  # noqa: E731
    recipe = replace(RECIPE, words=1.0, stories=0.2)
    alone = distilled(adapters, tokenizer, tmp_path, recipe=recipe)
    first = distilled(adapters, tokenizer, tmp_path, recipe=recipe, **given)
    faster = replace(recipe, learning_rate=0.1, epochs=1)
    again = distilled(adapters, tokenizer, tmp_path, recipe=faster, **given)
    for run in (alone, first, again):
        run.ask()
        assert flat(run) == flat(alone) and run.log["base"] == alone.log["base"]
    both = [*adapters]
    assert asked == [*both, *both]
    assert again.log["seconds"] > 0 == alone.log["seconds"]  # what asking took another
    distilled(adapters, tokenizer, tmp_path, recipe=replace(recipe, rows=11), **given).ask()
    swapped = dict(zip(both, reversed(adapters.values()), strict=True))
    distilled(swapped, tokenizer, tmp_path, recipe=recipe, **given).ask()
    distilled(adapters, tokenizer, tmp_path, recipe=replace(recipe, words=None), **given).ask()
    Coefficients(base(), tokenizer, adapters, "adapter", 0.3, recipe, tmp_path / "c", **given).ask()
    assert asked == 6 * both
    for file in given["answers"].rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    distilled(adapters, tokenizer, tmp_path, recipe=recipe, **given).ask()
    assert asked == 7 * both


def test_what_was_made_is_read_and_nothing_else(adapters, tokenizer, tmp_path, monkeypatch):
    run = lambda seed: distilled(adapters, tokenizer, tmp_path, recipe=replace(RECIPE, seed=seed))  # noqa: E731
    first = distilling.kept(run(0), [tmp_path / "elsewhere", tmp_path / "out"])
    monkeypatch.setattr(Distilling, "step", None)
    again = distilling.kept(run(0), [tmp_path / "out", tmp_path / "elsewhere"])
    assert first == again == tmp_path / "out"
    with pytest.raises(TypeError):
        distilling.kept(run(1), [tmp_path / "out"])
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_rows_of_a_small_source_are_split_three_to_one(adapters, tokenizer, tmp_path):
    recipe = replace(RECIPE, rows=96, stopping=32, passed={"rte": 106})
    counts = distilled(adapters, tokenizer, tmp_path, recipe=recipe).counts
    assert counts == {"openbookqa": (0, 96, 32), "rte": (106, 24, 8)}
    recipe = replace(recipe, rows_of={"openbookqa": 100, "rte": 160})
    counts = distilled(adapters, tokenizer, tmp_path, recipe=recipe).counts
    assert counts == {"openbookqa": (0, 100, 32), "rte": (106, 26, 5)}


@pytest.mark.parametrize(
    ("gold", "words", "parts"),
    [(False, None, 2), (True, None, 2), (False, 1.0, 2), (False, None, 9)],
)
def test_as_many_rows_are_read_as_was_reckoned(
    adapters, tokenizer, tmp_path, monkeypatch, gold, words, parts
):
    recipe = replace(RECIPE, gold=gold, words=words, parts=parts, rows=7, repeats={"rte": 2})
    monkeypatch.setattr(agreeing, "PROBED", 5)
    run, read = distilled(adapters, tokenizer, tmp_path, recipe=recipe), {True: 0, False: 0}

    def counted(plain):
        def read_and_count(model, rows, *more):
            read[torch.is_grad_enabled() and plain is not answered] += len(rows)
            return plain(model, rows, *more)

        return read_and_count

    answered = agreement.answered
    for name in ("divergences", "word_divergences", "answered"):
        monkeypatch.setattr(agreement, name, counted(getattr(agreement, name)))
    monkeypatch.setattr(agreeing.objective, "losses", counted(agreeing.objective.losses))
    run.run()
    reckoned = [recipe.reads(task) for task in TASKS]
    assert (read[True], read[False]) == tuple(map(sum, zip(*reckoned, strict=True)))


@pytest.mark.parametrize("grain", GRAINS)
def test_coefficients(adapters, tokenizer, tmp_path, grain):
    """They find an adapter that stands alone, and are as many as was said."""
    own = {"openbookqa": adapters["openbookqa"]}
    recipe = replace(RECIPE, epochs=16, parts=1, learning_rate=0.1)
    run = Coefficients(base(), tokenizer, own, grain, 0.5, recipe, tmp_path / "c", ridge=0.0)
    run.run()
    assert len(run.factors) == {"adapter": 1, "kind": 2, "module": 4}[grain]
    assert run.log["loss"][-1] < 0.7 * run.log["loss"][0]


def test_a_ridge_holds_coefficients_together(adapters, tokenizer, tmp_path):
    recipe = replace(RECIPE, epochs=4, learning_rate=0.1)

    def apart(ridge):
        run = Coefficients(
            base(), tokenizer, adapters, "module", 0.3, recipe, tmp_path / "c", ridge=ridge
        )
        run.run()
        run.saved.unlink()
        return torch.stack(list(run.factors.values())).std(0).mean().item()

    assert apart(1e3) < apart(0.0) / 2


def test_interference_of_pairs(adapters, tokenizer, tmp_path):
    """By hand: the exact sum of both in place of a task's own, on the rows to stop by."""
    run = Coefficients(base(), tokenizer, adapters, "adapter", 0.3, RECIPE, tmp_path / "c")
    run.ask()
    both = distilled(adapters, tokenizer, tmp_path, tm.merge(adapters, "cat"))
    both.ask()
    for task, other in (TASKS, TASKS[::-1]):
        apart = both._mean(task, both.stopping(task))
        expected = apart / max(both.log["base"][task], RECIPE.floor)
        assert run.log["interference"][task] == {other: pytest.approx(expected, abs=2e-4, rel=1e-3)}


def test_labels_count_by_how_far_the_adapter_lowers_the_loss(adapters, tokenizer, tmp_path):
    """Not by the base's own loss, of which a task may have much that nothing lowers."""
    run = distilled(adapters, tokenizer, tmp_path, recipe=replace(RECIPE, gold=True))
    run.ask()
    for task in TASKS:
        with run.bare():
            base = run._mean(task, run.learnt(task))
        with run.alone(task):
            own = run._mean(task, run.learnt(task))
        assert run.log["base"][task] == pytest.approx(base - own, abs=1e-6)
        assert run.share(task) == pytest.approx(1 / (2 * max(base - own, RECIPE.floor)))


def test_a_task_may_count_less(adapters, tokenizer, tmp_path):
    run = distilled(adapters, tokenizer, tmp_path, recipe=replace(RECIPE, shares={"rte": 0.25}))
    run.log["base"] = dict.fromkeys(TASKS, 1.0)
    assert run.share("rte") == 0.25 * run.share("openbookqa")
    assert sum(map(run.share, TASKS)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("told", "share"),
    [
        ({"held_out": [{"loss": 1.0}, {"loss": 0.991}, {"loss": 1.2}]}, {"rte": training.QUARTER}),
        ({"held_out": [{"loss": 1.0}, {"loss": 0.98}]}, {}),
        ({"held_out": []}, {}),
        ({"lr": 1e-4}, {}),  # another's training
        (None, {}),
    ],
)
def test_an_adapter_that_learnt_little_counts_a_quarter(tmp_path, told, share):
    if told is not None:
        (tmp_path / "training.json").write_text(json.dumps(told))
    assert training.shares({"rte": tmp_path}) == share


def test_of_the_packaged_adapters_one_learnt_little():
    assert training.shares({task: paths.ADAPTERS / task for task in RECIPES}) == {"rte": 0.25}


def test_a_long_epoch_is_looked_at_on_its_way(adapters, tokenizer, tmp_path):
    recipe = replace(RECIPE, epochs=1, parts=8, learning_rate=0.001)
    run = distilled(adapters, tokenizer, tmp_path, recipe=recipe)
    run.run()
    assert [told["step"] for told in run.log["stopping"]] == [0, 2, 4, 6, 8]


def test_an_epoch_may_have_a_tasks_rows_again(adapters, tokenizer, tmp_path):
    run = distilled(adapters, tokenizer, tmp_path, recipe=replace(RECIPE, repeats={"rte": 3}))
    run.rows = {task: list(range(9)) for task in TASKS}
    assert run.learnt("openbookqa") == [*range(6)] and run.learnt("rte") == [*range(6)] * 3
    assert run.stopping("rte") == [6, 7, 8]
    seen = sorted(row for number in range(2) for row in run._part("rte", number))
    assert seen == sorted([*range(6)] * 3)


def test_it_starts_from_the_recommended_merge(adapters):
    """Of ranks that differ, which that refuses, from an exact sum."""
    start, own = distilling.start_of(adapters), tm.merge(adapters, "recommended")
    assert all(torch.equal(start.delta(m), own.delta(m)) for m in own.modules)
    cut = adapters["rte"].map(lambda _, pair: truncate(pair, 2))
    start = distilling.start_of({"openbookqa": adapters["openbookqa"], "rte": cut})
    for module in start.modules:
        exact = adapters["openbookqa"].delta(module) + cut.delta(module)
        torch.testing.assert_close(start.delta(module), exact, rtol=1e-4, atol=1e-5)


def test_a_task_may_have_its_own_counts(adapters, tokenizer, tmp_path):
    recipe = replace(RECIPE, counts={"openbookqa": (3, 2), "rte": (1, 1)})
    run = distilled(adapters, tokenizer, tmp_path, recipe=recipe)
    assert run.counts == {"openbookqa": (0, 3, 2), "rte": (0, 1, 1)}
