"""Merges of a tiny random model: what is measured, once, by whom, and what is measured again."""

import functools
import json
import shutil
from dataclasses import fields

import pytest
import torch
from labs import TASKS, save_adapter, save_llama
from made_up import CHOOSING, keep_scored, scored
from peft import PeftModel
from typer.testing import CliRunner

import tipmini as tm
from tipmini.errors import TipminiError
from tipmini.methods.blockwise import merge_blockwise
from tipmini.methods.table import TRAINED, equal_weight
from tipmini_lab import intact, locks, paths
from tipmini_lab.commands import main, one
from tipmini_lab.evaluation import assets, documents, evaluator, model, tasks
from tipmini_lab.experiments import catalogue, distilling, formats, merging, profiles, variants
from tipmini_lab.experiments import lab as lab_module
from tipmini_lab.experiments.catalogue import Catalogue, Choice, Inputs, Variant
from tipmini_lab.experiments.lab import Bundled, HeldOut, Lab, measure, run_all, stale
from tipmini_lab.experiments.profiles import Profile, load_profile
from tipmini_lab.experiments.training import RECIPES
from tipmini_lab.experiments.variants import PAPER, TABLE_1, cell_file, stored
from tipmini_lab.locks import alone
from tipmini_lab.results import checked, digests, store


def other(profile, **changes) -> Lab:
    return Lab(profile.model_copy(update=changes))


# Cells of Table 1 ---------------------------------------------------------------------------------
def test_every_method_is_measured_once_and_then_read(profile, measured):
    assert stored(profile, "base", "rte") is None
    lab = Lab(profile)
    cells = {method: lab.cell(method, "rte") for method in TABLE_1}
    assert measured == ["rte"] * len(TABLE_1)
    again = Lab(profile)
    for method, cell in cells.items():
        assert again.cell(method, "rte") == cell == stored(profile, method, "rte")
        assert (cell.profile, cell.method, cell.task, cell.metric) == ("tiny", method, "rte", "acc")
        assert cell.count == 4 and set(cell.values) <= {0.0, 1.0}
        assert cell.key == digests.digest(cell.inputs)
    assert len(measured) == len(TABLE_1) == len({cell.key for cell in cells.values()})


def test_a_cell_is_what_lm_eval_measures(profile, place, tokenizer, tiny):
    """The single adapter, put on by stock PEFT and evaluated by lm-eval's own model."""
    from lm_eval.models.huggingface import HFLM

    adapter = str(place / "adapters" / "openbookqa")
    lm = HFLM(pretrained=str(tiny / "model"), peft=adapter, dtype="float32", device="cpu")
    expected = evaluator.evaluate(lm, tasks.load("openbookqa", 4), "acc_norm")
    assert Lab(profile).cell("single", "openbookqa").values == expected


def test_the_number_format_is_told_of_a_cell_and_asked_for(profile, measured, monkeypatch):
    """It is no part of whose cell it is: what is stored is read, unless another is asked for."""
    before = Lab(profile).cell("tip", "rte")
    monkeypatch.setattr(model, "fastest_dtype", lambda device: "bfloat16")
    lab = other(profile, dtype="auto")
    assert lab.dtype == "bfloat16" and lab.cell("tip", "rte") == before
    assert measured == ["rte"] and before.dtype == "float32"
    after = other(profile, dtype="bfloat16").cell("tip", "rte")
    assert len(measured) == 2 and after.key == before.key and after.dtype == "bfloat16"
    assert other(profile, dtype="auto").cell("tip", "rte") == after


def test_how_a_merge_was_learnt_is_kept_with_its_cells(profile):
    few = {"learn": "adapter", "rows": 3, "stopping": 2, "epochs": 2, "parts": 1}
    learnt = Variant(name="few", title="few", method="cat", distill=few)
    for lab in (Bundled(profile), Bundled(profile)):  # the second reads what the first learnt
        merge = variants.Merge(lab, learnt)
        facts = merge.facts()
        assert facts["steps"] == 2 and len(facts["R"]) == 3
        folder = profile.scratch / "distilled" / "few"
        seconds = json.loads(checked.text(folder / distilling.STORY))["seconds"]
        assert seconds > 0 and facts["seconds"] == round(seconds, 1)
        assert facts["R"][0] != min(facts["R"])
        own, other, another, itself = facts["interference"]
        assert own == itself == 0.0 and min(other, another) > 0.0
        assert len(facts["base"]) == len(facts["left"]) == len(TASKS)
        assert facts["norm"] < facts["sum"]


