"""The command line: its examples run, its errors are one line with exit code 2."""

import json
import re
import shlex
import sys
from importlib.metadata import version

import pytest
from adapters_on_disk import write_all
from typer.testing import CliRunner

import tipmini as tm
from tipmini.cli import arguments, merge
from tipmini.cli import main as listing
from tipmini.methods.table import BY_BLOCK, NEEDS, TRAINED
from tipmini_lab.commands import main
from tipmini_lab.experiments import estimate

ADAPTERS = ["adapters/openbookqa", "adapters/boolq"]
COMMANDS = {c.name or c.callback.__name__: c for c in main.app.registered_commands}
HERE = ("methods", "inspect", "merge", "claims")  # commands that need neither model nor data


def run(*given):
    """(exit code, output) of a call in this process."""
    result = CliRunner().invoke(main.app, [str(a) for a in given])
    return result.exit_code, result.output


# Help and its examples ------------------------------------------------------------------------


def examples(name):
    return re.findall(r"`(tipmini [^`]+)`", COMMANDS[name].epilog)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    code, overview = run("--help")
    assert code == 0 and name in overview
    assert examples(name) and all(e.split()[1] == name for e in examples(name))


@pytest.fixture
def tiny_folder(tmp_path, monkeypatch):
    """The working directory, with tiny adapters under the examples' names."""
    write_all(tmp_path)
    (tmp_path / "merge.yaml").write_text(merge.CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", [e for name in HERE for e in examples(name)])
def test_every_example_runs(tiny_folder, example):
    words = shlex.split(example)[1:]
    code, output = run(*words)
    assert code == 0 and output
    if "--json" in words:
        assert json.loads(output.splitlines()[0])  # then notes
    if words[0] == "merge":
        out = words[words.index("--out") + 1] if "--out" in words else "merged"
        weights = "adapter_model.safetensors" if out == "merged" else "model.safetensors"
        assert (tiny_folder / out / weights).exists() == ("--dry-run" not in words)


def test_help_shows_the_whole_configuration_and_how_completion_is_installed():
    assert "--install-completion" in run("--help")[1]
    shown = run("merge", "--help")[1]
    assert all(line in shown for line in merge.CONFIG.splitlines())


# Listing --------------------------------------------------------------------------------------


def test_methods_lists_each_merge_and_preset():
    names = [*tm.METHODS, *BY_BLOCK, *TRAINED, *tm.PRESETS]
    found = json.loads(run("methods", "--json")[1])
    assert list(found) == names
    for name in (name for name in names if name not in TRAINED):
        options = BY_BLOCK[name].options if name in BY_BLOCK else tm.method_options(name)
        assert found[name]["options"] == options
    assert found["tip-inverted"]["preset_of"] == "tip"
    lines = run("methods")[1].splitlines()
    assert [line.split()[0] for line in lines] == names
    assert "tip with sign=-1" in lines[names.index("tip-inverted")]
    for name, need in {"tsv": None, "regmean": "grams", "drift": "rows"}.items():
        assert lines[names.index(name)].endswith(f"[{NEEDS[need]}]")
    for name in TRAINED:  # each is a command
        assert f" {name} [OPTIONS]" in run(name, "--help")[1]
        assert lines[names.index(name)].endswith(f"[{TRAINED[name][1]}]")


def test_inspect_tells_rank_scaling_and_targets():
    facts = json.loads(run("inspect", "--json", *ADAPTERS)[1])["adapters/boolq"]
    assert facts["ranks"] == [8] and facts["scaling"] == [2.0]
    assert facts["targets"] == ["q_proj", "v_proj"]


def test_inspect_says_that_adapters_are_of_different_bases(tiny_folder, call, capsys):
    file = tiny_folder / "adapters/rte/adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "someone/Another-7b"}))
    assert call("inspect", "adapters/piqa", "adapters/rte") == 2
    told = capsys.readouterr()
    assert "modules" in told.out
    assert told.err.startswith("tipmini: adapters of different base models: adapters/piqa of")


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["inspect", "nowhere"], "nowhere: no such folder"),
        (["inspect", "no\nwhere"], "no where: no such folder"),
        (["inspect"], "tipmini inspect: Missing argument 'adapters'; see `tipmini inspect --help`"),
        (["inspecct", "x"], "No such command 'inspecct'"),
        (["merge", "--sparcity", "1", "x"], "No such option: --sparcity"),
        (
            ["evaluate", "--task", "rte", "--limit", "few"],
            "tipmini evaluate: Invalid value for '--limit': ",
        ),
        (
            ["book", "--profile", "mimi"],
            "not one of a40, full, full-seeds, mini, mini-seeds, smoke",
        ),
        (["measure", "--task", "piqqa"], "piqqa"),
    ],
)
def test_what_the_user_can_mend_is_one_line(refused, given, line):
    assert line in refused(*given)


def test_what_a_call_leaves_with(call, capsys):
    assert call("methods") == call("methods", "--help") == call("--version") == 0
    assert capsys.readouterr().out.endswith(version("tipmini") + "\n")
    assert call() == 2  # no command shows the help
    shown = capsys.readouterr()
    assert "merge" in shown.out + shown.err


def test_a_bug_is_no_users_fault(monkeypatch):
    """It comes through, so that Python shows where it is and leaves with exit code 1."""

    def bug(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(listing, "first_line", bug)
    monkeypatch.setattr(sys, "argv", ["tipmini", "methods"])
    with pytest.raises(RuntimeError, match="a bug"):
        main.main()
    assert run("methods")[0] == 1


def test_nearest_names_only_what_is_near():
    assert arguments.nearest("tipp", ["ties", "tip"]) == "; did you mean 'tip'?"
    assert arguments.nearest("xyz", ["ties", "tip"]) == ""


@pytest.mark.parametrize(
    ("given", "handed"),
    [
        (["run", "--model", "tipmini", "--model_args", "pretrained=x"], ["--device", "cpu"]),
        (["run", "--model", "hf", "--device", "mps"], []),
        (["ls", "tasks"], []),
    ],
)
def test_lm_eval_asks_for_a_device_that_is_there(monkeypatch, given, handed):
    """Its own default is a GPU, which ends in a traceback where there is none."""
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: print(*sys.argv))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, output = run("lm-eval", *given)
    assert code == 0 and output.split() == ["lm-eval", *given, *handed]


def test_lm_eval_needs_a_model(refused):
    told = refused("lm-eval", "run", "--model", "tipmini", "--tasks", "piqa", beside=True)
    assert "pretrained=FOLDER" in told


def test_a_dry_run_says_what_is_stored_and_measures_nothing(monkeypatch, refused):
    """Of Table 1 and of a group; a step whose work is not cells has none."""
    found = estimate.Estimate(stored=8, missing=2, seconds=30.0)
    asked = []
    monkeypatch.setattr(estimate, "estimate", lambda *given: asked.append(given) or found)
    line = "8 cells stored, 2 to measure, about 30 s on this machine"
    given = ["--profile", "smoke", "--dry-run"]
    assert run("measure", *given, "--part", "2/3") == (0, f"Table 1 at smoke: {line}\n")
    assert asked[-1][1:] == (None, ["single", "tip"], ())
    code, told = run("batch", *given, "--group", "sweeps", "--group", "pruning")
    assert (code, told) == (0, f"sweeps at smoke: {line}\npruning at smoke: {line}\n")
    assert [each[1] for each in asked[1:]] == ["sweeps", "pruning"]
    assert "step of a dry run must be one of" in refused("batch", "trained", "--dry-run")
