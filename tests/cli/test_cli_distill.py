"""`tipmini distill` on tiny models."""

import json

import pytest
from labs import llama
from merge_command import run
from peft import PeftModel

import tipmini as tm
from tipmini_lab.commands import main, one
from tipmini_lab.experiments import distilling

pytestmark = pytest.mark.usefixtures("small")

ADAPTERS = ["adapters/piqa", "adapters/rte"]
SHORT = ["--rows", "4", "--epochs", "1"]


@pytest.mark.parametrize("example", main.COMMANDS[one.distill])
def test_every_example_runs(small, example):
    words = example.split()[1:]
    told = run(*words, *SHORT)
    out = small / words[words.index("--out") + 1]
    assert told.startswith(f"{out.name}: rank ") and "% as merged" in told
    PeftModel.from_pretrained(llama(), out)
    story = json.loads((out / distilling.STORY).read_text())
    assert {sum(counts.values()) for counts in story["rows"].values()} <= {4, 2}


def test_a_second_call_reads_the_first_ones_and_another_replaces_it(monkeypatch):
    run("distill", "--out", "both", *SHORT, *ADAPTERS)
    with monkeypatch.context() as patch:
        patch.setattr(distilling.Distilling, "step", None)
        run("distill", "--out", "both", *SHORT, *ADAPTERS)
    run("distill", "--out", "both", *SHORT, "--rank", "3", *ADAPTERS)
    assert set(tm.load_adapter("both").ranks.values()) == {3}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--task", "rte", *ADAPTERS], "2 adapters and 1 tasks and texts"),
        (["--text", "a.jsonl", *ADAPTERS], "2 adapters and 1 tasks and texts"),
        (["adapters/piqa", "adapters/none"], "adapters/none"),
        (["--out", "tasks", *ADAPTERS], "tasks: also holds colours.yaml"),
    ],
)
def test_refused(refused, given, told):
    out = [] if "--out" in given else ["--out", "both"]
    assert told in refused("distill", *out, *given, beside=True)
