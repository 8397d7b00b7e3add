"""`tipmini weigh`, and a merge with what it writes."""

import json
import sys

import pytest
import torch
from labs import llama, save_adapter
from peft import PeftModel
from typer.testing import CliRunner

import tipmini as tm
from tipmini_lab.commands import main
from tipmini_lab.evaluation import assets, model
from tipmini_lab.experiments import experiment, weighing

TASKS = ("piqa", "rte")
ADAPTERS = [f"adapters/{task}" for task in TASKS]
LEARN = ["--task", "piqa", "--task", "rte", "--rows", "4", "--epochs", "1", "--out", "w.json"]


@pytest.fixture(autouse=True)
def place(tiny, tokenizer, tmp_path, monkeypatch):
    """The working directory, with tiny adapters; a tiny model stands for the embedded one."""
    monkeypatch.setattr(assets, "embedded", lambda: tiny)
    monkeypatch.setattr(model, "keep_memory", lambda: None)
    monkeypatch.setattr(model, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate(ADAPTERS):
        save_adapter(tmp_path / folder, seed)
    return tmp_path


def run(*given):
    result = CliRunner().invoke(main.app, list(given))
    assert result.exit_code == 0, result.output or result.exception
    return result.stdout


def refused(capsys, monkeypatch, *given):
    monkeypatch.setattr(sys, "argv", ["tipmini", *given])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def merge(*given):
    return run("merge", "--weights", "w.json", "--out", "m", *given)


@pytest.mark.parametrize("adapters", [ADAPTERS, ADAPTERS[::-1]])
def test_a_merge_finds_each_adapters_weights_whatever_their_order(place, adapters):
    told = run("weigh", *LEARN)
    assert told == "w.json: weights of piqa, rte, learnt on 4 rows a task\n"
    weights = json.loads((place / "w.json").read_text())["weights"]
    merge(*adapters)
    own = {task: tm.load_adapter(path) for task, path in zip(TASKS, ADAPTERS, strict=True)}
    expected, found = tm.merge(own, "cat", weights=weights), tm.load_adapter("m")
    for module in expected.modules:
        torch.testing.assert_close(found.delta(module), expected.delta(module))
    card = (place / "m" / "README.md").read_text()
    assert all(f"mean {sum(w.values()) / len(w):.2f}" in card for w in weights.values())
    PeftModel.from_pretrained(llama(), place / "m")


def test_the_cost_is_told_before(place):
    run("weigh", *LEARN)
    told = json.loads(merge("--dry-run", "--json", *ADAPTERS))
    assert told["weights"] == "w.json" and told["estimate"]["output_bytes"] > 0
    assert not (place / "m").exists()


def test_what_is_learnt_is_read_the_second_time(monkeypatch):
    run("weigh", *LEARN)
    monkeypatch.setattr(weighing.Weighing, "step", None)
    run("weigh", *LEARN)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--out", "w.txt"], "w.txt: name a .json file"),
        (["--adapter", ADAPTERS[0]], "--adapter must be one a task, 2, got 1"),
        (["--adapter", "none", "--adapter", "none"], "none: no such folder"),
        (["--rows", "0"], "Invalid value for '--rows'"),
        (["--out", "adapters/rte/adapter_config.json/w.json"], "cannot be written"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded(capsys, monkeypatch, given, line):
    monkeypatch.setattr(experiment, "Lab", None)
    assert line in refused(capsys, monkeypatch, "weigh", *LEARN, *given)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "w.json: cannot be read"),
        ("{", "w.json: not a file of learnt weights"),
        ('{"weights": {}}', "w.json: not a file of learnt weights: made: Field required"),
        ('{"weights": {"a": {"b": NaN}}}', "w.json: not a file of learnt weights: NaN is no JSON"),
        (
            '{"weights": {}, "made": {"identity": "", "adapters": {}}}',
            "w.json: not learnt with adapters/piqa; run `tipmini weigh` with it",
        ),
    ],
)
def test_weights_that_are_none_are_one_line(capsys, monkeypatch, place, content, line):
    if content:
        (place / "w.json").write_text(content)
    given = ["--method", "cat", "--weights", "w.json", "--out", "m", *ADAPTERS]
    assert line in refused(capsys, monkeypatch, "merge", *given)
    assert not (place / "m").exists()
