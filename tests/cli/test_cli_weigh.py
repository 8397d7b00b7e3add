"""`tipmini weigh`, and a merge with what it writes."""

import json

import pytest
import torch
from labs import llama
from merge_command import run
from peft import PeftModel

import tipmini as tm
from tipmini_lab.commands import main, one
from tipmini_lab.experiments import lab, weighing

pytestmark = pytest.mark.usefixtures("small")

TASKS = ("piqa", "rte")
ADAPTERS = [f"adapters/{task}" for task in TASKS]
LEARN = ["--task", "piqa", "--task", "rte", "--rows", "4", "--epochs", "1", "--out", "w.json"]


def merge(*given):
    return run("merge", "--weights", "w.json", "--out", "m", *given)


@pytest.mark.parametrize("adapters", [ADAPTERS, ADAPTERS[::-1]])
def test_a_merge_finds_each_adapters_weights_whatever_their_order(small, adapters):
    told = run("weigh", *LEARN)
    assert told == "w.json: weights of piqa, rte, learned on 4 examples per task\n"
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


@pytest.mark.parametrize("example", main.COMMANDS[one.weigh])
def test_every_example_runs(small, example):
    run(*example.split()[1:], "--rows", "3", "--epochs", "1")
    assert json.loads((small / "weights.json").read_text())["weights"]


def weighed(*given) -> weighing.Weighing:
    """What `tipmini weigh` read and learnt."""
    made, original = [], weighing.Weighing.__init__
    with pytest.MonkeyPatch.context() as patch:
        keep = lambda self, *a, **k: made.append(self) or original(self, *a, **k)  # noqa: E731
        patch.setattr(weighing.Weighing, "__init__", keep)
        run("weigh", *given, "--epochs", "2", "--dtype", "float32", "--out", "w.json")
    return made[0]


def test_own_rows_of_two_adapters(small, tokenizer):
    """Of a prompt with an answer the answer is scored, of a text all; a merge reads the weights."""
    texts = ["--text", "a.jsonl", "--text", "b.jsonl"]
    found = weighed(*texts, "--adapter", ADAPTERS[0], "--adapter", ADAPTERS[1])
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    wanted = {
        "a.jsonl": [ids("The sky is blue.")[len(ids("The sky is ")) :], ids("Water is wet.")[1:]],
        "b.jsonl": [ids("A rose is red")[3:], ids("1 + 1 = 2")[len(ids("1 + 1 =")) :]],
    }
    scored = {name: [list(e.row.targets) for e in rows] for name, rows in found.rows.items()}
    assert {n: sorted(r) for n, r in scored.items()} == {n: sorted(r) for n, r in wanted.items()}
    weights = json.loads((small / "w.json").read_text())["weights"]
    assert weights.keys() == wanted.keys() and len(set(weights["a.jsonl"].values())) > 1
    own = {n: tm.load_adapter(path) for n, path in zip(wanted, ADAPTERS, strict=True)}
    merge(*ADAPTERS)
    expected, found = tm.merge(own, "cat", weights=weights), tm.load_adapter("m")
    for module in expected.modules:
        torch.testing.assert_close(found.delta(module), expected.delta(module))


def test_the_loss_of_an_answer_is_transformers(small, tokenizer):
    """Mean over the answer's tokens of what a plain forward pass gives each."""
    (small / "one.jsonl").write_text('{"prompt": "A rose is", "answer": "red and blue"}')
    read = weighed("--text", "one.jsonl", "--adapter", ADAPTERS[0])
    model = llama().float()
    from tipmini_lab.evaluation import objective

    tokens = torch.tensor([tokenizer("A rose is red and blue")["input_ids"]])
    start = len(tokenizer("A rose is")["input_ids"])
    logs = model(tokens).logits[0, start - 1 : -1].log_softmax(-1)
    mean = -logs.gather(1, tokens[0, start:, None]).mean()
    torch.testing.assert_close(objective.losses(model, read.rows["one.jsonl"])[0], mean)


def test_a_task_of_ones_own_is_weighed_by_its_choices(small, tokenizer):
    given = ["--task", "colours", "--include-path", "tasks", "--adapter", ADAPTERS[0]]
    rows = weighed(*given).rows["colours"]
    assert sorted(row.gold for row in rows) == [0, 1, 2]
    assert all(row.lengths == (1, 1, 1) for row in rows)  # its metric is acc
    story = json.loads((small / "w.json").read_text())["made"]
    assert story["rows"] == {"colours": 3} and story["temperature"] == {"colours": 1.0}


