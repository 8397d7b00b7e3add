"""Measuring prunings of a tiny model: everything once, by whomever, and what a kill leaves."""

import re
import shutil
from pathlib import Path

import prunable
import pytest
import torch
import yaml
from kills import Killed
from typer.testing import CliRunner

from tipmini.errors import TipminiError
from tipmini.methods.pruner import load_masks, masked
from tipmini_lab.commands import main
from tipmini_lab.evaluation import documents, perplexity, tasks
from tipmini_lab.experiments import declared, profiles, pruning, prunings
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.prunings import Pruned, experiments
from tipmini_lab.locks import alone
from tipmini_lab.results import digests
from tipmini_lab.results import store as storage

TINY = """
description: a try
version: 1
sizes:
  tiny:
    windows: 2
    length: 12
    tuned: {tasks: [rte], rows: 4, length: 12, rank: 2, batch: 2, epochs: 1, every: 1,
            learning_rate: 0.01}
    one_shot: {tasks: [rte], rows: 4, length: 12, rank: 2, tune: false}
tasks: [openbookqa, winogrande]
whole: [{name: base, title: unpruned}, {name: base-int8, title: 8 bits, int8: true}]
semi_structured: [{name: wanda-2to4, title: "2:4", score: wanda}]
methods:
  - {name: magnitude, title: magnitude, options: {method: magnitude}}
  - {name: lora, title: LoRAPrune, options: {method: lora-guided}}
variants:
  - {name: apart, title: layers differ, options: {method: lora-guided, exempt_last: 1}}
plans:
  - {what: a, methods: [magnitude, lora], shares: [0.5], tuned: true, seeds: [0]}
  - {what: b, methods: [magnitude], shares: [0.5], tuned: false, seeds: [0], zero_shot: false}
  - {what: c, methods: [apart], shares: [0.5], tuned: true, seeds: [0], zero_shot: false}
"""
GRID = declared.Grid.model_validate(yaml.safe_load(TINY))
APART = "apart-50-tuned-s0"
ONCE, TUNED, LORA = "magnitude-50-once-s0", "magnitude-50-tuned-s0", "lora-50-tuned-s0"


@pytest.fixture
def profile(tmp_path, embedded, tokenizer, monkeypatch) -> Profile:
    return prunable.profile(monkeypatch, tmp_path, embedded, tokenizer)


def measure(profile, *names, grid=GRID) -> list[tuple[str, str]]:
    """What was measured, in order."""
    shown: list[tuple[str, str]] = []
    show = lambda cell: shown.append((cell.method, cell.task))  # noqa: E731
    prunings.measure(profile, names=names, show=show, declared=grid)
    return shown


def test_everything_is_measured_once_and_no_model_is_left(profile):
    shown = measure(profile)
    corpora = list(perplexity.CORPORA)
    every = [*corpora, "openbookqa", "winogrande"]
    whole = [(name, m) for name in ("base", "base-int8", "wanda-2to4", TUNED, LORA) for m in every]
    assert sorted(shown) == sorted(whole + [(n, m) for n in (ONCE, APART) for m in corpora])
    assert measure(profile) == []
    assert list((profile.scratch / "pruned").iterdir()) == []
    stored = storage.read(profile.pruning_store, LORA)
    assert stored.facts["removed_share"] == pytest.approx(0.5, abs=0.03)
    assert len(stored.facts["loss"]) == len(stored.facts["gone"]) == 2
    masks = load_masks(profile.pruning_store / "masks" / f"{LORA}.safetensors")
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert 0 < removed < sum(map(len, masks.values()))
    losses = {n: storage.cell_of(profile.pruning_store, n, "books").values for n in ("base", LORA)}
    assert losses["base"] != losses[LORA]


def test_a_run_of_masks_is_scored_as_the_masked_model(profile, monkeypatch):
    """Layer 1 stays whole, which no checkpoint can hold; its losses are the masked passes'."""
    kept = {}
    finish = pruning.Run.finish

    def finishing(self):
        kept.update(model=self.model, masks=self.pruner.masks)
        return finish(self)

    monkeypatch.setattr(pruning.Run, "finish", finishing)
    assert measure(profile, APART) == [(APART, corpus) for corpus in perplexity.CORPORA]
    masks = load_masks(profile.pruning_store / "masks" / f"{APART}.safetensors")
    assert masks["model.layers.1.mlp"].all() and not masks["model.layers.0.mlp"].all()
    windows = experiments(profile, GRID)[APART].windows("books")
    with masked(kept["model"], kept["masks"]), torch.no_grad():
        expected = [_loss(kept["model"](torch.tensor([w])).logits[0], w) for w in windows]
    found = storage.cell_of(profile.pruning_store, APART, "books").values
    assert found == pytest.approx(expected, rel=1e-3)
    assert list((profile.scratch / "pruned").iterdir()) == []


def _loss(logits, window):
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:])).item()


def changed(**size) -> declared.Grid:
    """The grid with another size."""
    tiny = GRID.sizes["tiny"].model_copy(update=size)
    return GRID.model_copy(update={"sizes": {"tiny": tiny}})


def test_another_recipe_is_another_measurement(profile):
    measure(profile, ONCE)
    other = changed(one_shot=GRID.sizes["tiny"].one_shot | {"rows": 5})
    assert len(measure(profile, ONCE, grid=other)) == 2
    bundle = storage.read(profile.pruning_store, ONCE)
    assert bundle.settings["recipe"]["rows"] == 5 and len(bundle.cells) == 2


