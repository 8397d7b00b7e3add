"""`tipmini calibrate`: what is measured is what the library measures, and a merge can read it."""

import pytest
import torch
from merge_command import run
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import tipmini as tm
from tipmini_lab.commands import main, one
from tipmini_lab.experiments import experiment
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
    return experiment.Lab(profile).norms.measure(task, statistic=statistic)


@pytest.mark.parametrize("example", main.COMMANDS[one.calibrate])
def test_every_example_runs(example):
    words = example.split()[1:]
    run(*words)
    assert load_file(words[words.index("--out") + 1])


@pytest.mark.parametrize(("statistic", "what"), [("rms", "input norms"), ("gram", "Gram matrices")])
def test_the_statistic_asked_for_is_written(small, statistic, what):
    told = calibrate("rte", statistic, "new/rte.safetensors")
    assert told == f"new/rte.safetensors: {what} of {small}/adapters/rte on 3 rows of rte\n"
    written, measured = load_file("new/rte.safetensors"), expected(small, "rte", statistic)
    assert written.keys() == measured.keys()
    assert all(torch.equal(written[name], measured[name]) for name in measured)
    with safe_open("new/rte.safetensors", "pt") as opened:
        assert opened.metadata()["statistic"] == statistic


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
    monkeypatch.setattr(experiment, "Lab", None)
    given = ["calibrate", "--task", "rte", "--statistic", "grams", "--out", "x"]
    refused = CliRunner().invoke(main.app, given).exception
    assert str(refused) == "statistic must be one of wanda, rms, mean_l2, gram, got 'grams'"
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
    monkeypatch.setattr(experiment, "Lab", None)
    words = [word.format(count=count) for word in given]
    told = refused(command, "--task", "rte", "--out", "x", *words)
    assert line.format(count=count) in told


def test_a_folders_braces_are_no_placeholder(small):
    (small / "adapters" / "rte").rename(small / "{rte}")
    run("calibrate", "--task", "rte", "--rows", "1", "--adapter", "{rte}", "--out", "x")
    assert load_file("x")
