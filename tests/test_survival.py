"""Killed, starved, damaged and run again: see `survival`. The short form, and the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 2), pytest.param(0, 20, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_results_survive(embedded, seed, kills):
    """In a process of its own: it forks, and stands in for what is fetched."""
    command = [sys.executable, "-m", "survival", "--seed", str(seed), "--kills", str(kills)]
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert f"kill -9: {kills} commands" in done.stdout and "all survived" in done.stdout