def test_a_merge_may_start_from_another_variant(profile, monkeypatch):
    """Then its seconds count those of the other, and what the other follows from is its own."""
    few = {"rows": 3, "stopping": 2, "epochs": 1, "parts": 1}
    first = Variant(name="first", title="first", method="cat", distill=few | {"learn": "adapter"})
    second = first.changed(name="second", distill=few | {"start": "first", "learning_rate": 1e-12})
    lab = Bundled(profile)
    lab._experiments["first"] = begun = variants.Merge(lab, first)
    told = variants.Merge(lab, second)
    alone = json.loads(checked.text(told.folder.parents[1] / "distilled/second/distilled.json"))
    assert told.facts()["seconds"] == pytest.approx(
        alone["seconds"] + begun.facts()["seconds"], abs=0.11
    )
    for module in told.merge().modules:
        found, expected = (each.merge().delta(module) for each in (told, begun))
        torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-4)
    assert told.settings()["started"] == begun.settings()
    begun.variant = first.changed(weights=0.5)
    assert told.settings()["started"]["weights"] == 0.5


CHANGES = [{"evaluation_rows": 5}, {"evaluation_rows_of": {"rte": 3}}, {"tokens": 500}]


@pytest.mark.parametrize("change", CHANGES)
def test_measured_again_with_another_parameter(profile, measured, change):
    before = Lab(profile).cell("base", "rte")
    after = other(profile, **change).cell("base", "rte")
    assert len(measured) == 2 and after.key != before.key
    assert stored(profile, "base", "rte") == after


def test_measured_again_with_another_adapter(profile, place, measured):
    before = [Lab(profile).cell(method, "rte") for method in ("base", "single", "linear")]
    save_adapter(place / "adapters" / "rte", seed=7)
    after = [Lab(profile).cell(method, "rte") for method in ("base", "single", "linear")]
    assert len(measured) == 5  # the base has none
    assert [a.key == b.key for a, b in zip(before, after, strict=True)] == [True, False, False]


def test_measured_again_with_another_model_or_other_data(
    profile, tmp_path, tiny, tokenizer, measured, monkeypatch
):
    before = Lab(profile).cell("base", "rte")
    save_llama(tmp_path / "other" / "model", tokenizer, seed=3)
    intact.seal(tmp_path / "other")
    (tmp_path / "other" / "data").symlink_to((tiny / "data").resolve())
    with monkeypatch.context() as patch:
        patch.setattr(assets, "embedded", lambda: tmp_path / "other")
        after = Lab(profile).cell("base", "rte")
    rows = tasks.rows
    monkeypatch.setattr(tasks, "rows", lambda *a: [r | {"sentence1": "Rain."} for r in rows(*a)])
    keys = {cell.key for cell in (before, after, Lab(profile).cell("base", "rte"))}
    assert len(keys) == len(measured) == 3


def code_is(monkeypatch, told: str) -> None:
    for module in ("variants", "lab"):
        place = f"tipmini_lab.experiments.{module}.evaluation_code"
        monkeypatch.setattr(place, lambda: {"evaluation": told})


def test_measured_again_with_other_code(profile, measured, monkeypatch):
    before = Lab(profile).cell("base", "rte")
    known = {"evaluation": [before.code["evaluation"], "proven"]}
    monkeypatch.setattr(digests, "equal", lambda: known)
    code_is(monkeypatch, "proven")
    assert Lab(profile).cell("base", "rte") == before and len(measured) == 1
    code_is(monkeypatch, "other")
    assert Lab(profile).cell("base", "rte").code == {"evaluation": "other"} and len(measured) == 2


def test_what_has_no_part_in_it_changes_nothing(profile, measured):
    """Merging's settings do not touch base and single, nor the other merges."""
    before = {method: Lab(profile).cell(method, "rte") for method in TABLE_1}
    changed = other(profile, drop_rate=0.2, description="said otherwise", base_sparsity=0.4)
    after = {method: changed.cell(method, "rte") for method in TABLE_1}
    same = {method for method in TABLE_1 if before[method].key == after[method].key}
    assert same == {"base", "single", "linear"}
    assert len(measured) == len(TABLE_1) + 2


def test_a_kill_while_measuring_leaves_what_was_stored(profile, monkeypatch):
    before = Lab(profile).cell("base", "rte")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluator, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        other(profile, tokens=77).cell("base", "rte")
    assert stored(profile, "base", "rte") == before
    folder = cell_file(profile, "base", "rte").parent
    assert [path.name for path in folder.iterdir()] == ["base-rte.json"]


# The base and what is put on it -------------------------------------------------------------------
@pytest.mark.parametrize("fails", [False, True])
def test_the_base_computes_as_before(profile, place, fails):
    lab, tokens = Lab(profile), torch.arange(20)[None]
    bare = lab.base(tokens).logits
    try:
        with lab.lm.resident.active(place / "adapters" / "rte") as peft:
            assert not torch.allclose(peft(tokens).logits, bare, atol=1e-2)
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert torch.equal(lab.base(tokens).logits, bare)


