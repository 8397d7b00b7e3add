"""`tipmini prune`: its examples, what it tells, and what it refuses in one line."""

import json
import shlex

import prunable
import pytest
from labs import save_own
from merge_command import run
from transformers import AutoModelForCausalLM

from tipmini_lab.commands import main, one
from tipmini_lab.evaluation import documents, objective
from tipmini_lab.experiments import pruning

EXAMPLES = main.COMMANDS[one.prune]


@pytest.fixture(autouse=True)
def place(tiny, tokenizer, tmp_path, monkeypatch):
    """A working directory; a tiny model stands for the embedded one."""
    prunable.embed(monkeypatch, tmp_path, tiny, tokenizer)
    monkeypatch.setattr(pruning, "keep_memory", lambda: None)
    monkeypatch.setattr(pruning, "load_tokenizer", lambda _: tokenizer)
    monkeypatch.chdir(tmp_path)
    save_own(tmp_path)
    return tmp_path


@pytest.fixture
def short(monkeypatch):
    """Few rows of one task where a command names none: reading all seven takes a minute."""
    original = pruning.PruningRecipe.__init__
    defaults = {"tasks": ("rte",), "length": 24, "batch": 4, "epochs": 1}

    def made(self, **given):
        given = defaults | given
        given["rows"] = min(given.get("rows", 8), 8)
        given["steps"] = 2 if given.get("steps") else None
        original(self, **given)

    monkeypatch.setattr(pruning.PruningRecipe, "__init__", made)


def prune(*given):
    return run("prune", *given)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(short, place, example):
    words = shlex.split(example)[2:]
    told = prune(*words)
    out = place / words[words.index("--out") + 1]
    assert out.name in told
    assert out.exists() == ("--dry-run" not in words)
    if out.exists() and "global" not in words:
        AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize(
    "more", [[], ["--threshold", "global"], ["--threshold", "global", "--int8"]]
)
def test_a_dry_run_foretells_what_is_done(short, place, more):
    shared = ["--share", "0.5", "--out", "half", "--json", *more]
    told = json.loads(prune("--dry-run", *shared))
    assert told["dry_run"] and not (place / "half").exists()
    done = json.loads(prune(*shared))
    for name in ("removed_share", "removed_of_model", "removed_of", "form", "method", "out"):
        assert done[name] == told[name]
    assert ("base as 8 bits" in told["form"]) == (place / "half" / "base").exists()


OWN = {
    "own.txt": ("--text", ["The sky is blue.", "Water is wet."]),
    "b.jsonl": ("--text", ["A rose is red", "1 + 1 = 2"]),
    "colours": ("--task", ["The rose is red", "The leaf is green", "The sky is blue"]),
}


@pytest.mark.parametrize("more", [["--steps", "1"], ["--method", "wanda-2:4"]], ids=" ".join)
@pytest.mark.parametrize("name", OWN)
def test_own_rows_are_read_all_of_them(place, tokenizer, monkeypatch, name, more):
    read, plain = [], objective.plain
    monkeypatch.setattr(objective, "plain", lambda ids: read.append(list(ids)) or plain(ids))
    kind, texts = OWN[name]
    include = ["--include-path", "tasks"] if kind == "--task" else []
    prune(kind, name, *include, *more, "--dtype", "float32", "--out", "own")
    assert sorted(read) == sorted(tokenizer(texts)["input_ids"])
    AutoModelForCausalLM.from_pretrained(place / "own")
    story = json.loads((place / "own" / "pruning.json").read_text())
    assert story.get("recipe", {"tasks": [name]})["tasks"] == [name]


def test_into_the_folder_where_one_stands(short, place, monkeypatch):
    (place / "empty").mkdir()
    monkeypatch.chdir(place / "empty")
    assert prune("--steps", "1", "--out", ".").startswith(".: ")
    AutoModelForCausalLM.from_pretrained(place / "empty")
    assert {each.name for each in place.glob("empty*")} == {"empty"}


def test_a_folder_can_be_the_base(short, place):
    prune("--base", "embedded", "--no-tune", "--method", "random", "--share", "0.5", "--out", "one")
    prune("--base", "one", "--no-tune", "--method", "random", "--share", "0.5", "--out", "two")
    config = AutoModelForCausalLM.from_pretrained(place / "two").config
    assert (config.num_attention_heads, config.intermediate_size) == (2, 6)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--share 0.5", "Missing option '--out'"),
        ("--share 2 --out x", "share must lie in [0, 1], got 2.0"),
        ("--share 1 --out x --dry-run", "would lose all 24 channels"),
        ("--method lora-giuded --out x", "did you mean 'lora-guided'?"),
        ("--method taylor --int8 --out x", "which int8 has none of"),
        ("--task piqqa --out x", "task 'piqqa': neither packaged"),
        (
            "--dtype int8 --out x",
            "dtype must be one of auto, bfloat16, float16, float32, got 'int8'",
        ),
        ("--base ../nowhere --out x", "../nowhere: "),
        ("--base adapter --out x", "adapter/config.json: missing"),
        ("--out embedded --dry-run", "embedded: is there already"),
        ("--out embedded --no-tune --method magnitude", "embedded: is there already"),
        ("--text one.txt --out x", "one.txt: 1 of 2 examples have one token"),
        ("--rows 0 --out x", "rows must be at least 1, got 0"),
    ],
)
def test_what_the_user_can_mend_is_one_line(place, monkeypatch, refused, given, line):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (place / "adapter").mkdir()
    (place / "one.txt").write_text("a\nThe sky is blue.\n")
    assert line in refused("prune", *given.split(), beside=True)


def test_every_method_and_task_is_offered():
    assert {"wanda", "wanda-2:4", "random"} < set(one.ALL)
    assert set(pruning.PruningRecipe().tasks) == set(documents.TASKS)
