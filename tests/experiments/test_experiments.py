"""The laboratory on a tiny random model and tiny adapters: what is measured again, and when."""

import json
import shutil

import pytest
import torch
from labs import TASKS, save_adapter, save_llama
from peft import PeftModel

import tipmini as tm
from tipmini_lab.evaluation import assets, evaluator, model, tasks
from tipmini_lab.experiments import experiment, formats, merging
from tipmini_lab.experiments.experiment import MERGES, TABLE_1, Lab, cell_file, stored
from tipmini_lab.experiments.profiles import load_profile
from tipmini_lab.experiments.variants import Inputs
from tipmini_lab.results import digests


def other(profile, **changes) -> Lab:
    return Lab(profile.model_copy(update=changes))


# Cells ----------------------------------------------------------------------------------------


def test_every_method_is_measured_once_and_then_read(profile, measured):
    lab = Lab(profile)
    cells = {method: lab.cell(method, "rte") for method in TABLE_1}
    assert measured == ["rte"] * len(TABLE_1)
    again = Lab(profile)
    for method, cell in cells.items():
        assert again.cell(method, "rte") == cell == stored(profile, method, "rte")
        assert (cell.profile, cell.method, cell.task, cell.metric) == ("tiny", method, "rte", "acc")
        assert cell.count == 4 and set(cell.values) <= {0.0, 1.0}
        assert cell.key == digests.digest(cell.inputs)
    assert len(measured) == len(TABLE_1)
    assert len({cell.key for cell in cells.values()}) == len(TABLE_1)


def test_a_cell_is_what_lm_eval_measures(profile, place, tokenizer, tiny):
    """The single adapter, put on by stock PEFT and evaluated by lm-eval's own model."""
    from lm_eval.models.huggingface import HFLM

    adapter = str(place / "adapters" / "openbookqa")
    lm = HFLM(pretrained=str(tiny / "model"), peft=adapter, dtype="float32", device="cpu")
    expected = evaluator.evaluate(lm, tasks.load("openbookqa", 4), "acc_norm")
    assert Lab(profile).cell("single", "openbookqa").values == expected


def test_nothing_stored(profile):
    assert stored(profile, "base", "rte") is None


CHANGES = {
    "rows": {"evaluation_rows": 5},
    "rows of the task": {"evaluation_rows_of": {"rte": 3}},
    "batch": {"tokens": 500},
}


def test_a_stored_cell_is_read_whatever_the_machine_computes_in(profile, measured, monkeypatch):
    """The format is part of what a cell tells, not of whose cell it is."""
    before = Lab(profile).cell("tip", "rte")
    monkeypatch.setattr(model, "fastest_dtype", lambda device: "bfloat16")
    lab = other(profile, dtype="auto")
    assert lab.dtype == "bfloat16" and lab.cell("tip", "rte") == before
    assert measured == ["rte"] and before.dtype == "float32"


def test_measured_again_in_the_format_that_is_asked_for(profile, measured):
    before = Lab(profile).cell("base", "rte")
    after = other(profile, dtype="bfloat16").cell("base", "rte")
    assert len(measured) == 2 and after.key == before.key and after.dtype == "bfloat16"
    assert Lab(profile.model_copy(update={"dtype": "auto"})).cell("base", "rte") == after


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
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


def test_measured_again_with_another_model(
    profile, tmp_path, tiny, tokenizer, measured, monkeypatch
):
    before = Lab(profile).cell("base", "rte")
    save_llama(tmp_path / "other" / "model", tokenizer, seed=3)
    (tmp_path / "other" / "data").symlink_to((tiny / "data").resolve())
    monkeypatch.setattr(assets, "embedded", lambda: tmp_path / "other")
    assert Lab(profile).cell("base", "rte").key != before.key and len(measured) == 2


def test_measured_again_with_other_code(profile, measured, monkeypatch):
    before = Lab(profile).cell("base", "rte")
    known = {"evaluation": [before.code["evaluation"], "proven"]}
    monkeypatch.setattr(digests, "equal", lambda: known)
    monkeypatch.setattr(experiment, "evaluation_code", lambda: {"evaluation": "proven"})
    assert Lab(profile).cell("base", "rte") == before and len(measured) == 1
    monkeypatch.setattr(experiment, "evaluation_code", lambda: {"evaluation": "other"})
    assert Lab(profile).cell("base", "rte").code == {"evaluation": "other"} and len(measured) == 2