def test_one_adapter_does_not_remain_under_the_next(profile, place):
    lab, tokens = Lab(profile), torch.arange(20)[None]
    with lab.lm.resident.active(place / "adapters" / "openbookqa"):
        pass
    with lab.lm.resident.active(place / "adapters" / "rte") as peft:
        found = peft(tokens).logits
    with Lab(profile).lm.resident.active(place / "adapters" / "rte") as peft:
        assert torch.equal(found, peft(tokens).logits)


def test_an_adapter_is_read_once_and_again_when_its_factors_change(profile, place, tmp_path):
    resident, folder = Lab(profile).lm.resident, tmp_path / "adapter"
    for source, known in (("rte", 1), ("rte", 1), ("openbookqa", 2), ("rte", 2)):
        shutil.copytree(place / "adapters" / source, folder, dirs_exist_ok=True)
        with resident.active(folder) as peft:
            assert len(resident.known) == len(peft.peft_config) == known


# Merging ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", PAPER)
def test_merged_folders_load_with_stock_peft(profile, tiny, method):
    folder = Lab(profile).merged(method)
    adapter = tm.load_adapter(folder)
    peft = PeftModel.from_pretrained(model.load_base(tiny / "model", "float32"), folder)
    for module in adapter.modules:
        layer = peft.base_model.model.get_submodule(module)
        torch.testing.assert_close(layer.get_delta_weight("default"), adapter.delta(module))


def test_merges_are_the_librarys(profile):
    """With the profile's settings, and norms of each task's own adapter."""
    lab = other(profile, drop_rate=0.4, base_sparsity=0.6, seed=5)
    norms = {task: lab.input_norms(task) for task in TASKS}
    expected = {
        "linear": tm.merge(lab.adapters, "linear"),
        "dare": tm.merge(lab.adapters, "dare", drop_rate=0.4, seed=5),
        "tip": tm.merge(lab.adapters, "tip", sparsity=0.6, norms=norms),
    }
    for method, merged in expected.items():
        found = tm.load_adapter(lab.merged(method))
        for module in merged.modules:
            torch.testing.assert_close(found.delta(module), merged.delta(module))
    found = lab.sparsities("rte")
    assert found.shape == (2,) and ((found >= 0) & (found <= 1)).all()


def test_a_variant_is_the_librarys_merge(profile):
    lab = Lab(profile)
    found = tm.load_adapter(lab.merged("tip-cat.scaled"))
    exact = tm.merge(lab.adapters, "cat")
    ratios = [(found.delta(m) / exact.delta(m)).mean().item() for m in exact.modules]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3)
    want = merging.sizes(lab.experiment("tip-cat").merge(), exact)["norm"]
    assert lab.experiment("tip-cat.scaled").facts()["norm"] == pytest.approx(want, rel=1e-5)


def test_rank_whole_cuts_nothing(profile):
    lab = Lab(profile)
    norms = {task: lab.input_norms(task) for task in TASKS}
    _, dense = tm.merge_update(lab.adapters, "tip", norms=norms, on="delta")
    found = tm.load_adapter(lab.merged("tip-delta"))
    for module in dense:
        torch.testing.assert_close(found.delta(module), dense[module], rtol=1e-4, atol=1e-4)


def test_a_variant_is_merged_again_only_when_something_it_is_made_of_changes(
    profile, place, monkeypatch
):
    merges, merge = [], tm.merge
    monkeypatch.setattr(tm, "merge", lambda *a, **k: (merges.append(a[1]), merge(*a, **k))[1])
    for expected in (1, 1):
        Lab(profile).merged("wanda")
        assert merges.count("wanda") == expected
    other(profile, base_sparsity=0.2).merged("wanda")
    save_adapter(place / "adapters" / "rte", seed=5)
    Lab(profile).merged("wanda")
    assert merges.count("wanda") == 3


# Groups of variants, a few instead of those shipped -----------------------------------------------
DECLARED = """
description: a try
variants:
  - {name: base, title: Base, method: base}
  - {name: linear, title: Linear, method: linear}
  - {name: half, title: Half, method: linear, weights: 0.5, full: true}
  - {name: plain, title: "Linear, said otherwise", method: linear, weights: 1.0}
  - {name: one, title: One adapter, method: cat, adapters: 1}
  - {name: other, title: Another metric, method: linear, metrics: {openbookqa: acc}}
"""
CHOICE = """
description: choices
order: 2
choices: [{name: best, title: The best, among: [linear, half]}]
"""
CELLS = 2 + 2 + 2 + 0 + 1 + 1  # plain is linear; other's RTE as well