@pytest.mark.parametrize(
    "given",
    [
        ["weigh", "--text", "a.jsonl", "--adapter", "wide", "--out", "w.json"],
        ["distill", "--text", "a.jsonl", "--out", "d", "wide"],
    ],
)
def test_an_adapter_of_another_base_is_one_line(refused, small, given):
    wide = {
        m: tm.LoraFactors(pair.a.repeat(1, 2), pair.b, 1.0)
        for m, pair in tm.load_adapter(ADAPTERS[0]).factors.items()
    }
    tm.LoraAdapter(wide).save("wide")
    assert "no layer of the base in the adapters' shape" in refused(*given, beside=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [("training_split: train", "training_split: other"), ("{{thing}}", "{{thing")],
)
def test_a_yaml_that_fails_is_one_line(refused, small, old, new):
    file = small / "tasks/colours.yaml"
    file.write_text(file.read_text().replace(old, new))
    given = ["--task", "colours", "--include-path", "tasks", "--adapter", ADAPTERS[0]]
    told = refused("weigh", *given, "--out", "w.json", beside=True)
    assert "task colours: lm-eval can't use its YAML: " in told


def test_a_row_of_one_token_is_one_line(refused, small):
    """Nothing of it is predicted: its loss would be 0 / 0, and so the weights."""
    (small / "x.txt").write_text("a\nThe sky is blue.\n")
    given = ["--text", "x.txt", "--adapter", ADAPTERS[0], "--out", "w.json"]
    told = refused("weigh", *given, beside=True)
    assert "x.txt: 1 of 2 examples have one token" in told and not (small / "w.json").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "give --task or --text"),
        (["--text", "a.jsonl"], "--text needs --adapter"),
        (["--task", "rte", "--task", "rte"], "a task or a text is given twice"),
        (["--task", "mmlu", "--adapter", ADAPTERS[0]], "task mmlu: a group of lm-eval's"),
        (
            ["--task", "bare", "--include-path", "tasks", "--adapter", ADAPTERS[0]],
            "task bare: its YAML names no training_split",
        ),
        (["--text", "none.txt", "--adapter", ADAPTERS[0]], "none.txt: not a readable text file"),
    ],
)
def test_what_nothing_can_be_learnt_of_is_one_line(refused, small, given, line):
    text = (small / "tasks/colours.yaml").read_text().replace("colours", "bare")
    (small / "tasks/bare.yaml").write_text(text.replace("training_split: train\n", ""))
    assert line in refused("weigh", *given, "--out", "w.json", beside=True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--out", "w.txt"], "w.txt: name a .json file"),
        (["--adapter", ADAPTERS[0]], "--adapter must be one a task, 2, got 1"),
        (["--adapter", "none", "--adapter", "none"], "none: no such folder"),
        (["--rows", "0"], "Invalid value for '--rows'"),
        (["--out", "adapters/rte/adapter_config.json/w.json"], "cannot be written"),
        (["--out", "adapters/rte/adapter_config.json"], "not a file of learned weights"),
    ],
)
def test_what_is_wrong_is_told_before_the_model_is_loaded(refused, monkeypatch, given, line):
    monkeypatch.setattr(lab, "Lab", None)
    assert line in refused("weigh", *LEARN, *given)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "w.json: cannot be read"),
        ("{", "w.json: not a file of learned weights"),
        ('{"weights": {}}', "w.json: not a file of learned weights: made: Field required"),
        ('{"weights": {"a": {"b": NaN}}}', "w.json: not a file of learned weights: NaN is no JSON"),
        (
            '{"weights": {}, "made": {"identity": "", "adapters": {}}}',
            "w.json: not learned with adapters/piqa; run `tipmini weigh` with it",
        ),
    ],
)
def test_weights_that_are_none_are_one_line(refused, small, content, line):
    if content:
        (small / "w.json").write_text(content)
    given = ["--method", "cat", "--weights", "w.json", "--out", "m", *ADAPTERS]
    assert line in refused("merge", *given)
    assert not (small / "m").exists()
