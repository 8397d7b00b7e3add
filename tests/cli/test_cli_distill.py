"""`tipmini distill` on tiny models."""

import json

import pytest
from labs import llama, save_llama
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


def test_another_base_or_template_is_another_run(small, tokenizer):
    """By the R of the start: a story that was read instead would tell the first one's."""
    texts = ["--task", "colours", "--include-path", "tasks", "--out", "one", "adapters/piqa"]

    def started(*given) -> float:
        run("distill", *SHORT, "--dtype", "float32", *texts, *given)
        return json.loads((small / "one" / distilling.STORY).read_text())["base"]["colours"]

    found = [started()]
    save_llama(small / "other", tokenizer, seed=1)
    found.append(started("--base", "other"))
    file = small / "tasks/colours.yaml"
    file.write_text(file.read_text().replace("{{thing}}", "a {{thing}}, a"))
    found += [started("--base", "other"), started("--base", "other")]
    assert len(set(found[:3])) == 3 and found[2] == found[3]


def test_into_the_folder_where_one_stands(small, monkeypatch):
    adapters = [str(small / each) for each in ADAPTERS]
    (small / "empty").mkdir()
    monkeypatch.chdir(small / "empty")
    assert run("distill", "--out", ".", *SHORT, *adapters).startswith(".: rank ")
    assert tm.load_adapter(small / "empty").modules
    assert {each.name for each in small.glob("empty*")} == {"empty"}  # no checkpoint is left


def test_a_damaged_story_is_made_again(small):
    run("distill", "--out", "both", *SHORT, *ADAPTERS)
    file = small / "both" / distilling.STORY
    file.write_text(file.read_text()[:100])
    run("distill", "--out", "both", *SHORT, *ADAPTERS)
    assert json.loads(file.read_text())["digest"]


def test_files_beside_an_earlier_result_are_told_before_the_work(small, refused, monkeypatch):
    run("distill", "--out", "both", *SHORT, *ADAPTERS)
    (small / "both/README.md").write_text("mine")
    monkeypatch.setattr(distilling.Distilling, "ask", None)
    told = refused("distill", "--out", "both", *SHORT, "--rank", "3", *ADAPTERS, beside=True)
    assert "both: also holds README.md" in told and (small / "both" / distilling.STORY).is_file()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("The sky is blue.", "x.txt: 1 training examples; it needs two"),
        ("a\nb", "x.txt: 2 of 2 examples have one token"),
    ],
)
def test_too_few_or_too_short_rows_are_one_line(small, refused, rows, told):
    (small / "x.txt").write_text(rows)
    given = ["--text", "x.txt", "--out", "one", "adapters/piqa"]
    assert told in refused("distill", *SHORT, *given, beside=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--task", "rte", *ADAPTERS], "2 adapters and 1 tasks and texts"),
        (["--text", "a.jsonl", *ADAPTERS], "2 adapters and 1 tasks and texts"),
        (["adapters/piqa", "adapters/none"], "adapters/none"),
        (["--out", "tasks", *ADAPTERS], "tasks: also holds colours.yaml"),
        (["--out", "a.jsonl/both", *ADAPTERS], "cannot be written"),
        (["--learning-rate", "nan", *ADAPTERS], "a finite number above 0, got nan"),
        (["--learning-rate", "-1", *ADAPTERS], "a finite number above 0, got -1.0"),
    ],
)
def test_refused(refused, given, told):
    out = [] if "--out" in given else ["--out", "both"]
    assert told in refused("distill", *out, *given, beside=True)