@pytest.fixture
def known(tmp_path, monkeypatch):
    folder = tmp_path / "declared" / "tip"
    folder.mkdir(parents=True)
    (folder / "methods.yaml").write_text(DECLARED)
    (folder / "tuned.yaml").write_text(CHOICE)
    found = catalogue.catalogue(folder.parent)
    monkeypatch.setattr(catalogue, "catalogue", lambda: found)
    return found


def test_a_group_is_measured_once_and_then_read(profile, known, measured):
    shown = []
    measure(profile, "methods", show=shown.append)
    assert len(measured) == CELLS
    cells = store.cells(profile.variant_store)
    assert {name for name, _ in cells} == {"base", "linear", "half", "plain", "one", "other"}
    assert [task for name, task in cells if name == "one"] == [TASKS[0]]  # what is merged alone
    assert len(cells) == len(shown) == 11
    assert all(cell.method == name for (name, _), cell in cells.items())
    assert cells["plain", "rte"].values == cells["linear", "rte"].values
    assert cells["other", "openbookqa"].metric == "acc"
    measure(profile, "methods", show=shown.append)
    assert len(measured) == CELLS and len(shown) == 11
    assert store.cells(profile.variant_store) == cells


def test_some_variants_on_some_tasks(profile, known, measured):
    """Settings and facts stand beside their cells."""
    measure(profile, "methods", ["half", "base"], ["rte"])
    assert measured == ["rte", "rte"]
    assert set(store.cells(profile.variant_store)) == {("base", "rte"), ("half", "rte")}
    half, base = (store.read(profile.variant_store, name) for name in ("half", "base"))
    assert half.title == "Half" and half.settings["weights"] == 0.5
    assert set(half.settings["adapters"]) == set(TASKS)
    assert half.facts["norm"] > 0 and half.facts["sum"] > 0 and base.facts == {}


def test_the_important_ones_alone(profile, known):
    measure(profile.model_copy(update={"important_only": True}), "methods")
    assert store.names(profile.variant_store) == ["half"]


def test_a_kill_loses_no_finished_cell(profile, known, measured, monkeypatch):
    answers = evaluator.answers

    @functools.wraps(answers)
    def dying(*given):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return answers(*given)

    monkeypatch.setattr(evaluator, "answers", dying)
    with pytest.raises(KeyboardInterrupt):
        measure(profile, "methods")
    assert len(store.cells(profile.variant_store)) == 3
    monkeypatch.setattr(evaluator, "answers", answers)
    measure(profile, "methods")
    assert len(measured) == CELLS and len(store.cells(profile.variant_store)) == 11


def test_what_is_stale_is_told_without_merging_and_measured_again(
    profile, known, place, measured, monkeypatch
):
    names = ["base", "linear", "half", "one"]
    measure(profile, "methods", ["base", "half", "one"])
    before = store.cells(profile.variant_store)

    def found(**changes):
        with monkeypatch.context() as patch:
            patch.setattr(variants.Merge, "merge", None)
            return stale(Bundled(profile.model_copy(update=changes)), names)

    assert found() == []
    every = [("base", t) for t in TASKS] + [("half", t) for t in TASKS] + [("one", TASKS[0])]
    assert found(tokens=100) == every == found(dtype="bfloat16")
    assert found(evaluation_rows_of={"rte": 2}) == [("base", "rte"), ("half", "rte")]
    save_adapter(place / "adapters" / "rte", seed=7)
    assert found() == [("half", task) for task in TASKS]
    measure(profile, "methods", ["base", "half", "one"])
    after = store.cells(profile.variant_store)
    assert len(measured) == 5 + 2
    assert {place for place in after if after[place].key != before[place].key} == set(every[2:4])


def test_the_model_does_not_hold_every_adapter_it_wore(profile, known):
    lab = Bundled(profile)
    run_all(lab, ["linear", "half", "one"])
    assert not lab.lm.resident.known
    run_all(lab, ["plain", "other"])
    assert lab.cell("half", "rte").key == store.cell_of(profile.variant_store, "half", "rte").key


def test_each_is_one_processs_at_a_time(tmp_path):
    """Another's are passed over, and yielded once they are let go."""
    names = locks.in_turn(["one", "half"], tmp_path)
    assert next(names) == "one"
    with pytest.raises(BlockingIOError), alone(tmp_path / "one", wait=False):
        pass
    other = locks.in_turn(["one", "half"], tmp_path)
    assert next(other) == "half"  # of both, the first is not free
    other.close()
    assert list(names) == ["half", "one", "half"]


def test_what_another_process_is_at_comes_last(profile, known, monkeypatch):
    """And is then waited for: here the other is done the second time one asks."""
    order, asked, held = [], [], alone

    def busy_once(folder, *, wait=True):
        asked.append(folder.name)
        if folder.name == "base" and asked.count("base") == 1:
            raise BlockingIOError
        return held(folder, wait=wait)

    monkeypatch.setattr(locks, "alone", busy_once)
    show = lambda cell: order.append(cell.method)  # noqa: E731
    run_all(Bundled(profile), ["base", "half"], ["rte"], show)
    assert order == ["half", "base"]


