"""`tipmini blockwise`: what it writes is what the library merges."""

from types import SimpleNamespace

import pytest
import torch
from labs import llama
from merge_command import run
from peft import PeftModel

import tipmini as tm
from tipmini.methods.blockwise import merge_blockwise
from tipmini_lab.commands import main
from tipmini_lab.commands.blockwise import blockwise
from tipmini_lab.evaluation import tasks
from tipmini_lab.experiments.merging import InputNorms
from tipmini_lab.experiments.profiles import load_profile

pytestmark = pytest.mark.usefixtures("small")

TASKS = ("piqa", "rte")
ADAPTERS = [f"adapters/{task}" for task in TASKS]
GIVEN = [*ADAPTERS, "--rows", "3", "--dtype", "float32", "--out", "m"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("regmean++", {"shrink": 0.5}),
        ("drift", {"rank": 4, "balance": 1.0}),
        ("layerwise", {"rank": 4, "epochs": 1, "learning_rate": 0.002}),
    ],
)
def test_it_is_the_librarys_merge(small, tokenizer, method, options):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    told = run("blockwise", "--method", method, *flags, *GIVEN)
    found = tm.load_adapter("m")
    assert told == f"m: piqa, rte merged by {method}, rank {max(found.ranks.values())}\n"
    own = {task: tm.load_adapter(f"adapters/{task}") for task in TASKS}
    rows = {}
    for task in TASKS:
        definition, docs = tasks.training(task, 3)
        texts = tasks.unlabelled(definition, docs)
        lab = SimpleNamespace(tokenizer=tokenizer)
        like = SimpleNamespace(profile=load_profile("mini"), lab=lab)
        rows[task] = InputNorms.padded(like, tokenizer(texts)["input_ids"])
    expected = merge_blockwise(llama().float(), own, rows, method, **options)
    for module in expected.modules:
        torch.testing.assert_close(
            found.delta(module), expected.delta(module), rtol=1e-3, atol=1e-4
        )
    PeftModel.from_pretrained(llama(), small / "m")


def test_no_answer_is_read_but_a_text_without_a_prompt_is(small):
    """a.jsonl has one of each."""
    (source,) = tasks.sources([], [small / "a.jsonl"]).values()
    assert sorted(tasks.unlabelled(*tasks.training(source, 2))) == ["The sky is ", "Water is wet."]


@pytest.mark.parametrize("example", main.COMMANDS[blockwise])
def test_every_example_runs(small, example):
    words = example.split()[1:]
    run(*words, "--rows", "2")
    assert tm.load_adapter(small / words[words.index("--out") + 1]).modules


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([*GIVEN, "--text", "a.jsonl"], "2 adapters and 1 tasks and texts; give each adapter one"),
        ([*GIVEN, "--method", "regmean"], "method must be one of regmean++, drift, layerwise, got"),
        (["--out", "a.jsonl/m", *ADAPTERS], "a.jsonl/m"),  # told before the work
        ([*GIVEN, "--rank", "4"], "merge method regmean++ has no option 'rank'"),
    ],
)
def test_what_does_not_fit_is_one_line(refused, given, line):
    assert line in refused("blockwise", *given, beside=True)
