"""`tipmini weigh`, and a merge with what it writes."""

import json

import pytest
import torch
from labs import llama
from merge_command import run
from peft import PeftModel

import tipmini as tm
from tipmini_lab.experiments import experiment, weighing

pytestmark = pytest.mark.usefixtures("small")

TASKS = ("piqa", "rte")
ADAPTERS = [f"adapters/{task}" for task in TASKS]
LEARN = ["--task", "piqa", "--task", "rte", "--rows", "4", "--epochs", "1", "--out", "w.json"]


def merge(*given):
    return run("merge", "--weights", "w.json", "--out", "m", *given)


@pytest.mark.parametrize("adapters", [ADAPTERS, ADAPTERS[::-1]])
def test_a_merge_finds_each_adapters_weights_whatever_their_order(small, adapters):
    told = run("weigh", *LEARN)
    assert told == "w.json: weights of piqa, rte, learnt on 4 rows a task\n"
    weights = json.loads((small / "w.json").read_text())["weights"]
    merge(*adapters)
    own = {task: tm.load_adapter(path) for task, path in zip(TASKS, ADAPTERS, strict=True)}
    expected, found = tm.merge(own, "cat", weights=weights), tm.load_adapter("m")
    for module in expected.modules:
        torch.testing.assert_close(found.delta(module), expected.delta(module))
    card = (small / "m" / "README.md").read_text()
    assert all(f"mean {sum(w.values()) / len(w):.2f}" in card for w in weights.values())
    PeftModel.from_pretrained(llama(), small / "m")


def test_the_cost_is_told_before(small):
    run("weigh", *LEARN)
    told = json.loads(merge("--dry-run", "--json", *ADAPTERS))
    assert told["weights"] == "w.json" and told["estimate"]["output_bytes"] > 0
    assert not (small / "m").exists()


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
        (["--out", "adapters/rte/adapter_config.json"], "not a file of learnt weights"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded(refused, monkeypatch, given, line):
    monkeypatch.setattr(experiment, "Lab", None)
    assert line in refused("weigh", *LEARN, *given)


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
def test_weights_that_are_none_are_one_line(refused, small, content, line):
    if content:
        (small / "w.json").write_text(content)
    given = ["--method", "cat", "--weights", "w.json", "--out", "m", *ADAPTERS]
    assert line in refused("merge", *given)
    assert not (small / "m").exists()
