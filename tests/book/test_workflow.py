"""What makes a step run again, and what doesn't."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tipmini.errors import TipminiError
from tipmini_lab import paths
from tipmini_lab.book import slurm, workflow
from tipmini_lab.locks import alone


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A copy of the notebooks that a test may edit."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    return shutil.copytree(paths.REPOSITORY / "notebooks", tmp_path / "notebooks")


def test_every_notebook_of_the_book_is_executed():
    contents = (paths.REPOSITORY / "_toc.yml").read_text()
    assert workflow.notebooks()
    assert all(f"notebooks/{name}\n" in contents for name in workflow.notebooks())


@pytest.mark.parametrize(("kind", "again"), [("markdown", False), ("code", True)])
def test_only_an_edit_of_code_executes_a_notebook_again(notebooks, kind, again):
    name = workflow.notebooks()[-1]
    before = workflow.notebook_digest(name, "mini")
    content = json.loads((notebooks / f"{name}.ipynb").read_text())
    cell = next(c for c in content["cells"] if c["cell_type"] == kind)
    cell["source"] = [*cell["source"], "\n# another line"]
    (notebooks / f"{name}.ipynb").write_text(json.dumps(content))
    assert (workflow.notebook_digest(name, "mini") != before) is again
    assert workflow.notebook_digest(name, "smoke") != workflow.notebook_digest(name, "mini")


def test_a_cell_in_two_is_executed_again(notebooks):
    """The book takes no run whose cells are others, though all of them together be the same."""
    file = notebooks / f"{(name := workflow.notebooks()[-1])}.ipynb"
    before, content = workflow.notebook_digest(name, "mini"), json.loads(file.read_text())
    cells = content["cells"]
    at = next(n for n, c in enumerate(cells) if c["cell_type"] == "code" and len(c["source"]) > 1)
    first, *rest = cells[at]["source"]
    halves = [cells[at] | {"source": [first.rstrip("\n")]}, cells[at] | {"source": rest}]
    file.write_text(json.dumps(content | {"cells": cells[:at] + halves + cells[at + 1 :]}))
    assert workflow.notebook_digest(name, "mini") != before


def test_what_a_notebook_imports_is_an_input_and_nothing_else_is():
    found = {
        name: {str(f.relative_to(paths.REPOSITORY)) for f in workflow.reached(workflow.code(name))}
        for name in workflow.notebooks()
    }
    for name, modules in found.items():
        assert "tipmini/papers/tip.py" in modules  # by a name that `tm` imports once asked for
        assert "tipmini/methods/baselines.py" in modules  # by a string in the table of methods
        assert ("tipmini_lab/book/serving.py" in modules) == (name == "a_serving")
        assert not any(room in module for module in modules for room in ("/cli", "/commands"))
        assert workflow.reads_again(name) == (name == "d_accuracies")
    assert "tipmini_lab/book/workflow.py" not in set.union(*found.values())


@pytest.mark.parametrize(
    ("place", "notebooks"),
    [("results/mini", True), ("results/serving.json", ["a_serving"]), ("results/parity.json", [])],
)
def test_data_are_inputs_of_the_notebooks_that_read_them(tmp_path, monkeypatch, place, notebooks):
    seen = []
    monkeypatch.setattr(workflow, "digest", lambda _, __, *places: seen.append(places))
    for name in workflow.notebooks():
        workflow.notebook_digest(name, "mini")
        read = notebooks is True or name in notebooks
        assert (paths.REPOSITORY / place in seen[-1]) is read


def test_a_folder_counts_with_all_that_it_holds(tmp_path):
    before = workflow.digest("mini", "", tmp_path)
    (tmp_path / "one.json").write_text("{}")
    assert workflow.digest("mini", "", tmp_path) != before


def test_an_unknown_profile_is_refused_before_anything_runs():
    with pytest.raises(
        TipminiError, match="'mimi': not one of a40, full, full-seeds, mini, mini-seeds, smoke"
    ):
        workflow.run("mimi")


def test_a_second_run_beside_the_first_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    with alone(tmp_path), pytest.raises(TipminiError, match="another run is at work"):
        workflow.run("smoke")


def test_snakemake_keeps_others_out_when_it_alone_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    left = []

    def run(command, **options):
        left.append(subprocess.Popen(["sleep", "60"], **options))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(workflow.subprocess, "run", run)
    workflow.run("smoke")
    with pytest.raises(TipminiError, match="another run is at work"):
        workflow.run("smoke")
    left[0].kill()
    left[0].wait()
    workflow.run("smoke")
    left[1].kill()
    left[1].wait()


# Steps as jobs ------------------------------------------------------------------------------------


def test_a_step_or_group_that_is_not_there_is_refused():
    with pytest.raises(TipminiError, match="step must be one of all, measured, trained"):
        workflow.run("smoke", "mesured")
    with pytest.raises(TipminiError, match=r"group must be one of .*sweeps.*, got 'swepes'"):
        workflow.run("smoke", "measured", ["swepes"])


def test_an_edit_of_a_declaration_measures_its_groups_again(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "EXPERIMENTS", tmp_path / "experiments")
    shutil.copytree(paths.REPOSITORY / "experiments", tmp_path / "experiments")
    before, table = workflow.group_digest("mini", "few"), workflow.group_digest("mini", None)
    with (tmp_path / "experiments/tip/few.yaml").open("a") as file:
        file.write("# another line\n")
    workflow._content.cache_clear()  # it is read once a run
    assert workflow.group_digest("mini", "few") != before
    assert workflow.group_digest("mini", None) == table


def test_groups_are_split_into_jobs_and_adapters_trained_one_a_job():
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--directory", paths.REPOSITORY]
    command += ["--config", "groups=[sweeps, pruning, elastic]", "jobs=3", "--forceall", "--"]
    done = subprocess.run(
        [*command, "measured", "trained"], cwd=paths.REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"(?m)^(\w+) +(\d+)$", done.stdout + done.stderr))
    assert (counts["part"], counts["adapter"], counts["fetch"]) == ("7", "7", "1")
    assert not workflow.splits("few")  # its choices' candidates would be scored by each job


@pytest.mark.parametrize(("step", "job"), [("all", "book"), ("reproduced", "reproduced")])
def test_what_is_fetched_anew_stops_nothing_that_rests_on_it(tmp_path, step, job):
    """Snakemake passes over all that follows a job whose output is there and taken as `ancient`."""
    (tmp_path / "notebooks").symlink_to(paths.NOTEBOOKS)
    (tmp_path / "_build").mkdir()
    (tmp_path / "_build/fetched").touch()
    command = [sys.executable, "-m", "snakemake", step, "--dry-run", "--forcerun", "fetch"]
    command += ["--snakefile", paths.REPOSITORY / "workflow/Snakefile", "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"fetch", job} <= set(re.findall(r"(?m)^(\w+) +\d+$", done.stdout + done.stderr))


def test_a_cluster_needs_its_settings_its_plugin_and_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm, "ASIDE", tmp_path / "slurm")
    with pytest.raises(TipminiError, match=r"no config\.yaml there; workflow/slurm has one"):
        slurm.options(tmp_path)
    settings = paths.REPOSITORY / "workflow/slurm"
    with pytest.raises(TipminiError, match="plugin for Slurm is missing; run scripts/slurm"):
        slurm.options(settings)
    (tmp_path / "slurm" / slurm.PLUGIN).mkdir(parents=True)
    with pytest.raises(TipminiError, match="there is no squeue"):
        slurm.options(settings)


def test_jobs_that_were_left_are_cancelled_those_of_this_checkout_alone(tmp_path, monkeypatch):
    """By a squeue and a scancel that know a file of jobs."""
    monkeypatch.setattr(slurm, "ASIDE", tmp_path / "slurm")
    (tmp_path / "slurm" / slurm.PLUGIN).mkdir(parents=True)
    queue = tmp_path / "queue"
    queue.write_text(f"7 {slurm.name()}_one\n8 tipmini-another_one\n9 {slurm.name()}_two\n")
    for program, does in (
        ("squeue", f"cat {queue}"),
        # It fails, as of a job that has ended since squeue was asked.
        ("scancel", f'for job; do sed -i "/^$job /d" {queue}; done; exit 1'),
    ):
        (tmp_path / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    given = slurm.options(paths.REPOSITORY / "workflow/slurm")
    assert given[-2:] == ["--slurm-jobname-prefix", slurm.name()]
    assert queue.read_text() == "8 tipmini-another_one\n"


def test_a_squeue_that_fails_without_a_word_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "ASIDE", tmp_path / "slurm")
    (tmp_path / "slurm" / slurm.PLUGIN).mkdir(parents=True)
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(TipminiError, match="Slurm does not answer: squeue: exit code 3"):
        slurm.options(paths.REPOSITORY / "workflow/slurm")