def test_measured_again_with_other_data(profile, measured, monkeypatch):
    before = Lab(profile).cell("base", "rte")
    rows = tasks.rows
    monkeypatch.setattr(tasks, "rows", lambda *a: [r | {"sentence1": "Rain."} for r in rows(*a)])
    assert Lab(profile).cell("base", "rte").key != before.key and len(measured) == 2


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


# The base and what is put on it ---------------------------------------------------------------


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


# Merging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MERGES)
def test_merged_folders_load_with_stock_peft(profile, tiny, method):
    lab = Lab(profile)
    folder, adapter = lab.merged(method), tm.load_adapter(lab.merged(method))
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


def test_a_variant_is_the_librarys_merge(profile):
    lab = Lab(profile)
    found = tm.load_adapter(lab.merged("tip-cat.scaled"))
    like = lab.merges.merge(lab.variant("tip-cat"))
    exact = tm.merge(lab.adapters, "cat")
    ratios = [(found.delta(m) / exact.delta(m)).mean().item() for m in exact.modules]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3)
    assert lab.merges.facts(lab.variant("tip-cat.scaled"))["norm"] == pytest.approx(
        merging.sizes(like, exact)["norm"], rel=1e-5
    )


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


def test_sparsities_are_one_a_layer_and_within_bounds(profile):
    found = Lab(profile).sparsities("rte")
    assert found.shape == (2,) and ((found >= 0) & (found <= 1)).all()


# Calibrating ----------------------------------------------------------------------------------


def test_norms_are_measured_once_for_the_same_things(profile, place, monkeypatch):
    runs, calibrate = [], tm.calibrate_adapter
    monkeypatch.setattr(
        tm, "calibrate_adapter", lambda *a, **k: (runs.append(1), calibrate(*a, **k))[1]
    )
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
    texts = lab.norms.texts("rte")
    rows = [tokenizer(text, return_tensors="pt") for text in texts]
    expected = tm.calibrate_adapter(peft, [dict(row) for row in rows])
    found = lab.input_norms("rte")
    assert set(found) == set(expected) and len(texts) == 4
    for name, norm in expected.items():
        torch.testing.assert_close(found[name], norm, rtol=1e-4, atol=1e-5)


def test_calibration_reads_train_rows_with_their_answers(profile):
    texts = Lab(profile).norms.texts("rte")
    rows = tasks.rows("rte", "train", 4)
    assert sorted(texts) == sorted(
        f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer: "
        + ["True", "False"][row["label"]]
        for row in rows
    )


OTHER_INPUTS = {
    "another statistic": Inputs(statistic="rms"),
    "the base's": Inputs(source="base"),
    "fewer rows": Inputs(rows=2),
    "no answers": Inputs(answers=False),
    "other rows": Inputs(seed=1),
}


@pytest.mark.parametrize("chosen", OTHER_INPUTS.values(), ids=OTHER_INPUTS)
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
    grams = tm.calibrate(base, rows, adapter.modules, statistic="gram")
    for module in adapter.modules:
        a = adapter.factors[module].a
        through = (a @ grams[module] @ a.T).diagonal().sqrt()
        torch.testing.assert_close(found[module], expected[module], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[f"{module}.lora_B"], through, rtol=1e-3, atol=1e-4)


def test_other_rows_are_train_rows_too(profile):
    lab = Lab(profile)
    rows = tasks.load("rte", 1, 10**6)
    every = {tasks.text(rows, doc) for doc in rows.training_docs()}
    first, others = (set(lab.norms.texts("rte", Inputs(seed=s))) for s in (0, 1))
    assert first != others and first | others <= every and len(first) == len(others) == 4


def test_without_answers_the_text_is_the_prompt(profile):
    lab = Lab(profile)
    with_answers, without = (
        lab.norms.texts("rte", Inputs(answers=answers)) for answers in (True, False)
    )
    pairs = list(zip(with_answers, without, strict=True))
    assert {full.removeprefix(prompt) for full, prompt in pairs} <= {" True", " False"}


# The committed results ------------------------------------------------------------------------


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
