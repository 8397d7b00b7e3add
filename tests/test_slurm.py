"""The workflow on a real Slurm of one node, by Snakemake's own plugin."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import one_node_slurm as slurm
import pytest
import yaml
from checkouts import checkout

from tipmini_lab import paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = {
    "jobs": 2,
    "latency-wait": 5,
    "slurm-init-seconds-before-status-checks": 2,
    "set-threads": {"part": 1},
}
LAB = [sys.executable, "-m", "tipmini_lab.commands.main"]
TASKS = ("openbookqa", "rte")  # of the profile smoke
METHODS = ("base", "single", "linear", "dare", "tip")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    subprocess.run([paths.REPOSITORY / "scripts/slurm", "node"], check=True, env=ENVIRONMENT)
    with slurm.slurm(tmp_path_factory.mktemp("slurm"), cpus=2):
        yield


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def settled(folder: Path) -> Path:
    """A checkout whose cluster is the one node, with the plugin."""
    checkout(folder)
    (folder / "_build").mkdir()
    (folder / "_build" / "slurm").symlink_to(paths.BUILD / "slurm")
    given = yaml.safe_load((paths.REPOSITORY / "workflow/slurm/config.yaml").read_text())
    (folder / "workflow/slurm/config.yaml").write_text(yaml.safe_dump(given | SETTINGS))
    return folder


def environment(folder: Path) -> dict[str, str]:
    return ENVIRONMENT | {"PYTHONPATH": str(folder)}


def start(folder: Path, *command: str) -> subprocess.Popen:
    """A command of the project in a folder, in a process group of its own."""
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [*LAB, *command],
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def done(folder: Path, *command: str) -> str:
    """What such a command prints; it must end well."""
    process = start(folder, *command)
    assert process.wait() == 0, (folder / "log").read_text()
    return (folder / "log").read_text()


def results(folder: Path) -> dict[str, dict]:
    """Every stored cell of the profile smoke, by its place in the store and its task."""
    store, found = folder / "_build/results/smoke", {}
    for file in [*store.glob("cells/*.json"), *store.glob("variants/*.json")]:
        told = json.loads(file.read_text())
        for cell in told.get("cells", [told]):
            found[f"{file.relative_to(store)} {cell['task']}"] = cell
    return found


def same(one: dict, other: dict) -> dict[str, bool]:
    """Whether cells are equal value for value, and measured of the same."""
    told = ("values", "margins", "key", "inputs", "dtype", "metric")
    return {what: one[what] == other[what] for what in told}


def until_measuring(process: subprocess.Popen, folder: Path) -> None:
    while not results(folder):
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)


def compare(here: Path, there: Path, count: int) -> None:
    """All that was measured in two folders is equal value for value."""
    ours, theirs = results(here), results(there)
    assert theirs.keys() == ours.keys() and len(ours) == count
    for name, cell in ours.items():
        assert all(same(cell, theirs[name]).values()), (name, same(cell, theirs[name]))


def test_a_killed_run_on_slurm_resumes_with_one_writer_and_has_the_local_results(cluster, tmp_path):
    here, there = settled(tmp_path / "here"), settled(tmp_path / "there")
    on_slurm = ["batch", "measured", "--profile", "smoke", "--jobs", "2"]
    on_slurm += ["--cluster", "workflow/slurm"]

    first = start(there, *on_slurm)
    until_measuring(first, there)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    left = slurm.jobs("RUNNING,PENDING")
    assert left  # Slurm knows nothing of Snakemake's end

    told = done(there, *on_slurm)
    assert f"cancelling {len(left)} jobs" in told
    assert {slurm.state(job) for job in left} == {"CANCELLED"}
    assert slurm.jobs("RUNNING,PENDING") == {}
    done(here, "measure", "--profile", "smoke")
    compare(here, there, len(METHODS) * len(TASKS))

    # A grid of one file is shared by the jobs in the same way: a part of the page's.
    (block,) = re.findall(r"```yaml\n(.*?)```", (paths.BOOK / "cluster.md").read_text(), re.S)
    declared = yaml.safe_load(block)
    (grid,) = declared["grids"]
    grid["axes"] = [dict([*axis.items()][-2:]) for axis in grid["axes"][1:]]
    for folder in (here, there):
        (folder / "experiments/own").mkdir()
        (folder / "experiments/own/draws.yaml").write_text(yaml.safe_dump(declared))
    done(there, *on_slurm, "--group", "draws")
    done(here, "measure", "--profile", "smoke", "--group", "draws")
    compare(here, there, (len(METHODS) + 2 * 2) * len(TASKS))
