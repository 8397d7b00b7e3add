"""Killed, starved, damaged and run again: see `survival`. The short form, and the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def python(*words: str, timeout: float | None = None) -> str:
    """What a process of its own prints."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(3600)  # a command that hangs is told, and where, within ten minutes
@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 2), pytest.param(0, 20, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_results_survive(embedded, seed, kills):
    """In a process of its own: it forks, and stands in for what is fetched."""
    told = python("-m", "survival", "--seed", str(seed), "--kills", str(kills))
    print(told)
    assert f"kill -9: {kills} commands" in told and "all survived" in told


@pytest.mark.timeout(900)
def test_a_command_that_is_killed_as_it_draws_holds_up_no_other():
    script = """
import os, signal, survival
from tqdm import tqdm

list(tqdm(range(2)))
if not (child := os.fork()):
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
list(tqdm(range(2)))
"""
    python("-c", script, timeout=600)


@pytest.mark.timeout(900)
def test_commands_that_hang_are_told_with_where(tmp_path):
    script = """
import os, sys, time, survival
from pathlib import Path

def waiting():
    (work / str(os.getpid())).touch()
    time.sleep(1000)

survival.main, work = waiting, Path(sys.argv[1])
for _ in range(20):
    started = survival.World.start(None, ["merge"], work)
    survival.awaited((work / str(started)).exists, work, within=300)
try:
    survival.awaited(lambda: None, work, within=1)
except survival.Failed as error:
    print(error)
print(len(survival.RUNNING) or "none left")
"""
    told = python("-c", script, str(tmp_path), timeout=600)
    assert "nothing within 1 s" in told and told.count("in waiting\n") == 20
    assert told.endswith("none left\n")
