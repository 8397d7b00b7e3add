"""`tipmini evaluate`: packaged tasks, and one of a user's own as lm-eval declares it."""

import json

import pytest
import torch
from merge_command import assert_replaced_on_demand_alone, run
from typer.testing import CliRunner

import tipmini as tm
from tipmini_lab.commands import main, one

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize("example", main.COMMANDS[one.evaluate])
def test_every_example_runs(example):
    told = run(*example.split()[1:])
    assert "examples, bfloat16)" in told or "examples, float32)" in told  # as the machine is faster


def test_a_task_of_ones_own(small):
    """Scored as by the likeliest choice, told by hand."""
    from tipmini_lab.experiments.lab import Lab

    given = ["--tasks", "colours", "--include-path", "tasks", "--dtype", "float32", "--json"]
    told = json.loads(run("evaluate", *given, "--out", "own.json").splitlines()[-1])
    from tipmini_lab.experiments.profiles import Profile

    made = {"name": "n", "description": "d", "results": "r", "dtype": "float32"}
    lm = Lab(Profile(**made)).lm
    right = 0
    for gold, thing in enumerate(("rose", "leaf", "sky")):
        context = lm.tokenizer.encode(f"The {thing} is")
        scores = []
        for choice in ("red", "green", "blue"):
            tokens = lm.tokenizer.encode(f"The {thing} is {choice}")
            with torch.no_grad():
                logs = lm.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
            steps = range(len(context) - 1, len(tokens) - 1)
            scores.append(sum(logs[i, tokens[i + 1]].item() for i in steps))
        right += scores.index(max(scores)) == gold
    assert told["mean"] == pytest.approx(right / 3) and told["count"] == 3
    assert json.loads((small / "own.json").read_text()) == [told]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--tasks", "colour"], "task 'colour': neither packaged"),
        (["--tasks", "rte", "--include-path", "none"], "none: no such folder"),
    ],
)
def test_what_is_no_task_is_refused_before_the_model_is_loaded(given, line, monkeypatch):
    refused = CliRunner().invoke(main.app, ["evaluate", *given]).exception
    assert isinstance(refused, tm.TipminiError) and str(refused).startswith(line)
    assert "\n" not in str(refused)


@pytest.mark.parametrize("content", ["notes", '{"name": "mine"}', "[1]"])
def test_a_file_of_something_else_is_replaced_on_demand_alone(small, content):
    file = small / "results.json"
    file.write_text(content)
    assert_replaced_on_demand_alone(file, "evaluate", "--task", "rte", "--limit", 1)
    assert json.loads(file.read_text())[0]["task"] == "rte"
