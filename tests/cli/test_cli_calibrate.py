"""`tipmini calibrate`: what is measured is what the library measures, and a merge can read it."""

import pytest
import torch
from merge_command import assert_replaced_on_demand_alone, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tipmini as tm
from tipmini_lab.commands import main, one
from tipmini_lab.evaluation import tasks
from tipmini_lab.evaluation.documents import own_rows
from tipmini_lab.experiments.lab import Lab
from tipmini_lab.experiments.profiles import Profile

pytestmark = pytest.mark.usefixtures("small")

TASKS = ("piqa", "rte")


def calibrate(task, statistic, out):
    given = ["--task", task, "--statistic", statistic, "--rows", "3", "--out", out]
    return run("calibrate", *given)


def expected(place, task, statistic):
    """What the laboratory makes of the same."""
    made = {"name": "n", "description": "d", "results": f"{place}/results"}
    adapters = f"{place}/adapters/{{task}}"
    profile = Profile(**made, adapters=adapters, calibration_rows=3)
    return Lab(profile).norms.measure(task, statistic=statistic)


@pytest.mark.parametrize("example", main.COMMANDS[one.calibrate])
def test_every_example_runs(example):
    words = example.split()[1:]
    run(*words)
    assert load_file(words[words.index("--out") + 1])


@pytest.mark.parametrize(("statistic", "what"), [("rms", "input norms"), ("gram", "Gram matrices")])
def test_the_statistic_asked_for_is_written(small, statistic, what):
    told = calibrate("rte", statistic, "new/rte.safetensors")
    assert told == f"new/rte.safetensors: {what} of {small}/adapters/rte on 3 examples of rte\n"
    written, measured = load_file("new/rte.safetensors"), expected(small, "rte", statistic)
    assert written.keys() == measured.keys()
    assert all(torch.equal(written[name], measured[name]) for name in measured)
    with safe_open("new/rte.safetensors", "pt") as opened:
        assert opened.metadata()["statistic"] == statistic


def test_without_answers(small):
    """Each row with one of its choices, the next with the next, whichever is right."""
    given = ["--task", "rte", "--statistic", "gram", "--rows", "6", "--unlabelled"]
    told = run("calibrate", *given, "--out", "x.safetensors")
    assert told.endswith("on 6 examples of rte\n")
    made = {"name": "n", "description": "d", "results": f"{small}/results"}
    norms = Lab(Profile(**made, adapters=f"{small}/adapters/{{task}}", calibration_rows=6)).norms
    of_any = norms.measure("rte", tasks.unlabelled(*tasks.training("rte", 6)), "gram")
    right, written = norms.measure("rte", statistic="gram"), load_file("x.safetensors")
    assert all(torch.equal(written[name], of_any[name]) for name in of_any)
    assert not all(torch.equal(written[name], right[name]) for name in right)
    with safe_open("x.safetensors", "pt") as opened:
        assert opened.metadata()["answers"] == "none"


def test_regmean_works_from_end_to_end():
    files, adapters = [], [f"adapters/{task}" for task in TASKS]
    for task in TASKS:
        files.append(f"{task}-grams.safetensors")
        calibrate(task, "gram", files[-1])
    given = [word for file in files for word in ("--grams", file)]
    run("merge", "--method", "regmean", *given, "--out", "merged", *adapters)
    loaded = [tm.load_adapter(folder) for folder in adapters]
    merged = tm.merge(loaded, "regmean", grams=[load_file(file) for file in files])
    found = tm.load_adapter("merged")
    for module in merged.modules:
        torch.testing.assert_close(found.delta(module), merged.delta(module), rtol=0, atol=0)


def test_a_statistic_that_there_is_not_is_refused_before_anything_is_read(monkeypatch, small):
    monkeypatch.setattr("tipmini_lab.experiments.lab.Lab", None)
    given = ["calibrate", "--task", "rte", "--statistic", "grams", "--out", "x"]
    refused = CliRunner().invoke(main.app, given).exception
    assert (
        str(refused)
        == "statistic must be one of wanda, rms, mean_l2, gram, gram_sequences, got 'grams'"
    )
    assert not (small / "x").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["{count}", "0"], "Invalid value for '{count}'"),
        (["--adapter", "none"], "none: no such folder"),
        (["--out", "adapters"], "adapters: a folder; name a file"),
        (["--out", "adapters/rte/adapter_config.json/x"], "cannot be written"),
    ],
)
@pytest.mark.parametrize(("command", "count"), [("calibrate", "--rows"), ("evaluate", "--limit")])
def test_what_is_wrong_is_told_before_the_model_is_loaded(
    refused, monkeypatch, command, count, given, line
):
    monkeypatch.setattr("tipmini_lab.experiments.lab.Lab", None)
    words = [word.format(count=count) for word in given]
    told = refused(command, "--task", "rte", "--out", "x", *words)
    assert line.format(count=count) in told