def command(monkeypatch, profile, *given):
    monkeypatch.setattr(profiles, "load_profile", lambda _: profile)
    return CliRunner().invoke(main.app, ["measure", *given])


def test_the_command(profile, known, monkeypatch):
    given = ["--group", "methods", "--variant", "half", "--task", "rte", "--json"]
    done = command(monkeypatch, profile, *given)
    assert done.exit_code == 0, done.output
    assert '{"method": "half", "task": "rte", "metric": "acc"' in done.stdout


UNKNOWN = {
    "--group none": "group 'none': not one of methods, tuned",
    "--group methods --variant tip": "group methods: no variant 'tip' at profile tiny",
    "--variant nothing": "variant 'nothing': not declared in experiments/*/*.yaml",
}


@pytest.mark.parametrize("given", UNKNOWN)
def test_unknown_names(profile, known, monkeypatch, given):
    done = command(monkeypatch, profile, *given.split())
    assert isinstance(done.exception, TipminiError) and UNKNOWN[given] in str(done.exception)


# Choosing on held-out rows ------------------------------------------------------------------------
HALF, MORE, MOST = ([1, 0, 1, 0], [1, 0]), ([1, 1, 1, 0], [1, 0]), ([1, 1, 1, 1], [1, 1])
CASES = {
    "the highest": (HALF, MORE, "b"),
    "tasks count alike, not rows": (([1, 1, 1, 0], [0, 0]), HALF, "b"),
    "the first of equals": (HALF, HALF, "a"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_best(case):
    a, b, expected = CASES[case]
    cells = scored(a=a, b=b)
    assert catalogue.best({n: catalogue.score(cells, n, CHOOSING) for n in "ab"}) == [expected]


@pytest.fixture
def choosing(tmp_path):
    """A profile that stores below tmp_path, and a choice between merges."""
    made = {"name": "tiny", "description": "d", "tasks": CHOOSING}
    profile = Profile(**made, results=str(tmp_path))
    variants = {n: Variant(name=n, title=n.upper(), method=n) for n in ("linear", "cat", "svd")}
    choice = Choice(name="best", title="the best", among=("linear", "c*"))
    return profile, Catalogue({}, {}, variants), choice


def test_a_choice_is_the_winner_under_its_own_name(choosing):
    profile, known, choice = choosing
    keep_scored(profile, scored(linear=HALF))
    with pytest.raises(TipminiError, match="choice best: cat and 0 more are not measured"):
        catalogue.resolved(choice, known, profile)
    keep_scored(profile, scored(linear=HALF, cat=MORE))
    found = catalogue.resolved(choice, known, profile)
    assert (found.name, found.title, found.method) == ("best", "the best: CAT", "cat")
    lowest = choice.model_copy(update={"lowest": True})
    assert catalogue.resolved(lowest, known, profile).method == "linear"


def test_finalists_are_chosen_from_by_their_own_rows(choosing):
    """cat is last of three at first, so it is not among the two however well it does later."""
    profile, known, _ = choosing
    choice = Choice(name="best", title="the best", among=("linear", "cat", "svd"), finalists=2)
    keep_scored(profile, scored(linear=HALF, cat=([0, 0, 0, 0], [0, 0]), svd=MOST))
    assert catalogue.finalists(choice, known, profile) == ["linear", "svd"]
    with pytest.raises(TipminiError, match="linear and 1 more are not measured"):
        catalogue.resolved(choice, known, profile)
    keep_scored(profile, scored(linear=([1, 1], [1]), svd=([1, 1], [0])), final=True)
    assert catalogue.resolved(choice, known, profile).method == "linear"


def test_a_choice_with_both_sets_of_adapters(choosing):
    """What is best with each of them alone is not what is best with both."""
    profile, known, _ = choosing
    choice = Choice(name="best", title="the best", among=("linear", "cat", "svd"), both=True)
    high, low = ([1, 1, 1, 1], [1, 1]), ([0, 0, 0, 0], [0, 0])
    keep_scored(profile, scored(linear=high, cat=MORE, svd=low))
    with pytest.raises(TipminiError, match="choice best: linear and 2 more are not measured"):
        catalogue.winner(choice, known, profile)
    keep_scored(profile.second(), scored(linear=low, cat=MORE, svd=high))
    assert catalogue.winner(choice, known, profile) == "cat"
    assert catalogue.winner(choice.model_copy(update={"both": False}), known, profile) == "linear"
    several = choice.model_copy(update={"finalists": 1})
    assert catalogue.finalists(several, known, profile) == ["cat"]
    lowest = choice.model_copy(update={"lowest": True})
    assert catalogue.winner(lowest, known, profile) == "linear"  # the first of equals


def content(rows: list[dict]) -> set[str]:
    """Rows told apart by all that they hold but running numbers, which differ by file."""
    return {digests.digest({k: v for k, v in r.items() if k not in tasks.NUMBERS}) for r in rows}


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("task", documents.TASKS)
def test_held_out_rows_are_neither_trained_on_nor_evaluated(embedded, task, final):
    lab = HeldOut(load_profile("mini"), final)
    after, count = lab.rows(task)
    scored = list(lab.task(task).eval_docs)
    recipe = RECIPES[task]
    expected = {"coqa": 60, "rte": 32, "arc_challenge": 160}.get(task, 192)
    expected = expected if final else {"coqa": 16, "rte": 32}.get(task, 48)
    assert len(scored) >= count - 1 and count == expected and after == recipe.rows
    trained = list(tasks.load(task, 1, recipe.rows).training_docs())
    assert len(trained) == recipe.rows
    own = content(scored)
    assert len(own) == len(scored)
    assert not own & (content(trained) | content(list(tasks.load(task).eval_docs)))


def test_held_out_rows_of_other_peoples_adapters_are_not_known():
    with pytest.raises(TipminiError, match="profile a40: its adapters' held-out rows"):
        HeldOut(load_profile("a40"))


@pytest.fixture
def few(monkeypatch):
    """Held-out rows in a number that a tiny test can afford."""
    monkeypatch.setattr(HeldOut, "rows", lambda self, task: (100, 6 if self.final else 4))


def test_a_choice_is_made_on_held_out_rows_and_then_evaluated(profile, few, known, measured):
    with pytest.raises(TipminiError, match="choice best: linear and 1 more are not measured"):
        Bundled(profile).variant("best")
    measure(profile, "tuned")
    held, cells = (store.cells(p) for p in (profile.selection_store, profile.variant_store))
    assert {name for name, _ in held} == {"linear", "half"}
    assert len(measured) == 2 * 2 + 2  # two candidates and the chosen one, two tasks each
    assert set(cells) == {("best", task) for task in TASKS}
    lab = Bundled(profile)
    assert lab.variant("best").title in ("The best: Linear", "The best: Half")
    won = lab.made_as("best")
    assert won in ("linear", "half") and lab.made_as(won) == won
    assert lab.merged("best").name == won  # nothing is merged, or learnt, twice
    assert lab.distilled_places("best") == lab.distilled_places(won)
    read = [{cell.inputs["data"] for cell in each.values()} for each in (held, cells)]
    assert not read[0] & read[1]
    # Where only some are measured the choice is read.
    again = {"important_only": True, "chooses": False, "results": f"{profile.results}-full"}
    again |= {"selection": str(profile.selection_store)}
    measure(profile.model_copy(update=again), "tuned")
    assert len(measured) == 6 + 2


def test_what_a_choice_came_to_is_learnt_once_and_by_one_process(
    profile, few, tmp_path, monkeypatch
):
    folder, runs, claims = tmp_path / "declared" / "tip", [], []
    folder.mkdir(parents=True)
    taught = "{learn: adapter, rows: 3, stopping: 2, epochs: 1, parts: 1}"
    (folder / "methods.yaml").write_text(
        "description: a try\n"
        f"variants: [{{name: taught, title: T, method: cat, distill: {taught}}}]"
    )
    (folder / "tuned.yaml").write_text(CHOICE.replace("linear, half", "taught"))
    found = catalogue.catalogue(folder.parent)
    monkeypatch.setattr(catalogue, "catalogue", lambda: found)
    learn, claim = lab_module.Coefficients.run, lab_module.alone
    counting = lambda run: (runs.append(run), learn(run))[1]  # noqa: E731
    monkeypatch.setattr(lab_module.Coefficients, "run", counting)
    monkeypatch.setattr(lab_module, "alone", lambda p: (claims.append(p.name), claim(p))[1])
    measure(profile, "tuned")  # the candidate, and then the choice
    assert len(runs) == 1
    shutil.rmtree(profile.scratch / "distilled")
    for name in ("best", "taught"):
        merge = Bundled(profile).experiment(name)
        merge.lab.distilled(merge, merge.exact())
    assert len(runs) == 2 and set(claims) == {"taught"}


def test_finalists_are_scored_on_more_rows(profile, few, known, measured):
    known.groups["tuned"].choices[0].__dict__["finalists"] = 1
    measure(profile, "tuned")
    assert len(measured) == 2 * 2 + 2 + 2 and len(store.names(profile.finals_store)) == 1


def test_what_is_recommended_was_chosen_on_held_out_rows():
    profile, known = load_profile("mini"), catalogue.catalogue()
    chosen = catalogue.resolved(known.choices["better-alone"], known, profile)
    preset = tm.PRESETS["recommended"]
    assert (chosen.base_method, chosen.options) == (preset.method, preset.options)
    weight = equal_weight(preset.weights, len(profile.tasks))
    assert chosen.shares(profile.tasks) == pytest.approx(dict.fromkeys(profile.tasks, weight))


def test_what_is_recommended_with_unlabelled_rows_was_chosen_on_held_out_rows(
    embedded, tmp_path, monkeypatch
):
    """As `tipmini distill` has it by default, but for how many rows it reads and how often."""
    profile, known = load_profile("mini"), catalogue.catalogue()
    chosen = catalogue.resolved(known.choices["unlabelled"], known, profile)
    preset, count = tm.PRESETS["recommended"], len(profile.tasks)
    assert chosen.base_method == preset.method  # it starts from there
    assert equal_weight(chosen.weights, count) == equal_weight(preset.weights, count)

    class Asked(Exception):
        """What a command would learn by."""

    def stopped(model, tokenizer, own, start, recipe, saved, **_):
        raise Asked(recipe)

    monkeypatch.setattr(distilling, "Distilling", stopped)
    folders = [paths.ADAPTERS / task for task in profile.tasks]
    with pytest.raises(Asked) as told:
        one.distill(folders, tmp_path / "taught", task=list(profile.tasks))
    (default,) = told.value.args
    recipe = Lab(profile).distill_recipe(Lab(profile).experiment("unlabelled"))
    lengths = {"rows", "rows_of", "stopping", "epochs", "parts"}
    assert {
        field.name: (getattr(recipe, field.name), getattr(default, field.name))
        for field in fields(recipe)
        if getattr(recipe, field.name) != getattr(default, field.name)
    }.keys() <= lengths
    assert TRAINED["distill"][0].endswith("; recommended with its rows at hand.")


@pytest.mark.parametrize("count", range(2, 8))
def test_what_is_recommended_for_so_many_adapters_was_chosen_on_their_held_out_rows(count):
    profile, known = load_profile("mini"), catalogue.catalogue()
    chosen = catalogue.resolved(known.choices[f"few-{count}"], known, profile)
    preset = tm.PRESETS["recommended"]
    assert (chosen.base_method, chosen.options) == (preset.method, preset.options)
    assert equal_weight(chosen.weights, count) == equal_weight(preset.weights, count)


# Calibrating --------------------------------------------------------------------------------------
def test_norms_are_measured_once_for_the_same_things(profile, place, monkeypatch):
    runs, calibrate = [], tm.calibrate_adapter
    counting = lambda *a, **k: (runs.append(1), calibrate(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(tm, "calibrate_adapter", counting)
    first, second = (Lab(profile).input_norms("rte") for _ in range(2))
    assert len(runs) == 1 and set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other(profile, calibration_rows=3).input_norms("rte")
    save_adapter(place / "adapters" / "rte", seed=9)
    changed = Lab(profile).input_norms("rte")
    assert len(runs) == 3
    assert not all(torch.allclose(first[name], changed[name]) for name in first)


def test_norms_are_those_of_texts_run_alone(profile, place, tokenizer, tiny):
    """Padding, batches and the order of the rows have no part in them."""
    lab = Lab(profile)
    base = model.load_base(tiny / "model", "float32")
    peft = PeftModel.from_pretrained(base, place / "adapters" / "rte").eval()
    rows = [dict(tokenizer(text, return_tensors="pt")) for text in lab.norms.texts("rte")]
    expected, found = tm.calibrate_adapter(peft, rows), lab.input_norms("rte")
    assert set(found) == set(expected) and len(rows) == 4
    for name, norm in expected.items():
        torch.testing.assert_close(found[name], norm, rtol=1e-4, atol=1e-5)


OTHERWISE = [Inputs(statistic="rms"), Inputs(source="base"), Inputs(rows=2), Inputs(answers=False)]
OTHERWISE += [Inputs(seed=1)]


@pytest.mark.parametrize(
    "chosen", OTHERWISE, ids=lambda c: str(c.model_dump(exclude_defaults=True))
)
def test_inputs_measured_otherwise_are_others_and_kept_apart(profile, chosen):
    lab = Lab(profile)
    usual, found = lab.input_norms("rte"), lab.input_norms("rte", chosen)
    assert set(usual) == set(found)
    assert not all(torch.allclose(usual[name], found[name]) for name in usual)
    again = Lab(profile).input_norms("rte")
    assert all(torch.equal(usual[name], again[name]) for name in usual)


def test_of_the_base_are_those_of_no_adapter(profile, tiny, tokenizer):
    """x is what the bare base reads; A x is that through the adapter's A."""
    lab = Lab(profile)
    found, adapter = lab.input_norms("rte", Inputs(source="base")), lab.adapters["rte"]
    base = model.load_base(tiny / "model", "float32")
    rows = [dict(tokenizer(text, return_tensors="pt")) for text in lab.norms.texts("rte")]
    expected = tm.calibrate(base, rows, adapter.modules)
    grams = tm.calibrate(base, rows, adapter.modules, statistic="gram_sequences")
    for module in adapter.modules:
        a = adapter.factors[module].a
        through = (a @ grams[module] @ a.T).diagonal().sqrt()
        torch.testing.assert_close(found[module], expected[module], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"{module}.lora_B"], through, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["regmean++", "drift"])
def test_a_merge_that_runs_the_base_is_the_librarys(profile, tiny, tokenizer, method):
    """On the prompts alone where they are asked for, and known by what they are."""
    told = {"name": "one", "title": "One", "method": method, "inputs": {"answers": False}}
    lab, variant = Lab(profile), Variant(**told)
    found = variants.Merge(lab, variant)
    texts = {task: lab.norms.texts(task, Inputs(answers=False)) for task in profile.tasks}
    rows = {t: [dict(tokenizer(x, return_tensors="pt")) for x in own] for t, own in texts.items()}
    expected = merge_blockwise(
        model.load_base(tiny / "model", "float32"), lab.adapters, rows, method
    )
    for module, delta in ((m, found.merge().delta(m)) for m in expected.modules[:2]):
        torch.testing.assert_close(delta, expected.delta(module), rtol=1e-3, atol=1e-4)
    answered = variants.Merge(lab, variant.changed(inputs={}))
    assert found.settings()["measured"].keys() == set(profile.tasks)
    assert found.settings()["measured"] != answered.settings()["measured"]


def test_gram_matrices_by_token_are_others_than_those_by_sequence(profile):
    """Those by sequence are known by the name that they had when the stored were measured."""
    norms = Lab(profile).norms
    inputs = [norms.inputs("rte", Inputs(statistic=s)) for s in ("gram", "gram_sequences", "wanda")]
    assert inputs[0]["inputs"] == {"statistic": "gram", "mean over": "tokens"}
    assert inputs[1]["inputs"] == {"statistic": "gram"} and "inputs" not in inputs[2]


def test_calibration_reads_train_rows(profile):
    """With their answers, or their prompts alone; other rows with another seed."""
    texts = Lab(profile).norms.texts
    usual, prompts = texts("rte"), texts("rte", Inputs(answers=False))
    assert sorted(usual) == sorted(
        f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer: "
        + ["True", "False"][row["label"]]
        for row in tasks.rows("rte", "train", 4)
    )
    pairs = zip(usual, prompts, strict=True)
    assert {full.removeprefix(prompt) for full, prompt in pairs} <= {" True", " False"}
    listed = texts("rte", Inputs(answers="listed"))
    pairs = zip(listed, prompts, strict=True)
    assert [full.removeprefix(prompt) for full, prompt in pairs] == [" True", " False"] * 2
    definition = tasks.load("rte", 1, 10**6)
    every = {tasks.text(definition, doc) for doc in definition.training_docs()}
    first, others = set(usual), set(texts("rte", Inputs(seed=1)))
    assert first != others and first | others <= every and len(first) == len(others) == 4


# The committed results ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mini", "full"])
def test_stored_variants_are_of_the_settings_they_have_now(name):
    """A choice's are those of its winner, so that one that other rows won would be told."""
    profile = load_profile(name)
    kept = store.names(profile.variant_store)
    assert kept and stale(Bundled(profile), kept) == []


def test_stored_cells_of_methods_are_of_todays_code_and_rows():
    lab = Lab(load_profile("full"))
    now = {task: lab.inputs(None, lab.definition(task)) for task in lab.profile.tasks}
    cells = {f.stem: store.load(f) for f in (lab.profile.store / "cells").glob("*.json")}
    others = [n for n, c in cells.items() if c.inputs | {"adapter": None} != now[c.task]]
    assert cells and others == []
    assert all(map(variants.is_current, cells.values()))


def test_a_committed_cell_is_measured_again(tmp_path):
    """RTE's single adapter with the real model, in the cell's own format: the same key, and row for
    row the same answers, but where rounding decides a tie."""
    mini = load_profile("mini")
    committed = stored(mini, "single", "rte")
    assert committed is not None, f"no committed cell {cell_file(mini, 'single', 'rte')}"
    assert committed.dtype == "float32" and len(committed.margins) == committed.count
    again = other(mini, results=str(tmp_path), dtype="float32").cell("single", "rte")
    assert again.key == committed.key, json.dumps([again.inputs, committed.inputs], indent=1)
    rows = zip(again.values, committed.values, committed.margins, strict=True)
    assert [row for row in rows if row[0] != row[1] and row[2] >= formats.tie()] == []