def test_other_windows_measure_only_the_corpora_again(profile):
    measure(profile, "base")
    found = measure(profile, "base", grid=changed(windows=3))
    assert found == [("base", c) for c in perplexity.CORPORA]


def test_a_killed_run_goes_on_with_the_model_it_made(profile, monkeypatch):
    whole = perplexity.losses

    def killed(lm, windows):
        raise Killed

    monkeypatch.setattr(perplexity, "losses", killed)
    with pytest.raises(Killed):
        measure(profile, TUNED)
    (made,) = (profile.scratch / "pruned").iterdir()
    assert made.name.startswith(TUNED)
    monkeypatch.setattr(perplexity, "losses", whole)
    monkeypatch.setattr(prunings, "_make", killed)  # not needed again
    assert len(measure(profile, TUNED)) == 4
    assert not made.exists()


def test_a_kill_after_the_last_cell_leaves_masks_and_at_last_no_model(profile, monkeypatch):
    remove = shutil.rmtree

    def killed(folder, *given, **options):
        if Path(folder).name.startswith(TUNED):
            raise Killed
        remove(folder, *given, **options)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(prunings.shutil, "rmtree", killed)
        measure(profile, TUNED)
    masks = profile.pruning_store / "masks" / f"{TUNED}.safetensors"
    assert masks.is_file() and list((profile.scratch / "pruned").iterdir())
    assert measure(profile, TUNED) == []
    assert list((profile.scratch / "pruned").iterdir()) == []


def test_masks_that_are_gone_are_made_again_and_no_cell_is(profile):
    measure(profile, ONCE)
    masks = profile.pruning_store / "masks" / f"{ONCE}.safetensors"
    kept = masks.read_bytes()
    masks.unlink()
    assert measure(profile, ONCE) == [] and masks.read_bytes() == kept


def test_what_another_process_is_at_comes_last(profile, monkeypatch):
    place = profile.scratch / "claims" / "pruning" / "base"
    order, held = [], alone(place)
    held.__enter__()
    run = Pruned.run

    def run_one(self, only):
        order.append(self.name)
        if self.name == ONCE:
            held.__exit__(None, None, None)  # the other is done
        yield from run(self, only)

    monkeypatch.setattr(Pruned, "run", run_one)
    measure(profile, "base", ONCE)
    assert order[:2] == [ONCE, "base"]


def test_an_unknown_run_is_refused(profile):
    with pytest.raises(TipminiError, match="no run 'lora-60' at profile tiny"):
        measure(profile, "lora-60")


def test_the_command(profile, monkeypatch):
    monkeypatch.setattr(profiles, "load_profile", lambda _: profile)
    monkeypatch.setattr(prunings, "grid", lambda _: GRID)
    command = ["measure", "--group", "pruning", "--variant", ONCE, "--json"]
    found = CliRunner().invoke(main.app, command)
    assert found.exit_code == 0, found.output
    assert '"task": "wikipedia"' in found.stdout and '"metric": "nll"' in found.stdout
    found = CliRunner().invoke(main.app, ["measure", "--group", "pruning", "--task", "rte"])
    assert isinstance(found.exception, TipminiError) and "omit --task" in str(found.exception)


# What is shipped ----------------------------------------------------------------------------------
SHIPPED = declared.grid()


WORDS = 13  # in a row: as many as tell a copy from a phrase


def _phrases(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


@pytest.fixture(scope="module")
def read() -> set[tuple[str, ...]]:
    """Phrases of all rows that any run of the real profile prunes and tunes on, uncut."""
    size = SHIPPED.size("mini")
    recipes = [size.recipe(tuned=True, longer=longer) for longer in (False, True)]
    recipes.append(size.recipe(tuned=False))
    assert {r.tasks for r in recipes} == {("coqa",)}
    definition = tasks.load("coqa", evaluation=1, train=max(r.rows for r in recipes))
    rows = [tasks.text(definition, doc) for doc in definition.training_docs()]
    assert len(rows) == max(r.rows for r in recipes)
    return set().union(*map(_phrases, rows))


def test_no_text_that_tunes_is_in_the_windows(read, tokenizer):
    size = SHIPPED.size("mini")
    for corpus in perplexity.CORPORA:
        windows = perplexity.windows(corpus, size.windows, size.length, tokenizer)
        found = _phrases(tokenizer.decode([token for window in windows for token in window]))
        assert len(found) > 5000 and not found & read
    corpus = documents.CORPORA["wikipedia"]()  # of which another part holds one of the stories
    assert any(_phrases(text) & read for text in corpus)


def test_no_text_that_tunes_is_in_the_rows_of_tasks(read):
    for task in SHIPPED.tasks:
        definition = tasks.load(task, load_profile("mini").evaluation_rows)
        rows = [" ".join(map(str, doc.values())) for doc in definition.eval_docs]
        assert rows and not any(_phrases(row) & read for row in rows)


def test_whatever_is_stored_was_made_as_it_would_be_now():
    """Of the same code, recipe, model, rows and windows; and its masks are kept beside it."""
    known = experiments(load_profile("mini"))
    names = storage.names(known["base"].store)
    assert names and set(names) <= set(known)
    for each in map(known.get, names):
        cells = storage.read(each.store, each.name).cells
        assert [m for m in each.measures() if each.is_stale(m, measured=True)] == [], each.name
        keys = {m: digests.digest(each.inputs(m)) for m in each.measures()}
        assert {cell.task: cell.key for cell in cells}.items() <= keys.items(), each.name
        assert each.masks_file.is_file() == each.has_masks, each.name