def test_a_folders_braces_are_no_placeholder(small):
    (small / "adapters" / "rte").rename(small / "{rte}")
    run("calibrate", "--task", "rte", "--rows", "1", "--adapter", "{rte}", "--out", "x")
    assert load_file("x")


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl", "a.jsonl"])
def test_own_text_is_measured_on(small, name):
    """However it is told: the same texts have the same norms, and a merge finds the adapter."""
    given = ["--text", name, "--adapter", "adapters/rte", "--out", "own.safetensors"]
    assert f"on 2 examples of {name}" in run("calibrate", *given)
    texts = ["The sky is blue.", "Water is wet."]
    made = {"name": "n", "description": "d", "results": f"{small}/results"}
    lab = Lab(Profile(**made, adapters=f"{small}/adapters/{{task}}"))
    measured, written = lab.norms.measure("rte", texts), load_file("own.safetensors")
    assert all(torch.equal(written[name], measured[name]) for name in measured)
    calibrate("piqa", "wanda", "piqa.safetensors")
    words = ["--norms", "own.safetensors", "--norms", "piqa.safetensors"]
    assert "merged by wanda" in run(
        "merge", "--method", "wanda", *words, "--out", "m", "adapters/piqa", "adapters/rte"
    )


@pytest.mark.parametrize(
    ("text", "given", "line"),
    [
        ("", [], "x.jsonl: holds no text"),
        ("[1]", [], "x.jsonl, line 1: needs text, or prompt and one of answer"),
        ('{"text": "a"}\n{"prompt": 3}', [], "x.jsonl, line 2: needs text"),
        ('\n{"text": "a"}\n\n{', [], "x.jsonl, line 4: not JSON"),
        ('{"text": ' + "[" * 100_000, [], "x.jsonl, line 1: not JSON (nested too deeply)"),
        ('{"text": "\\ud800"}', [], "x.jsonl, line 1: not JSON"),
        ('{"text": " "}', [], "needs text, or prompt and one of answer"),
        ('{"prompt": "a", "anwser": "b"}', [], "needs text, or prompt and one of answer"),
        ('{"prompt": "a", "answer": ""}', [], "and none empty"),
        ('{"text": "a"}', ["--task", "rte"], "give --task or --text"),
    ],
)
def test_text_that_is_none_is_one_line(small, text, given, line):
    (small / "x.jsonl").write_text(text)
    words = ["calibrate", "--text", "x.jsonl", *given, "--adapter", "adapters/rte", "--out", "x"]
    refused = CliRunner().invoke(main.app, words).exception
    assert isinstance(refused, tm.TipminiError) and line in str(refused)
    assert "\n" not in str(refused) and not (small / "x").exists()


@pytest.mark.parametrize("name", ["own.json", "own.JSONL", "own"])
def test_own_text_of_another_kind_is_one_line(refused, small, name):
    (small / name).write_text('{"text": "The sky is blue."}')
    words = ["--text", name, "--adapter", "adapters/rte", "--out", "x"]
    assert f"{name}: name it .txt (one example a line) or .jsonl" in refused("calibrate", *words)


@pytest.mark.parametrize(("start", "break_"), [("\ufeff", ""), ("", "\u2028"), ("", "\x85")])
def test_own_rows_are_what_json_says(small, start, break_):
    """Whatever Windows puts before a file, and whatever else than a line's end parts lines."""
    (small / "x.jsonl").write_text(f'{start}{{"text": "a{break_}b"}}\n', encoding="utf-8")
    assert own_rows(small / "x.jsonl") == [{"prompt": "", "answer": f"a{break_}b"}]


NAMES = {
    "compiled": {"base_model": "_orig_mod.base_model"},
    "of one adapter": {".weight": ".default.weight"},
    "without the head's wrapper": {"model.model.": "model."},
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_that_peft_passes_over_are_measured_all_the_same(small, names):
    """PEFT would leave the adapter's place at random, of which norms say nothing."""
    calibrate("rte", "wanda", "plain.safetensors")
    folder = small / "adapters/rte"
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for old, new in names.items():
        tensors = {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}
    save_file(tensors, file)
    calibrate("rte", "wanda", "other.safetensors")
    one, two = load_file("plain.safetensors"), load_file("other.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_an_adapter_of_another_base_is_refused(small):
    adapter = tm.load_adapter("adapters/rte")
    wide = {
        m: tm.LoraFactors(pair.a.repeat(1, 2), pair.b, 1.0) for m, pair in adapter.factors.items()
    }
    tm.LoraAdapter(wide).save("wide")
    given = ["calibrate", "--task", "rte", "--adapter", "wide", "--out", "x"]
    refused = CliRunner().invoke(main.app, given).exception
    assert isinstance(refused, tm.TipminiError) and "give the base" in str(refused)


@pytest.mark.parametrize("content", ["notes", "safetensors", ""])
def test_a_file_of_something_else_is_replaced_on_demand_alone(small, content):
    file = small / "rte.safetensors"
    if content == "safetensors":
        save_file({"model.embed_tokens.weight": torch.ones(2)}, file)
    else:
        file.write_text(content)
    assert_replaced_on_demand_alone(file, "calibrate", "--task", "rte", "--rows", 1)
    assert load_file(file)
