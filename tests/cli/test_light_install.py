"""`pip install .` alone, in an environment of its own: it merges, and says what the rest needs."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tiny import random_adapter

ROOT = Path(__file__).resolve().parents[2]
MOST = 45  # packages; all that is in requirements.lock are five times as many


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The environment's folder; the versions are those of the lock."""
    work = tmp_path_factory.mktemp("light")
    source, place = work / "source", work / "venv"
    for name in ("tipmini", "tipmini_lab"):  # a build leaves files beside them
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(place)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "--quiet"]
    given = ["--no-compile", "--constraint", str(ROOT / "requirements.lock"), str(source)]
    subprocess.run([*pip, "install", *given], check=True)
    yield place
    shutil.rmtree(work)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The working folder, with two adapters."""
    for seed, name in enumerate("ab"):
        random_adapter(seed).save(tmp_path / name)
    return tmp_path


def run(installed, folder, *words):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed / "bin" / "tipmini", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=kept)


def test_it_is_small(installed):
    found = list(installed.rglob("site-packages/*.dist-info"))
    assert len(found) <= MOST


@pytest.mark.parametrize("given", [[], ["--method", "ties", "--on", "delta"]])
def test_it_merges(installed, folder, given):
    done = run(installed, folder, "merge", *given, "--out", "m", "a", "b")
    assert done.returncode == 0, done.stderr
    assert run(installed, folder, "inspect", "m").returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["calibrate", "--task", "rte", "--adapter", "a", "--out", "n.safetensors"],
        ["evaluate", "--task", "rte"],
        ["fetch"],
        ["lm-eval", "run"],
        ["prune", "--out", "half"],
        ["weigh", "--task", "rte", "--adapter", "a", "--out", "w.json"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_of_the_laboratory_names_its_extra(installed, folder, words):
    refused = run(installed, folder, *words)
    assert refused.returncode == 2 and refused.stdout == ""
    assert refused.stderr.startswith(f"tipmini: {words[0]} needs ")
    assert refused.stderr.endswith(", which is not installed: pip install 'tipmini[lab]'\n")


@pytest.mark.parametrize(
    "words", [["adapters"], ["book"], ["claims"], ["measure"], ["norms"], ["publish", "x"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_on_the_checkout_says_so(installed, tmp_path, words):
    refused = run(installed, tmp_path, *words)
    assert refused.returncode == 2 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"tipmini: {words[0]}") and "needs a checkout of the project" in line
